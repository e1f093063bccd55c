"""The ``keyturn`` command: nouns, then verbs. Exit codes: 0 done, 1 refused, 2 wrong use, 3 something is away."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from ..errors import ConfigurationError, Refusal, TemporarilyUnavailable, WrongSettings
from ..printable import LONGEST_MESSAGE, printable
from ..settings_sources import PREFIX
from ..storage.migrating import end_at_sigterm
from . import (
    db,
    doctor,
    events,
    federation,
    incident,
    keys,
    openapi,
    policies,
    serve,
    sessions,
    stats,
    top,
    upkeep,
    users,
    why,
)
from .arguments import Parser

_NOUNS = (
    serve,
    db,
    doctor,
    incident,
    openapi,
    upkeep,
    users,
    sessions,
    policies,
    keys,
    federation,
    events,
    why,
    stats,
    top,
)
"""The nouns, in the order of the help. Each file adds its own words."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command, and returns its exit code."""
    arguments, unknown = parser().parse_known_args(argv)
    if unknown:
        arguments.parser.refuse(unknown)
    end_at_sigterm()
    try:
        for name in ("config", "host", "port", "workers"):
            if (value := getattr(arguments, name, None)) is not None:
                # An option becomes a variable of the environment, so that every worker process reads the same.
                os.environ[f"{PREFIX}{name.upper()}"] = str(value)
        code = int(arguments.run(arguments) or 0)
        print(end="", flush=True)
    except TemporarilyUnavailable as e:
        return _fail(3, f"not available: {e.cause}")
    except Refusal as e:
        return _fail(1, e.cause if e.description == e.sentence and e.cause else e.description)
    except ConfigurationError as e:
        return _fail(2 if isinstance(e, WrongSettings) else 1, str(e))
    except (EOFError, KeyboardInterrupt):
        return 1
    except OSError as e:
        if e.errno not in {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}:
            raise
        # Python keeps the output that it could not write, and would try again when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1 if e.errno == errno.EPIPE else _fail(1, f"the output can't be written ({e.strerror})")
    return code


def _fail(code: int, line: str) -> int:
    # Postgres, an issuer or an operator may have written some of the line.
    print(f"keyturn: {printable(line, LONGEST_MESSAGE)}", file=sys.stderr)
    return code


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from ..main import release  # noqa: PLC0415  # FastAPI is not needed by other commands

        print(f"keyturn {release()}")
        parser.exit()


def parser() -> Parser:
    """The parser of all nouns and verbs."""
    found = Parser(prog="keyturn", description="A self-hosted token service.")
    found.add_argument("--version", action=_Version, nargs=0, help="print the release and exit")
    words = found.add_subparsers(required=True, metavar="COMMAND")
    for noun in _NOUNS:
        noun.add_to(words)
    return found
