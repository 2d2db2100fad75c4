// The SQL box.

import { post } from "./api.js";
import { count, h, number, plural, save, table } from "./dom.js";
import { Saved } from "./saved.js";

function examples(about) {
  const found = about.results.map((name) => about.byName[name]);
  const score = found.find((c) => c.kind === "float");
  const group = found.find((c) => c.groups.length);
  return [
    score && [`${score.label} by kernel`, `SELECT kernel, count(*) AS series, round(avg(${score.name}), 1) AS mean, median(${score.name}) AS median\nFROM results WHERE status = 'scored'\nGROUP BY kernel ORDER BY series DESC`],
    group && [`Patients whose ${group.label.toLowerCase()} differs`, `SELECT patient_id, list(DISTINCT ${group.name} ORDER BY ${group.name}) AS groups, count(*) AS series\nFROM results WHERE status = 'scored'\nGROUP BY patient_id HAVING count(DISTINCT ${group.name}) > 1`],
    ["Reasons by manufacturer", "SELECT manufacturer, code, count(*) AS series\nFROM results WHERE status <> 'scored'\nGROUP BY ALL ORDER BY series DESC"],
    ["How often each warning", "SELECT warning, count(*) AS series\nFROM (SELECT unnest(string_split(warnings, ';')) AS warning FROM results)\nWHERE warning <> '' GROUP BY warning ORDER BY series DESC"],
  ].filter(Boolean);
}
let last;

/** The rows as a CSV file; a text that a spreadsheet would run as a formula is preceded by an apostrophe. */
function saveRows({ columns, rows }) {
  const cell = (v) => {
    const text = v === null ? "" : typeof v === "string" && /^[=+\-@\t\r]/.test(v) ? `'${v}` : String(v);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const lines = [columns.map((c) => c.name), ...rows].map((row) => row.map(cell).join(","));
  save(new Blob([`${lines.join("\r\n")}\r\n`], { type: "text/csv" }), "deepcac2-query.csv");
}

export async function sqlView(content, { about, go }) {
  const text = h("textarea", { id: "sql", rows: "7", spellcheck: "false", autocapitalize: "off", autocomplete: "off" });
  text.value = new URLSearchParams(location.search).get("q") ?? last ?? examples(about)[0][1];
  const status = h("p", { role: "status", "aria-live": "polite", class: "counts" });
  const out = h("div");
  const button = h("button", { type: "submit", class: "primary" }, "Run");
  const saved = new Saved({ kind: "sql", path: "/sql", go, now: () => String(new URLSearchParams({ q: text.value })) });
  const run = async (event) => {
    event?.preventDefault();
    last = text.value;
    history.replaceState(null, "", `/sql?${new URLSearchParams({ q: last })}`);
    button.disabled = true;
    status.textContent = "running …";
    try {
      const found = await post("/api/sql", { sql: text.value });
      status.textContent = `${plural(found.rows.length, "row")}${found.more ? ", and there are more" : ""}, ${number(found.seconds, 2)} s`;
      const columns = found.columns.map((c) => ({ label: c.name, number: /INT|DOUBLE|FLOAT|DECIMAL/.test(c.type) }));
      const cell = (v, i) => (v === null ? h("span", { class: "quiet" }, "NULL") : typeof v === "number" ? String(v)
        : v === "" ? h("span", { class: "quiet" }, "(empty)")
          : found.columns[i].name === "series_uid" ? h("a", { class: "uid", href: `/case/${encodeURIComponent(v)}` }, v) : String(v));
      const csv = h("button", { type: "button", onclick: () => saveRows(found) }, "Export CSV");
      out.replaceChildren(h("section", { class: "panel" }, h("div", { class: "bar" }, csv),
        table("Result of the query", columns, found.rows.map((r) => r.map(cell)))));
    } catch (error) {
      status.textContent = "";
      out.replaceChildren(h("pre", { class: "panel error", role: "alert" }, error.message));
    }
    button.disabled = false;
  };
  text.addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run(event); });
  content.append(
    h("section", { class: "panel", "aria-label": "Query" },
      h("div", { class: "bar" }, h("h2", {}, "SQL"), saved.element),
      h("p", {}, "One SELECT over the table ", h("code", {}, "results"),
        " (DuckDB). It is only read; a query has 5 seconds, and gives back 1,000 rows at most."),
      h("form", { onsubmit: run }, h("label", { for: "sql", class: "hidden" }, "SQL statement"), text,
      h("div", { class: "bar" }, button, h("span", { class: "quiet small" }, "Ctrl + Enter"), status)),
      h("div", { class: "examples" }, h("span", { class: "quiet" }, "Examples: "), examples(about).map(([name, sql]) =>
        h("button", { type: "button", class: "link", onclick: () => { text.value = sql; text.focus(); } }, name)))),
    out,
    h("details", { class: "panel" }, h("summary", {}, `Columns of results (${count(about.columns.length)})`),
      table("Columns", [{ label: "Column" }, { label: "Type" }, { label: "What it holds" }],
        about.columns.map((c) => [h("code", {}, c.name), c.type, c.meaning]))));
}
