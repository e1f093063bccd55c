"""Prints rows, as a table for people or as JSON for programs, and notes for the operator on stderr."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias
from uuid import UUID

Row: TypeAlias = Mapping[str, Any]


_LONGEST_EMAIL = 32
"""How many characters of an e-mail address fit into a table."""


def show(what: Row | Sequence[Row], arguments: argparse.Namespace) -> None:
    """Prints one row or several, as JSON if `--json` was given.

    A table has a line for each of several rows. One row alone has a line for each of its members.
    """
    rows = [what] if isinstance(what, Mapping) else what
    if arguments.json:
        plain = [{name: _plain(value) for name, value in row.items()} for row in rows]
        print(json.dumps(plain[0] if isinstance(what, Mapping) else plain))
        return
    if not rows:
        note("there are none")
        return
    table = [list(rows[0])] + [[moment(value) for value in row.values()] for row in rows]
    if isinstance(what, Mapping):
        table = [list(line) for line in zip(*table, strict=True)]
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def more(ids: Sequence[UUID], limit: int, option: str) -> None:
    """Says how to list the rows after the last of these ids, if the limit was reached."""
    if ids and len(ids) == limit:
        note(f"there may be more: {option} {ids[-1]}, or a higher --limit")


def note(line: str) -> None:
    """Prints a line for the operator on stderr, because a program may read the output.

    A character that can't be printed becomes "?", as in a table: an issuer may have written some of the line.
    """
    sys.stdout.flush()
    print(printable(line), file=sys.stderr)


def moment(value: Any) -> str:
    """A value as a table shows it: a moment to the second, nothing for None.

    Clients choose some of the values: see `printable`.
    """
    if isinstance(value, datetime):
        value = value.replace(microsecond=0)
    return "" if value is None else printable(str(_plain(value)))


def printable(line: str) -> str:
    """The text with a "?" in the place of each character that can't be printed, which a terminal might obey."""
    return line if line.isprintable() else "".join(c if c.isprintable() else "?" for c in line)


def shortened(email: str) -> str:
    """An e-mail address as a table shows it."""
    return email if len(email) <= _LONGEST_EMAIL else f"{email[: _LONGEST_EMAIL - 1]}…"


def user_of(user_id: UUID, emails: Mapping[UUID, str]) -> str:
    """A user as a table shows one: the e-mail address, or the id of a user who has none or was erased."""
    email = emails.get(user_id)
    return str(user_id) if email is None else shortened(email)


def count_of_sessions(number: int) -> str:
    """A number of sessions in words."""
    return f"{number} session{'s' * (number != 1)}"


def _plain(value: Any) -> Any:
    """A value as JSON has it: a moment after RFC 3339, an id as text, and so within lists and objects."""
    if isinstance(value, Mapping):
        return {name: _plain(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_plain(member) for member in value]
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return str(value) if isinstance(value, UUID) else value
