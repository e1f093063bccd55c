"""`keyturn keys`: the working keys, made, listed, retired and replaced."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import timedelta
from typing import get_args

from ..command_name import called
from ..errors import NotFound
from ..keyturn import Keyturn
from ..sessions.key_changes import LAST_SIGN_IN, Replaced, Retired
from ..settings import Algorithm
from ..tokens.key_set import Use
from ..tokens.keys import READ_BY_ALL
from ..tokens.primitives import RsaBits
from .acts import add_verb, by, on_parts
from .arguments import Words
from .output import Row, count_of_sessions, moment, note, show

_SECOND = timedelta(seconds=1)


def add_to(words: Words) -> None:
    """Adds the noun and its verbs."""
    verbs = words.add_parser("keys", help="working keys").add_subparsers(required=True, metavar="VERB")
    verb = add_verb(verbs, "generate", _generate, "make a key; it signs or seals a minute later", reading=False)
    verb.add_argument("use", choices=get_args(Use))
    verb.add_argument("--algorithm", choices=get_args(Algorithm), help="of an access key")
    verb.add_argument("--bits", type=int, choices=get_args(RsaBits), help="of an RS256 key (2048)")
    add_verb(verbs, "list", _list, "all keys, without secrets", reading=True)
    verb = add_verb(verbs, "retire", _retire, "refuse what a key made, end a refresh key's sessions", reading=False)
    verb.add_argument("kid")
    verb = add_verb(verbs, "replace", _replace, "where the master secret leaked or is lost: new keys", reading=False)
    verb.add_argument("--sign-everyone-out", action="store_true", required=True, help="must be given, as this happens")
    verb.set_defaults(run=on_parts(_replace, load=False))


async def _generate(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    made = await keyturn.key_changes.generate(arguments.use, arguments.algorithm, arguments.bits, by=by())
    print(made.kid, flush=True)
    note(_signing(made.keys, arguments.use))


async def _list(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    keys: list[Row] = list(await keyturn.keys.list())
    if not arguments.json:
        columns = ("kid", "use", "algorithm", "status", "signs_from", "retired_at")
        keys = [{column: key[column] for column in columns} for key in keys]
    show(keys, arguments)


async def _retire(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    def begun(retired: Retired) -> None:
        if retired.retired_before:
            print(f"{retired.kid} was retired already, at {moment(retired.retired_before)}")
        else:
            refused = "cookies" if retired.use == "cookie" else "tokens"
            print(f"{retired.kid} is retired; within {READ_BY_ALL // _SECOND} s its {refused} are refused everywhere")
        print(_signing(retired.keys, retired.use, " (until now: the retired key)" if retired.signed else ""))
        if retired.use == "refresh":
            note(
                f"its sessions end; this takes {LAST_SIGN_IN // _SECOND} s or longer (if it breaks off, call it again)"
            )

    try:
        done = await keyturn.key_changes.retire(arguments.kid, by=by(), begun=begun)
    except NotFound:
        raise NotFound(f"no such key; {called()} keys list shows them") from None
    if done.ended is not None and done.ended_later is not None:
        print(f"{count_of_sessions(done.ended)} ended")
        print(f"{count_of_sessions(done.ended_later)} more ended, which other instances had begun meanwhile")


async def _replace(keyturn: Keyturn, _arguments: argparse.Namespace) -> None:
    def begun(replaced: Replaced) -> None:
        print("all keys are retired, and new ones made")
        for use in get_args(Use):
            print(_signing(replaced.keys, use))
        note(f"all sessions end; this takes {LAST_SIGN_IN // _SECOND} s or longer")

    done = await keyturn.key_changes.replace(by=by(), begun=begun)
    print(f"{count_of_sessions(done.ended)} ended; everyone has to sign in again")
    print("an instance that still runs has the old keys: restart it with the new master secret")


def _signing(keys: Sequence[Row], use: str, now: str = "") -> str:
    """Names the key of a use that signs now, and the keys that will sign, each with the moment when it begins.

    Cookie keys seal.
    """
    signs, what = ("seals", "cookies") if use == "cookie" else ("signs", f"{use} tokens")
    keys = [key for key in keys if key["use"] == use]
    named = {key["kid"]: f"{key['kid']} ({key['algorithm']})" for key in keys}
    lines = [f"{named[key['kid']]} {signs} {what} now{now}" for key in keys if key["status"] == "signs"]
    lines += [
        f"{named[key['kid']]} is published and {signs} from {moment(key['signs_from'])} on"
        for key in keys
        if key["status"] == "published"
    ]
    return "; ".join(lines)
