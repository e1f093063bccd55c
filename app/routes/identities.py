"""/auth/identities: who a user is at other issuers, for the user. `admin_identities` has the twins of the acts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from ..errors import (
    Conflict,
    CrossSite,
    InsufficientUserAuthentication,
    InvalidGrant,
    InvalidRequest,
    InvalidToken,
    NotFound,
    SlowDown,
    TemporarilyUnavailable,
    UnacceptableToken,
)
from ..federation.identities import Linked
from ..http.answers import NO_CONTENT, Answer, of_model
from ..http.endpoints import Endpoint
from ..http.request import Request
from ..keyturn import Keyturn
from ..sessions.rows import SessionRow
from .credentials import access_token
from .exchange import TYPE, SubjectToken, SubjectTokenType, kind_of, require_issuer
from .freshness import require_fresh
from .models import RequestBody


class IdentityAnswer(BaseModel):
    """An identity: who the user is at an issuer."""

    id: UUID
    issuer: Annotated[str, Field(description="The issuer (`iss`).", examples=["https://acme.scalekit.com"])]
    subject: Annotated[str, Field(description="The user's name there (`sub`).", examples=["usr_123456789"])]
    email: Annotated[
        str | SkipJsonSchema[None], Field(description="As the issuer said it last, if it is trusted for addresses.")
    ] = None
    created_at: datetime
    last_used_at: Annotated[datetime, Field(description="The last sign-in by it.")]

    @classmethod
    def of(cls, linked: Linked) -> IdentityAnswer:
        """An identity in the form of the answer."""
        return cls(**asdict(linked))


class IdentitiesAnswer(BaseModel):
    """All identities of a user, the oldest first."""

    items: list[IdentityAnswer]


class Link(RequestBody):
    """A token of an issuer that proves the identity."""

    subject_token: SubjectToken
    subject_token_type: Annotated[SubjectTokenType | None, TYPE] = None


async def list_identities(keyturn: Keyturn, request: Request) -> Answer:
    """List one's own identities at other issuers."""
    session = await keyturn.reading.authorise(await access_token(keyturn, request))
    request.is_about(session.id, session.user_id, session.client_id)
    return answer_with(await keyturn.identities.of_user(session.user_id))


async def link_identity(keyturn: Keyturn, request: Request) -> Answer:
    """Link an identity, so that its issuer can sign the user in. Needs a fresh sign-in.

    The token is used up: it can't be exchanged later. A repeated call of the same user gets the same answer.
    """
    session = await _fresh(keyturn, request)
    body = request.content(Link)
    require_issuer(keyturn)
    by = request.by("user", session.user_id)
    kind = kind_of(body.subject_token_type)
    try:
        linked = await keyturn.exchange.link(body.subject_token, kind, session.user_id, by=by)
    except UnacceptableToken:
        await keyturn.limits.external_token_refused("identities", request.client)
        raise
    return of_model(IdentityAnswer.of(linked), status=201, exclude_none=True)


async def unlink_identity(keyturn: Keyturn, request: Request) -> Answer:
    """Take an identity away. Needs a fresh sign-in. The last way to sign in stays.

    Sessions that it began go on: log out of them where this is not wanted.
    """
    session = await _fresh(keyturn, request)
    by = request.by("user", session.user_id)
    await keyturn.identities.unlink(session.user_id, request.identifier("identity_id"), by=by)
    return NO_CONTENT


async def _fresh(keyturn: Keyturn, request: Request) -> SessionRow:
    """The live session of a request that changes the ways in, with a fresh sign-in.

    Otherwise a stolen access token could open a way in that outlives it.
    """
    session = await keyturn.reading.authorise(await access_token(keyturn, request, changes=True))
    request.is_about(session.id, session.user_id, session.client_id)
    require_fresh(keyturn, session)
    return session


def answer_with(identities: Sequence[Linked]) -> Answer:
    """The answer that lists identities."""
    return of_model(IdentitiesAnswer(items=[IdentityAnswer.of(each) for each in identities]), exclude_none=True)


_CHANGING = (InvalidRequest, InvalidToken, InsufficientUserAuthentication, CrossSite, TemporarilyUnavailable, Conflict)

ENDPOINTS = (
    Endpoint(
        "GET",
        "/auth/identities",
        list_identities,
        tag="auth",
        credentials="bearer",
        model=IdentitiesAnswer,
        refusals=(InvalidRequest, InvalidToken, TemporarilyUnavailable),
    ),
    Endpoint(
        "POST",
        "/auth/identities",
        link_identity,
        tag="auth",
        credentials="bearer",
        body=Link,
        status=201,
        model=IdentityAnswer,
        refusals=(*_CHANGING, InvalidGrant, SlowDown),
    ),
    Endpoint(
        "DELETE",
        "/auth/identities/{identity_id}",
        unlink_identity,
        tag="auth",
        credentials="bearer",
        status=204,
        response_description="The identity is the user's no more.",
        refusals=(*_CHANGING, NotFound),
    ),
)
