"""The access token of a request.

A bearer token goes before cookies, because no page of another site can send it.
"""

from __future__ import annotations

from ..http.request import Request
from ..keyturn import Keyturn
from .presented_cookies import PresentedCookies


async def access_token(keyturn: Keyturn, request: Request, *, changes: bool = False) -> str:
    """The access token of a request: the bearer token, or else the one in the access cookie.

    Args:
        keyturn: the parts of the process.
        request: the request.
        changes: whether the request changes something. Then cookies count only from a page of a trusted origin.

    Raises:
        NoToken: there is none.
        InvalidToken: no cookie holds a valid one, or two cookies hold those of two live sessions.
        InvalidRequest: there are several Authorization fields, or too many cookies.
        CrossSite: a page of another site may have sent the cookies.
        TemporarilyUnavailable: a cookie's key may be new, or nobody can say whether a session is live.
    """
    token = request.bearer()
    if token is not None:
        return token
    presented = PresentedCookies.of(keyturn, request, "cookie")
    if changes and presented.cookies.access in presented:
        presented.require_own_site(request)
    return await presented.access_token()
