// One series: the result, the pictures, and all that is written about it.

import { get } from "./api.js";
import { count, date, facts, h, mark, measured, number, shortUid, shown, table } from "./dom.js";
import { withValue } from "./filters.js";
import { kernelMark, kernelsOf, timeline } from "./timeline.js";

export async function caseView(content, { about, go }) {
  const uid = decodeURIComponent(location.pathname.slice("/case/".length));
  const base = `/api/cases/${encodeURIComponent(uid)}`;
  const found = await get(base);
  const { row, details } = found;
  document.title = `${row.patient_id || "Case"} · ${about.name}`;
  const around = new Around(base, go);
  content.append(
    heading(found, about, around.element),
    h("div", { class: "columns" },
      h("div", {}, pictures(found, about, base), lesions(details?.score, about), visits(found, about)),
      h("div", {}, notes(found), series(found), found.steps.map((one) => step(one, row, about)), rule(details), domain(details),
        clinical(found.clinical), made(details))));
  if (details) {
    content.append(h("details", { class: "panel" }, h("summary", {}, "details.json as it is"),
      h("pre", { class: "json", tabindex: "0" }, JSON.stringify(details, null, 2))));
  }
  return () => around.leave();
}

function panel(title, ...children) {
  return h("section", { class: "panel", "aria-label": title }, h("h3", {}, title), ...children);
}

/** What each step was run for, in large letters, with its groups beside it. */
function results({ row, steps }, about) {
  return steps.flatMap(({ columns }) => {
    const found = columns.map((name) => about.byName[name]).filter((c) => c.result);
    const badges = found.filter((c) => c.groups.length).map((c) => shown(c, row[c.name]));
    return found.filter((c) => !c.groups.length).map((c) => h("div", { class: "result" },
      h("span", { class: "quiet", title: c.meaning }, c.label), h("strong", {}, shown(c, row[c.name])), mark(row.caution), badges));
  });
}

function heading(found, about, around) {
  const { row, viewer } = found;
  const result = row.status === "scored" ? results(found, about)
    : [h("div", { class: "result" }, h("span", { class: `state ${row.status}` }, `${row.status}: ${row.code}`))];
  return h("section", { class: "panel case-head", "aria-label": "Result" },
    h("div", { class: "who" }, around,
      h("h2", {}, row.patient_id || "(no PatientID)"),
      h("p", { class: "quiet" }, [row.series_description, row.time_point, row.study_date && date(row.study_date)].filter(Boolean).join(" · "))),
    h("div", { class: "results-row" }, result, found.read.map((r) => h("div", { class: "result" },
      h("span", { class: "quiet", title: "signed by a person; the automatic result stays as it is" }, `Read by ${r.reader}`), h("strong", {}, number(r.score))))),
    h("div", { class: "actions" },
      about.review && ["scored", "unscored"].includes(row.status) ? h("a", { class: "button primary", href: `/review/${row.series_uid}` }, "Read") : null,
      viewer ? h("a", { class: "button primary", href: viewer, target: "_blank", rel: "noopener" }, "Open in viewer") : null,
      h("button", { type: "button", onclick: () => window.print() }, "Print")),
    downloads(found, about),
    row.reason ? h("p", { class: "reason" }, row.reason) : null,
    row.caution ? h("p", { class: "reason caution" }, row.caution) : null);
}

const MADE = { "cac.seg.dcm": "SEG", "cac.sr.dcm": "SR", "cac.pdf": "PDF", "cac.pdf.dcm": "DICOM PDF", "cac.sc.dcm": "Secondary Capture" };

/** What the run wrote for this series, to be taken along; what names the patient only where the server gives it. */
function downloads({ row, details, preview }, about) {
  const base = `/api/cases/${encodeURIComponent(row.series_uid)}`;
  const made = (details?.outputs ?? []).filter((name) => /^[^/]+\.(dcm|pdf)$/.test(name));
  const link = (text, href, name) => h("a", { href, download: name }, text);
  const words = made.map((name) => MADE[name] ?? name);
  const parts = [preview ? link("picture", `${base}/preview.png`, `${row.series_uid}.png`) : null,
    ...(about.files ? made.map((name, i) => link(words[i], `${base}/files/${encodeURIComponent(name)}`, name)) : [])].filter(Boolean);
  const kept = made.length && !about.files ? h("span", { class: "quiet" }, `${words.join(", ")}: with `, h("code", {}, "--show-phi"), ", as they name the patient") : null;
  if (!parts.length && !kept) return null;
  return h("p", { class: "downloads small screen" }, h("span", { class: "quiet" }, "Download"), parts, kept);
}

/** Back to the table as it was, and the cases before and after this one in it: the address says which table. */
class Around {
  constructor(base, go) {
    this.go = go;
    this.element = h("nav", { class: "around small screen", "aria-label": "Cases" });
    const query = new URLSearchParams(location.search);
    this.draw(query, null);
    this.asked = new AbortController();
    this.key = (event) => {
      const to = { ",": this.found?.before, ".": this.found?.after }[event.key];
      if (!to || event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input:not([type=range], [type=checkbox]), textarea, select")) return;
      this.go(this.to(to));
    };
    if (!location.search) return;
    document.addEventListener("keydown", this.key);
    get(`${base}/beside`, query, this.asked.signal).then((found) => {
      this.found = found;
      this.draw(query, found);
    }).catch(() => { /* a table that is none has no cases before and after */ });
  }

  to(uid) {
    return `/case/${encodeURIComponent(uid)}${location.search}`;
  }

  draw(query, found) {
    const size = Number(query.get("size")) || 50;
    const page = found ? Math.ceil(found.number / size) : 1;
    const back = found ? withValue(query, "page", page > 1 ? String(page) : "") : query;
    const link = (uid, text, key, rel) => (uid ? h("a", { href: this.to(uid), rel, title: `key ${key}` }, text) : h("span", { class: "quiet" }, text));
    this.element.replaceChildren(h("a", { href: `/?${back}` }, "‹ all cases"), ...(found ? [
      link(found.before, "case before", ",", "prev"), h("span", { class: "quiet" }, `${count(found.number)} of ${count(found.all)}`),
      link(found.after, "next case", ".", "next")] : []));
  }

  leave() {
    this.asked.abort();
    document.removeEventListener("keydown", this.key);
  }
}

function pictures(found, about, base) {
  const { row, preview } = found;
  const parts = [];
  if (preview) {
    const coloured = found.named.length ? "calcium in the colours below" : "counted calcium in red";
    parts.push(h("a", { href: `${base}/preview.png`, target: "_blank" },
      h("img", { class: "preview", src: `${base}/preview.png`, alt: `Slices with the largest lesions, outline of the heart in blue, ${coloured}` })));
  }
  const colours = (preview || about.slices) && found.named.length ? legend(found.named) : null;
  if (about.slices) parts.push(slider(base, colours));
  if (colours) parts.push(colours);
  const missing = [];
  if (!about.slices) missing.push(["Slice by slice: start the dashboard with ", h("code", {}, "--ct FOLDER"), ". "]);
  if (!about.viewer) missing.push(["Viewer: get its files with ", h("code", {}, "make viewer"), " in the checkout, and start with ", h("code", {}, "--ct FOLDER"), "."]);
  if (missing.length) parts.push(h("p", { class: "quiet small screen" }, ...missing.flat()));
  if (!preview && !about.slices) parts.unshift(h("p", { class: "quiet" }, `There is no picture of a ${row.status} series.`));
  return panel("Pictures", ...parts);
}

/** The colours of calcium by artery and of what was not counted, each with its score. */
function legend(named) {
  const rows = (counted) => named.filter((one) => one.counted === counted).map((one) => {
    const swatch = h("span", { class: "swatch", "aria-hidden": "true" });
    swatch.style.backgroundColor = one.colour;
    return h("li", { "data-class": one.name, hidden: !one.there }, swatch, one.name, h("span", { class: "num" }, number(one.score)));
  });
  return h("div", { class: "legend" },
    h("div", {}, h("h4", {}, "Counted, with its score"), h("ul", { class: "plain" }, rows(true))),
    h("div", {}, h("h4", {}, "Not counted, with the score it would have"), h("ul", { class: "plain" }, rows(false))));
}

/** The slices one by one, drawn by the server; the keys ← → move through them. */
function slider(base, colours) {
  const box = h("div", { class: "slices" });
  get(`${base}/slices`).then(({ count: n, counted, first, rising, instance, classes }) => {
    if (instance) for (const link of document.querySelectorAll("a[href^='/viewer?']")) link.href += `&slice=${encodeURIComponent(instance)}`;
    for (const row of colours?.querySelectorAll("li") ?? []) row.hidden &&= !classes.includes(row.dataset.class);
    const image = h("img", { class: "slice", alt: "" });
    const range = h("input", { type: "range", min: "0", max: String(n - 1), id: "slice" });
    range.value = String(first);
    const overlay = h("input", { type: "checkbox", id: "overlay" });
    overlay.checked = true;
    const words = h("output", { for: "slice" });
    let timer;
    const draw = () => {
      const i = Number(range.value);
      words.textContent = `slice ${count(rising ? i + 1 : n - i)} of ${count(n)}${counted.includes(i) ? ", with counted calcium" : ""}`;
      range.setAttribute("aria-valuetext", words.textContent);
      image.alt = `CT, ${words.textContent}`;
      clearTimeout(timer);
      timer = setTimeout(() => { image.src = `${base}/slices/${i}.png${overlay.checked ? "?overlay=1" : ""}`; }, 30);
    };
    const jump = (step) => {
      const now = Number(range.value);
      const next = step > 0 ? counted.find((i) => i > now) : counted.findLast((i) => i < now);
      if (next !== undefined) { range.value = String(next); draw(); }
    };
    range.addEventListener("input", draw);
    overlay.addEventListener("change", draw);
    box.append(image, h("div", { class: "bar" }, h("label", { for: "slice" }, "Slice"), range, words),
      h("div", { class: "bar" },
        h("label", { class: "choice" }, overlay, "heart and calcium"),
        h("button", { type: "button", disabled: !counted.length, onclick: () => jump(-1) }, "‹ with calcium"),
        h("button", { type: "button", disabled: !counted.length, onclick: () => jump(1) }, "with calcium ›")));
    draw();
  }).catch((error) => box.append(h("p", { class: "quiet" }, error.message)));
  return box;
}

function notes({ row, details, meanings }) {
  const warnings = details?.warnings?.length ? details.warnings
    : row.warnings.split(";").filter(Boolean).map((code) => ({ code, message: meanings[code] ?? "" }));
  if (!warnings.length) return null;
  return panel("Warnings", h("ul", { class: "plain" }, warnings.map((w) =>
    h("li", {}, h("span", { class: "tag", title: meanings[w.code] }, w.code), " ", w.message))));
}

function series({ row, details, segmentation }) {
  const s = details?.series ?? {};
  const g = details?.geometry;
  return panel("Series", facts([
    ["Age", row.patient_age === null ? "" : `${row.patient_age} years`], ["Sex", row.patient_sex],
    ["Manufacturer", row.manufacturer], ["Model", row.model_name], ["Kernel", row.kernel], ["Tube voltage", row.kvp && `${number(row.kvp)} kV`],
    ["Slice thickness", row.slice_thickness && `${number(row.slice_thickness, 2)} mm`], ["Increment", row.increment && `${number(row.increment, 2)} mm`],
    ["Slices", row.n_slices ? count(row.n_slices) : ""],
    ["Matrix", g ? `${g.shape[2]} × ${g.shape[1]}, pixels of ${number(g.spacing[2], 3)} mm` : ""],
    ["Gantry tilt", s.gantry_tilt ? `${number(s.gantry_tilt)}°` : ""],
    ["Contrast agent", s.contrast_agent || row.contrast], ["Contrast route", s.contrast_route],
    ["Time point", row.time_point && `${row.time_point}${{ order: " (by date in this table)", clinical: " (clinical table)" }[row.time_point_from] ?? ""}`],
    ["Images left out", s.left_out?.length ? count(s.left_out.length) : ""],
    ["Series UID", uidText(row.series_uid)], ["Study UID", uidText(row.study_uid)], ["Segmentation UID", segmentation ? uidText(segmentation) : ""],
  ]));
}

function uidText(uid) {
  return h("span", { class: "uid" }, uid);
}

/** What a step found: its columns, and what its sections of the details say beyond them. */
function step({ title, module, columns, sections }, row, about) {
  const values = columns.map((name) => {
    const column = about.byName[name];
    return [column.label, h("span", {}, shown(column, row[name]), column.unit ? ` ${column.unit}` : ""), column.meaning];
  });
  const more = Object.values(sections).flatMap((content) => entries(content, columns));
  const box = panel(title, facts([...values, ...more]));
  box.dataset.module = module;
  return box;
}

const UNITS = { hu: "HU", kv: "kV", mg: "mg", ml: "mL", mm: "mm", mm2: "mm²", mm3: "mm³", lps: "mm (LPS)" };

/** A name of the details in words, and the unit that it ends in. */
function words(name) {
  const [, stem, unit] = /^(.+)_(hu|kv|mg|ml|mm[23]?|lps)$/.exec(name) ?? [null, name, ""];
  return [stem.replaceAll("_", " "), UNITS[unit] ?? ""];
}

/** Names and values of a section, those within values, too. */
function entries(content, known = [], before = "") {
  if (content === null || typeof content !== "object") return [[before, plain(content, "")]];
  return Object.entries(content).filter(([name]) => !known.includes(name)).flatMap(([name, value]) => {
    const [label, unit] = words(name);
    if (value !== null && typeof value === "object" && !Array.isArray(value)) return entries(value, [], `${before}${label}: `);
    return [[before + label, plain(value, unit)]];
  });
}

const SHORT = 6;

/** A value of the details: long lists are folded. */
function plain(value, unit) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (Array.isArray(value)) {
    const list = value.map((v) => (typeof v === "number" ? measured(v) : typeof v === "object" ? JSON.stringify(v) : String(v))).join(", ");
    return value.length <= SHORT ? `${list} ${unit}`.trim()
      : h("details", {}, h("summary", {}, `${count(value.length)} values`), `${list} ${unit}`.trim());
  }
  return typeof value === "number" ? `${measured(value)} ${unit}`.trim() : String(value);
}

/** The scoring rule with its numbers. */
function rule(details) {
  const s = details?.score;
  if (!s) return null;
  const p = s.parameters ?? {};
  return panel("Rule", facts([
    ["Rule", `${s.rule}: ${p.summary ?? ""}`], ["Counted voxels", count(s.n_counted)],
    ["Threshold", p.threshold && `${p.threshold} HU`],
    ["Weights by HU", p.weights?.map(([hu, w]) => `from ${hu}: ${w}`).join(", ")],
    ["Factor for thickness", number(p.thickness_factor, 3)],
  ]));
}

/** Moves the slider of the slices, where there is one. */
function showSlice(index) {
  const range = document.getElementById("slice");
  if (!range) return;
  range.value = String(index);
  range.dispatchEvent(new Event("input"));
  range.closest(".slices").scrollIntoView({ block: "nearest" });
  range.focus({ preventScroll: true });
}

function lesions(found, about) {
  if (!found?.lesions?.length) return null;
  const middle = ([first, last]) => Math.round((first + last) / 2);
  const link = (l) => h("button", { type: "button", class: "link", title: "show its slice", onclick: () => showSlice(middle(l.slice_indices ?? l.slices)) }, count(l.index));
  const rows = [...found.lesions].sort((a, b) => b.score - a.score).map((l) => [
    about.slices ? link(l) : count(l.index), number(l.score, 1), number(l.volume_mm3, 1), number(l.area_mm2, 1), number(l.max_hu, 0), number(l.mean_hu, 0),
    [...new Set(l.slice_numbers)].join("–"), l.weights.join(", "),
    l.centroid_lps.map((v) => number(v, 0)).join(", ")]);
  return panel("Lesions", table("Lesions, the largest score first", [
    { label: "No.", number: true }, { label: "Score", number: true }, { label: "Volume, mm³", number: true }, { label: "Area, mm²", number: true },
    { label: "Max. HU", number: true }, { label: "Mean HU", number: true }, { label: "Slices", keep: true }, { label: "Weights" }, { label: "Centre (LPS), mm", keep: true }], rows));
}

function domain(details) {
  const d = details?.domain;
  if (!d) return null;
  const roles = Object.keys(d.weights ?? {});
  const key = { kernel: "kernels" };
  const range = (v) => (Array.isArray(v) && typeof v[0] === "number" ? v.map(measured).join("–") : plain(v, ""));
  const rows = Object.entries(d.scan).map(([name, value]) => {
    const [label, unit] = name === "kvp" ? ["tube voltage", "kV"] : words(name);
    return [label, value === null ? "–" : plain(value, unit), ...roles.map((role) => range(d.weights[role].domain?.[key[name] ?? name]))];
  });
  const outside = Object.keys(d.outside ?? {});
  return panel("Like what the weights know?",
    h("p", {}, outside.length ? `Unlike in: ${outside.join(", ")}.` : "Inside in all that the weights state."),
    table("The scan beside what the weights were trained on",
      [{ label: "Property" }, { label: "This scan" }, ...roles.map((role) => ({ label: `${role} weights` }))], rows));
}

function clinical(values) {
  const names = Object.keys(values);
  return names.length ? panel("Clinical table", facts(names.map((n) => [n, values[n] === null ? "–" : String(values[n])]))) : null;
}

function made(details) {
  const p = details?.provenance;
  if (!p) return null;
  const seconds = Object.entries(details.seconds ?? {});
  return panel("How it was made", facts([
    ["deepcac2", p.deepcac2], ["Workflow", `${p.workflow} (${p.workflow_fingerprint})`], ["Device", p.device ?? ""],
    ["Gates allowed", p.allowed_gates?.length ? p.allowed_gates.join(", ") : "none"],
    ...Object.entries(p.weights ?? {}).map(([role, w]) => [`Weights, ${role}`, h("span", {}, w.name, " ", h("span", { class: "uid quiet", title: w.sha256 }, `sha256 ${w.sha256.slice(0, 16)}…`))]),
    ["Time", seconds.length ? `${number(seconds.reduce((a, [, s]) => a + s, 0), 1)} s: ${seconds.map(([n, s]) => `${n} ${number(s, 2)}`).join(", ")}` : ""],
  ]));
}

/** All series of the patient by date, this one marked, and their results over time. */
function visits({ row: own, others }, about) {
  if (!others.length) return null;
  const rows = [...others, own].sort((a, b) => a.study_date.localeCompare(b.study_date) || a.series_uid.localeCompare(b.series_uid));
  const found = about.results.map((name) => about.byName[name]);
  const kernels = kernelsOf(rows);
  const charts = found.filter((c) => !c.groups.length).map((c) => [c, timeline(c, rows, own.series_uid)]).filter(([, chart]) => chart);
  const kernel = (r) => {
    if (!charts.length) return r.kernel || "–";
    const picture = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    for (const [name, value] of [["class", "key"], ["viewBox", "0 0 14 14"], ["aria-hidden", "true"]]) picture.setAttribute(name, value);
    picture.append(kernelMark(kernels, r.kernel));
    return h("span", { class: "keep" }, picture, " ", r.kernel || "–");
  };
  const name = (r) => r.series_description || shortUid(r.series_uid);
  return panel("Visits of this patient",
    charts.map(([c, chart]) => h("figure", {}, h("figcaption", {}, `${c.label} by date of the study`, c.unit ? `, ${c.unit}` : ""), chart)),
    charts.length ? h("p", { class: "quiet small" }, "One line a kernel; the ring is this series. Scores of different kernels or scanners are no course of the disease.") : null,
    table("All series of this patient",
      [{ label: "Date", keep: true }, ...found.map((c) => ({ label: c.label, number: !c.groups.length })), { label: "Kernel" }, { label: "Series" }],
      rows.map((r) => [h("span", {}, date(r.study_date), h("span", { class: "quiet" }, r.time_point ? ` ${r.time_point}` : "")),
        ...found.map((c, i) => (r.status === "scored" || i ? h("span", {}, shown(c, r[c.name]), " ", c.groups.length || r[c.name] === null ? null : mark(r.caution))
          : h("span", { class: `state ${r.status}` }, `${r.status}: ${r.code}`))),
        kernel(r), h("span", { class: "series" }, r === own ? h("b", { "aria-current": "true" }, `${name(r)} (this one)`)
          : h("a", { href: `/case/${encodeURIComponent(r.series_uid)}${location.search}` }, name(r)))])));
}
