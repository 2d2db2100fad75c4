// Queries kept under a name in this browser (localStorage), for one view; nothing of them is on the server.

import { h } from "./dom.js";

/** A menu of saved addresses of a view.
 *  kind: under which they are kept; now: the query as it stands, "" where there is nothing to save; go: to an address. */
export class Saved {
  constructor({ kind, path, now, go }) {
    Object.assign(this, { key: `saved ${kind}`, path, now, go });
    this.list = h("ul", { class: "plain" });
    this.name = h("input", { type: "text", id: "saved-name", maxlength: "60", required: true, autocomplete: "off" });
    this.says = h("p", { role: "status", "aria-live": "polite", class: "quiet small" });
    const form = h("form", { class: "bar", onsubmit: (event) => {
      event.preventDefault();
      const name = this.name.value.trim();
      if (!name || !this.keep({ ...this.read(), [name]: this.now() })) return;
      this.name.value = "";
      this.says.textContent = `Saved as “${name}” in this browser.`;
      this.draw();
    } }, h("label", { for: "saved-name" }, "Name"), this.name, h("button", { type: "submit" }, "Save what is shown"));
    this.element = h("details", { class: "saved" }, h("summary", { class: "button" }, "Saved"),
      h("div", { class: "panel" }, this.list, form, this.says));
    this.element.addEventListener("toggle", () => { if (this.element.open) this.draw(); });
    this.element.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      this.element.open = false;
      this.element.querySelector("summary").focus();
    });
  }

  read() {
    try {
      const found = JSON.parse(localStorage.getItem(this.key) ?? "{}");
      return Object.fromEntries(Object.entries(found).filter(([, query]) => typeof query === "string"));
    } catch {
      return {};
    }
  }

  keep(all) {
    try {
      localStorage.setItem(this.key, JSON.stringify(all));
      return true;
    } catch {
      this.says.textContent = "This browser keeps nothing for this page; make a bookmark instead.";
      return false;
    }
  }

  draw() {
    const all = Object.entries(this.read()).sort(([a], [b]) => a.localeCompare(b));
    this.list.replaceChildren(...all.map(([name, query]) => h("li", {},
      h("a", { href: `${this.path}?${query}`, onclick: (event) => {
        event.preventDefault();
        this.element.open = false;
        this.go(`${this.path}?${query}`);
      } }, name),
      h("button", { type: "button", class: "link", "aria-label": `forget ${name}`, onclick: () => {
        const { [name]: _, ...rest } = this.read();
        if (this.keep(rest)) this.draw();
        this.name.focus();
      } }, "×"))));
    if (!all.length) this.list.append(h("li", { class: "quiet" }, "None yet."));
  }
}
