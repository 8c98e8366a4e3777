// Charts that scroll with time, drawn as SVG so that the style sheet gives them their colours.
//
// The x axis is in seconds before `base`, the time of the newest point; a group moves it along. So
// the numbers stay small and a path is written when a point comes, not for each frame.

const SVG = "http://www.w3.org/2000/svg";
export const SPAN = 60; // seconds that are shown
const BREAK = 2.5; // seconds without a point after which a line is broken

// The newest point is drawn when it is this old. By then the next one is there, as a rule, and the
// line never ends before the edge.
const LAG = 0.6;

const element = (name, attributes, parent) => {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent?.append(made);
  return made;
};

export class Chart {
  // `series` are { name, value(point), mirrored }. Values are drawn from 0 to `top(points)`.
  constructor(plot, series, top, { mirrored = false } = {}) {
    this.plot = plot;
    this.top = top;
    this.mirrored = mirrored;
    this.svg = element("svg", { viewBox: `0 0 ${SPAN} 100`, preserveAspectRatio: "none", "aria-hidden": true });
    const lines = mirrored ? [25, 50, 75] : [25, 50, 75, 99.6];
    for (const y of lines) {
      element("line", { class: y === (mirrored ? 50 : 99.6) ? "zero" : "grid", x1: 0, x2: SPAN, y1: y, y2: y }, this.svg);
    }
    this.moving = element("g", {}, this.svg);
    this.series = series.map((each) => ({
      ...each,
      area: element("path", { class: `area ${each.name}` }, this.moving),
      line: element("path", { class: `line ${each.name}` }, this.moving),
    }));
    this.cursor = element("line", { class: "cursor", y1: 0, y2: 100, x1: -9, x2: -9 }, this.svg);
    plot.prepend(this.svg);
    this.base = 0;
  }

  draw(points) {
    if (!points.length) return;
    this.base = points.at(-1).at;
    const top = this.top(points);
    for (const series of this.series) this.#draw(series, points, top);
    return top;
  }

  #draw(series, points, top) {
    const zero = this.mirrored ? 50 : 100;
    const reach = this.mirrored ? 50 : 100;
    let line = "", area = "", start = 0, previous = null;
    for (const point of points) {
      const x = (point.at - this.base).toFixed(2);
      const share = Math.min(1, series.value(point) / top) * (reach - 1.5);
      const y = (series.mirrored ? zero + share : zero - share).toFixed(2);
      if (previous === null || point.at - previous.at > BREAK) {
        if (previous !== null) area += `L${(previous.at - this.base).toFixed(2)} ${zero}Z`;
        line += `M${x} ${y}`;
        area += `M${x} ${zero}L${x} ${y}`;
      } else {
        line += `L${x} ${y}`;
        area += `L${x} ${y}`;
      }
      previous = point;
    }
    if (previous !== null) area += `L0 ${zero}Z`;
    series.line.setAttribute("d", line);
    series.area.setAttribute("d", area);
  }

  // `now` is in the time of the points.
  scroll(now) {
    this.moving.setAttribute("transform", `translate(${(SPAN - (now - LAG - this.base)).toFixed(3)} 0)`);
  }

  mark(share) {
    const x = share === null ? -9 : share * SPAN;
    this.cursor.setAttribute("x1", x);
    this.cursor.setAttribute("x2", x);
  }
}

// The time at a share of the width.
export const timeAt = (share, now) => now - LAG - SPAN * (1 - share);

// A small chart that moves with each point, not with each frame: there may be a hundred of them.
export class Spark {
  constructor(parent, name) {
    const cell = document.createElement("div");
    cell.className = "core";
    const label = document.createElement("span");
    label.textContent = name;
    this.value = document.createElement("b");
    const svg = element("svg", { viewBox: `0 0 ${SPAN} 100`, preserveAspectRatio: "none", "aria-hidden": true });
    this.area = element("path", { class: "area" }, svg);
    this.line = element("path", { class: "line" }, svg);
    cell.append(label, this.value, svg);
    parent.append(cell);
  }

  draw(points, value) {
    const base = points.at(-1).at;
    let path = "";
    for (const point of points) {
      const x = (SPAN + point.at - base).toFixed(1);
      path += `${path ? "L" : "M"}${x} ${(98 - 0.96 * value(point)).toFixed(1)}`;
    }
    this.line.setAttribute("d", path);
    this.area.setAttribute("d", `${path}V100H${(SPAN + points[0].at - base).toFixed(1)}Z`);
  }
}

// The next number of the kind 1, 2, 5, 10, 20 ... above a value, so that a scale has a round top.
export function roundTop(value, least) {
  const wanted = Math.max(value * 1.1, least);
  const power = 10 ** Math.floor(Math.log10(wanted));
  return [1, 2, 5, 10].map((factor) => factor * power).find((top) => top >= wanted);
}
