"""`keyturn top`: the instances live on a terminal, from their metrics doors."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep

from ..errors import ConfigurationError, TemporarilyUnavailable, WrongSettings
from ..printable import printable
from ..settings import read
from ..settings_values import url
from ..top import view
from ..top.doors import Asking, Door, Reading, asking
from ..top.numbers import Numbers
from .arguments import Words, add_word

_SHORTEST, _LONGEST = 1, 3600


def add_to(words: Words) -> None:
    """Adds the command."""
    parser = add_word(words, "top", "rates, outcomes, latencies and states of the instances, live")
    parser.add_argument(
        "url", nargs="*", metavar="URL", help="where an instance has its metrics (default: as the settings say)"
    )
    parser.add_argument(
        "--interval", type=_seconds, default=2, metavar="SECONDS", help="between two readings (default: %(default)s)"
    )
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="has the token for the URLs (default: none)")
    parser.add_argument("--once", action="store_true", help="print one interval as text, as without a terminal")
    parser.add_argument("--json", action="store_true", help="print one interval as JSON")
    parser.set_defaults(run=_top)


def _seconds(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= len(str(_LONGEST)) and _SHORTEST <= int(text) <= _LONGEST:
        return int(text)
    raise argparse.ArgumentTypeError("must be a whole number from 1 to 3600")


def _top(arguments: argparse.Namespace) -> int:
    doors = _doors(arguments)
    if arguments.once or arguments.json or not _is_live():
        with asking(doors) as ask:
            before = ask.now()
            sleep(arguments.interval)
            return _print_once(before, ask.now(), as_json=arguments.json)
    with asking(doors) as ask, suppress(KeyboardInterrupt):  # CTRL+C is a way to leave
        _live(ask, arguments.interval)
    return 0


def _doors(arguments: argparse.Namespace) -> Sequence[Door]:
    """The doors that the command line names, or else the one of the settings.

    The token of the settings goes to the door of the settings alone.

    Raises:
        ConfigurationError: a URL is none, the file of the token can't be read, or the settings open no door.
    """
    if arguments.url:
        token = None if arguments.token_file is None else _token_in(arguments.token_file)
        try:
            return [Door.of(each, token) for each in dict.fromkeys(arguments.url)]
        except ValueError as e:
            raise WrongSettings(f"URL: {e}") from None
    settings = read()
    if settings.metrics_port is not None:
        return [Door.of(url(settings.metrics_host, settings.metrics_port), settings.metrics_bearer)]
    if settings.metrics_bearer is None:
        raise ConfigurationError(
            "the settings open no metrics door: set KEYTURN_METRICS_PORT or KEYTURN_METRICS_TOKEN, or name its URL"
        )
    return [Door.of(f"{url(settings.host, settings.port)}{settings.root_path}/metrics", settings.metrics_bearer)]


def _token_in(path: Path) -> str:
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        token = ""
    if not token.isprintable() or not token or " " in token:
        raise WrongSettings(f"--token-file: {printable(str(path))} has no token of printable ASCII in one line")
    return token


def _is_live() -> bool:
    try:
        from ..top.terminal import is_capable  # noqa: PLC0415  # needs termios, which Windows lacks
    except ImportError:
        return False
    return is_capable(sys.stdout)


def _print_once(before: Mapping[str, Reading], after: Mapping[str, Reading], *, as_json: bool) -> int:
    """Prints an interval.

    Raises:
        TemporarilyUnavailable: no door answered.
    """
    numbers, now = Numbers.between(before, after), datetime.now(UTC)
    if all(each.failure is not None for each in numbers.instances):
        raise TemporarilyUnavailable("; ".join(f"{each.url} {each.failure}" for each in numbers.instances))
    if as_json:
        print(json.dumps(view.members(numbers, now)))
        return 0
    for line in view.lines(numbers, now):
        print("".join(span.text for span in line).rstrip())
    return 0


def _live(ask: Asking, interval: int) -> None:
    from ..top.terminal import screen  # noqa: PLC0415  # as above

    quit_by = view.Span(f"  q quits, every {interval} s", "dim")
    with screen(sys.stdout) as terminal:
        before: Mapping[str, Reading] = {}
        while True:
            after, end = ask.now(), monotonic() + interval
            first, *rest = view.lines(Numbers.between(before, after), datetime.now(UTC))
            before = after
            terminal.draw([[*first, quit_by], *rest])
            while (left := end - monotonic()) > 0:
                if not terminal.wait(left):
                    return
                terminal.draw([[*first, quit_by], *rest])  # the size may have changed
