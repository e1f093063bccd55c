"""Rows as the lines of a table that fits a terminal of 100 columns, and one row as a record with a line a member."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from ..printable import printable
from .rows import Row, plain

WIDEST = 100
"""How many columns a table has at most, unless the operator asks for a wider one."""

_LEAST = 6
"""The characters that a cell keeps, however narrow its column has to be."""

_GAP = "  "


def table(rows: Sequence[Row], cut: Collection[str] = (), widest: int | None = WIDEST) -> list[str]:
    """A line of names and a line for each row.

    Args:
        rows: at least one. All have the members of the first.
        cut: the names of the columns whose cells may be cut. Ids and moments must stay whole: operators copy them.
        widest: how many columns the table may have. If it has more, the widest of the columns in `cut` become
            narrower. None: any number.
    """
    names = list(rows[0])
    lines = [names] + [[cell(row[name]) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if widest is not None:
        _narrow(widths, [names.index(name) for name in names if name in cut], widest - len(_GAP) * (len(names) - 1))
    return [
        _GAP.join(_cut(text, width).ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def record(row: Row) -> list[str]:
    """A line for each member: its name and its value, whole."""
    width = max(map(len, row))
    return [f"{name.ljust(width)}{_GAP}{cell(value)}".rstrip() for name, value in row.items()]


def cell(value: Any) -> str:
    """A value as people read it: a moment to the second, yes or no, nothing for None.

    Clients choose some of the values, so a character that a terminal might obey is escaped.
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        value = value.replace(microsecond=0)
    return "" if value is None else printable(str(plain(value)))


def _narrow(widths: list[int], which: Sequence[int], room: int) -> None:
    """Takes columns away from the widest of some until all fit, or until none of these can give any more."""
    while sum(widths) > room and which:
        widest = max(which, key=widths.__getitem__)
        if widths[widest] <= _LEAST:
            return
        widths[widest] -= 1


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
