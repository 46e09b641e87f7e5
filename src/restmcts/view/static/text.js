"use strict";

/** Elements and texts. What models wrote only ever becomes text nodes, or MathML that Temml made of a formula. */
const h = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(element.style, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
};

const text = (() => {
  const FORMULA = new RegExp(
    [
      /\$\$([\s\S]{1,2000}?)\$\$/,
      /\\\[([\s\S]{1,2000}?)\\\]/,
      /\\\(([\s\S]{1,2000}?)\\\)/,
      /\$(?=\S)((?:\\.|[^$\\\n])*?[^\s\\$])\$(?!\d)/,
      /(\\boxed\s*\{)/,
    ]
      .map((part) => part.source)
      .join("|"),
    "g",
  );
  const LONGEST = 2000;
  const SETTINGS = { throwOnError: true, trust: false, maxExpand: 200, maxSize: [20, 20] };

  /** A text with its formulas rendered. `$5 and $6` stays as it is: a formula has no space just inside its dollars. */
  function prose(source) {
    const whole = String(source ?? "");
    const found = document.createDocumentFragment();
    let at = 0;
    FORMULA.lastIndex = 0;
    for (let match; (match = FORMULA.exec(whole));) {
      let formula = match[1] ?? match[2] ?? match[3] ?? match[4];
      let end = match.index + match[0].length;
      if (match[5]) {
        end = closing(whole, end);
        formula = whole.slice(match.index, end);
      }
      found.append(
        whole.slice(at, match.index),
        rendered(formula, match[1] ?? match[2], whole.slice(match.index, end)),
      );
      at = FORMULA.lastIndex = end;
    }
    found.append(whole.slice(at));
    return found;
  }

  /** Where the brace that is open before `at` closes; the end of the text where it does not. */
  function closing(whole, at) {
    for (let depth = 1; at < whole.length; at++) {
      if (whole[at] === "\\") at++;
      else if (whole[at] === "{") depth++;
      else if (whole[at] === "}" && !--depth) return at + 1;
    }
    return whole.length;
  }

  function rendered(formula, display, source) {
    if (formula.length > LONGEST) return source;
    const place = h("span", { class: display === undefined ? "formula" : "formula display" });
    try {
      temml.render(formula, place, { ...SETTINGS, displayMode: display !== undefined });
      return place;
    } catch {
      return source;
    }
  }

  /** An answer: bare LaTeX, as question sets write it, is a formula too. */
  function answer(source) {
    const whole = String(source ?? "");
    return /\\[a-zA-Z]/.test(whole) && !/[$<>]|\\[([]/.test(whole) ? rendered(whole, undefined, whole) : prose(whole);
  }

  const SIGNS = {
    times: "×",
    cdot: "·",
    div: "÷",
    pm: "±",
    leq: "≤",
    le: "≤",
    geq: "≥",
    ge: "≥",
    neq: "≠",
    ne: "≠",
    approx: "≈",
    to: "→",
    rightarrow: "→",
    Rightarrow: "⇒",
    implies: "⇒",
    sum: "∑",
    prod: "∏",
    int: "∫",
    infty: "∞",
    cdots: "⋯",
    ldots: "…",
    dots: "…",
    alpha: "α",
    beta: "β",
    gamma: "γ",
    delta: "δ",
    theta: "θ",
    lambda: "λ",
    mu: "μ",
    pi: "π",
    sigma: "σ",
    phi: "φ",
    omega: "ω",
    in: "∈",
    equiv: "≡",
    circ: "∘",
    angle: "∠",
    triangle: "△",
    left: "",
    right: "",
    displaystyle: "",
    quad: " ",
  };
  const PLAIN = [
    [/\\(?:boxed|text|mathrm|mathbf|operatorname)\s*\{([^{}]*)\}/g, "$1"],
    [/\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}/g, "$1/$2"],
    [/\\sqrt\s*\{([^{}]*)\}/g, "√($1)"],
    [/\\([a-zA-Z]+)/g, (all, name) => (Object.hasOwn(SIGNS, name) ? SIGNS[name] : all)],
    [/([_^])\{([^{}])\}/g, "$1$2"],
    [/\\[,;!: ]/g, " "],
    [/\\[()[\]]|\$/g, ""],
    [/\s+/g, " "],
  ];

  /** One line for where formulas cannot be drawn. */
  function plain(source) {
    let line = String(source ?? "").slice(0, 400);
    for (const [pattern, by] of PLAIN) line = line.replace(pattern, by);
    return line.trim();
  }

  // ---------------------------------------------------------------- numbers

  const ABSENT = "–";
  const absent = (x) => x === null || x === undefined;
  const number = (x, digits = 2) => (absent(x) ? ABSENT : x.toFixed(digits).replace("-", "−"));
  const count = (x) => {
    if (absent(x)) return ABSENT;
    if (Math.abs(x) >= 1e7) return `${(x / 1e6).toFixed(0)} M`;
    if (Math.abs(x) >= 1e6) return `${(x / 1e6).toFixed(1)} M`;
    return Math.round(x).toLocaleString("en");
  };
  const percent = (x, digits = 1) => (absent(x) ? ABSENT : `${(100 * x).toFixed(digits)} %`);
  const duration = (s) => {
    if (absent(s)) return ABSENT;
    if (s < 60) return `${s < 10 ? s.toFixed(1) : Math.round(s)} s`;
    const minutes = Math.floor(s / 60);
    return minutes < 60
      ? `${minutes} min ${Math.round(s % 60)} s`
      : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  };
  const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

  return { prose, answer, plain, number, count, percent, duration, plural, absent, ABSENT };
})();

/** ✓, ✗ or · : right, wrong, not known. */
function verdict(right) {
  if (right === true) return h("span", { class: "verdict right", title: "right" }, "✓");
  if (right === false) return h("span", { class: "verdict wrong", title: "wrong" }, "✗");
  return h("span", { class: "verdict unknown", title: "not graded" }, "·");
}
