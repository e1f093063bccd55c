"""The parser of the command line: its words, its numbers and ids, and errors that repeat no secret."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, Protocol
from uuid import UUID

from .examples import EXAMPLES

_PLAIN = re.compile(r"-[a-z]|(?:--)?[a-z]+(?:[-_][a-z]+)*(?<!.{33})", re.ASCII | re.IGNORECASE)
"""The form of an option's or a command's name: letters, hyphens and underscores, at most 32 characters.

After a single hyphen only one letter is a name: with `-pSECRET`, other programs take a password.
"""


class Words(Protocol):
    """The nouns of the command line, or the verbs of one noun."""

    def add_parser(self, name: str, *, help: str, description: str = ...) -> argparse.ArgumentParser:  # noqa: A002  # argparse's own name
        """Adds a word, and makes the parser of everything that comes after it."""


class Parser(argparse.ArgumentParser):
    """Accepts no abbreviated option. Its messages repeat only names: any other word may be a password or a token."""

    def __init__(self, **options: Any) -> None:
        example = EXAMPLES.get(options.get("prog", ""))
        super().__init__(allow_abbrev=False, epilog=example and f"For example: {example}", **options)
        # The option may stand before or after the verb. A default of the verb's parser would overwrite the option that
        # the noun's parser has read.
        self.add_argument(
            "--config",
            metavar="FILE",
            type=Path,
            default=argparse.SUPPRESS,
            help="TOML file with settings (default: KEYTURN_CONFIG, or none)",
        )
        self.set_defaults(parser=self)

    def format_usage(self) -> str:
        """The usage, and the example if there is one. An error shows both."""
        return "\n".join((super().format_usage().rstrip(), *filter(None, (self.epilog,)), ""))

    def error(self, message: str) -> NoReturn:
        """Ends the process with code 2. If argparse's message quotes a word that is no name, the word is cut out."""
        message = re.sub(
            r"(?s)(invalid (?:choice|\w+ value)): (.*?)(?= \(choose from [^()]*\)$|$)",
            lambda found: f"{found[1]}{_name(found[2].strip(chr(39)))}",
            message,
        )
        super().error(re.sub(r"(?s)(ignored explicit argument).*", r"\1", message))

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Ends the process with code 2. Names the unknown options, and counts the other words that are too many."""
        options = [word.partition("=")[0] for word in unknown if word.startswith("-")]
        names = [option for option in options if _PLAIN.fullmatch(option)]
        others = len(unknown) - len(names)
        refused = [f"there is no {name}" for name in names]
        if others:
            refused.append(f"{others} word{'s' * (others > 1)} too many (not repeated here, as it may be a secret)")
        super().error(f"unrecognized arguments: {'; '.join(refused)}")


def add_word(words: Words, name: str, help: str) -> argparse.ArgumentParser:  # noqa: A002  # argparse's own name
    """Adds a word. Its own help begins with the line that the help above it has for it."""
    return words.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")


def _name(word: str) -> str:
    return f" {word}" if _PLAIN.fullmatch(word) else ""


def whole(text: str) -> int:
    """A whole number from 0 to 99999, as the type of an argument."""
    if not (text.isascii() and text.isdigit()) or len(text) > 5:  # noqa: PLR2004  # digits: 99,999 days are 273 years
        raise argparse.ArgumentTypeError("must be a whole number from 0 to 99999")
    return int(text)


def identifier(text: str) -> UUID:
    """The id of a user, a session or an event, as the type of an argument."""
    try:
        return UUID(text)
    except ValueError:
        raise argparse.ArgumentTypeError("must be an id (a UUID)") from None


def moment(text: str) -> datetime:
    """A moment after RFC 3339, as the type of an argument. One without an offset is in UTC, as the tables show them."""
    try:
        found = datetime.fromisoformat(text)
        return found.replace(tzinfo=found.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError("must be a moment, such as 2026-01-31T12:00:00Z") from None
