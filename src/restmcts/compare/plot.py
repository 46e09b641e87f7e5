"""A line chart as an SVG, written by hand: no library, the same bytes for the same numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#666666")
"""told apart by most colour-blind people (Okabe and Ito), yellow left out"""
_WIDTH, _HEIGHT, _LEFT, _GAP, _TOP, _BOTTOM = 300, 250, 68, 28, 24, 44
_LETTER = 6.6
"""pixels that a letter of a label takes, about"""
_STYLE = (
    "text{font:12px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:#333}"
    ".title{font-weight:600;font-size:14px}.grid{stroke:#e4e4e4}.axis{stroke:#888}"
)

Spot = tuple[float, float, float, float]
"""x, y, and the interval of y"""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of spots with its interval; `spots[k]` are those of panel k. A `reference` is drawn dashed and grey."""

    name: str
    spots: Sequence[Sequence[Spot]]
    reference: bool = False


def chart(title: str, panels: Sequence[str], lines: Sequence[Line], y_name: str) -> str:
    """An SVG with a panel for each name in `panels` (what lies along x, on a logarithmic scale), and one y axis.

    y is a share and shown in percent. Spots with an x that is not positive are left out.
    """
    shown = [
        Line(line.name, [[s for s in spots if s[0] > 0] for spots in line.spots], line.reference) for line in lines
    ]
    colours = dict(zip([line.name for line in shown if not line.reference], _colours(), strict=False))
    width = _LEFT + len(panels) * (_WIDTH + _GAP)
    legend, legend_height = _legend(shown, colours, width)
    top = _TOP + legend_height + 14
    parts = [f'<text class="title" x="{_LEFT}" y="18">{escape(title)}</text>', *legend]
    y_ticks, y = _y_scale([s for line in shown for spots in line.spots for s in spots], top)
    for k, name in enumerate(panels):
        left = _LEFT + k * (_WIDTH + _GAP)
        parts += _panel(name, left, top, y_ticks, y, [(line, line.spots[k]) for line in shown], colours, k == 0)
    middle = top + _HEIGHT / 2
    parts.append(f'<text transform="translate(13 {middle:g}) rotate(-90)" text-anchor="middle">{escape(y_name)}</text>')
    height = top + _HEIGHT + _BOTTOM
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    body = "\n".join(parts)
    back = f'<rect width="{width}" height="{height}" fill="#fff"/>'
    return f'{head} role="img">\n<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n{back}\n{body}\n</svg>\n'


Scale = Callable[[float], float]
"""a value → pixels"""
Look = tuple[str, int, str]
"""colour, marker, dashes"""


def _colours() -> list[Look]:
    """Looks of lines, one after the other: after the last colour, dashes begin."""
    return [(c, i + d, dash) for d, dash in enumerate(("", "6 3", "2 3")) for i, c in enumerate(COLOURS)]


def _legend(lines: Sequence[Line], looks: dict[str, Look], width: int) -> tuple[list[str], int]:
    """Names and looks of the lines, in as many rows as they need."""
    parts, x, row = [], float(_LEFT), 0
    for line in lines:
        needed = 40 + len(line.name) * _LETTER + 14
        if x > _LEFT and x + needed > width:
            x, row = float(_LEFT), row + 1
        y = 40 + 18 * row
        parts += _stroke([(x, y), (x + 26, y)], looks.get(line.name))
        parts += _marker(x + 13, y, looks.get(line.name))
        parts.append(f'<text x="{x + 33:g}" y="{y + 4}">{escape(line.name)}</text>')
        x += needed
    return parts, 18 * (row + 1)


def _panel(
    name: str,
    left: int,
    top: int,
    y_ticks: Sequence[float],
    y: Scale,
    lines: Sequence[tuple[Line, Sequence[Spot]]],
    looks: dict[str, Look],
    first: bool,
) -> list[str]:
    right, bottom = left + _WIDTH, top + _HEIGHT
    parts = []
    for tick in y_ticks:
        parts.append(f'<path class="grid" d="M{left} {y(tick):.1f}H{right}"/>')
        if first:
            parts.append(f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{100 * tick:g} %</text>')
    x_ticks, x = _x_scale([s[0] for _, spots in lines for s in spots], left)
    for tick in x_ticks:
        parts.append(f'<path class="grid" d="M{x(tick):.1f} {top}V{bottom}"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{_short(tick)}</text>')
    parts.append(f'<path class="axis" fill="none" d="M{left} {top}V{bottom}H{right}"/>')
    parts.append(f'<text x="{left + _WIDTH / 2:g}" y="{bottom + 34}" text-anchor="middle">{escape(name)}</text>')
    for line, spots in lines:  # what is uncertain lies below all lines
        parts += _interval([(x(s[0]), y(s[2]), y(s[3])) for s in spots], looks.get(line.name))
    for line, spots in lines:
        look = looks.get(line.name)
        at = [(x(s[0]), y(s[1])) for s in spots]
        if line.reference and at:
            parts.append(f'<path stroke="#999" stroke-dasharray="3 4" fill="none" d="M{left} {at[0][1]:.1f}H{right}"/>')
        parts += _stroke(at, look)
        for spot in at:
            parts += _marker(*spot, look)
    return parts


# ---------------------------------------------------------------- strokes


def _stroke(at: Sequence[tuple[float, float]], look: Look | None) -> list[str]:
    colour, _, dash = look or ("#999", 0, "3 4")
    if len(at) < 2:
        return []
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    way = "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
    return [f'<path stroke="{colour}" stroke-width="2" stroke-linejoin="round" fill="none"{dashes} d="M{way}"/>']


def _interval(at: Sequence[tuple[float, float, float]], look: Look | None) -> list[str]:
    """A band along the line; a bar where there is one spot only."""
    colour = look[0] if look else "#999"
    if len(at) == 1:
        x, low, high = at[0]
        return [f'<path stroke="{colour}" stroke-width="1.5" opacity=".6" d="M{x:.1f} {low:.1f}V{high:.1f}"/>']
    way = [(x, low) for x, low, _ in at] + [(x, high) for x, _, high in reversed(at)]
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in way)
    return [f'<polygon points="{corners}" fill="{colour}" opacity=".12"/>'] if way else []


def _marker(x: float, y: float, look: Look | None) -> list[str]:
    colour, kind, _ = look or ("#777", 3, "")
    inside = f'fill="{colour}" stroke="#fff" stroke-width="1"'
    if kind % 4 == 0:
        return [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.2" {inside}/>']
    corners = {
        1: ((-3.8, -3.8), (3.8, -3.8), (3.8, 3.8), (-3.8, 3.8)),
        2: ((0, -5), (4.8, 3.6), (-4.8, 3.6)),
        3: ((0, -5.4), (5.4, 0), (0, 5.4), (-5.4, 0)),
    }[kind % 4]
    return [f'<polygon points="{" ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in corners)}" {inside}/>']


# ---------------------------------------------------------------- scales


def _y_scale(spots: Sequence[Spot], top: int) -> tuple[list[float], Scale]:
    """Ticks at round shares, from below the lowest interval to above the highest, within 0 and 1."""
    low = min((s[2] for s in spots), default=0.0)
    high = max((s[3] for s in spots), default=1.0)
    step = next((s for s in (0.01, 0.02, 0.05, 0.1, 0.2) if (high - low) / s <= 6), 0.25)
    first, last = math.floor(low / step), math.ceil(high / step)
    if last == first:
        first, last = max(first - 1, 0), last + (first == 0)
    lowest, span = first * step, (last - first) * step
    return [k * step for k in range(first, last + 1)], lambda v: top + _HEIGHT * (1 - (v - lowest) / span)


def _x_scale(values: Sequence[float], left: int) -> tuple[list[float], Scale]:
    """A logarithmic scale with ticks at 1, 2 and 5 times the powers of ten, or at the powers where they are many."""
    low, high = min(values, default=1.0) / 1.15, max(values, default=10.0) * 1.15
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1, 2, 5) if math.log10(high / low) < 2.8 else (1,)
    ticks = [tick for power in powers for digit in digits if low <= (tick := digit * 10.0**power) <= high]
    begin, span = math.log(low), math.log(high / low)
    return ticks, lambda v: left + _WIDTH * (math.log(v) - begin) / span


def _short(value: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
