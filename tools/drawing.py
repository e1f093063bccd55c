"""Draws the parts around Keyturn for light and dark pages: python -m tools.drawing > docs/images/keyturn.svg."""

from __future__ import annotations

import sys
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 760, 270
STYLE = """
text { font: 14px system-ui, sans-serif; fill: #1f2933; text-anchor: middle }
.small { font-size: 12px; fill: #52606d }
rect { fill: #f5f7fa; stroke: #9aa5b1 }
.own { fill: #dbeafe; stroke: #2563eb }
path { stroke: #52606d; fill: none; marker-end: url(#head) }
marker path { fill: #52606d; stroke: none }
@media (prefers-color-scheme: dark) {
text { fill: #e4e7eb } .small { fill: #cbd2d9 } rect { fill: #1f2933; stroke: #7b8794 }
.own { fill: #1e3a8a; stroke: #60a5fa } path { stroke: #cbd2d9 } marker path { fill: #cbd2d9 }
}
"""


class Box(NamedTuple):
    """A part: its middle, its name, and a line below the name."""

    x: int
    y: int
    name: str
    line: str
    own: bool = False


class Arrow(NamedTuple):
    """Who calls whom: from one point to another, and the words at the middle of the line, moved down by `below`."""

    start: tuple[int, int]
    end: tuple[int, int]
    words: str
    below: int = -8


BOXES = (
    Box(95, 60, "Client", "browser, app, script"),
    Box(95, 210, "Your service", "or the proxy before it"),
    Box(410, 135, "Keyturn", "any number of instances", own=True),
    Box(665, 60, "Postgres", "the truth"),
    Box(665, 210, "Redis", "a cache that may be lost"),
)
ARROWS = (
    Arrow((180, 60), (325, 115), "log in, refresh, log out", -38),
    Arrow((95, 90), (95, 180), "calls with its access token", 4),
    Arrow((180, 210), (325, 155), "verify", 22),
    Arrow((495, 115), (580, 60), ""),
    Arrow((495, 155), (580, 210), ""),
)


def drawing() -> str:
    """The drawing as a text of SVG 1.1."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        "<title>Clients sign in at Keyturn; your service asks it; it keeps its truth in Postgres</title>",
        f"<style>{STYLE}</style>",
        (
            '<marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0 0 10 5 0 10z"/></marker>'
        ),
    ]
    for arrow in ARROWS:
        (x, y), (to_x, to_y) = arrow.start, arrow.end
        parts.append(f'<path d="M{x} {y} {to_x} {to_y}"/>')
        # Words beside an upright line begin at its right.
        moved = 92 if x == to_x else 0
        middle = (x + to_x) // 2 + moved, (y + to_y) // 2 + arrow.below
        parts.append(f'<text class="small" x="{middle[0]}" y="{middle[1]}">{escape(arrow.words)}</text>')
    for box in BOXES:
        kind = ' class="own"' if box.own else ""
        parts.append(f'<rect{kind} x="{box.x - 85}" y="{box.y - 30}" width="170" height="60" rx="8"/>')
        parts.append(f'<text x="{box.x}" y="{box.y - 3}" font-weight="600">{escape(box.name)}</text>')
        parts.append(f'<text class="small" x="{box.x}" y="{box.y + 16}">{escape(box.line)}</text>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    sys.stdout.write(drawing())
