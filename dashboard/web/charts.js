// The charts: Vega-Lite where its files are there, and always the same numbers as a table.

import { count, h, level, number, save } from "./dom.js";
import { chosen, toggled, valueText } from "./filters.js";

const FILES = ["vega.min.js", "vega-lite.min.js", "vega-embed.min.js", "vega-interpreter.min.js"];
const PRINT_SCALE = 4;  // 480 points wide at 300 dpi and more
const LEGEND = 4;  // names beside one another
const SERIES_COLOURS = [1, 2, 3, 4, 5, 6].map((n) => `var(--series-${n})`);
let loaded;

/** Vega's files one after the other, once. */
function load() {
  loaded ??= FILES.reduce((before, name) => before.then(() => new Promise((done, failed) => {
    const script = h("script", { src: `/assets/${name}` });
    script.onload = done;
    script.onerror = () => failed(new Error(`${name} cannot be loaded`));
    document.head.append(script);
  })), Promise.resolve());
  return loaded;
}

// Colours are variables of the style sheet: a chart follows the theme, and is printed dark on white.
const CONFIG = {
  background: null,
  font: "system-ui, sans-serif",
  view: { stroke: null },
  axis: {
    labelColor: "var(--quiet)", titleColor: "var(--quiet)", titleFontWeight: "normal", labelFontSize: 11, titleFontSize: 11,
    gridColor: "var(--line)", domainColor: "var(--line-strong)", tickColor: "var(--line-strong)", labelLimit: 120,
  },
  legend: { labelColor: "var(--ink)", titleColor: "var(--quiet)", titleFontWeight: "normal", labelFontSize: 11, titleFontSize: 11 },
  bar: { color: "var(--series-1)", cursor: "pointer" },
};

/** A chart's description with the colours of the light page in place of their names, on white. */
function lightColours(spec) {
  const { dataset } = document.documentElement;
  const { theme } = dataset;
  dataset.theme = "light";
  const colours = getComputedStyle(document.documentElement);
  const text = JSON.stringify({ ...spec, config: { ...spec.config, background: "white" } }).replaceAll(/var\((--[\w-]+)\)/g, (_, name) => colours.getPropertyValue(name).trim());
  dataset.theme = theme;
  return JSON.parse(text);
}

/** What each chart shows. `spec` gets its rows; `filters` says which filters a click on a bar sets. */
function kinds(about) {
  const scale = (groups) => ({ domain: groups.map((g, i) => `${i} ${g}`), range: groups.map((_, i) => `var(--risk-${level(i, groups)})`) });
  const order = (rows, field = "label") => [...new Set(rows.map((r) => r[field]))];
  const bars = (rows, title, extra = {}) => ({
    mark: { type: "bar", cornerRadiusEnd: 2 },
    encoding: {
      x: { field: "label", type: "nominal", sort: order(rows), title: null, axis: { labelAngle: rows.length > 6 ? -45 : 0 },
        scale: { paddingInner: 0.15, paddingOuter: rows.length < 4 ? 1 : 0.1 } },
      y: { field: "n", type: "quantitative", title, axis: { tickMinStep: 1, tickCount: 4 } },
      tooltip: [{ field: "label", title: "value" }, { field: "n", title: "series", format: "," }],
      ...extra,
    },
  });
  const text = (name, value) => valueText(name, value, about);
  const counts = (name, title, of, encoding) => ({
    key: name, title, of, left: (d) => d.counts[name]?.left,
    rows: (d) => (d.counts[name]?.rows ?? []).map((r) => ({ ...r, label: text(name, r.value) })),
    filters: { [name]: "value" }, columns: [[title, "label"], ["Series", "n"]], spec: (rows) => bars(rows, "series", encoding),
  });
  const byTime = ({ name, label, groups }) => ({
    key: `${name}-by-time`, title: `${label} across time points`, of: `share of each ${label.toLowerCase()} at each time point`,
    rows: (d) => (d.by_time[name] ?? []).map((r) => ({ ...r, label: text("time_point", r.time_point), group: text(name, r.value) })),
    filters: { time_point: "time_point", [name]: "value" },
    columns: [["Time point", "label"], [label, "group"], ["Series", "n"]],
    spec: (rows) => ({
      mark: { type: "bar" },
      encoding: {
        y: { field: "label", type: "nominal", sort: order(rows), title: null },
        x: { field: "n", type: "quantitative", stack: "normalize", title: "share of series", axis: { format: "%", tickCount: 5 } },
        color: { field: "group", scale: scale(groups), sort: scale(groups).domain, legend: { title: null, orient: "bottom", columns: 2 } },
        order: { field: "value", type: "ordinal" },
        tooltip: [{ field: "label", title: "time point" }, { field: "group", title: label.toLowerCase() }, { field: "n", title: "series", format: "," }],
      },
    }),
  });
  const means = ({ name, label }) => ({
    key: `${name}-mean`, title: `${label}: mean by kernel and time`, of: `mean ${label} by kernel and time point`,
    left: (d) => d.means[name]?.left,
    rows: (d) => (d.means[name]?.rows ?? []).map((r) => ({ ...r, label: text("kernel", r.kernel), time: text("time_point", r.time_point) })),
    filters: { kernel: "kernel", time_point: "time_point" },
    columns: [["Kernel", "label"], ["Time point", "time"], ["Mean", "mean"], ["Median", "median"], ["Series", "n"]],
    spec: (rows) => {
      const times = order(rows, "time").sort(new Intl.Collator("en", { numeric: true }).compare);
      const one = times.length < 2;
      return {
        mark: { type: "bar", cornerRadiusEnd: 2 },
        encoding: {
          x: { field: "label", type: "nominal", sort: order(rows), title: null, axis: { labelAngle: order(rows).length > 6 ? -45 : 0 } },
          xOffset: one ? undefined : { field: "time", sort: times },
          y: { field: "mean", type: "quantitative", title: "mean", axis: { tickCount: 5 } },
          color: one ? undefined : { field: "time", sort: times, scale: { domain: times, range: SERIES_COLOURS },
            legend: { title: null, orient: "bottom", columns: LEGEND } },
          tooltip: [{ field: "label", title: "kernel" }, { field: "time", title: "time point" },
            { field: "mean", title: "mean", format: ",.1f" }, { field: "median", title: "median", format: ",.1f" },
            { field: "n", title: "series", format: "," }],
        },
      };
    },
  });
  const found = about.results.map((name) => about.byName[name]);
  const groups = found.filter((c) => c.groups.length);
  const classed = found.filter((c) => c.classes);
  return [
    ...groups.map((c) => counts(c.name, c.label, `series by ${c.label.toLowerCase()}`, { color: { field: "label", scale: scale(c.groups), legend: null } })),
    ...classed.map((c) => counts(c.classes, c.label, `series by ${c.label}`)),
    ...groups.map(byTime),
    counts("kernel", "Kernel", "series by reconstruction kernel"),
    counts("time_point", "Time point", "series by time point"),
    ...classed.map(means),
  ];
}

export class Charts {
  constructor(about, query, change) {
    this.about = about;
    this.query = query;
    this.change = change;
    this.views = new Map();
    this.element = h("section", { class: "charts", "aria-label": "Charts of the selection" });
    if (!about.charts) {
      this.element.append(h("p", { class: "panel quiet" },
        "Charts need Vega-Lite's files, which are not here: ", h("code", {}, "make viewer"),
        " in the checkout gets them. Their numbers are there all the same:"));
    }
    this.grid = h("div", { class: "grid" });
    this.element.append(this.grid);
    this.drawn = new Map();
    this.kinds = kinds(about).map((kind) => {
      const canvas = h("div", { class: "canvas", "aria-hidden": "true" });  // Vega gives it roles of its own
      const plot = h("div", { class: "plot", role: "img" }, canvas);
      const numbers = h("div");
      const note = h("p", { class: "quiet small" });
      const details = h("details", {}, h("summary", {}, "Numbers"), numbers);
      const file = (format) => h("button", { type: "button", class: "link", "aria-label": `${kind.title} as ${format.toUpperCase()}`,
        onclick: (event) => this.save(kind.key, format, event.currentTarget) }, format.toUpperCase());
      const files = about.charts ? h("p", { class: "files quiet small" }, file("png"), file("svg")) : null;
      const figure = h("figure", { class: "panel", "data-chart": kind.key },
        h("figcaption", {}, kind.title), about.charts ? plot : null, note, h("div", { class: "under" }, details, files));
      this.grid.append(figure);
      return { ...kind, figure, plot, canvas, numbers, note };
    });
  }

  async update(numbers) {
    const vega = this.about.charts && (await load(), window.vegaEmbed);
    const any = this.kinds.map((kind) => this.draw(kind, numbers, vega));
    await Promise.all(any);
  }

  async draw(kind, numbers, vega) {
    const rows = kind.rows(numbers);
    kind.figure.classList.toggle("none", !rows.length);
    const left = kind.left?.(numbers) ?? 0;
    kind.note.textContent = !rows.length ? "Nothing of it in the selection." : left ? `and ${count(left)} rarer ${left === 1 ? "one" : "ones"}` : "";
    this.list(kind, rows);
    if (!vega) return;
    kind.plot.setAttribute("aria-label", `Bar chart, ${kind.of}: ${summary(kind, rows)}. The numbers are below.`);
    this.views.get(kind.key)?.finalize();
    this.views.delete(kind.key);
    this.drawn.delete(kind.key);
    if (!rows.length) {
      kind.canvas.replaceChildren();
      return;
    }
    const spec = { ...kind.spec(rows), data: { values: rows }, width: "container", height: tall(kind, rows),
      autosize: { type: "fit", contains: "padding" }, config: CONFIG };
    const done = await vega(kind.canvas, spec, {
      mode: "vega-lite", actions: false, renderer: "svg", ast: true, expr: window.vega.expressionInterpreter,
      defaultStyle: false, tooltip: { disableDefaultStyle: true, theme: "ours" },
    });
    this.views.set(kind.key, done);
    const subtitle = lines(chosen(this.query(), this.about).map((c) => c.text));
    this.drawn.set(kind.key, { ...spec, width: 480, height: spec.height + 24 + 14 * subtitle.length,
      title: { text: kind.title, subtitle, anchor: "start" } });
    done.view.addEventListener("click", (event, item) => { if (item?.datum) this.pick(kind, item.datum); });
  }

  /** A chart as a file: dark on white, with what is selected, whatever the page looks like. */
  async save(key, format, button) {
    const spec = this.drawn.get(key);
    if (!spec) return;
    const { vega, vegaLite } = window;
    const runtime = vega.parse(vegaLite.compile(lightColours(spec)).spec, null, { ast: true });
    const view = new vega.View(runtime, { renderer: "none", expr: vega.expressionInterpreter });
    button.disabled = true;
    const content = format === "svg" ? new Blob([await view.toSVG()], { type: "image/svg+xml" })
      : await view.toCanvas(PRINT_SCALE).then((canvas) => new Promise((done) => { canvas.toBlob(done, "image/png"); }));
    view.finalize();
    button.disabled = false;
    save(content, `deepcac2-${key}.${format}`);
  }

  pick(kind, row) {
    let next = this.query();
    const pairs = Object.entries(kind.filters);
    const all = pairs.every(([name, field]) => next.getAll(name).includes(row[field]));
    for (const [name, field] of pairs) {
      if (next.getAll(name).includes(row[field]) === all) next = toggled(next, name, row[field]);
    }
    this.change(next);
  }

  /** The numbers as a table; its first cell sets the filter, for those who do not click on bars. */
  list(kind, rows) {
    const numeric = ([, field]) => ["n", "mean", "median"].includes(field);
    kind.numbers.replaceChildren(h("table", { class: "numbers" },
      h("caption", { class: "hidden" }, kind.of),
      h("thead", {}, h("tr", {}, kind.columns.map((c) => h("th", { scope: "col", class: numeric(c) && "num" }, c[0])))),
      h("tbody", {}, rows.map((row) => h("tr", {}, kind.columns.map((c, i) => h(i ? "td" : "th",
        { scope: i ? null : "row", class: numeric(c) && "num" },
        i ? (numeric(c) ? number(row[c[1]], 1) : row[c[1]])
          : h("button", { type: "button", class: "link", onclick: () => this.pick(kind, row) }, row[c[1]]))))))));
  }

  leave() {
    for (const view of this.views.values()) view.finalize();
    this.views.clear();
  }
}

/** Words joined to lines of some 80 letters. */
function lines(words) {
  const found = [];
  for (const word of words) {
    if (found.length && found.at(-1).length + word.length < 78) found[found.length - 1] += ` · ${word}`;
    else found.push(word);
  }
  return found;
}

/** Height of a chart: names that stand askew and a legend take their part, and the plot keeps its own. */
function tall(kind, rows) {
  const names = [...new Set(rows.map((r) => r.label))];
  const askew = kind.key.endsWith("-by-time") ? 0 : names.length > 6 ? Math.min(90, 12 + 5 * Math.max(...names.map((n) => String(n).length))) : 0;
  const times = kind.key.endsWith("-mean") ? new Set(rows.map((r) => r.time)).size : 0;
  const legend = times > 1 ? 16 + 14 * Math.ceil(times / LEGEND) : 0;
  return 168 + askew + legend;
}

function summary(kind, rows) {
  const value = kind.columns.at(-1)[1];
  const words = rows.slice(0, 12).map((r) => `${kind.columns.slice(0, -1).map((c) =>
    (typeof r[c[1]] === "number" ? number(r[c[1]], 1) : r[c[1]])).join(", ")}: ${count(r[value])}`);
  return words.join("; ") + (rows.length > 12 ? "; and more" : "");
}
