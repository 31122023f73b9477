// The list of latents: any number of them, of which only the rows in sight are elements.

const ROW = 58;
const SPARE = 6;

/** A list box. `chosen(at, byHand)` is called with the place of a latent. */
function latentList(latents, chosen) {
  const sheet = el("div", { class: "sheet", role: "presentation" });
  const host = el("div", { class: "list", role: "listbox", tabindex: "0", "aria-label": "Latents" }, sheet);
  host.style.setProperty("--digits", `${String(latents.d_sae - 1).length}ch`);
  const list = { host, found: [], at: -1, wanted: "" };

  const draw = () => {
    const first = Math.max(0, Math.floor(host.scrollTop / ROW) - SPARE);
    const last = Math.min(list.found.length, Math.ceil((host.scrollTop + host.clientHeight) / ROW) + SPARE);
    const rows = [];
    for (let nth = first; nth < last; nth += 1) rows.push(listRow(latents, list, nth));
    sheet.replaceChildren(...rows);
    if (list.at >= first && list.at < last) host.setAttribute("aria-activedescendant", `row-${list.at}`);
    else host.removeAttribute("aria-activedescendant");
  };

  list.show = (found, at, wanted) => {
    list.found = found;
    list.wanted = wanted;
    list.at = found.indexOf(at);
    sheet.style.height = `${found.length * ROW}px`;
    host.scrollTop = Math.max(0, list.at * ROW - host.clientHeight / 2);
    draw();
  };

  list.mark = (at) => {
    list.at = list.found.indexOf(at);
    const top = list.at * ROW;
    if (list.at >= 0 && top < host.scrollTop) host.scrollTop = top;
    if (top + ROW > host.scrollTop + host.clientHeight) host.scrollTop = top + ROW - host.clientHeight;
    draw();
  };

  const go = (nth, byHand) => {
    if (!list.found.length) return;
    chosen(list.found[Math.min(Math.max(0, nth), list.found.length - 1)], byHand);
  };

  host.addEventListener("scroll", draw, { passive: true });
  host.addEventListener("click", (event) => {
    const row = event.target.closest("[role=option]");
    if (row) go(Number(row.dataset.nth), true);
  });
  host.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(host.clientHeight / ROW) - 1);
    const move = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Enter") go(Math.max(0, list.at), true);
    else if (move !== undefined) go(move === Infinity ? list.found.length - 1 : list.at + move, false);
    else return;
    event.preventDefault();
  });
  new ResizeObserver(draw).observe(host);
  return list;
}

function listRow(latents, list, nth) {
  const at = list.found[nth];
  const contexts = latents.contextsOf(at);
  const row = el("div", { id: `row-${nth}`, class: "row", role: "option", "data-nth": nth, "aria-selected": String(nth === list.at),
    "aria-posinset": nth + 1, "aria-setsize": list.found.length },
    el("span", { class: "number" }, String(latents.numbers[at])),
    el("span", { class: "snippet", dir: "auto" }, contexts.length ? snippet(contexts, list.wanted) : latents.fired[at] ? "no context kept" : "never active"),
    el("span", { class: "facts" }, el("span", {}, share(latents.density(at))), el("span", {}, `max ${significant(latents.maximum[at])}`)));
  row.style.top = `${nth * ROW}px`;
  return row;
}
