/**
 * One event stream for all tabs of an origin, however many are open.
 *
 * The tab that holds the lock has the stream, and passes each event on over a BroadcastChannel. When it goes,
 * the browser gives the lock to another tab, which opens the stream after the last event that all of them have.
 *
 *     const stop = sharedStream("/events/", ["message", "order-paid"], (event) => show(event.type, event.data));
 *
 * `onEvent` gets `{type, data, lastEventId}`. `onState` gets "waiting", "open" or "closed" (the server has
 * refused for good), and whether this tab has the stream. Locks need https, or localhost.
 */
export function sharedStream(url, names, onEvent, onState = () => {}, {withCredentials = false} = {}) {
  const name = `livepush ${new URL(url, location.href)}`;
  const channel = new BroadcastChannel(name);
  const here = new AbortController(); // Aborted when this page is done with the stream.
  const heard = new Set(["livepush.open", "livepush.gap", "livepush.close", "livepush.refused", ...names]);
  let lastEventId = "";
  let state = "waiting";
  let leading = false;
  let place = null; // Aborted when this page gives up its place, in the queue for the lock or at its head.

  function takeEvent(event) {
    lastEventId = event.lastEventId;
    if (names.includes(event.type)) onEvent(event);
  }

  function takeState(next) {
    state = next;
    onState(state, leading);
  }

  function takeMessage({data: message}) {
    if (message.event) takeEvent(message.event);
    if (message.state) takeState(message.state);
    if (message.hello && leading) channel.postMessage({welcome: {state, lastEventId}});
    if (message.welcome && !leading && !lastEventId) {
      lastEventId = message.welcome.lastEventId;
      takeState(message.welcome.state);
    }
  }

  /** Wait until everything is here that the tab before this one has said: until an own word has come round. */
  async function settle(leaving) {
    const echo = new BroadcastChannel(name); // A BroadcastChannel does not hear itself.
    const mark = crypto.randomUUID();
    await new Promise((resolve) => {
      channel.addEventListener("message", ({data}) => data.mark === mark && resolve());
      leaving.addEventListener("abort", resolve);
      echo.postMessage({mark});
    });
    echo.close();
  }

  async function lead(leaving) {
    await settle(leaving);
    if (leaving.aborted) return;
    const address = new URL(url, location.href);
    // The query, because EventSource takes no headers. When it reconnects it sends the header, which wins.
    if (lastEventId) address.searchParams.set("last_event_id", lastEventId);
    const source = new EventSource(address, {withCredentials});
    source.onopen = source.onerror = () => tellState(["waiting", "open", "closed"][source.readyState]);
    for (const type of heard) {
      source.addEventListener(type, ({data, lastEventId}) => {
        const event = {type, data, lastEventId};
        channel.postMessage({event}); // The others first: whatever onEvent does, they have it.
        takeEvent(event);
      });
    }
    leading = true;
    tellState("waiting");
    await new Promise((resolve) => leaving.addEventListener("abort", resolve));
    leading = false;
    source.close();
  }

  function tellState(next) {
    channel.postMessage({state: next});
    takeState(next);
  }

  function join() {
    place = new AbortController();
    const {signal} = place;
    navigator.locks.request(name, {signal}, () => lead(signal)).catch((error) => {
      if (error.name !== "AbortError") throw error;
    });
  }

  channel.addEventListener("message", takeMessage);
  channel.postMessage({hello: true});
  join();
  // A page that the browser keeps for its "back" button would keep the lock as well, and be silent.
  addEventListener("pagehide", () => place.abort(), {signal: here.signal});
  addEventListener("pageshow", ({persisted}) => persisted && join(), {signal: here.signal});
  return () => {
    here.abort();
    place.abort();
    leading = false;
    takeState("closed");
    channel.close();
  };
}
