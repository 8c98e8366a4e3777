// The board: what visitors write to each other. Everything is put in as text, never as markup.

const KEPT = 200;
const COLOURS = ["Amber", "Coral", "Indigo", "Jade", "Moss", "Ochre", "Plum", "Russet", "Sage", "Slate", "Teal", "Umber"];
const BIRDS = [
  "bittern", "crane", "curlew", "finch", "heron", "jay", "kestrel", "lark",
  "linnet", "merlin", "osprey", "plover", "robin", "siskin", "swift", "wren",
];

// A name that stays the same for an author and says nothing about them.
export function nameOf(author) {
  const number = Number.parseInt(author, 16);
  return `${COLOURS[number % COLOURS.length]} ${BIRDS[(number >>> 8) % BIRDS.length]}`;
}

export class Board {
  constructor(root, send) {
    this.list = root.querySelector("ol");
    this.empty = root.querySelector(".empty");
    this.form = root.querySelector("form");
    this.input = root.querySelector("input");
    this.left = root.querySelector(".left");
    this.problem = root.querySelector(".problem");
    this.button = root.querySelector("button");
    this.seen = new Set();
    this.own = null;
    this.input.addEventListener("input", () => this.#count());
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit(send);
    });
  }

  // `note` is { author, text, at }; without an author it came from outside the page.
  add(note) {
    const key = `${note.at} ${note.author} ${note.text}`;
    if (this.seen.has(key)) return;
    this.seen.add(key);
    this.empty.hidden = true;
    const item = document.createElement("li");
    const who = document.createElement("b");
    const colour = note.author ? nameOf(note.author).split(" ")[0].toLowerCase() : "outside";
    who.className = `who ${colour}`;
    who.textContent = note.author ? nameOf(note.author) : "From outside";
    const time = document.createElement("time");
    time.textContent = new Date(note.at * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
    const text = document.createElement("p");
    text.textContent = note.text;
    item.append(who, time, text);
    const older = [...this.list.children].find((other) => Number(other.dataset.at) <= note.at);
    item.dataset.at = note.at;
    item.dataset.author = note.author ?? "";
    this.list.insertBefore(item, older ?? null);
    if (this.list.children.length > KEPT) this.list.lastElementChild.remove();
    this.#markOwn();
  }

  async #submit(send) {
    const text = this.input.value.trim();
    if (!text) return;
    this.button.disabled = true;
    this.problem.textContent = "";
    try {
      const note = await send(text);
      this.own = note.author;
      this.input.value = "";
      this.#markOwn();
    } catch (error) {
      this.problem.textContent = error.message;
    }
    this.button.disabled = false;
    this.#count();
    this.input.focus();
  }

  #count() {
    const left = this.input.maxLength - this.input.value.length;
    this.left.textContent = left < 60 ? left : "";
  }

  #markOwn() {
    if (!this.own) return;
    for (const item of this.list.children) item.classList.toggle("own", item.dataset.author === this.own);
  }
}
