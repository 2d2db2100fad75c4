// The reading desk: one case, its pieces on a zoomed heart, decisions by mouse or by keys, and the signature.

import { answerOf, get, post } from "./api.js";
import { count, h, number } from "./dom.js";
import { reader } from "./worklist.js";

const WINDOWS = [[-160, 240, "heart"], [-100, 900, "calcium"], [-1000, 400, "all"]];
const SIZES = [0.5, 1, 1.5, 2, 3, 5];
const KEYS = [
  ["↑ ↓", "slice up, down (PageUp, PageDown)"], ["← →", "piece before, next"], ["1 2 3 4", "LM, LAD, LCX, RCA"], ["5", "coronary, artery not known"],
  ["6 7 8 9 0", "aorta, aortic valve, mitral annulus, pericardium, other: not counted"], ["x", "leave out"], ["c", "count"], ["u", "not sure"],
  ["z", "undo"], ["b", "brush with the value used last"], ["e", "eraser"], ["[ ]", "brush smaller, larger"],
  ["arrows, space", "with brush or eraser: move and paint"], ["Esc", "back to choosing pieces"], ["+ −", "zoom"], ["w", "grey window"], ["o", "outlines on, off"],
  ["s", "sign"], [". ,", "next case, case before"], ["?", "these keys"],
];

export async function deskView(content, { about, go }) {
  const uid = decodeURIComponent(location.pathname.slice("/review/".length));
  const who = reader();
  if (!who) {
    go("/review", { replace: true });
    return undefined;
  }
  content.append(h("p", { class: "panel quiet", role: "status" }, "The case is being opened …"));
  const base = `/api/review/${encodeURIComponent(uid)}`;
  const query = new URLSearchParams({ reader: who });
  const found = await get(base, query);
  document.title = `${found.patient_id || "Case"} · reading · ${about.name}`;
  content.replaceChildren();
  const desk = new Desk(content, { base, uid, who, query, found, go });
  return () => desk.leave();
}

class Desk {
  constructor(content, { base, uid, who, query, found, go }) {
    Object.assign(this, { base, uid, who, query, found, go });
    this.state = found;
    this.values = Object.fromEntries(found.values.map((v) => [v.name, v]));
    this.byCode = Object.fromEntries(found.values.map((v) => [v.value, v]));
    this.byKey = Object.fromEntries(found.values.filter((v) => v.key).map((v) => [v.key, v]));
    this.slices = new Map();
    this.painted = new Map();
    this.sending = Promise.resolve();
    this.waiting = 0;
    this.tool = "choose";
    this.size = 2;
    this.window = 0;
    this.zoom = 1;
    this.outlines = true;
    this.last = "coronary";
    this.counted = new Map();  // by piece, the value under which it counted last
    this.stroke = null;
    this.cursor = [Math.floor(found.rows / 2), Math.floor(found.columns / 2)];
    this.chosen = found.pieces.length ? 1 : 0;
    this.index = this.chosen ? Math.round(found.pieces[0].centre[0]) : found.first + Math.floor(found.count / 2);
    this.build(content);
    this.update();
    this.choose(this.chosen, { jump: true });
    this.onKey = (event) => this.key(event);
    this.onSize = () => this.draw();
    document.addEventListener("keydown", this.onKey);
    addEventListener("resize", this.onSize);
    this.onLeave = (event) => { if (this.waiting) event.preventDefault(); };
    addEventListener("beforeunload", this.onLeave);
    this.canvas.focus({ preventScroll: true });
  }

  leave() {
    document.removeEventListener("keydown", this.onKey);
    removeEventListener("resize", this.onSize);
    removeEventListener("beforeunload", this.onLeave);
  }

  // The page

  build(content) {
    const f = this.found;
    this.score = h("strong", {});
    this.group = h("span", { class: "quiet" });
    this.says = h("p", { role: "status", "aria-live": "polite", class: "says" });
    this.problem = h("p", { class: "panel error", role: "alert", hidden: true });
    this.saved = h("span", { class: "quiet small", id: "saved" });
    const nav = (text, target, label, key) => h("button", { type: "button", disabled: !target, "aria-label": label, title: `${label} (${key})`,
      onclick: () => this.go(`/review/${target}`) }, text);
    content.append(
      h("section", { class: "panel case-head desk-head", "aria-label": "Reading" },
        h("div", { class: "who" }, h("p", { class: "quiet small" }, h("a", { href: "/review" }, "‹ work list"), ` · read by ${this.who}`),
          h("h2", {}, f.patient_id || "(no PatientID)"),
          h("p", { class: "quiet" }, [f.series_description, f.kernel, f.rule !== "agatston" && `rule ${f.rule}`].filter(Boolean).join(" · "))),
        h("div", { class: "results-row" },
          h("div", { class: "result" }, h("span", { class: "quiet" }, "Automatic"), h("strong", { id: "automatic" }, f.automatic === null ? "–" : number(f.automatic))),
          h("div", { class: "result" }, h("span", { class: "quiet" }, "Yours"), this.score, this.group)),
        h("div", { class: "actions" }, nav("‹", f.previous, "case before", ","),
          this.signing = h("button", { type: "button", class: "primary", title: "s", onclick: () => this.ask() }, "Sign"), nav("›", f.next, "next case", "."))),
      this.problem);

    this.canvas = h("canvas", { class: "heart", tabindex: "0", role: "img", "aria-label": "CT of the heart" });
    this.slider = h("input", { type: "range", id: "slice", min: String(f.first), max: String(f.first + f.count - 1) });
    this.where = h("output", { for: "slice" });
    this.slider.addEventListener("input", () => this.to(Number(this.slider.value)));
    const tool = (name, text, key) => h("button", { type: "button", "data-tool": name, title: `${text} (${key})`, onclick: () => this.take(name) }, text);
    const small = (text, label, act) => h("button", { type: "button", "aria-label": label, title: label, onclick: act }, text);
    this.sizes = h("output", {});
    this.windowed = h("button", { type: "button", title: "grey window (w)", onclick: () => this.otherWindow() });
    this.tools = h("div", { class: "bar tools", role: "group", "aria-label": "Tools" },
      tool("choose", "Choose", "Esc"), tool("brush", "Brush", "b"), tool("erase", "Eraser", "e"),
      small("−", "brush smaller ([)", () => this.resize(-1)), this.sizes, small("+", "brush larger (])", () => this.resize(1)),
      h("span", { class: "gap" }), small("⊖", "zoom out (−)", () => this.zoomed(-1)), small("⊕", "zoom in (+)", () => this.zoomed(1)), this.windowed,
      small("◌", "outlines on, off (o)", () => { this.outlines = !this.outlines; this.draw(); }),
      this.undoing = h("button", { type: "button", title: "undo (z)", onclick: () => this.undo() }, "Undo"), this.saved);
    this.palette = h("div", { class: "palette", role: "group", "aria-label": "What it is" }, f.values.filter((v) => v.key).map((v) => {
      const swatch = h("span", { class: `swatch ${v.counted ? "" : "open"}`, "aria-hidden": "true" });
      swatch.style[v.counted ? "backgroundColor" : "borderColor"] = colour(v.colour);
      return h("button", { type: "button", "data-value": v.name, title: v.words, onclick: () => this.set(v.name) },
        swatch, v.name || "leave out", h("kbd", {}, v.key));
    }));
    this.list = h("tbody");
    this.named = h("ul", { class: "plain named" });
    const notes = [
      f.status === "unscored" ? "There is no automatic result of this scan: nothing is counted until you say so." : null,
      f.left ? `${count(f.left)} more pieces, all small, have no number; the brush takes them.` : null,
      f.has_heart ? null : "The heart is not known: pieces of the whole chest are shown, bone left out.",
      ...f.warnings,
    ].filter(Boolean);
    content.append(h("div", { class: "bench" },
      h("div", { class: "panel look" }, this.canvas,
        h("div", { class: "bar" }, h("label", { for: "slice" }, "Slice"), this.slider, this.where), this.tools),
      h("div", { class: "side" },
        h("section", { class: "panel", "aria-label": "Decide" }, this.says, this.palette),
        h("section", { class: "panel pieces", "aria-label": "Pieces" },
          h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "All pieces" },
            h("table", {}, h("caption", { class: "hidden" }, "Pieces: a button chooses one"),
              h("thead", {}, h("tr", {}, ["No.", "Score", "Max. HU", "Slices", "Is"].map((t, i) => h("th", { scope: "col", class: i && i < 4 ? "num" : null }, t)))), this.list))),
        h("section", { class: "panel", "aria-label": "Score by artery" }, this.named),
        notes.length ? h("section", { class: "panel", "aria-label": "Notes" }, h("ul", { class: "plain notes" }, notes.map((t) => h("li", {}, t)))) : null,
        this.done = h("section", { class: "panel", "aria-label": "Signed", hidden: true }),
        this.help = h("details", { class: "panel" }, h("summary", {}, "Keys"),
          h("dl", { class: "keys" }, KEYS.map(([k, t]) => h("div", {}, h("dt", {}, h("kbd", {}, k)), h("dd", {}, t))))))));
    this.dialog = h("dialog", { "aria-labelledby": "sign-title" });
    content.append(this.dialog);
    this.rows = f.pieces.map((p) => {
      const is = h("td", {});
      const row = h("tr", { "data-piece": String(p.number) },
        h("th", { scope: "row" }, h("button", { type: "button", class: "link", onclick: () => { this.choose(p.number, { jump: true }); this.canvas.focus({ preventScroll: true }); } }, count(p.number))),
        h("td", { class: "num" }, number(p.score, 1)), h("td", { class: "num" }, number(p.max_hu, 0)),
        h("td", { class: "num" }, p.indices[0] === p.indices[1] ? String(p.indices[0] + 1) : `${p.indices[0] + 1}–${p.indices[1] + 1}`), is);
      return { row, is };
    });
    this.list.append(...this.rows.map((r) => r.row));
    this.mouse();
    this.take("choose");
    this.otherWindow(0);
    this.resize(0);
  }

  /** What a decision has changed. */
  update() {
    const s = this.state;
    this.score.textContent = number(s.score);
    this.score.dataset.score = String(s.score);
    this.group.textContent = `${s.group} ${s.group_name}`;
    this.undoing.disabled = !s.holding;
    this.rows.forEach(({ row, is }, i) => {
      const value = this.values[s.piece_values[i]];
      if (value.counted) this.counted.set(i + 1, value.name);
      const swatch = h("span", { class: `swatch ${value.counted ? "" : "open"}`, "aria-hidden": "true" });
      swatch.style[value.counted ? "backgroundColor" : "borderColor"] = colour(value.colour);
      is.replaceChildren(swatch, " ", value.name || "–");
      row.classList.toggle("out", !value.counted);
    });
    this.named.replaceChildren(...Object.entries(s.named).filter(([, v]) => v > 0).map(([name, v]) => {
      const value = this.values[name === "artery not sure" ? "coronary" : name];
      const swatch = h("span", { class: `swatch ${value?.counted ? "" : "open"}`, "aria-hidden": "true" });
      if (value) swatch.style[value.counted ? "backgroundColor" : "borderColor"] = colour(value.colour);
      return h("li", { class: value?.counted ? null : "quiet" }, swatch, value?.counted ? name : `${name}, not counted`, h("span", { class: "num" }, number(v)));
    }));
    const n = s.signed.length;
    this.done.hidden = !n;
    if (n) {
      const last = s.signed[n - 1];
      const file = (name) => h("a", { href: `${this.base}/signed/${name}?${this.query}`, download: name }, name);
      this.done.replaceChildren(...[h("h3", {}, s.changed ? "Signed, and changed since" : "Signed"),
        h("p", {}, `${last.time.replace("T", " ").slice(0, 16)} UTC, score ${number(last.score)}`),
        !this.found.files ? null : h("p", { class: "small" }, file("cac.seg.dcm"), " · ", file("cac.sr.dcm"), " · ", file("details.json"))].filter(Boolean));
    }
    this.saved.textContent = this.waiting ? "saving …" : s.after ? "saved" : "";
    if (s.torn) this.tell(`${count(s.torn)} unfinished ${s.torn === 1 ? "line" : "lines"} of the journal, which a crash had cut, ${s.torn === 1 ? "was" : "were"} left out; look whether your last decision is there.`);
  }

  tell(text) {
    this.problem.hidden = !text;
    this.problem.textContent = text ?? "";
  }

  speak() {
    const piece = this.found.pieces[this.chosen - 1];
    if (!piece) {
      this.says.textContent = "Nothing is chosen.";
    } else {
      const value = this.values[this.state.piece_values[this.chosen - 1]];
      const is = value.counted ? `counted: ${value.name}` : `not counted${value.name ? `: ${value.name}` : ""}`;
      this.says.replaceChildren(h("strong", {}, `Piece ${piece.number}`), `, ${is}; score ${number(piece.score)}, ${number(piece.volume_mm3)} mm³`);
    }
    for (const button of this.palette.children) {
      button.setAttribute("aria-pressed", String(Boolean(piece) && this.state.piece_values[this.chosen - 1] === button.dataset.value));
    }
  }

  // Moving about

  choose(piece, { jump = false } = {}) {
    this.rows[this.chosen - 1]?.row.classList.remove("chosen");
    this.chosen = piece;
    const now = this.rows[piece - 1]?.row;
    if (now) {
      now.classList.add("chosen");
      const box = now.closest(".scroll");
      const top = now.offsetTop - box.clientHeight / 2;
      if (Math.abs(box.scrollTop - top) > box.clientHeight / 3) box.scrollTop = top;
      const at = this.found.pieces[piece - 1];
      this.cursor = [Math.round(at.centre[1]), Math.round(at.centre[2])];
      if (jump && (this.index < at.indices[0] || this.index > at.indices[1])) this.index = Math.min(at.indices[1], Math.max(at.indices[0], Math.round(at.centre[0])));
    }
    this.speak();
    this.to(this.index);
  }

  step(by) {
    const n = this.found.pieces.length;
    if (n) this.choose(((this.chosen - 1 + by + n) % n) + 1, { jump: true });
  }

  async to(index) {
    this.index = Math.min(this.found.first + this.found.count - 1, Math.max(this.found.first, index));
    this.slider.value = String(this.index);
    this.where.textContent = `${count(this.index + 1)} of ${count(this.found.slices)}`;
    this.slider.setAttribute("aria-valuetext", `slice ${this.where.textContent}`);
    const wanted = this.index;
    try {
      await Promise.all([this.slice(wanted), this.valuesOf(wanted)]);
    } catch (error) {
      this.tell(error.message);
      return;
    }
    if (wanted === this.index) this.draw();
    for (const near of [wanted + 1, wanted - 1]) this.slice(near).catch(() => {});
  }

  async slice(index) {
    if (index < this.found.first || index >= this.found.first + this.found.count) return null;
    if (!this.slices.has(index)) {
      const data = await answerOf(await fetch(`${this.base}/slices/${index}.bin`));
      const n = this.found.rows * this.found.columns;
      this.slices.set(index, { hu: new Int16Array(data, 0, n), piece: new Uint16Array(data, 2 * n, n), heart: new Uint8Array(data, 4 * n, n) });
    }
    return this.slices.get(index);
  }

  async valuesOf(index) {
    const after = this.state.after;
    if (this.painted.get(index)?.after !== after) {
      const data = await answerOf(await fetch(`${this.base}/values/${index}.bin?${this.query}`));
      this.painted.set(index, { after, data: new Uint8Array(data) });
    }
  }

  // Decisions: one after the other, each named with the number of the one before it

  send(path, body) {
    this.waiting += 1;
    this.saved.dataset.waiting = "";
    this.saved.textContent = "saving …";
    this.sending = this.sending.then(async () => {
      try {
        this.state = { ...this.state, ...(await post(`${this.base}/${path}`, { reader: this.who, after: this.state.after, ...body })) };
        this.tell("");
      } catch (error) {
        this.tell(error.status ? error.message : `Not saved: ${error.message}. The server does not answer; what you see is what it has.`);
        if (error.status === 409) {
          try {
            this.state = { ...this.state, ...(await get(this.base, this.query)) };
          } catch { /* as told */ }
        }
      }
      this.waiting -= 1;
      this.update();
      this.speak();
      await this.valuesOf(this.index).catch(() => {});
      this.draw();
      if (!this.waiting) delete this.saved.dataset.waiting;
    });
    return this.sending;
  }

  set(name) {
    this.last = name || this.last;
    if (this.tool === "brush" || !this.chosen) {
      this.speak();
      this.resize(0);
      return;
    }
    this.send("decisions", { piece: this.chosen, to: name });
  }

  undo() {
    this.send("undo", {});
  }

  ask() {
    const s = this.state;
    const kept = s.piece_values.filter((v) => this.values[v].counted).length;
    const unnamed = s.named["artery not sure"] > 0;
    const close = () => { this.dialog.close(); this.canvas.focus({ preventScroll: true }); };
    const form = h("form", { method: "dialog", onsubmit: (event) => { event.preventDefault(); close(); this.send("sign", {}); } },
      h("h3", { id: "sign-title" }, `Sign as ${this.who}?`),
      h("p", {}, this.found.automatic === null ? `Score ${number(s.score)}` : `Automatic ${number(this.found.automatic)}, yours ${number(s.score)}`,
        `; ${count(kept)} pieces counted, ${count(s.holding)} decisions.`),
      unnamed ? h("p", {}, "Some of what is counted has no artery.") : null,
      h("p", { class: "quiet small" }, "A new SEG and SR that name you are written into the folder of readings; the automatic result stays as it is."),
      h("div", { class: "bar" }, h("button", { type: "submit", class: "primary" }, "Sign"), h("button", { type: "button", onclick: close }, "Cancel")));
    this.dialog.replaceChildren(form);
    this.dialog.showModal();
  }

  // Tools

  take(tool) {
    this.tool = tool;
    for (const button of this.tools.querySelectorAll("[data-tool]")) button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
    this.canvas.classList.toggle("painting", tool !== "choose");
    if (this.slices.size) this.draw();
    this.resize(0);
  }

  resize(by) {
    this.size = Math.min(SIZES.length - 1, Math.max(0, this.size + by));
    this.sizes.textContent = this.tool === "brush" ? `${SIZES[this.size]} mm, ${this.last}` : `${SIZES[this.size]} mm`;
    if (this.slices.size) this.draw();
  }

  otherWindow(to = (this.window + 1) % WINDOWS.length) {
    this.window = to;
    this.windowed.textContent = `Window: ${WINDOWS[to][2]}`;
    if (this.slices.size) this.draw();
  }

  zoomed(by) {
    this.zoom = Math.min(6, Math.max(1, this.zoom * (by > 0 ? 1.5 : 1 / 1.5)));
    if (this.zoom < 1.01) this.zoom = 1;
    this.draw();
  }

  /** Pixels of the brush around a place. */
  dab([row, column]) {
    const [, dy, dx] = this.found.spacing;
    const r = SIZES[this.size];
    const found = [];
    for (let y = Math.floor(row - r / dy); y <= Math.ceil(row + r / dy); y += 1) {
      for (let x = Math.floor(column - r / dx); x <= Math.ceil(column + r / dx); x += 1) {
        const inside = y >= 0 && x >= 0 && y < this.found.rows && x < this.found.columns;
        if (inside && ((y - row) * dy) ** 2 + ((x - column) * dx) ** 2 <= r * r + 1e-6) found.push(y * this.found.columns + x);
      }
    }
    return found;
  }

  paint() {
    const pixels = [...this.stroke].sort((a, b) => a - b);
    this.stroke = null;
    const hu = this.slices.get(this.index).hu;
    const bright = pixels.filter((p) => hu[p] >= this.found.threshold);
    if (!bright.length) {
      this.tell(`Nothing there reaches ${this.found.threshold} HU.`);
      this.draw();
      return;
    }
    const runs = [];
    const [y0, x0] = this.found.corner;
    for (const p of bright) {
      const y = Math.floor(p / this.found.columns) + y0;
      const x = (p % this.found.columns) + x0;
      const last = runs[runs.length - 1];
      if (last && last[0] === y && last[1] + last[2] === x) last[2] += 1;
      else runs.push([y, x, 1]);
    }
    this.send("decisions", { index: this.index, runs, to: this.tool === "erase" ? "" : this.last });
  }

  // Mouse and keys

  /** The place of the picture under the mouse: row and column, fractional, of pixel centres. */
  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const v = this.view();
    return [((event.clientY - box.top) - v.top) / v.scaleY - 0.5, ((event.clientX - box.left) - v.left) / v.scaleX - 0.5];
  }

  mouse() {
    const c = this.canvas;
    c.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      c.focus({ preventScroll: true });
      const place = this.at(event);
      if (this.tool === "choose") {
        const piece = this.pieceAt(place);
        if (piece) this.choose(piece);
        return;
      }
      c.setPointerCapture(event.pointerId);
      this.stroke = new Set(this.dab(place));
      this.cursor = place.map(Math.round);
      this.draw();
    });
    c.addEventListener("pointermove", (event) => {
      if (this.tool === "choose") return;
      const place = this.at(event);
      if (this.stroke) {
        const before = this.from ?? place;
        const steps = Math.max(1, Math.ceil(Math.hypot(place[0] - before[0], place[1] - before[1])));
        for (let i = 1; i <= steps; i += 1) for (const p of this.dab(before.map((b, k) => b + ((place[k] - b) * i) / steps))) this.stroke.add(p);
      }
      this.from = this.stroke ? place : null;
      this.cursor = place.map(Math.round);
      this.draw();
    });
    c.addEventListener("pointerup", () => { this.from = null; if (this.stroke) this.paint(); });
    c.addEventListener("dblclick", (event) => {
      const piece = this.tool === "choose" && this.pieceAt(this.at(event));
      if (piece) this.toggle(piece);
    });
    c.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (event.ctrlKey) this.zoomed(-Math.sign(event.deltaY));
      else this.to(this.index - Math.sign(event.deltaY));
    }, { passive: false });
  }

  pieceAt([row, column]) {
    const piece = this.slices.get(this.index)?.piece;
    let best = 0;
    let nearest = 3;  // pixels: small pieces are hard to hit
    for (let y = Math.round(row) - 3; y <= Math.round(row) + 3; y += 1) {
      for (let x = Math.round(column) - 3; x <= Math.round(column) + 3; x += 1) {
        if (y < 0 || x < 0 || y >= this.found.rows || x >= this.found.columns) continue;
        const p = piece?.[y * this.found.columns + x] ?? 0;
        const away = Math.hypot(y - row, x - column);
        if (p && away < nearest) [best, nearest] = [p, away];
      }
    }
    return best;
  }

  toggle(piece) {
    const counted = this.values[this.state.piece_values[piece - 1]].counted;
    this.send("decisions", { piece, to: counted ? "" : this.counted.get(piece) ?? "coronary" });
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || this.dialog.open) return;
    const on = event.target;
    const field = on.matches("input:not([type=range]), select, textarea");
    if (field || (on.matches("button, a, summary") && [" ", "Enter"].includes(event.key))) return;
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const painting = this.tool !== "choose";
    const act = {
      PageUp: () => this.to(this.index + 1), PageDown: () => this.to(this.index - 1),
      x: () => this.set(""), c: () => this.set(this.counted.get(this.chosen) ?? "coronary"), u: () => this.set("unsure"),
      z: () => this.undo(), b: () => this.take("brush"), e: () => this.take("erase"), Escape: () => this.take("choose"),
      "[": () => this.resize(-1), "]": () => this.resize(1), "+": () => this.zoomed(1), "=": () => this.zoomed(1), "-": () => this.zoomed(-1),
      w: () => this.otherWindow(), o: () => { this.outlines = !this.outlines; this.draw(); }, s: () => this.ask(),
      ".": () => this.found.next && this.sending.then(() => this.go(`/review/${this.found.next}`)),
      ",": () => this.found.previous && this.sending.then(() => this.go(`/review/${this.found.previous}`)),
      "?": () => { this.help.open = !this.help.open; if (this.help.open) this.help.scrollIntoView({ block: "nearest" }); },
    };
    let todo = act[event.key];
    if (moves[event.key] && painting) {
      todo = () => {
        const by = event.shiftKey ? 5 : 1;
        const limits = [this.found.rows - 1, this.found.columns - 1];
        this.cursor = this.cursor.map((v, k) => Math.min(limits[k], Math.max(0, v + by * moves[event.key][k])));
        this.draw();
      };
    } else if (moves[event.key]) {
      const [slice, piece] = moves[event.key];
      todo = () => (slice ? this.to(this.index - slice) : this.step(piece));
    } else if (event.key === " " && painting) {
      todo = () => { this.stroke = new Set(this.dab(this.cursor)); this.paint(); };
    } else if (this.byKey[event.key] && /\d/.test(event.key)) {
      todo = () => this.set(this.byKey[event.key].name);
    }
    if (!todo) return;
    event.preventDefault();
    todo();
  }

  // The picture

  /** Where the slice lies on the canvas, in CSS pixels. */
  view() {
    const [, dy, dx] = this.found.spacing;
    const width = this.canvas.clientWidth;
    const height = this.canvas.clientHeight;
    const fit = Math.min(width / (this.found.columns * dx), height / (this.found.rows * dy)) * this.zoom;
    const scaleX = fit * dx;
    const scaleY = fit * dy;
    const place = (size, scale, n, at) => {
      const whole = n * scale;
      if (whole <= size) return (size - whole) / 2;
      return Math.min(0, Math.max(size - whole, size / 2 - (at + 0.5) * scale));
    };
    return { scaleX, scaleY, left: place(width, scaleX, this.found.columns, this.focus()[1]), top: place(height, scaleY, this.found.rows, this.focus()[0]) };
  }

  /** What a zoom keeps in the middle. */
  focus() {
    const piece = this.found.pieces[this.chosen - 1];
    return this.tool === "choose" && piece ? [piece.centre[1], piece.centre[2]] : this.held ?? (this.held = [...this.cursor]);
  }

  draw() {
    const slice = this.slices.get(this.index);
    const values = this.painted.get(this.index)?.data;
    if (!slice || !values) return;
    if (this.tool === "choose") this.held = null;
    const { rows, columns } = this.found;
    const c = this.canvas;
    const ratio = devicePixelRatio || 1;
    const [width, height] = [c.clientWidth, c.clientHeight];
    if (c.width !== Math.round(width * ratio) || c.height !== Math.round(height * ratio)) {
      c.width = Math.round(width * ratio);
      c.height = Math.round(height * ratio);
    }
    const g = c.getContext("2d");
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.fillStyle = "#000";
    g.fillRect(0, 0, width, height);
    const v = this.view();
    const [low, high] = WINDOWS[this.window];
    const grey = new ImageData(columns, rows);
    const over = new ImageData(columns, rows);
    const id = new Int32Array(rows * columns);
    for (let i = 0; i < id.length; i += 1) {
      const shade = Math.max(0, Math.min(255, ((slice.hu[i] - low) / (high - low)) * 255));
      grey.data.set([shade, shade, shade, 255], 4 * i);
      const bright = slice.hu[i] >= this.found.threshold;
      const value = this.byCode[values[i]];
      if (bright && (slice.piece[i] || values[i])) id[i] = values[i] * 65536 + slice.piece[i] + 1;
      if (bright && value.counted) over.data.set([...value.colour, 130], 4 * i);
      if (this.stroke?.has(i) && bright) over.data.set([...(this.tool === "erase" ? [0, 0, 0] : this.values[this.last].colour), 170], 4 * i);
    }
    this.put(g, grey, v, true);
    this.put(g, over, v, false);
    if (this.outlines) {
      this.edges(g, v, slice.heart, () => "rgb(80 200 255 / 55%)", 1);
      this.edges(g, v, id, (k) => colour(this.byCode[Math.floor((k - 1) / 65536)].colour), 1.4);
    }
    if (this.chosen) {
      const own = slice.piece.map((p) => Number(p === this.chosen));
      this.edges(g, v, own, () => "#fff", 2.4);
    }
    this.furniture(g, v, width, height);
    const piece = this.found.pieces[this.chosen - 1];
    c.setAttribute("aria-label", `CT of the heart, slice ${this.where.textContent}${piece ? `, piece ${piece.number} chosen` : ""}`);
    c.dataset.drawn = `${this.index}:${this.painted.get(this.index).after}`;
  }

  put(g, image, v, smooth) {
    const scratch = this.scratch ?? (this.scratch = document.createElement("canvas"));
    scratch.width = image.width;
    scratch.height = image.height;
    scratch.getContext("2d").putImageData(image, 0, 0);
    g.imageSmoothingEnabled = smooth;
    g.imageSmoothingQuality = "high";
    g.drawImage(scratch, v.left, v.top, image.width * v.scaleX, image.height * v.scaleY);
  }

  /** The borders between pixels of different marks, each side in its mark's colour. */
  edges(g, v, marks, colourOf, width) {
    const { rows, columns } = this.found;
    const lines = new Map();
    const line = (mark, a, b, c2, d) => {
      if (!lines.has(mark)) lines.set(mark, new Path2D());
      const path = lines.get(mark);
      path.moveTo(v.left + a * v.scaleX, v.top + b * v.scaleY);
      path.lineTo(v.left + c2 * v.scaleX, v.top + d * v.scaleY);
    };
    for (let y = 0; y < rows; y += 1) {
      for (let x = 0; x < columns; x += 1) {
        const here = marks[y * columns + x];
        if (!here) continue;
        if (x === 0 || marks[y * columns + x - 1] !== here) line(here, x, y, x, y + 1);
        if (x === columns - 1 || marks[y * columns + x + 1] !== here) line(here, x + 1, y, x + 1, y + 1);
        if (y === 0 || marks[(y - 1) * columns + x] !== here) line(here, x, y, x + 1, y);
        if (y === rows - 1 || marks[(y + 1) * columns + x] !== here) line(here, x, y + 1, x + 1, y + 1);
      }
    }
    g.lineWidth = width;
    for (const [mark, path] of lines) {
      g.strokeStyle = colourOf(mark);
      g.stroke(path);
    }
  }

  /** Sides of the patient, a scale, the brush. */
  furniture(g, v, width, height) {
    g.font = "600 14px system-ui, sans-serif";
    g.fillStyle = "rgb(255 255 255 / 80%)";
    g.textBaseline = "middle";
    g.textAlign = "left";
    g.fillText("R", 8, height / 2);
    g.textAlign = "right";
    g.fillText("L", width - 8, height / 2);
    const mm = v.scaleX / this.found.spacing[2];
    g.strokeStyle = "rgb(255 255 255 / 80%)";
    g.lineWidth = 2;
    g.beginPath();
    g.moveTo(width - 14 - 20 * mm, height - 14);
    g.lineTo(width - 14, height - 14);
    g.stroke();
    g.font = "12px system-ui, sans-serif";
    g.fillText("2 cm", width - 14, height - 26);
    if (this.tool !== "choose") {
      g.lineWidth = 1.5;
      g.strokeStyle = this.tool === "erase" ? "#fff" : colour(this.values[this.last].colour);
      g.beginPath();
      g.ellipse(v.left + (this.cursor[1] + 0.5) * v.scaleX, v.top + (this.cursor[0] + 0.5) * v.scaleY, SIZES[this.size] * mm, SIZES[this.size] * mm, 0, 0, 2 * Math.PI);
      g.stroke();
    }
  }
}

function colour([r, g, b]) {
  return `rgb(${r} ${g} ${b})`;
}
