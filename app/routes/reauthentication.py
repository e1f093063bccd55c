"""/auth/reauthenticate: the password again, within a session."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic_core import to_json

from ..errors import CrossSite, InvalidGrant, InvalidRequest, SlowDown, TemporarilyUnavailable, WrongPassword
from ..http.answers import Answer, of_json
from ..http.endpoints import Endpoint
from ..http.examples import like
from ..http.request import Request
from ..keyturn import Keyturn
from ..tokens.cookies import CookieMode
from .models import (
    COOKIE_MODE,
    EXAMPLE_PASSWORD,
    EXAMPLE_TOKEN,
    SET_COOKIES,
    Password,
    RefreshToken,
    RequestBody,
    TokenAnswer,
)
from .refreshing import presented_refresh


class PasswordAgain(RequestBody):
    """The password, and the refresh token of the session. Browsers send the token in a cookie."""

    model_config = like(password=EXAMPLE_PASSWORD, refresh_token=EXAMPLE_TOKEN)

    password: Password
    refresh_token: Annotated[RefreshToken | None, Field(repr=False)] = None
    mode: Annotated[CookieMode | None, COOKIE_MODE] = None


async def reauthenticate(keyturn: Keyturn, request: Request) -> Answer:
    """Prove the password again. The same session goes on, with a fresh `auth_time` and its next tokens.

    A client calls this after a 401 with `insufficient_user_authentication` (RFC 9470). The refresh token rotates as in
    a refresh, and a lost answer is retried in the same way. A wrong password changes neither session nor cookies.
    """
    body = request.content(PasswordAgain)
    by = request.by()
    if body.refresh_token is not None:
        tokens = await keyturn.reauthentication.reauthenticate(body.refresh_token, body.password, by=by)
        request.session_id = tokens.session_id
        return of_json(to_json(tokens.body()))
    presented, mode = presented_refresh(keyturn, request, body.mode)
    try:
        cookie = await presented.refresh_token(mode)
        tokens = await keyturn.reauthentication.reauthenticate(cookie.token, body.password, by=by)
    except WrongPassword:
        raise
    except InvalidGrant as refusal:
        return request.refused(refusal, presented.fields_to_clear())
    request.session_id = tokens.session_id
    return of_json(to_json(tokens.body(mode)), presented.fields_to_set(mode, tokens, remembered=cookie.remembered))


ENDPOINTS = (
    Endpoint(
        "POST",
        "/auth/reauthenticate",
        reauthenticate,
        tag="auth",
        body=PasswordAgain,
        model=TokenAnswer,
        response_headers=SET_COOKIES,
        refusal_headers={401: SET_COOKIES},
        refusals=(InvalidRequest, InvalidGrant, WrongPassword, CrossSite, SlowDown, TemporarilyUnavailable),
    ),
)
