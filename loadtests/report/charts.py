"""Line charts as inline SVG: axes with units, ticks that are round numbers, a legend that covers nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 270
LEFT, RIGHT, TOP, BOTTOM = 76, 16, 12, 44
COLOURS = 8
#: More points than pixels tell nothing more
MOST_POINTS = 500

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Line:
    """colour: 0 to 7, of the style sheet. dashed: what belongs to the line of the same colour."""

    name: str
    points: Points
    colour: int = 0
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """ticks: where, and what is written there. place: 0 to 1 for a value."""

    label: str
    ticks: Sequence[tuple[float, str]]
    place: Callable[[float], float]


def linear(label: str, values: Sequence[float], *, zero: bool = True) -> Axis:
    """From zero, or from the least value."""
    low, high = (0.0 if zero else min(values, default=0.0)), max(values, default=1.0)
    high = high if high > low else low + 1.0
    step = _round(high - low)
    low, high = math.floor(low / step) * step, math.ceil(high / step - 1e-9) * step
    count = round((high - low) / step)
    ticks = [(low + n * step, number(low + n * step)) for n in range(count + 1)]
    return Axis(label, ticks, lambda v: (v - low) / (high - low))


def logarithmic(label: str, values: Sequence[float]) -> Axis:
    """Ticks at 1, 2, 5 of each power of ten, at 1 alone if there are many."""
    positive = [v for v in values if v > 0] or [1.0]
    low, high = min(positive), max(positive)
    marks = [m * 10.0**p for p in range(-7, 8) for m in (1, 2, 5)]
    low = max((m for m in marks if m <= low), default=marks[0])
    high = min((m for m in marks if m >= high and m > low), default=marks[-1])
    if high / low > 500:  # whole powers of ten then, so that both ends have a tick
        low, high = 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high) - 1e-9)
    if high / low > 500:  # whole powers of ten then, so that both ends have a tick
        low, high = 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high) - 1e-9)
        marks = [10.0**p for p in range(-7, 9)]
    inside = [m for m in marks if low <= m * 1.0001 and m <= high * 1.0001]
    a, b = math.log(low), math.log(high)
    return Axis(label, [(m, number(m)) for m in inside], lambda v: (math.log(max(v, low)) - a) / (b - a))


def percentiles(label: str, most: float) -> Axis:
    """By how many of all are slower: 90 %, 99 %, 99.9 % are equally far apart. most: the largest share."""
    nines = [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999]
    last = next((n for n in nines[3:] if n >= most), nines[-1])
    end = -math.log10(1 - last)
    ticks = [(q, f"{100 * q:.6g} %") for q in nines if q <= last]
    return Axis(label, ticks, lambda q: min(1.0, -math.log10(max(1e-9, 1 - q)) / end))


def chart(title: str, lines: Sequence[Line], x: Axis, y: Axis) -> str:
    """A figure with its legend; nothing to draw is said so."""
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    body = [_grid(x, y)] + [_path(line, x, y) for line in lines]
    label = escape(f"{title}: {y.label} over {x.label}")
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">' + "".join(body) + "</svg>"
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}{_legend(lines)}</figure>"


def number(value: float) -> str:
    """As short as it can be read: 0.05, 5, 2,500."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _round(span: float) -> float:
    """A step of 1, 2 or 5 times a power of ten that cuts the span in 4 to 8."""
    raw = span / 6
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)


def _grid(x: Axis, y: Axis) -> str:
    parts = []
    for value, text in y.ticks:
        at = _y(y.place(value))
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{at + 4:.1f}" text-anchor="end">{escape(text)}</text>')
    for value, text in x.ticks:
        at = _x(x.place(value))
        anchor = "end" if at > WIDTH - RIGHT - 12 and len(text) > 4 else "middle"  # not beyond the edge
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(
            f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="{anchor}">{escape(text)}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text class="unit" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x.label)}</text>'
    )
    down = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text class="unit" transform="translate(13 {down}) rotate(-90)" text-anchor="middle">'
        f"{escape(y.label)}</text>"
    )
    return "".join(parts)


def _path(line: Line, x: Axis, y: Axis) -> str:
    points = line.points
    if len(points) > MOST_POINTS:
        every = math.ceil(len(points) / MOST_POINTS)
        points = [max(points[n : n + every], key=lambda p: p[1]) for n in range(0, len(points), every)]
    where = [(_x(x.place(a)), _y(y.place(b))) for a, b in points]
    kind = f"c{line.colour % COLOURS}" + (" dashed" if line.dashed else "")
    title = f"<title>{escape(line.name)}</title>"
    if len(where) == 1:
        return (
            f'<circle class="{kind}" cx="{where[0][0]:.1f}" cy="{where[0][1]:.1f}" r="2.5">{title}</circle>'
        )
    drawn = " ".join(f"{a:.1f},{b:.1f}" for a, b in where)
    return f'<polyline class="{kind}" points="{drawn}">{title}</polyline>'


def _legend(lines: Sequence[Line]) -> str:
    items = []
    for line in lines:
        kind = f"c{line.colour % COLOURS}" + (" dashed" if line.dashed else "")
        stroke = f'<svg viewBox="0 0 22 8"><line class="{kind}" x1="1" x2="21" y1="4" y2="4"/></svg>'
        items.append(f"<span>{stroke}{escape(line.name)}</span>")
    return f'<div class="legend">{"".join(items)}</div>'


def _x(place: float) -> float:
    return LEFT + min(1.0, max(0.0, place)) * (WIDTH - LEFT - RIGHT)


def _y(place: float) -> float:
    return HEIGHT - BOTTOM - min(1.0, max(0.0, place)) * (HEIGHT - TOP - BOTTOM)
