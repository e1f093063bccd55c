"""Prints rows, as a table for people or as JSON for programs, and notes for the operator on stderr."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from uuid import UUID

from ..printable import printable
from .rows import Row, plain
from .table import record, table


def show(what: Row, arguments: argparse.Namespace) -> None:
    """Prints one row: as a record with a line for each member, or as JSON if `--json` was given."""
    if arguments.json:
        print(json.dumps(plain(what)))
        return
    for line in record(what):
        print(line)


def show_list(
    rows: Sequence[Row], arguments: argparse.Namespace, *, short: Sequence[Row] = (), cut: Collection[str] = ()
) -> None:
    """Prints rows: as a table with a line for each, or as JSON if `--json` was given.

    Args:
        rows: all that is known, which `--json` prints.
        arguments: those of the command. With `--wide`, the table has the columns of `short`, then those of `rows`.
        short: what fits a terminal of 100 columns, a row for each of `rows`. None: `rows` does.
        cut: the columns that may be cut so that the table fits.
    """
    if arguments.json:
        print(json.dumps([plain(row) for row in rows]))
    elif not rows:
        note("there are none")
    elif arguments.wide:
        wide = [{**few, **row} for few, row in zip(short or rows, rows, strict=True)]
        print(*table(wide, widest=None), sep="\n")
    else:
        lines = table(short or rows, cut)
        print(*lines, sep="\n")
        if lines != table(short or rows, widest=None):
            note("… is where something was cut; --wide shows it whole")


def more(ids: Sequence[UUID], limit: int, option: str) -> None:
    """Says how to list the rows after the last of these ids, if the limit was reached."""
    if ids and len(ids) == limit:
        note(f"there may be more: {option} {ids[-1]}, or a higher --limit")


def note(line: str) -> None:
    """Prints a line for the operator on stderr, because a program may read the output.

    An issuer may have written some of the line, so a character that a terminal might obey is escaped.
    """
    sys.stdout.flush()
    print(printable(line), file=sys.stderr)


def user_of(user_id: UUID, emails: Mapping[UUID, str]) -> str:
    """A user as a table shows one: the e-mail address, or the id of a user who has none or was erased."""
    return emails.get(user_id) or str(user_id)


def count_of_sessions(number: int) -> str:
    """A number of sessions in words."""
    return f"{number} session{'s' * (number != 1)}"
