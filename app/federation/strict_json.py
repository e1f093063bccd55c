"""JSON from outside, read strictly: one meaning for each text. Pure: no I/O."""

from __future__ import annotations

import json
import math
from typing import Any


def parsed(raw: bytes) -> Any:
    """The value that a text spells in JSON (RFC 8259) and UTF-8.

    A name that stands twice in one object is refused: parsers differ in which of the two counts (RFC 8259 section 4).
    So are `NaN`, numbers too large for a float, nesting that is deeper than Python's stack, and half of a character
    (RFC 8259 section 8.2), which neither UTF-8 nor a database can hold.

    Raises:
        ValueError: the text is no such JSON. The error does not hold the text.
    """
    try:
        value = _DECODER.decode(raw.decode())
        if b"\\ud" in raw or b"\\uD" in raw:  # UTF-8 itself has no form for halves, so only an escape makes one
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        pass
    else:
        return value
    raise ValueError("not JSON, or ambiguous")


def parsed_object(raw: bytes) -> dict[str, Any]:
    """The members of a JSON object.

    Raises:
        ValueError: as `parsed`, or the text is another value than an object.
    """
    value = parsed(raw)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004  # the text is wrong, and not the type of an argument
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate name")
    return members


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("not a finite number")
    return number


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_float=_finite, parse_constant=_finite)
