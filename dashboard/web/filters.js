// The filters beside the table, and the selection in the address: the only place where it is kept.

import { count, h, measured, number } from "./dom.js";

const FEW = 7;

/** What the address selects, without page and order. */
export function chosen(query, about) {
  const found = [];
  const labels = Object.fromEntries(about.filters.map((f) => [f.name, f]));
  for (const [name, value] of query) {
    if (name === "search") found.push({ name, value, text: `text: ${value}` });
    else if (name === "patient") found.push({ name, value, text: `patient: ${value}` });
    else if (labels[name]) found.push({ name, value, text: `${labels[name].label}: ${valueText(name, value, about)}` });
    else {
      const [, base, end] = /^(.*)_(min|max)$/.exec(name) ?? [];
      if (labels[base]) {
        found.push({ name, value, text: `${labels[base].label} ${end === "min" ? "from" : "to"} ${value}` });
      }
    }
  }
  return found;
}

export function valueText(name, value, about) {
  if (value === "") return name === "code" ? "scored" : "not known";
  const column = about.byName[about.filters.find((f) => f.name === name).column];
  if (column.groups.length) return `${value} ${column.groups[value] ?? ""}`.trim();
  if (column.kind === "bool") return value === "true" ? "yes" : "no";
  return column.kind === "float" ? measured(Number(value)) : value;
}

/** The query with a value put in, or taken out where it is in. */
export function toggled(query, name, value) {
  const next = new URLSearchParams(query);
  const values = next.getAll(name);
  next.delete(name);
  next.delete("page");
  for (const v of values) if (v !== value) next.append(name, v);
  if (!values.includes(value)) next.append(name, value);
  return next;
}

export function withValue(query, name, value) {
  const next = new URLSearchParams(query);
  next.delete(name);
  if (name !== "page") next.delete("page");
  if (value !== "" && value !== null) next.set(name, value);
  return next;
}

/** The filters as a form; `change` gets the new query. Kept open and focused as they were. */
export class Filters {
  constructor(about, query, change) {
    this.about = about;
    this.query = query;
    this.change = change;
    this.all = new Set();
    this.lists = new Map();
    this.body = h("div", { class: "facets" });
    this.element = h("details", { class: "panel filters", open: matchMedia("(min-width: 1000px)").matches },
      h("summary", {}, "Filters"), this.body);
    this.build();
  }

  build() {
    this.body.append(this.textField("patient", "Patient", "part of a PatientID"));
    const more = h("details", {}, h("summary", {}, "More"));
    for (const filter of this.about.filters) {
      const box = h("fieldset", { "data-filter": filter.name }, h("legend", { title: filter.meaning }, filter.label));
      const list = h("div");
      box.append(list);
      this.lists.set(filter.name, { box, list, filter });
      if (filter.kind === "range") list.append(this.rangeFields(filter));
      (filter.more ? more : this.body).append(box);
    }
    if (more.children.length > 1) this.body.append(more);
  }

  textField(name, label, hint) {
    const input = h("input", { type: "search", id: `f-${name}`, placeholder: hint, autocomplete: "off" });
    input.value = this.query().get(name) ?? "";
    onTyping(input, (value) => this.change(withValue(this.query(), name, value)));
    this[name] = input;
    return h("div", { class: "field" }, h("label", { for: `f-${name}` }, label), input);
  }

  rangeFields(filter) {
    const field = (end, label) => {
      const name = `${filter.name}_${end}`;
      const input = h("input", { type: "number", step: "any", id: `f-${name}`, "data-range": name });
      input.value = this.query().get(name) ?? "";
      onTyping(input, (value) => this.change(withValue(this.query(), name, value)));
      return h("span", {}, h("label", { for: `f-${name}` }, label), input);
    };
    return h("div", { class: "range" }, field("min", "from"), field("max", "to"));
  }

  update(facets) {
    const query = this.query();
    const focused = document.activeElement?.dataset?.key;
    for (const [name, { box, list, filter }] of this.lists) {
      const facet = facets[name];
      if (filter.kind === "range") {
        for (const input of list.querySelectorAll("input")) {
          const end = input.dataset.range.slice(-3);
          if (facet[end] !== null) input.placeholder = number(facet[end], 1);
          if (document.activeElement !== input) input.value = query.get(input.dataset.range) ?? "";
        }
        box.hidden = facet.min === null;
        continue;
      }
      const picked = query.getAll(name);
      box.hidden = !facet.values.length || (!picked.length && facet.values.length === 1 && facet.values[0].value === "");
      const open = this.all.has(name);
      const shown = facet.values.filter((v, i) => open || i < FEW || picked.includes(v.value));
      const most = Math.max(1, ...facet.values.map((v) => v.n));
      list.replaceChildren(...shown.map((v) => {
        const input = h("input", { type: "checkbox", "data-key": `${name}=${v.value}` });
        input.checked = picked.includes(v.value);
        input.addEventListener("change", () => this.change(toggled(this.query(), name, v.value)));
        const bar = h("meter", { class: "share", min: "0", max: String(most), value: String(v.n), "aria-hidden": "true" });
        return h("label", { class: "choice" }, input, h("span", { class: "word" }, valueText(name, v.value, this.about)),
          bar, h("span", { class: "n" }, count(v.n)));
      }));
      const hidden = facet.values.length - shown.length;
      if (hidden > 0 || open) {
        list.append(h("button", {
          type: "button", class: "link", "data-key": `${name} more`, "aria-expanded": String(open),
          onclick: () => {
            if (open) this.all.delete(name);
            else this.all.add(name);
            this.update(facets);
          },
        }, open ? "show fewer" : `show ${count(hidden)} more`));
      }
    }
    if (document.activeElement !== this.patient) this.patient.value = query.get("patient") ?? "";
    if (focused) [...this.body.querySelectorAll("[data-key]")].find((e) => e.dataset.key === focused)?.focus();
  }
}

/** Calls back when typing rests. */
export function onTyping(input, change) {
  let timer;
  let last = input.value;
  const done = () => {
    clearTimeout(timer);
    if (input.value.trim() !== last) change((last = input.value.trim()));
  };
  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(done, 300);
  });
  input.addEventListener("focus", () => { last = input.value.trim(); });
  input.addEventListener("change", done);
}
