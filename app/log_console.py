"""The log for people: lines of JSON, shown as lines to read on a terminal.

Each line of the log is finished JSON first, redacted already. This file only shows that line in another form. So the
two forms can't differ in what they tell, and no secret has a way of its own to the terminal.

A client chooses some of the values: a path, a request id, an address. A terminal obeys control characters. So every
character that is not printable is shown as an escape, and a value that could be taken for several members is quoted.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, Literal, TextIO

from .printable import printable

LogFormat = Literal["auto", "json", "console"]
"""The forms of the log: JSON, or lines for people. `auto`: lines for people on a terminal, JSON elsewhere."""

Shown = Callable[[str], str]
"""Shows finished lines of JSON as text."""

_PLAIN = re.compile(r"[^\s\"'=\\]+")  # a value of these characters needs no quotes
_FIRST = ("method", "path", "status", "duration_ms")  # the members that stand without names in the line of a request
_ELSEWHERE = {"timestamp", "level", "event", "exception"}

_DIM, _BOLD, _RED, _GREEN, _YELLOW, _CYAN = "2", "1", "31", "32", "33", "36"
_OF_LEVELS = {"debug": _DIM, "info": _GREEN, "warning": _YELLOW, "error": _RED, "critical": _RED}
_OF_STATUSES = {2: _GREEN, 3: _CYAN, 4: _YELLOW, 5: _RED}


def shown_on(stream: TextIO, form: LogFormat) -> Shown | None:
    """The function that shows the lines of JSON on a stream, or None if they stay as they are."""
    if form == "json" or (form == "auto" and not _is_terminal(stream)):
        return None
    paint = _painted if wants_colours(stream) else _unpainted
    return lambda lines: "\n".join(shown(line, paint) for line in lines.split("\n"))


def wants_colours(stream: TextIO) -> bool:
    """Whether to write colours: on a terminal that knows them, unless NO_COLOR has a value (https://no-color.org)."""
    return _is_terminal(stream) and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # no stream at all, or a closed one
        return False


def shown(line: str, paint: Callable[[str, str], str]) -> str:
    """One line of JSON as a line to read. A traceback follows on lines of its own.

    Args:
        line: an object in JSON. Anything else is shown with its control characters escaped.
        paint: gives a text a colour, by the number of the colour (ECMA-48 section 8.3.117).
    """
    try:
        members = json.loads(line)
    except ValueError:
        return _exact(line)
    if not isinstance(members, dict):
        return _exact(line)
    level = str(members.get("level", "info"))
    said = " ".join(_said(members, paint))
    head = paint(_time(members.get("timestamp")), _DIM), paint(f"{_exact(level):<8}", _OF_LEVELS.get(level, _BOLD))
    trace = [f"    {_exact(each)}" for each in str(members.get("exception", "")).splitlines()]
    return "\n".join([" ".join((*head, said)), *trace])


def _said(members: dict[str, Any], paint: Callable[[str, str], str]) -> Iterator[str]:
    event = members.get("event")
    of_request = event == "request" and all(name in members for name in _FIRST)
    if of_request:
        status = members["status"]
        colour = _OF_STATUSES.get(status // 100, _BOLD) if isinstance(status, int) else _RED
        yield paint(f"{_value(members['method'])} {_value(members['path'])}", _BOLD)
        yield paint("no answer" if status is None else _value(status), colour)
        yield paint(f"{_value(members['duration_ms'])} ms", _DIM)
    else:
        yield paint(_exact(str(event)), _BOLD)
    for name, value in members.items():
        if name not in _ELSEWHERE and not (of_request and name in _FIRST):
            yield f"{paint(f'{_exact(name)}=', _CYAN)}{_value(value)}"


def _value(value: Any) -> str:
    """A value as it stands in a line: a plain word as it is, any other text in quotes, the rest as JSON."""
    if not isinstance(value, str):
        return json.dumps(value)  # ASCII, with escapes for all else
    text = _exact(value)
    return text if _PLAIN.fullmatch(text) else '"' + text.replace('"', '\\"') + '"'


def _exact(text: str) -> str:
    """The text, printable, with two backslashes for each. So an escape is never mistaken for what a client sent."""
    return printable(text.replace("\\", "\\\\"))


def _time(timestamp: Any) -> str:
    """The time of day where the terminal is, with milliseconds."""
    try:
        return datetime.fromisoformat(str(timestamp)).astimezone().strftime("%H:%M:%S.%f")[:-3]
    except ValueError:
        return _exact(str(timestamp))


def _painted(text: str, colour: str) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m"


def _unpainted(text: str, _colour: str) -> str:
    return text
