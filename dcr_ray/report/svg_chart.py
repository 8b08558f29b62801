"""A line chart over sizes as inline SVG, for pages that have to open anywhere and need no library.

Every mark has a tooltip (the browser's own), every series a class by which a page can hide it. It knows no laws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from math import log10

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 680, 340, 56, 46, 14, 14


@dataclass(frozen=True)
class Mark:
    """A point at x, with an interval, and what its tooltip says."""

    x: float
    y: float
    low: float
    high: float
    text: str


@dataclass(frozen=True)
class Series:
    """`curve` are (x, y, low, high); a hollow mark is one that was foretold."""

    name: str
    colour: str
    marks: Sequence[Mark] = ()
    curve: Sequence[tuple[float, float, float, float]] = ()
    hollow: bool = False
    css: str = field(default="")


def chart(
    series: Sequence[Series], *, y_label: str, x_label: str = "parameters", y_range: tuple[float, float] = (0.0, 1.0)
) -> str:
    """An <svg> over sizes on a logarithmic axis, of rates unless `y_range` says otherwise; what lies beyond it is drawn
    at its edge. Empty text where there is nothing to draw."""
    xs = [mark.x for each in series for mark in each.marks] + [point[0] for each in series for point in each.curve]
    if not xs:
        return ""
    low, high = log10(min(xs)) - 0.08, log10(max(xs)) + 0.08

    def across(x: float) -> float:
        return LEFT + (log10(x) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def up(y: float) -> float:
        share = min(max((y - y_range[0]) / (y_range[1] - y_range[0]), 0.0), 1.0)
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)}">']
    for tick in (y_range[0] + fifth / 5 * (y_range[1] - y_range[0]) for fifth in range(6)):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(tick):.1f}" y2="{up(tick):.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{up(tick) + 4:.1f}" text-anchor="end">{tick:.3g}</text>')
    for x, label in ticks(10**low, 10**high):
        parts.append(
            f'<line class="grid" x1="{across(x):.1f}" x2="{across(x):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        )
        parts.append(f'<text x="{across(x):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{label}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text x="14" y="{middle}" transform="rotate(-90 14 {middle})" text-anchor="middle">{escape(y_label)}</text>'
    )
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>')
    for each in series:
        parts.append(f'<g class="{escape(each.css)}">')
        if each.curve:
            upper = [f"{across(x):.1f},{up(h):.1f}" for x, _, _, h in each.curve]
            lower = [f"{across(x):.1f},{up(lo):.1f}" for x, _, lo, _ in reversed(each.curve)]
            parts.append(f'<polygon points="{" ".join(upper + lower)}" fill="{each.colour}" opacity="0.13"/>')
            line = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y, _, _ in each.curve)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{each.colour}" stroke-width="1.6"/>')
        for mark in each.marks:
            x = across(mark.x)
            fill = "white" if each.hollow else each.colour
            parts.append(
                f'<g><title>{escape(mark.text)}</title><line x1="{x:.1f}" x2="{x:.1f}" y1="{up(mark.low):.1f}" '
                f'y2="{up(mark.high):.1f}" stroke="{each.colour}" stroke-width="1.4"/>'
                f'<circle cx="{x:.1f}" cy="{up(mark.y):.1f}" r="4.5" fill="{fill}" stroke="{each.colour}" '
                'stroke-width="1.6"/></g>'
            )
        parts.append("</g>")
    parts.append("</svg>")
    return "\n".join(parts)


def ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Sizes at 1 and 3 times powers of ten between two ends, each with its name."""
    found = []
    for power in range(5, 14):
        for factor in (1, 3):
            x = factor * 10.0**power
            if low <= x <= high:
                unit, name = (1e9, "B") if x >= 1e9 else (1e6, "M")
                found.append((x, f"{x / unit:g}{name}"))
    return found
