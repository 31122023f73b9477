// Curves of the run that the SAE is from, with the other SAEs of the run behind it.

const CURVES = [
  ["loss", "Loss", "in normalised units, of a batch", []],
  ["fvu", "FVU", "of a batch, and of held-out rows", ["held_out_fvu"]],
  ["row_fvu", "FVU per row", "of a batch, and of held-out rows", ["held_out_row_fvu"]],
  ["l0", "L0", "of a batch, and of held-out rows", ["held_out_l0"]],
  ["dead", "Dead latents", "silent for long, and in held-out rows", ["held_out_dead"]],
  ["held_out_dense", "Dense latents", "active in over a tenth of held-out rows", []],
  ["lr", "Learning rate", null, []],
];

function showTraining(training, name) {
  const section = byId("training");
  const own = training.find((run) => run.name === name);
  section.hidden = !own;
  document.querySelector('nav a[href="#training"]').hidden = !own;
  if (!own) return;
  const others = training.filter((run) => run !== own);
  const behind = others.length ? " The other SAEs are thin lines behind." : "";
  const drawn = new Set([...CURVES.flatMap(([field, , , more]) => [field, ...more]), "rows"]);
  const rest = Object.keys(own.series).filter((field) => !drawn.has(field)).map((field) => [field, capital(words(field)), null, []]);
  section.replaceChildren(
    ...heading("Training", `Figures of metrics.jsonl by step.${behind}${own.every > 1 ? ` One of every ${count(own.every)} points is drawn.` : ""}`),
    curveKey(others),
    el("div", { class: "three" }, [...CURVES, ...rest]
      .filter(([field, , , more]) => [field, ...more].some((one) => own.series[one]))
      .map((curve) => curveFigure(curve, own, others))));
}

function curveKey(others) {
  const entries = [["spliced", "training"], ["zero", "held out"], ...(others.length ? [["other", "other SAEs"]] : [])];
  return el("p", { class: "legend" }, entries.map(([colour, name]) => el("span", { class: `key c-${colour}` }, el("i", { "aria-hidden": "true" }), name)));
}

function curveFigure([field, title, note, more], own, others) {
  const thin = others.filter((other) => other.series[field])
    .map((other) => ({ name: title, named: false, colour: "other thin", points: other.series[field] }));
  const colour = field.startsWith("held_out") ? "zero" : "spliced";
  const main = own.series[field] ? [{ name: more.length ? "training" : title, colour, points: own.series[field] }] : [];
  const held = more.filter((one) => own.series[one]).map((one) => ({ name: "held out", colour: "zero", points: own.series[one] }));
  const rows = [...main, ...held].flatMap((line) => line.points.map(([step, value]) => [count(step), line.name, significant(value, 5)]));
  const shown = rows.length > 60 ? rows.filter((_, at) => at % Math.ceil(rows.length / 60) === 0 || at === rows.length - 1) : rows;
  return figure(title, note, lineChart(`${title} by step`, [...thin, ...main, ...held], { name: "step" }, 210),
    ["Step", "Of", shown.length < rows.length ? "Value (some of the points)" : "Value"], shown);
}
