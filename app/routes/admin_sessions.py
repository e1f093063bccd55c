"""/admin/sessions: the sessions of all users, listed by filters and ended by the same filters."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field
from pydantic.json_schema import SkipJsonSchema, WithJsonSchema

from ..errors import InvalidRequest, NotFound
from ..http.answers import Answer, of_model
from ..http.endpoints import Endpoint, QueryParameter
from ..http.examples import USER, like
from ..http.request import Request
from ..keyturn import Keyturn
from ..sessions.filters import Filter
from ..sessions.rows import SessionRow
from ..sessions.walk import BEGINNING
from . import filters
from .administration import CHANGING, READING, administrator
from .models import SET_COOKIES, RequestBody
from .pages import PAGE, NextCursor, Page
from .presented_cookies import fields_to_clear_of
from .session_answers import STATUS, SessionAnswer, members, status_of

_RANGES_TO_END, _RANGES_TO_COUNT = 10, 100
"""How many ranges of the walk one request takes, so that it is answered within seconds: then there is a cursor."""

_LONGEST_CURSOR = 64


def _printable(text: str) -> str:
    if not text.isprintable():  # NUL, for example, which Postgres refuses
        raise ValueError
    return text


# A client's tool must not refuse a value that it has to send, so the requests' fields have no format.
_Moment = Annotated[
    datetime,
    BeforeValidator(filters.moment_of),
    WithJsonSchema({"type": "string", "examples": ["2026-01-31T12:00:00Z"]}),
]
_Id = Annotated[UUID, BeforeValidator(filters.id_of), WithJsonSchema({"type": "string"})]
_Words = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_printable)]


class EndSessions(RequestBody):
    """The conditions that a session must all meet to end. There must be one at least, beside the status."""

    model_config = like(user=USER)

    user: Annotated[_Id | None, Field(description="The id of its user.")] = None
    client: Annotated[_Words | None, Field(description="The client that it belongs to.")] = None
    created_before: Annotated[_Moment | None, Field(description="The user signed in before this moment.")] = None
    created_after: Annotated[_Moment | None, Field(description="The user signed in after this moment.")] = None
    idle_since: Annotated[_Moment | None, Field(description="It was last refreshed before this moment.")] = None
    address: Annotated[_Words | None, Field(description="The client's address, as the session shows it.")] = None
    device: Annotated[_Words | None, Field(description="The device id that the client gave.")] = None
    issuer: Annotated[_Words | None, Field(description="The name of the issuer with whose token it began.")] = None
    status: Literal["live"] | None = None
    preview: Annotated[bool | None, Field(description="`true`: count the sessions that would end, and end none.")] = (
        None
    )
    cursor: Annotated[
        str | None,
        Field(max_length=_LONGEST_CURSOR, description="The `next_cursor` of the call before, with the same filter."),
    ] = None

    def filter(self) -> Filter:
        """The filter that these conditions are."""
        return Filter(
            user_id=self.user,
            client_id=self.client,
            created_before=self.created_before,
            created_after=self.created_after,
            idle_since=self.idle_since,
            address=self.address,
            device_id=self.device,
            issuer_name=self.issuer,
        )


class AdminSessionAnswer(SessionAnswer):
    """A session of any user. A member that has no value is absent."""

    user_id: UUID
    email: str | SkipJsonSchema[None] = None
    device_id: Annotated[str | SkipJsonSchema[None], Field(description="As the filter `device` takes it.")] = None


class AdminSessionsAnswer(BaseModel):
    """A page of sessions, the newest first. It may have fewer than `limit`, or none, and still not be the last."""

    items: list[AdminSessionAnswer]
    next_cursor: NextCursor = None


class EndedAnswer(BaseModel):
    """How many sessions ended, or would have. With `next_cursor` there is more to do: call again with the cursor."""

    ended: Annotated[int | SkipJsonSchema[None], Field(description="Sessions that this call ended.")] = None
    count: Annotated[int | SkipJsonSchema[None], Field(description="Sessions that this preview counted.")] = None
    next_cursor: NextCursor = None


async def list_all_sessions(keyturn: Keyturn, request: Request) -> Answer:
    """List the sessions of all users, the newest first."""
    admin = await administrator(keyturn, request)
    filtered = _filter_of(request)
    page = Page.of(keyturn.cursors, request, f"all sessions {filtered}")
    found = await keyturn.reading.list(filtered, limit=page.limit, before=page.after)
    items = await _shown(keyturn, found.sessions, admin)
    return of_model(AdminSessionsAnswer(items=items, next_cursor=page.next_cursor(found.last)), exclude_none=True)


async def get_any_session(keyturn: Keyturn, request: Request) -> Answer:
    """Get a session of any user."""
    admin = await administrator(keyturn, request)
    session = await keyturn.reading.find(request.identifier("session_id"))
    (answer,) = await _shown(keyturn, [session], admin)
    return of_model(answer, exclude_none=True)


async def end_any_session(keyturn: Keyturn, request: Request) -> Answer:
    """End a session of any user. A repeated call is safe."""
    admin = await administrator(keyturn, request, changes=True)
    session = await keyturn.reading.find(request.identifier("session_id"))
    clearing = fields_to_clear_of(keyturn, request, session.id)
    await keyturn.ending.end({session.id}, "revoked_by_admin", by=request.by("administrator", admin.user_id))
    return 204, clearing, b""


async def end_sessions(keyturn: Keyturn, request: Request) -> Answer:
    """End the live sessions that meet all conditions, or count them.

    Begin with `preview: true`, which says how many would end. One call ends some ten thousand at most: call again
    with `next_cursor` until there is none. A call that breaks off may be repeated, with the cursor or without.

    Each condition is checked again when a session ends. So one that is refreshed in the meantime, and is no longer
    idle, stays. The administrator's own session ends too if it meets the conditions.
    """
    admin = await administrator(keyturn, request, changes=True)
    body = request.content(EndSessions)
    filtered = body.filter()
    if not filtered.narrows:
        raise InvalidRequest("no filter", description="There must be at least one condition beside the status.")
    listing = f"{'count' if body.preview else 'end'} {filtered}"
    after = BEGINNING if body.cursor is None else keyturn.cursors.open(listing, body.cursor)
    if body.preview:
        counted, last = await keyturn.reading.count(filtered, after=after, ranges=_RANGES_TO_COUNT)
        answer = EndedAnswer(count=counted)
    else:
        by = request.by("administrator", admin.user_id)
        ended, last = await keyturn.sweeping.end_matching(filtered, by=by, after=after, ranges=_RANGES_TO_END)
        answer = EndedAnswer(ended=ended)
    if last is not None:
        answer.next_cursor = keyturn.cursors.make(listing, last)
    return of_model(answer, exclude_none=True)


def _filter_of(request: Request) -> Filter:
    """The filter in the query.

    Raises:
        InvalidRequest: a value is malformed.
    """
    return Filter(
        user_id=filters.identifier(request, "user"),
        client_id=request.parameter("client"),
        created_before=filters.moment(request, "created_before"),
        created_after=filters.moment(request, "created_after"),
        idle_since=filters.moment(request, "idle_since"),
        address=request.parameter("address"),
        device_id=request.parameter("device"),
        issuer_name=request.parameter("issuer"),
        status=status_of(request),
    )


async def _shown(keyturn: Keyturn, rows: Sequence[SessionRow], admin: SessionRow) -> list[AdminSessionAnswer]:
    emails = await keyturn.users.emails({row.user_id for row in rows})
    return [
        AdminSessionAnswer(**answer, user_id=row.user_id, email=emails.get(row.user_id), device_id=row.device_id)
        for row, answer in zip(rows, await members(keyturn, rows, admin.id), strict=True)
    ]


_FILTERS = (
    QueryParameter("user", "Only those of the user of this id.", schema=filters.ID),
    QueryParameter("client", "Only those of this client."),
    QueryParameter("created_before", "Only those whose user signed in before this moment.", schema=filters.MOMENT),
    QueryParameter("created_after", "Only those whose user signed in after this moment.", schema=filters.MOMENT),
    QueryParameter("idle_since", "Only those that were last refreshed before this moment.", schema=filters.MOMENT),
    QueryParameter("address", "Only those from this address."),
    QueryParameter("device", "Only those of this device id, which the client gave."),
    QueryParameter("issuer", "Only those that began with a token of the issuer of this name."),
)

ENDPOINTS = (
    Endpoint(
        "GET",
        "/admin/sessions",
        list_all_sessions,
        tag="admin",
        credentials="bearer",
        query=(*_FILTERS, STATUS, *PAGE),
        model=AdminSessionsAnswer,
        refusals=READING,
    ),
    Endpoint(
        "GET",
        "/admin/sessions/{session_id}",
        get_any_session,
        tag="admin",
        credentials="bearer",
        model=AdminSessionAnswer,
        refusals=(*READING, NotFound),
    ),
    Endpoint(
        "DELETE",
        "/admin/sessions/{session_id}",
        end_any_session,
        tag="admin",
        credentials="bearer",
        status=204,
        response_description="The session is over.",
        response_headers=SET_COOKIES,
        refusals=(*CHANGING, NotFound),
    ),
    Endpoint(
        "POST",
        "/admin/sessions/end",
        end_sessions,
        tag="admin",
        credentials="bearer",
        body=EndSessions,
        model=EndedAnswer,
        refusals=CHANGING,
    ),
)
