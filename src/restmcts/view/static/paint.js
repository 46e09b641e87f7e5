"use strict";

/** What a tree looks like: the colours of the page's style, and how nodes, steps and marks are drawn on a canvas. */
const paint = (() => {
  const STEPS = 64;
  const NAMES = ["ink", "soft", "faint", "paper", "right", "wrong", "chosen", "now"];
  const TEXT_FROM = { row: 15, column: 96 };

  let known = null;

  /** The colours of the current theme: named ones, and `scale(v)` for a value in [0, 1]. */
  function palette() {
    return (known ??= readPalette());
  }

  /** The theme has changed. */
  function forget() {
    known = null;
  }

  function readPalette() {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(`--${name}`).trim();
    const stops = [0, 1, 2, 3, 4].map((i) => rgb(read(`v${i}`)));
    const table = Array.from({ length: STEPS + 1 }, (_, i) => {
      const at = (i / STEPS) * (stops.length - 1);
      const k = Math.min(stops.length - 2, Math.floor(at));
      return `rgb(${stops[k].map((x, c) => Math.round(x + (stops[k + 1][c] - x) * (at - k))).join(",")})`;
    });
    const found = { scale: (v) => table[Math.round(Math.max(0, Math.min(1, v)) * STEPS)] };
    for (const name of NAMES) found[name] = read(name);
    found.font = read("font-sans") || "sans-serif";
    return found;
  }

  function rgb(hex) {
    return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16) || 0);
  }

  /** Draw what of the tree is in sight. `t` is a `TreeCanvas`. */
  function tree(context, t) {
    const { width, height } = t;
    const visible = [];
    const margin = 40;
    const drawn = new Float64Array(t.lay.deepest + 1).fill(-1e9); // by depth: where the last node was drawn
    for (const n of t.lay.order) {
      if (!t.there(n)) continue;
      const y = t.y(n);
      const p = t.nodes.parent[n];
      const from = p < 0 ? y : t.y(p);
      if (Math.max(y, from) < -margin || Math.min(y, from) > height + margin) continue;
      if (t.x(n) < -margin || (p >= 0 && t.x(p) > width + margin)) continue;
      // Of nodes on top of each other one is enough, and a right one is not to be hidden by others.
      const depth = t.lay.depth[n];
      if (
        y - drawn[depth] < 0.7 &&
        y >= drawn[depth] &&
        t.nodes.correct[n] !== true &&
        !t.chosen[n] &&
        n !== t.selected
      )
        continue;
      drawn[depth] = y;
      visible.push(n);
    }
    context.clearRect(0, 0, width, height);
    context.lineCap = context.lineJoin = "round";
    edges(context, t, visible);
    const labelled = t.sy >= TEXT_FROM.row && t.sx >= TEXT_FROM.column;
    if (labelled) steps(context, t, visible);
    for (const n of visible) node(context, t, n, labelled);
    return visible;
  }

  // ---------------------------------------------------------------- edges

  function edges(context, t, visible) {
    const styles = { loose: [], plain: [], close: [], now: [], picked: [], chosen: [] };
    for (const n of visible) {
      if (n === 0) continue;
      if (t.chosen[n]) styles.chosen.push(n);
      else if (t.isNow(n)) styles.now.push(n);
      else styles[t.loose[n] ? "loose" : t.sy * t.lay.leaves[n] < 4 ? "close" : "plain"].push(n);
      if (t.picked.has(n) && !t.chosen[n]) styles.picked.push(n);
    }
    const c = t.colours;
    context.globalAlpha = Math.max(0.15, Math.min(1, t.sy / 5)); // where lines lie close together, they are light
    stroke(context, t, styles.close, c.soft, 1);
    stroke(context, t, styles.loose, c.faint, 1, [2, 4]);
    context.globalAlpha = 1;
    stroke(context, t, styles.plain, c.soft, 1);
    stroke(context, t, styles.now, c.now, 2);
    stroke(context, t, styles.chosen, c.chosen, 3.5);
    stroke(context, t, styles.picked, c.ink, 1.5);
  }

  function stroke(context, t, nodes, colour, thickness, dashes = []) {
    context.beginPath();
    const bend = Math.min(26, t.sx * 0.35);
    for (const n of nodes) {
      const p = t.nodes.parent[n];
      const x = t.x(p),
        y = t.y(p),
        to = t.y(n);
      context.moveTo(x, y);
      if (Math.abs(to - y) > 0.5) context.bezierCurveTo(x + bend * 0.9, y, x + bend * 0.3, to, x + bend * 1.3, to);
      context.lineTo(t.x(n), to);
    }
    context.strokeStyle = colour;
    context.lineWidth = thickness;
    context.setLineDash(dashes);
    context.stroke();
    context.setLineDash([]);
  }

  // ---------------------------------------------------------------- steps, written on the edges

  function steps(context, t, visible) {
    const c = t.colours;
    const size = t.sy >= 22 ? 12.5 : 11.5;
    context.textBaseline = "alphabetic";
    for (const n of visible) {
      if (n === 0) continue;
      const left = t.x(t.nodes.parent[n]) + Math.min(26, t.sx * 0.35) + 6;
      const room = t.x(n) - t.radius(n) - 6 - left;
      if (room < 30) continue;
      context.font = `${t.chosen[n] ? "600 " : ""}${size}px ${c.font}`;
      context.fillStyle = t.loose[n] ? c.soft : c.ink;
      context.fillText(fitting(context, t, n, room), left, t.y(n) - 4);
    }
  }

  /** As much of a step as there is room for. */
  function fitting(context, t, n, room) {
    const line = t.line(n);
    const most = Math.floor(room / 4.2);
    if (line.length <= most && context.measureText(line).width <= room) return line;
    let end = Math.min(line.length, most);
    while (end > 1 && context.measureText(`${line.slice(0, end)}…`).width > room) end -= Math.max(1, end >> 4);
    return `${line.slice(0, end)}…`;
  }

  // ---------------------------------------------------------------- nodes

  function node(context, t, n, labelled) {
    const c = t.colours;
    const { status, correct, answer, reason } = t.nodes;
    const x = t.x(n),
      y = t.y(n),
      r = t.radius(n);
    const value = t.valueOf(n);
    const ring = correct[n] === true ? c.right : correct[n] === false ? c.wrong : null;
    context.globalAlpha = t.loose[n] && n ? 0.6 : 1;
    context.fillStyle = text.absent(value) ? c.paper : c.scale(value);
    context.strokeStyle = ring || c.soft;
    context.lineWidth = ring ? Math.min(2.5, Math.max(1, r * 0.45)) : 1;
    context.beginPath();
    if (status[n] === "dead") context.rect(x - r * 0.8, y - r * 0.8, r * 1.6, r * 1.6);
    else context.arc(x, y, r, 0, 7);
    context.fill();
    context.stroke();
    if (ring && r > 1.8) mark(context, x, y, r, correct[n], ring, c.paper);
    context.globalAlpha = 1;
    if (n === t.data.result) circle(context, x, y, r + 4.5, c.chosen, 2.5);
    if (t.isNow(n)) circle(context, x, y, r + 3, c.now, 1.5);
    if (n === t.selected) circle(context, x, y, r + 7.5, c.ink, 1.5);
    if (t.folded.has(n)) note(context, `+${text.count(t.below[n])}`, x + r + 8, y + 4, c.soft, c);
    else if (labelled && (answer[n] !== null || status[n] === "dead")) {
      const last = answer[n] !== null ? text.plain(answer[n]) : reason[n] || "dead";
      const told = answer[n] !== null ? c.ink : c.soft;
      note(
        context,
        last.length > 18 ? `${last.slice(0, 17)}…` : last,
        x + r + (n === t.data.result ? 11 : 8),
        y + 4,
        told,
        c,
      );
    }
  }

  /** A tick or a cross in the node where there is room, so that right and wrong are told apart without colour. */
  function mark(context, x, y, r, right, colour, paper) {
    const a = Math.max(2.2, r * 0.62);
    context.beginPath();
    if (right) {
      context.moveTo(x - a * 0.8, y + a * 0.05);
      context.lineTo(x - a * 0.15, y + a * 0.65);
      context.lineTo(x + a * 0.85, y - a * 0.6);
    } else {
      context.moveTo(x - a * 0.65, y - a * 0.65);
      context.lineTo(x + a * 0.65, y + a * 0.65);
      context.moveTo(x + a * 0.65, y - a * 0.65);
      context.lineTo(x - a * 0.65, y + a * 0.65);
    }
    if (r > 3.5) {
      context.strokeStyle = paper;
      context.lineWidth = 4;
      context.stroke();
    }
    context.strokeStyle = colour;
    context.lineWidth = r > 3.5 ? 2 : 1.4;
    context.stroke();
  }

  function circle(context, x, y, r, colour, thickness) {
    context.beginPath();
    context.arc(x, y, r, 0, 7);
    context.strokeStyle = colour;
    context.lineWidth = thickness;
    context.stroke();
  }

  function note(context, what, x, y, colour, c) {
    context.font = `11.5px ${c.font}`;
    context.fillStyle = colour;
    context.fillText(what, x, y);
  }

  return { palette, forget, tree, TEXT_FROM };
})();
