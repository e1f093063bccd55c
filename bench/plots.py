"""Plots as SVG, without a library: a few curves of few points, with the name of each curve at its last point."""

import math
import re
from html import escape

from bench.report import Curve, number

WIDTH, HEIGHT = 720, 380
LEFT, RIGHT, TOP, BOTTOM = 70, 130, 40, 40
COLOURS = ("#0b6e4f", "#c1440e", "#3066be", "#8f2d84", "#a17c00", "#555555")
FEW = 12
"""Up to this many points are drawn at equal distances, which suits 1, 2, 4 … 256. More points are drawn to scale."""


def file_name(plot: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", plot.lower()).strip("-") + ".svg"


def svg(plot: str, curves: list[Curve]) -> str:
    """Draws one plot. The axis of values begins at zero, or is logarithmic if the largest is 30 times the least."""
    xs = sorted({x for curve in curves for x, _ in curve.points})
    ys = [y for curve in curves for _, y in curve.points]
    logarithmic = min(ys) > 0 and max(ys) / min(ys) > 30
    ticks = _powers(min(ys), max(ys)) if logarithmic else _steps(max(ys))
    few = len(xs) <= FEW

    def across(x: float) -> float:
        share = xs.index(x) / max(1, len(xs) - 1) if few else (x - xs[0]) / ((xs[-1] - xs[0]) or 1)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def up(y: float) -> float:
        low, high, at = ticks[0], ticks[-1], y
        if logarithmic:
            low, high, at = math.log(low), math.log(high), math.log(y)
        return HEIGHT - BOTTOM - (at - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    box = f'viewBox="0 0 {WIDTH} {HEIGHT}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box} font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14">{escape(plot)}</text>',
    ]
    for tick in ticks:
        parts.append(f'<path d="M{LEFT} {up(tick):.1f}H{WIDTH - RIGHT}" stroke="#dddddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{up(tick) + 4:.1f}" text-anchor="end">{_short(tick)}</text>')
    parts += [
        f'<text x="{across(x):.1f}" y="{HEIGHT - 16}" text-anchor="middle">{_short(x)}</text>'
        for x in (xs if few else [xs[0], xs[-1]])
    ]
    # If two names would overlap, the lower one moves down.
    below = 0.0
    order = sorted(range(len(curves)), key=lambda i: up(curves[i].points[-1][1]))
    for i in order:
        points, colour = sorted(curves[i].points), COLOURS[i % len(COLOURS)]
        line = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if few:
            parts += [f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="3" fill="{colour}"/>' for x, y in points]
        below = max(up(points[-1][1]) + 4, below + 15)
        name = escape(curves[i].name)
        parts.append(f'<text x="{across(points[-1][0]) + 8:.1f}" y="{below:.1f}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _steps(most: float) -> list[float]:
    """Marks from zero to above `most`, in steps of 1, 2 or 5 times a power of ten."""
    rough = (most or 1) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * n for n in (1, 2, 5, 10) if power * n >= rough)
    return [step * i for i in range(math.ceil((most or 1) / step) + 1)]


def _powers(least: float, most: float) -> list[float]:
    return [10.0**i for i in range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)]


def _short(value: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}" if value == round(value, 2) else number(value)
