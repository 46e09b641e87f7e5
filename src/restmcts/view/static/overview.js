"use strict";

/** The first page: what the run gained, how good its value model is, what it cost; and every table. */
const overview = (() => {
  const MODES = [["greedy", "greedy"], ["search", "search"]];

  function view() {
    const page = h("div", { class: "page" });
    const numbers = run.numbers;
    page.append(header(numbers));
    const plots = [
      numbers.accuracy?.length && section("Held-out accuracy", accuracy(numbers), "95 % intervals; a question without an answer counts as wrong."),
      numbers.search?.length && section("Questions solved while searching", solved(numbers), "Of the questions searched for training data: with a right leaf in the tree, and with the right answer given."),
      numbers.value?.length && section("Value model", ranking(numbers), "The chance that a right step scores above a wrong one of the same tree, on the trees of the held-out search."),
      numbers.value?.some((v) => v.reliability?.length) && section("Can its values be believed?", calibration(numbers), "At finished leaves: the share that is right, where the value model said so much."),
      numbers.stages?.length && section("Where the time went", times(numbers), "Seconds a stage took, all attempts together."),
      numbers.stages?.some((s) => s.policy_tokens) && section("Tokens", tokens(numbers), "Tokens the policy generated, and those the value model was given; beside them the share of prompt tokens that were not computed again."),
    ].filter(Boolean);
    if (plots.length) page.append(h("div", { class: "columns" }, plots));
    const kept = run.kept();
    const left = kept && `This file has room for ${text.count(kept.here)} of ${text.plural(kept.all, "tree")}; all are listed, and all can be seen with: restmcts view`;
    if (run.live || run.sets.size) page.append(section("Trees", treeSets(), left));
    if (numbers.tables?.length) page.append(h("section", { class: "tables" }, h("h2", {}, "All numbers"), numbers.tables.map(table)));
    return page;
  }

  function section(title, content, note) {
    return h("section", {}, h("h2", {}, title), content, note && h("p", { class: "note" }, note));
  }

  // ---------------------------------------------------------------- at a glance

  function header(numbers) {
    const name = h("h1", {}, run.state.name);
    return h("header", { class: "page-head" }, name, h("dl", { class: "facts" }, facts(numbers).map(([what, much, more]) =>
      h("div", {}, h("dt", {}, what), h("dd", {}, much, more && h("small", {}, more))))));
  }

  function facts(numbers) {
    const found = [];
    const last = numbers.accuracy?.at(-1);
    for (const [mode] of MODES) {
      const now = last?.[mode];
      const first = numbers.accuracy?.find((phase) => phase[mode]);
      if (!now) continue;
      const gain = first !== last && first[mode] ? `${gained(now.share - first[mode].share)} since ${first.name}` : last.name;
      found.push([`Accuracy, ${mode}`, text.percent(now.share), gain]);
    }
    const ranked = numbers.value?.at(-1);
    if (ranked && !text.absent(ranked.auc_in_tree)) found.push(["Value model, AUC in tree", text.number(ranked.auc_in_tree), `${ranked.name}`]);
    const stages = numbers.stages || [];
    const sum = (key) => stages.reduce((total, stage) => total + (stage[key] || 0), 0);
    if (stages.length) found.push(["Time", text.duration(sum("seconds")), text.plural(stages.length, "stage")]);
    if (sum("policy_tokens")) found.push(["Tokens generated", text.count(sum("policy_tokens")), `${text.count(sum("value_tokens"))} scored`]);
    if (sum("prompt_tokens")) found.push(["Cache hits", text.percent(sum("cached_tokens") / sum("prompt_tokens"), 0), "of the prompt tokens"]);
    if (!found.length) {
      const trees = [...run.sets.values()].reduce((total, set) => total + set.rows.length, 0);
      found.push(["Trees", text.count(trees), text.plural(run.sets.size, "set")]);
    }
    return found;
  }

  const gained = (x) => `${x < 0 ? "−" : "+"}${(100 * Math.abs(x)).toFixed(1)} points`;

  // ---------------------------------------------------------------- plots

  function accuracy(numbers) {
    const phases = numbers.accuracy;
    const series = MODES.map(([mode, style]) => ({
      name: mode, style,
      points: phases.map((phase) => phase[mode] && {
        y: phase[mode].share, low: phase[mode].interval?.[0], high: phase[mode].interval?.[1],
        note: `${phase.name}, ${mode}: ${text.percent(phase[mode].share)} of ${phase[mode].n}`,
      }),
    })).filter((one) => one.points.some(Boolean));
    const highest = Math.max(...series.flatMap((one) => one.points.filter(Boolean).map((p) => p.high ?? p.y)));
    const top = Math.min(1, Math.ceil(highest * 10 + 0.2) / 10);
    const told = series.map((one) => `${one.name} from ${text.percent(one.points.find(Boolean).y)} to ${text.percent(one.points.filter(Boolean).at(-1).y)}`).join("; ");
    return charts.lines(phases.map((phase) => phase.name), series, { description: `Accuracy by phase: ${told}`, label: (v) => text.percent(v, 0), top });
  }

  function solved(numbers) {
    const rows = numbers.search.map((phase) => ({
      name: phase.name,
      label: text.absent(phase.reached) ? `${text.count(phase.questions)} searched` : `${text.count(phase.solved)} / ${text.count(phase.questions)}`,
      parts: [
        { value: phase.solved, style: "right", note: `${text.count(phase.solved)} solved` },
        { value: Math.max(0, (phase.reached ?? 0) - (phase.solved ?? 0)), style: "right-soft", note: `${text.count(phase.reached)} with a right leaf` },
        { value: (phase.questions ?? 0) - Math.max(phase.reached ?? 0, phase.solved ?? 0), style: "rest", note: `${text.count(phase.questions)} searched` },
      ],
    }));
    const legend = [{ name: "right answer given", style: "right" }, { name: "a right leaf, another answer given", style: "right-soft" }, { name: "none right", style: "rest" }];
    return charts.bars(rows, { description: `Solved: ${rows.map((row) => `${row.name} ${row.label}`).join(", ")}`, legend });
  }

  function ranking(numbers) {
    const phases = numbers.value;
    const line = (key, name, style) => ({ name, style, points: phases.map((p) => (text.absent(p[key]) ? null : { y: p[key], note: `${p.name}: ${text.number(p[key], 3)}` })) });
    const series = [line("auc_in_tree", "AUC within a tree", "search"), line("auc_siblings", "among siblings", "greedy"), line("mae", "mean absolute error", "muted")];
    return charts.lines(phases.map((p) => p.name), series, { description: "Value-model quality by phase", label: (v) => text.number(v, 1) });
  }

  function calibration(numbers) {
    const last = numbers.value.filter((v) => v.reliability?.length).at(-1);
    return charts.reliability(last.reliability, `Calibration of the value model of ${last.name}`);
  }

  const STYLE = { search: "search", evaluate: "greedy", policy: "chosen", value: "chosen-soft" };

  function times(numbers) {
    const stages = numbers.stages.filter((stage) => stage.seconds >= 0.05);
    const rows = (stages.length ? stages : numbers.stages).map((stage) => ({
      name: stage.stage, label: text.duration(stage.seconds),
      parts: [{ value: stage.seconds, style: STYLE[stage.kind] || "rest", note: text.duration(stage.seconds) }],
    }));
    const legend = [["search", "search"], ["greedy", "evaluation"], ["chosen", "training the policy"], ["chosen-soft", "training the value model"]].map(([style, name]) => ({ style, name }));
    return charts.bars(rows, { description: "Seconds by stage", legend });
  }

  function tokens(numbers) {
    const rows = numbers.stages.filter((stage) => stage.policy_tokens).map((stage) => ({
      name: stage.stage,
      label: stage.prompt_tokens ? `${text.percent(stage.cached_tokens / stage.prompt_tokens, 0)} cached` : "",
      parts: [
        { value: stage.policy_tokens, style: "greedy", note: `${text.count(stage.policy_tokens)} generated` },
        { value: stage.value_tokens, style: "search", note: `${text.count(stage.value_tokens)} scored` },
      ],
    }));
    return charts.bars(rows, { description: "Tokens by stage", legend: [{ style: "greedy", name: "generated" }, { style: "search", name: "scored" }] });
  }

  // ---------------------------------------------------------------- sets and tables

  function treeSets() {
    if (!run.sets.size) return h("p", { class: "note" }, "No trees yet.");
    return h("ul", { class: "sets" }, [...run.sets.values()].map((set) => {
      const graded = set.rows.filter((row) => row.right !== null);
      const right = graded.filter((row) => row.right).length;
      const share = graded.length ? `${text.count(right)} of ${text.count(graded.length)} right` : "not graded";
      const state = set.share < 1 ? `reading, ${text.percent(set.share, 0)}` : set.finished ? "" : "unfinished";
      const broken = set.unreadable ? `${text.plural(set.unreadable, "line")} unreadable` : "";
      return h("li", {}, h("a", { href: `#/questions?${new URLSearchParams({ set: set.name })}` },
        h("strong", {}, set.title), h("span", {}, [text.plural(set.rows.length, "tree"), share, state, broken].filter(Boolean).join(" · "))));
    }));
  }

  function table(data) {
    const words = data.words;
    const cell = (tag, content, i) => {
      const warned = content.startsWith("**") && content.endsWith("**");
      return h(tag, { class: i && !words ? "figure" : null, scope: tag === "th" ? (i ? "col" : "row") : null }, warned ? h("strong", { class: "warned" }, content.slice(2, -2)) : content);
    };
    const head = data.columns.some(Boolean) && h("thead", {}, h("tr", {}, data.columns.map((name, i) => h("th", { scope: "col", class: i && !words ? "figure" : null }, name))));
    const body = h("tbody", {}, data.rows.map((row) => h("tr", {}, row.map((content, i) => cell(i ? "td" : "th", content, i)))));
    return h("div", { class: "table" },
      h("h3", {}, data.title),
      data.rows.length > 0 && h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": data.title }, h("table", {}, head, body)),
      data.notes.map((note) => h("p", { class: "note" }, note.replaceAll("**", ""))));
  }

  return { view };
})();
