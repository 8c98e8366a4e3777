// The tape: the last minute of the event stream, one mark for each event and a hatched part where
// there was no connection.

import { SPAN } from "./charts.js";

// Marks that are closer than this are one mark, so that a storm of events stays drawable.
const GRAIN = 0.1;
const LANES = { figures: [17, 31], note: [6, 31], control: [0, 40] };

export class Tape {
  constructor(svg) {
    this.moving = svg.querySelector(".moving");
    this.paths = Object.fromEntries(
      Object.keys(LANES).map((name) => [name, svg.querySelector(`.mark.${name}`)]),
    );
    this.away = svg.querySelector(".away");
    this.marks = { figures: new Set(), note: new Set(), control: new Set() };
    this.breaks = []; // [from, to]; `to` is null while it lasts
    this.base = this.#now();
  }

  mark(kind) {
    this.marks[kind].add(Math.round(this.#now() / GRAIN));
    this.#draw();
  }

  connected(is) {
    const last = this.breaks.at(-1);
    if (!is && last?.[1] !== null) this.breaks.push([this.#now(), null]);
    if (is && last?.[1] === null) last[1] = this.#now();
    this.#draw();
  }

  scroll() {
    const now = this.#now();
    if (this.breaks.at(-1)?.[1] === null) this.#draw();
    this.moving.setAttribute("transform", `translate(${(SPAN - (now - this.base)).toFixed(3)} 0)`);
  }

  #now() {
    return performance.now() / 1000;
  }

  #draw() {
    this.base = this.#now();
    const oldest = this.base - SPAN;
    for (const [kind, marks] of Object.entries(this.marks)) {
      const [top, bottom] = LANES[kind];
      let path = "";
      for (const mark of marks) {
        if (mark * GRAIN < oldest) marks.delete(mark);
        else path += `M${(mark * GRAIN - this.base).toFixed(2)} ${top}V${bottom}`;
      }
      this.paths[kind].setAttribute("d", path);
    }
    this.breaks = this.breaks.filter(([, to]) => to === null || to > oldest);
    this.away.setAttribute("d", this.breaks.map(([from, to]) => this.#band(from, to)).join(""));
  }

  #band(from, to) {
    const x = (from - this.base).toFixed(2);
    return `M${x} 0H${((to ?? this.base + 5) - this.base).toFixed(2)}V40H${x}Z`;
  }
}
