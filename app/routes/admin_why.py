"""/admin/users/{user_id}/why and /admin/sessions/{session_id}/why: all that is known of one, in order."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, get_args
from uuid import UUID

from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from ..actors import Kind
from ..errors import NotFound, Reason
from ..events.audit import EventKind
from ..http.answers import Answer, of_model
from ..http.documentation import word
from ..http.endpoints import Endpoint
from ..http.examples import USER
from ..http.request import Request
from ..keyturn import Keyturn
from ..why.telling import OF_ROWS, Telling
from .administration import READING, administrator
from .pages import PAGE, NextCursor, Page


class LineAnswer(BaseModel):
    """One thing that happened. A member that has no value is absent."""

    at: datetime
    event: Annotated[
        str,
        word(
            "The kind of the event, or of what a row alone tells.",
            *get_args(EventKind),
            *OF_ROWS,
            example="session_started",
        ),
    ]
    says: Annotated[
        str,
        Field(
            description="The sentence for people. Later releases may put it otherwise.",
            examples=["The user signed in from 192.0.2.7."],
        ),
    ]
    id: Annotated[UUID | SkipJsonSchema[None], Field(description="The event. Absent where a row alone tells it.")] = (
        None
    )
    session_id: UUID | SkipJsonSchema[None] = None
    actor: Annotated[str, word("The kind of the actor.", *get_args(Kind))] | SkipJsonSchema[None] = None
    actor_id: str | SkipJsonSchema[None] = None
    address: Annotated[str | SkipJsonSchema[None], Field(description="From where the actor came.")] = None
    request_id: Annotated[str | SkipJsonSchema[None], Field(description="The request's id in answer and log.")] = None
    reason: Annotated[str, word("Why the session ended.", *get_args(Reason))] | SkipJsonSchema[None] = None


class VerdictAnswer(BaseModel):
    """The answer that a request would get now."""

    of: Annotated[str, word("The request.", "verify", "refresh", "sign_in")]
    status: Annotated[int, Field(description="The status of its answer.", examples=[200])]
    reason: Annotated[str, word("The `reason` of a refusal.", *get_args(Reason))] | SkipJsonSchema[None] = None
    says: Annotated[str, Field(examples=["Verify accepts its newest access token until 2026-01-31 12:25:00Z."])]


class WhyAnswer(BaseModel):
    """All that rows and events tell of a user or a session."""

    about: Annotated[str, word("The noun.", "user", "session")]
    id: UUID
    now: Annotated[datetime, Field(description="The database's clock.")]
    user_id: UUID | SkipJsonSchema[None] = None
    email: Annotated[str | SkipJsonSchema[None], Field(description="Only of a user who has one.")] = None
    status: Annotated[
        str,
        word(
            "Of a user or of a session; `erased` and `deleted` where only events are left.",
            *("enabled", "disabled", "erased", "live", "deleted"),
            *get_args(Reason),
        ),
    ]
    facts: Annotated[
        list[str],
        Field(
            description="How it stands now, in sentences for people.", examples=[["The account has 1 live session."]]
        ),
    ]
    verdicts: list[VerdictAnswer]
    lines: Annotated[list[LineAnswer], Field(description="What happened, the newest last.")]
    next_cursor: NextCursor = None


async def why_user(keyturn: Keyturn, request: Request) -> Answer:
    """Tell all that is known of a user, in sentences and in order: account, identities, sessions, and who changed what.

    The page has the newest events, and ends with the newest. The next page has older ones. The pseudonym of an erased
    user is accepted in the place of an id.
    """
    await administrator(keyturn, request)
    user_id = request.identifier("user_id")
    page = Page.of(keyturn.cursors, request, f"why user {user_id}")
    return _answer(page, await keyturn.why.user(user_id, limit=page.limit, before=page.after))


async def why_session(keyturn: Keyturn, request: Request) -> Answer:
    """Tell all that is known of a session, in sentences and in order: how it began, what bounds it, why it ended.

    The page has the newest events, and ends with the newest. The next page has older ones. A session whose row was
    deleted is told by its events.
    """
    await administrator(keyturn, request)
    session_id = request.identifier("session_id")
    page = Page.of(keyturn.cursors, request, f"why session {session_id}")
    return _answer(page, await keyturn.why.session(session_id, limit=page.limit, before=page.after))


def _answer(page: Page, telling: Telling) -> Answer:
    members = telling.members()
    members["next_cursor"] = page.next_cursor(members.pop("before"))
    return of_model(WhyAnswer.model_validate(members), exclude_none=True)


ENDPOINTS = (
    Endpoint(
        "GET",
        "/admin/users/{user_id}/why",
        why_user,
        tag="admin",
        example={"id": USER},
        credentials="bearer",
        query=PAGE,
        model=WhyAnswer,
        refusals=(*READING, NotFound),
    ),
    Endpoint(
        "GET",
        "/admin/sessions/{session_id}/why",
        why_session,
        tag="admin",
        example={"about": "session", "status": "live", "facts": ["The session was never refreshed."]},
        credentials="bearer",
        query=PAGE,
        model=WhyAnswer,
        refusals=(*READING, NotFound),
    ),
)
