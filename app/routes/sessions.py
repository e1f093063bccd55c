"""/auth/sessions: where a user is signed in, and the end of what the user does not know."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, get_args
from uuid import UUID

from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from ..actors import Kind
from ..errors import CrossSite, InvalidRequest, InvalidToken, NotFound, Reason, TemporarilyUnavailable
from ..events.audit import EventKind
from ..http.answers import Answer, of_model
from ..http.documentation import word
from ..http.endpoints import Endpoint
from ..http.request import Request
from ..keyturn import Keyturn
from ..sessions.filters import Filter
from ..sessions.rows import SessionRow
from .credentials import access_token
from .models import SET_COOKIES, RequestBody
from .pages import PAGE, NextCursor, Page
from .presented_cookies import fields_to_clear_of
from .session_answers import STATUS, DeviceName, SessionAnswer, members, status_of


class SessionsAnswer(BaseModel):
    """A page of sessions, the newest first."""

    items: list[SessionAnswer]
    next_cursor: NextCursor = None


class Rename(RequestBody):
    """The new name of a session's device. `null` takes the name away."""

    device_name: DeviceName | None


class SessionEventAnswer(BaseModel):
    """An event of a session. A member that has no value is absent."""

    id: UUID
    at: datetime
    event: Annotated[str, word("What happened.", *get_args(EventKind), example="session_started")]
    actor: Annotated[str, word("The kind of the actor.", *get_args(Kind))]
    address: Annotated[
        str | SkipJsonSchema[None], Field(description="From where, unless an administrator or the system did it.")
    ] = None
    reason: Annotated[str, word("Why the session ended.", *get_args(Reason))] | SkipJsonSchema[None] = None
    detail: str | SkipJsonSchema[None] = None


class SessionEventsAnswer(BaseModel):
    """A page of a session's events, the newest first."""

    items: list[SessionEventAnswer]
    next_cursor: NextCursor = None


_TICK = timedelta(microseconds=1)  # of the clocks of both databases
_BEHIND_THE_SCENES = {"administrator", "command", "service"}
"""The kinds of actors whose address is no business of the session's user."""


async def list_sessions(keyturn: Keyturn, request: Request) -> Answer:
    """List one's own sessions, the newest first."""
    own = await _own(keyturn, request)
    filtered = Filter(user_id=own.user_id, status=status_of(request))
    page = Page.of(keyturn.cursors, request, f"sessions {filtered}")
    found = await keyturn.reading.list(filtered, limit=page.limit, before=page.after)
    items = [SessionAnswer(**each) for each in await members(keyturn, found.sessions, own.id)]
    return of_model(SessionsAnswer(items=items, next_cursor=page.next_cursor(found.last)), exclude_none=True)


async def get_session(keyturn: Keyturn, request: Request) -> Answer:
    """Get one of one's own sessions."""
    own = await _own(keyturn, request)
    return await _shown(keyturn, request.identifier("session_id"), own)


async def rename_session(keyturn: Keyturn, request: Request) -> Answer:
    """Name the device of one of one's own sessions. With cookies, the request needs an allowed `Origin`."""
    own = await _own(keyturn, request, changes=True)
    session_id, body = request.identifier("session_id"), request.content(Rename)
    by = request.by("user", own.user_id)
    await keyturn.naming.name(session_id, own.user_id, body.device_name, by=by)
    return await _shown(keyturn, session_id, own)


async def end_session(keyturn: Keyturn, request: Request) -> Answer:
    """End one of one's own sessions. A repeated call is safe.

    After the answer, no access token of the session is accepted any more. With cookies, the request needs an allowed
    `Origin`, or `Sec-Fetch-Site: same-origin`. The answer deletes the cookies of the session that ended.
    """
    own = await _own(keyturn, request, changes=True)
    session = await keyturn.reading.find(request.identifier("session_id"), user_id=own.user_id)
    clearing = fields_to_clear_of(keyturn, request, session.id)
    await keyturn.ending.end({session.id}, "logout", by=request.by("user", own.user_id))
    return 204, clearing, b""


async def list_session_events(keyturn: Keyturn, request: Request) -> Answer:
    """List what happened to one of one's own sessions, the newest first: why it ended, and by whom."""
    own = await _own(keyturn, request)
    session = await keyturn.reading.find(request.identifier("session_id"), user_id=own.user_id)
    page = Page.of(keyturn.cursors, request, f"events of {session.id}")
    found = await keyturn.events.list(
        limit=page.limit + 1, before=page.after, user_id=own.user_id, session_id=session.id
    )
    if page.after is None:
        found = [*await _of_everyone(keyturn, session), *found]
    rows, next_cursor = page.cut(found, lambda row: row["id"])
    answer = SessionEventsAnswer(items=[_event(row) for row in rows], next_cursor=next_cursor)
    return of_model(answer, exclude_none=True)


async def _of_everyone(keyturn: Keyturn, session: SessionRow) -> Sequence[Any]:
    """The event that signed everyone out, if it ended the session. No session has one of its own from that act."""
    at = session.over_since()
    if at is None or session.over() != "signed_out_everywhere":
        return []
    return await keyturn.events.list(limit=1, event="signed_out_everywhere", since=at, until=at + _TICK)


async def _own(keyturn: Keyturn, request: Request, *, changes: bool = False) -> SessionRow:
    """The live session of the request's user.

    Raises:
        InvalidToken, NoToken, CrossSite, InvalidRequest, TemporarilyUnavailable: as `access_token`.
    """
    session = await keyturn.reading.authorise(await access_token(keyturn, request, changes=changes))
    request.is_about(session.id, session.user_id, session.client_id)
    return session


async def _shown(keyturn: Keyturn, session_id: UUID, own: SessionRow) -> Answer:
    session = await keyturn.reading.find(session_id, user_id=own.user_id)
    (answer,) = await members(keyturn, [session], own.id)
    return of_model(SessionAnswer(**answer), exclude_none=True)


def _event(row: Any) -> SessionEventAnswer:
    return SessionEventAnswer(
        id=row["id"],
        at=row["at"],
        event=row["event"],
        actor=row["actor"],
        address=None if row["actor"] in _BEHIND_THE_SCENES else row["address"],
        reason=row["reason"],
        detail=row["detail"],
    )


_REFUSALS = (InvalidRequest, InvalidToken, TemporarilyUnavailable)

ENDPOINTS = (
    Endpoint(
        "GET",
        "/auth/sessions",
        list_sessions,
        tag="sessions",
        credentials="bearer",
        query=(STATUS, *PAGE),
        model=SessionsAnswer,
        refusals=_REFUSALS,
    ),
    Endpoint(
        "GET",
        "/auth/sessions/{session_id}",
        get_session,
        tag="sessions",
        credentials="bearer",
        model=SessionAnswer,
        refusals=(*_REFUSALS, NotFound),
    ),
    Endpoint(
        "PATCH",
        "/auth/sessions/{session_id}",
        rename_session,
        tag="sessions",
        credentials="bearer",
        body=Rename,
        model=SessionAnswer,
        refusals=(*_REFUSALS, CrossSite, NotFound),
    ),
    Endpoint(
        "DELETE",
        "/auth/sessions/{session_id}",
        end_session,
        tag="sessions",
        credentials="bearer",
        status=204,
        response_description="The session is over.",
        response_headers=SET_COOKIES,
        refusals=(*_REFUSALS, CrossSite, NotFound),
    ),
    Endpoint(
        "GET",
        "/auth/sessions/{session_id}/events",
        list_session_events,
        tag="sessions",
        credentials="bearer",
        query=PAGE,
        model=SessionEventsAnswer,
        refusals=(*_REFUSALS, NotFound),
    ),
)
