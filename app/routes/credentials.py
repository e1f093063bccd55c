"""The access token of a request, and refusals that delete cookies.

A bearer token goes before cookies, because no page of another site can send it.
"""

from __future__ import annotations

from ..errors import NoToken, Refusal
from ..http.answers import Answer, Fields, render
from ..http.request import Request
from ..keyturn import Keyturn
from .jar import Jar

SET_COOKIES = {
    "Set-Cookie": {"schema": {"type": "string"}, "description": "A token that travels in a cookie: one field for each."}
}
"""The header fields of an answer that may set cookies, for the document."""


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
    jar = Jar.of(keyturn, request, "cookie")
    if jar.cookies.access not in jar:
        raise NoToken("no access token")
    if changes:
        request.require_own_site()
    return await jar.access_token()


def refused(request: Request, refusal: Refusal, fields: Fields) -> Answer:
    """The answer of a refusal, with further header fields."""
    request.refusal = refusal
    status, own, body = render(refusal)
    return status, [*own, *fields], body
