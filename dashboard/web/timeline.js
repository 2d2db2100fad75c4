// The studies of one patient over time: a small chart of each result, drawn here, for it needs no more than lines and dots.

import { date, measured } from "./dom.js";

const [WIDTH, HEIGHT] = [560, 190];
const [LEFT, RIGHT, TOP, BOTTOM] = [62, 16, 14, 26];
const DAY = 86_400_000;
const MARKS = 6;

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function day(text) {
  const [, y, m, d] = /^(\d{4})(\d\d)(\d\d)$/.exec(text ?? "") ?? [];
  return y ? Date.UTC(y, m - 1, d) / DAY : null;
}

/** A round number that is not below a value. */
function above(value) {
  const ten = 10 ** Math.floor(Math.log10(value || 1));
  return [1, 2, 2.5, 5, 10].map((n) => n * ten).find((n) => n >= value);
}

/** Names of kernels in the order of their colours: those with most studies first. */
export function kernelsOf(rows) {
  const n = {};
  for (const { kernel } of rows) n[kernel] = (n[kernel] ?? 0) + 1;
  return Object.keys(n).sort((a, b) => n[b] - n[a] || a.localeCompare(b));
}

/** The mark of a kernel: a shape and a colour. */
export function kernelMark(kernels, kernel, x = 7, y = 7, more = {}) {
  const nr = Math.min(kernels.indexOf(kernel), MARKS - 1);
  const path = ["M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z", "M-4,-4h8v8h-8z", "M0,-5l5,5l-5,5l-5,-5z", "M0,-5l5,9h-10z", "M0,5l5,-9h-10z",
    "M-5,-1.5h3.5v-3.5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5z"][nr];
  return svg("path", { d: path, transform: `translate(${x} ${y})`, class: `mark-${nr + 1}`, ...more });
}

/** A column over the dates of the studies, one line a kernel: scores of different kernels are not one course.
 *  Null where there are fewer than two dates with a value. */
export function timeline(column, rows, own) {
  const points = rows.map((row) => ({ row, x: day(row.study_date), y: row[column.name] })).filter((p) => p.x !== null && p.y !== null && p.y !== undefined);
  const dates = [...new Set(points.map((p) => p.x))].sort((a, b) => a - b);
  if (dates.length < 2) return null;
  const kernels = kernelsOf(rows);
  const top = above(Math.max(...points.map((p) => p.y)));
  const [first, last] = [dates[0], dates.at(-1)];
  const x = (d) => LEFT + 10 + ((d - first) / (last - first)) * (WIDTH - LEFT - RIGHT - 40);
  const y = (v) => HEIGHT - BOTTOM - (v / top) * (HEIGHT - TOP - BOTTOM);
  const parts = [0, top / 2, top].flatMap((v) => [
    svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(v), y2: y(v), class: "grid-line" }),
    svg("text", { x: LEFT - 6, y: y(v) + 4, "text-anchor": "end" }, measured(v))]);
  let free = -Infinity;
  for (const d of dates) {
    if (x(d) < free) continue;
    free = x(d) + 110;
    const [anchor, dx] = d === first ? ["start", -10] : d === last ? ["end", 34] : ["middle", 0];
    parts.push(svg("text", { x: x(d), y: HEIGHT - 8, "text-anchor": anchor, dx }, date(rows.find((r) => day(r.study_date) === d).study_date)));
  }
  for (const kernel of kernels) {
    const course = points.filter((p) => p.row.kernel === kernel).sort((a, b) => a.x - b.x);
    const nr = Math.min(kernels.indexOf(kernel), MARKS - 1) + 1;
    if (course.length > 1) parts.push(svg("polyline", { points: course.map((p) => `${x(p.x)},${y(p.y)}`).join(" "), class: `course course-${nr}` }));
  }
  for (const p of [...points].sort((a, b) => (a.row.series_uid === own) - (b.row.series_uid === own))) {  // this one on top
    const mark = kernelMark(kernels, p.row.kernel, x(p.x), y(p.y));
    mark.append(svg("title", {}, `${date(p.row.study_date)}, ${p.row.kernel || "kernel not known"}: ${measured(p.y)}`));
    if (p.row.series_uid === own) parts.push(svg("circle", { cx: x(p.x), cy: y(p.y), r: 8, class: "own" }));
    parts.push(mark);
  }
  const said = [...points].sort((a, b) => a.x - b.x).map((p) => `${date(p.row.study_date)} ${p.row.kernel} ${measured(p.y)}`).join("; ");
  return svg("svg", { class: "timeline", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${column.label} over time: ${said}` }, ...parts);
}
