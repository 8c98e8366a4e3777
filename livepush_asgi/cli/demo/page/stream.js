// One event stream by the browser's own EventSource, and what can be known about it from outside.
//
// Dispatches: "state" (see `state`), "control" (a livepush.* event, or what the browser noticed) and
// "record" (an event of the application). While a snapshot is being fetched, records wait; so they
// come after what the snapshot holds, and in order.

const CONTROL = ["open", "gap", "close", "refused"].map((name) => `livepush.${name}`);

// EventSource gives up for good where the answer is not a stream. Then it is up to us.
const STOPPED_RETRY = 4000;

export class Stream extends EventTarget {
  state = "connecting"; // connecting, open, waiting (the browser will come back), stopped
  opened = 0;
  received = 0;
  lastId = "";
  lastAt = 0; // performance.now() of the newest event
  stateSince = performance.now();
  retryAt = null; // performance.now() at which the browser comes back, as far as that is known
  retry = null; // ms. EventSource keeps it to itself, so it is what the server says of it, if it does,
  retryAbout = null; // or the middle of what the server gives to its clients.
  // Whether the stream ended with a word of the server's: then the error after it is no surprise.
  #closed = null;
  #waiting = null;
  #again = false;

  constructor(url, names, snapshot) {
    super();
    this.url = url;
    this.names = names;
    this.snapshot = snapshot;
    this.#connect();
  }

  #connect() {
    this.#become("connecting");
    const source = new EventSource(this.url);
    source.addEventListener("error", () => this.#lost(source));
    for (const name of CONTROL) source.addEventListener(name, (event) => this.#control(name, event));
    for (const name of ["message", ...this.names]) {
      source.addEventListener(name, (event) => this.#record(name, event));
    }
    // A page that goes away would otherwise show up as an error on its way out.
    addEventListener("pagehide", () => source.close(), { once: true });
    addEventListener("pageshow", (event) => event.persisted && this.#connect(), { once: true });
  }

  #control(name, event) {
    this.#count(event);
    const data = JSON.parse(event.data);
    if (data.retry) this.retry = data.retry;
    if (name === "livepush.open") {
      this.opened += 1;
      this.#closed = null;
      this.#become("open");
      this.#catchUp();
    } else if (name === "livepush.gap") {
      this.#catchUp();
    } else {
      this.#closed = data;
    }
    this.#tell("control", { name, data });
  }

  #record(name, event) {
    this.#count(event);
    const record = { name, data: event.data, arrived: Date.now() };
    if (this.#waiting) this.#waiting.push(record);
    else this.#tell("record", record);
  }

  #count(event) {
    this.received += 1;
    this.lastId = event.lastEventId;
    this.lastAt = performance.now();
  }

  #lost(source) {
    const stopped = source.readyState === EventSource.CLOSED;
    if (!this.#closed && this.state !== "waiting" && this.state !== "stopped") {
      const text = this.state === "open" ? "the connection was lost" : "no connection";
      this.#tell("control", { name: "error", data: { noticed: text } });
    }
    const retry = this.retry ?? this.retryAbout;
    this.retryAt = retry === null ? null : performance.now() + retry;
    if (!stopped) {
      this.#become("waiting");
      return;
    }
    this.retryAt = performance.now() + STOPPED_RETRY;
    this.#become("stopped");
    setTimeout(() => this.#connect(), STOPPED_RETRY);
  }

  async #catchUp() {
    this.#again = true;
    if (this.#waiting) return;
    this.#waiting = [];
    while (this.#again) {
      this.#again = false;
      try {
        await this.snapshot();
      } catch {
        // The next gap or reconnection asks again, and what is missing is seen by its number.
      }
    }
    const waited = this.#waiting;
    this.#waiting = null;
    for (const record of waited) this.#tell("record", record);
  }

  #become(state) {
    if (this.state !== state) this.stateSince = performance.now();
    this.state = state;
    this.#tell("state", {});
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

// The state in words, with what is known of its end.
export function inWords(stream) {
  const now = performance.now();
  if (stream.state === "open") return "Open";
  if (stream.state === "connecting") return "Connecting…";
  if (stream.retryAt === null) return `Reconnecting, for ${seconds(now - stream.stateSince)}`;
  const left = stream.retryAt - now;
  const about = stream.retry === null && stream.state !== "stopped" ? "about " : "";
  return left > 0 ? `Reconnecting in ${about}${seconds(left)}` : "Reconnecting…";
}

export const seconds = (ms) => `${(ms / 1000).toFixed(1)} s`;

// How far the server's clock is ahead of this one, in ms, from one exchange.
export function clockSkew(serverNow, sentAt, receivedAt) {
  return serverNow * 1000 - (sentAt + receivedAt) / 2;
}
