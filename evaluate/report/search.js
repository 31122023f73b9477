// Which latents are listed: those that are found, filtered and in order.

const DENSE = 0.1;

const FILTERS = {
  all: ["All", () => true],
  active: ["Active", (latents, at) => latents.fired[at] > 0],
  dead: ["Dead", (latents, at) => latents.fired[at] === 0],
  dense: ["Dense (over 10 %)", (latents, at) => latents.density(at) > DENSE],
  usual: ["Neither dead nor dense", (latents, at) => latents.fired[at] > 0 && latents.density(at) <= DENSE],
};

const ORDERS = {
  number: ["Number", null],
  dense: ["Density, most first", (latents) => (a, b) => latents.fired[b] - latents.fired[a]],
  rare: ["Density, least first", (latents) => (a, b) => latents.fired[a] - latents.fired[b]],
  strong: ["Largest activation", (latents) => (a, b) => latents.maximum[b] - latents.maximum[a]],
};

const PLACES = { any: "Everywhere", number: "Number", active: "Tokens it is active on", context: "Text around", output: "Output tokens" };

/** What is searched for, as it is compared. */
const wordsOf = (asked) => asked.words.trim().toLowerCase();

/** Places of the latents to list. Gives way to the page every few milliseconds; null once `stale()`. */
async function find(latents, asked, stale) {
  const { where, filter, order } = asked;
  const wanted = wordsOf(asked);
  const matches = wanted ? matcher(latents, wanted, where) : () => true;
  const passes = FILTERS[filter][1];
  const found = [];
  let since = performance.now();
  for (let at = 0; at < latents.count; at += 1) {
    if (passes(latents, at) && matches(at)) found.push(at);
    if (at % 64 === 0 && performance.now() - since > 12) {
      await new Promise((resume) => setTimeout(resume));
      if (stale()) return null;
      since = performance.now();
    }
  }
  const by = ORDERS[order][1]?.(latents);
  if (by) found.sort((a, b) => by(a, b) || a - b);
  const exact = /^\d+$/.test(wanted) && (where === "any" || where === "number") ? latents.place.get(Number(wanted)) : undefined;
  return exact !== undefined && found.includes(exact) ? [exact, ...found.filter((at) => at !== exact)] : found;
}

/** Whether a latent is what was asked for. A token matches where it holds the words; text, across tokens. */
function matcher(latents, wanted, where) {
  const holds = Uint8Array.from(latents.lowered, (token) => (token.includes(wanted) ? 1 : 0));
  const tests = {
    number: (at) => String(latents.numbers[at]).startsWith(wanted),
    active: (at) => activeOn(latents, at, holds),
    context: (at) => around(latents, at, wanted),
    output: (at) => Boolean(latents.top) && ["top", "bottom"].some((end) => writes(latents, at, end, holds)),
  };
  if (where !== "any") return tests[where];
  const digits = /^\d+$/.test(wanted);
  return (at) => (digits && tests.number(at)) || tests.output(at) || tests.context(at);
}

function activeOn(latents, at, holds) {
  const size = latents.contexts * latents.window;
  for (let nth = at * size; nth < (at + 1) * size; nth += 1) {
    if (latents.shares[nth] && latents.tokens[nth] !== latents.none && holds[latents.tokens[nth]]) return true;
  }
  return false;
}

function writes(latents, at, end, holds) {
  const width = latents[`${end}Width`];
  return latents[end].subarray(at * width, (at + 1) * width).some((token) => holds[token]);
}

function around(latents, at, wanted) {
  for (let nth = at * latents.contexts; nth < (at + 1) * latents.contexts && latents.values[nth] > 0; nth += 1) {
    let line = "";
    for (let here = nth * latents.window; here < (nth + 1) * latents.window; here += 1) {
      if (latents.tokens[here] !== latents.none) line += latents.lowered[latents.tokens[here]];
    }
    if (line.includes(wanted)) return true;
  }
  return false;
}
