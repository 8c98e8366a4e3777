// npm's eventsource: the browser's EventSource for Node. It comes back by itself.
import {EventSource} from "eventsource";

const NAMES = ["message", "named", "end", "livepush.open", "livepush.gap", "livepush.close", "livepush.refused"];
const source = new EventSource(process.argv[2]);
for (const name of NAMES) {
  source.addEventListener(name, ({type, data, lastEventId}) => {
    console.log(JSON.stringify([type, data, lastEventId]));
    if (name === "end") source.close();
  });
}
