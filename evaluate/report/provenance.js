// What was evaluated, on what, by what; and the result itself.

/** A value as text. */
function plain(value) {
  if (value === null || value === undefined) return "none";
  if (value === true) return "yes";
  if (value === false) return "no";
  if (Array.isArray(value)) return value.length ? value.map(plain).join(", ") : "none";
  if (typeof value === "object") return JSON.stringify(value);
  return typeof value === "number" && Number.isInteger(value) ? count(value) : String(value);
}

const plainName = (key) => (key.startsWith("d_") ? key : capital(words(key)));

const plainPairs = (mapping, name = plainName) => pairs(Object.entries(mapping).map(([key, value]) => [name(key), plain(value)]));

function showProvenance(result) {
  const part = (title, ...content) => el("div", { class: "part" }, el("h3", {}, title), ...content);
  const mismatches = result.mismatches.length
    ? table("Mismatches", ["Field", "SAE", "Here"], result.mismatches.map((one) => [words(one.field), plain(one.sae), plain(one.here)]), [0, 1, 2])
    : el("p", { class: "note" }, "No field was allowed to differ.");
  byId("provenance").replaceChildren(
    ...heading("Provenance", "What was evaluated, and how."),
    el("div", { class: "parts" },
      part("SAE", plainPairs({ name: result.name, architecture: result.architecture, kind: result.kind, d_in: result.d_in, d_sae: result.d_sae,
        reads: result.reads, replaces: result.replaces, model: result.model })),
      part("Text", plainPairs(result.text)),
      part("Positions", plainPairs(result.positions)),
      part("Self-checks", el("p", { class: "note" }, "On the first batch: the clean rows in the SAE's place must score 1, zeros must score 0."), plainPairs(result.checks)),
      part("Mismatches with the SAE's provenance", mismatches),
      part("Versions", plainPairs(result.versions, (name) => name))),
    el("details", { class: "numbers" }, el("summary", {}, "Options"), plainPairs(result.options)),
    el("details", { class: "numbers raw" }, el("summary", {}, "The whole result, as scores.json has it"),
      el("pre", { tabindex: "0" }, JSON.stringify(result, null, 2))));
}
