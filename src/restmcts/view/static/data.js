"use strict";

/** What the page knows of a run. It asks the server, or reads what this file holds. */
const run = (() => {
  const embedded = document.getElementById("data");
  const sets = new Map();
  let state = null;
  let numbers = {};
  let measured = null;
  let held = null;
  const pieces = new Map();

  // ---------------------------------------------------------------- where it comes from

  async function unpacked(id) {
    const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
    const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(plain).text());
  }

  async function ask(path, query = {}) {
    const address = Object.keys(query).length ? `${path}?${new URLSearchParams(query)}` : path;
    const reply = await fetch(address);
    const found = await reply.json();
    if (!reply.ok) throw new Error(found.error || `the server answered ${reply.status}`);
    return found;
  }

  // ---------------------------------------------------------------- keeping up with it

  /** Take in what is new; returns whether anything is. */
  async function refresh() {
    if (embedded) {
      if (held) return false;
      held = await unpacked("data");
      state = held.state;
      numbers = held.overview;
      for (const described of state.sets) take(described, held.rows[described.name].rows);
      return true;
    }
    const before = JSON.stringify(state);
    state = await ask("state");
    let changed = JSON.stringify(state) !== before;
    if (state.measured !== measured) {
      numbers = await ask("overview");
      measured = state.measured;
    }
    for (const name of [...sets.keys()]) if (!state.sets.some((set) => set.name === name)) sets.delete(name);
    for (const described of state.sets) {
      let set = sets.get(described.name);
      if (!set || set.version !== described.version) set = take(described, []);
      Object.assign(set, described);
      while (set.rows.length < described.trees) {
        const found = await ask("rows", { set: set.name, start: set.rows.length });
        if (found.version !== set.version || !found.rows.length) break;
        extend(set, found.rows);
        changed = true;
      }
    }
    order();
    return changed;
  }

  function take(described, rows) {
    const set = { ...described, rows: [], byKey: new Map() };
    sets.set(set.name, set);
    extend(set, rows);
    return set;
  }

  /** Rows become objects; of several trees of one question the last one counts. */
  function extend(set, rows) {
    for (const values of rows) {
      const row = { set, row: set.rows.length };
      state.columns.forEach((column, i) => {
        row[column] = values[i];
      });
      set.rows.push(row);
      set.byKey.set(row.key, row);
    }
  }

  function order() {
    const found = state.sets.map((described) => sets.get(described.name));
    sets.clear();
    for (const set of found) sets.set(set.name, set);
  }

  // ---------------------------------------------------------------- what the views ask for

  async function tree(row) {
    if (!embedded) return ask("tree", { set: row.set.name, row: row.row });
    const piece = (held.trees[row.set.name] || {})[row.row];
    if (piece === undefined)
      throw new Error("This tree had no room in the file. In the run's folder it is there for: restmcts view");
    if (!pieces.has(piece)) pieces.set(piece, unpacked(`trees-${piece}`));
    return (await pieces.get(piece)).find((found) => found.set === row.set.name && found.row === row.row);
  }

  /** Sets in which the same questions were answered in the same way, phase by phase. */
  function alike(set) {
    return [...sets.values()].filter((other) => other.pool && other.pool === set.pool && other.mode === set.mode);
  }

  /** All trees of one question, in the order of the run. */
  function treesOf(key) {
    return [...sets.values()].map((set) => set.byKey.get(key)).filter(Boolean);
  }

  /** How many trees a file holds of those there are; null where all can be had. */
  function kept() {
    if (!embedded) return null;
    const count = (numbers) => numbers.reduce((a, b) => a + b, 0);
    const all = count([...sets.values()].map((set) => set.rows.length));
    const here = count(Object.values(held.trees || {}).map((rows) => Object.keys(rows).length));
    return here < all ? { here, all } : null;
  }

  return {
    refresh,
    kept,
    tree,
    alike,
    treesOf,
    sets,
    live: !embedded,
    get state() {
      return state;
    },
    get numbers() {
      return numbers;
    },
  };
})();
