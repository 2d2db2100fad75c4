// Elements without any text ever taken for markup, and numbers as people read them.

/** An element: h("p", {class: "quiet", onclick: f}, "text", child, …); null and undefined are left out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== false));
  return element;
}

const whole = new Intl.NumberFormat("en");

export function count(n) {
  return whole.format(n);
}

export function plural(n, one, many = `${one}s`) {
  return `${count(n)} ${n === 1 ? one : many}`;
}

/** A number with so many digits after the point at most; "–" where there is none. */
export function number(value, digits = 1) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  return new Intl.NumberFormat("en", { maximumFractionDigits: digits }).format(value);
}

/** 20000102 as 2000-01-02. */
export function date(text) {
  return /^\d{8}$/.test(text ?? "") ? `${text.slice(0, 4)}-${text.slice(4, 6)}-${text.slice(6)}` : text || "–";
}

/** The end of a UID, which tells one from another. */
export function shortUid(uid) {
  return uid.length > 12 ? `…${uid.slice(-10)}` : uid;
}

/** A table of words with a heading for each column; cells may be elements. */
export function table(caption, columns, rows, attributes = {}) {
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", attributes,
      h("caption", { class: "hidden" }, caption),
      h("thead", {}, h("tr", {}, columns.map((c) => h("th", { scope: "col", class: c.number && "num" }, c.label)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, i) =>
        h("td", { class: columns[i].number ? "num" : columns[i].keep && "keep" }, cell ?? "–")))))));
}

/** Names and values, one beside the other, each name with what it means when asked. */
export function facts(pairs) {
  return h("dl", { class: "facts" }, pairs
    .filter(([, value]) => value !== undefined && value !== "")
    .map(([name, value, meaning]) => h("div", {}, h("dt", { title: meaning }, name), h("dd", {}, value ?? "–"))));
}

/** A mark beside a result that needs a caution, which it says when asked; nothing where there is none. */
export function mark(caution) {
  return caution ? h("span", { class: "mark", role: "img", title: caution, "aria-label": `caution: ${caution}` }, "!") : null;
}

/** Which of the colours a group has, from the lowest to the highest: four, or five where there are more groups. */
export function level(group, groups) {
  const highest = groups.length > 4 ? 4 : 3;
  return Math.max(0, Math.min(highest, Math.round((highest * group) / Math.max(1, groups.length - 1))));
}

function badge(group, groups) {
  return h("span", { class: `badge risk-${level(group, groups)}` }, h("span", { "aria-hidden": "true", class: "dot" }),
    `${group} ${groups[group] ?? ""}`.trim());
}

/** A number as it is read: of small ones three digits that count. */
export function measured(value) {
  if (Number.isInteger(value) || Math.abs(value) >= 10) return number(value, 1);
  return new Intl.NumberFormat("en", { maximumSignificantDigits: 3 }).format(value);
}

/** A value of a column in words: a group with its name, yes or no, a number. */
export function shown(column, value) {
  if (value === null || value === undefined || value === "") return "–";
  if (column.groups.length) return badge(value, column.groups);
  if (column.kind === "bool") return value ? "yes" : "no";
  return typeof value === "number" ? measured(value) : String(value);
}

/** Hand a file to the person at the browser. */
export function save(content, name) {
  const address = URL.createObjectURL(content);
  h("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
