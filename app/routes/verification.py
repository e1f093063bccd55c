"""/auth/verify: the verification of an access token, with a refresh on the way for browsers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import to_json

from ..errors import (
    InsufficientScope,
    InsufficientUserAuthentication,
    InvalidGrant,
    InvalidRequest,
    InvalidToken,
    Refusal,
    SlowDown,
    TemporarilyUnavailable,
)
from ..http.answers import Answer, Fields, of_json
from ..http.endpoints import Endpoint, QueryParameter
from ..http.request import Request
from ..keyturn import Keyturn
from ..metrics import VERIFICATIONS
from ..tokens.access_tokens import AccessToken
from ..tokens.cookies import margin
from .demands import Demands
from .models import SET_COOKIES
from .presented_cookies import PresentedCookies
from .refreshing import refresh_by_cookie

_ACCEPTED = VERIFICATIONS.at("accepted")

# A proxy that reads only one field of a name (nginx) asks for the first name, and reads the others.
_REPEAT = b"sec-keyturn-set-cookie"
_REPEATED = (b"x-auth-set-cookie-access", b"x-auth-set-cookie-refresh")

_EPOCH_SECONDS = Field(description="Seconds since 1970.", json_schema_extra={"format": "int64"})


class Claims(BaseModel):
    """The claims of a verified access token, among them those that an administrator gave the user.

    Later releases may add others.
    """

    model_config = ConfigDict(extra="allow")

    iss: str
    sub: str
    aud: str
    exp: Annotated[int, _EPOCH_SECONDS]
    iat: Annotated[int, _EPOCH_SECONDS]
    jti: str
    sid: str
    client_id: str
    role: str
    auth_time: Annotated[int | SkipJsonSchema[None], _EPOCH_SECONDS] = None
    scope: Annotated[str | SkipJsonSchema[None], Field(description="Scopes, separated by blanks.")] = None


async def verify(keyturn: Keyturn, request: Request) -> Answer:
    """Verify an access token: for resource servers, and for proxies that ask before they pass a request on.

    The answer has the claims, and four header fields that the proxy may pass on: `X-Auth-Subject`, `X-Auth-Role`,
    `X-Auth-Scope` and `X-Auth-Session`. Each field is always present, and is empty if the token has no such claim.

    With `role`, `scope` and `claim.NAME=VALUE` (as `claim.org=acme`), a token that does not have them is answered 403.
    With `max_age`, a token whose user signed in longer ago is answered 401, with the error
    `insufficient_user_authentication` (RFC 9470).

    The token is a bearer token or the access cookie. With `refresh=true`, a missing, expired or soon-ending access
    cookie beside a live refresh cookie is refreshed. Pass every `Set-Cookie` of the answer on to the browser, also that
    of a refusal. A proxy that reads only one field of a name sends `Sec-Keyturn-Set-Cookie: repeat`: the answer then
    repeats them as `X-Auth-Set-Cookie-Access` and `X-Auth-Set-Cookie-Refresh`.

    Every method, and every path below this one, gets the same answer. The path and query that a proxy appends, and the
    body, are ignored. A proxy that appends a path makes its demands so: `/auth/verify;role=admin;scope=read`.
    """
    try:
        # Before the credentials, so that an operator who mistypes the demand learns it from the first request.
        demands = Demands.of(request.parameters())
        token = request.bearer()
        if token is not None:
            try:
                answer = _answer(request, demands, keyturn.db.clock, await keyturn.reading.verify(token), ())
            except InvalidToken as refusal:
                keyturn.junk.refused(refusal, request.client, "verify")
                raise
        else:
            answer = await _answer_to_cookies(keyturn, request, demands)
    except Refusal as refusal:
        VERIFICATIONS.refused(refusal)
        raise
    if request.refusal is None:
        _ACCEPTED.count()
    else:
        VERIFICATIONS.refused(request.refusal)
    return answer


async def _answer_to_cookies(keyturn: Keyturn, request: Request, demands: Demands) -> Answer:
    answered = partial(_answer, request, demands, keyturn.db.clock)
    presented = PresentedCookies.of(keyturn, request, "cookie")
    if presented and demands.refresh:
        return await _refreshed_on_the_way(keyturn, request, presented, answered)
    return answered(await keyturn.reading.verify(await presented.access_token()), ())


async def _refreshed_on_the_way(
    keyturn: Keyturn, request: Request, presented: PresentedCookies, answered: Callable[[AccessToken, Fields], Answer]
) -> Answer:
    """The answer to a browser's cookies. A refresh that can't be made now takes nothing from a valid access cookie."""
    found = await _verified(keyturn, presented)
    if isinstance(found, AccessToken) and not _wants_refresh(found, keyturn):
        return answered(found, ())
    if presented.cookies.refresh in presented:
        try:
            tokens, fields = await refresh_by_cookie(keyturn, request, presented, "cookie")
        except (SlowDown, TemporarilyUnavailable):
            if isinstance(found, Refusal):
                raise
        except InvalidGrant as e:
            if isinstance(found, Refusal) or e.reason is not None:  # the session of both tokens is over
                found = InvalidToken(e.cause, reason=e.reason).about(e.session_id, e.user_id, e.client_id)
        else:
            return answered(keyturn.reading.verify_new(tokens.access_token), _repeated(request, fields))
    if isinstance(found, AccessToken):
        return answered(found, ())
    return request.refused(found, _repeated(request, presented.fields_to_clear()))


async def _verified(keyturn: Keyturn, presented: PresentedCookies) -> AccessToken | InvalidToken:
    """The access token of the cookies if it is valid, or else its refusal."""
    try:
        return await keyturn.reading.verify(await presented.access_token())
    except InvalidToken as refusal:
        return refusal


def _wants_refresh(token: AccessToken, keyturn: Keyturn) -> bool:
    """Whether less than the margin of its life is left, and the database answers: otherwise a refresh only waits."""
    life = timedelta(seconds=token.claims["exp"] - token.claims["iat"])
    ends_soon = keyturn.db.clock().timestamp() > token.claims["exp"] - margin(life).total_seconds()
    return ends_soon and not keyturn.revocations.fence.database_is_away()


def _repeated(request: Request, fields: Fields) -> Fields:
    """The fields; and the first two, access and refresh cookie, again under other names if the proxy asks for that.

    A script could read such a field, but not Set-Cookie. So the proxy asks with a field that no script can send: the
    Fetch standard forbids names that begin with ``Sec-`` ("forbidden request-header").
    """
    if request.fields.get(_REPEAT) != b"repeat":
        return fields
    return [*fields, *((name, value) for name, (_, value) in zip(_REPEATED, fields, strict=False))]


def _answer(
    request: Request, demands: Demands, clock: Callable[[], datetime], verified: AccessToken, fields: Fields
) -> Answer:
    """The answer about a verified token. Further fields go out with a refusal too: it must not lose rotated tokens."""
    request.session_id = verified.claims["sid"]
    try:
        claims = to_json(verified.claims, inf_nan_mode="null")
    except ValueError:
        # The signature is right, but another holder of the key wrote lone surrogates or endless nesting.
        raise InvalidToken("claims that can't be written as JSON") from None
    scope = verified.claims.get("scope")
    granted = scope.split() if isinstance(scope, str) else []
    if refusal := demands.unmet(verified, granted, clock):
        named = refusal.about(verified.session_id, verified.user_id, verified.client_id)
        return request.refused(named, fields)
    return of_json(claims, [*_identity(verified, granted), *fields])


def _identity(token: AccessToken, scopes: list[str]) -> list[tuple[bytes, bytes]]:
    """The header fields for a proxy, from the verified token alone.

    Always all four: if one were missing, a proxy would let the client's own field of that name pass. A value that is
    not printable ASCII is left empty, so that no client can smuggle in a second field.
    """
    values: tuple[str, ...] = (token.subject, token.role, " ".join(scopes), token.claims["sid"])
    together = "".join(values)
    if not together.isascii() or not together.isprintable():
        values = tuple(value if value.isascii() and value.isprintable() else "" for value in values)
    subject, role, scope, session = values
    return [
        (b"x-auth-subject", subject.encode()),
        (b"x-auth-role", role.encode()),
        (b"x-auth-scope", scope.encode()),
        (b"x-auth-session", session.encode()),
    ]


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
        "GET",
        "/auth/verify",
        verify,
        tag="auth",
        credentials="bearer",
        query=(
            QueryParameter("role", "The role that is needed.", several=True),
            QueryParameter("scope", "Scopes, separated by spaces.", several=True),
            QueryParameter("max_age", "Seconds ago at most that the user signed in (RFC 9470).", several=True),
            QueryParameter(
                "refresh", "`true`, for proxies and middleware: refresh the browser's cookies on the way.", several=True
            ),
        ),
        model=Claims,
        response_headers=_IDENTITY | SET_COOKIES,
        # The 403 of a demand that is not met comes after the refresh, so it gives the new cookies.
        refusal_headers={401: SET_COOKIES, 403: SET_COOKIES},
        refusals=(
            InvalidRequest,
            InvalidToken,
            InsufficientUserAuthentication,
            InsufficientScope,
            SlowDown,
            TemporarilyUnavailable,
        ),
        any_method=True,  # some proxies ask with their client's method, others with one of their own
        fast=True,
    ),
)
