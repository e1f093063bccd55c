"""`keyturn incident`: the commands to type when something has leaked, in order. Needs no set-up."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from ..command_name import called
from .arguments import Words, add_word
from .incidents import LEAKS, Leak


def add_to(words: Words) -> None:
    """Adds the command."""
    parser = add_word(words, "incident", "what to type when something has leaked")
    parser.add_argument(
        "leak",
        nargs="?",
        choices=[leak.name for leak in LEAKS],
        metavar="LEAK",
        help=f"what has leaked: {', '.join(leak.name for leak in LEAKS)} (default: all, in short)",
    )
    parser.set_defaults(run=_incident)


def _incident(arguments: argparse.Namespace) -> None:
    if arguments.leak is None:
        width = max(len(leak.name) for leak in LEAKS)
        for leak in LEAKS:
            print(f"{leak.name.ljust(width)}  {leak.title}")
        print(f"\n{called()} incident NAME says what to do")
        return
    (leak,) = [leak for leak in LEAKS if leak.name == arguments.leak]
    print("\n".join(_told(leak)))


def _told(leak: Leak) -> Iterator[str]:
    yield f"{leak.title[0].upper()}{leak.title[1:]}"
    yield ""
    for number, step in enumerate(leak.steps, 1):
        yield f"{number}. {step.does}"
        if step.command:
            yield f"   {called()} {step.command}"
    yield ""
    yield f"Users notice: {leak.users[0].lower()}{leak.users[1:]}"
