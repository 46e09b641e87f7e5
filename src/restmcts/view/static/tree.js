"use strict";

/** The tree of a question, or two of them side by side. */
const treePage = (() => {
  const COLOURS = [
    ["raw_value", "value model", "what the value model said"],
    ["value", "backed-up value", "what the search made of it"],
    ["v", "process reward v", "what the verified tree says: the label the value model learns"],
  ];

  function view(query, go) {
    const rows = run.treesOf(query.q);
    if (!rows.length)
      return h("div", { class: "page" }, h("p", { class: "note" }, "There is no tree of this question."));
    return new Page(rows, query, go).element;
  }

  class Page {
    constructor(rows, query, go) {
      Object.assign(this, {
        rows,
        go,
        query: { ...query },
        options: { colourBy: query.c || "raw_value", hideLoose: query.hide === "1" },
      });
      const of = (name) => rows.find((row) => row.set.name === name);
      this.panes = [new Pane(this, of(query.a) || rows.at(-1), Number(query.n) || null)];
      if (of(query.b)) this.panes.push(new Pane(this, of(query.b), null));
      this.details = h("aside", { class: "details", "aria-label": "The selected step", "aria-live": "polite" });
      this.element = h(
        "div",
        { class: "page full" },
        this.head(),
        this.bar(),
        h(
          "div",
          { class: "stage" },
          h(
            "div",
            { class: `panes n${this.panes.length}` },
            this.panes.map((pane) => pane.element),
          ),
          this.details,
        ),
      );
      this.element.recolour = () => this.panes.forEach((pane) => pane.canvas.recolour());
      this.element.leave = () => this.panes.forEach((pane) => pane.stop());
      this.element.keydown = (event) => this.key(event);
      this.element.keep = true;
    }

    head() {
      const row = this.panes[0].row;
      const [before, after] = questions.around(row);
      const link = (other, name) =>
        other &&
        h(
          "a",
          {
            href: `#/tree?${new URLSearchParams({ q: other.key, a: other.set.name })}`,
            rel: name === "Previous" ? "prev" : "next",
          },
          name,
        );
      return h(
        "header",
        { class: "question" },
        h(
          "p",
          { class: "path" },
          h("a", { href: `#/questions?${new URLSearchParams({ set: row.set.name })}` }, row.set.title),
          h("span", {}, row.id),
          h("span", { class: "grow" }),
          link(before, "Previous"),
          link(after, "Next"),
        ),
        h("h1", { class: "asked" }, text.prose(row.question)),
        row.gold !== null && h("p", { class: "gold" }, "Known answer ", h("strong", {}, text.answer(row.gold))),
      );
    }

    bar() {
      const option = (row, name = row.set.title) => h("option", { value: row.set.name }, name);
      const compare = h(
        "select",
        { "aria-label": "Compare with", onchange: (event) => this.change({ b: event.target.value }) },
        h("option", { value: "" }, "nothing"),
        this.rows
          .filter((row) => row !== this.panes[0].row)
          .map((row) => option(row, `${row.set.title} ${row.right === true ? "✓" : row.right === false ? "✗" : ""}`)),
      );
      compare.value = this.panes[1]?.row.set.name ?? "";
      const colour = h(
        "select",
        { "aria-label": "Colour", onchange: (event) => this.set({ colourBy: event.target.value }) },
        COLOURS.map(([value, name, title]) => h("option", { value, title }, name)),
      );
      colour.value = this.options.colourBy;
      const loose = h("input", {
        type: "checkbox",
        onchange: (event) => this.set({ hideLoose: !event.target.checked }),
      });
      loose.checked = !this.options.hideLoose;
      return h(
        "div",
        { class: "controls tree-bar" },
        this.rows.length > 1 && h("label", {}, h("span", {}, "Compare with"), compare),
        h("label", {}, h("span", {}, "Colour"), colour),
        legend(),
        h("label", { class: "check" }, loose, "unfinished branches"),
        h("details", { class: "help" }, h("summary", {}, "Keys"), keys()),
      );
    }

    set(options) {
      Object.assign(this.options, options);
      for (const pane of this.panes) pane.canvas.data && pane.canvas.set(this.options);
      this.note({ c: this.options.colourBy, hide: this.options.hideLoose ? "1" : "" });
    }

    change(query) {
      this.go({ ...this.query, ...query });
    }

    /** Keep in the address what is shown, without drawing anew. */
    note(query) {
      Object.assign(this.query, query);
      this.go(this.query, true);
    }

    picked(pane, n) {
      this.details.replaceChildren(...nodeDetails.describe(pane, n));
      if (pane === this.panes[0]) this.note({ n: n || "" });
    }

    key(event) {
      if (
        event.target.closest("input, select, button, summary, a, canvas") ||
        event.ctrlKey ||
        event.metaKey ||
        event.altKey
      )
        return;
      this.panes[0].canvas.data && this.panes[0].canvas.key(event);
    }
  }

  function legend() {
    return h("p", { class: "scale", "aria-hidden": "true" }, "0", h("i", {}), "1");
  }

  function keys() {
    const found = [
      ["← →", "parent, child"],
      ["↑ ↓", "the node above, below"],
      ["Home, End", "the question, the answer given"],
      ["space", "play"],
      ["[ ]", "an iteration back, on"],
      ["+ − 0", "zoom in, out, all"],
      ["f", "fold"],
    ];
    return h(
      "dl",
      {},
      found.map(([key, what]) => h("div", {}, h("dt", {}, key), h("dd", {}, what))),
    );
  }

  // ---------------------------------------------------------------- one tree

  class Pane {
    constructor(page, row, selected) {
      Object.assign(this, { page, row, selected });
      this.canvas = new TreeCanvas({
        onSelect: (n) => page.picked(this, n),
        onPlay: () => this.play(),
        onStep: (way) => this.step(way),
      });
      this.button = h(
        "button",
        { type: "button", class: "play", "aria-label": "Play the search", onclick: () => this.play() },
        "▶",
      );
      this.slider = h("input", {
        type: "range",
        min: "0",
        step: "1",
        "aria-label": "Iteration",
        oninput: () => {
          this.stop();
          this.at(Number(this.slider.value));
        },
      });
      this.told = h("output", {});
      this.mark = verdict(row.right);
      const zoom = (by) => () => this.canvas.zoom(by, this.canvas.width / 2, this.canvas.height / 2);
      const tool = (name, label, onclick) =>
        h("button", { type: "button", "aria-label": label, title: label, onclick }, name);
      const tools = h(
        "div",
        { class: "zoom" },
        tool("−", "Zoom out", zoom(1 / 1.4)),
        tool("+", "Zoom in", zoom(1.4)),
        tool("⤢", "Show all", () => this.canvas.fit()),
      );
      this.element = h(
        "section",
        { class: "pane", "aria-label": row.set.title },
        this.head(),
        this.canvas.element,
        h("div", { class: "player" }, this.button, this.slider, this.told, tools),
      );
      this.load();
    }

    head() {
      const row = this.row;
      const facts = [
        row.method,
        `${text.plural(row.nodes, "node")}`,
        `${text.count(row.policy_tokens)} tokens`,
        `ended: ${row.stop.replaceAll("_", " ")}`,
      ];
      return h(
        "header",
        {},
        h("h2", {}, row.set.title),
        h("p", {}, this.mark, " ", h("strong", {}, row.answer === null ? "no answer" : text.answer(row.answer))),
        h("p", { class: "note" }, facts.join(" · ")),
      );
    }

    async load() {
      try {
        this.data = await run.tree(this.row);
      } catch (error) {
        this.canvas.element.replaceChildren(h("p", { class: "note" }, error.message));
        return;
      }
      const { canvas } = this;
      if (this.row.right === null && this.data.result !== null)
        this.mark.replaceWith(verdict(this.data.nodes.correct[this.data.result]));
      canvas.colourBy = this.page.options.colourBy;
      canvas.hideLoose = this.page.options.hideLoose;
      canvas.show(this.data);
      this.slider.max = String(canvas.last);
      this.at(canvas.last);
      const first =
        this.selected !== null && this.selected < this.data.nodes.parent.length
          ? this.selected
          : (this.data.result ?? 0);
      if (this === this.page.panes[0]) canvas.select(first, { reveal: this.selected !== null });
      else canvas.selected = -1;
    }

    at(time) {
      this.canvas.at(time);
      this.slider.value = String(time);
      const whole = time >= this.canvas.last;
      this.told.textContent = whole
        ? `${text.plural(this.canvas.last, "iteration")}`
        : `iteration ${time} of ${this.canvas.last}`;
    }

    step(way) {
      this.stop();
      this.at(Math.max(0, Math.min(this.canvas.last, this.canvas.time + way)));
    }

    play() {
      if (this.timer || !this.data) {
        this.stop();
        return;
      }
      if (this.canvas.time >= this.canvas.last) this.at(0);
      this.button.textContent = "❚❚";
      this.button.setAttribute("aria-label", "Pause");
      const pace = Math.max(60, Math.min(700, 16000 / this.canvas.last));
      this.timer = setInterval(() => {
        this.at(this.canvas.time + 1);
        if (this.canvas.time >= this.canvas.last) this.stop();
      }, pace);
    }

    stop() {
      clearInterval(this.timer);
      this.timer = 0;
      this.button.textContent = "▶";
      this.button.setAttribute("aria-label", "Play the search");
    }
  }

  return { view };
})();
