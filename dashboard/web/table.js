// The case table: sorted and paged on the server.

import { badge, count, date, h, mark, number, shortUid } from "./dom.js";
import { withValue } from "./filters.js";

/** A result in words, with a mark beside it where it needs one. */
function marked(row, value, words) {
  return row.caution && value !== null ? h("span", { class: "marked" }, words, " ", mark(row.caution)) : words;
}

function columns(about) {
  const list = [
    { name: "patient_id", label: "Patient", cell: (r) => h("a", { href: `/case/${r.series_uid}` }, r.patient_id || "(no ID)") },
    { name: "series_description", label: "Series", cell: (r) => h("span", { class: "series" },
      r.series_description || "–", h("span", { class: "quiet uid", title: r.series_uid }, shortUid(r.series_uid))) },
    { name: "time_point", label: "Time point", cell: (r) => h("span", { title: date(r.study_date) }, r.time_point || "–") },
    { name: "status", label: "Status", only: (rows) => rows.some((r) => r.status !== "scored"),
      cell: (r) => h("span", { class: `state ${r.status}`, title: r.reason }, r.code ? `${r.status}: ${r.code}` : r.status) },
    { name: "agatston_score", label: "Score", number: true, cell: (r) => marked(r, r.agatston_score, number(r.agatston_score, 1)) },
    { name: "risk_group", label: "Risk group", cell: (r) => badge(r.risk_group, about.risk_names[r.risk_group]) },
    { name: "kernel", label: "Kernel", cell: (r) => r.kernel || "–" },
    { name: "manufacturer", label: "Manufacturer", cell: (r) => h("span", { title: r.model_name }, r.manufacturer || "–") },
    { name: "slice_thickness", label: "Slice, mm", number: true, cell: (r) => number(r.slice_thickness, 2) },
    { name: "warnings", label: "Warnings", cell: (r) => r.warnings
      ? h("span", { class: "tags" }, r.warnings.split(";").map((w) => h("span", { class: "tag", title: about.meanings[w] }, w)))
      : "–" },
  ];
  if (about.used.direct_score) list.splice(6, 0, { name: "direct_score", label: "Direct score", number: true, cell: (r) => marked(r, r.direct_score, number(r.direct_score, 1)) });
  if (about.used.direct_group) list.splice(7, 0, { name: "direct_group", label: "Direct group", number: true, cell: (r) => number(r.direct_group) });
  if (about.used.screening_positive) {
    list.splice(6, 0, { name: "screening_positive", label: "Calcium possible",
      cell: (r) => (r.screening_positive === null ? "–" : marked(r, true, r.screening_positive ? "yes" : "no")) });
  }
  for (const name of about.clinical.columns) {
    list.push({ name, label: name, cell: (r) => (typeof r[name] === "number" ? number(r[name], 2) : r[name] ?? "–") });
  }
  return list;
}

export class Table {
  constructor(about, query, change) {
    this.query = query;
    this.change = change;
    this.columns = columns(about);
    this.head = h("tr");
    this.body = h("tbody");
    this.pager = h("nav", { class: "pager", "aria-label": "Pages of the table" });
    this.element = h("section", { class: "panel table", "aria-label": "Cases" },
      h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table of cases" },
        h("table", { class: "cases" },
          h("caption", { class: "hidden" }, "Series of the selection. The buttons in the heading sort."),
          h("thead", {}, this.head), this.body)),
      this.pager);
  }

  update({ rows, page, pages, size, series }) {
    const focused = document.activeElement?.dataset?.key;
    const query = this.query();
    const sort = query.get("sort") ?? "patient_id";
    const order = query.get("order") === "desc" ? "descending" : "ascending";
    const shown = this.columns.filter((c) => !c.only || c.only(rows) || sort === c.name);
    this.head.replaceChildren(...shown.map((c) => {
      const now = c.name === sort;
      return h("th", { scope: "col", class: c.number && "num", "aria-sort": now ? order : "none" },
        h("button", { type: "button", "data-key": `sort ${c.name}`, onclick: () => this.sort(c, now, order) },
          c.label, h("span", { class: "arrow", "aria-hidden": "true" }, now ? (order === "ascending" ? "▲" : "▼") : "↕")));
    }));
    this.body.replaceChildren(...rows.map((row) => h("tr", {}, shown.map((c, i) =>
      h(i ? "td" : "th", { class: c.number && "num", scope: i ? null : "row" }, c.cell(row))))));
    if (!rows.length) {
      this.body.append(h("tr", {}, h("td", { colspan: String(shown.length), class: "empty" }, "No series fits all filters.")));
    }
    this.drawPager(page, pages, size, series);
    if (focused) [...this.element.querySelectorAll("[data-key]")].find((e) => e.dataset.key === focused)?.focus();
  }

  sort(column, now, order) {
    const next = withValue(this.query(), "sort", column.name);
    const descending = now ? order === "ascending" : Boolean(column.number);
    if (descending) next.set("order", "desc");
    else next.delete("order");
    this.change(next);
  }

  drawPager(page, pages, size, series) {
    const to = (text, target, label) => h("button", {
      type: "button", "data-key": `page ${text}`, "aria-label": label,
      disabled: target < 1 || target > pages || target === page,
      onclick: () => this.change(withValue(this.query(), "page", String(target))),
    }, text);
    const sizes = h("select", { id: "size", "data-key": "size" },
      [25, 50, 100, 200].map((n) => h("option", { value: String(n), selected: n === size }, String(n))));
    sizes.addEventListener("change", () => {
      const next = withValue(this.query(), "size", sizes.value);
      next.delete("page");
      this.change(next);
    });
    const first = series ? (page - 1) * size + 1 : 0;
    this.pager.replaceChildren(
      to("«", 1, "first page"), to("‹", page - 1, "page before"),
      h("span", { class: "where" }, `${count(first)}–${count(Math.min(series, page * size))} of ${count(series)}`),
      to("›", page + 1, "next page"), to("»", pages, "last page"),
      h("label", { for: "size", class: "quiet" }, "rows"), sizes);
  }
}
