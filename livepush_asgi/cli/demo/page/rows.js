// The rows: the newest lines on the page, filtered, following the end unless the reader looks back.

const KEPT = 5000;
const SCROLLS_ON = 700; // ms that a list scrolls on after the reader's hand
const MARKED = 20; // hits of the filter that are marked in one line

// The forms that programs give to a level: words, JSON and logfmt fields, klog's letter.
const LEVELS = [
  ["error", /\b(?:EMERG(?:ENCY)?|ALERT|CRIT(?:ICAL)?|FATAL|PANIC|ERROR|ERR|SEVERE|Traceback)\b|\blevel"?[=:]\s*"?(?:error|fatal|panic|critical)|^[EF]\d{4} /],
  ["warning", /\bWARN(?:ING)?\b|\blevel"?[=:]\s*"?warn|^W\d{4} /],
  ["debug", /\b(?:DEBUG|TRACE|VERBOSE)\b|\blevel"?[=:]\s*"?(?:debug|trace)/],
];
// What terminals take as colours and movements.
const ESCAPES = /\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\))/g;

export const levelOf = (text) => LEVELS.find(([, pattern]) => pattern.test(text))?.[0] ?? "";

// A text, or a pattern between slashes. Returns null for none; throws for a pattern that is none.
export function matcher(typed) {
  if (!typed) return null;
  const pattern = /^\/(.+)\/([a-z]*)$/.exec(typed);
  if (pattern) return new RegExp(pattern[1], [...new Set(`${pattern[2]}g`)].join(""));
  return new RegExp(typed.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "gi");
}

export class Rows {
  #waiting = []; // rows that are not on the page yet
  #unseen = 0;
  // Whether the end stays in view. Only a reader who scrolls changes it: rows that get their real
  // height when they come into view, or go at the top, move the end away by themselves.
  #following = true;
  #touchedAt = -Infinity;
  #scheduled = false;

  constructor(root, changed) {
    this.root = root;
    this.changed = changed;
    this.paused = false;
    this.pattern = null;
    this.missed = 0;
    const touched = (event) => this.#touched(event.type === "pointerdown" ? Infinity : performance.now());
    for (const type of ["wheel", "touchmove", "keydown", "pointerdown"]) {
      root.addEventListener(type, touched, { passive: true });
    }
    // Not every browser tells that a scroll bar was let go, so the next move of the pointer counts too.
    for (const type of ["pointerup", "pointermove"]) {
      addEventListener(type, (event) => event.buttons || this.#touched(performance.now(), true));
    }
    root.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    new ResizeObserver(() => this.#following && this.#pin()).observe(root);
  }

  get unseen() {
    return this.#unseen;
  }

  line(source, number, text) {
    const plain = text.replace(ESCAPES, "");
    this.#add({ source, number, text: plain, kind: levelOf(plain) });
  }

  note(source, text) {
    this.#add({ source, text: `${source.name}: ${text}`, kind: "note" });
  }

  lost(source, count) {
    this.missed += count;
    const lines = count === 1 ? "1 line" : `${count.toLocaleString("en")} lines`;
    this.#add({ source, text: `${lines} of ${source.name} missed`, kind: "missed" });
  }

  pause(paused) {
    this.paused = paused;
    if (!paused) {
      this.#flush();
      this.toEnd();
    }
  }

  filter(pattern) {
    this.pattern = pattern;
    this.refresh();
    this.toEnd();
  }

  // Look again at what is shown: the filter has changed, or a source was hidden.
  refresh() {
    for (const row of this.root.children) this.#apply(row);
  }

  toEnd() {
    this.#following = true;
    this.root.classList.remove("looking-back");
    if (!this.paused) this.#unseen = 0;
    this.#pin();
    this.changed();
  }

  #pin() {
    this.root.scrollTop = this.root.scrollHeight;
    requestAnimationFrame(() => {
      if (this.#following) this.root.scrollTop = this.root.scrollHeight;
    });
  }

  #scrolled() {
    if (performance.now() - this.#touchedAt > SCROLLS_ON) return;
    const { scrollTop, scrollHeight, clientHeight } = this.root;
    const atEnd = scrollHeight - scrollTop - clientHeight < 24;
    if (atEnd && !this.#following) this.toEnd();
    this.#following = atEnd;
    this.root.classList.toggle("looking-back", !atEnd);
  }

  #touched(time, onlyEnds = false) {
    if (!onlyEnds || this.#touchedAt === Infinity) this.#touchedAt = time;
  }

  #add(row) {
    this.#waiting.push(row);
    if (this.#waiting.length > KEPT) this.#waiting = this.#waiting.slice(-KEPT);
    if (this.paused) {
      this.#unseen += 1;
      this.changed();
    } else if (!this.#scheduled) {
      this.#scheduled = true;
      // A frame for all that came since the last one. A page in the background has no frames.
      if (document.hidden) setTimeout(() => this.#flush(), 250);
      else requestAnimationFrame(() => this.#flush());
    }
  }

  #flush() {
    this.#scheduled = false;
    if (this.paused || !this.#waiting.length) return;
    const added = document.createDocumentFragment();
    for (const row of this.#waiting) added.append(this.#element(row));
    if (!this.#following) this.#unseen += this.#waiting.length;
    this.#waiting = [];
    this.root.append(added);
    const over = this.root.childElementCount - KEPT;
    for (let index = 0; index < over; index += 1) this.root.firstElementChild.remove();
    if (this.#following) this.#pin();
    this.changed();
  }

  #element(row) {
    const element = document.createElement("div");
    element.className = `line ${row.kind}`;
    element.style.setProperty("--source", `var(${row.source.hue})`);
    const number = document.createElement("span");
    number.className = "number";
    number.textContent = row.number ?? "";
    const text = document.createElement("span");
    text.className = "text";
    text.textContent = row.text;
    element.append(number, text);
    element.row = row;
    this.#apply(element);
    return element;
  }

  #apply(element) {
    const { text, kind, source } = element.row;
    const hits = this.pattern ? [...text.matchAll(this.pattern)].filter((hit) => hit[0]) : [];
    // What is missing is not to be filtered away.
    const kept = source.shown && (!this.pattern || hits.length > 0 || kind === "missed");
    element.classList.toggle("filtered", !kept);
    const shown = element.lastElementChild;
    if (hits.length) shown.replaceChildren(...marked(text, hits.slice(0, MARKED)));
    else if (shown.childElementCount) shown.textContent = text;
  }
}

function marked(text, hits) {
  const parts = [];
  let end = 0;
  for (const hit of hits) {
    const mark = document.createElement("mark");
    mark.textContent = hit[0];
    parts.push(text.slice(end, hit.index), mark);
    end = hit.index + hit[0].length;
  }
  return [...parts, text.slice(end)];
}
