"""/auth: refresh, logout and verify."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Annotated

from pydantic import BaseModel, Field
from pydantic_core import to_json

from ..errors import (
    InsufficientScope,
    InvalidGrant,
    InvalidRequest,
    InvalidToken,
    TemporarilyUnavailable,
)
from ..http.answers import NO_CONTENT, Answer, of_json
from ..http.endpoints import Endpoint, QueryParameter
from ..http.request import Request
from ..keyturn import Keyturn
from ..sessions.ending import Reach
from ..tokens.access_tokens import AccessToken
from .models import RefreshToken, RequestBody, TokenAnswer


class Refresh(RequestBody):
    """The refresh token (RFC 6749 section 6)."""

    refresh_token: Annotated[RefreshToken, Field(repr=False)]


class Logout(RequestBody):
    """The sessions to end. A bearer token may stand in the header, with this body or alone."""

    refresh_token: Annotated[RefreshToken | None, Field(repr=False)] = None
    # The document names no default: if it did, generated TypeScript clients would have to send the field.
    scope: Annotated[
        Reach | None,
        Field(
            description="`this` session (also where nothing is said), all `others` of the user, or `all`. The last two "
            "need a token that still works."
        ),
    ] = None


_EPOCH_SECONDS = Field(description="Seconds since 1970.", examples=[1795000000], json_schema_extra={"format": "int64"})


class Claims(BaseModel):
    """The claims of a verified access token. Later releases may add others."""

    iss: str
    sub: str
    aud: str
    exp: Annotated[int, _EPOCH_SECONDS]
    iat: Annotated[int, _EPOCH_SECONDS]
    jti: str
    sid: str
    client_id: str
    role: str


async def refresh(keyturn: Keyturn, request: Request) -> Answer:
    """Get the next access and refresh token (RFC 6749 section 6).

    A retry is safe: within the retry window, and until its successor is used, the same refresh token gets the same
    answer. A refresh token that is sent again later ends its session.
    """
    refresh_token = request.content(Refresh).refresh_token
    try:
        tokens = await keyturn.rotation.refresh(refresh_token, by=request.by())
    except TemporarilyUnavailable as e:
        # At most a sixth of the retry window, so that a client that obeys retries before its token counts as reused.
        # At random, so that clients that were refused at the same time do not retry at the same time.
        most = max(1.0, keyturn.settings.retry_window.total_seconds() / 6)
        after = timedelta(seconds=int(random.uniform(1, most)))  # noqa: S311  # jitter
        raise TemporarilyUnavailable(e.cause, retry_after=after).about(e.session_id, e.user_id) from None
    request.session_id = tokens.session_id
    return of_json(to_json(tokens.body()))


async def logout(keyturn: Keyturn, request: Request) -> Answer:
    """End the session of the refresh token, of the bearer token, or of both.

    After the answer, no access token of the session is accepted any more. A repeated logout is safe. An expired access
    token is enough.
    """
    bearer = request.bearer()
    body = request.content_or_default(Logout)
    ended = await keyturn.ending.logout(bearer, body.refresh_token, body.scope or "this", by=request.by("user"))
    for session_id in ended:
        request.session_id = session_id
    return NO_CONTENT


async def verify(keyturn: Keyturn, request: Request) -> Answer:
    """Verify an access token: for resource servers, and for proxies that ask before they pass a request on.

    The answer has the claims, and four header fields that the proxy may pass on: `X-Auth-Subject`, `X-Auth-Role`,
    `X-Auth-Scope` and `X-Auth-Session`. Each field is always present, and is empty if the token has no such claim. With
    `role` and `scope`, a token that does not have them is answered 403.

    Every method, and every path below this one, gets the same answer. The path and query that a proxy appends, and the
    body, are ignored. A proxy that appends a path asks for role and scope with `/auth/verify;role=admin;scope=read`.
    """
    verified = await keyturn.reading.verify(request.access_token())
    request.session_id = verified.claims["sid"]
    try:
        claims = to_json(verified.claims, inf_nan_mode="null")
    except ValueError:
        # The signature is right, but another holder of the key wrote lone surrogates or endless nesting.
        raise InvalidToken("claims that can't be written as JSON") from None
    scope = verified.claims.get("scope")
    granted = scope.split() if isinstance(scope, str) else []
    # Each `role` and each `scope` must hold, so that a second value never allows more than the first.
    if any(wanted != verified.role for wanted in request.values("role")):
        raise InsufficientScope("another role", user_id=verified.user_id)
    if not set(" ".join(request.values("scope")).split()) <= set(granted):
        raise InsufficientScope("scope not granted", user_id=verified.user_id)
    return of_json(claims, _identity(verified, granted))


def _identity(token: AccessToken, scopes: list[str]) -> list[tuple[bytes, bytes]]:
    """The header fields for a proxy, from the verified token alone.

    Always all four: if one were missing, a proxy would let the client's own field of that name pass. A value that is
    not printable ASCII is left empty, so that no client can smuggle in a second field.
    """
    values = (
        (b"x-auth-subject", token.subject),
        (b"x-auth-role", token.role),
        (b"x-auth-scope", " ".join(scopes)),
        (b"x-auth-session", token.claims["sid"]),
    )
    return [(name, value.encode() if value.isascii() and value.isprintable() else b"") for name, value in values]


_IDENTITY = {
    name: {"schema": {"type": "string"}, "description": f"Claim `{claim}`; empty where there is none."}
    for name, claim in {
        "X-Auth-Subject": "sub",
        "X-Auth-Role": "role",
        "X-Auth-Session": "sid",
        "X-Auth-Scope": "scope",
    }.items()
}

ENDPOINTS = (
    Endpoint(
        "POST",
        "/auth/refresh",
        refresh,
        tag="auth",
        body=Refresh,
        model=TokenAnswer,
        refusals=(InvalidRequest, InvalidGrant, TemporarilyUnavailable),
        fast=True,
    ),
    Endpoint(
        "POST",
        "/auth/logout",
        logout,
        tag="auth",
        credentials="optional bearer",
        body=Logout,
        body_is_optional=True,
        status=204,
        response_description="The session is over.",
        refusals=(InvalidRequest, InvalidGrant, TemporarilyUnavailable),
        fast=True,
    ),
    Endpoint(
        "GET",
        "/auth/verify",
        verify,
        tag="auth",
        credentials="bearer",
        query=(
            QueryParameter("role", "The role that is needed."),
            QueryParameter("scope", "Scopes, separated by spaces."),
        ),
        model=Claims,
        response_headers=_IDENTITY,
        refusals=(InvalidRequest, InvalidToken, InsufficientScope, TemporarilyUnavailable),
        any_method=True,  # some proxies ask with their client's method, others with one of their own
        fast=True,
    ),
)
