"""/admin/users: the users, listed, made, read and erased. `keyturn users` is the twin of each act."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any, cast, get_args
from uuid import UUID

from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from ..errors import Conflict, NotFound, SlowDown
from ..http.answers import Answer, of_model
from ..http.endpoints import Endpoint, QueryParameter
from ..http.examples import USER
from ..http.request import Request
from ..keyturn import Keyturn
from ..storage.tables import User
from ..users.claims import stored
from ..users.lookup import Status
from ..users.made_passwords import make
from . import filters
from .administration import CHANGING, READING, administrator
from .models import RULES, Email, OwnClaims, RequestBody
from .pages import PAGE, NextCursor, Page

_ORDERS = ("newest", "oldest")


class AdminUserAnswer(BaseModel):
    """A user, as administrators see one."""

    id: Annotated[UUID, Field(examples=[USER])]
    email: Annotated[
        str | SkipJsonSchema[None], Field(description="Absent where no trusted issuer and nobody else has told one.")
    ] = None
    email_verified_at: Annotated[
        datetime | SkipJsonSchema[None],
        Field(description="Since when the address is known to be the user's, by a trusted issuer or an operator."),
    ] = None
    password_set: Annotated[bool, Field(description="`false`: only issuers can sign the user in.")]
    role: str
    claims: Annotated[OwnClaims, Field(description="The claims that access tokens have beside Keyturn's own.")]
    status: Annotated[str, Field(description="`enabled` or `disabled`.", examples=["enabled"])]
    created_at: datetime
    disabled_at: datetime | SkipJsonSchema[None] = None
    password_expires_at: Annotated[
        datetime | SkipJsonSchema[None],
        Field(description="When the password runs out that Keyturn made. Absent where the user chose it."),
    ] = None

    @classmethod
    def of(cls, user: User, **more: Any) -> AdminUserAnswer:
        """A user's row in the form of the answer."""
        return cls(
            id=user.id,
            email=user.email,
            email_verified_at=user.email_verified_at,
            password_set=user.password_hash is not None,
            role=user.role,
            claims=stored(user.claims),
            status="disabled" if user.disabled_at else "enabled",
            created_at=user.created_at,
            disabled_at=user.disabled_at,
            password_expires_at=user.password_expires_at,
            **more,
        )


class UserPageAnswer(BaseModel):
    """A page of the list of users."""

    items: list[AdminUserAnswer]
    next_cursor: NextCursor = None


class NewUser(RequestBody):
    """A new user. Without a password, Keyturn makes one."""

    email: Email
    password: Annotated[str | None, Field(max_length=1024, repr=False, description=RULES)] = None
    role: Annotated[str | None, Field(max_length=1024, description="Up to 32 of a-z, 0-9, _ and -. Unset: `user`.")] = (
        None
    )


class MadeUserAnswer(AdminUserAnswer):
    """The user, and the password if Keyturn made it."""

    password: Annotated[
        str | SkipJsonSchema[None],
        Field(repr=False, description="The password that Keyturn made. Shown this once, and good for 24 hours."),
    ] = None


class ErasedAnswer(BaseModel):
    """The trace that is left of a user."""

    pseudonym: Annotated[UUID, Field(description="The id that stands in the events in the place of the user's.")]


async def list_users(keyturn: Keyturn, request: Request) -> Answer:
    """List users, page by page."""
    await administrator(keyturn, request)
    order = filters.word(request, "order", _ORDERS) or _ORDERS[0]
    status = cast("Status | None", filters.word(request, "status", get_args(Status)))
    email, role = request.parameter("email"), request.parameter("role")
    page = Page.of(keyturn.cursors, request, json.dumps(["users", order, status, email, role]))
    found = await keyturn.users.list(
        limit=page.limit + 1,
        after=page.after,
        newest_first=order == "newest",
        email=email,
        role=role,
        status=status,
    )
    users, next_cursor = page.cut(found, lambda user: user.id)
    answer = UserPageAnswer(items=[AdminUserAnswer.of(user) for user in users], next_cursor=next_cursor)
    return of_model(answer, exclude_none=True)


async def create_user(keyturn: Keyturn, request: Request) -> Answer:
    """Make a user. Without a password, Keyturn makes one: it is shown this once, and good for 24 hours."""
    session = await administrator(keyturn, request, changes=True)
    body = request.content(NewUser)
    initial = body.password is None
    password = make() if body.password is None else body.password
    by = request.by("administrator", session.user_id)
    user = await keyturn.users.create(
        body.email, password, "user" if body.role is None else body.role, initial=initial, by=by
    )
    return of_model(MadeUserAnswer.of(user, password=password if initial else None), status=201, exclude_none=True)


async def get_user(keyturn: Keyturn, request: Request) -> Answer:
    """Get a user."""
    await administrator(keyturn, request)
    return details(await keyturn.users.find(request.identifier("user_id")))


async def erase_user(keyturn: Keyturn, request: Request) -> Answer:
    """Erase a user for good: account, sessions and everything personal. Events keep a random pseudonym."""
    session = await administrator(keyturn, request, changes=True)
    by = request.by("administrator", session.user_id)
    return of_model(ErasedAnswer(pseudonym=await keyturn.erasing.erase(request.identifier("user_id"), by=by)))


def details(user: User) -> Answer:
    """The answer that shows a user to administrators."""
    return of_model(AdminUserAnswer.of(user), exclude_none=True)


ENDPOINTS = (
    Endpoint(
        "GET",
        "/admin/users",
        list_users,
        tag="admin",
        credentials="bearer",
        query=(
            QueryParameter("email", "An address; or how it begins, with a `*` behind."),
            QueryParameter("role", "Only users of this role."),
            QueryParameter("status", "Only these.", schema={"type": "string", "enum": list(get_args(Status))}),
            QueryParameter("order", "By age.", schema={"type": "string", "enum": list(_ORDERS), "default": _ORDERS[0]}),
            *PAGE,
        ),
        model=UserPageAnswer,
        refusals=READING,
    ),
    Endpoint(
        "POST",
        "/admin/users",
        create_user,
        tag="admin",
        example={"claims": {}, "password_expires_at": "2026-02-01T12:00:00Z"},
        credentials="bearer",
        body=NewUser,
        status=201,
        model=MadeUserAnswer,
        refusals=(*CHANGING, Conflict, SlowDown),
    ),
    Endpoint(
        "GET",
        "/admin/users/{user_id}",
        get_user,
        tag="admin",
        credentials="bearer",
        model=AdminUserAnswer,
        refusals=(*READING, NotFound),
    ),
    Endpoint(
        "DELETE",
        "/admin/users/{user_id}",
        erase_user,
        tag="admin",
        credentials="bearer",
        model=ErasedAnswer,
        refusals=(*CHANGING, NotFound, Conflict),
    ),
)
