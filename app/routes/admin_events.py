"""/admin/events: what was changed, by whom and when."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, cast, get_args
from uuid import UUID

from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from ..actors import Kind
from ..events.audit import EventKind
from ..http.answers import Answer, of_model
from ..http.documentation import word
from ..http.endpoints import Endpoint, QueryParameter
from ..http.request import Request
from ..keyturn import Keyturn
from . import filters
from .administration import READING, administrator
from .pages import PAGE, NextCursor, Page

_KINDS, _ACTORS = get_args(EventKind), get_args(Kind)


class AuditEventAnswer(BaseModel):
    """One change, as the transaction of the change recorded it."""

    id: UUID
    at: datetime
    event: Annotated[str, word("The kind.", *_KINDS)]
    actor: Annotated[str, word("The kind of the actor.", *_ACTORS)]
    actor_id: Annotated[
        str | SkipJsonSchema[None],
        Field(description="A user's or client's id, or the name of the operating system's user."),
    ] = None
    user_id: Annotated[UUID | SkipJsonSchema[None], Field(description="The user whom the change is about.")] = None
    session_id: Annotated[UUID | SkipJsonSchema[None], Field(description="Likewise the session.")] = None
    client_id: Annotated[str | SkipJsonSchema[None], Field(description="The client of the session.")] = None
    address: Annotated[str | SkipJsonSchema[None], Field(description="From where the actor came.")] = None
    request_id: Annotated[str | SkipJsonSchema[None], Field(description="The request's id in answer and log.")] = None
    reason: Annotated[str | SkipJsonSchema[None], Field(description="Why a session ended.")] = None
    detail: Annotated[str | SkipJsonSchema[None], Field(description="A key's id, a role, a number of sessions.")] = None


class AuditEventsAnswer(BaseModel):
    """A page of events."""

    items: list[AuditEventAnswer]
    next_cursor: NextCursor = None


async def list_events(keyturn: Keyturn, request: Request) -> Answer:
    """List the changes, the newest first. An event exists if and only if its change was made."""
    await administrator(keyturn, request)
    user_id, session_id = filters.identifier(request, "user"), filters.identifier(request, "session")
    event, actor = filters.word(request, "event", _KINDS), _actor(request)
    since, until = filters.moment(request, "since"), filters.moment(request, "until")
    page = Page.of(keyturn.cursors, request, f"events {user_id} {session_id} {event} {actor} {since} {until}")
    found = await keyturn.events.list(
        limit=page.limit + 1,
        before=page.after,
        user_id=user_id,
        session_id=session_id,
        event=cast("EventKind | None", event),
        actor=actor,
        since=since,
        until=until,
    )
    rows, next_cursor = page.cut(found, lambda row: row["id"])
    items = [AuditEventAnswer.model_validate(dict(row)) for row in rows]
    return of_model(AuditEventsAnswer(items=items, next_cursor=next_cursor), exclude_none=True)


def _actor(request: Request) -> Kind | UUID | None:
    """The filter `actor`: a kind, or an administrator's id.

    Raises:
        InvalidRequest: the value is neither.
    """
    value = request.parameter("actor")
    return cast("Kind", value) if value in _ACTORS else filters.identifier(request, "actor")


ENDPOINTS = (
    Endpoint(
        "GET",
        "/admin/events",
        list_events,
        tag="admin",
        credentials="bearer",
        query=(
            QueryParameter("user", "Only those on this user.", schema=filters.ID),
            QueryParameter("session", "Only those on this session.", schema=filters.ID),
            QueryParameter(
                "actor",
                f"Only those by actors of this kind ({', '.join(f'`{kind}`' for kind in _ACTORS)}), or by the "
                "administrator of this id.",
            ),
            QueryParameter("event", "Only those of this kind.", schema={"type": "string", "enum": list(_KINDS)}),
            QueryParameter("since", "Only those from this moment on.", schema=filters.MOMENT),
            QueryParameter("until", "Only those before this moment.", schema=filters.MOMENT),
            *PAGE,
        ),
        model=AuditEventsAnswer,
        refusals=READING,
    ),
)
