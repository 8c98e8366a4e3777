import {renewingStream} from "./renewing_stream.js";

/**
 * One event stream for all tabs of an origin, however many are open.
 *
 * The tab that holds the lock has the stream, and passes each event on over a BroadcastChannel. When it
 * goes, the browser gives the lock to another tab, which opens the stream after the last event that all of
 * them have.
 *
 *     const stop = sharedStream("/events/", ["message", "order-paid"], ({type, data}) => show(type, data));
 *
 * `onEvent` gets `{type, data, lastEventId}`. `onState` gets "waiting", "open" or how it has ended, "closed"
 * (the server has refused for good) or "replaced", and whether this tab has the stream. Locks need https, or
 * localhost. A stream is replaced by one of another browser of the same user, with `on_full="replace_oldest"`.
 * Then it ends in all tabs: the one that came back would replace that one.
 *
 * A stream with a token takes an `address`, a function that returns the URL of the next stream, as for
 * `renewingStream`. The tab that opens a stream calls its own. `url` then only says which tabs share one:
 *
 *     sharedStream("/events/", names, onEvent, onState, {address: async () => `/events/?token=${await newToken()}`});
 */
export function sharedStream(
  url, names, onEvent, onState = () => {}, {address = url, withCredentials = false, once = false} = {},
) {
  const name = `livepush ${new URL(url, location.href)}`;
  const channel = new BroadcastChannel(name);
  const leaving = new AbortController();
  const {signal} = leaving;
  const heard = new Set(["livepush.open", "livepush.gap", "livepush.close", "livepush.refused", ...names]);
  let lastEventId = "";
  let state = "waiting";
  let leading = false;

  function takeEvent(event) {
    lastEventId = event.lastEventId;
    if (names.includes(event.type)) onEvent(event);
  }

  function takeState(next) {
    state = next;
    onState(state, leading);
    if (state === "replaced") leave();
  }

  function takeMessage({data: message}) {
    if (leading) { // The stream of this tab brings what comes late from the tab before it.
      if (message.hello) channel.postMessage({welcome: {state, lastEventId}});
      if (message.event && !lastEventId) takeEvent(message.event); // A stream without ids brings nothing again.
      return;
    }
    if (message.event) takeEvent(message.event);
    if (message.state) takeState(message.state);
    if (message.welcome) {
      lastEventId ||= message.welcome.lastEventId;
      takeState(message.welcome.state);
    }
  }

  /**
   * Wait until a message of this tab has come back to it. All messages that were posted before it are here then,
   * and those of this tab are on their way. Otherwise one or two of a hundred locks reach the next tab before the
   * last message of this one does (Chromium).
   */
  async function settle() {
    const echo = new BroadcastChannel(name); // A BroadcastChannel does not hear itself.
    const mark = crypto.randomUUID();
    await new Promise((resolve) => {
      channel.addEventListener("message", ({data}) => data.mark === mark && resolve());
      signal.addEventListener("abort", resolve);
      echo.postMessage({mark});
    });
    echo.close();
  }

  async function lead() {
    await settle();
    if (signal.aborted) return;
    leading = true;
    const pass = (event) => {
      channel.postMessage({event}); // The others first: whatever onEvent does, they have it.
      takeEvent(event);
    };
    const options = {lastEventId, withCredentials, once};
    const stopStream = renewingStream(address, [...heard], pass, tellState, options);
    await new Promise((resolve) => signal.addEventListener("abort", resolve));
    stopStream();
  }

  async function tellState(next) {
    state = next;
    channel.postMessage({state});
    if (next === "replaced") await settle(); // Or the next tab that gets the lock opens the stream again.
    if (!signal.aborted) takeState(next);
  }

  function leave() {
    leaving.abort();
    leading = false;
    channel.close();
  }

  function stop() {
    leave();
    takeState("closed");
  }

  channel.addEventListener("message", takeMessage);
  channel.postMessage({hello: true});
  navigator.locks.request(name, {signal}, lead).catch((error) => {
    if (error.name !== "AbortError") throw error;
  });
  // A page that the browser keeps for its "back" button would keep the lock, and be silent. It hears nothing
  // meanwhile, and has to begin anew when it is shown again.
  addEventListener("pagehide", () => {
    stop();
    addEventListener("pageshow", () => location.reload());
  }, {signal});
  return stop;
}
