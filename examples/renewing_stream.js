/**
 * An event stream that goes on when its login has expired or a permission was revoked: it asks for a new
 * address, with a new token for example, and opens the next stream there, after the last event that has come.
 *
 *     const address = async (reason) => `/events/?token=${await newToken()}`;
 *     const stop = renewingStream(address, ["message", "order-paid"], ({type, data}) => show(type, data));
 *
 * `address` is called before each stream with the reason for it: null for the first one, then "expired",
 * "revoked" or "refused" (a 401, for example, when EventSource came back after the token's end). It returns a
 * URL, or null if the user has to log in again; if it throws, it is called again after a while. An `address`
 * that is a URL never changes, and EventSource comes back to it by itself.
 *
 * `onEvent` gets `{type, data, lastEventId}`. `onState` gets "waiting", "open", or "closed": the server has
 * refused for good, or there is no further address.
 */
export function renewingStream(
  address, names, onEvent, onState = () => {}, {lastEventId = "", withCredentials = false} = {},
) {
  const stopping = new AbortController();
  const {signal} = stopping;
  const renews = typeof address === "function";
  // Also those that the page did not ask for: their ids are the place at which the next stream begins.
  const heard = new Set(["livepush.open", "livepush.gap", "livepush.close", "livepush.refused", ...names]);

  async function run() {
    let reason = null;
    onState("waiting");
    while (!signal.aborted) {
      const next = renews ? await nextAddress(reason) : address;
      if (!next || signal.aborted) break;
      const url = new URL(next, location.href);
      // In the query, because EventSource takes no headers. When it comes back it sends the header, which wins.
      if (lastEventId) url.searchParams.set("last_event_id", lastEventId);
      const end = await follow(url);
      // A new address that is refused before it opens would be refused again.
      if (!renews || (end.reason === "refused" && !end.opened)) break;
      reason = end.reason;
      await wait(end.retry);
    }
    if (!signal.aborted) onState("closed");
  }

  async function nextAddress(reason) {
    for (let delay = 1000; !signal.aborted; delay = Math.min(2 * delay, 60_000)) {
      try {
        return await address(reason);
      } catch (error) {
        console.warn("no address for the next stream yet:", error);
        await wait(delay * (0.5 + Math.random() / 2));
      }
    }
    return null;
  }

  /** Open a stream, and resolve when it needs another address, was refused or is stopped. */
  function follow(url) {
    return new Promise((resolve) => {
      const source = new EventSource(url, {withCredentials});
      const ending = new AbortController();
      let opens = 0;
      const end = (reason, retry = 0) => {
        source.close();
        ending.abort();
        resolve({reason, retry, opened: opens > 0});
      };
      signal.addEventListener("abort", () => end("stopped"), {signal: ending.signal});
      source.onopen = () => {
        opens += 1;
        onState("open");
      };
      source.onerror = () => {
        if (source.readyState === EventSource.CLOSED) end("refused");
        else onState("waiting");
      };
      for (const type of heard) {
        source.addEventListener(type, (event) => {
          ({lastEventId} = event);
          if (names.includes(type)) onEvent({type, data: event.data, lastEventId});
          if (!renews || signal.aborted) return;
          // Before EventSource comes back to an address that is of no use any more.
          if (type === "livepush.close") {
            const {reason, retry} = JSON.parse(event.data);
            if (reason === "expired" || reason === "revoked") end(reason, retry);
          } else if (type === "livepush.refused") {
            opens -= 1;  // It came with a 200, but no stream was opened.
            const {status, retry} = JSON.parse(event.data);
            if (status === 401 || status === 403) end("refused", retry);
          }
        });
      }
    });
  }

  /** Wait for milliseconds, which the server has chosen so that not all clients come at once. */
  function wait(milliseconds) {
    if (!signal.aborted) onState("waiting");
    return new Promise((resolve) => {
      const timer = setTimeout(stop, milliseconds);
      signal.addEventListener("abort", stop);
      function stop() {
        clearTimeout(timer);
        signal.removeEventListener("abort", stop);
        resolve();
      }
    });
  }

  run();
  return () => stopping.abort();
}
