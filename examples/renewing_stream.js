/**
 * An event stream that goes on when its login has expired or a permission was revoked: it asks for a new
 * address, with a new token for example, and opens the next stream there, after the last event that has come.
 * It also comes back after a 502, 503, 504 or more, which EventSource does not.
 *
 *     const address = async (reason) => `/events/?token=${await newToken()}`;
 *     const stop = renewingStream(address, ["message", "order-paid"], ({type, data}) => show(type, data));
 *
 * `address` is called before each stream with the reason for it: null for the first one, then "expired",
 * "revoked", "refused" (a 401, for example, when EventSource came back after the token's end) or "unavailable"
 * (the server or a proxy answered 502 or more, or nobody did). It returns a URL, or null if the user has to
 * log in again; if it throws, it is called again after a while. An `address` that is a URL never changes.
 *
 * With `once` an address opens one stream, such as one with a ticket: EventSource does not come back to it, and
 * `address` is called after every end, with the reason that the server has given or "unavailable".
 *
 * `onEvent` gets `{type, data, lastEventId}`. `onState` gets "waiting", "open", or how it has ended: "closed"
 * (the server has refused for good, or there is no further address) or "replaced" (by a newer stream of the same
 * user, with `on_full="replace_oldest"`; to come back would replace that one).
 */
export function renewingStream(
  address, names, onEvent, onState = () => {}, {lastEventId = "", withCredentials = false, once = false} = {},
) {
  const stopping = new AbortController();
  const {signal} = stopping;
  const renews = typeof address === "function";
  // Also those that the page did not ask for: their ids are the place at which the next stream begins.
  const heard = new Set(["livepush.open", "livepush.gap", "livepush.close", "livepush.refused", ...names]);

  async function run() {
    let reason = null;
    let failures = 0;
    onState("waiting");
    while (!signal.aborted) {
      const next = renews ? await nextAddress(reason) : address;
      if (!next || signal.aborted) break;
      const url = new URL(next, location.href);
      // In the query, because EventSource takes no headers. When it comes back it sends the header, which wins.
      if (lastEventId) url.searchParams.set("last_event_id", lastEventId);
      const end = await follow(url);
      // An address that was used tells no reason.
      if (end.reason !== "failed") reason = end.reason;
      else reason = once ? "unavailable" : await reasonOfFailure(url);
      if (reason === "replaced") {
        onState("replaced");
        return;
      }
      // A new address that is refused before it opens would be refused again.
      if (reason === "refused" && !(renews && end.opened)) break;
      failures = end.opened ? 0 : failures + 1;
      await wait(reason === "unavailable" ? backOff(failures) : end.retry);
    }
    if (!signal.aborted) onState("closed");
  }

  async function nextAddress(reason) {
    for (let failures = 0; !signal.aborted; failures += 1) {
      try {
        return await address(reason);
      } catch (error) {
        console.warn("no address for the next stream yet:", error);
        await wait(backOff(failures));
      }
    }
    return null;
  }

  /** Return how long to wait after so many failures, in milliseconds: not all clients shall come at once. */
  function backOff(failures) {
    return Math.min(1000 * 2 ** failures, 60_000) * (0.5 + Math.random() / 2);
  }

  /** Open a stream, and resolve when it needs another address, has failed, was replaced or is stopped. */
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
        if (once || source.readyState === EventSource.CLOSED) end("failed");
        else onState("waiting");
      };
      for (const type of heard) {
        source.addEventListener(type, (event) => {
          ({lastEventId} = event);
          if (names.includes(type)) onEvent({type, data: event.data, lastEventId});
          if (signal.aborted) return;
          // Before EventSource comes back to an address that is of no use any more.
          if (type === "livepush.close") {
            const {reason, retry} = JSON.parse(event.data);
            if (reason === "replaced") end(reason);
            else if (once || (renews && (reason === "expired" || reason === "revoked"))) end(reason, retry);
          } else if (type === "livepush.refused" && renews) {
            opens -= 1;  // It came with a 200, but no stream was opened.
            const {status, retry} = JSON.parse(event.data);
            if (status === 401 || status === 403) end("refused", retry);
            else if (once) end("unavailable", retry);
          }
        });
      }
    });
  }

  /** Return why EventSource has given up. It does not tell the status, so ask for the stream once more. */
  async function reasonOfFailure(url) {
    const asking = new AbortController();
    signal.addEventListener("abort", () => asking.abort(), {signal: asking.signal});
    const headers = {accept: "text/event-stream"};
    const credentials = withCredentials ? "include" : "same-origin";
    try {
      const answer = await fetch(url, {headers, credentials, cache: "no-store", signal: asking.signal});
      // A 200 may be a page, such as a login.
      const isStream = answer.ok && answer.headers.get("content-type")?.startsWith("text/event-stream");
      // Cloudflare has more of these: 520 to 530.
      return isStream || answer.status >= 502 ? "unavailable" : "refused";
    } catch {
      return "unavailable";  // Nobody answers, or a proxy's answer may not be read by a page of this origin.
    } finally {
      asking.abort();  // The stream, if there is one by now.
    }
  }

  /** Wait for milliseconds, which the server has chosen so that not all clients come at once. */
  function wait(milliseconds) {
    if (signal.aborted) return Promise.resolve();
    onState("waiting");
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
