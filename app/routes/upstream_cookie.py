"""The ID token cookie: an issuer's ID token, which a browser keeps sealed for the logout at that issuer.

The token serves as `id_token_hint` (OpenID Connect RP-Initiated Logout 1.0 section 2). It opens nothing here: the
exchange that keeps it uses it up (app/federation/exchange.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from uuid import UUID

from ..errors import TemporarilyUnavailable
from ..http.answers import Fields
from ..http.request import Request
from ..keyturn import Keyturn
from ..log import get_logger
from ..sessions.answers import Tokens
from ..tokens.cookies import MOST_VALUES

_log = get_logger()


def fields_of_id_token(
    keyturn: Keyturn, request: Request, tokens: Tokens, id_token: str | None, *, remembered: bool
) -> Fields:
    """The Set-Cookie field that gives a browser the ID token of its new session, or deletes that of an earlier one.

    No refresh sets the cookie anew, so a remembered one lives as long as the session may. A token that is too large for
    a cookie gives none: a logout then has no hint, and the issuer asks its user.
    """
    cookies = keyturn.cookies
    if id_token is not None:
        life = tokens.session_expires_at - tokens.now
        cookie = cookies.set_id_token(tokens.session_id, id_token, life, remembered=remembered)
        if cookie is not None:
            return ((b"set-cookie", cookie),)
        _log.warning("id_token_too_large", session_id=str(tokens.session_id), characters=len(id_token))
    if cookies.id_token in request.cookies():
        return ((b"set-cookie", cookies.clear(cookies.id_token)),)
    return ()


async def upstream_logout_url(
    keyturn: Keyturn, request: Request, session_ids: Collection[UUID], return_to: str | None
) -> str | None:
    """The URL at which a browser ends its session at the issuer, after the logout of these sessions. None: nowhere."""
    if not keyturn.end_session.has_issuers():
        return None
    return await keyturn.end_session.url(session_ids, _hints(keyturn, request), return_to)


def _hints(keyturn: Keyturn, request: Request) -> Mapping[UUID, str]:
    """The ID tokens in the cookies of a request, by their sessions. A cookie that can't be opened now gives none."""
    cookies = keyturn.cookies
    hints: dict[UUID, str] = {}
    if cookies.enabled:
        with suppress(TemporarilyUnavailable):
            for value in request.cookies().get(cookies.id_token, ())[:MOST_VALUES]:
                if opened := cookies.open(cookies.id_token, value):
                    hints[opened.session_id] = opened.token
    return hints
