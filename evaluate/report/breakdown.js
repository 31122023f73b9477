// Where the loss is, how rows are given back, and how latents are active.

const chosenPasses = new Set(["clean", "spliced"]);

function showBreakdown(result) {
  const passes = Object.keys(result.losses);
  const section = byId("breakdown");
  section.replaceChildren(
    ...heading("Loss by position and by frequency", "Mean loss in nats a token. By token frequency: of the token that is predicted."),
    el("div", { class: "legend", role: "group", "aria-label": "Passes shown" }, passes.map((pass) => passButton(pass, result))),
    el("div", { class: "two" },
      breakdownFigure("By position", "position", result.by_position, passes),
      breakdownFigure("By token frequency", "share of tokens", result.by_frequency, passes)));
}

function passButton(pass, result) {
  const toggle = () => {
    if (!chosenPasses.delete(pass)) chosenPasses.add(pass);
    showBreakdown(result);
    byId(`pass-${pass}`).focus();
  };
  return el("button", { type: "button", id: `pass-${pass}`, class: `key c-${passColour(pass)}`, "aria-pressed": String(chosenPasses.has(pass)), onclick: toggle },
    el("i", { "aria-hidden": "true" }), passName(pass));
}

function breakdownFigure(title, name, breakdown, all) {
  const passes = all.filter((pass) => breakdown.losses[pass]);
  const series = passes.filter((pass) => chosenPasses.has(pass)).map((pass) => ({
    name: passName(pass), colour: passColour(pass), points: breakdown.losses[pass].map((loss, bin) => [bin, loss]),
  }));
  const more = (bin) => `${count(breakdown.count[bin])} predictions`;
  const rows = breakdown.labels.map((label, bin) =>
    [label, count(breakdown.count[bin]), ...passes.map((pass) => nats(breakdown.losses[pass][bin]))]);
  return figure(title, null, lineChart(`Loss ${title.toLowerCase()}`, series, { labels: breakdown.labels, name, more }),
    [capital(name), "Predictions", ...passes.map(passName)], rows);
}

const RECONSTRUCTION = [
  ["rows", "Rows", count],
  ["fvu", "FVU", decimals],
  ["fvu_without_massive", "FVU without massive rows", decimals],
  ["row_fvu", "FVU per row, mean", decimals],
  ["explained_variance", "Explained variance", decimals],
  ["mse", "Squared error of a row", significant],
  ["cosine", "Cosine similarity", decimals],
  ["l2_ratio", "L2 ratio", decimals],
  ["relative_bias", "Relative bias (1: none)", decimals],
  ["massive_rows", "Massive rows", count],
  ["massive_share_of_error", "Their share of squared error", percent],
  ["massive_share_of_loss", "Their share of added loss", percent],
];

function showReconstruction(result) {
  const rows = RECONSTRUCTION.map(([field, name, show]) => [name, ...result.reconstructions.map((one) => show(one[field]))]);
  const hookPointNames = result.reconstructions.map((one) => one.hook_point);
  byId("reconstruction").replaceChildren(
    ...heading("Reconstruction", "How well rows are given back, in the model's own units. A row is massive where its norm is over ten times the median."),
    ...(rows[0].length === 2 ? [el("p", {}, `Rows of ${hookPointNames[0]}`), pairs(rows)] : [table("Reconstruction", ["Figure", ...hookPointNames], rows)]));
}

function showSparsity(result) {
  const found = result.sparsity;
  const quantiles = Object.entries(found.l0_quantiles).map(([at, value]) => [`quantile ${at}`, significant(value, 4)]);
  const cosines = Object.entries(found.decoder_cosine_quantiles).map(([at, value]) => [`quantile ${at}`, decimals(value, 3)]);
  const bins = found.density_counts.map((number, bin) => [`${power(found.density_edges[bin])} to ${power(found.density_edges[bin + 1])}`, count(number)]);
  byId("sparsity").replaceChildren(
    ...heading("Sparsity", `Dead latents are above zero in none of the rows, dense ones in more than a tenth.`),
    pairs([
      ["L0, mean", decimals(found.l0, 2)],
      ["L1, mean", significant(found.l1, 4)],
      ["Dead latents", `${count(found.dead)} of ${count(result.d_sae)} (${percent(result.dead_share)})`],
      ["Dense latents", `${count(found.dense)} of ${count(result.d_sae)} (${percent(found.dense / result.d_sae)})`],
    ]),
    el("div", { class: "two" },
      figure("Active latents of a row", `mean ${significant(found.l0, 4)}, median ${significant(found.l0_quantiles["0.5"], 4)}`,
        found.l0_edges[1] - found.l0_edges[0] === 1 && found.l0_counts.length === 1
          ? el("p", {}, `Every row has ${count(found.l0_edges[0])}.`)
          : histogram("Rows by how many latents are active", found.l0_edges, found.l0_counts, { name: "active latents (L0)", show: count, of: "rows" }),
        ["", "Active latents"], [["mean", significant(found.l0, 4)], ...quantiles]),
      figure("Density of latents", `${count(found.dead)} dead latents are in no bin`,
        histogram("How often latents are active", found.density_edges, found.density_counts, { name: "share of rows in which a latent is active", show: power, of: "latents" }),
        ["Share of rows", "Latents"], bins)),
    el("details", { class: "numbers" },
      el("summary", {}, `Cosine of the most similar decoder row, of ${count(found.decoder_cosine_latents)} latents`),
      table("Largest cosine with another decoder row", ["", "Cosine"], cosines)));
}

const RAISED = { "-": "⁻", ".": "·", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };

/** 10 to a power, as people write it. */
function power(exponent) {
  const digits = String(Number(exponent.toFixed(2)));
  return exponent === 0 ? "1" : `10${[...digits].map((digit) => RAISED[digit] ?? digit).join("")}`;
}
