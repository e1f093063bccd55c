"""/admin/federation/{name}/sessions: the sessions at an issuer, read and revoked there."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, get_args

from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from ..errors import InvalidRequest, NotFound
from ..federation.scalekit import Outcome, Status
from ..federation.scalekit_session import ScalekitSession
from ..http.answers import Answer, of_model
from ..http.documentation import word
from ..http.endpoints import Endpoint, QueryParameter
from ..http.request import Request
from ..keyturn import Keyturn
from . import filters
from .administration import CHANGING, READING, administrator
from .models import RequestBody

_MOST_OF_A_PAGE = 100
_SUBJECT = Field(
    min_length=1, max_length=255, description="Its id at the issuer: the `sub` of tokens.", examples=["usr_123456789"]
)


class RevokeSessionsOf(RequestBody):
    """The user whose sessions at the issuer are to end."""

    user: Annotated[str, _SUBJECT]


class UpstreamSessionAnswer(BaseModel):
    """A session at an issuer. A member that the issuer does not say is absent."""

    id: Annotated[str, Field(examples=["ses_123456789"])]
    status: Annotated[str, word("How it stands there.", *get_args(Status))]
    user: str | SkipJsonSchema[None] = None
    organization: str | SkipJsonSchema[None] = None
    created_at: datetime | SkipJsonSchema[None] = None
    last_active_at: datetime | SkipJsonSchema[None] = None
    idle_expires_at: datetime | SkipJsonSchema[None] = None
    absolute_expires_at: datetime | SkipJsonSchema[None] = None
    ended_at: datetime | SkipJsonSchema[None] = None
    device: str | SkipJsonSchema[None] = None
    address: str | SkipJsonSchema[None] = None
    region: str | SkipJsonSchema[None] = None

    @classmethod
    def of(cls, session: ScalekitSession) -> UpstreamSessionAnswer:
        """The answer about a session."""
        return cls(**session.members())


class UpstreamSessionsAnswer(BaseModel):
    """A page of a user's sessions at an issuer."""

    items: list[UpstreamSessionAnswer]
    next_page: Annotated[
        str | SkipJsonSchema[None], Field(description="The `page` of the next page, as the issuer made it.")
    ] = None
    total: Annotated[int | SkipJsonSchema[None], Field(description="How many there are, if the issuer says it.")] = None


class RevokedAnswer(BaseModel):
    """The outcome of a revocation."""

    outcome: Annotated[str, word("What happened.", *get_args(Outcome))]


class AllRevokedAnswer(BaseModel):
    """The outcome of a revocation of all sessions of a user."""

    revoked: Annotated[int | SkipJsonSchema[None], Field(description="How many ended, if the issuer says it.")] = None


async def get_upstream_session(keyturn: Keyturn, request: Request) -> Answer:
    """Get a session at an issuer, as the issuer describes it now."""
    await administrator(keyturn, request)
    of = keyturn.issuers.named(request.identifiers["name"])
    session = await keyturn.scalekit.get_session(of, request.identifiers["session"])
    return of_model(UpstreamSessionAnswer.of(session), exclude_none=True)


async def list_upstream_sessions(keyturn: Keyturn, request: Request) -> Answer:
    """List the sessions of a user at an issuer. Filters and pages are the issuer's."""
    await administrator(keyturn, request)
    of = keyturn.issuers.named(request.identifiers["name"])
    user = request.parameter("user")
    if not user:
        raise InvalidRequest("no user", description="user: is missing.")
    words: tuple[Status, ...] = get_args(Status)
    asked = request.parameters().get("status", ())
    if not set(asked) <= set(words):
        raise InvalidRequest("status", description=f"status: must be one of {', '.join(words)}.")
    page = await keyturn.scalekit.list_sessions(
        of,
        user,
        page_size=request.number("limit", default=20, most=_MOST_OF_A_PAGE),
        page_token=request.parameter("page"),
        statuses=[word for word in words if word in asked],
        created_after=filters.moment(request, "created_after"),
        created_before=filters.moment(request, "created_before"),
    )
    items = [UpstreamSessionAnswer.of(session) for session in page.sessions]
    return of_model(UpstreamSessionsAnswer(items=items, next_page=page.next_page, total=page.total), exclude_none=True)


async def revoke_upstream_session(keyturn: Keyturn, request: Request) -> Answer:
    """Revoke a session at an issuer. A repeated call is safe. Local sessions end when the issuer tells of the end."""
    admin = await administrator(keyturn, request, changes=True)
    of = keyturn.issuers.named(request.identifiers["name"])
    by = request.by("administrator", admin.user_id)
    outcome = await keyturn.revoking.revoke(of, request.identifiers["session"], by=by)
    return of_model(RevokedAnswer(outcome=outcome))


async def revoke_upstream_sessions(keyturn: Keyturn, request: Request) -> Answer:
    """Revoke all live sessions of a user at an issuer. A repeated call is safe."""
    admin = await administrator(keyturn, request, changes=True)
    body = request.content(RevokeSessionsOf)
    of = keyturn.issuers.named(request.identifiers["name"])
    revoked = await keyturn.revoking.revoke_all(of, body.user, by=request.by("administrator", admin.user_id))
    return of_model(AllRevokedAnswer(revoked=revoked), exclude_none=True)


_OF_ISSUER = "/admin/federation/{name}/sessions"

ENDPOINTS = (
    Endpoint(
        "GET",
        _OF_ISSUER,
        list_upstream_sessions,
        tag="admin",
        credentials="bearer",
        query=(
            QueryParameter("user", "Its id at the issuer: the `sub` of tokens. Must be there."),
            QueryParameter("status", f"Only these: {', '.join(get_args(Status))}.", several=True),
            QueryParameter("created_after", "Only those that began after this moment.", schema=filters.MOMENT),
            QueryParameter("created_before", "Only those that began before this moment.", schema=filters.MOMENT),
            QueryParameter(
                "limit",
                f"How many items, 1 to {_MOST_OF_A_PAGE}. Unset: 20.",
                schema={"type": "integer", "minimum": 1, "maximum": _MOST_OF_A_PAGE},
            ),
            QueryParameter("page", "The `next_page` of the page before."),
        ),
        model=UpstreamSessionsAnswer,
        refusals=(*READING, NotFound),
    ),
    Endpoint(
        "POST",
        f"{_OF_ISSUER}/revoke",
        revoke_upstream_sessions,
        tag="admin",
        credentials="bearer",
        body=RevokeSessionsOf,
        model=AllRevokedAnswer,
        refusals=(*CHANGING, NotFound),
    ),
    Endpoint(
        "GET",
        f"{_OF_ISSUER}/{{session}}",
        get_upstream_session,
        tag="admin",
        credentials="bearer",
        model=UpstreamSessionAnswer,
        refusals=(*READING, NotFound),
    ),
    Endpoint(
        "POST",
        f"{_OF_ISSUER}/{{session}}/revoke",
        revoke_upstream_session,
        tag="admin",
        credentials="bearer",
        model=RevokedAnswer,
        refusals=(*CHANGING, NotFound),
    ),
)
