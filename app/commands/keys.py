"""`keyturn keys`: the working keys, made, listed, retired and replaced."""

from __future__ import annotations

import argparse
import asyncio
from datetime import timedelta
from typing import get_args

from ..command_name import called
from ..errors import InvalidRequest, NotFound
from ..keyturn import Keyturn
from ..settings import Algorithm
from ..tokens.keys import READ_BY_ALL, RsaBits
from .acts import add_verb, by, on_parts
from .arguments import Words
from .output import Row, count_of_sessions, moment, note, show


def add_to(words: Words) -> None:
    """Adds the noun and its verbs."""
    verbs = words.add_parser("keys", help="working keys").add_subparsers(required=True, metavar="VERB")
    verb = add_verb(verbs, "generate", _generate, "make a key; it signs a minute later", reading=False)
    verb.add_argument("use", choices=["access", "refresh"])
    verb.add_argument("--algorithm", choices=get_args(Algorithm), help="of an access key")
    verb.add_argument("--bits", type=int, choices=get_args(RsaBits), help="of an RS256 key (2048)")
    add_verb(verbs, "list", _list, "all keys, without secrets", reading=True)
    verb = add_verb(verbs, "retire", _retire, "refuse a key's tokens, end a refresh key's sessions", reading=False)
    verb.add_argument("kid")
    verb = add_verb(verbs, "replace", _replace, "where the master secret leaked or is lost: new keys", reading=False)
    verb.add_argument("--sign-everyone-out", action="store_true", required=True, help="must be given: it does")
    verb.set_defaults(run=on_parts(_replace, load=False))


async def _generate(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    if arguments.use == "refresh" and (arguments.algorithm or arguments.bits):
        raise InvalidRequest("algorithm", description="--algorithm and --bits are for access keys.")
    if arguments.bits and (arguments.algorithm or keyturn.settings.signing_algorithm) != "RS256":
        raise InvalidRequest("bits", description="--bits is for RS256 keys.")
    kid = await keyturn.keys.generate(arguments.use, arguments.algorithm, arguments.bits or 2048, by=by())
    print(kid, flush=True)
    note(await _signing(keyturn, arguments.use))


async def _list(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    keys: list[Row] = list(await keyturn.keys.list())
    if not arguments.json:
        columns = ("kid", "use", "algorithm", "status", "signs_from", "retired_at")
        keys = [{column: key[column] for column in columns} for key in keys]
    show(keys, arguments)


async def _retire(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    before = {key["kid"]: key for key in await keyturn.keys.list()}.get(arguments.kid)
    if before is None:
        raise NotFound(f"no such key; {called()} keys list shows them")
    number = await keyturn.keys.retire(arguments.kid, by=by())
    seconds = READ_BY_ALL // timedelta(seconds=1)
    if before["retired_at"]:
        print(f"{arguments.kid} was retired already, at {moment(before['retired_at'])}")
    else:
        print(f"{arguments.kid} is retired; within {seconds} s its tokens are refused everywhere")
    changed = " (until now: the retired key)" if before["status"] == "signs" else ""
    print(await _signing(keyturn, before["use"], changed), flush=True)
    if number is None:
        return
    ended = await keyturn.ending.end_under(number, by=by())
    print(
        f"{count_of_sessions(ended)} ended; waiting {seconds} s for instances that may still sign in under it "
        "(if this breaks off, call it again)",
        flush=True,
    )
    await asyncio.sleep(READ_BY_ALL.total_seconds())
    print(f"{count_of_sessions(await keyturn.ending.end_under(number, by=by()))} more ended")


async def _replace(keyturn: Keyturn, _arguments: argparse.Namespace) -> None:
    *_, number = await keyturn.keys.replace(by=by())
    print("all keys are retired, and new ones made")
    for use in ("access", "refresh"):
        print(await _signing(keyturn, use), flush=True)
    ended = await keyturn.ending.end_all_but_under(number, by=by())
    print(f"{count_of_sessions(ended)} ended; everyone has to sign in again")
    print("an instance that still runs has the old keys: restart it with the new master secret")


async def _signing(keyturn: Keyturn, use: str, now: str = "") -> str:
    """Names the key of a use that signs now, and those that will sign, each with its moment."""
    keys = [key for key in await keyturn.keys.list() if key["use"] == use]
    named = {key["kid"]: f"{key['kid']} ({key['algorithm']})" for key in keys}
    lines = [f"{named[key['kid']]} signs {use} tokens now{now}" for key in keys if key["status"] == "signs"]
    lines += [
        f"{named[key['kid']]} is published and signs from {moment(key['signs_from'])} on"
        for key in keys
        if key["status"] == "published"
    ]
    return "; ".join(lines)
