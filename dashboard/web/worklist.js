// The work list of the reading desk: who reads, what is there to read, and what has been read.

import { get } from "./api.js";
import { count, date, h, number, plural, shortUid } from "./dom.js";
import { withValue } from "./filters.js";

const STATES = ["not read", "begun", "read", "differ"];
const MEANING = {
  "not read": "nothing was decided yet", begun: "decided on, and not signed, or changed since", read: "signed",
  differ: "signed scores differ, or a signed one has another risk group than the automatic result",
};
let name = "";

/** The reader's name as this browser knows it. */
export function reader() {
  try { return localStorage.getItem("reader") ?? name; } catch { return name; }
}

function remember(value) {
  name = value;
  try { localStorage.setItem("reader", value); } catch { /* for this page only */ }
}

export async function worklistView(content, { go }) {
  const query = new URLSearchParams(location.search);
  const who = reader();
  const field = h("input", { type: "text", id: "reader", autocomplete: "name", maxlength: "64", pattern: "[A-Za-z0-9][A-Za-z0-9 .,'_\\-]*" });
  field.value = who;
  const form = h("form", { class: "panel bar", onsubmit: (event) => {
    event.preventDefault();
    remember(field.value.trim());
    go(location.pathname + location.search, { replace: true });
  } }, h("label", { for: "reader" }, "Who reads?"), field, h("button", { type: "submit", class: who ? null : "primary" }, who ? "Change" : "Begin"),
  h("span", { class: "quiet small" }, "Goes into every decision and into what is signed: letters A to Z, digits, spaces, . , ' _ -"));
  content.append(form);
  if (!who) {
    content.append(h("p", { class: "panel" }, "Give your name to read cases. Two readers of one case never see or change each other's decisions."));
    field.focus();
    return;
  }
  const asked = new URLSearchParams({ reader: who });
  for (const key of ["state", "page"]) if (query.has(key)) asked.set(key, query.get(key));
  const found = await get("/api/review", asked);
  const link = (state, text, n) => h("a", { href: `/review?${withValue(new URLSearchParams(), "state", state)}`, class: "button", title: MEANING[state],
    "aria-current": (query.get("state") ?? "") === state ? "true" : null }, text, " ", h("span", { class: "count" }, count(n)));
  const page = (text, target, label) => (target < 1 || target > found.pages ? h("span", { class: "quiet" }, text)
    : h("a", { href: `/review?${withValue(query, "page", String(target))}`, "aria-label": label }, text));
  const next = found.rows.find((r) => r.states.includes("not read")) ?? found.rows.find((r) => r.states.includes("begun"));
  content.append(
    h("section", { class: "panel", "aria-label": "Work list" },
      h("div", { class: "bar" }, h("h2", {}, "To read"), link("", "all", found.all), STATES.map((s) => link(s, s, found.counts[s])),
        next ? h("a", { class: "button primary", href: `/review/${next.series_uid}` }, "Read the next one") : null),
      h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Cases to read" },
        h("table", { class: "worklist" }, h("caption", { class: "hidden" }, "Cases to read"),
          h("thead", {}, h("tr", {}, ["", "Patient", "Series", "Date", "Automatic", "Read", "State"].map((t, i) => h("th", { scope: "col", class: i === 4 ? "num" : null }, t || h("span", { class: "hidden" }, "Picture"))))),
          h("tbody", {}, found.rows.map((r) => h("tr", {},
            h("td", { class: "thumb" }, picture(r)),
            h("th", { scope: "row" }, h("a", { href: `/review/${r.series_uid}` }, r.patient_id || "(no ID)")),
            h("td", {}, r.series_description || "–", " ", h("span", { class: "quiet uid" }, shortUid(r.series_uid))),
            h("td", { class: "keep" }, date(r.study_date)),
            h("td", { class: "num" }, number(r.automatic)),
            h("td", {}, h("ul", { class: "plain" }, r.readers.map((one) => h("li", {}, `${one.reader}: `,
              one.score === null ? h("span", { class: "quiet", title: "shown once you have signed" }, one.state === "begun" ? "begun" : "signed")
                : `${number(one.score)}${one.state === "read" ? "" : ` (${one.state})`}`)))),
            h("td", { class: "keep" }, r.states.map((s) => h("span", { class: `tag ${s === "differ" ? "differ" : ""}`, title: MEANING[s] }, s)))))))),
      found.rows.length ? null : h("p", { class: "empty" }, "No case is in this state."),
      h("nav", { class: "pager", "aria-label": "Pages" }, page("‹ before", found.page - 1, "page before"),
        h("span", { class: "where" }, `${plural(found.found, "case")}, page ${count(found.page)} of ${count(found.pages)}`), page("next ›", found.page + 1, "next page"))));
}

function picture(row) {
  const image = h("img", { src: `/api/cases/${row.series_uid}/thumbnail.png`, alt: "", loading: "lazy", width: "72", height: "72" });
  image.addEventListener("error", () => image.remove());
  return image;
}
