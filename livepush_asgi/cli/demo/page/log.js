// The log of the stream's own voice: its control events, and what the browser noticed.

const KEPT = 100;
const MEANING = {
  "livepush.open": () => "the stream begins",
  "livepush.gap": (data) => `${data.channel}: events may be missing (${data.reason})`,
  "livepush.close": (data) => `the server ends it: ${data.reason}`,
  "livepush.refused": (data) => `no stream: ${data.reason}`,
  error: (data) => data.noticed,
};

export class Log {
  constructor(list) {
    this.list = list;
  }

  add(name, data) {
    const item = document.createElement("li");
    item.dataset.name = name;
    const time = document.createElement("time");
    const now = new Date();
    time.textContent = `${now.toLocaleTimeString([], { hour12: false })}.${String(now.getMilliseconds()).padStart(3, "0")}`;
    const what = document.createElement("code");
    what.textContent = name === "error" ? "browser" : name;
    const meaning = document.createElement("span");
    meaning.textContent = MEANING[name](data);
    item.title = JSON.stringify(data);
    item.append(time, what, meaning);
    this.list.prepend(item);
    if (this.list.children.length > KEPT) this.list.lastElementChild.remove();
  }
}
