"""The filters of a list, as a request has them: in its query, or ids and moments in its body."""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import UTC, datetime
from uuid import UUID

from ..errors import InvalidRequest
from ..http.request import Request

_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)

ID = {"type": "string", "format": "uuid"}
MOMENT = {"type": "string", "format": "date-time"}
"""The schemas of filters."""


def identifier(request: Request, name: str) -> UUID | None:
    """The id in the query, or None without the filter.

    Raises:
        InvalidRequest: the value has not the form of an id.
    """
    value = request.parameter(name)
    try:
        return None if value is None else id_of(value)
    except ValueError:
        raise InvalidRequest(f"{name} of the query", description=f"{name}: must be an id (a UUID).") from None


def moment(request: Request, name: str) -> datetime | None:
    """The moment in the query (RFC 3339), or None without the filter.

    Raises:
        InvalidRequest: the value is no moment, or has no offset from UTC.
    """
    value = request.parameter(name)
    try:
        # A plus sign in a query means a space (URL Standard), and many clients forget to encode it.
        return None if value is None else moment_of(value.replace(" ", "+"))
    except ValueError:
        raise InvalidRequest(
            f"{name} of the query", description=f"{name}: must be a moment (RFC 3339), such as 2026-01-31T12:00:00Z."
        ) from None


def word(request: Request, name: str, words: Collection[str]) -> str | None:
    """One of some words in the query, or None without the filter.

    Raises:
        InvalidRequest: the value is another word.
    """
    value = request.parameter(name)
    if value is not None and value not in words:
        raise InvalidRequest(f"{name} of the query", description=f"{name}: must be one of {', '.join(words)}.")
    return value


def id_of(text: object) -> UUID:
    """The id that a text spells, in the one form that Keyturn writes, in letters of either case.

    Raises:
        ValueError: the value is no such text.
    """
    if not isinstance(text, str) or not _ID.fullmatch(text):
        raise ValueError
    return UUID(text)


def moment_of(text: object) -> datetime:
    """The moment that a text spells (RFC 3339 section 5.6), in UTC.

    Raises:
        ValueError: the value is no such text.
    """
    if not isinstance(text, str) or not _MOMENT.fullmatch(text):
        raise ValueError
    try:
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except OverflowError:  # the years 1 and 9999, with an offset
        raise ValueError from None
