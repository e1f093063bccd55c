"""`keyturn stats`: users and live sessions in numbers."""

from __future__ import annotations

import argparse

from ..keyturn import Keyturn
from .acts import add_verb
from .arguments import Words
from .output import note, show, show_list


def add_to(words: Words) -> None:
    """Adds the noun, which has no verbs."""
    add_verb(words, "stats", _stats, "users and live sessions in numbers", prints="table")


async def _stats(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    numbers = await keyturn.statistics.count()
    users = {"enabled": numbers.enabled, "disabled": numbers.disabled}
    if arguments.json:
        sessions = [{"client_id": client, "live": live} for client, live in numbers.live.items()]
        show({"users": users, "sessions": sessions, "complete": numbers.complete}, arguments)
        return
    rows = [{"of": f"users, {state}", "number": number} for state, number in users.items()]
    rows += [{"of": f"live sessions of {client}", "number": live} for client, live in numbers.live.items()]
    show_list(rows, arguments)
    if not numbers.complete:
        note("the counting stopped at its bound: there are more")
    note("refreshes by outcome: each process has its own, at GET /admin/stats")
