"""/auth: register, login and the change of a password."""

from __future__ import annotations

from pydantic_core import to_json

from ..errors import AccessDenied, Conflict, InvalidGrant, InvalidRequest, InvalidToken, TemporarilyUnavailable
from ..http.answers import NO_CONTENT, Answer, of_json, of_model
from ..http.endpoints import Endpoint
from ..http.request import Request
from ..keyturn import Keyturn
from .models import Email, Password, RequestBody, TokenAnswer, UserAnswer


class Registration(RequestBody):
    """A new user."""

    email: Email
    password: Password


class Login(RequestBody):
    """E-mail and password."""

    email: Email
    password: Password


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
    """Start a session with e-mail address and password."""
    body = request.content(Login)
    proof = await keyturn.sign_in.authenticate(body.email, body.password)
    by = request.by("user", proof.user_id)
    tokens = await keyturn.starting.start(proof, by=by, user_agent=request.user_agent())
    request.session_id = tokens.session_id
    return of_json(to_json(tokens.body()))


async def password(keyturn: Keyturn, request: Request) -> Answer:
    """Change the password. Every other session of the user ends; this one goes on."""
    session = await keyturn.reading.authorise(request.access_token())
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
        refusals=(InvalidRequest, InvalidGrant, TemporarilyUnavailable),
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
        refusals=(InvalidRequest, InvalidToken, TemporarilyUnavailable),
    ),
)
