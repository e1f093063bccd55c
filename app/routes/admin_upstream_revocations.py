"""/admin/upstream-revocations: the revocations that Keyturn still owes issuers, and those that it has given up."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, get_args
from uuid import UUID

from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from ..errors import NotFound
from ..federation.owed import State
from ..http.answers import NO_CONTENT, Answer, of_model
from ..http.documentation import word
from ..http.endpoints import Endpoint, QueryParameter
from ..http.request import Request
from ..keyturn import Keyturn
from . import filters
from .administration import CHANGING, READING, administrator
from .pages import PAGE, NextCursor, Page


class RevocationAnswer(BaseModel):
    """A revocation that an issuer is still owed, or that was given up."""

    session_id: Annotated[UUID, Field(description="The local session, which has ended.")]
    issuer: Annotated[str, Field(examples=["acme"])]
    upstream_session: str
    state: Annotated[str, word("How it stands.", *get_args(State))]
    attempts: int
    ordered_at: datetime
    due_at: datetime | SkipJsonSchema[None] = None
    given_up_at: datetime | SkipJsonSchema[None] = None
    failure: Annotated[
        str | SkipJsonSchema[None], Field(description="Why the last attempt failed. Absent: there was none yet.")
    ] = None


class RevocationsAnswer(BaseModel):
    """A page of revocations, those of the newest sessions first."""

    items: list[RevocationAnswer]
    next_cursor: NextCursor = None


async def list_upstream_revocations(keyturn: Keyturn, request: Request) -> Answer:
    """List the revocations that issuers are still owed, and those that were given up."""
    await administrator(keyturn, request)
    state: Any = filters.word(request, "state", get_args(State))
    page = Page.of(keyturn.cursors, request, f"upstream revocations {state}")
    found = await keyturn.owed.list(state, limit=page.limit + 1, after=page.after)
    rows, cursor = page.cut(found, lambda row: row["session_id"])
    items = [RevocationAnswer(**row) for row in rows]
    return of_model(RevocationsAnswer(items=items, next_cursor=cursor), exclude_none=True)


async def replay_upstream_revocation(keyturn: Keyturn, request: Request) -> Answer:
    """Try a revocation again that was given up, with as many attempts and as much time as at first."""
    admin = await administrator(keyturn, request, changes=True)
    by = request.by("administrator", admin.user_id)
    await keyturn.owed.renew(request.identifier("session_id"), by=by)
    return NO_CONTENT


_OWED = "/admin/upstream-revocations"

ENDPOINTS = (
    Endpoint(
        "GET",
        _OWED,
        list_upstream_revocations,
        tag="admin",
        credentials="bearer",
        query=(*PAGE, QueryParameter("state", f"Only these: {', '.join(get_args(State))}.")),
        model=RevocationsAnswer,
        refusals=READING,
    ),
    Endpoint(
        "POST",
        f"{_OWED}/{{session_id}}/replay",
        replay_upstream_revocation,
        tag="admin",
        credentials="bearer",
        status=204,
        response_description="It is due now.",
        refusals=(*CHANGING, NotFound),
    ),
)
