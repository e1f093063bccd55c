"""`keyturn why`: all that is known of a user or a session, in sentences and in order."""

from __future__ import annotations

import argparse
import re

from ..command_name import called
from ..errors import NotFound
from ..keyturn import Keyturn
from ..printable import printable
from ..why.telling import Line, Telling, shown
from .acts import add_verb
from .arguments import Words, identifier, whole
from .output import note, show


def add_to(words: Words) -> None:
    """Adds the noun, which has no verbs."""
    verb = add_verb(words, "why", _why, "all that is known of a user or a session, in order", prints="record")
    verb.add_argument("named", metavar="USER|SESSION", help="e-mail or id of a user, or id of a session")
    verb.add_argument("--limit", type=whole, default=100, metavar="N", help="how many events (default: %(default)s)")
    verb.add_argument("--before", type=identifier, metavar="ID", help="events before this one (default: the newest)")


async def _why(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    try:
        telling = await keyturn.why.find(arguments.named, limit=max(1, arguments.limit), before=arguments.before)
    except NotFound:
        named = arguments.named if _REPEATABLE.fullmatch(arguments.named) else "of this name"
        raise NotFound(f"no such user or session {named}; {called()} users list and sessions list show them") from None
    if arguments.json:
        show(telling.members(), arguments)
        return
    for line in _text(telling):
        print(printable(line))
    if telling.before is not None:
        note(f"there are older events: --before {telling.before}, or a higher --limit")


_REPEATABLE = re.compile(r"[0-9a-fA-F-]{32,36}|[\w.+-]{1,64}@[\w.-]{1,190}")
"""The form of an id or an address. Any other word may be a password, and no message repeats it."""


def _text(telling: Telling) -> list[str]:
    named = f"{telling.about} {telling.id}" + (f", {telling.email}" if telling.email else "")
    return [
        f"{named[0].upper()}{named[1:]}: {telling.status} (at {shown(telling.now)})",
        "",
        *telling.facts,
        *(verdict.says for verdict in telling.verdicts),
        *(["", *map(_line, telling.lines)] if telling.lines else []),
    ]


def _line(line: Line) -> str:
    request = f" [request {line.request_id}]" if line.request_id else ""
    return f"{shown(line.at)}  {line.says}{request}"
