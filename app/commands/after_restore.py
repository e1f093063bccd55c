"""`keyturn doctor --after-restore`: takes a restored database into use, and says what came back with it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

from ..command_name import called
from ..keyturn import Keyturn
from ..sessions.restored import Restoration
from .acts import by
from .table import cell


async def take(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    """Runs the command. If `--sign-everyone-out` was given, all tokens made so far are refused in the end."""
    everyone: bool = arguments.sign_everyone_out
    restoration = await keyturn.restored.take(by=by())
    if everyone:
        await keyturn.key_changes.sign_everyone_out(by=by())
    done = [*_done(restoration, everyone=everyone)]
    left = [*_left(keyturn, restoration, await _in_force(keyturn), everyone=everyone)]
    if arguments.json:
        print(json.dumps({"restored_at": cell(restoration.at), "done": done, "left": left}))
        return
    for line in done:
        print(f"ok  {line}")
    for line in left:
        print(f"!!  {line}")


async def _in_force(keyturn: Keyturn) -> str:
    """The keys whose tokens are accepted, by their ids."""
    keys = await keyturn.keys.list()
    return ", ".join(key["kid"] for key in keys if key["status"] != "retired" and key["use"] != "cookie")


def _done(restoration: Restoration, *, everyone: bool) -> Iterator[str]:
    yield "Redis from before the restore is not believed; instances fill it anew, and meanwhile the database answers"
    yield f"access tokens from before {cell(restoration.at)} count only if the database has their session"
    yield "the instances read keys, policies and issuers again"
    if everyone:
        yield "everyone is signed out: all tokens made so far are refused, and new sign-ins work at once"


def _left(keyturn: Keyturn, restoration: Restoration, kids: str, *, everyone: bool) -> Iterator[str]:
    """The lines for the operator, each with the command that mends what it tells."""
    if restoration.newest is not None:
        yield f"the newest event in this database is of {cell(restoration.newest)}: what happened later is undone"
    if not everyone:
        yield (
            "sessions that ended later live again, and refresh tokens used up later are good again: "
            f"{called()} doctor --after-restore --sign-everyone-out"
        )
        yield f"a key that was retired later is in force again (in force: {kids}): {called()} keys retire KID"
    yield (
        "accounts are as they were: "
        f"{called()} users disable, erase or set-role USER again, and set-password for each that was changed later"
    )
    if keyturn.issuers.in_force:
        yield (
            "issuers are as they were, and one-use tokens of issuers taken later can be taken again until they expire: "
            f"{called()} federation list"
        )
