"""Line charts as SVG text, so that a report needs nothing but itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 30, 58
#: Told apart also by those who see few colours (Okabe and Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")

Place = Callable[[float, float], tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One series; points that are no numbers leave a gap."""

    name: str
    points: tuple[tuple[float, float], ...]
    is_stepped: bool = False  # a value holds until the next


def chart(title: str, lines: Sequence[Line], *, across: str, up: str, least: float | None = None) -> str:
    """An SVG element.

    Args:
        title: above it.
        lines: to draw, at most as many as there are colours before they repeat.
        across: what the horizontal axis shows.
        up: what the vertical one shows.
        least: where the vertical axis begins; at the smallest value without it.
    """
    points = [point for line in lines for point in line.points if all(map(math.isfinite, point))]
    if not points:
        return f"<p>{escape(title)}: nothing to show</p>"
    low_x, high_x = min(x for x, _ in points), max(x for x, _ in points)
    low_y, high_y = min(y for _, y in points), max(y for _, y in points)
    low_y = low_y if least is None else min(least, low_y)
    if high_y <= low_y:
        high_y = low_y + 1
    if high_x <= low_x:
        high_x = low_x + 1

    def place(x: float, y: float) -> tuple[float, float]:
        along = _LEFT + (x - low_x) / (high_x - low_x) * (WIDTH - _LEFT - _RIGHT)
        above = HEIGHT - _BOTTOM - (y - low_y) / (high_y - low_y) * (HEIGHT - _TOP - _BOTTOM)
        return along, above

    legend, height = _legend(lines)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="sans-serif" font-size="11"><title>{escape(title)}</title>',
        f'<text x="{_LEFT}" y="16" font-size="13" font-weight="bold" fill="currentColor">{escape(title)}</text>',
    ]
    for value in _ticks(low_y, high_y):
        _, y = place(low_x, value)
        parts.append(
            f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#8884"/>'
            f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end" fill="currentColor">{value:g}</text>'
        )
    for value in _ticks(low_x, high_x):
        x, _ = place(value, low_y)
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - _BOTTOM + 14}" text-anchor="middle" fill="currentColor">{value:g}</text>'
        )
    parts.append(
        f'<text x="{WIDTH - _RIGHT}" y="{HEIGHT - _BOTTOM + 28}" text-anchor="end" fill="currentColor">'
        f"{escape(across)}</text>"
        f'<text x="{WIDTH - _RIGHT}" y="16" text-anchor="end" fill="currentColor">{escape(up)}</text>'
    )
    parts += [
        f'<path d="{_path(line, place)}" fill="none" stroke="{_colour(number)}" stroke-width="1.6"/>'
        for number, line in enumerate(lines)
    ]
    return "".join([*parts, legend, "</svg>"])


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _legend(lines: Sequence[Line]) -> tuple[str, int]:
    """The lines' names in as many rows as they need, and the height of the whole chart."""
    parts: list[str] = []
    along, down = _LEFT, HEIGHT - 12
    for number, line in enumerate(lines):
        width = 30 + 6 * len(line.name)
        if along > _LEFT and along + width > WIDTH - _RIGHT:
            along, down = _LEFT, down + 16
        parts.append(
            f'<rect x="{along}" y="{down - 6}" width="12" height="4" fill="{_colour(number)}"/>'
            f'<text x="{along + 16}" y="{down}" fill="currentColor">{escape(line.name)}</text>'
        )
        along += width
    return "".join(parts), down + 12


def _path(line: Line, place: Place) -> str:
    steps: list[str] = []
    pen, last = "M", 0.0
    for x, y in line.points:
        if not (math.isfinite(x) and math.isfinite(y)):
            pen = "M"
            continue
        along, above = place(x, y)
        if line.is_stepped and pen == "L":
            steps.append(f"L{along:.1f} {last:.1f}")
        steps.append(f"{pen}{along:.1f} {above:.1f}")
        pen, last = "L", above
    return "".join(steps)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between two values, about five."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(step * number, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]
