"""Bodies: media types, and JSON and forms read strictly."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import unquote_to_bytes

from pydantic import BaseModel, ValidationError

from ..errors import InvalidRequest, UnsupportedMediaType

ABSENT = object()
"""The value of a body that is empty or that no endpoint reads."""

JSON, FORM = "application/json", "application/x-www-form-urlencoded"

OF_STANDARDS = ("/oauth/", "/federation/")
"""Under these prefixes of the path, other standards decide what a body is: see `is_form`. Elsewhere bodies are JSON."""

MAX_DEPTH = 32
"""Levels of arrays and objects in a JSON body."""

MAX_MEMBERS = 1000
"""Members of an object, elements of an array, and arrays and objects altogether in a JSON body."""

MAX_DIGITS = 64
"""Characters of a number in a JSON body."""

# Ignore parameters that the media type does not define (RFC 9110 section 8.3, RFC 8259 section 11). `charset` is one
# of them. But if a client names a charset other than UTF-8, its bytes may mean other characters. So accept such a
# charset only if the body is ASCII, whose bytes mean the same in all charsets named here.
_PARAMETERS = rb"""
    (?: [ \t]*+ ; [ \t]*+
        (?: charset = ("?) (?: utf-?8 | (us-ascii | iso-8859-[0-9]{1,2} | windows-125[0-9]) ) \1 (?![^ \t;])
          | (?!charset=) [!#$%&'*+.^_`|~0-9A-Z-]++ = (?: [!#$%&'*+.^_`|~0-9A-Z-]++ | "(?:[^"\\]|\\.)*+" )
        )?
    )*+ [ \t]*+"""
_JSON = re.compile(rb"application/json" + _PARAMETERS, re.IGNORECASE | re.VERBOSE)
_FORM = re.compile(rb"application/x-www-form-urlencoded" + _PARAMETERS, re.IGNORECASE | re.VERBOSE)


def is_form(path: str) -> bool:
    """Whether the body of a request to a path below `OF_STANDARDS` is a form. The OpenAPI document says the same.

    Clients send forms to /oauth (RFC 6749 section 3.2), and issuers send logout tokens in forms (OpenID Connect
    Back-Channel Logout 1.0 section 2.5). Their webhooks are JSON.
    """
    return path.startswith("/oauth/") or path.endswith("/logout")


def read_json(fields: Mapping[bytes, bytes], headers: Iterable[tuple[bytes, bytes]], body: bytes) -> object:
    """The value of a JSON body without a content coding.

    Raises:
        UnsupportedMediaType: the header fields name another media type or charset, or a content coding.
        InvalidRequest: as `parse_json`.
    """
    if b"content-encoding" in fields:
        _check_coding(headers)
    media_type = fields.get(b"content-type", b"")
    if media_type != b"application/json" and not _is_of_type(_JSON, media_type, body):
        raise UnsupportedMediaType("Content-Type")
    return parse_json(body)


def check_form(fields: Mapping[bytes, bytes], headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
    """Checks that a body is a form without a content coding. The caller checks the escapes.

    Raises:
        UnsupportedMediaType: the header fields name another media type or charset, or a content coding.
    """
    _check_coding(headers)
    if not _is_of_type(_FORM, fields.get(b"content-type", b""), body):
        raise UnsupportedMediaType(
            "Content-Type", description="The request body must be application/x-www-form-urlencoded, UTF-8."
        )


def parse_form(body: bytes) -> dict[str, str]:
    """The fields of a form whose escapes were checked. A form that two parsers could read differently is refused.

    So no name may stand twice, as RFC 6749 section 3.2 says, and there are at most `MAX_MEMBERS`.

    Raises:
        InvalidRequest: a name stands twice, or there are too many fields.
    """
    if body.count(b"&") >= MAX_MEMBERS:
        raise InvalidRequest("form: too many fields")
    pairs = [field.replace(b"+", b" ").partition(b"=") for field in body.split(b"&") if field]
    form = {unquote_to_bytes(name).decode(): unquote_to_bytes(value).decode() for name, _, value in pairs}
    if len(form) != len(pairs):
        raise InvalidRequest("form: a name stands twice", description="A field of the form stands twice.")
    return form


def _check_coding(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Content-Encoding is a list, in one field or several, maybe with empty elements. `identity` is no coding."""
    codings = b",".join(value for name, value in headers if name == b"content-encoding").lower().split(b",")
    if not {coding.strip(b" \t") for coding in codings} <= {b"", b"identity"}:
        raise UnsupportedMediaType("Content-Encoding")


def _is_of_type(wanted: re.Pattern[bytes], media_type: bytes, body: bytes) -> bool:
    given = wanted.fullmatch(media_type)
    return given is not None and (given[2] is None or body.isascii())


def parse_json(body: bytes) -> object:
    """The value of a JSON text (RFC 8259). A text that two parsers could read differently is refused.

    So the text must be UTF-8 without byte order mark. Duplicate names, lone surrogates, NaN and infinity are refused.
    `MAX_DEPTH`, `MAX_MEMBERS` and `MAX_DIGITS` are the limits.

    Raises:
        InvalidRequest: the body breaks one of these rules.
    """
    if plain := _PLAIN_OBJECT.fullmatch(body):
        return {plain[1].decode(): plain[2].decode()}
    _check_structure(body)
    try:
        value: object = _DECODER.decode(body.decode())
        if b"\\ud" in body or b"\\uD" in body:
            # UTF-8 has no form for surrogates, so only an escape makes one (RFC 8259 section 8.2).
            json.dumps(value, ensure_ascii=False).encode()
    except ValueError:  # the error holds the text, so it must not become the context of the refusal
        pass
    else:
        return value
    raise _bad_json("not JSON in UTF-8")


# Most bodies have one member, whose value is a string without escapes. For these, the parser would give the same value.
_PLAIN_OBJECT = re.compile(
    rb'[ \t\r\n]*\{[ \t\r\n]*"([a-z_]+)"[ \t\r\n]*:[ \t\r\n]*"([A-Za-z0-9_.-]*)"[ \t\r\n]*\}[ \t\r\n]*'
)


def _bad_json(cause: str) -> InvalidRequest:
    return InvalidRequest(
        f"JSON: {cause}",
        description=f"The body must be JSON in UTF-8, without duplicate names, at most {MAX_DEPTH} levels deep.",
    )


# All quantifiers are possessive, and an unclosed string matches to the end. So the pattern passes over any input once.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")


def _check_structure(body: bytes) -> None:
    """Refuses a body that is too deep or has too many parts. The parser recurses, so this check comes first.

    1. If the text is JSON, this function and the parser find the same strings.
    2. If the text stops being JSON at some place, the parser stops there too.
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


_PLAIN_NAME = re.compile(r"[A-Za-z][a-z]{1,15}(?:[_-]?[A-Za-z][a-z]{1,15}){0,3}", re.ASCII)
"""The form of a field's name, in whatever style a client writes it: at most four short words without digits.

A token never has it.
"""


def not_as_modelled(model: type[BaseModel], value: object, error: ValidationError) -> InvalidRequest:
    """The refusal of a body that does not fit its model: names the field and never its value.

    The name of an unknown field comes from the client too, so only a plain word is repeated.
    """
    if value is ABSENT or value is None:
        kind, where = "missing", []
    else:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        kind, where = first["type"], [str(part) for part in first["loc"]]
    match kind:
        case "extra_forbidden":
            named = f"{where[-1]}: is" if _PLAIN_NAME.fullmatch(where[-1]) else "There is"
            members = model.model_fields.items()  # those that must be there come first
            fields = ", ".join(name for name, _ in sorted(members, key=lambda member: not member[1].is_required()))
            sentence = f"{named} a field that this endpoint does not have. It has: {fields}."
        case "missing" if where:
            sentence = f"{where[0]}: is missing."
        case _ if where:  # the first part is the field; within a mapping or a list, the others are the client's
            sentence = f"{where[0]}: is not valid."
        case _:
            sentence = "The body must be a JSON object with the documented fields."
    return InvalidRequest(f"validation: {kind}", description=sentence)
