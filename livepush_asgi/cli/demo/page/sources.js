// The files that lines come from: a colour, a count, the newest number, and whether they are shown.

const HUES = ["--teal", "--accent", "--blue", "--ochre", "--good", "--bad"];

export class Sources {
  constructor(root, changed) {
    this.root = root;
    this.changed = changed;
    this.known = new Map();
  }

  // Returns the source, made when it is new.
  get(id, name) {
    return this.known.get(id) ?? this.#add(id, name);
  }

  count(source, lines, replaced) {
    source.lines += lines;
    source.replaced += replaced;
    source.number.textContent = source.lines.toLocaleString("en");
    if (!source.replaced) return;
    const times = source.replaced === 1 ? "1 line is" : `${source.replaced.toLocaleString("en")} lines are`;
    source.remark.textContent = "not UTF-8";
    source.remark.title = `${times} not UTF-8; what could not be read is shown as \ufffd`;
  }

  #add(id, name) {
    const button = document.createElement("button");
    button.type = "button";
    button.ariaPressed = "true";
    button.title = name;
    // From another run of the same file: it begins anew, in the same colour.
    const before = [...this.known.values()].find((source) => source.name === name);
    const hue = before?.hue ?? HUES[new Set([...this.known.values()].map((each) => each.name)).size % HUES.length];
    button.style.setProperty("--source", `var(${hue})`);
    const [label, number, remark] = ["label", "count", "remark"].map((kind) => {
      const span = document.createElement("span");
      span.className = kind;
      return span;
    });
    label.textContent = name.split("/").at(-1);
    button.append(label, number, remark);
    const source = { id, name, hue, button, number, remark, last: 0, lines: 0, replaced: 0, shown: before?.shown ?? true };
    button.addEventListener("click", () => {
      source.shown = !source.shown;
      button.ariaPressed = String(source.shown);
      this.changed();
    });
    if (before) before.button.replaceWith(button);
    else this.root.append(button);
    this.known.set(id, source);
    return source;
  }
}
