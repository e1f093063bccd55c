"""/auth: register, login, refresh, logout, me, verify, password."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Query, Request, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import to_json

from ..actors import Actor, Kind
from ..errors import (
    AccessDenied,
    Conflict,
    InsufficientScope,
    InvalidGrant,
    InvalidRequest,
    InvalidToken,
    NoToken,
    TemporarilyUnavailable,
)
from ..http.answers import Answer
from ..keyturn import Keyturn
from ..sessions.rotation import Scope, State
from ..tokens.access_tokens import AccessToken
from ..tokens.refresh_tokens import PATTERN
from .answers import refusals, response

router = APIRouter(prefix="/auth", tags=["auth"])


class _Body(BaseModel):
    """A request: unknown fields are refused, and nothing of it can come back in an error or a repr."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


# Requests have no `format`. With `email`, generated clients refuse `admin@localhost`. With `password`, they send
# asterisks.
Email = Annotated[str, Field(max_length=1024, examples=["ada@example.com"])]
Password = Annotated[
    str,
    Field(
        max_length=1024,
        repr=False,
        description="8 to 1024 bytes of UTF-8 without NUL, compared as it is sent.",
        examples=["correct horse battery staple"],
    ),
]
MAX_TOKEN = 1024
"""Characters of what may be sent as a refresh token; ours have 88."""

RefreshToken = Annotated[
    str,
    Field(
        max_length=MAX_TOKEN,
        description="The refresh token of the last answer.",
        examples=["ktr_" + "x" * 84],
    ),
]


class Registration(_Body):
    """A new user."""

    email: Email
    password: Password


class Login(_Body):
    """E-mail and password."""

    email: Email
    password: Password


class Refresh(_Body):
    """The refresh token (RFC 6749 section 6)."""

    refresh_token: Annotated[RefreshToken, Field(repr=False)]


class Logout(_Body):
    """Whom to sign out. A bearer token may stand in the header beside it or alone."""

    refresh_token: Annotated[RefreshToken | None, Field(repr=False)] = None
    # No default for the document: TypeScript's clients would have to send a field that has one.
    scope: Annotated[
        Scope | None,
        Field(
            description="`this` session (also where nothing is said), all `others` of the user, or `all`. The last two "
            "need a token that still works."
        ),
    ] = None


class PasswordChange(_Body):
    """The password as it is and as it shall be."""

    current_password: Password
    new_password: Password


class TokenAnswer(BaseModel):
    """RFC 6749 section 5.1, and the session's deadlines. All durations are whole seconds."""

    access_token: Annotated[str, Field(description="JWT after RFC 9068; send it as a bearer token.")]
    token_type: Annotated[str, Field(examples=["Bearer"])]
    expires_in: Annotated[int, Field(description="Seconds until the access token expires.", examples=[900])]
    refresh_token: Annotated[str, Field(description="Opaque; replaces the one that was presented.")]
    refresh_expires_in: Annotated[int, Field(description="Seconds until the session ends unless it is refreshed.")]
    session_id: UUID
    session_expires_in: Annotated[int, Field(description="Seconds until the session ends in any case.")]


class UserAnswer(BaseModel):
    """A user."""

    id: UUID
    email: str
    role: str
    created_at: datetime


class SessionAnswer(BaseModel):
    """The session of the token that was sent."""

    id: UUID
    client_id: str
    created_at: datetime
    rotated_at: datetime
    idle_expires_at: datetime
    absolute_expires_at: datetime


class MeAnswer(BaseModel):
    """The user and this session, as the database has them."""

    user: UserAnswer
    session: SessionAnswer


_EPOCH_SECONDS = Field(description="Seconds since 1970.", examples=[1795000000], json_schema_extra={"format": "int64"})


class Claims(BaseModel):
    """The claims of a verified access token. Later releases may add others."""

    iss: str
    sub: str
    aud: str
    exp: Annotated[int, _EPOCH_SECONDS]
    iat: Annotated[int, _EPOCH_SECONDS]
    jti: str
    sid: str
    client_id: str
    role: str


async def _keyturn(request: Request) -> Keyturn:
    parts: Keyturn = request.app.state.keyturn
    return parts


Parts = Annotated[Keyturn, Depends(_keyturn)]

_documented = HTTPBearer(
    auto_error=False, scheme_name="bearer", bearerFormat="JWT", description="An access token of a login or refresh."
)


async def _optional_bearer(request: Request, _scheme: Annotated[Any, Depends(_documented)]) -> str | None:
    """The bearer token (RFC 6750 section 2.1), the only place where one is looked for.

    Another scheme is not ours: a proxy's own, say, which must not keep a refresh token from logging out.
    """
    fields = request.headers.getlist("authorization")
    if not fields:
        return None
    if len(fields) > 1:
        raise InvalidRequest("several Authorization fields", description="There must be one Authorization header.")
    scheme, _, token = fields[0].partition(" ")
    return token.strip(" \t") if scheme.lower() == "bearer" else None


OptionalBearer = Annotated[str | None, Depends(_optional_bearer)]


async def _bearer(token: OptionalBearer) -> str:
    if token is None:
        raise NoToken("no bearer token")
    return token


Bearer = Annotated[str, Depends(_bearer)]


async def _session(request: Request, keyturn: Parts, token: Bearer) -> State:
    state = await keyturn.sessions.authorise(token)
    _log(request, state.id)
    return state


Authorised = Annotated[State, Depends(_session)]


def _by(request: Request, kind: Kind, user_id: UUID | None = None) -> Actor:
    client = request.client
    return Actor(
        kind, str(user_id) if user_id else None, client.host if client else None, request.scope["state"]["request_id"]
    )


def _log(request: Request, session_id: UUID) -> None:
    request.scope["state"]["session_id"] = session_id


@router.post(
    "/register", status_code=201, responses=refusals(InvalidRequest, AccessDenied, Conflict, TemporarilyUnavailable)
)
async def register(request: Request, body: Registration, keyturn: Parts) -> UserAnswer:
    """Make an account, where the operator lets anyone do so. No tokens: log in next."""
    if not keyturn.settings.registration:
        raise AccessDenied("registration is off", description="Registration is off.")
    user = await keyturn.users.create(body.email, body.password, by=_by(request, "anonymous"))
    return UserAnswer(id=user.id, email=user.email, role=user.role, created_at=user.created_at)


@router.post("/login", responses=refusals(InvalidRequest, InvalidGrant, TemporarilyUnavailable))
async def login(request: Request, body: Login, keyturn: Parts) -> TokenAnswer:
    """Start a session with e-mail and password."""
    proof = await keyturn.users.authenticate(body.email, body.password)
    tokens = await keyturn.sessions.start(proof, by=_by(request, "user", proof.user_id))
    _log(request, tokens.session_id)
    return TokenAnswer.model_validate(tokens.body())


@router.post(
    "/refresh", response_model=TokenAnswer, responses=refusals(InvalidRequest, InvalidGrant, TemporarilyUnavailable)
)
async def refresh(request: Request, body: Refresh, keyturn: Parts) -> Response:
    """Get the next access and refresh token (RFC 6749 section 6).

    Safe to repeat: within the retry window, and until its successor is used, the same refresh token gets the same
    answer. One that was replaced earlier ends its session.
    """
    return response(await answer_refresh(keyturn, request.scope["state"], body.refresh_token))


@router.post(
    "/logout",
    status_code=204,
    responses=refusals(InvalidRequest, InvalidGrant, TemporarilyUnavailable),
    openapi_extra={"security": [{}]},  # the bearer token is optional
    response_description="The session is over.",
)
async def logout(
    request: Request, keyturn: Parts, bearer: OptionalBearer, body: Annotated[Logout | None, Body()] = None
) -> Response:
    """End the session of the refresh token, of the bearer token, or of both.

    When this answers, no access token of the session is accepted any more. Safe to repeat; an expired access token
    will do.
    """
    body = body or Logout()  # none, or `null`, which Java's clients send where they have nothing to say
    scope = body.scope or "this"
    return response(await answer_logout(keyturn, request.scope["state"], bearer, body.refresh_token, scope))


@router.get("/me", responses=refusals(InvalidRequest, InvalidToken, TemporarilyUnavailable))
@router.api_route("/me", methods=["GET", "HEAD"], include_in_schema=False)
async def me(session: Authorised, keyturn: Parts) -> MeAnswer:
    """Who is signed in."""
    user = await keyturn.users.find(session.user_id)
    return MeAnswer(
        user=UserAnswer(id=user.id, email=user.email, role=user.role, created_at=user.created_at),
        session=SessionAnswer(
            id=session.id,
            client_id=session.client_id,
            created_at=session.created_at,
            rotated_at=session.rotated_at,
            idle_expires_at=session.idle_expires_at,
            absolute_expires_at=session.absolute_expires_at,
        ),
    )


@router.post(
    "/password",
    status_code=204,
    response_description="The password is changed.",
    responses=refusals(InvalidRequest, InvalidToken, TemporarilyUnavailable),
)
async def password(request: Request, body: PasswordChange, session: Authorised, keyturn: Parts) -> Response:
    """Change the password. Every other session of the user ends; this one goes on."""
    by = _by(request, "user", session.user_id)
    await keyturn.users.change_password(session.id, session.user_id, body.current_password, body.new_password, by=by)
    return Response(status_code=204)


VERIFY_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
"""The usual ones: some proxies ask with their client's method, others with one of their own."""

_IDENTITY = {
    name: {"schema": {"type": "string"}, "description": f"Claim `{claim}`; empty where there is none."}
    for name, claim in {
        "X-Auth-Subject": "sub",
        "X-Auth-Role": "role",
        "X-Auth-Session": "sid",
        "X-Auth-Scope": "scope",
    }.items()
}


def _name(route: APIRoute) -> str:
    return route.name


@router.get(
    "/verify",
    response_model=Claims,
    responses={
        200: {"headers": _IDENTITY},
        **refusals(InvalidRequest, InvalidToken, InsufficientScope, TemporarilyUnavailable),
    },
)
# This one is routed first; the one above is for the document. No list of methods means any: RFC 9110 section 9.1 lets
# everyone have methods of their own, and a proxy asks with its client's. (FastAPI's own names have one in them.)
@router.api_route("/verify", methods=[], include_in_schema=False, generate_unique_id_function=_name)
async def verify(
    request: Request,
    keyturn: Parts,
    token: Bearer,
    role: Annotated[list[str] | SkipJsonSchema[None], Query(description="The role that is needed.")] = None,
    scope: Annotated[list[str] | SkipJsonSchema[None], Query(description="Scopes, separated by spaces.")] = None,
) -> Response:
    """Whether an access token is good now: for resource servers and for proxies that ask before they pass a request on.

    Answers with the claims, and with `X-Auth-Subject`, `X-Auth-Role`, `X-Auth-Scope` and `X-Auth-Session` for the proxy
    to hand on: always all four, empty where the token has nothing. `role` and `scope` ask for more: 403 where the token
    does not cover it.

    Any method and any path below is answered in the same way. What a proxy appends decides nothing: path and query
    below, and the body, are not looked at. A proxy that appends demands with `/auth/verify;role=admin;scope=read`.
    """
    return response(await answer_verify(keyturn, request.scope["state"], token, role or [], scope or []))


# -- what the endpoints above have in common with the direct ones (app/routes/direct.py)


async def answer_refresh(keyturn: Keyturn, state: dict[str, Any], refresh_token: str) -> Answer:
    """The successor, or a refusal."""
    try:
        tokens = await keyturn.sessions.refresh(refresh_token, by=Actor("anonymous", request_id=state["request_id"]))
    except TemporarilyUnavailable as e:
        # At most a sixth of the window: a client that obeys is back before its retry would be reuse. Spread, so
        # that those who were turned away together don't come back together.
        most = max(1.0, keyturn.settings.retry_window.total_seconds() / 6)
        after = timedelta(seconds=int(random.uniform(1, most)))  # noqa: S311  # jitter
        raise TemporarilyUnavailable(e.cause, retry_after=after).about(e.session_id, e.user_id) from None
    state["session_id"] = tokens.session_id
    return _json(to_json(tokens.body()))


async def answer_logout(
    keyturn: Keyturn, state: dict[str, Any], bearer: str | None, refresh_token: str | None, scope: Scope
) -> Answer:
    """No content, or a refusal."""
    by = Actor("user", request_id=state["request_id"])
    for session_id in await keyturn.sessions.logout(bearer, refresh_token, scope, by=by):
        state["session_id"] = session_id
    return 204, [], b""


async def answer_verify(
    keyturn: Keyturn, state: dict[str, Any], access_token: str, roles: list[str], scopes: list[str]
) -> Answer:
    """The claims, in the body and for a proxy in header fields, or a refusal."""
    verified = await keyturn.sessions.verify(access_token)
    state["session_id"] = verified.claims["sid"]
    try:
        claims = to_json(verified.claims, inf_nan_mode="null")
    except ValueError:
        # Rightly signed, by someone who shares the key: lone surrogates, or nesting without end.
        raise InvalidToken("claims that can't be written as JSON") from None
    granted_scope = verified.claims.get("scope")
    granted = granted_scope.split() if isinstance(granted_scope, str) else []
    # Each of several must hold: none widens what another one demands.
    if any(wanted != verified.role for wanted in roles):
        raise InsufficientScope("another role", user_id=verified.user_id)
    if not set(" ".join(scopes).split()) <= set(granted):
        raise InsufficientScope("scope not granted", user_id=verified.user_id)
    # From the verified token alone, and only what is printable ASCII: no second header can be smuggled in.
    return _json(claims, _identity(verified, granted))


def _identity(token: AccessToken, scopes: list[str]) -> list[tuple[bytes, bytes]]:
    """Always all four: where one is missing, a proxy lets the client's own of that name pass."""
    values = (
        (b"x-auth-subject", token.subject),
        (b"x-auth-role", token.role),
        (b"x-auth-scope", " ".join(scopes)),
        (b"x-auth-session", token.claims["sid"]),
    )
    return [(name, value.encode() if value.isascii() and value.isprintable() else b"") for name, value in values]


def _json(body: bytes, more: Sequence[tuple[bytes, bytes]] = ()) -> Answer:
    return 200, [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *more], body


assert PATTERN.fullmatch("ktr_" + "x" * 84), "the documented example has the form of a token"
