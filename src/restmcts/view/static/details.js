"use strict";

/** What is known of the node that was clicked: its step, its values and labels, the steps before it, its prompt. */
const nodeDetails = (() => {
  function describe(pane, n) {
    const { data, canvas } = pane;
    const nodes = data.nodes;
    const way = [];
    for (let i = n; i > 0; i = nodes.parent[i]) way.unshift(i);
    const title = n === 0 ? "The question" : `Step ${way.length}`;
    const found = [h("h2", {}, title, pane.page.panes.length > 1 && h("small", {}, pane.row.set.title))];
    if (n) found.push(h("p", { class: "step" }, text.prose(nodes.text[n]) || "(empty)"), outcome(data, n));
    else if (data.solution)
      found.push(
        h("details", {}, h("summary", {}, "Worked solution"), h("p", { class: "step" }, text.prose(data.solution))),
      );
    found.push(values(data, n));
    if (way.length > 1) found.push(path(pane, way));
    found.push(prompt(data, way));
    if (n === 0) found.push(settings(data));
    if (canvas.time < canvas.last)
      found.push(h("p", { class: "note" }, "Values and visits are those at the end of the search."));
    return found.filter(Boolean);
  }

  function outcome(data, n) {
    const { status, answer, correct, reason } = data.nodes;
    const marks = [];
    if (n === data.result) marks.push(h("span", { class: "tag chosen" }, "the answer given"));
    if (status[n] === "finished")
      marks.push(h("span", {}, verdict(correct[n]), " answer ", h("strong", {}, text.answer(answer[n]))));
    if (status[n] === "dead")
      marks.push(
        h(
          "span",
          { class: "tag" },
          {
            empty: "dead: an empty step",
            length: "dead: cut off at the token limit",
            ended: "dead: ended without an answer",
            depth: "dead: too many steps",
          }[reason[n]] || "dead",
        ),
      );
    if (status[n] === "open")
      marks.push(h("span", { class: "tag" }, data.nodes.parent.includes(n) ? "went on" : "unfinished"));
    return h("p", { class: "outcome" }, marks);
  }

  function values(data, n) {
    const x = data.nodes;
    const from = { run: "", here: "inferred here, by the usual rule", null: "no known answer, so no labels" }[
      data.labels_from
    ];
    const rows = [
      ["V", "value model", swatch(x.raw_value[n])],
      ["value", "backed up by the search", swatch(x.value[n])],
      ["visits", "iterations that came through", text.count(x.visits[n])],
      ["v", "quality value, the label", swatch(x.v[n])],
      ["m", "further steps to a right answer", text.number(x.m[n], 0)],
      ["r", "0 right, 1 wrong", text.number(x.r[n], data.nodes.r.some((r) => r > 0 && r < 1) ? 2 : 0)],
      ["w", "weighted reward", text.number(x.w[n])],
      ["tokens", "of this step", text.count(x.tokens[n])],
      ["log p", "under the policy", text.number(x.logprob[n])],
      [
        "iteration",
        { expand: "made by expansion", rollout: "made by rollout", sample: "sampled", root: "" }[x.origin[n]] ??
          x.origin[n],
        text.count(x.iteration[n]),
      ],
      ["copies", "equal samples", text.count(x.copies[n])],
    ];
    return h(
      "div",
      {},
      h(
        "dl",
        { class: "values" },
        rows.map(([name, what, value]) => h("div", {}, h("dt", {}, name, h("small", {}, what)), h("dd", {}, value))),
      ),
      from && h("p", { class: "note" }, `v, m, r, w: ${from}.`),
    );
  }

  function path(pane, way) {
    const x = pane.data.nodes;
    return h(
      "div",
      {},
      h("h3", {}, "The steps so far"),
      h(
        "ol",
        { class: "way" },
        way.map((i) =>
          h(
            "li",
            {},
            h("button", { type: "button", onclick: () => pane.canvas.select(i) }, text.prose(x.text[i])),
            h("span", { class: "figure" }, swatch(x.raw_value[i])),
          ),
        ),
      ),
    );
  }

  /** What the policy was given when it wrote the selected step. */
  function prompt(data, way) {
    if (!data.prompt) return null;
    const before = way.slice(0, -1).map((i) => data.nodes.text[i]);
    const turns = data.prompt.map(({ role, content }) => [role === "text" ? "prompt" : role, content]);
    if (before.length) turns.push(["steps so far", before.join("\n")]);
    return h(
      "details",
      { class: "prompt" },
      h("summary", {}, "Prompt"),
      turns.map(([role, content]) => h("div", { class: "turn" }, h("h4", {}, role), h("pre", {}, content))),
    );
  }

  function settings(data) {
    const rows = [...Object.entries(data.models), ...Object.entries(data.settings)].filter(
      ([, value]) => value !== null,
    );
    return h(
      "details",
      { class: "settings" },
      h("summary", {}, "Models and settings"),
      h(
        "dl",
        { class: "values" },
        rows.map(([name, value]) => h("div", {}, h("dt", {}, name.replaceAll("_", " ")), h("dd", {}, String(value)))),
      ),
      data.failures.map((failure) => h("p", { class: "note" }, `failed: ${failure}`)),
    );
  }

  return { describe };
})();
