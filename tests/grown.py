"""Trees made up for looking at: of any size, with formulas, and with text that would be markup if it could."""

from __future__ import annotations

import random
from pathlib import Path

from restmcts.store import write_jsonl
from restmcts.types import Problem, Step, Tree, Usage

FORMULAS = [
    r"We have $x^2 - 5x + 6 = 0$, so \(x = \frac{5 \pm \sqrt{25 - 24}}{2}\).",
    r"Then \[\sum_{k=1}^{n} k = \frac{n(n+1)}{2}\] and $\binom{n}{2} = 45$.",
    r"She pays $5 and gets $3 back, so it costs $5 - $3 = $2.",
    r"The matrix is $$\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}$$ with determinant $-2$.",
    r"An unfinished formula \frac{1}{2 and a lone $ stay as they are.",
]
HOSTILE = [
    "<script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 2'>",
    "</script><script>window.hit = 3</script>",
    '"><svg onload="window.hit = 4">',
    r"$\href{javascript:window.hit=5}{click}$ and \boxed{\url{javascript:window.hit=6}}",
    r"$\includegraphics{x}\class{a}{b}\style{color:red}{c}\htmlData{x=y}{z}$",
    "{{constructor.constructor('window.hit = 7')()}} ${window.hit = 8}",
    "<!-- <b>bold</b> --> &lt;i&gt; \u2028 \u202e \x00 \ud800",
    r"$\def\a{\a\a}\a$ " + "$" + "x^{" * 400 + "}" * 400 + "$",
]


def grown(
    name: str, question: str, nodes: int, *, answer: str = "42", seed: int = 0, steps: list[str] | None = None
) -> Tree:
    """A tree of so many nodes that looks as if it was searched; its steps are `steps` in turn."""
    rng = random.Random(seed)
    tree = Tree(Problem(name, question, answer), "mcts_star", seed, {"iterations": nodes // 3, "branch": 3})
    depth, leaves, iteration = [0], [0], 0
    while len(tree) < nodes and leaves:
        iteration += 1
        node = leaves.pop(rng.randrange(len(leaves)))
        for _ in range(min(3, nodes - len(tree))):
            text = (
                steps[len(tree) % len(steps)] if steps else f"{rng.randrange(90)} + {rng.randrange(90)} = {len(tree)}"
            )
            deep = depth[node] >= 11 or (depth[node] > 2 and rng.random() < 0.3)
            ends = deep and rng.random() < 0.8
            says = rng.choice([answer, "41", "7"]) if ends else None
            child = tree.add(
                node,
                Step(f"{text} Answer: {says}" if ends else text, (1, 2, 3)),
                status="finished" if ends else "dead" if deep else "open",
                answer=says,
                reason=None if ends or not deep else "length",
                iteration=iteration,
                logprob=-rng.random() * 5,
            )
            depth.append(depth[node] + 1)
            tree.raw_value[child] = tree.value[child] = round(rng.random(), 3)
            if not deep:
                leaves.append(child)
        way = node
        while way >= 0:
            tree.visits[way] += 1
            way = tree.parent[way]
    finished = tree.finished()
    if finished:
        tree.result = max(finished, key=lambda n: tree.raw_value[n] or 0.0)
        tree.final_answer = tree.answer[tree.result]
    tree.stop = "iterations"
    tree.usage = Usage(nodes * 7, nodes * 30, nodes * 20, nodes * 9, nodes // 2, nodes / 100)
    return tree


def write_trees(folder: Path, trees: list[Tree]) -> Path:
    """A folder as `restmcts search` leaves it."""
    write_jsonl(folder / "trees.jsonl", (tree.to_record() for tree in trees))
    return folder
