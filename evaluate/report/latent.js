// One latent: how often and how strongly it is active, where, and what it writes.

/** The details of the latent at a place; what was searched for is ringed, `open(number)` shows another one. */
function latentDetails(latents, at, wanted, open) {
  const number = latents.numbers[at];
  const contexts = latents.contextsOf(at);
  const facts = [
    ["Density", share(latents.density(at))],
    ["Rows it is active in", `${count(latents.fired[at])} of ${count(latents.rows)}`],
    ["Largest activation", significant(latents.maximum[at], 4)],
    ["Mean where active", significant(latents.mean[at], 4)],
  ];
  return [
    el("header", {},
      el("h3", { tabindex: "-1", id: "latent-name" }, `Latent ${number}`, kindOf(latents, at)),
      el("div", { class: "steps" },
        el("button", { type: "button", class: "back", onclick: () => document.querySelector(".list").focus() }, "Back to the list"))),
    pairs(facts),
    activations(latents, at),
    ...outputs(latents, at, wanted),
    ...nearest(latents, at, open),
    el("h4", {}, "Most active in"),
    contexts.length
      ? el("ol", { class: "contexts" }, contexts.map((context) => contextItem(context, wanted)))
      : el("p", { class: "note" }, latents.fired[at] ? "No context was kept." : "It is active nowhere in the text that was looked at."),
  ];
}

function kindOf(latents, at) {
  const kind = latents.fired[at] === 0 ? "dead" : latents.density(at) > DENSE ? "dense" : null;
  return kind && el("span", { class: "tag" }, kind);
}

/** The histogram, without the empty bins at its ends. */
function activations(latents, at) {
  const counts = [...latents.histogramOf(at)];
  const first = counts.findIndex((number) => number > 0);
  if (first < 0) return null;
  const last = counts.findLastIndex((number) => number > 0) + 1;
  const edges = [...latents.edges.subarray(first, last + 1)];
  const kept = counts.slice(first, last);
  const rows = kept.map((number, bin) => [`${significant(edges[bin])} to ${significant(edges[bin + 1])}`, count(number)]);
  return figure("Activations", "rows by activation, where it is above zero; bins of half an octave",
    histogram("Histogram of activations", edges.map(Math.log2), kept,
      { name: "activation", show: (exponent) => significant(2 ** exponent), of: "rows" }, 170),
    ["Activation", "Rows"], rows);
}

function outputs(latents, at, wanted) {
  if (!latents.top) return [];
  const side = (title, end) => {
    const tokens = latents.outputsOf(at, end);
    const most = Math.max(...tokens.map((token) => Math.abs(token.logit)), 1e-9);
    return el("div", {}, el("h5", {}, title), el("ul", { class: `outputs ${end}` }, tokens.map((token) => {
      const item = el("li", {}, el("code", { class: wanted && token.text.toLowerCase().includes(wanted) ? "hit" : null }, lone(token.text)), el("span", {}, `${token.logit < 0 ? "−" : "+"}${significant(Math.abs(token.logit))}`));
      item.style.setProperty("--length", `${(100 * Math.abs(token.logit)) / most}%`);
      return item;
    })));
  };
  return [
    el("h4", {}, "Output tokens"),
    el("p", { class: "note" }, "What one unit of the latent adds to the logits, up to the final norm's scale."),
    el("div", { class: "ends" }, side("Likelier", "top"), side("Unlikelier", "bottom")),
  ];
}

function nearest(latents, at, open) {
  if (!latents.nearest) return [];
  const chips = latents.nearestOf(at).map(({ number, cosine }) => {
    const content = [String(number), el("small", {}, decimals(cosine, 2))];
    return latents.place.has(number)
      ? el("button", { type: "button", class: "chip", title: `cosine ${decimals(cosine, 4)}`, onclick: () => open(number) }, content)
      : el("span", { class: "chip", title: "not among the latents of this page" }, content);
  });
  return [el("h4", {}, "Nearest latents, by cosine of the decoder rows"), el("p", { class: "chips" }, chips)];
}

function contextItem(context, wanted) {
  const facts = [`activation ${significant(context.value, 4)}`];
  if (context.document >= 0) facts.push(`document ${context.document}`);
  if (context.position >= 0) facts.push(`position ${count(context.position)}`);
  return el("li", {}, el("blockquote", { dir: "auto" }, contextText(context.tokens, context.value, wanted)), el("p", { class: "note" }, facts.join(" · ")));
}
