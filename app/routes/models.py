"""The bodies of requests and answers, and the header fields, that several endpoints share."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypeAliasType  # Python 3.12 has it in `typing`

from ..http.examples import USER
from ..tokens.refresh_tokens import PATTERN


class RequestBody(BaseModel):
    """The body of a request. Unknown fields are refused. No error and no repr repeats a part of it."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


# The fields of requests have no `format`. With `email`, generated clients refuse `admin@localhost`. With `password`,
# they send asterisks.
EXAMPLE_PASSWORD = "seven lamps under a quiet roof"  # noqa: S105  # every reader of the contract sees it
EXAMPLE_NEW_PASSWORD = "nine kites above a slow river"  # noqa: S105  # likewise
Email = Annotated[str, Field(max_length=1024, examples=["ada@example.com"])]
Password = Annotated[
    str,
    Field(
        max_length=1024,
        repr=False,
        description="Up to 1024 bytes of UTF-8 without NUL, compared as it is sent.",
        examples=[EXAMPLE_PASSWORD],
    ),
]
RULES = (
    "15 characters or more (the policy's `password_length`), up to 1024 bytes of UTF-8 without NUL. Common and "
    "breached passwords are refused."
)
NewPassword = Annotated[
    str,
    Field(
        max_length=1024,
        repr=False,
        description=RULES,
        examples=[EXAMPLE_PASSWORD],
    ),
]
EXAMPLE_TOKEN = "ktr_" + "x" * 84
# Our refresh tokens have 88 characters.
RefreshToken = Annotated[
    str,
    Field(
        max_length=1024,
        description="The refresh token of the last answer.",
        examples=[EXAMPLE_TOKEN],
    ),
]
DeviceId = Annotated[
    str, Field(max_length=64, pattern=r"^[!-~]{1,64}$", examples=["6f1c1f0e-6a0b-4c3e-9d55-0b7d3b1f2a11"])
]
"""A client's name for its device: 1 to 64 visible characters of ASCII."""
assert PATTERN.fullmatch(EXAMPLE_TOKEN), "the documented example has the form of a token"


# A type that is made so is a component of the document with this name. A generator would invent one for it.
OwnClaims = TypeAliasType("OwnClaims", dict[str, Any])
"""The claims of a user that access tokens have beside Keyturn's own."""


class EmptyAnswer(BaseModel):
    """An object without members. Later releases may add some."""


COOKIE_MODE = Field(
    description="Which cookies count, if the browser has those of both modes: `cookie` or `split`.",
)


class TokenAnswer(BaseModel):
    """RFC 6749 section 5.1, and the session's deadlines. All durations are whole seconds."""

    access_token: Annotated[
        str | SkipJsonSchema[None],
        Field(description="JWT after RFC 9068; send it as a bearer token. Absent where it is in a cookie."),
    ] = None
    token_type: Annotated[str, Field(examples=["Bearer"])]
    expires_in: Annotated[int, Field(description="Seconds until the access token expires.", examples=[900])]
    refresh_token: Annotated[
        str | SkipJsonSchema[None],
        Field(description="Opaque; replaces the one that was presented. Absent where it is in a cookie."),
    ] = None
    refresh_expires_in: Annotated[int, Field(description="Seconds until the session ends unless it is refreshed.")]
    session_id: UUID
    session_expires_in: Annotated[int, Field(description="Seconds until the session ends in any case.")]
    scope: Annotated[
        str | SkipJsonSchema[None], Field(description="Scopes of the access token, separated by blanks.")
    ] = None
    device_token: Annotated[
        str | SkipJsonSchema[None],
        Field(
            description="Proves that this device has signed in to this account: keep it, and send it with the next "
            "sign-in. Only in the answer to a sign-in with a password in mode `bearer` that names its `device_id`.",
        ),
    ] = None
    password_change_required: Annotated[
        bool | SkipJsonSchema[None],
        Field(description="`true` where Keyturn made the password: it is good for a day, so change it. Else absent."),
    ] = None


SET_COOKIES = {
    "Set-Cookie": {
        "schema": {"type": "string"},
        "description": "Sets a cookie, or deletes one (`Max-Age=0`). One field for each.",
    }
}
"""The header fields of an answer that may set or delete cookies, for the document."""


class UserAnswer(BaseModel):
    """A user."""

    id: Annotated[UUID, Field(examples=[USER])]
    email: Annotated[
        str | SkipJsonSchema[None], Field(description="Absent where no trusted issuer and nobody else has told one.")
    ] = None
    role: str
    created_at: datetime
