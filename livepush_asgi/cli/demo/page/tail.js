// The log page: lines come in batches, each with the number of its first line in its file.

import { Rows, matcher } from "/rows.js";
import { Sources } from "/sources.js";
import { Stream, inWords } from "/stream.js";

const at = (id) => document.getElementById(id);

const rows = new Rows(at("lines"), showCounts);
const sources = new Sources(at("sources"), () => rows.refresh());
const stream = new Stream("/events", ["lines", "note"], snapshot);
stream.addEventListener("record", ({ detail }) => {
  if (detail.name !== "message") take(JSON.parse(detail.data));
});
stream.addEventListener("control", ({ detail }) => {
  const { name, data } = detail;
  const reason = data.reason ?? data.noticed;
  at("event").textContent = `${new Date().toLocaleTimeString()} ${name}${reason ? `: ${reason}` : ""}`;
});

async function snapshot() {
  const history = await (await fetch("/history")).json();
  for (const { id, name } of history.sources) sources.get(id, name);
  for (const record of history.records) take(record);
}

// Records may come twice, from the history and from the stream; the number says what is new of them.
function take({ source: id, name, first, lines, note, replaced }) {
  const source = sources.get(id, name);
  const count = lines ? lines.length : 1;
  const next = source.last + 1;
  if (first + count <= next) return;
  // The first thing that this page sees of a source is where it begins, and nothing is missing.
  if (source.last && first > next) rows.lost(source, first - next);
  source.last = first + count - 1;
  if (note) {
    rows.note(source, note);
    return;
  }
  const known = Math.max(0, next - first);
  lines.slice(known).forEach((text, index) => rows.line(source, first + known + index, text));
  sources.count(source, count - known, replaced);
}

function showCounts() {
  const shown = at("lines").childElementCount;
  at("nothing").hidden = shown > 0;
  const missed = rows.missed ? `, ${rows.missed.toLocaleString("en")} missed` : "";
  at("counts").textContent = `${shown.toLocaleString("en")} lines on this page${missed}`;
  at("newer").hidden = rows.unseen === 0;
  at("newer").textContent = `${rows.unseen.toLocaleString("en")} newer`;
}

function pause(paused) {
  at("pause").ariaPressed = String(paused);
  at("pause").textContent = paused ? "Resume" : "Pause";
  rows.pause(paused);
}

at("pause").addEventListener("click", () => pause(!rows.paused));
at("newer").addEventListener("click", () => {
  if (rows.paused) pause(false);
  else rows.toEnd();
});
at("wrap").addEventListener("click", () => {
  const wrapped = at("wrap").ariaPressed !== "true";
  at("wrap").ariaPressed = String(wrapped);
  at("lines").classList.toggle("unwrapped", !wrapped);
});
at("filter").addEventListener("input", () => {
  try {
    rows.filter(matcher(at("filter").value));
    at("filter").classList.remove("bad");
  } catch {
    at("filter").classList.add("bad");
  }
});

setInterval(() => {
  at("state").dataset.state = stream.state;
  const words = inWords(stream);
  if (at("state").textContent !== words) at("state").firstElementChild.textContent = words;
}, 100);
