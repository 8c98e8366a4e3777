// @microsoft/fetch-event-source. It is made for browsers: the least that it wants of one is here.
import {fetchEventSource} from "@microsoft/fetch-event-source";

globalThis.window = globalThis;
globalThis.document = {hidden: false, addEventListener() {}, removeEventListener() {}};

const stop = new AbortController();
await fetchEventSource(process.argv[2], {
  signal: stop.signal,
  onmessage({event, data, id}) {
    console.log(JSON.stringify([event || "message", data, id]));
    if (event === "end") stop.abort();
  },
  onclose() {
    throw new Error("comes back"); // It takes the end of a stream for the end of all otherwise.
  },
});
