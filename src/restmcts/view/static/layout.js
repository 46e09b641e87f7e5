"use strict";

/**
 * Where the nodes of a tree are drawn: column by depth, row by leaf. Inner nodes lie between their children.
 * `parent` has parents before children; `shown(n)` says which nodes are there, a child never without its parent; the
 * children of a folded node are not. Linear in the number of nodes.
 */
function layout(parent, shown, folded) {
  const n = parent.length;
  const depth = new Int32Array(n);
  const row = new Float64Array(n).fill(-1);
  const hidden = new Uint8Array(n);
  const first = new Int32Array(n).fill(-1);
  const last = new Int32Array(n).fill(-1);
  const next = new Int32Array(n).fill(-1);
  for (let i = 0; i < n; i++) {
    const p = parent[i];
    hidden[i] = i > 0 && (hidden[p] || folded.has(p) || !shown(i)) ? 1 : 0;
    if (i === 0 || hidden[i]) continue;
    depth[i] = depth[p] + 1;
    if (first[p] < 0) first[p] = i;
    else next[last[p]] = i;
    last[p] = i;
  }
  let rows = 0;
  let deepest = 0;
  const order = [];
  const stack = [0];
  while (stack.length) {
    const i = stack.pop();
    order.push(i);
    deepest = Math.max(deepest, depth[i]);
    if (first[i] < 0) row[i] = rows++;
    const children = [];
    for (let c = first[i]; c >= 0; c = next[c]) children.push(c);
    while (children.length) stack.push(children.pop());
  }
  const leaves = new Int32Array(n);
  for (let k = order.length - 1; k >= 0; k--) {
    const i = order[k];
    if (first[i] >= 0) row[i] = (row[first[i]] + row[last[i]]) / 2;
    else leaves[i] = 1;
    if (i > 0) leaves[parent[i]] += leaves[i];
  }
  return { depth, row, hidden, first, next, order, leaves, rows: Math.max(1, rows), deepest };
}

/** For each node, how many iterations up to `time` made a node at or below it. */
function visitsUntil(parent, iteration, time) {
  const seen = new Int32Array(parent.length).fill(-1);
  const visits = new Int32Array(parent.length);
  const byIteration = [];
  for (let i = 1; i < parent.length; i++) if (iteration[i] <= time) (byIteration[iteration[i]] ||= []).push(i);
  byIteration.forEach((made, t) => {
    for (const node of made) {
      for (let i = node; i >= 0 && seen[i] !== t; i = parent[i]) {
        seen[i] = t;
        visits[i]++;
      }
    }
  });
  return visits;
}
