// Charts are drawn by hand, as SVG: a plotting library would be several times the page's own size.
// A chart is drawn for the width it has, so that its letters keep their size on a phone.

const redraw = new ResizeObserver((entries) => {
  for (const entry of entries) entry.target.draw?.();
});

/** A place for a chart; `draw(width)` gives its SVG element, and is called when the width changes. */
function chart(draw) {
  const host = el("div", { class: "chart" });
  let drawn = 0;
  host.draw = () => {
    const width = Math.floor(host.clientWidth);
    if (!width || width === drawn) return;
    drawn = width;
    host.replaceChildren(draw(width));
  };
  redraw.observe(host);
  return host;
}

function canvas(width, height, title) {
  const id = `chart-${canvas.made = (canvas.made ?? 0) + 1}`;
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-labelledby": id },
    svg("title", { id }, title));
}

function linear([low, high], [from, to]) {
  const scale = (value) => from + ((value - low) / (high - low || 1)) * (to - from);
  scale.ticks = (wanted = 5) => {
    const rough = (high - low || 1) / wanted;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((unit) => unit * power * 1.45 >= rough);
    const ticks = [];
    for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n += 1) ticks.push(n * step || 0); // never -0
    return ticks;
  };
  return scale;
}

function logarithmic([low, high], range) {
  const inner = linear([Math.log10(low), Math.log10(high)], range);
  const scale = (value) => inner(Math.log10(value));
  scale.ticks = (wanted = 5) => {
    const decades = Math.log10(high / low);
    const units = decades > wanted ? [1] : decades > 1.5 ? [1, 3] : [1, 2, 3, 5, 7];
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
      for (const unit of units) ticks.push(unit * 10 ** power);
    }
    const within = ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
    return within.length > 2 ? within : linear([low, high], range).ticks(wanted);
  };
  return scale;
}

/** The least and the largest of some values, with room around, and zero where that is near. */
function extent(values, room = 0.06) {
  const known = values.filter((value) => value !== null && value !== undefined && Number.isFinite(value));
  let low = Math.min(...known);
  let high = Math.max(...known);
  if (!known.length) return [0, 1];
  if (low === 0 && high === 0) return [0, 1];
  if (low === high) [low, high] = [low - Math.abs(low || 1) * 0.1, high + Math.abs(high || 1) * 0.1];
  if (low > 0 && low < high * 0.35) low = 0;
  return [low === 0 ? 0 : low - (high - low) * room, high + (high - low) * room];
}

function text(x, y, content, attributes = {}) {
  return svg("text", { x, y, ...attributes }, content);
}

/** Gridlines with figures at the left. */
function verticalAxis(root, scale, box, show = significant) {
  for (const tick of scale.ticks(4)) {
    const y = Math.round(scale(tick)) + 0.5;
    root.append(
      svg("line", { class: "grid", x1: box.left, x2: box.right, y1: y, y2: y }),
      text(box.left - 8, y + 4, show(tick), { "text-anchor": "end", class: "tick" }));
  }
}

function horizontalAxis(root, scale, box, label, show = significant) {
  const ticks = scale.ticks(box.right - box.left < 420 ? 4 : 7);
  root.append(svg("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom + 0.5, y2: box.bottom + 0.5 }));
  for (const tick of ticks) {
    const anchor = scale(tick) > box.right - 14 ? "end" : "middle";
    root.append(text(anchor === "end" ? box.right + 6 : scale(tick), box.bottom + 18, show(tick), { "text-anchor": anchor, class: "tick" }));
  }
  root.append(text((box.left + box.right) / 2, box.bottom + 36, label, { "text-anchor": "middle", class: "label" }));
}

/** Names under bins; every other one, or fewer, where they would touch, but always the last. */
function binAxis(root, scale, box, labels, label) {
  const widest = Math.max(...labels.map((name) => name.length)) * 6.6 + 8;
  const every = Math.max(1, Math.ceil((widest * labels.length) / (box.right - box.left)));
  root.append(svg("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom + 0.5, y2: box.bottom + 0.5 }));
  labels.forEach((name, bin) => {
    if ((labels.length - 1 - bin) % every) return;
    root.append(text(scale(bin), box.bottom + 18, name, { "text-anchor": "middle", class: "tick" }));
  });
  root.append(text((box.left + box.right) / 2, box.bottom + 36, label, { "text-anchor": "middle", class: "label" }));
}

/** A line from low to high with ends. */
function whisker(x1, y1, x2, y2, cls = "whisker") {
  const end = 4;
  const flat = y1 === y2;
  return svg("path", { class: cls, d: flat
    ? `M${x1} ${y1 - end}v${2 * end}M${x1} ${y1}H${x2}M${x2} ${y1 - end}v${2 * end}`
    : `M${x1 - end} ${y1}h${2 * end}M${x1} ${y1}V${y2}M${x1 - end} ${y2}h${2 * end}` });
}

/** What is under the pointer or has the focus, in a box beside it. */
function showTip(target, lines) {
  const tip = byId("tip");
  tip.replaceChildren(...lines.map((line, at) => el(at ? "span" : "strong", {}, line)));
  tip.hidden = false;
  const at = target.getBoundingClientRect();
  const left = Math.min(Math.max(8, at.left + at.width / 2 - tip.offsetWidth / 2), innerWidth - tip.offsetWidth - 8);
  const above = at.top - tip.offsetHeight - 10;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 8 ? above : at.bottom + 10}px`;
}

function hideTip() {
  byId("tip").hidden = true;
}

/** Give an element such a box. */
function tipped(target, lines) {
  for (const event of ["pointerenter", "focus"]) target.addEventListener(event, () => showTip(target, lines()));
  for (const event of ["pointerleave", "blur"]) target.addEventListener(event, hideTip);
  return target;
}
