"""`keyturn federation check`: whether issuers are reachable, which keys they have, and the verdict on a token."""

from __future__ import annotations

import argparse
import getpass
import sys
from dataclasses import asdict

from ..errors import TemporarilyUnavailable, UnacceptableToken
from ..federation.diagnosis import Condition
from ..federation.unverified_tokens import MOST_BYTES
from ..keyturn import Keyturn
from .acts import add_verb
from .arguments import Words
from .output import note, show, show_list
from .rows import Row


def add_to(verbs: Words) -> None:
    """Adds the verb to the noun."""
    verb = add_verb(
        verbs, "check", _check, "say whether issuers can be reached, and whether a token is acceptable", prints="table"
    )
    verb.add_argument("name", nargs="?", help="of one issuer (default: all)")
    verb.add_argument(
        "--token-stdin", action="store_true", help="judge the token on standard input; it is never printed"
    )


async def _check(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    """Prints what was found. The exit code is 1 if the token is refused, and 3 if keys or API of an issuer are away."""
    text = _token() if arguments.token_stdin else None
    found = await keyturn.diagnosis.conditions(arguments.name)
    verdict = None
    if text is not None:
        try:
            verdict = await keyturn.diagnosis.judge(text, arguments.name)
        except TemporarilyUnavailable as e:
            _print(found, {"acceptable": None, "sentence": f"Nothing can be said about it: {e.cause}."}, arguments)
            raise
    judged: Row | None = None
    if verdict is not None:
        judged = {"acceptable": verdict.word is None, **asdict(verdict)}
    _print(found, judged, arguments)
    if verdict is not None and verdict.word is not None:
        raise UnacceptableToken(f"the token is refused: {verdict.word}")
    if away := [cause for each in found for cause in (each.failure, each.api) if cause]:
        raise TemporarilyUnavailable("; ".join(dict.fromkeys(away)))


def _token() -> str:
    """The first line of standard input. A longer one is read only so far as to see that it is too long."""
    if sys.stdin.isatty():
        return getpass.getpass("Token: ").strip()
    return sys.stdin.buffer.readline(MOST_BYTES + 2).decode("ascii", "replace").strip()


def _print(found: list[Condition], judged: Row | None, arguments: argparse.Namespace) -> None:
    if arguments.json:
        show({"issuers": [asdict(each) for each in found], "token": judged}, arguments)
        return
    show_list([row for each in found for row in _rows(each)], arguments, cut=("issuer", "key", "condition"))
    if judged is not None:
        note(f"the token: {judged['sentence']}")


def _rows(of: Condition) -> list[Row]:
    """One row for each key, or why they can't be read; and one for the API, where Keyturn calls it."""
    nameless = {"issuer": of.name, "key": None, "type": None, "bits": None}
    lines = [of.failure.removeprefix(f"issuer {of.name}: ")] if of.failure else []
    if of.api is not None:
        lines.append(f"API for sessions: {of.api or 'may be called'}")
    keys = [
        {
            "issuer": of.name,
            "key": key.kid,
            "type": key.kty,
            "bits": key.bits,
            "condition": f"left out: {key.left_out}" if key.left_out else "verifies",
        }
        for key in of.keys
    ]
    return [*keys, *({**nameless, "condition": line} for line in lines)]
