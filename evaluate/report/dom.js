// Elements and figures. Text of the data only ever becomes a text node: nothing is read as HTML.

const SVG_NAMES = document.querySelector("svg").namespaceURI;

/** An HTML element; children are elements or text, and null ones are left out. */
function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same of SVG. */
function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG_NAMES, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(2).filter((child) => child !== null && child !== undefined));
  return element;
}

const byId = (id) => document.getElementById(id);

/** A figure with a fixed number of decimals; a dash where there is none. */
function decimals(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** A figure with some significant digits, for values of any size. */
function significant(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(digits - 1);
  return value.toLocaleString("en", { maximumSignificantDigits: size >= 1000 ? 7 : digits });
}

const PERCENT = "\u00a0%"; // never at the start of a line

function percent(value, digits = 1) {
  return value === null || value === undefined ? "–" : `${decimals(100 * value, digits)}${PERCENT}`;
}

/** A small share, such as a latent's density: three digits, however small. */
function share(value) {
  return value === null || value === undefined ? "–" : `${significant(100 * value, 3)}${PERCENT}`;
}

const count = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en"));

/** The interval of an estimate, in words; empty where it has none. */
function interval(estimate, show) {
  if (estimate.low === null || estimate.low === undefined) return "";
  return `${show(estimate.low)} to ${show(estimate.high)}`;
}

/** `zero_ablated` as people write it. */
const words = (name) => name.replaceAll("_", " ");

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** A heading, and under it what the figures are. */
function heading(title, note) {
  return [el("h2", {}, title), note ? el("p", { class: "note" }, note) : null];
}

/** A table that scrolls sideways on a narrow screen. Cells are text or elements; `texts` are the columns without numbers. */
function table(caption, head, rows, texts = [0]) {
  const isText = (column) => texts.includes(column);
  const cell = (content, column) =>
    column === 0
      ? el("th", { scope: "row" }, content)
      : el("td", { class: isText(column) ? null : "number" }, content);
  const body = el("table", {},
    el("caption", { class: "unseen" }, caption),
    el("thead", {}, el("tr", {}, head.map((name, column) =>
      el("th", { scope: "col", class: isText(column) ? null : "number" }, name)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map(cell)))));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, body);
}

/** A figure for the eye, and the same as a table for whoever wants numbers. */
function figure(title, note, chart, head, rows) {
  return el("figure", {},
    el("figcaption", {}, el("strong", {}, title), note ? el("span", {}, note) : null),
    chart,
    el("details", { class: "numbers" }, el("summary", {}, "As a table"), table(title, head, rows)));
}

/** Names and values. */
function pairs(entries) {
  return el("dl", { class: "pairs" }, entries.map(([name, value]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}
