"use strict";

/** Plots, drawn as SVG from numbers. Each has a description for who cannot see it. */
const charts = (() => {
  const NS = "http://www.w3.org/2000/svg";

  function s(tag, attributes = {}, ...children) {
    const element = document.createElementNS(NS, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children.flat().filter(Boolean));
    return element;
  }

  const W = 520,
    H = 260,
    LEFT = 44,
    RIGHT = 16,
    TOP = 14,
    BOTTOM = 30;
  const x0 = LEFT,
    x1 = W - RIGHT,
    y0 = H - BOTTOM,
    y1 = TOP;

  function frame(description, height = H) {
    return s("svg", { viewBox: `0 0 ${W} ${height}`, role: "img", "aria-label": description, class: "chart" });
  }

  function ticks(top) {
    const step = [0.1, 0.2, 0.25, 0.5, 1].find((size) => top / size <= 5) || 1;
    return Array.from({ length: Math.floor(top / step + 1e-9) + 1 }, (_, i) => i * step);
  }

  function yAxis(svg, top, label) {
    const y = (v) => y0 - (v / top) * (y0 - y1);
    for (const tick of ticks(top)) {
      svg.append(
        s("line", { x1: x0, x2: x1, y1: y(tick), y2: y(tick), class: tick ? "grid" : "axis" }),
        s("text", { x: x0 - 8, y: y(tick) + 4, class: "tick end" }, label(tick)),
      );
    }
    return y;
  }

  /**
   * Lines over named points. series: [{ name, style, points: [{ y, low, high, note } | null] }], as many points as
   * names; whiskers where there are low and high.
   */
  function lines(names, series, { description, label, top = 1 }) {
    const svg = frame(description);
    const y = yAxis(svg, top, label);
    const x = (i) => (names.length === 1 ? (x0 + x1) / 2 : x0 + 34 + (i * (x1 - x0 - 68)) / (names.length - 1));
    names.forEach((name, i) => svg.append(s("text", { x: x(i), y: y0 + 20, class: "tick middle" }, name)));
    series.forEach(({ style, points }, k) => {
      const shift = (k - (series.length - 1) / 2) * 7;
      const known = points
        .map((point, i) => point && !text.absent(point.y) && { ...point, x: x(i) + shift })
        .filter(Boolean);
      svg.append(s("polyline", { class: `line ${style}`, points: known.map((p) => `${p.x},${y(p.y)}`).join(" ") }));
      for (const p of known) {
        if (!text.absent(p.low))
          svg.append(
            s("line", {
              class: `whisker ${style}`,
              x1: p.x,
              x2: p.x,
              y1: y(Math.min(top, p.low)),
              y2: y(Math.min(top, p.high)),
            }),
          );
        svg.append(s("circle", { class: `dot ${style}`, cx: p.x, cy: y(p.y), r: 4.5 }, s("title", {}, p.note || "")));
      }
    });
    return figure(svg, series);
  }

  /** Where predictions fall against what came true; the area of a point is its number of leaves. */
  function reliability(bins, description) {
    const svg = frame(description);
    const y = yAxis(svg, 1, (v) => text.percent(v, 0));
    const x = (v) => x0 + v * (x1 - x0);
    for (const tick of [0, 0.25, 0.5, 0.75, 1])
      svg.append(s("text", { x: x(tick), y: y0 + 20, class: "tick middle" }, String(tick)));
    svg.append(s("line", { x1: x(0), y1: y(0), x2: x(1), y2: y(1), class: "ideal" }));
    const most = Math.max(...bins.map((bin) => bin.n));
    svg.append(
      s("polyline", { class: "line search", points: bins.map((b) => `${x(b.predicted)},${y(b.observed)}`).join(" ") }),
    );
    for (const bin of bins) {
      const leaves = text.plural(bin.n, "leaf", "leaves");
      const note = `value ${text.number(bin.predicted)}: ${text.percent(bin.observed)} right, ${leaves}`;
      svg.append(
        s(
          "circle",
          { class: "dot search soft", cx: x(bin.predicted), cy: y(bin.observed), r: 3 + 7 * Math.sqrt(bin.n / most) },
          s("title", {}, note),
        ),
      );
    }
    return figure(svg, []);
  }

  /** One bar a row. rows: [{ name, parts: [{ value, style, note }], label }] */
  function bars(rows, { description, legend = [] }) {
    const step = 26,
      left = 178,
      right = 92;
    const svg = frame(description, rows.length * step + 8);
    const most = Math.max(...rows.map((row) => row.parts.reduce((sum, part) => sum + (part.value || 0), 0)), 1e-9);
    rows.forEach((row, i) => {
      const y = i * step + 6;
      svg.append(s("text", { x: left - 10, y: y + 12, class: "tick end name" }, row.name));
      let at = left;
      for (const part of row.parts) {
        const width = ((part.value || 0) / most) * (W - left - right);
        if (width > 0)
          svg.append(
            s(
              "rect",
              { x: at, y, width: Math.max(width, 1), height: 16, class: `bar ${part.style}` },
              s("title", {}, part.note || ""),
            ),
          );
        at += width;
      }
      svg.append(s("text", { x: at + 8, y: y + 12, class: "tick" }, row.label));
    });
    return figure(svg, legend);
  }

  function figure(svg, series) {
    const named = series.filter((one) => one.name);
    const legend =
      named.length > 0 &&
      h(
        "ul",
        { class: "legend" },
        named.map(({ name, style }) => h("li", {}, h("span", { class: `key ${style}` }), name)),
      );
    return h("div", { class: "plot" }, svg, legend);
  }

  return { lines, reliability, bars };
})();
