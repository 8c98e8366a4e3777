// The demo page: one event stream, and what it brings put where it belongs.

import { Board } from "/board.js";
import { Chart, Spark, roundTop, timeAt } from "/charts.js";
import { Log } from "/log.js";
import { Stream, clockSkew, inWords, seconds } from "/stream.js";
import { Tape } from "/tape.js";

const KEPT = 130; // figures: a minute of them and some to spare
const FRAME = 1000 / 24; // ms. Smooth enough for what moves ten pixels in a second.

const at = (id) => document.getElementById(id);
// Not crypto.randomUUID: that is for secure origins only, and a phone opens this page over http.
const visitor = [...crypto.getRandomValues(new Uint8Array(16))]
  .map((byte) => byte.toString(16).padStart(2, "0")).join("");

let points = [];
let newest = 0;
let skew = 0;
let hovered = null; // a share of the charts' width
let sparks = [];

const board = new Board(at("board"), send);
const log = new Log(at("log"));
const tape = new Tape(document.querySelector(".tape svg"));

const cpu = new Chart(at("cpu-plot"), [{ name: "cpu", value: (p) => p.cpu }], () => 100);
const memory = new Chart(
  at("memory-plot"), [{ name: "memory", value: (p) => p.memory_used }], (all) => all.at(-1).memory_total,
);
const network = new Chart(
  at("network-plot"),
  [{ name: "received", value: (p) => p.received }, { name: "sent", value: (p) => p.sent, mirrored: true }],
  (all) => roundTop(Math.max(...all.map((p) => Math.max(p.received, p.sent))), 1000),
  { mirrored: true },
);
const charts = [cpu, memory, network];

const stream = new Stream(`/events?visitor=${visitor}`, ["figures", "note"], snapshot);
stream.addEventListener("state", () => tape.connected(stream.state === "open"));
stream.addEventListener("control", ({ detail }) => {
  if (detail.name !== "error") tape.mark("control");
  log.add(detail.name, detail.data);
  if (detail.name === "livepush.open") at("cut").disabled = false;
});
stream.addEventListener("record", ({ detail }) => take(detail));

async function snapshot() {
  const sent = Date.now();
  const history = await (await fetch("/history")).json();
  skew = clockSkew(history.now, sent, Date.now());
  stream.retryAbout = history.retry * 1000;
  const { host, system, python, booted } = history.machine;
  at("machine").textContent = `${host}, ${system}, up ${duration(history.now - booted)}, Python ${python}`;
  // A server that was started anew counts from the beginning again.
  if (history.figures.length && history.figures.at(-1).number < newest) [points, newest] = [[], 0];
  for (const figures of history.figures) add(figures);
  for (const note of history.notes) board.add(note);
  show();
}

function take({ name, data, arrived }) {
  if (name === "message") {
    tape.mark("note");
    board.add({ author: null, text: data, at: (arrived + skew) / 1000 });
    return;
  }
  const record = JSON.parse(data);
  tape.mark(name);
  if (name === "note") {
    board.add(record);
    return;
  }
  add(record);
  at("delay").textContent = `${Math.max(0, arrived + skew - record.at * 1000).toFixed(0)} ms`;
  at("visitors").textContent = record.visitors;
  show();
}

function add(figures) {
  if (figures.number <= newest) return;
  newest = figures.number;
  points.push(figures);
  points = points.slice(-KEPT);
}

function show() {
  if (!points.length) return;
  cpu.draw(points);
  at("memory-top").textContent = inBytes(memory.draw(points)).join(" ");
  at("network-top").textContent = `${inBytes(network.draw(points)).join(" ")}/s`;
  const cores = points.at(-1).cores;
  if (sparks.length !== cores.length) {
    at("cores").replaceChildren();
    at("cores").toggleAttribute("data-few", cores.length <= 4);
    sparks = cores.map((_, index) => new Spark(at("cores"), `Core ${index + 1}`));
  }
  sparks.forEach((spark, index) => spark.draw(points, (p) => p.cores[index] ?? 0));
  showValues();
}

// The values of the newest point, or of the one under the pointer.
function showValues() {
  const now = (Date.now() + skew) / 1000;
  const wanted = hovered === null ? Infinity : timeAt(hovered, now);
  const point = points.reduce((best, p) => (Math.abs(p.at - wanted) < Math.abs(best.at - wanted) ? p : best), points.at(-1));
  at("cpu").textContent = point.cpu.toFixed(0);
  at("load").textContent = `load ${point.load.toFixed(2)} on ${point.cores.length} cores`;
  sparks.forEach((spark, index) => (spark.value.textContent = `${(point.cores[index] ?? 0).toFixed(0)} %`));
  [at("memory").textContent, at("memory-unit").textContent] = inBytes(point.memory_used);
  const swap = point.swap_total ? `, ${inBytes(point.swap_used).join(" ")} swapped` : "";
  at("memory-detail").textContent = `of ${inBytes(point.memory_total).join(" ")}${swap}`;
  const [amount, unit] = inBytes(point.received + point.sent);
  [at("network").textContent, at("network-unit").textContent] = [amount, `${unit}/s`];
  at("network-detail").textContent = `${inBytes(point.received).join(" ")}/s in, ${inBytes(point.sent).join(" ")}/s out`;
}

function tick() {
  const state = at("state");
  state.dataset.state = stream.state;
  const words = inWords(stream);
  if (state.textContent !== words) state.firstElementChild.textContent = words;
  at("received").textContent = stream.received.toLocaleString("en");
  at("since").textContent = stream.lastAt ? seconds(performance.now() - stream.lastAt) : "–";
  // An id holds an epoch and an offset for each channel; the offsets are what moves.
  const offsets = stream.lastId?.split(",").map((position) => position.split(".").pop());
  at("last-id").textContent = offsets?.join(" · ") || "–";
  at("last-id").title = stream.lastId ?? "";
  const retry = stream.retry ?? stream.retryAbout;
  at("retry").textContent = retry ? `${stream.retry ? "" : "about "}${seconds(retry)}` : "–";
  at("reconnects").textContent = Math.max(0, stream.opened - 1);
}

let drawn = 0;
function frame(time) {
  requestAnimationFrame(frame);
  if (time - drawn < FRAME) return;
  drawn = time;
  const now = (Date.now() + skew) / 1000;
  for (const chart of charts) chart.scroll(now);
  tape.scroll();
}

async function send(text) {
  const answer = await fetch("/board", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ visitor, text }),
  }).catch(() => {
    throw new Error("The server does not answer.");
  });
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.detail);
  return body;
}

at("cut").addEventListener("click", async () => {
  at("cut").disabled = true;
  const answer = await fetch(`/cut?visitor=${visitor}`, { method: "POST" }).catch(() => null);
  if (!answer?.ok) at("cut").disabled = false;
});

for (const { plot } of charts) {
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    hover(Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)));
  });
  plot.addEventListener("pointerleave", () => hover(null));
}

function hover(share) {
  hovered = share;
  for (const chart of charts) chart.mark(share);
  if (points.length) showValues();
}

function inBytes(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let step = 0;
  for (; bytes >= 999.5 && step < units.length - 1; step += 1) bytes /= 1000;
  return [step && bytes < 99.5 ? bytes.toFixed(1).replace(/\.0$/, "") : bytes.toFixed(0), units[step]];
}

function duration(total) {
  const minutes = Math.floor(total / 60);
  const [days, hours] = [Math.floor(minutes / 1440), Math.floor(minutes / 60) % 24];
  if (days) return `${days} d ${hours} h`;
  return hours ? `${hours} h ${minutes % 60} min` : `${minutes} min`;
}

setInterval(tick, 100);
tick();
requestAnimationFrame(frame);
