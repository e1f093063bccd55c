"""The refresh behind `POST /auth/refresh` and behind `GET /auth/verify?refresh=true`.

Only the first reads Idempotency-Key. The proxy's request to verify carries the header fields of its client's request to
an app. There the field is a key for that app: of a payment, and not of a refresh.
"""

from __future__ import annotations

import random
from datetime import timedelta
from uuid import UUID

from ..errors import InvalidRequest, Refusal, TemporarilyUnavailable
from ..http.answers import Fields
from ..http.request import Request
from ..keyturn import Keyturn
from ..metrics import REFRESHES
from ..sessions.answers import Tokens
from ..tokens.cookies import CookieMode
from .presented_cookies import PresentedCookies


async def refresh_by_token(
    keyturn: Keyturn,
    request: Request,
    refresh_token: str,
    *,
    retry_key: str | None = None,
    scope: frozenset[str] | None = None,
) -> Tokens:
    """Refreshes by `Rotation.refresh`, and notes the session for the log. First comes the check of its issuer, if any.

    Raises:
        InvalidGrant: the refresh token is refused for good.
        InvalidScope: the session was not granted these scopes.
        SlowDown: the session refreshes too often. Its token is still good.
        TemporarilyUnavailable: the database is away, or an issuer whose check is `closed`. The client may try again
            after a random time. Or the client has gone: it can't know that its token was rotated, and may come back
            after the retry window, as a reuse.
    """
    if keyturn.revocations.stood_still() and await request.has_gone():
        REFRESHES.count("unavailable")
        raise TemporarilyUnavailable("the client has gone").about(_session_of(keyturn, refresh_token))
    by = request.by()
    try:
        try:
            await keyturn.session_checks.look(refresh_token, by=by)
        except Refusal as refused:
            REFRESHES.refused(refused)  # `Rotation` counts all others
            raise
        tokens = await keyturn.rotation.refresh(refresh_token, by=by, retry_key=retry_key, scope=scope)
    except TemporarilyUnavailable as e:
        # At most a sixth of the retry window, so that a client that obeys retries before its token counts as reused.
        # At random, so that clients that were refused at the same time do not retry at the same time.
        most = max(1.0, keyturn.policies.in_force.retry_window.total_seconds() / 6)
        after = timedelta(seconds=int(random.uniform(1, most)))  # noqa: S311  # jitter
        refusal = TemporarilyUnavailable(e.cause, retry_after=after).about(e.session_id, e.user_id, e.client_id)
        raise refusal.about(_session_of(keyturn, refresh_token)) from None
    request.session_id = tokens.session_id
    keyturn.moves.seen(tokens, by=by, user_agent=request.user_agent())
    return tokens


def _session_of(keyturn: Keyturn, refresh_token: str) -> UUID | None:
    """The session of a genuine refresh token, for the log. No I/O."""
    try:
        return keyturn.keys.verify_refresh_token(refresh_token).session_id
    except Refusal:
        return None


def presented_refresh(
    keyturn: Keyturn, request: Request, mode: CookieMode | None
) -> tuple[PresentedCookies, CookieMode]:
    """The cookies of a request that has no refresh token in its body, and the mode whose refresh cookie counts.

    Raises:
        InvalidRequest: there is no refresh cookie, or there are those of both modes and the body names none.
        CrossSite: a page of another site may have sent the cookies.
        TemporarilyUnavailable: a cookie's key is unknown, and may be new.
    """
    presented = PresentedCookies.of(keyturn, request, mode)
    modes = presented.modes()
    if not modes:
        raise InvalidRequest("no refresh token", description="refresh_token: is missing, and no cookie has one.")
    presented.require_own_site(request)
    if len(modes) > 1:
        # Junk counts for no mode, because any host of the domain can plant a cookie whose name has no `__Host-`.
        modes = [one for one in modes if presented.opened(presented.cookies.refresh_name(one))] or modes[:1]
    if len(modes) > 1:
        raise InvalidRequest("cookies of two modes", description="mode: is missing, with cookies of two modes.")
    return presented, modes[0]


async def refresh_by_cookie(
    keyturn: Keyturn,
    request: Request,
    presented: PresentedCookies,
    mode: CookieMode,
    *,
    retry_key: str | None = None,
    scope: frozenset[str] | None = None,
) -> tuple[Tokens, Fields]:
    """Refreshes by the refresh cookie of a mode. Returns also the Set-Cookie fields that give the browser the tokens.

    Raises:
        InvalidGrant: the cookies are refused for good.
        InvalidScope: as `refresh_by_token`.
        TemporarilyUnavailable: as `refresh_by_token`, or nobody can say which cookie counts.
    """
    try:
        cookie = await presented.refresh_token(mode)
    except Refusal as refusal:
        REFRESHES.refused(refusal)
        raise
    tokens = await refresh_by_token(keyturn, request, cookie.token, retry_key=retry_key, scope=scope)
    return tokens, presented.fields_to_set(mode, tokens, remembered=cookie.remembered)
