"""/auth: refresh and logout."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

from pydantic import BaseModel, Field
from pydantic_core import to_json

from ..errors import (
    CrossSite,
    InvalidGrant,
    InvalidRequest,
    InvalidScope,
    InvalidToken,
    SlowDown,
    TemporarilyUnavailable,
)
from ..http.answers import NO_CONTENT, Answer, Fields, of_json, of_model
from ..http.endpoints import Endpoint, HeaderField
from ..http.examples import like
from ..http.idempotency_keys import PATTERN
from ..http.request import Request
from ..keyturn import Keyturn
from ..metrics import LOGOUTS
from ..sessions.ending import Reach
from ..settings_values import MOST_SCOPES, scopes_in
from ..tokens.cookies import CookieMode
from .models import COOKIE_MODE, EXAMPLE_TOKEN, SET_COOKIES, RefreshToken, RequestBody, TokenAnswer
from .presented_cookies import PresentedCookies
from .refreshing import presented_refresh, refresh_by_cookie, refresh_by_token
from .upstream_cookie import upstream_logout_url


class Refresh(RequestBody):
    """The refresh token (RFC 6749 section 6). Browsers send it in a cookie, and no body."""

    model_config = like(refresh_token=EXAMPLE_TOKEN)

    refresh_token: Annotated[RefreshToken | None, Field(repr=False)] = None
    mode: Annotated[CookieMode | None, COOKIE_MODE] = None
    scope: Annotated[
        str | None,
        Field(
            max_length=MOST_SCOPES,
            description="Scopes of the access token, separated by blanks: some of those that the session was granted. "
            "Unset: all of them.",
            examples=["orders.read"],
        ),
    ] = None

    def scopes(self) -> frozenset[str] | None:
        """The scopes, or None where nothing is said.

        Raises:
            InvalidScope: the text names no scope (RFC 6749 section 3.3).
        """
        if self.scope is None:
            return None
        with suppress(ValueError):
            if scopes := scopes_in(self.scope):
                return scopes
        raise InvalidScope("malformed scope")


class Logout(RequestBody):
    """The sessions to end. A bearer token in the header and cookies count too, with this body or alone."""

    model_config = like(refresh_token=EXAMPLE_TOKEN)

    refresh_token: Annotated[RefreshToken | None, Field(repr=False)] = None
    # The document names no default: if it did, generated TypeScript clients would have to send the field.
    scope: Annotated[
        Reach | None,
        Field(
            description="`this` session (also where nothing is said), all `others` of the user, or `all`. The last two "
            "need a token that still works."
        ),
    ] = None
    mode: Annotated[CookieMode | None, COOKIE_MODE] = None
    post_logout_redirect_uri: Annotated[
        str | None,
        Field(
            max_length=255,
            description="The page to which the issuer shall send the browser after the logout there. Only a page that "
            "the issuer's configuration lists is passed on.",
        ),
    ] = None


class LogoutAnswer(BaseModel):
    """What is left to do after a logout."""

    upstream_logout_url: Annotated[
        str,
        Field(description="Send the browser there, so that it is signed out at the issuer of the session too."),
    ]


async def refresh(keyturn: Keyturn, request: Request) -> Answer:
    """Get the next access and refresh token (RFC 6749 section 6).

    A retry is safe: within the retry window, and until its successor is used, the same refresh token gets the same
    answer. A refresh token that is sent again later ends its session, unless it comes with the `Idempotency-Key` of its
    first use. With that key, and until the successor is used, the same answer comes for as long as the session lives.

    Without `refresh_token`, the refresh cookie counts. The request then needs an allowed `Origin`, or `Sec-Fetch-Site:
    same-origin`, and the answer sets the cookies anew. A 401 clears them, and no other answer touches them.

    A client that refreshes one session in a loop gets 429, and keeps its token: nothing has changed.
    """
    retry_key = request.idempotency_key()
    body = request.content_or_default(Refresh)
    scope = body.scopes()
    if body.refresh_token is not None:
        try:
            tokens = await refresh_by_token(keyturn, request, body.refresh_token, retry_key=retry_key, scope=scope)
        except InvalidGrant as refusal:
            keyturn.junk.refused(refusal, request.client, "refresh")
            raise
        return of_json(to_json(tokens.body()))
    presented, mode = presented_refresh(keyturn, request, body.mode)
    try:
        tokens, fields = await refresh_by_cookie(keyturn, request, presented, mode, retry_key=retry_key, scope=scope)
    except InvalidGrant as refusal:
        return request.refused(refusal, presented.fields_to_clear())
    return of_json(to_json(tokens.body(mode)), fields)


async def logout(keyturn: Keyturn, request: Request) -> Answer:
    """End the session of each token that is presented: in the body, as a bearer token, in cookies.

    After the answer, no access token of the session is accepted any more. A repeated logout is safe. An expired access
    token is enough, and so is one cookie. With cookies, the request needs an allowed `Origin`, or `Sec-Fetch-Site:
    same-origin`, and the answer deletes them, except for `others`: this session goes on.

    The answer has a body (200) only where an issuer with an end-session endpoint had vouched for the session.
    """
    bearer = request.bearer()
    body = request.content_or_default(Logout)
    access = [] if bearer is None else [bearer]
    refresh = [] if body.refresh_token is None else [body.refresh_token]
    clearing: Fields = ()
    presented = PresentedCookies.of(keyturn, request, body.mode)
    if presented:
        presented.require_own_site(request)
        access += [each.token for each in presented.opened(presented.cookies.access)]
        refresh += [
            each.token
            for name in (presented.cookies.refresh, presented.cookies.split)
            for each in presented.opened(name)
        ]
        clearing = presented.fields_to_clear()
    try:
        with LOGOUTS.outcome("done"):
            ended = await keyturn.ending.logout(access, refresh, body.scope or "this", by=request.by("user"))
    except (InvalidToken, InvalidGrant) as refusal:
        return request.refused(refusal, clearing)
    for session_id in ended:
        request.session_id = session_id
    if body.scope == "others":
        return NO_CONTENT
    url = await upstream_logout_url(keyturn, request, ended, body.post_logout_redirect_uri)
    if url is None:
        return 204, clearing, b""
    return of_model(LogoutAnswer(upstream_logout_url=url), clearing)


ENDPOINTS = (
    Endpoint(
        "POST",
        "/auth/refresh",
        refresh,
        tag="auth",
        body=Refresh,
        body_is_optional=True,
        model=TokenAnswer,
        fields=(
            HeaderField(
                "Idempotency-Key",
                "A secret for this refresh alone, chosen at random and stored before the request: 16 to 255 printable "
                "ASCII characters, bare or as a quoted string (RFC 9651 section 3.3.3).",
                schema={"type": "string", "pattern": f"^(?:{PATTERN})$"},
            ),
        ),
        response_headers=SET_COOKIES,
        refusal_headers={401: SET_COOKIES},
        refusals=(InvalidRequest, InvalidScope, InvalidGrant, CrossSite, SlowDown, TemporarilyUnavailable),
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
        response_headers=SET_COOKIES,
        responses={
            200: {
                "model": LogoutAnswer,
                "description": "The session is over here. The browser may still be signed in at its issuer.",
                "headers": SET_COOKIES,
            }
        },
        refusal_headers={401: SET_COOKIES},
        refusals=(InvalidRequest, InvalidGrant, CrossSite, TemporarilyUnavailable),
        fast=True,
    ),
)
