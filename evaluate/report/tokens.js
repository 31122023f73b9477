// Tokens as people read them.

// Control characters, and those that change the direction of the text after them, are spelled out.
const HIDDEN = /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

const spelled = (text) => text.replace(HIDDEN, (letter) =>
  letter === "\t" ? "⇥" : `\\u${letter.charCodeAt(0).toString(16).padStart(4, "0")}`);

/** A token alone: its spaces and line breaks can be seen. */
function lone(text) {
  return spelled(text).replaceAll("\n", "↵").replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length)) || "(empty)";
}

/** Which tokens of a window hold the words that are searched for, which may reach over several. */
function hitsOf(tokens, wanted) {
  const hits = new Set();
  if (!wanted) return hits;
  const lowered = tokens.map((token) => token.text.toLowerCase());
  const line = lowered.join("");
  for (let from = line.indexOf(wanted); from >= 0; from = line.indexOf(wanted, from + 1)) {
    let start = 0;
    lowered.forEach((token, at) => {
      if (start < from + wanted.length && start + token.length > from) hits.add(at);
      start += token.length;
    });
  }
  return hits;
}

/** A window of text; tokens are lit by the latent's activation there, and what was searched for is ringed. */
function contextText(tokens, value, wanted) {
  const hits = hitsOf(tokens, wanted);
  return tokens.map((token, at) => {
    const kept = at ? token.text : token.text.trimStart() || token.text; // no indentation at the start
    const shown = spelled(kept).replaceAll("\n", "↵");
    const hit = hits.has(at) ? "hit" : "";
    if (!token.share) return hit ? el("span", { class: hit }, shown) : shown;
    const mark = el("mark", { class: `${token.peak ? "peak " : ""}${hit}`, title: `activation ${significant(value * token.share)}` }, shown);
    mark.style.setProperty("--heat", `${Math.round(12 + 88 * Math.min(1, token.share))}%`);
    return mark;
  });
}

/** What fits on one line of the list: around what was searched for, or else around the strongest peak. */
function snippet(contexts, wanted) {
  const found = contexts.find((context) => hitsOf(context.tokens, wanted).size) ?? contexts[0];
  const [hit] = hitsOf(found.tokens, wanted);
  const middle = hit ?? Math.max(0, found.tokens.findIndex((token) => token.peak));
  let first = middle;
  for (let room = 20; first > 0 && room >= found.tokens[first - 1].text.length; first -= 1) room -= found.tokens[first - 1].text.length;
  return contextText(found.tokens.slice(first, middle + 12), found.value, wanted);
}
