// The kinds of chart that the sections use.

/** Horizontal bars from zero, with intervals. `bars`: name, colour, estimate, shown. */
function barChart(title, bars) {
  return chart((width) => {
    const narrow = width < 520;
    const step = narrow ? 50 : 38;
    const box = { left: narrow ? 0 : 150, right: width - 76 };
    const root = canvas(width, bars.length * step + 4, title);
    const top = Math.max(...bars.map((bar) => bar.estimate.high ?? bar.estimate.value ?? 0), 1e-9);
    const x = linear([0, top], [box.left, box.right]);
    bars.forEach((bar, row) => {
      const y = row * step + (narrow ? 20 : 7);
      const end = x(bar.estimate.value ?? 0);
      root.append(
        narrow ? text(0, y - 6, bar.name, { class: "label" }) : text(box.left - 12, y + 16, bar.name, { class: "label", "text-anchor": "end" }),
        svg("rect", { class: `bar c-${bar.colour}`, x: box.left, y, width: Math.max(1, end - box.left), height: 22, rx: 2 }));
      if (bar.estimate.low !== null) root.append(whisker(x(bar.estimate.low), y + 11, x(bar.estimate.high), y + 11));
      root.append(text(Math.max(end, x(bar.estimate.high ?? 0)) + 8, y + 16, bar.shown, { class: "value" }));
    });
    return root;
  });
}

/** Scores with intervals, up to 1; the axis begins where they do, so that the intervals can be seen. */
function scoreChart(title, points) {
  return chart((width) => {
    const narrow = width < 520;
    const step = narrow ? 54 : 40;
    const box = { left: narrow ? 12 : 180, right: width - 20, top: 0, bottom: points.length * step + 6 };
    const root = canvas(width, box.bottom + 44, title);
    const [low, high] = extentOf([1, ...points.flatMap((p) => Object.values(p.estimate)).filter((value) => value !== null)]);
    const x = linear([low - (high - low) * 0.15, high], [box.left, box.right]);
    for (const tick of x.ticks(5)) {
      root.append(svg("line", { class: "grid", x1: x(tick), x2: x(tick), y1: 0, y2: box.bottom }));
    }
    horizontalAxis(root, x, box, "reconstruction score");
    points.forEach((point, row) => {
      const y = row * step + (narrow ? 34 : 22);
      const label = { class: "label", "text-anchor": narrow ? "start" : "end" };
      root.append(text(narrow ? box.left : box.left - 14, narrow ? y - 14 : y + 4, point.name, label));
      if (point.estimate.value === null) {
        root.append(text(box.left + 8, y + 4, "no score: this ablation costs next to nothing", { class: "tick" }));
        return;
      }
      const at = x(point.estimate.value);
      if (point.estimate.low !== null) root.append(whisker(x(point.estimate.low), y, x(point.estimate.high), y, `whisker c-${point.colour}`));
      root.append(svg("circle", { class: `dot c-${point.colour}`, cx: at, cy: y, r: 4.5 }));
      const last = x(point.estimate.high ?? point.estimate.value);
      const inside = last + 64 < box.right;
      root.append(text(inside ? last + 10 : x(point.estimate.low ?? point.estimate.value) - 10, y + 4, decimals(point.estimate.value), { class: "value", "text-anchor": inside ? "start" : "end" }));
    });
    return root;
  });
}

/** Lines over bins or steps. `series`: name, colour, points [[x, y], ...]. `axis.labels`: of bins. */
function lineChart(title, series, axis, height = 250) {
  return chart((width) => {
    const box = { left: 56, right: width - 14, top: 10, bottom: height - 44 };
    const root = canvas(width, height, title);
    const all = series.flatMap((line) => line.points);
    const y = linear(extent(all.map((point) => point[1])), [box.bottom, box.top]);
    const ends = axis.labels ? [-0.5, axis.labels.length - 0.5] : extentOf(all.map((point) => point[0]));
    const x = linear(ends, [box.left, box.right]);
    verticalAxis(root, y, box);
    if (axis.labels) binAxis(root, x, box, axis.labels, axis.name);
    else horizontalAxis(root, x, box, axis.name);
    for (const line of series) {
      const known = line.points.filter((point) => point[1] !== null);
      const path = known.map((point, at) => `${at ? "L" : "M"}${x(point[0]).toFixed(1)} ${y(point[1]).toFixed(1)}`).join("");
      root.append(svg("path", { class: `line c-${line.colour}`, d: path }));
      if (axis.labels || known.length < 2) {
        for (const point of known) root.append(svg("circle", { class: `dot c-${line.colour}`, cx: x(point[0]), cy: y(point[1]), r: 3.5 }));
      }
    }
    crosshair(root, box, x, series, axis);
    return root;
  });
}

const extentOf = (values) => (values.length ? [Math.min(...values), Math.max(...values)] : [0, 1]);

/** The figures nearest to the pointer; with the focus on the chart, arrow keys move it. */
function crosshair(root, box, x, series, axis) {
  const stops = [...new Set(series.flatMap((line) => line.points.map((point) => point[0])))].sort((a, b) => a - b);
  if (!stops.length) return;
  const rule = svg("line", { class: "rule", y1: box.top, y2: box.bottom, visibility: "hidden" });
  let at = stops.length - 1;
  const show = () => {
    rule.setAttribute("x1", x(stops[at]));
    rule.setAttribute("x2", x(stops[at]));
    rule.setAttribute("visibility", "visible");
    const lines = series.filter((line) => line.named !== false).map((line) => {
      const point = line.points.find((known) => known[0] === stops[at]);
      return point && `${line.name}  ${significant(point[1], 4)}`;
    });
    const where = axis.labels ? axis.labels[stops[at]] : count(stops[at]);
    showTip(rule, [`${axis.name} ${where}`, ...(axis.more ? [axis.more(stops[at])] : []), ...lines.filter(Boolean)]);
  };
  const hide = () => {
    rule.setAttribute("visibility", "hidden");
    hideTip();
  };
  root.append(rule);
  root.setAttribute("tabindex", "0");
  const point = (event) => {
    const across = event.clientX - root.getBoundingClientRect().left;
    at = stops.reduce((best, stop, here) => (Math.abs(x(stop) - across) < Math.abs(x(stops[best]) - across) ? here : best), 0);
    show();
  };
  root.addEventListener("pointermove", point);
  root.addEventListener("pointerdown", point);
  root.addEventListener("pointerleave", hide);
  root.addEventListener("blur", hide);
  root.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    at = Math.min(Math.max(0, at + move), stops.length - 1);
    show();
  });
}

/** Counts in bins between edges. */
function histogram(title, edges, counts, axis, height = 210) {
  return chart((width) => {
    const box = { left: 56, right: width - 14, top: 10, bottom: height - 44 };
    const root = canvas(width, height, title);
    const x = linear([edges[0], edges[edges.length - 1]], [box.left, box.right]);
    const y = linear([0, Math.max(...counts, 1)], [box.bottom, box.top]);
    verticalAxis(root, y, box, count);
    horizontalAxis(root, x, box, axis.name, axis.show);
    counts.forEach((number, bin) => {
      const left = x(edges[bin]);
      const bar = svg("rect", { class: "bar c-spliced", x: left + 0.5, width: Math.max(0.5, x(edges[bin + 1]) - left - 1),
        y: y(number), height: Math.max(0, box.bottom - y(number)) });
      root.append(tipped(bar, () => [`${axis.show(edges[bin])} to ${axis.show(edges[bin + 1])}`, `${count(number)} ${axis.of}`]));
    });
    return root;
  });
}

