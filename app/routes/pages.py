"""The pages of a list: how a request asks for one, and how the answer names the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar
from uuid import UUID

from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from ..http.endpoints import QueryParameter
from ..http.request import Request
from ..tokens.cursors import Cursors

_MOST, _UNSET = 100, 20

PAGE = (
    QueryParameter(
        "limit",
        f"How many items, 1 to {_MOST}. Unset: {_UNSET}.",
        schema={"type": "integer", "minimum": 1, "maximum": _MOST},
    ),
    QueryParameter("cursor", "The `next_cursor` of the page before."),
)
"""The query parameters of each list."""

NextCursor = Annotated[
    str | SkipJsonSchema[None], Field(description="The `cursor` of the next page. Absent at the end.")
]
"""The member of an answer that names the next page."""

_Item = TypeVar("_Item")


@dataclass(slots=True)
class Page:
    """The page that a request asks for."""

    limit: int
    """How many items the page has, at most."""
    after: UUID | None
    """The item, in the order of the list, after which the page begins. None: the first page."""
    _cursors: Cursors
    _listing: str

    @classmethod
    def of(cls, cursors: Cursors, request: Request, listing: str) -> Page:
        """The page of a request. `listing` names the list with its filters.

        Raises:
            InvalidRequest: the limit is no number from 1 to 100, or the cursor is none of this list's.
        """
        limit, cursor = request.number("limit", default=_UNSET, most=_MOST), request.parameter("cursor")
        return cls(limit, None if cursor is None else cursors.open(listing, cursor), cursors, listing)

    def next_cursor(self, last: UUID | None) -> str | None:
        """The cursor of the page after an item. None if there is none, as the list is at its end."""
        return None if last is None else self._cursors.make(self._listing, last)

    def cut(self, found: Sequence[_Item], id_of: Callable[[_Item], UUID]) -> tuple[Sequence[_Item], str | None]:
        """The items of the page and the next cursor. If more items follow, `found` has one more than `limit`."""
        items = found[: self.limit]
        return items, self.next_cursor(id_of(items[-1]) if len(found) > self.limit else None)
