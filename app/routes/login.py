"""/auth: register, login and the change of a password."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic_core import to_json

from ..errors import (
    AccessDenied,
    Conflict,
    CrossSite,
    InvalidGrant,
    InvalidRequest,
    InvalidToken,
    TemporarilyUnavailable,
)
from ..http.answers import NO_CONTENT, Answer, of_json, of_model
from ..http.endpoints import Endpoint
from ..http.request import Request
from ..keyturn import Keyturn
from ..tokens.cookies import Mode
from .credentials import access_token
from .models import SET_COOKIES, Email, Password, RequestBody, TokenAnswer, UserAnswer
from .presented_cookies import fields_to_set


class Registration(RequestBody):
    """A new user."""

    email: Email
    password: Password


class Login(RequestBody):
    """E-mail and password, and where the tokens shall travel."""

    email: Email
    password: Password
    mode: Annotated[
        Mode | None,
        Field(
            description="`bearer`: both tokens in the answer. `cookie`: both in cookies. `split`: the access token in "
            "the answer, the refresh token in a cookie. Unset: the service's default."
        ),
    ] = None
    remember: Annotated[
        bool | None,
        Field(description="Whether cookies outlive the browser session. Unset: the service's default."),
    ] = None


class PasswordChange(RequestBody):
    """The current password and the new one."""

    current_password: Password
    new_password: Password


async def register(keyturn: Keyturn, request: Request) -> Answer:
    """Make an account, if the operator allows it. The answer has no tokens: log in next."""
    body = request.content(Registration)
    if not keyturn.settings.registration:
        raise AccessDenied("registration is off", description="Registration is off.")
    user = await keyturn.users.create(body.email, body.password, by=request.by())
    return of_model(UserAnswer(id=user.id, email=user.email, role=user.role, created_at=user.created_at), status=201)


async def login(keyturn: Keyturn, request: Request) -> Answer:
    """Start a session with e-mail address and password.

    In the modes with cookies, the request needs an allowed `Origin`, or `Sec-Fetch-Site: same-origin`.
    """
    body = request.content(Login)
    policy = keyturn.policies.in_force
    mode = body.mode or policy.mode
    if mode != "bearer":
        if not keyturn.cookies.enabled:
            raise InvalidRequest("cookies are off", description="mode: this service sets no cookies.")
        # Otherwise another site's page could sign a browser in as somebody else (login CSRF).
        request.require_own_site()
    proof = await keyturn.sign_in.authenticate(body.email, body.password)
    by = request.by("user", proof.user_id)
    tokens = await keyturn.starting.start(proof, by=by, user_agent=request.user_agent())
    request.session_id = tokens.session_id
    remembered = policy.remember if body.remember is None else body.remember
    return of_json(to_json(tokens.body(mode)), fields_to_set(keyturn.cookies, mode, tokens, remembered=remembered))


async def password(keyturn: Keyturn, request: Request) -> Answer:
    """Change the password. Every other session of the user ends; this one goes on."""
    session = await keyturn.reading.authorise(await access_token(keyturn, request, changes=True))
    request.session_id = session.id
    body = request.content(PasswordChange)
    by = request.by("user", session.user_id)
    await keyturn.users.change_password(session.id, session.user_id, body.current_password, body.new_password, by=by)
    return NO_CONTENT


ENDPOINTS = (
    Endpoint(
        "POST",
        "/auth/register",
        register,
        tag="auth",
        body=Registration,
        status=201,
        model=UserAnswer,
        refusals=(InvalidRequest, AccessDenied, Conflict, TemporarilyUnavailable),
    ),
    Endpoint(
        "POST",
        "/auth/login",
        login,
        tag="auth",
        body=Login,
        model=TokenAnswer,
        refusals=(InvalidRequest, InvalidGrant, CrossSite, TemporarilyUnavailable),
        response_headers=SET_COOKIES,
        fast=True,
    ),
    Endpoint(
        "POST",
        "/auth/password",
        password,
        tag="auth",
        credentials="bearer",
        body=PasswordChange,
        status=204,
        response_description="The password is changed.",
        refusals=(InvalidRequest, InvalidToken, CrossSite, TemporarilyUnavailable),
    ),
)
