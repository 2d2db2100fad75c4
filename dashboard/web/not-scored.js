// Rejected and failed series, and why.

import { get } from "./api.js";
import { count, date, h, plural, shortUid, table } from "./dom.js";
import { withValue } from "./filters.js";

export async function notScoredView(content, { about, go }) {
  const others = Object.keys(about.statuses).filter((s) => s !== "scored");
  const query = new URLSearchParams(location.search);
  const selected = () => {
    const next = new URLSearchParams(query);
    if (!next.has("status")) for (const status of others) next.append("status", status);
    return next;
  };
  content.append(h("div", { class: "panel" },
    h("h2", {}, "Series without a score"),
    h("p", {}, "Every series that was found has a row. ", h("b", {}, "Rejected"),
      ": a quality gate said no, with its reason. ", h("b", {}, "Failed"), ": something broke; the same run tries it again.")));
  if (!others.length) {
    content.append(h("p", { class: "panel" }, "All series of this run were scored."));
    return;
  }
  const overview = new URLSearchParams();
  for (const status of others) overview.append("status", status);
  const [reasons, found] = await Promise.all([get("/api/not-scored", overview), get("/api/cases", selected())]);
  const picked = query.get("code");
  content.append(h("section", { class: "panel", "aria-label": "Reasons" },
    h("h3", {}, "Reasons"),
    table("Why series were not scored", [{ label: "Status" }, { label: "Reason code" }, { label: "What it means" },
      { label: "Series", number: true }, { label: "Patients", number: true }],
    reasons.map((r) => [
      h("span", { class: `state ${r.status}` }, r.status),
      h("a", { href: `/not-scored?${new URLSearchParams({ status: r.status, code: r.code })}`,
        "aria-current": picked === r.code && "true" }, r.code || "(none)"),
      r.meaning || r.example, count(r.n), count(r.patients)]))));

  const csv = new URLSearchParams(selected());
  csv.delete("page");
  const link = (text, page, label) => (page < 1 || page > found.pages ? h("span", { class: "quiet" }, text)
    : h("a", { href: `/not-scored?${withValue(query, "page", String(page))}`, "aria-label": label }, text));
  content.append(h("section", { class: "panel", "aria-label": "Series" },
    h("div", { class: "bar" },
      h("h3", {}, picked === null ? "Series" : `Series: ${picked}`),
      h("p", { role: "status", class: "counts" }, `${plural(found.series, "series", "series")}, page ${count(found.page)} of ${count(found.pages)}`),
      picked === null ? null : h("a", { class: "button", href: "/not-scored" }, "Show all"),
      h("a", { class: "button", href: `/api/export.csv?${csv}`, download: "deepcac2-not-scored.csv" }, "Export CSV")),
    table("Series without a score", [{ label: "Patient", keep: true }, { label: "Series" }, { label: "Date", keep: true }, { label: "Status" },
      { label: "Reason" }],
    found.rows.map((r) => [
      r.series_uid ? h("a", { href: `/case/${encodeURIComponent(r.series_uid)}?${csv}` }, r.patient_id || "(no ID)") : r.patient_id || "–",
      h("span", { class: "series" }, r.series_description || "–", h("span", { class: "quiet uid", title: r.series_uid }, shortUid(r.series_uid))),
      date(r.study_date),
      h("span", { class: `state ${r.status}` }, `${r.status}: ${r.code}`),
      r.reason || "–"])),
    h("nav", { class: "pager", "aria-label": "Pages" },
      link("‹ before", found.page - 1, "page before"), link("next ›", found.page + 1, "next page"))));
}
