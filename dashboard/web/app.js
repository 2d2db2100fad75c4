// Which view is shown, and going from one to another without loading the page anew.

import { get } from "./api.js";
import { caseView } from "./case.js";
import { casesView } from "./cases.js";
import { deskView } from "./desk.js";
import { count, h, plural } from "./dom.js";
import { notScoredView } from "./not-scored.js";
import { sqlView } from "./sql.js";
import { worklistView } from "./worklist.js";

const main = document.getElementById("main");
let about;
let leave = () => {};

function route() {
  const path = location.pathname;
  if (path === "/not-scored") return ["not-scored", notScoredView];
  if (path === "/sql") return ["sql", sqlView];
  if (path.startsWith("/case/")) return ["case", caseView];
  if (path === "/review") return ["review", worklistView];
  if (path.startsWith("/review/")) return ["desk", deskView];
  return path === "/" ? ["cases", casesView] : ["none", noneView];
}

function noneView(content) {
  content.append(h("div", { class: "panel" }, h("h2", {}, "There is nothing at this address"),
    h("p", {}, h("a", { href: "/" }, "To the cases"))));
}

/** Go to an address of this page. */
function go(address, { replace = false, focus = true } = {}) {
  history[replace ? "replaceState" : "pushState"](null, "", address);
  show(focus);
}

async function show(focus) {
  leave();
  const [name, view] = route();
  for (const link of document.querySelectorAll("#views a")) {
    if (link.dataset.view === (name === "desk" ? "review" : name)) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${{ cases: "Cases", "not-scored": "Not scored", sql: "SQL", case: "Case", review: "To read", desk: "Reading", none: "Nothing here" }[name]} · ${about.name}`;
  const content = h("div", { class: `view ${name}` });
  main.replaceChildren(content);
  if (focus) {
    main.focus({ preventScroll: true });
    scrollTo(0, 0);
  }
  try {
    leave = (await view(content, { about, go })) ?? (() => {});
  } catch (error) {
    content.replaceChildren(h("p", { class: "panel error", role: "alert" }, error.message));
  }
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href]");
  if (!link || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey) return;
  const url = new URL(link.href);
  const ours = /^\/(not-scored|sql|case\/.*|review(\/.*)?)?$/.test(url.pathname);
  if (url.origin !== location.origin || link.hasAttribute("download") || link.target || !ours || url.hash) return;
  event.preventDefault();
  go(url.pathname + url.search);
});
addEventListener("popstate", () => { if (!location.hash) show(false); });

async function begin() {
  try {
    about = await get("/api/about");
  } catch (error) {
    main.replaceChildren(h("p", { class: "panel error", role: "alert" }, error.message));
    return;
  }
  about.byName = Object.fromEntries(about.columns.map((c) => [c.name, c]));
  const scored = about.statuses.scored ?? 0;
  const all = Object.values(about.statuses).reduce((a, b) => a + b, 0);
  document.getElementById("run").textContent = `${about.name} · ${plural(all, "series", "series")}, ${count(scored)} scored`;
  document.getElementById("n-not-scored").textContent = count(all - scored);
  document.getElementById("to-review").hidden = !about.review;
  const weights = Object.values(about.made_with?.weights ?? {}).map((w) => w.name).join(", ");
  document.getElementById("foot").textContent =
    [`deepcac2 ${about.version}`, weights && `weights ${weights}`, "research use only, no diagnosis"]
      .filter(Boolean).join(" · ");
  show(false);
}

begin();
