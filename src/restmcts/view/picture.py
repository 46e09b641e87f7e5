"""One tree as an SVG, for pages and notebooks: the same bytes for the same tree."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from textwrap import wrap

from restmcts.rows import TreeLabels
from restmcts.types import Tree

_WIDTH, _HEIGHT, _GAP, _RISE, _LETTERS = 190, 62, 14, 34, 28
"""a box, the space beside it and below it, in pixels; letters in a line of it"""
_STYLE = (
    "text{font:12px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:#222}"
    ".small{font-size:11px;fill:#555}.box{fill:#fff;stroke:#888}.right{fill:#e3f4ea;stroke:#0a7d4b}"
    ".wrong{fill:#fbe7e3;stroke:#c0452c}.dead{fill:#f2f2f2;stroke:#bbb;stroke-dasharray:4 3}"
    ".edge{stroke:#999;fill:none}.answer{stroke-width:3}"
)


def tree_svg(tree: Tree, labels: TreeLabels | None = None) -> str:
    """The tree from its question down. With `labels`, steps that a right answer follows from are green, others red.

    A box holds the beginning of a step, what the value model said of it (V), its visits (N), and its label v. The
    answer's box has a thick border.
    """
    columns, depth = _places(tree)
    width = round((max(columns) + 1) * (_WIDTH + _GAP) + _GAP)
    height = (max(depth) + 1) * (_HEIGHT + _RISE)
    spots = [
        (round(_GAP + x * (_WIDTH + _GAP)), 10 + y * (_HEIGHT + _RISE)) for x, y in zip(columns, depth, strict=True)
    ]
    parts = [_edge(spots[tree.parent[n]], spots[n]) for n in range(1, len(tree))]
    parts += [_box(tree, labels, n, spots[n]) for n in range(len(tree))]
    title = escape(f"Search tree: {tree.problem.question}")
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    back = f'<rect width="{width}" height="{height}" fill="#fff"/>'
    body = "\n".join(parts)
    return f'{head} role="img">\n<title>{title}</title>\n<style>{_STYLE}</style>\n{back}\n{body}\n</svg>\n'


def _places(tree: Tree) -> tuple[list[float], list[int]]:
    """A column for each leaf, from left to right; a parent stands over the middle of its children. And the depths."""
    columns, depth = [0.0] * len(tree), [0] * len(tree)
    leaves, order, stack = 0, [], [0]
    while stack:
        node = stack.pop()
        order.append(node)
        children = tree.children(node)
        for child in children:
            depth[child] = depth[node] + 1
        stack += children[::-1]
        if not children:
            columns[node] = leaves
            leaves += 1
    for node in reversed(order):
        if children := tree.children(node):
            columns[node] = (columns[children[0]] + columns[children[-1]]) / 2
    return columns, depth


def _edge(above: tuple[int, int], below: tuple[int, int]) -> str:
    x, y, to_x, to_y = above[0] + _WIDTH // 2, above[1] + _HEIGHT, below[0] + _WIDTH // 2, below[1]
    middle = (y + to_y) // 2
    return f'<path class="edge" d="M{x} {y}C{x} {middle} {to_x} {middle} {to_x} {to_y}"/>'


def _box(tree: Tree, labels: TreeLabels | None, node: int, spot: tuple[int, int]) -> str:
    x, y = spot
    kind = "box" if not node else _kind(tree, labels, node)
    lines = wrap(tree.text[node] if node else tree.problem.question, _LETTERS, max_lines=2, placeholder=" …") or ["·"]
    parts = [f'<rect class="{kind}" x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="6"/>']
    parts += [f'<text x="{x + 8}" y="{y + 18 + 15 * i}">{escape(line)}</text>' for i, line in enumerate(lines)]
    parts.append(f'<text class="small" x="{x + 8}" y="{y + _HEIGHT - 8}">{_numbers(tree, labels, node)}</text>')
    return "".join(parts)


def _kind(tree: Tree, labels: TreeLabels | None, node: int) -> str:
    wrong = None if labels is None else labels.r[node]
    kind = "dead" if tree.status[node] == "dead" else "box" if wrong is None else "wrong" if wrong > 0.5 else "right"
    return f"{kind} answer" if node == tree.result else kind


def _numbers(tree: Tree, labels: TreeLabels | None, node: int) -> str:
    found: Sequence[tuple[str, float | None]] = (
        ("V", tree.raw_value[node] if node else None),
        ("N", tree.visits[node]),
        ("v", None if labels is None else labels.v[node]),
    )
    return " · ".join(
        f"{name} {value}" if name == "N" else f"{name} {value:.2f}" for name, value in found if value is not None
    )
