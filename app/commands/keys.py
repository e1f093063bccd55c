"""`keyturn keys`: the working keys, made, listed, rotated, shared, retired and replaced."""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import get_args

from ..command_name import called
from ..errors import InvalidRequest, NotFound
from ..keyturn import Keyturn
from ..sessions.key_changes import LAST_SIGN_IN, Replaced, Retired
from ..settings import Algorithm
from ..storage.copies import READ_BY_ALL
from ..tokens.key_set import Use
from ..tokens.primitives import RsaBits
from .acts import add_verb, by, on_parts
from .arguments import Words, add_word
from .output import count_of_sessions, note, show_list
from .rows import Row
from .table import cell

_SECOND = timedelta(seconds=1)
_LONGEST_LINE = 4096  # characters


def add_to(words: Words) -> None:
    """Adds the noun and its verbs."""
    verbs = add_word(words, "keys", "working keys").add_subparsers(required=True, metavar="VERB")
    verb = add_verb(verbs, "generate", _generate, "make a key; it signs or seals a minute later")
    verb.add_argument("use", choices=get_args(Use), help="what the key is for")
    verb.add_argument(
        "--algorithm",
        choices=get_args(Algorithm),
        help="of an access key (default: KEYTURN_SIGNING_ALGORITHM, or unset, that of the newest key)",
    )
    verb.add_argument("--bits", type=int, choices=get_args(RsaBits), help="of an RS256 key (default: 2048)")
    verb = add_verb(verbs, "rotate", _rotate, "put a new key in the place of the old ones; nobody is signed out")
    verb.add_argument("use", choices=(*get_args(Use), "master"), help="which keys; master: all move to KEYTURN_SECRET")
    verb.add_argument(
        "--algorithm",
        choices=get_args(Algorithm),
        help="of an access key (default: KEYTURN_SIGNING_ALGORITHM, or unset, that of the newest key)",
    )
    verb.add_argument("--bits", type=int, choices=get_args(RsaBits), help="of an RS256 key (default: 2048)")
    verb.add_argument("--no-wait", action="store_true", help="do not wait until the new key signs")
    add_verb(verbs, "list", _list, "all keys, without secrets", prints="table")
    verb = add_verb(verbs, "retire", _retire, "refuse what a key made, end a refresh key's sessions")
    verb.add_argument("kid", help="as `keys list` shows it")
    verb = add_verb(verbs, "replace", _replace, "make all keys anew, where the master secret leaked or is lost")
    verb.add_argument(
        "--sign-everyone-out", action="store_true", required=True, help="must be given, because all sessions end"
    )
    verb.set_defaults(run=on_parts(_replace, load=False))
    add_verb(verbs, "sign-everyone-out", _sign_everyone_out, "end all sessions of all users at once")
    verb = add_verb(verbs, "import", _import, "take an HS256 access key from elsewhere")
    verb.add_argument("file", type=Path, nargs="?", help="has the key in its first line (default: standard input)")
    verb = add_verb(verbs, "export", _export, "print an HS256 access key")
    verb.add_argument("kid", help="as `keys list` shows it")
    verb.add_argument(
        "--yes-export-this-secret", action="store_true", required=True, help="must be given: it can sign any token"
    )


async def _generate(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    made = await keyturn.key_changes.generate(arguments.use, arguments.algorithm, arguments.bits, by=by())
    print(made.kid, flush=True)
    note(_signing(made.keys, arguments.use))
    _note_change(made.kid, made.keys)


async def _list(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    keys = await keyturn.keys.list()
    short = [_in_short(key, under=keyturn.settings.secret_previous is not None) for key in keys]
    show_list(keys, arguments, short=short, cut=("algorithm",))
    issuers = [issuer.name for issuer in await keyturn.issuers.rows() if issuer.sealed_under == "previous"]
    if issuers:
        note(f"secrets of issuers that are still under KEYTURN_SECRET_PREVIOUS: {', '.join(issuers)}")


def _in_short(key: Row, *, under: bool) -> Row:
    """A key in short. Its master secret is of interest only where there are two."""
    columns = ("kid", "use", "algorithm", "status", "signs_from")
    retires = {"retires": key["retired_at"] or key["retires_at"]}
    sealed = {"under": key["sealed_under"] or "neither"} if under else {}
    return {**{column: key[column] for column in columns}, **retires, **sealed}


async def _rotate(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    if arguments.use == "master":
        await _rewrap(keyturn, arguments)
        return
    made = await keyturn.key_changes.rotate(arguments.use, arguments.algorithm, arguments.bits, by=by())
    print(made.kid, flush=True)
    note(_signing(made.keys, arguments.use))
    _note_change(made.kid, made.keys)
    for key in made.keys:
        if key["retires_at"]:
            note(f"{key['kid']} ({key['algorithm']}) retires at {cell(key['retires_at'])}, when its last token is over")
    if not arguments.no_wait:
        note("waiting until it does (if this breaks off, call it again)")
        note(_signing((await keyturn.key_changes.signs(made.kid)).keys, arguments.use))


async def _rewrap(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    if arguments.algorithm or arguments.bits:
        raise InvalidRequest("algorithm", description="algorithm and bits are for access keys.")
    moved = await keyturn.key_rotation.rewrap(by=by())
    print(f"{moved} row{'s' * (moved != 1)} moved: all keys in force and secrets of issuers are under KEYTURN_SECRET")
    if keyturn.settings.secret_previous:
        note("restart the instances without KEYTURN_SECRET_PREVIOUS, one after another")


async def _sign_everyone_out(keyturn: Keyturn, _arguments: argparse.Namespace) -> None:
    done = await keyturn.key_changes.sign_everyone_out(by=by())
    print(f"everyone is signed out; within {READ_BY_ALL // _SECOND} s all tokens made so far are refused everywhere")
    print(f"new sign-ins work at once, under {done.access_kid} and {done.refresh_kid}")


async def _import(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    kid = await keyturn.key_sharing.take(_secret(arguments.file), by=by())
    print(kid, flush=True)
    keys = await keyturn.keys.list()
    note(_signing(keys, "access"))
    _note_change(kid, keys)
    note("each holder of this key can sign any access token; remove the copy from which you read it")


def _secret(path: Path | None) -> str:
    """The first line of a file or of standard input. No option takes a key: every user may read command lines."""
    if path is None:
        return getpass.getpass("Key: ") if sys.stdin.isatty() else sys.stdin.readline(_LONGEST_LINE).strip()
    try:
        with path.open(encoding="ascii") as file:
            return file.readline(_LONGEST_LINE).strip()
    except (OSError, UnicodeDecodeError):
        raise InvalidRequest("file", description="The file can't be read.") from None


async def _export(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    print(await keyturn.key_sharing.give(arguments.kid, by=by()), flush=True)
    note("each holder of this key can sign any access token: for any user, with any role")


async def _retire(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    def begun(retired: Retired) -> None:
        if retired.retired_before:
            print(f"{retired.kid} was retired already, at {cell(retired.retired_before)}")
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


def _note_change(kid: str, keys: Sequence[Row]) -> None:
    """Says what follows if an access key will sign with another algorithm than tokens have now."""
    named = {key["kid"]: key["algorithm"] for key in keys if key["use"] == "access"}
    now = next((named[key["kid"]] for key in keys if key["kid"] in named and key["status"] == "signs"), None)
    new = named.get(kid)
    if new is None or now in {new, None}:
        return
    takes = "can't: let them ask /auth/verify" if new == "HS256" else f"must take {new} by then"
    note(f"{now} → {new}: services that verify by themselves {takes}")


async def other_algorithm(keyturn: Keyturn) -> str:
    """Advice if the settings name another algorithm than that of the newest access key; else empty."""
    wanted = keyturn.settings.signing_algorithm
    newest = await keyturn.keys.newest_algorithm()
    if wanted is None or newest in {wanted, None}:
        return ""
    return (
        f"KEYTURN_SIGNING_ALGORITHM is {wanted}, and access tokens are signed with {newest}: "
        f"{called()} keys rotate access --algorithm {wanted}, or change the setting"
    )


def _signing(keys: Sequence[Row], use: str, now: str = "") -> str:
    """Names the key of a use that signs now, and the keys that will sign, each with the moment when it begins.

    Cookie keys seal.
    """
    signs, what = ("seals", "cookies") if use == "cookie" else ("signs", f"{use} tokens")
    keys = [key for key in keys if key["use"] == use]
    named = {key["kid"]: f"{key['kid']} ({key['algorithm']})" for key in keys}
    lines = [f"{named[key['kid']]} {signs} {what} now{now}" for key in keys if key["status"] == "signs"]
    lines += [
        f"{named[key['kid']]} is published and {signs} from {cell(key['signs_from'])} on"
        for key in keys
        if key["status"] == "published"
    ]
    return "; ".join(lines)
