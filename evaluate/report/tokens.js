// Tokens as people read them.

// Control characters, and those that change the direction of the text after them, are spelled out.
const HIDDEN = /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

const spelled = (text) => text.replace(HIDDEN, (letter) =>
  letter === "\t" ? "⇥" : `\\u${letter.charCodeAt(0).toString(16).padStart(4, "0")}`);

/** A token alone: its spaces and line breaks can be seen. */
function lone(text) {
  return spelled(text).replaceAll("\n", "↵").replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length)) || "(empty)";
}

/** A window of text; tokens are lit by the latent's activation there. */
function contextText(tokens, value) {
  return tokens.map((token, at) => {
    const kept = at ? token.text : token.text.trimStart() || token.text; // no indentation at the start
    const shown = spelled(kept).replaceAll("\n", "↵");
    if (!token.share) return shown;
    const mark = el("mark", { class: token.peak ? "peak" : null, title: `activation ${significant(value * token.share)}` }, shown);
    mark.style.setProperty("--heat", `${Math.round(12 + 88 * Math.min(1, token.share))}%`);
    return mark;
  });
}

/** The tokens around the peak that fit on one line of the list. */
function snippet(context) {
  const peak = Math.max(0, context.tokens.findIndex((token) => token.peak));
  let first = peak;
  for (let room = 20; first > 0 && room >= context.tokens[first - 1].text.length; first -= 1) room -= context.tokens[first - 1].text.length;
  return contextText(context.tokens.slice(first, peak + 12), context.value);
}
