// Several SAEs: sparsity against fidelity, and a table that can be sorted.

const scoreOf = (ablation) => (result) => result.scores[ablation]?.ratio_of_sums ?? { value: null, low: null, high: null };
const bare = (value) => ({ value, low: null, high: null });

const FIDELITY = {
  zero: { name: "Score against zero ablation", of: scoreOf("zero"), up: true },
  mean: { name: "Score against mean ablation", of: scoreOf("mean"), up: true },
  loss: { name: "Loss increase, nats", of: (result) => result.loss_increase, up: false },
  kl: { name: "KL divergence, nats", of: (result) => result.kl, up: false },
  fvu: { name: "FVU", of: (result) => bare(result.reconstructions[0]?.fvu ?? null), up: false },
};

let fidelity = "zero";

/** The focus goes along to the point or the row of the SAE that was chosen by it. */
let focusNext = null;

function followFocus() {
  if (focusNext) byId(focusNext)?.focus({ preventScroll: true });
  focusNext = null;
}

function showComparison(results, notes, chosen, select) {
  const section = byId("comparison");
  const choice = el("select", { onchange: (event) => { fidelity = event.target.value; draw(); } },
    Object.entries(FIDELITY).map(([key, { name }]) => el("option", { value: key }, name)));
  const place = el("div");
  const draw = () => place.replaceChildren(frontier(results, FIDELITY[fidelity], chosen, select));
  choice.value = fidelity;
  section.replaceChildren(
    ...heading("Sparsity against fidelity", "Each point is an SAE; the line joins those that no other one beats at both. Choose a point to see that SAE on this page."),
    ...notes.map((note) => el("p", { class: "warning" }, note)),
    el("p", {}, el("label", {}, "Fidelity ", choice)),
    place,
    comparisonTable(results, chosen, select));
  draw();
}

/** The SAEs that no other one beats at both, by L0. */
function unbeaten(points, up) {
  const sign = up ? 1 : -1;
  return points
    .filter((point) => !points.some((other) => other !== point && other.x <= point.x && sign * other.y >= sign * point.y
      && (other.x < point.x || sign * other.y > sign * point.y)))
    .sort((a, b) => a.x - b.x);
}

function frontier(results, measure, chosen, select) {
  const points = results
    .map((result, at) => ({ result, at, x: result.sparsity.l0, estimate: measure.of(result), y: measure.of(result).value }))
    .filter((point) => point.y !== null && point.x > 0);
  const kinds = [...new Set(results.map((result) => result.architecture))];
  const key = kinds.length < 2 ? null : el("p", { class: "legend" }, kinds.map((kind, at) => el("span", { class: `key k-${at % 6}` }, el("i", { "aria-hidden": "true" }), kind)));
  if (!points.length) return el("p", { class: "note" }, "None of the SAEs has this figure.");
  const plot = chart((width) => {
    const box = { left: 64, right: width - 18, top: 14, bottom: 316 };
    const root = canvas(width, 360, `${measure.name} by L0`);
    root.setAttribute("role", "group");
    const [least, most] = extentOf(points.map((point) => point.x));
    const x = logarithmic([least / 1.25, most * 1.25], [box.left, box.right]);
    const y = linear(extent(points.flatMap((p) => [p.estimate.value, p.estimate.low, p.estimate.high]), 0.1), [box.bottom, box.top]);
    verticalAxis(root, y, box);
    horizontalAxis(root, x, box, "L0: mean active latents of a row");
    const line = unbeaten(points, measure.up).map((point, at) => `${at ? "L" : "M"}${x(point.x)} ${y(point.y)}`).join("");
    root.append(svg("path", { class: "frontier", d: line }));
    for (const point of points) root.append(frontierPoint(point, x(point.x), y, kinds, measure, chosen, select));
    requestAnimationFrame(followFocus);
    return root;
  });
  return el("figure", {}, el("figcaption", {}, el("strong", {}, measure.name)), key, plot);
}

function frontierPoint(point, x, y, kinds, measure, chosen, select) {
  const { name, architecture } = point.result;
  const lines = () => [name, `${architecture}, ${count(point.result.d_sae)} latents`, `L0  ${significant(point.x, 4)}`,
    `${measure.name}  ${significant(point.y, 4)}`, interval(point.estimate, (value) => significant(value, 4))].filter(Boolean);
  const open = () => { hideTip(); focusNext = "chosen-point"; select(point.at); };
  const group = svg("g", { class: `point k-${kinds.indexOf(architecture) % 6}${point.at === chosen ? " chosen" : ""}`, tabindex: "0", role: "button",
    id: point.at === chosen ? "chosen-point" : null, "aria-label": lines().join(", "), "aria-pressed": String(point.at === chosen), onclick: open,
    onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(); } } });
  if (point.estimate.low !== null) group.append(whisker(x, y(point.estimate.low), x, y(point.estimate.high)));
  group.append(svg("circle", { class: "halo", cx: x, cy: y(point.y), r: 13 }), svg("circle", { class: "mark", cx: x, cy: y(point.y), r: 6 }));
  return tipped(group, lines);
}

const COLUMNS = [
  ["SAE", (result) => result.name, (value) => value],
  ["Architecture", (result) => result.architecture, (value) => value],
  ["d_sae", (result) => result.d_sae, count],
  ["L0", (result) => result.sparsity.l0, (value) => decimals(value, 1)],
  ["Score, zero", (result) => scoreOf("zero")(result).value, decimals],
  ["Score, mean", (result) => scoreOf("mean")(result).value, decimals],
  ["Loss increase", (result) => result.loss_increase.value, nats],
  ["KL", (result) => result.kl.value, nats],
  ["Top-1", (result) => result.top1_agreement.value, percent],
  ["FVU", (result) => result.reconstructions[0]?.fvu ?? null, decimals],
  ["Dead", (result) => result.dead_share, percent],
];

let sorted = { column: null, down: true };

function comparisonTable(results, chosen, select) {
  const order = results.map((_, at) => at);
  if (sorted.column !== null) {
    const value = COLUMNS[sorted.column][1];
    order.sort((a, b) => (sorted.down ? -1 : 1) * compare(value(results[a]), value(results[b])));
  }
  const whole = table("SAEs side by side", COLUMNS.map(([name], column) => sortButton(name, column, () => whole.replaceWith(comparisonTable(results, chosen, select)))),
    order.map((at) => COLUMNS.map(([, value, show], column) => column ? show(value(results[at])) : chooser(results[at].name, at === chosen, () => { focusNext = "chosen-row"; select(at); }))), [0, 1]);
  whole.classList.add("full");
  whole.querySelectorAll("thead th").forEach((cell, column) => {
    if (column === sorted.column) cell.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
  });
  return whole;
}

const compare = (a, b) => (a === null ? -1 : b === null ? 1 : typeof a === "string" ? a.localeCompare(b) : a - b);

function sortButton(name, column, redrawn) {
  const sort = () => {
    sorted = { column, down: sorted.column === column ? !sorted.down : true };
    redrawn();
    byId(`sort-${column}`).focus();
  };
  const arrow = sorted.column === column ? (sorted.down ? " ↓" : " ↑") : "";
  return el("button", { type: "button", class: "plain", id: `sort-${column}`, onclick: sort }, name + arrow);
}

function chooser(name, isChosen, choose) {
  return el("button", { type: "button", class: "plain name", id: isChosen ? "chosen-row" : null, "aria-pressed": String(isChosen), onclick: choose }, name);
}
