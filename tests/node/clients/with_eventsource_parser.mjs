// eventsource-parser, behind Node's fetch. It leaves coming back to its user.
import {setTimeout} from "node:timers/promises";
import {createParser} from "eventsource-parser";

let lastEventId = "";
let retry = 0;
let ended = false;
while (!ended) {
  const parser = createParser({
    onEvent({event = "message", data, id}) {
      lastEventId = id ?? lastEventId;
      ended ||= event === "end";
      console.log(JSON.stringify([event, data, id]));
    },
    onRetry(milliseconds) {
      retry = milliseconds;
    },
    onError(error) {
      throw error;
    },
  });
  const headers = lastEventId ? {"last-event-id": lastEventId} : {};
  const response = await fetch(process.argv[2], {headers});
  for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
    parser.feed(text);
    if (ended) break;
  }
  await setTimeout(retry);
}
