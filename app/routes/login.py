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
    InvalidScope,
    InvalidToken,
    TemporarilyUnavailable,
)
from ..http.answers import NO_CONTENT, Answer, of_json, of_model
from ..http.endpoints import Endpoint
from ..http.request import Request
from ..keyturn import Keyturn
from ..settings_values import scopes_in
from ..tokens.cookies import Mode
from .credentials import access_token
from .devices import Device
from .models import SET_COOKIES, DeviceId, Email, Password, RequestBody, TokenAnswer, UserAnswer
from .presented_cookies import fields_to_set
from .session_answers import DeviceName


class Registration(RequestBody):
    """A new user."""

    email: Email
    password: Password


class Login(RequestBody):
    """E-mail and password, where the tokens shall travel, and what the client says about itself."""

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
    device_id: Annotated[
        DeviceId | None,
        Field(
            description="The client's own id of its device: chosen at random once, and kept. A session of the same "
            "device is replaced. Unset: in the modes with cookies, the device cookie."
        ),
    ] = None
    device_name: Annotated[DeviceName | None, Field(description="The name of the device, for its user.")] = None
    scope: Annotated[
        str | None,
        Field(
            max_length=1024,
            description="The scopes to grant, separated by blanks (RFC 6749 section 3.3), of those that the service "
            "allows. Unset: all of these.",
        ),
    ] = None


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
    cookies, policy = keyturn.cookies, keyturn.policies.in_force
    mode = body.mode or policy.mode
    remembered = policy.remember if body.remember is None else body.remember
    scope = _scopes_asked_for(body.scope)
    if mode != "bearer":
        if not cookies.enabled:
            raise InvalidRequest("cookies are off", description="mode: this service sets no cookies.")
        # Otherwise another site's page could sign a browser in as somebody else (login CSRF).
        request.require_own_site()
    proof = await keyturn.sign_in.authenticate(body.email, body.password)
    device = Device.of(cookies, request, None if mode == "bearer" else mode, body.device_id)
    tokens = await keyturn.starting.start(
        proof,
        by=request.by("user", proof.user_id),
        user_agent=request.user_agent(),
        device_id=device.id,
        device_name=body.device_name,
        scope=scope,
    )
    request.session_id = tokens.session_id
    fields = fields_to_set(cookies, mode, tokens, remembered=remembered)
    return of_json(to_json(tokens.body(mode)), [*fields, *device.fields_to_set(remembered=remembered)])


def _scopes_asked_for(scope: str | None) -> frozenset[str] | None:
    """The scopes of a request. An empty text counts as none at all (RFC 6749 section 3.2).

    Raises:
        InvalidScope: the text is malformed.
    """
    try:
        return scopes_in(scope) if scope else None
    except ValueError:
        raise InvalidScope("malformed") from None


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
