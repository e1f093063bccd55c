"""/admin/users/{user_id}/…: changes of one user. `keyturn users` is the twin of each act."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import BaseModel, Field

from ..errors import Conflict, NotFound, SlowDown
from ..http.answers import Answer, of_model
from ..http.endpoints import Endpoint
from ..http.request import Request
from ..keyturn import Keyturn
from ..users.made_passwords import LIFETIME
from .admin_users import AdminUserAnswer, details
from .administration import CHANGING, administrator
from .models import OwnClaims, RequestBody


class RoleChange(RequestBody):
    """The role that the user shall have."""

    role: Annotated[str, Field(max_length=1024, description="Up to 32 of a-z, 0-9, _ and -.", examples=["editor"])]


class ClaimsChange(RequestBody):
    """The claims that the user shall have, in the place of the former ones."""

    claims: Annotated[
        OwnClaims | None,
        Field(
            description="At most 512 bytes as compact JSON, 32 members and 3 levels. Names of the standards and of "
            "Keyturn are refused. `null`: none.",
            examples=[{"org": "acme"}],
        ),
    ]


class EmailVerified(RequestBody):
    """Whether the e-mail address is known to be the user's."""

    email_verified: Annotated[
        bool, Field(description="`true`: an operator knows that the address is the user's. `false`: takes this back.")
    ]


class MadePasswordAnswer(BaseModel):
    """A password that Keyturn made. It is shown this once."""

    password: Annotated[str, Field(repr=False)]
    expires_in: Annotated[
        int, Field(description="Seconds until it runs out, unless the user changes it before.", examples=[86400])
    ]


async def disable_user(keyturn: Keyturn, request: Request) -> Answer:
    """Let a user sign in no more, and end all sessions of the user."""
    session = await administrator(keyturn, request, changes=True)
    user_id = request.identifier("user_id")
    await keyturn.users.disable(user_id, by=request.by("administrator", session.user_id))
    return details(await keyturn.users.find(user_id))


async def enable_user(keyturn: Keyturn, request: Request) -> Answer:
    """Let a user sign in again."""
    session = await administrator(keyturn, request, changes=True)
    user_id = request.identifier("user_id")
    await keyturn.users.enable(user_id, by=request.by("administrator", session.user_id))
    return details(await keyturn.users.find(user_id))


async def reset_user_password(keyturn: Keyturn, request: Request) -> Answer:
    """Make a password for a user, and end all sessions of the user.

    The password is shown this once. It is good for 24 hours or until the user changes it. A user without e-mail address
    could not sign in with it, and gets none.
    """
    session = await administrator(keyturn, request, changes=True)
    by = request.by("administrator", session.user_id)
    reset = await keyturn.users.reset_password(request.identifier("user_id"), by=by)
    return of_model(MadePasswordAnswer(password=reset.password, expires_in=LIFETIME // timedelta(seconds=1)))


async def set_user_role(keyturn: Keyturn, request: Request) -> Answer:
    """Change the role of a user. Access tokens have it from the next refresh of their session on."""
    session = await administrator(keyturn, request, changes=True)
    user_id, body = request.identifier("user_id"), request.content(RoleChange)
    await keyturn.users.set_role(user_id, body.role, by=request.by("administrator", session.user_id))
    return details(await keyturn.users.find(user_id))


async def set_user_claims(keyturn: Keyturn, request: Request) -> Answer:
    """Change the claims of a user. Access tokens have them from the next refresh of their session on."""
    session = await administrator(keyturn, request, changes=True)
    user_id, body = request.identifier("user_id"), request.content(ClaimsChange)
    await keyturn.users.set_claims(user_id, body.claims, by=request.by("administrator", session.user_id))
    return details(await keyturn.users.find(user_id))


async def set_user_email_verified(keyturn: Keyturn, request: Request) -> Answer:
    """Note that the e-mail address is the user's. Only such an address may link the user to an identity."""
    session = await administrator(keyturn, request, changes=True)
    user_id, body = request.identifier("user_id"), request.content(EmailVerified)
    by = request.by("administrator", session.user_id)
    await keyturn.users.set_email_verified(user_id, verified=body.email_verified, by=by)
    return details(await keyturn.users.find(user_id))


ENDPOINTS = (
    Endpoint(
        "POST",
        "/admin/users/{user_id}/disable",
        disable_user,
        tag="admin",
        example={"status": "disabled", "disabled_at": "2026-01-31T12:30:00Z"},
        credentials="bearer",
        model=AdminUserAnswer,
        refusals=(*CHANGING, NotFound, Conflict),
    ),
    Endpoint(
        "POST",
        "/admin/users/{user_id}/enable",
        enable_user,
        tag="admin",
        credentials="bearer",
        model=AdminUserAnswer,
        refusals=(*CHANGING, NotFound),
    ),
    Endpoint(
        "POST",
        "/admin/users/{user_id}/password",
        reset_user_password,
        tag="admin",
        credentials="bearer",
        model=MadePasswordAnswer,
        refusals=(*CHANGING, NotFound, Conflict, SlowDown),
    ),
    Endpoint(
        "PUT",
        "/admin/users/{user_id}/role",
        set_user_role,
        tag="admin",
        example={"role": "editor"},
        credentials="bearer",
        body=RoleChange,
        model=AdminUserAnswer,
        refusals=(*CHANGING, NotFound, Conflict),
    ),
    Endpoint(
        "PUT",
        "/admin/users/{user_id}/claims",
        set_user_claims,
        tag="admin",
        credentials="bearer",
        body=ClaimsChange,
        model=AdminUserAnswer,
        refusals=(*CHANGING, NotFound),
    ),
    Endpoint(
        "PUT",
        "/admin/users/{user_id}/email-verified",
        set_user_email_verified,
        tag="admin",
        example={"email_verified_at": "2026-01-31T12:30:00Z"},
        credentials="bearer",
        body=EmailVerified,
        model=AdminUserAnswer,
        refusals=(*CHANGING, NotFound, Conflict),
    ),
)
