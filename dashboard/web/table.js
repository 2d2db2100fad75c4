// The case table: sorted and paged on the server.

import { count, date, h, mark, number, shortUid, shown } from "./dom.js";
import { withValue } from "./filters.js";

/** Cells that say more than their column. */
const CELLS = {
  patient_id: (r, about, query) => (r.series_uid ? h("a", { href: `/case/${encodeURIComponent(r.series_uid)}?${query}` }, r.patient_id || "(no ID)") : r.patient_id || "(no ID)"),
  series_description: (r, about) => h("span", { class: "series" },
    r.series_description || "–", h("span", { class: "quiet under-series" }, h("span", { class: "uid", title: r.series_uid }, shortUid(r.series_uid)),
      about.viewer && r.series_uid ? h("span", { class: "screen" }, " · ", h("a", { href: `/api/cases/${encodeURIComponent(r.series_uid)}/viewer`, target: "_blank", rel: "noopener", "aria-label": `viewer, ${r.patient_id} ${r.series_description}` }, "viewer")) : null)),
  time_point: (r) => h("span", { title: date(r.study_date) }, r.time_point || "–"),
  study_date: (r) => date(r.study_date),
  status: (r) => h("span", { class: `state ${r.status}`, title: r.reason }, r.code ? `${r.status}: ${r.code}` : r.status),
  manufacturer: (r) => h("span", { title: r.model_name }, r.manufacturer || "–"),
};

/** A small picture of a case, asked for when its row is seen; nothing where there is none. */
function picture(row, query, seen) {
  if (!row.series_uid) return h("td", { class: "thumb" });
  const image = h("img", { alt: "", width: "44", height: "44", "data-src": `/api/cases/${encodeURIComponent(row.series_uid)}/thumbnail.png` });
  image.addEventListener("error", () => image.remove());
  seen.observe(image);
  return h("td", { class: "thumb" }, h("a", { href: `/case/${encodeURIComponent(row.series_uid)}?${query}`, tabindex: "-1", "aria-hidden": "true" }, image));
}

function cell(column, row, about, query) {
  const value = row[column.name];
  if (CELLS[column.name]) return CELLS[column.name](row, about, query);
  if (column.name === "warnings" && value) {
    return h("span", { class: "tags" }, value.split(";").map((w) => h("span", { class: "tag", title: about.meanings[w] }, w)));
  }
  const words = shown(column, value);
  const marked = column.result && !column.groups.length && row.caution && value !== null;
  return marked ? h("span", { class: "marked" }, words, " ", mark(row.caution)) : words;
}

/** Who has signed which score. */
function readers(row) {
  if (!row.read?.length) return "–";
  return h("ul", { class: "plain keep" }, row.read.map((r) => h("li", {}, h("a", { href: `/review/${row.series_uid}` }, number(r.score)), h("span", { class: "quiet" }, ` ${r.reader}`))));
}

function isNumber(column) {
  return ["int", "float"].includes(column.kind) && !column.groups.length;
}

export class Table {
  constructor(about, query, change) {
    this.about = about;
    this.query = query;
    this.change = change;
    this.choice = h("div", { class: "choice-of-columns" });
    this.head = h("tr");
    this.body = h("tbody");
    this.seen = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        target.src = target.dataset.src;
        this.seen.unobserve(target);
      }
    });
    this.pager = h("nav", { class: "pager", "aria-label": "Pages of the table" });
    this.element = h("section", { class: "panel table", "aria-label": "Cases" },
      h("details", { class: "columns-chosen" }, h("summary", {}, "Columns"), this.choice),
      h("div", { class: "scroll tall", tabindex: "0", role: "region", "aria-label": "Table of cases" },
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
    const names = query.get("columns")?.split(",") ?? this.usual();
    const columns = names.map((name) => this.about.byName[name]).filter((c) =>
      c.name !== "status" || sort === "status" || query.has("columns") || rows.some((r) => r.status !== "scored"));
    this.drawChoice(names);
    this.head.replaceChildren(...columns.map((c) => {
      const now = c.name === sort;
      return h("th", { scope: "col", class: isNumber(c) && "num", "aria-sort": now ? order : "none" },
        h("button", { type: "button", title: c.meaning, "data-key": `sort ${c.name}`, onclick: () => this.sort(c, now, order) },
          c.unit ? `${c.label}, ${c.unit}` : c.label, h("span", { class: "arrow", "aria-hidden": "true" }, now ? (order === "ascending" ? "▲" : "▼") : "↕")));
    }));
    this.head.prepend(h("th", { scope: "col", class: "thumb" }, h("span", { class: "hidden" }, "Picture")));
    if (this.about.review) this.head.append(h("th", { scope: "col", title: "score that a person has signed" }, "Read"));
    this.seen.disconnect();
    this.body.replaceChildren(...rows.map((row) => h("tr", {}, picture(row, query, this.seen), columns.map((c, i) =>
      h(i ? "td" : "th", { class: isNumber(c) && "num", scope: i ? null : "row" }, cell(c, row, this.about, query))), this.about.review ? h("td", {}, readers(row)) : null)));
    if (!rows.length) {
      this.body.append(h("tr", {}, h("td", { colspan: String(columns.length + (this.about.review ? 2 : 1)), class: "empty" }, "No series fits all filters.")));
    }
    this.drawPager(page, pages, size, series);
    if (focused) [...this.element.querySelectorAll("[data-key]")].find((e) => e.dataset.key === focused)?.focus();
  }

  /** The usual columns; on a narrow screen what was found stands right after the patient. */
  usual() {
    const { usual, byName, results } = this.about;
    if (!matchMedia("(max-width: 560px)").matches) return usual;
    const found = usual.filter((name) => results.includes(name));
    const [first, ...rest] = usual.filter((name) => byName[name] && !found.includes(name));
    return [first, ...found, ...rest];
  }

  /** A box for each column of the table, ticked where it is shown. */
  drawChoice(names) {
    const reset = String(names) === String(this.usual()) ? null
      : h("button", { type: "button", class: "link", "data-key": "usual columns", onclick: () => this.change(withValue(this.query(), "columns", "")) }, "the usual columns");
    this.choice.replaceChildren(...(reset ? [reset] : []), ...this.about.columns.map((c) => {
      const input = h("input", { type: "checkbox", "data-key": `column ${c.name}` });
      input.checked = names.includes(c.name);
      input.addEventListener("change", () => {
        const next = input.checked ? [...names, c.name] : names.filter((n) => n !== c.name);
        const usual = String(next) === String(this.usual());
        this.change(withValue(this.query(), "columns", usual ? "" : String(next)));
      });
      return h("label", { class: "choice", title: c.meaning }, input, h("span", { class: "word" }, c.label));
    }));
  }

  leave() {
    this.seen.disconnect();
  }

  sort(column, now, order) {
    const next = withValue(this.query(), "sort", column.name);
    const descending = now ? order === "ascending" : isNumber(column);
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
