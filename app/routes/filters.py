"""The filters of a list, as they stand in the query of a request."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from uuid import UUID

from ..errors import InvalidRequest
from ..http.endpoints import QueryParameter
from ..http.request import Request

MOST = 100
"""How many items a page has, at most."""

PAGE = (
    QueryParameter(
        "limit",
        f"How many items, 1 to {MOST}. Unset: 20.",
        schema={"type": "integer", "minimum": 1, "maximum": MOST},
    ),
    QueryParameter("cursor", "The `next_cursor` of the page before."),
)
"""The query parameters of each list."""

ID = {"type": "string", "format": "uuid"}
MOMENT = {"type": "string", "format": "date-time"}
"""The schemas of filters."""


def limit(request: Request) -> int:
    """How many items a page shall have.

    Raises:
        InvalidRequest: no number from 1 to 100.
    """
    return request.number("limit", default=20, most=MOST)


def identifier(request: Request, name: str) -> UUID | None:
    """The id in the query, or None without the filter.

    Raises:
        InvalidRequest: the value has not the form of an id.
    """
    value = request.parameter(name)
    if value is None:
        return None
    try:
        found = UUID(value)
    except ValueError:
        found = None
    if found is None or str(found) != value.lower():  # not the other spellings that Python reads
        raise InvalidRequest(f"{name} of the query", description=f"{name}: must be an id (a UUID).")
    return found


def moment(request: Request, name: str) -> datetime | None:
    """The moment in the query (RFC 3339), or None without the filter.

    Raises:
        InvalidRequest: the value is no moment, or has no offset from UTC.
    """
    value = request.parameter(name)
    if value is None:
        return None
    try:
        # A plus sign in a query means a space (URL Standard), and many clients forget to encode it.
        found = datetime.fromisoformat(value.replace(" ", "+").upper())
        if found.tzinfo is not None and "T" in value.upper():
            return found.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise InvalidRequest(
        f"{name} of the query", description=f"{name}: must be a moment (RFC 3339), such as 2026-01-31T12:00:00Z."
    )


def word(request: Request, name: str, words: Collection[str]) -> str | None:
    """One of some words in the query, or None without the filter.

    Raises:
        InvalidRequest: the value is another word.
    """
    value = request.parameter(name)
    if value is not None and value not in words:
        raise InvalidRequest(f"{name} of the query", description=f"{name}: must be one of {', '.join(words)}.")
    return value
