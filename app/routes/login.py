"""/auth: register, login and the change of a password."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

from pydantic import Field

from ..errors import (
    AccessDenied,
    Conflict,
    CrossSite,
    InvalidGrant,
    InvalidRequest,
    InvalidScope,
    InvalidToken,
    SlowDown,
    TemporarilyUnavailable,
    WrongPassword,
)
from ..http.answers import NO_CONTENT, Answer, of_json, of_model
from ..http.endpoints import Endpoint
from ..http.examples import like
from ..http.request import Request
from ..keyturn import Keyturn
from ..limits.limits import DeviceForgotten
from ..metrics import LOGINS
from ..sessions.start import Authenticated
from ..users.emails import normalised
from ..users.hashing import Asker
from .credentials import access_token
from .known_devices import KnownDevice
from .models import (
    EXAMPLE_NEW_PASSWORD,
    EXAMPLE_PASSWORD,
    SET_COOKIES,
    Email,
    EmptyAnswer,
    NewPassword,
    Password,
    RequestBody,
    TokenAnswer,
    UserAnswer,
)
from .starting import SignIn, Wanted


class Registration(RequestBody):
    """A new user."""

    email: Email
    password: NewPassword


class Login(SignIn):
    """E-mail and password, where the tokens shall travel, and what the client says about itself."""

    email: Email
    password: Password
    device_token: Annotated[
        str | None,
        Field(
            max_length=64,
            repr=False,
            description="The `device_token` of this device's last sign-in to this account. With it, no storm of wrong "
            "passwords from elsewhere keeps the device waiting. Browsers send it in a cookie.",
            examples=["ktd_" + "x" * 48],
        ),
    ] = None


class PasswordChange(RequestBody):
    """The current password and the new one."""

    model_config = like(current_password=EXAMPLE_PASSWORD, new_password=EXAMPLE_NEW_PASSWORD)

    current_password: Password
    new_password: NewPassword


async def register(keyturn: Keyturn, request: Request) -> Answer:
    """Make an account, if the operator allows it. The answer has no tokens: log in next.

    A password that a rule refuses is answered with 400. The description names the field and the rule.

    If the service does not tell whether an address is taken, the answer is an empty object with 202, in both cases.
    """
    body = request.content(Registration)
    if not keyturn.settings.registration:
        raise AccessDenied("registration is off", description="Registration is off.")
    attempt = keyturn.limits.registration(normalised(body.email), request.client)
    if not keyturn.settings.registration_tells:
        register = keyturn.registering.register
        await keyturn.limits.guess(attempt, lambda: register(body.email, body.password, by=request.by()))
        return of_json(b"{}", status=202)
    create = keyturn.users.create
    user = await keyturn.limits.guess(attempt, lambda: create(body.email, body.password, by=request.by()))
    return of_model(UserAnswer(id=user.id, email=user.email, role=user.role, created_at=user.created_at), status=201)


async def login(keyturn: Keyturn, request: Request) -> Answer:
    """Start a session with e-mail address and password.

    A live session of the same device is replaced. If the user has more sessions than the service allows, the oldest
    end. After the answer, no access token of those is accepted any more.

    In the modes with cookies, the request needs an allowed `Origin`, or `Sec-Fetch-Site: same-origin`.

    Too many wrong passwords slow down all further attempts on the account, except those of a device that has signed in
    to it before.
    """
    body = request.content(Login)
    wanted = Wanted.of(keyturn, request, body)
    known = KnownDevice.of(keyturn, request, wanted.mode, body.device_token, normalised(body.email))
    with LOGINS.outcome("signed_in"):
        proof, known = await _authenticated(keyturn, request, body, known)
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
    kept = known.kept(proof.password_hash)
    if wanted.mode != "bearer":
        return wanted.answer(request, tokens, device, known.fields_to_set(keyturn, kept, remembered=wanted.remembered))
    return wanted.answer(request, tokens, device, device_token=kept if body.device_id is not None else None)


async def _authenticated(
    keyturn: Keyturn, request: Request, body: Login, known: KnownDevice
) -> tuple[Authenticated, KnownDevice]:
    """The proof that address and password are right, and the device as it counted: perhaps as new to the account.

    Raises:
        Refusal: as `Limits.guess` and `SignIn.authenticate`.
    """
    with suppress(DeviceForgotten):
        return await _tried(keyturn, request, body, known), known
    stranger = known.as_stranger()
    return await _tried(keyturn, request, body, stranger), stranger


async def _tried(keyturn: Keyturn, request: Request, body: Login, known: KnownDevice) -> Authenticated:
    is_known = known.id is not None
    attempt = keyturn.limits.sign_in(known.address, request.client, known.id)
    asker, authenticate = Asker(request.client, known=is_known), keyturn.sign_in.authenticate
    counts = known.counts if is_known else None
    return await keyturn.limits.guess(attempt, lambda: authenticate(known.address, body.password, asker, counts))


async def password(keyturn: Keyturn, request: Request) -> Answer:
    """Change the password. Every other session of the user ends; this one goes on.

    A new password that a rule refuses is answered with 400. The description names the field and the rule.
    """
    session = await keyturn.reading.authorise(await access_token(keyturn, request, changes=True))
    request.is_about(session.id, session.user_id, session.client_id)
    body = request.content(PasswordChange)
    by = request.by("user", session.user_id)
    current, new = body.current_password, body.new_password
    await keyturn.limits.guess(
        keyturn.limits.within_session(session.id, "password"),
        lambda: keyturn.users.change_password(session.id, session.user_id, current, new, by=by),
    )
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
        refusals=(InvalidRequest, AccessDenied, Conflict, SlowDown, TemporarilyUnavailable),
        responses={
            202: {
                "description": "The service does not tell whether the address was taken. An empty object.",
                "model": EmptyAnswer,
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
        refusals=(InvalidRequest, InvalidScope, InvalidGrant, CrossSite, SlowDown, TemporarilyUnavailable),
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
        refusals=(
            InvalidRequest,
            InvalidToken,
            InvalidGrant,
            WrongPassword,
            CrossSite,
            SlowDown,
            TemporarilyUnavailable,
        ),
    ),
)
