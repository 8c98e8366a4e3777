/**
 * An event stream that goes on when its login has expired or its permission was revoked: it asks for a new
 * address, with a new token for example, and opens the next stream there, after the last event that has come.
 *
 *     const address = async () => `/events/?token=${await newToken()}`;
 *     const stop = renewingStream(address, ["message", "order-paid"], ({type, data}) => show(type, data));
 *
 * `address` is a URL, or a function that returns one or a promise of one. Before each stream it is called
 * with the reason for it: null for the first one, then "expired", "revoked" or "refused". If it throws, the
 * stream is over. A URL that is no function never changes; EventSource reconnects there by itself.
 *
 * `onEvent` gets `{type, data, lastEventId}`. `onState` gets "waiting", "open", or "closed": the server has
 * refused for good, or `address` has thrown, and the user has to log in again.
 */
export function renewingStream(
  address, names, onEvent, onState = () => {}, {lastEventId = "", withCredentials = false} = {},
) {
  const stopping = new AbortController();
  const {signal} = stopping;
  const renews = typeof address === "function";

  async function run() {
    let reason = null;
    while (!signal.aborted) {
      const url = new URL(renews ? await address(reason) : address, location.href);
      if (signal.aborted) return;
      // In the query, because EventSource takes no headers. When it reconnects, its header takes precedence.
      if (lastEventId) url.searchParams.set("last_event_id", lastEventId);
      const end = await follow(url);
      if (!renews || (end.reason === "refused" && !end.opened)) break;
      reason = end.reason;
      await wait(end.retry);
    }
    onState("closed");
  }

  /** Open a stream. Resolve when it needs another address, or is refused. */
  function follow(url) {
    return new Promise((resolve) => {
      const source = new EventSource(url, {withCredentials});
      let opened = false;
      const end = (reason, retry = 0) => {
        source.close();
        resolve({reason, retry, opened});
      };
      signal.addEventListener("abort", () => end("stopped"));
      source.onopen = () => {
        opened = true;
        onState("open");
      };
      source.onerror = () => {
        if (source.readyState === EventSource.CLOSED) end("refused");
        else onState("waiting");
      };
      for (const type of names) {
        source.addEventListener(type, ({data, lastEventId: id}) => {
          lastEventId = id;
          onEvent({type, data, lastEventId});
        });
      }
      if (!renews) return;
      // After `onEvent`, and before EventSource reconnects to an address that is of no use any more.
      source.addEventListener("livepush.close", ({data, lastEventId: id}) => {
        lastEventId = id;
        const {reason, retry} = JSON.parse(data);
        if (reason === "expired" || reason === "revoked") end(reason, retry);
      });
      source.addEventListener("livepush.refused", ({data}) => {
        const {status, retry} = JSON.parse(data);
        if (status === 401 || status === 403) end("refused", retry);
      });
    });
  }

  /** Wait for some milliseconds. The server names them, so that not all clients come at once. */
  function wait(milliseconds) {
    onState("waiting");
    return new Promise((resolve) => {
      setTimeout(resolve, milliseconds);
      signal.addEventListener("abort", resolve);
    });
  }

  onState("waiting");
  run().catch((error) => {
    if (signal.aborted) return;
    onState("closed");
    console.warn("the stream has no new address:", error);
  });
  return () => stopping.abort();
}
