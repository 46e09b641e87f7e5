"use strict";

/** The table of questions: one row a question of the chosen trees, filtered, sorted, drawn as far as looked at. */
const questions = (() => {
  const AT_ONCE = 100;

  const COLUMNS = [
    { key: "question", name: "Question", sort: (row) => row.question, words: true },
    { key: "kind", name: "Kind", sort: (row) => row.kind, words: true, optional: true },
    {
      key: "strip",
      name: "Phases",
      sort: (row) => firstSolved(row),
      title: "right or wrong, phase by phase; sorts by the first phase that solved it",
    },
    { key: "answer", name: "Answer", sort: (row) => (row.right === null ? -1 : Number(row.right)), words: true },
    { key: "value", name: "Value", sort: (row) => row.value, title: "what the value model said of the answer given" },
    {
      key: "gap",
      name: "Gap",
      sort: (row) => row.gap,
      title: "how far the value model is from the outcome, on average over the finished leaves: |value − right|",
    },
    { key: "nodes", name: "Nodes", sort: (row) => row.nodes },
    { key: "depth", name: "Longest", sort: (row) => row.depth, title: "steps on the longest path" },
    { key: "policy_tokens", name: "Tokens", sort: (row) => row.policy_tokens, title: "tokens the policy generated" },
    { key: "seconds", name: "Seconds", sort: (row) => row.seconds, title: "seconds the question waited for replies" },
  ];
  const SHOW = [
    ["all", "all", () => true],
    ["solved", "solved", (row) => row.right === true],
    ["unsolved", "not solved", (row) => row.right === false],
    ["lost", "solved before, not now", (row) => row.right === false && firstSolved(row) < Infinity],
    ["missed", "a right leaf, not chosen", (row) => row.right === false && row.reached],
    ["silent", "no answer", (row) => row.answer === null],
  ];

  let memo = new Map();
  let shown = [];

  /** The first phase in which the question was solved in this way; Infinity where none did. */
  function firstSolved(row) {
    if (!memo.has(row.key)) {
      const found = run
        .alike(row.set)
        .map((set) => set.byKey.get(row.key))
        .find((other) => other?.right);
      memo.set(row.key, found ? found.set.phase : Infinity);
    }
    return memo.get(row.key);
  }

  const phaseName = (phase) => ({ "-1": "base model", 0: "warm start" })[phase] ?? `round ${phase}`;

  // ---------------------------------------------------------------- the page

  function view(query, go) {
    const sets = [...run.sets.values()];
    const set = run.sets.get(query.set) || sets.filter((s) => s.mode === "search").at(-1) || sets.at(-1);
    if (!set) return h("div", { class: "page" }, h("p", { class: "note" }, "No trees yet."));
    const now = { show: "all", first: "", sort: "", q: "", kind: "", ...query, set: set.name };
    const page = h("div", { class: "page wide" });
    const list = new List(set, now, go);
    page.append(h("h1", { class: "small" }, "Questions"), controls(set, now, go, list), list.element);
    list.fill();
    page.update = () => list.fill(true);
    return page;
  }

  function controls(set, now, go, list) {
    const choose = (name, label, options) => {
      const select = h(
        "select",
        { "aria-label": label, onchange: (event) => go({ ...now, [name]: event.target.value }) },
        options,
      );
      select.value = now[name];
      return h("label", {}, h("span", {}, label), select);
    };
    const option = (value, name) => h("option", { value }, name);
    const pools = [...new Set([...run.sets.values()].map((s) => s.pool))];
    const ofSets = pools.map((pool) =>
      h(
        "optgroup",
        { label: { "": "trees", "held-out": "held-out questions", training: "training questions" }[pool] },
        [...run.sets.values()]
          .filter((s) => s.pool === pool)
          .map((s) => option(s.name, `${s.title} (${text.count(s.rows.length)})`)),
      ),
    );
    const phases = run.alike(set).map((s) => s.phase);
    const kinds = [...new Set(set.rows.map((row) => row.kind).filter(Boolean))].sort();
    const search = h("input", {
      type: "search",
      id: "search",
      placeholder: "text, id or answer",
      value: now.q,
      oninput: (event) => {
        now.q = event.target.value;
        list.fill();
        go(now, true);
      },
    });
    return h(
      "form",
      { class: "controls", role: "search", onsubmit: (event) => event.preventDefault() },
      choose("set", "Trees of", ofSets),
      choose(
        "show",
        "Show",
        SHOW.map(([value, name]) => option(value, name)),
      ),
      phases.length > 1 &&
        choose("first", "First solved", [
          option("", "whenever"),
          ...phases.map((p) => option(String(p), phaseName(p))),
          option("never", "never"),
        ]),
      kinds.length > 1 && choose("kind", "Kind", [option("", "all"), ...kinds.map((kind) => option(kind, kind))]),
      choose(
        "sort",
        "Sort by",
        [
          option("", "order of the run"),
          ...[
            ["-gap", "most disagreement"],
            ["-depth", "longest"],
            ["-policy_tokens", "costliest"],
            ["-nodes", "largest tree"],
            ["strip", "first solved"],
          ].map(([value, name]) => option(value, name)),
          !["", "-gap", "-depth", "-policy_tokens", "-nodes", "strip"].includes(now.sort) &&
            option(now.sort, "the column chosen"),
        ].filter(Boolean),
      ),
      h("label", { class: "grow" }, h("span", {}, "Search"), search),
    );
  }

  // ---------------------------------------------------------------- the rows

  class List {
    constructor(set, now, go) {
      Object.assign(this, { set, now, go });
      this.columns = COLUMNS.filter((column) => !column.optional || set.rows.some((row) => row[column.key]));
      if (run.alike(set).length < 2) this.columns = this.columns.filter((column) => column.key !== "strip");
      this.body = h("tbody", { onkeydown: (event) => this.key(event) });
      this.count = h("p", { class: "count", role: "status" });
      this.more = h("button", { type: "button", class: "more", onclick: () => this.extend() }, "Show more");
      const table = h(
        "table",
        { class: "questions" },
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            this.columns.map((column) => this.heading(column)),
          ),
        ),
        this.body,
      );
      this.element = h("div", {}, this.count, table, this.more);
      new IntersectionObserver((seen) => seen.some((one) => one.isIntersecting) && this.extend(), {
        rootMargin: "600px",
      }).observe(this.more);
    }

    heading(column) {
      const [by, down] = [this.now.sort.replace(/^-/, ""), this.now.sort.startsWith("-")];
      const sorted = by === column.key;
      const next = sorted && down ? column.key : sorted ? "" : column.words ? column.key : `-${column.key}`;
      return h(
        "th",
        {
          scope: "col",
          class: `c-${column.key}${column.words ? "" : " figure"}`,
          "aria-sort": sorted ? (down ? "descending" : "ascending") : null,
        },
        h(
          "button",
          { type: "button", title: column.title, onclick: () => this.go({ ...this.now, sort: next }) },
          column.name,
          h("span", { "aria-hidden": "true" }, sorted ? (down ? " ↓" : " ↑") : ""),
        ),
      );
    }

    /** Filter and sort anew, and draw the first rows; or as many as were drawn, when it is only that more are there. */
    fill(more = false) {
      memo = new Map();
      const before = more ? this.body.children.length : 0;
      const at = scrollY;
      const { show, first, q, kind, sort } = this.now;
      const wanted = SHOW.find(([name]) => name === show)?.[2] ?? SHOW[0][2];
      const words = q.trim().toLowerCase();
      const phase = first === "never" ? Infinity : first === "" ? null : Number(first);
      this.found = this.set.rows.filter(
        (row) =>
          this.set.byKey.get(row.key) === row &&
          wanted(row) &&
          (!kind || row.kind === kind) &&
          (phase === null || firstSolved(row) === phase) &&
          (!words || `${row.question}\n${row.id}\n${row.answer ?? ""}`.toLowerCase().includes(words)),
      );
      const column = COLUMNS.find(({ key }) => key === sort.replace(/^-/, ""));
      if (column) this.found = inOrder(this.found, column.sort, sort.startsWith("-"));
      shown = this.found;
      const reading = this.set.share < 1 ? `, ${text.percent(this.set.share, 0)} of the file read` : "";
      const all = text.plural(this.set.byKey.size, "question");
      this.count.textContent = `${text.count(this.found.length)} of ${all}${reading}`;
      this.body.replaceChildren();
      do this.extend();
      while (this.body.children.length < Math.min(before, this.found.length));
      if (more) scrollTo(0, at);
    }

    extend() {
      const from = this.body.children.length;
      this.body.append(...this.found.slice(from, from + AT_ONCE).map((row) => this.line(row)));
      this.more.hidden = this.body.children.length >= this.found.length;
    }

    line(row) {
      const link = `#/tree?${new URLSearchParams({ q: row.key, a: row.set.name })}`;
      const cells = {
        question: () => h("a", { href: link }, text.prose(row.question)),
        kind: () => row.kind ?? "",
        strip: () => strip(row),
        answer: () => [
          verdict(row.right),
          " ",
          h("span", { class: "answer" }, row.answer === null ? "none" : text.answer(row.answer)),
        ],
        value: () => swatch(row.value),
        gap: () => text.number(row.gap),
        seconds: () => text.number(row.seconds, 1),
      };
      return h(
        "tr",
        {
          onclick: (event) => {
            if (!event.target.closest("a") && !getSelection().toString()) location.hash = link;
          },
        },
        this.columns.map((column) =>
          h(
            "td",
            { class: `c-${column.key}${column.words ? "" : " figure"}`, "data-name": column.name },
            (cells[column.key] ?? (() => text.count(row[column.key])))(),
          ),
        ),
      );
    }

    /** Up and down go from question to question. */
    key(event) {
      const way = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
      const link = way && event.target.closest("tr")?.[way]?.querySelector("a");
      if (!link) return;
      event.preventDefault();
      link.focus();
    }
  }

  /** Sorted by a key, equal ones in their order, absent ones last. */
  function inOrder(rows, key, down) {
    const keyed = rows.map((row, i) => ({ row, i, k: key(row) }));
    keyed.sort((a, b) => {
      const none = text.absent(a.k) - text.absent(b.k);
      if (none || text.absent(a.k)) return none || a.i - b.i;
      const order = typeof a.k === "string" ? a.k.localeCompare(b.k) : a.k === b.k ? 0 : a.k < b.k ? -1 : 1;
      return (down ? -order : order) || a.i - b.i;
    });
    return keyed.map(({ row }) => row);
  }

  function strip(row) {
    const cells = run.alike(row.set).map((set) => ({ set, right: set.byKey.get(row.key)?.right }));
    const told = cells
      .map(({ set, right }) => `${phaseName(set.phase)}: ${right === true ? "right" : right === false ? "wrong" : "–"}`)
      .join(", ");
    return h(
      "span",
      { class: "strip", role: "img", "aria-label": told, title: told },
      cells.map(({ right }) => h("i", { class: right === true ? "right" : right === false ? "wrong" : "absent" })),
    );
  }

  /** The questions before and after one in the list as it was last seen. */
  function around(row) {
    const at = shown.findIndex((other) => other.key === row.key && other.set === row.set);
    return at < 0 ? [] : [shown[at - 1], shown[at + 1]];
  }

  return { view, around };
})();

/** A value with its colour beside it. */
function swatch(value) {
  if (text.absent(value)) return text.ABSENT;
  return h(
    "span",
    { class: "swatch" },
    h("i", { style: { background: paint.palette().scale(value) } }),
    text.number(value),
  );
}
