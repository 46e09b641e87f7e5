"use strict";

/** Which view is shown, light or dark, and keeping up with a run that goes on. */
(() => {
  const EVERY = 3000;
  const VIEWS = { overview: () => overview.view(), questions: questions.view, tree: treePage.view };
  const main = document.getElementById("main");
  let page = null;
  let shown = "";

  // ---------------------------------------------------------------- the address

  function where() {
    const [name, query] = location.hash.replace(/^#\//, "").split("?");
    return [VIEWS[name] ? name : "overview", Object.fromEntries(new URLSearchParams(query || ""))];
  }

  /** Go to a query of the current view; `quietly`: what is shown is that already. */
  function go(query, quietly = false) {
    const wanted = Object.fromEntries(
      Object.entries(query).filter(([, value]) => value !== "" && value !== null && value !== undefined),
    );
    const hash = `#/${where()[0]}?${new URLSearchParams(wanted)}`;
    history.replaceState(null, "", hash);
    if (quietly) shown = hash;
    else show();
  }

  function show() {
    const [name, query] = where();
    page?.leave?.();
    shown = location.hash;
    page = VIEWS[name](query, go);
    main.replaceChildren(page);
    for (const link of document.querySelectorAll("nav a")) {
      const current = link.dataset.view === name || (name === "tree" && link.dataset.view === "questions");
      if (current) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  }

  // ---------------------------------------------------------------- keeping up

  function tell(trouble) {
    const status = document.getElementById("status");
    const reading = [...run.sets.values()].find((set) => set.share < 1);
    const going = run.state?.running && run.state.stages.filter((stage) => !stage.done).at(-1);
    status.className = trouble ? "trouble" : run.state?.running ? "running" : "";
    const now =
      trouble ||
      (run.state?.running ? `running${going ? `: ${going.name}` : ""}` : reading ? `reading ${reading.title}` : "");
    if (status.textContent !== now) status.textContent = now;
  }

  async function keepUp() {
    let trouble = "";
    try {
      const changed = await run.refresh();
      if (page === null) arrive();
      else if (changed && page.update) page.update();
      else if (changed && !page.keep) {
        const at = scrollY;
        show();
        scrollTo(0, at);
      }
    } catch (error) {
      trouble = page === null ? `cannot read the run: ${error.message}` : "the server does not answer";
    }
    tell(trouble);
    if (run.live) setTimeout(keepUp, document.hidden ? 4 * EVERY : EVERY);
  }

  function arrive() {
    document.title = `${run.state.name} · restmcts`;
    document.getElementById("run-name").textContent = run.state.name;
    document.querySelector('nav a[data-view="questions"]').hidden = !run.live && !run.sets.size;
    show();
  }

  // ---------------------------------------------------------------- light and dark

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";

  function themed(theme) {
    if (theme) document.documentElement.dataset.theme = theme;
    document.getElementById("theme").textContent = isDark() ? "☀" : "☾";
    document.getElementById("theme").setAttribute("aria-label", isDark() ? "Light" : "Dark");
    paint.forget();
    if (page?.recolour) page.recolour();
    else if (page) show();
  }

  function stored(theme) {
    try {
      if (theme) localStorage.setItem("restmcts-theme", theme);
      return localStorage.getItem("restmcts-theme");
    } catch {
      return theme ?? null; // a page from a file may have no storage
    }
  }

  document.getElementById("theme").addEventListener("click", () => {
    const other = isDark() ? "light" : "dark";
    stored(other);
    themed(other);
  });
  dark.addEventListener("change", () => themed());

  // ---------------------------------------------------------------- keys of the whole page

  addEventListener("hashchange", () => location.hash !== shown && show());
  addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.target.closest("input, select, textarea")) {
      const search = document.getElementById("search");
      if (search) {
        event.preventDefault();
        search.focus();
      }
    } else page?.keydown?.(event);
  });

  themed(stored());
  keepUp();
})();
