// The page: what it shows, and how it is moved around in.

const data = JSON.parse(byId("data").textContent);

const shown = { sae: 0, latent: null, time: 0 };

function show() {
  const result = data.results[shown.sae];
  const time = (shown.time += 1);
  byId("sae").value = String(shown.sae);
  const name = document.querySelector("h1").textContent === result.name ? "" : `${result.name} · `;
  byId("about").textContent = `${name}${result.architecture} ${result.kind}, ${count(result.d_sae)} latents · ${hookPoints(result)} of ${result.model}`;
  showScores(result);
  if (data.results.length > 1) showComparison(data.results, data.notes, shown.sae, selectSAE);
  showBreakdown(result);
  showReconstruction(result);
  showSparsity(result);
  showTraining(data.training, result.name);
  showProvenance(result);
  // The scores are painted before the latents are unpacked.
  requestAnimationFrame(() => setTimeout(() => showLatents(data.blocks[shown.sae], shown.latent, openedLatent, () => time !== shown.time)));
}

function hookPoints(result) {
  const reads = result.reads.join(", ");
  const replaces = result.replaces.join(", ");
  return reads === replaces ? reads : `reads ${reads}, replaces ${replaces}`;
}

/** Show another SAE; the section that was acted in stays where it is on the screen. */
function selectSAE(at) {
  const section = document.activeElement?.closest("section");
  const top = section?.getBoundingClientRect().top;
  Object.assign(shown, { sae: at, latent: null });
  remember();
  show();
  if (!section) return;
  requestAnimationFrame(() => scrollBy({ top: section.getBoundingClientRect().top - top, behavior: "instant" }));
}

function openedLatent(number) {
  shown.latent = number;
  remember();
}

/** The address names what is shown, so that it can be kept or sent with the file. */
function remember() {
  const parts = new URLSearchParams();
  if (shown.sae) parts.set("sae", data.results[shown.sae].name);
  if (shown.latent !== null) parts.set("latent", shown.latent);
  history.replaceState(null, "", `#${parts}`);
}

function recall() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const at = data.results.findIndex((result) => result.name === parts.get("sae"));
  shown.sae = Math.max(0, at);
  shown.latent = parts.has("latent") ? Number(parts.get("latent")) : null;
}

function setUpTheme() {
  const root = document.documentElement;
  // A browser may keep no storage for files; the choice then lasts as long as the page.
  const storage = (() => { try { return window.localStorage; } catch { return null; } })();
  root.dataset.theme = storage?.getItem("saeflow-theme") ?? "";
  byId("theme").addEventListener("click", () => {
    const dark = getComputedStyle(root).getPropertyValue("color-scheme").trim() === "dark"
      || (!root.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
    root.dataset.theme = dark ? "light" : "dark";
    storage?.setItem("saeflow-theme", root.dataset.theme);
  });
}

function setUpKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hideTip();
    const typing = event.target.closest("input, select, textarea");
    if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey || !byId("search")) return;
    event.preventDefault();
    byId("search").focus();
    byId("search").select();
  });
  document.addEventListener("scroll", hideTip, { passive: true });
}

/** Section links scroll; the address keeps what is shown. */
function setUpSections() {
  document.querySelector("nav").addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (!link) return;
    event.preventDefault();
    const section = byId(link.getAttribute("href").slice(1));
    section.scrollIntoView();
    section.setAttribute("tabindex", "-1");
    section.focus({ preventScroll: true });
  });
}

function setUpChoice() {
  const several = data.results.length > 1;
  byId("comparison").hidden = !several;
  document.querySelector('nav a[href="#comparison"]').hidden = !several;
  document.querySelector(".choose").hidden = !several;
  byId("sae").append(...data.results.map((result, at) => el("option", { value: at }, result.name)));
  byId("sae").addEventListener("change", (event) => selectSAE(Number(event.target.value)));
}

setUpTheme();
setUpKeys();
setUpSections();
setUpChoice();
recall();
addEventListener("hashchange", () => {
  if (!/(sae|latent)=/.test(location.hash)) return;
  recall();
  show();
});
// The blocks of latents come after this script; the scores don't wait for them.
show();
