"""Bodies: media types, and JSON read strictly."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable

from ..errors import InvalidRequest

MAX_DEPTH = 32
"""Levels of arrays and objects in a JSON body."""

MAX_MEMBERS = 1000
"""Members of an object, elements of an array, and arrays and objects altogether in a JSON body."""

MAX_DIGITS = 64
"""Characters of a number in a JSON body."""

# Parameters that a media type does not define are ignored (RFC 9110 section 8.3, RFC 8259 section 11). A charset is
# one, but who names another than UTF-8 writes other characters: only where the body is ASCII are they the same.
_PARAMETERS = rb"""
    (?: [ \t]*+ ; [ \t]*+
        (?: charset = ("?) (?: utf-?8 | (us-ascii | iso-8859-[0-9]{1,2} | windows-125[0-9]) ) \1 (?![^ \t;])
          | (?!charset=) [!#$%&'*+.^_`|~0-9A-Z-]++ = (?: [!#$%&'*+.^_`|~0-9A-Z-]++ | "(?:[^"\\]|\\.)*+" )
        )?
    )*+ [ \t]*+"""
JSON = re.compile(rb"application/json" + _PARAMETERS, re.IGNORECASE | re.VERBOSE)
FORM = re.compile(rb"application/x-www-form-urlencoded" + _PARAMETERS, re.IGNORECASE | re.VERBOSE)


def is_identity(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether Content-Encoding names no coding: a list, in one field or several, maybe with empty elements."""
    codings = b",".join(value for name, value in headers if name == b"content-encoding").lower().split(b",")
    return {coding.strip(b" \t") for coding in codings} <= {b"", b"identity"}


def is_of_type(wanted: re.Pattern[bytes], media_type: bytes, body: bytes) -> bool:
    given = wanted.fullmatch(media_type)
    return given is not None and (given[2] is None or body.isascii())


def parse_json(body: bytes) -> object:
    """The value of a JSON text (RFC 8259), strictly: what two parsers could read differently is refused.

    UTF-8 without byte order mark, no duplicate names, no lone surrogates, no NaN or infinity, ``MAX_DEPTH``,
    ``MAX_MEMBERS``, ``MAX_DIGITS``.

    Raises:
        InvalidRequest: it is anything else.
    """
    if plain := _PLAIN_OBJECT.fullmatch(body):
        return {plain[1].decode(): plain[2].decode()}
    _check_structure(body)
    try:
        value: object = _DECODER.decode(body.decode())
        if b"\\ud" in body or b"\\uD" in body:
            # UTF-8 has no form for surrogates, so only an escape makes one (RFC 8259 section 8.2).
            json.dumps(value, ensure_ascii=False).encode()
    except ValueError:  # UnicodeError and JSONDecodeError, which holds the text: not passed on, not even as a context
        pass
    else:
        return value
    raise _bad_json("not JSON in UTF-8")


# One member whose value is a string without escapes, as most bodies are: the parser could only say the same.
_PLAIN_OBJECT = re.compile(
    rb'[ \t\r\n]*\{[ \t\r\n]*"([a-z_]+)"[ \t\r\n]*:[ \t\r\n]*"([A-Za-z0-9_.-]*)"[ \t\r\n]*\}[ \t\r\n]*'
)


def _bad_json(cause: str) -> InvalidRequest:
    return InvalidRequest(
        f"JSON: {cause}",
        description=f"The body must be JSON in UTF-8, without duplicate names, at most {MAX_DEPTH} levels deep.",
    )


# No quantifier gives back what it took, and an unclosed string runs to the end: one pass over any input.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")


def _check_structure(body: bytes) -> None:
    """Refuses what is too deep or has too many parts, before the parser, which recurses, sees it.

    Where text is JSON, strings are where the parser sees them; where it stops being JSON, the parser stops.
    """
    if body.count(b"{") + body.count(b"[") <= MAX_DEPTH and body.count(b",") < MAX_MEMBERS:
        return
    structure = _STRING.sub(b"", body)
    if structure.count(b",") >= MAX_MEMBERS or structure.count(b"{") + structure.count(b"[") > MAX_MEMBERS:
        raise _bad_json("too many members")
    depth = 0
    for bracket in _BRACKET.findall(structure):
        depth += 1 if bracket in b"{[" else -1
        if depth > MAX_DEPTH:
            raise _bad_json("too deep")
        if depth < 0:
            return


def _object(members: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(members)
    if len(value) != len(members):
        raise _bad_json("a name stands twice")
    return value


def _number(of: Callable[[str], float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        if len(text) > MAX_DIGITS:
            raise _bad_json("a number is too long")
        value = of(text)
        if not math.isfinite(value):
            raise _bad_json("a number is too large")
        return value

    return number


def _constant(_name: str) -> object:
    raise _bad_json("NaN or infinity")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_number(int), parse_float=_number(float), parse_constant=_constant
)
