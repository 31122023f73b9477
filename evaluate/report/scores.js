// The verdict, the scores with their intervals, and the losses.

const PASSES = { clean: "clean", spliced: "spliced", zero_ablated: "zero", mean_ablated: "mean", resample_ablated: "resample" };

const PASS_NAMES = {
  clean: "Clean", spliced: "Spliced", zero_ablated: "Zero-ablated", mean_ablated: "Mean-ablated", resample_ablated: "Resample-ablated",
};

const passName = (name) => PASS_NAMES[name] ?? capital(words(name));
const passColour = (name) => PASSES[name] ?? "other";
const nats = (value) => decimals(value, 4);

function showScores(result) {
  const section = byId("scores");
  section.replaceChildren(
    el("p", { class: "verdict" }, result.verdict.replaceAll(" %", PERCENT)),
    ...warnings(result),
    tiles(result),
    ...heading("Reconstruction score", "What of the ablation's cost the SAE gives back: 0 is no better than the ablation, 1 as good as clean. Whiskers: 95 % intervals, by bootstrap over documents. "
      + "Ratio of sums: losses summed over the run; mean of ratios: each document's own."),
    scoreFigure(result),
    ...heading("Losses", "Mean next-token loss, in nats a token, of the same predictions in every pass."),
    lossFigure(result));
}

/** What a reader must know before any figure. */
function warnings(result) {
  const said = result.mismatches.map((mismatch) =>
    `${words(mismatch.field)} differs from what the SAE was trained on: ${plain(mismatch.sae)} there, ${plain(mismatch.here)} here.`);
  if (result.text.trained_on) said.unshift("The SAE was trained on this text. Scores on text that it has not seen may be lower.");
  if (result.checks.identity_exact === false) {
    said.push("The self-check failed: with the clean rows in the SAE's place, the losses are not exactly the clean ones.");
  }
  return said.map((line) => el("p", { class: "warning" }, line));
}

function tiles(result) {
  const { zero, mean } = result.scores;
  const first = result.reconstructions[0];
  const entries = [
    zero && ["Score against zero", decimals(zero.ratio_of_sums.value), interval(zero.ratio_of_sums, decimals)],
    mean && ["Score against mean", decimals(mean.ratio_of_sums.value), interval(mean.ratio_of_sums, decimals)],
    ["Loss increase, nats", nats(result.loss_increase.value), interval(result.loss_increase, nats)],
    ["KL divergence, nats", nats(result.kl.value), interval(result.kl, nats)],
    ["Top-1 agreement", percent(result.top1_agreement.value), interval(result.top1_agreement, percent)],
    first && ["FVU", decimals(first.fvu), `per row ${decimals(first.row_fvu)}`],
    ["L0", decimals(result.sparsity.l0, 1), `of ${count(result.d_sae)} latents`],
    ["Dead latents", percent(result.dead_share), `${count(result.sparsity.dead)} of ${count(result.d_sae)}`],
  ];
  return el("dl", { class: "tiles" }, entries.filter(Boolean).map(([name, value, more]) =>
    el("div", {}, el("dt", {}, name), el("dd", { class: "big" }, value), el("dd", { class: "more" }, more || "no interval"))));
}

const RATIOS = { ratio_of_sums: "ratio of sums", mean_of_ratios: "mean of ratios" };

function scoreFigure(result) {
  const entries = Object.entries(result.scores);
  const points = entries.flatMap(([ablation, score]) => Object.entries(RATIOS).map(([ratio, name]) =>
    ({ name: `${capital(ablation)}, ${name}`, colour: passColour(`${ablation}_ablated`), estimate: score[ratio] })));
  const rows = entries.map(([ablation, score]) => [
    capital(words(ablation)),
    estimateCell(score.ratio_of_sums, decimals),
    estimateCell(score.mean_of_ratios, decimals),
    count(score.items),
    count(score.left_out),
  ]);
  const head = ["Against", "Ratio of sums", "Mean of ratios", "Documents", "Left out"];
  const out = entries.some(([, score]) => score.left_out)
    ? el("p", { class: "note" }, "Documents are left out of the mean of ratios where ablation costs next to nothing.") : null;
  return el("div", { class: "wide" },
    scoreChart("Reconstruction scores with 95 % intervals", points),
    table("Reconstruction scores", head, rows), out);
}

function estimateCell(estimate, show) {
  return el("span", {}, show(estimate.value), el("small", {}, interval(estimate, show) || "no interval"));
}

function lossFigure(result) {
  const entries = Object.entries(result.losses);
  const bars = entries.map(([name, estimate]) => ({ name: passName(name), colour: passColour(name), estimate, shown: nats(estimate.value) }));
  const rows = entries.map(([name, estimate]) => [passName(name), nats(estimate.value), interval(estimate, nats) || "–"]);
  return figure("Loss by pass", "whiskers: 95 % intervals", barChart("Loss of each pass", bars),
    ["Pass", "Loss, nats a token", "95 % interval"], rows);
}
