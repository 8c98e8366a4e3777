// The official clients of the dialects, unmodified. Each line of the input asks one of them to read a URL; a
// line of the output says what it made of it, under the same number.
import {createInterface} from "node:readline";
import {HttpAgent} from "@ag-ui/client";
import {Chat} from "@ai-sdk/react";
import {DefaultChatTransport, readUIMessageStream} from "ai";
import {EventSource} from "eventsource";

const textOf = (message) => (message?.parts ?? []).map((part) => part.text ?? "").join("");
const said = (error) => (error == null ? null : `${error.name}: ${error.message}`);

// The Vercel AI SDK: the transport, and the reader of its parts.
async function readAi({url}) {
  const stream = await new DefaultChatTransport({api: url}).reconnectToStream({chatId: "chat"});
  if (stream === null) return {text: "", error: null, finish: null, idle: true};
  let error = null;
  let last;
  const types = [];
  const seen = stream.pipeThrough(
    new TransformStream({
      transform(part, controller) {
        types.push(part);
        controller.enqueue(part);
      },
    }),
  );
  for await (const message of readUIMessageStream({stream: seen, onError: (e) => (error ??= e)})) last = message;
  const finish = types.find(({type}) => type === "finish" || type === "abort");
  const data = types.filter(({type}) => type.startsWith("data-"));
  return {text: textOf(last), error: said(error), finish: finish?.type ?? null, data, idle: false};
}

// The chat that `useChat` shows, without a page: it resumes, and again after each disconnect.
async function resumeAi({url, times, messages}) {
  const told = {data: []};
  const transport = new DefaultChatTransport({api: url});
  const chat = new Chat({id: "chat", messages, transport, onData: (part) => told.data.push(part)});
  const errors = [];
  const statuses = [];
  for (let time = 0; time < times; time++) {
    await chat.resumeStream();
    errors.push(said(chat.error));
    statuses.push(chat.status);
  }
  const {length} = chat.messages;
  return {text: chat.messages.map(textOf).join("|"), error: errors.at(-1), errors, messages: length, statuses, data: told.data};
}

// AG-UI. Each run is a request of its own, so a run that was cut is read again from its beginning.
async function readAgUi({url, times = 1}) {
  const errors = [];
  let custom, text, finish;
  for (let time = 0; time < times; time++) {
    const agent = new HttpAgent({url});
    [custom, finish] = [[], null];
    let failure = null;
    const subscriber = {
      onCustomEvent: ({event}) => void custom.push({name: event.name, value: event.value}),
      onRunFinishedEvent: () => void (finish = "RUN_FINISHED"),
      onRunErrorEvent: ({event}) => void ((finish = "RUN_ERROR"), (failure = `${event.code}: ${event.message}`)),
    };
    try {
      await agent.runAgent({runId: "run"}, subscriber);
    } catch (error) {
      failure ??= said(error);
    }
    errors.push(failure);
    text = agent.messages.map(({content}) => content ?? "").join("|");
  }
  return {text, error: errors.at(-1), errors, finish, data: custom};
}

// A browser's EventSource. It comes back with its last event id until it is told that there is nothing more.
function readEventSource({url}) {
  return new Promise((resolve) => {
    const source = new EventSource(url);
    const answer = {text: "", error: null, finish: null, data: []};
    source.addEventListener("message", ({data}) => void (answer.text += data));
    source.addEventListener("livepush.gap", ({data}) => void answer.data.push(JSON.parse(data)));
    source.addEventListener("livepush.end", ({data}) => {
      const {state, error} = JSON.parse(data);
      Object.assign(answer, {finish: state, error});
    });
    source.addEventListener("error", () => {
      if (source.readyState === EventSource.CLOSED) resolve(answer);
    });
  });
}

const JUDGES = {ai: readAi, chat: resumeAi, "ag-ui": readAgUi, eventsource: readEventSource};
// The clients write of each error to the console. AG-UI's raises it a second time, where nobody can catch it.
for (const way of ["log", "info", "warn", "error", "debug"]) console[way] = () => {};
process.on("uncaughtException", () => {});
for await (const line of createInterface({input: process.stdin})) {
  const {number, client, ...question} = JSON.parse(line);
  JUDGES[client](question)
    .catch((error) => ({text: "", error: said(error), finish: null, thrown: true}))
    .then((answer) => process.stdout.write(`${JSON.stringify({number, ...answer})}\n`));
}
