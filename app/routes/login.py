"""/auth: register, login and the change of a password."""

from __future__ import annotations

from ..errors import (
    AccessDenied,
    Conflict,
    CrossSite,
    InvalidGrant,
    InvalidRequest,
    InvalidScope,
    InvalidToken,
    TemporarilyUnavailable,
)
from ..http.answers import NO_CONTENT, Answer, of_json, of_model
from ..http.endpoints import Endpoint
from ..http.request import Request
from ..keyturn import Keyturn
from ..metrics import LOGINS
from .credentials import access_token
from .models import SET_COOKIES, Email, Password, RequestBody, TokenAnswer, UserAnswer
from .starting import SignIn, Wanted


class Registration(RequestBody):
    """A new user."""

    email: Email
    password: Password


class Login(SignIn):
    """E-mail and password, where the tokens shall travel, and what the client says about itself."""

    email: Email
    password: Password


class PasswordChange(RequestBody):
    """The current password and the new one."""

    current_password: Password
    new_password: Password


async def register(keyturn: Keyturn, request: Request) -> Answer:
    """Make an account, if the operator allows it. The answer has no tokens: log in next.

    If the service does not tell whether an address is taken, the answer is an empty object with 202, in both cases.
    """
    body = request.content(Registration)
    if not keyturn.settings.registration:
        raise AccessDenied("registration is off", description="Registration is off.")
    if not keyturn.settings.registration_tells:
        await keyturn.registering.register(body.email, body.password, by=request.by())
        return of_json(b"{}", status=202)
    user = await keyturn.users.create(body.email, body.password, by=request.by())
    return of_model(UserAnswer(id=user.id, email=user.email, role=user.role, created_at=user.created_at), status=201)


async def login(keyturn: Keyturn, request: Request) -> Answer:
    """Start a session with e-mail address and password.

    A live session of the same device is replaced. If the user has more sessions than the service allows, the oldest
    end. After the answer, no access token of those is accepted any more.

    In the modes with cookies, the request needs an allowed `Origin`, or `Sec-Fetch-Site: same-origin`.
    """
    body = request.content(Login)
    wanted = Wanted.of(keyturn, request, body)
    with LOGINS.outcome("signed_in"):
        proof = await keyturn.sign_in.authenticate(body.email, body.password)
        request.user_id = proof.user_id
        device = wanted.device(request)
        tokens = await keyturn.starting.start(
            proof,
            by=request.by("user", proof.user_id),
            user_agent=request.user_agent(),
            device_id=device.id,
            device_name=body.device_name,
            scope=wanted.scope,
        )
    return wanted.answer(request, tokens, device)


async def password(keyturn: Keyturn, request: Request) -> Answer:
    """Change the password. Every other session of the user ends; this one goes on."""
    session = await keyturn.reading.authorise(await access_token(keyturn, request, changes=True))
    request.is_about(session.id, session.user_id, session.client_id)
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
        responses={
            202: {
                "description": "The service does not tell whether the address was taken. An empty object.",
                "content": {"application/json": {"schema": {"type": "object", "maxProperties": 0}}},
            }
        },
    ),
    Endpoint(
        "POST",
        "/auth/login",
        login,
        tag="auth",
        body=Login,
        model=TokenAnswer,
        refusals=(InvalidRequest, InvalidScope, InvalidGrant, CrossSite, TemporarilyUnavailable),
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
        refusals=(InvalidRequest, InvalidToken, InvalidGrant, CrossSite, TemporarilyUnavailable),
    ),
)
