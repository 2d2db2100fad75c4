// The table of cases with its filters and charts.

import { get } from "./api.js";
import { Charts } from "./charts.js";
import { count, h, plural } from "./dom.js";
import { Filters, chosen, onTyping, withValue } from "./filters.js";
import { Saved } from "./saved.js";
import { Table } from "./table.js";

export async function casesView(content, { about, go }) {
  if (!location.search && about.statuses.scored && Object.keys(about.statuses).length > 1) {
    history.replaceState(null, "", "/?status=scored");
  }
  const query = () => new URLSearchParams(location.search);
  let asked = new AbortController();

  const change = (next) => {
    history.pushState(null, "", `/?${next}`);
    refresh();
  };
  const status = h("p", { role: "status", "aria-live": "polite", class: "counts" });
  const chips = h("ul", { class: "chips", "aria-label": "What is selected" });
  const search = h("input", { type: "search", id: "search", placeholder: "patient, UID, kernel, scanner, reason …", autocomplete: "off" });
  search.value = query().get("search") ?? "";
  onTyping(search, (value) => change(withValue(query(), "search", value)));
  const csv = h("a", { class: "button", download: "deepcac2-selection.csv" }, "Export CSV");
  const problem = h("p", { class: "panel error", role: "alert", hidden: true });

  const filters = new Filters(about, query, change);
  const charts = new Charts(about, query, change);
  const cases = new Table(about, query, change);
  const saved = new Saved({ kind: "cases", path: "/", go, now: () => {
    const now = query();
    now.delete("page");
    return String(now);
  } });
  content.append(
    h("div", { class: "layout" },
      filters.element,
      h("div", { class: "results" },
        h("div", { class: "panel bar" },
          h("div", { class: "field wide" }, h("label", { for: "search" }, "Search"), search),
          status, saved.element, csv),
        chips, problem,
        charts.element,
        cases.element,
        timePoints(about))));

  async function refresh() {
    asked.abort();
    asked = new AbortController();
    const { signal } = asked;
    const now = query();
    drawChips(now);
    const selection = new URLSearchParams(now);
    selection.delete("page");
    selection.delete("size");
    csv.href = `/api/export.csv?${selection}`;
    content.setAttribute("aria-busy", "true");
    try {
      const [found, { facets, charts: numbers }] = await Promise.all([
        get("/api/cases", now, signal), get("/api/counts", selection, signal),
      ]);
      problem.hidden = true;
      charts.element.hidden = cases.element.hidden = false;
      status.textContent = `${plural(found.series, "series", "series")} of ${plural(found.patients, "patient")}`
        + (found.pages > 1 ? `, page ${count(found.page)} of ${count(found.pages)}` : "");
      filters.update(facets);
      cases.update(found);
      await charts.update(numbers);
    } catch (error) {
      if (error.name === "AbortError") return;
      problem.replaceChildren(error.message, " ", h("a", { href: "/?sort=patient_id" }, "Show all cases"));
      problem.hidden = false;
      status.textContent = "";
      charts.element.hidden = cases.element.hidden = true;
    }
    if (!signal.aborted) content.removeAttribute("aria-busy");
  }

  function drawChips(now) {
    const picked = chosen(now, about);
    chips.replaceChildren(...picked.map(({ name, value, text }) => h("li", {}, h("button", {
      type: "button", class: "chip", "aria-label": `remove ${text}`,
      onclick: () => {
        const next = new URLSearchParams();
        for (const [n, v] of now) if (n !== "page" && !(n === name && v === value)) next.append(n, v);
        change(next);
        document.getElementById("search").value = next.get("search") ?? "";
      },
    }, text, h("span", { "aria-hidden": "true" }, " ×")))));
    if (picked.length > 1) {
      chips.append(h("li", {}, h("button", {
        type: "button", class: "link", onclick: () => { search.value = ""; change(new URLSearchParams("sort=patient_id")); },
      }, "clear all")));
    }
    if (document.activeElement !== search) search.value = now.get("search") ?? "";
  }

  await refresh();
  return () => {
    asked.abort();
    charts.leave();
    cases.leave();
  };
}

/** Where the time points come from, in words. */
function timePoints(about) {
  const { header = 0, clinical = 0, order = 0 } = about.time_point_from;
  const parts = [
    header && `${count(header)} from the DICOM header (ClinicalTrialTimePointID)`,
    clinical && `${count(clinical)} from the clinical table`,
    order && `${count(order)} by order: “study 1, 2, …” are a patient's studies in this table by date, not visits of a trial`,
  ].filter(Boolean);
  return h("p", { class: "quiet small" }, parts.length ? `Time points: ${parts.join("; ")}.` : null);
}
