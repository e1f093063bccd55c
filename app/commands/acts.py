"""The verbs that act on an opened Keyturn: how its parts are opened for one command, and who acts."""

from __future__ import annotations

import argparse
import asyncio
import getpass
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Literal, TypeAlias

from ..actors import Actor
from ..keyturn import Keyturn, opened
from ..settings import read
from ..storage.schema import check_schema
from .arguments import Words, add_word
from .table import WIDEST

Act: TypeAlias = Callable[[Keyturn, argparse.Namespace], Awaitable[None]]


def add_verb(
    verbs: Words,
    name: str,
    act: Act,
    help: str,  # noqa: A002  # argparse's own name
    *,
    prints: Literal["words", "record", "table"] = "words",
) -> argparse.ArgumentParser:
    """Adds a verb and its act. A verb that prints a record or a table prints it as JSON too."""
    parser = add_word(verbs, name, help)
    if prints != "words":
        parser.add_argument("--json", action="store_true", help="print JSON")
    if prints == "table":
        parser.add_argument(
            "--wide", action="store_true", help=f"all columns, and more than {WIDEST} characters a line"
        )
    parser.set_defaults(run=on_parts(act))
    return parser


def on_parts(act: Act, *, load: bool = True) -> Callable[[argparse.Namespace], None]:
    """Lets an act run on the parts that the settings name.

    Args:
        act: what the command does.
        load: whether to load the key set first. Not for an act that replaces all keys: the process may be unable to
            open the old ones.
    """

    async def run(arguments: argparse.Namespace) -> None:
        settings = read()
        async with opened(settings) as keyturn:
            await check_schema(keyturn.db)
            if load:
                await keyturn.keys.load()
            await keyturn.policies.load()
            await keyturn.issuers.load()
            await keyturn.revocations.fence.read()
            await act(keyturn, arguments)

    return lambda arguments: asyncio.run(run(arguments))


def by() -> Actor:
    """The actor of every command: the user of the operating system, by the name in LOGNAME or the user database.

    An event keeps 64 characters of the name, and no bytes that are not UTF-8: Postgres would refuse the event, and the
    change with it. In a container whose user has no name, the actor has no id.
    """
    with suppress(OSError, KeyError, ImportError):
        return Actor("command", getpass.getuser().encode(errors="replace").decode()[:64])
    return Actor("command")
