// The browser of latents: search, list and details.

const unpacked = new Map();

/** The latents of an SAE, unpacked once; their block comes after the script, and may still be on its way. */
async function latentsOf(block) {
  if (document.readyState === "loading") await new Promise((resume) => document.addEventListener("DOMContentLoaded", resume, { once: true }));
  if (!unpacked.has(block)) unpacked.set(block, unpack(byId(block)));
  return unpacked.get(block);
}

/** Show the latents of an SAE; `wanted` is the number of the one that is open at first. */
async function showLatents(block, wanted, opened, stale) {
  const section = byId("latents");
  section.hidden = !block;
  document.querySelector('nav a[href="#latents"]').hidden = !block;
  section.replaceChildren();
  if (!block) return;
  section.append(...heading("Latents", "Unpacking…"));
  const latents = await latentsOf(block);
  if (!stale()) browse(section, latents, wanted, opened);
}

function browse(section, latents, wanted, opened) {
  const some = latents.count < latents.d_sae ? `${count(latents.count)} of the SAE's ${count(latents.d_sae)} latents` : `All ${count(latents.d_sae)} latents`;
  const asked = { words: "", where: "any", filter: "all", order: "number" };
  const details = el("article", { class: "latent", "aria-labelledby": "latent-name" });
  const told = el("p", { class: "told", role: "status" });
  let at = latents.place.get(wanted) ?? null;
  let asks = 0;

  const open = (place, byHand) => {
    at = place;
    hideTip();
    details.replaceChildren(...latentDetails(latents, at, wordsOf(asked), follow).filter(Boolean));
    list.mark(at);
    opened(latents.numbers[at]);
    if (byHand && matchMedia("(max-width: 859px)").matches) details.scrollIntoView({ block: "start" });
  };
  const follow = (number) => {
    open(latents.place.get(number), false);
    byId("latent-name").focus({ preventScroll: true });
    if (details.getBoundingClientRect().top < 0) details.scrollIntoView({ block: "start" });
  };
  const list = latentList(latents, open);

  // What is open stays so at first, and where a search is taken back; else the first one found opens.
  const search = async (keep) => {
    const ask = (asks += 1);
    const found = await find(latents, asked, () => ask !== asks);
    if (found === null) return;
    const next = keep && found.includes(at) ? at : found[0];
    list.show(found, next, wordsOf(asked));
    told.textContent = found.length === latents.count ? `${count(found.length)} latents` : `${count(found.length)} of ${count(latents.count)} latents`;
    if (found.length) open(next, false);
    else details.replaceChildren(el("p", { class: "note" }, "No latent matches. Try other words, or fewer."));
  };

  section.replaceChildren(
    ...heading("Latents", `${some}, looked at in ${count(latents.rows)} rows. Each row shows where the latent is most active, its density and its largest activation.`),
    searchForm(asked, search, list),
    el("div", { class: "browser" }, el("div", { class: "found" }, told, list.host), details));
  search(true);
}

function searchForm(asked, search, list) {
  const pick = (name, choices) => {
    const select = el("select", { "aria-label": capital(name), onchange: () => { asked[name] = select.value; search(false); } },
      Object.entries(choices).map(([key, choice]) => el("option", { value: key }, Array.isArray(choice) ? choice[0] : choice)));
    return select;
  };
  const input = el("input", { type: "search", id: "search", placeholder: "Number, token or text", "aria-label": "Search latents", autocomplete: "off", spellcheck: "false" });
  input.addEventListener("input", () => { asked.words = input.value; search(!input.value); });
  input.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "Enter") { event.preventDefault(); list.host.focus(); }
  });
  return el("div", { class: "search", role: "search" },
    el("div", { class: "field" }, input, el("kbd", { title: "Press / to search" }, "/")),
    el("label", {}, "in ", pick("where", PLACES)), el("label", {}, "show ", pick("filter", FILTERS)), el("label", {}, "by ", pick("order", ORDERS)));
}
