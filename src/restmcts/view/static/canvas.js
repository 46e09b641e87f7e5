"use strict";

/** A tree on a canvas: pan, zoom, select, fold, replay. Says by `onSelect(node)` what was selected. */
class TreeCanvas {
  constructor({ onSelect, onPlay, onStep }) {
    this.report = { onSelect, onPlay, onStep };
    this.canvas = h("canvas", {
      tabindex: "0",
      role: "application",
      "aria-label":
        "Search tree. Arrow keys go from node to node, space plays, plus and minus zoom, 0 shows all, f folds.",
    });
    this.tip = h("div", { class: "tip", hidden: true });
    this.element = h("div", { class: "tree-area" }, this.canvas, this.tip);
    this.colours = paint.palette();
    this.colourBy = "raw_value";
    this.hideLoose = false;
    this.folded = new Set();
    this.width = this.height = 0;
    this.pointers = new Map();
    this.listen();
  }

  /** Show a tree as `run.tree` gives it. */
  show(data) {
    this.data = data;
    this.nodes = data.nodes;
    const { parent, iteration } = data.nodes;
    const n = parent.length;
    this.last = iteration.reduce((a, b) => Math.max(a, b), 0);
    this.time = this.last;
    this.folded.clear();
    this.lines = new Array(n);
    this.chosen = new Uint8Array(n);
    for (let i = data.result ?? -1; i >= 0; i = parent[i]) this.chosen[i] = 1;
    this.loose = new Uint8Array(n).fill(1);
    this.below = new Int32Array(n);
    for (let i = n - 1; i >= 0; i--) {
      if (this.nodes.status[i] === "finished") this.loose[i] = 0;
      if (i === 0) break;
      if (!this.loose[i]) this.loose[parent[i]] = 0;
      this.below[parent[i]] += this.below[i] + 1;
    }
    this.selected = 0;
    this.picked = new Set();
    this.place();
    this.count();
    this.home = false;
    if (this.width) this.begin();
  }

  place() {
    this.lay = layout(this.nodes.parent, (i) => !(this.hideLoose && this.loose[i]), this.folded);
  }

  count() {
    this.visits =
      this.time < this.last ? visitsUntil(this.nodes.parent, this.nodes.iteration, this.time) : this.nodes.visits;
    this.most = Math.max(
      1,
      this.nodes.visits.reduce((a, b) => Math.max(a, b), 0),
    );
  }

  // ---------------------------------------------------------------- what is where

  x(n) {
    return this.ox + this.lay.depth[n] * this.sx;
  }
  y(n) {
    return this.oy + this.lay.row[n] * this.sy;
  }
  there(n) {
    return !this.lay.hidden[n] && this.nodes.iteration[n] <= this.time;
  }
  isNow(n) {
    return this.time < this.last && n > 0 && this.nodes.iteration[n] === this.time;
  }
  valueOf(n) {
    return this.nodes[this.colourBy][n];
  }
  line(n) {
    return (this.lines[n] ??= text.plain(this.nodes.text[n]));
  }

  radius(n) {
    const least = this.nodes.correct[n] === null ? 3.5 : 5; // room for a tick or a cross
    const wanted = Math.max(least, 3.5 + 8 * Math.sqrt(this.visits[n] / this.most));
    return Math.max(1.3, Math.min(wanted, this.sy * 0.46 * this.lay.leaves[n]));
  }

  // ---------------------------------------------------------------- the view

  margins() {
    return { left: 26, right: this.width > 560 ? 120 : 40, top: 24, bottom: 24 };
  }

  fitting() {
    const m = this.margins();
    return {
      sx: Math.max(14, Math.min(220, (this.width - m.left - m.right) / Math.max(1, this.lay.deepest))),
      sy: Math.min(34, (this.height - m.top - m.bottom) / this.lay.rows),
    };
  }

  /** All of the tree. */
  fit() {
    Object.assign(this, this.fitting());
    const m = this.margins();
    this.ox = m.left;
    this.oy = m.top + (this.height - m.top - m.bottom - (this.lay.rows - 1) * this.sy) / 2;
    this.draw();
  }

  /** All of it where its steps can then be read, or nearly; else at a readable size, around the chosen path. */
  begin() {
    this.home = true;
    this.fit();
    if (this.sy < 17 && this.sy > 7.5 && this.sx >= paint.TEXT_FROM.column) {
      this.zoom(17 / this.sy, this.ox, this.y(this.data.result ?? 0));
      this.reveal(this.data.result ?? 0, true);
    }
  }

  zoom(by, x, y) {
    const least = this.fitting();
    const sy = Math.max(Math.min(least.sy, 34), Math.min(46, this.sy * by));
    const sx = Math.max(least.sx, Math.min(Math.max(240, least.sx), this.sx * (by < 1 ? by : Math.max(by, 1))));
    this.oy = y - ((y - this.oy) * sy) / this.sy;
    this.ox = x - ((x - this.ox) * sx) / this.sx;
    Object.assign(this, { sx, sy });
    this.keep();
    this.draw();
  }

  pan(dx, dy) {
    this.ox += dx;
    this.oy += dy;
    this.keep();
    this.draw();
  }

  /** Keep the tree from being dragged out of sight. */
  keep() {
    const w = this.lay.deepest * this.sx,
      t = (this.lay.rows - 1) * this.sy;
    this.ox = Math.max(Math.min(this.ox, this.width * 0.7), Math.min(26, this.width * 0.3 - w));
    this.oy = Math.max(Math.min(this.oy, this.height * 0.7), Math.min(24, this.height * 0.3 - t));
  }

  /** Bring a node into sight; to the middle if asked. */
  reveal(n, middle = false) {
    const m = this.margins();
    const x = this.x(n),
      y = this.y(n);
    if (middle) this.oy += this.height / 2 - y;
    else if (y < m.top) this.oy += m.top - y;
    else if (y > this.height - m.bottom) this.oy += this.height - m.bottom - y;
    if (x < m.left) this.ox += m.left - x;
    else if (x > this.width - m.right) this.ox += this.width - m.right - x;
    this.draw();
  }

  draw() {
    if (this.frame || !this.data) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      if (!this.width) return;
      const context = this.canvas.getContext("2d");
      const ratio = window.devicePixelRatio || 1;
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      this.visible = paint.tree(context, this);
    });
  }

  resize() {
    const { width, height } = this.element.getBoundingClientRect();
    if (!width || !height || (width === this.width && height === this.height)) return;
    const ratio = window.devicePixelRatio || 1;
    Object.assign(this, { width, height });
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    if (!this.data) return;
    if (this.home) {
      this.keep();
      this.draw();
    } else this.begin();
  }

  recolour() {
    this.colours = paint.palette();
    this.draw();
  }

  // ---------------------------------------------------------------- what can be done with it

  select(n, { reveal = true } = {}) {
    this.selected = n;
    this.picked = new Set();
    for (let i = n; i > 0; i = this.nodes.parent[i]) this.picked.add(i);
    for (let i = this.nodes.parent[n]; i >= 0; i = this.nodes.parent[i]) if (this.folded.delete(i)) this.place();
    if (this.nodes.iteration[n] > this.time) this.at(this.nodes.iteration[n]);
    if (reveal && this.width) this.reveal(n);
    this.draw();
    this.report.onSelect(n);
  }

  fold(n) {
    if (this.lay.first[n] < 0 && !this.folded.has(n)) return;
    if (!this.folded.delete(n)) this.folded.add(n);
    const y = this.y(n);
    this.place();
    this.oy += y - this.y(n);
    this.draw();
  }

  /** Show the search as it was after iteration `time`; sizes are then the iterations that grew something below. */
  at(time) {
    this.time = Math.max(0, Math.min(this.last, time));
    this.count();
    if (this.selected && !this.there(this.selected)) this.select(0, { reveal: false });
    this.draw();
  }

  set({ colourBy = this.colourBy, hideLoose = this.hideLoose }) {
    Object.assign(this, { colourBy, hideLoose });
    this.place();
    if (!this.there(this.selected)) this.select(0, { reveal: false });
    this.keep();
    this.draw();
  }

  nearest(x, y, within = 16) {
    let best = -1,
      least = within * within;
    for (const n of this.visible || []) {
      const dx = Math.max(0, Math.abs(this.x(n) - x) - this.radius(n)),
        dy = this.y(n) - y;
      // A step's words lie left of its node: they are part of it.
      const near =
        x < this.x(n) && n && x > this.x(this.nodes.parent[n]) + 30 && Math.abs(dy + 6) < this.sy / 2
          ? 9
          : dx * dx + dy * dy;
      if (near < least) [best, least] = [n, near];
    }
    return best;
  }

  /** The node above or below in the same column, or the nearest one on the way there. */
  beside(n, way) {
    const order = this.lay.order.filter((i) => this.there(i) && this.lay.depth[i] === this.lay.depth[n]);
    return order[order.indexOf(n) + way] ?? n;
  }

  child(n) {
    let best = -1;
    for (let c = this.lay.first[n]; c >= 0; c = this.lay.next[c]) {
      if (!this.there(c)) continue;
      if (best < 0 || (this.chosen[c] && !this.chosen[best])) best = c;
    }
    return best < 0 ? n : best;
  }

  // ---------------------------------------------------------------- hands

  listen() {
    new ResizeObserver(() => this.resize()).observe(this.element);
    const at = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    const on = (name, act, options) => this.canvas.addEventListener(name, (event) => this.data && act(event), options);
    on(
      "wheel",
      (event) => {
        event.preventDefault();
        this.zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0016)), ...at(event));
      },
      { passive: false },
    );
    on("pointerdown", (event) => {
      this.canvas.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, at(event));
      this.moved = 0;
    });
    on("pointermove", (event) => this.move(event, at(event)));
    const up = (event) => {
      if (this.pointers.delete(event.pointerId) && this.moved < 5 && event.type === "pointerup") {
        const n = this.nearest(...at(event), 18);
        if (n >= 0) this.select(n, { reveal: false });
      }
    };
    on("pointerup", up);
    on("pointercancel", up);
    on("pointerleave", () => {
      this.tip.hidden = true;
    });
    on("dblclick", (event) => {
      const n = this.nearest(...at(event), 18);
      if (n >= 0) this.fold(n);
    });
    on("keydown", (event) => this.key(event));
  }

  move(event, [x, y]) {
    const before = this.pointers.get(event.pointerId);
    if (!before) {
      this.hover(x, y);
      return;
    }
    const others = [...this.pointers].filter(([id]) => id !== event.pointerId);
    this.pointers.set(event.pointerId, [x, y]);
    this.moved += Math.abs(x - before[0]) + Math.abs(y - before[1]);
    if (!others.length) {
      this.pan(x - before[0], y - before[1]);
      return;
    }
    const [ox, oy] = others[0][1];
    const was = Math.hypot(before[0] - ox, before[1] - oy),
      is = Math.hypot(x - ox, y - oy);
    if (was > 0) this.zoom(is / was, (x + ox) / 2, (y + oy) / 2);
    this.pan((x - before[0]) / 2, (y - before[1]) / 2);
  }

  hover(x, y) {
    const n = this.nearest(x, y, 14);
    this.canvas.style.cursor = n >= 0 ? "pointer" : "grab";
    this.tip.hidden = n < 0;
    if (n < 0) return;
    const value = this.valueOf(n);
    this.tip.replaceChildren(
      n ? this.line(n).slice(0, 160) : "the question",
      h(
        "small",
        {},
        [text.absent(value) ? "" : `value ${text.number(value)}`, `${text.plural(this.nodes.visits[n], "visit")}`]
          .filter(Boolean)
          .join(" · "),
      ),
    );
    const left = Math.min(x + 14, this.width - Math.min(280, this.width * 0.7));
    Object.assign(this.tip.style, { left: `${Math.max(4, left)}px`, top: `${Math.min(y + 16, this.height - 60)}px` });
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const n = this.selected;
    const middle = [this.width / 2, this.height / 2];
    const act = {
      ArrowLeft: () => this.select(Math.max(0, this.nodes.parent[n])),
      ArrowRight: () => this.select(this.child(n)),
      ArrowUp: () => this.select(this.beside(n, -1)),
      ArrowDown: () => this.select(this.beside(n, 1)),
      Home: () => this.select(0),
      End: () => this.select(this.data.result ?? n),
      "+": () => this.zoom(1.3, ...middle),
      "=": () => this.zoom(1.3, ...middle),
      "-": () => this.zoom(1 / 1.3, ...middle),
      0: () => this.fit(),
      f: () => this.fold(n),
      " ": () => this.report.onPlay(),
      "[": () => this.report.onStep(-1),
      "]": () => this.report.onStep(1),
    }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }
}
