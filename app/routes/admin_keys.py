"""/admin/keys: the working keys, listed, made, rotated and retired by administrators; and signing everyone out.

No route gives or takes a secret: neither import nor export has one. A key that travels by HTTP would pass proxies and
their logs, and a stolen session of an administrator would be enough to sign any access token. The command needs the
machine, its database and its master secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from ..errors import Conflict, InvalidRequest, NotFound
from ..http.answers import Answer, of_model
from ..http.documentation import word
from ..http.endpoints import Endpoint
from ..http.request import Request
from ..keyturn import Keyturn
from ..settings import Algorithm
from ..tokens.key_set import Use
from ..tokens.primitives import RsaBits
from .administration import CHANGING, READING, administrator
from .models import RequestBody

_KID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_ALGORITHM = Field(description="Of an access key. Unset: the setting's, or that of the newest key.")
_BITS = Field(description="Of an RS256 key. Unset: 2048.")


class NewKey(RequestBody):
    """The key to make."""

    use: Annotated[Use, Field(description="The tokens that the key is for, or the cookies.")]
    algorithm: Annotated[Algorithm | None, _ALGORITHM] = None
    bits: Annotated[RsaBits | None, _BITS] = None


class KeyRotation(RequestBody):
    """The keys to rotate. `master` moves all keys to the present master secret."""

    use: Annotated[Use | Literal["master"], Field(description="The use of the keys, or `master`.")]
    algorithm: Annotated[Algorithm | None, _ALGORITHM] = None
    bits: Annotated[RsaBits | None, _BITS] = None


class KeyAnswer(BaseModel):
    """A working key, without its secret."""

    kid: str
    use: Annotated[str, Field(examples=["access"])]
    algorithm: Annotated[str, Field(examples=["ES256"])]
    status: Annotated[str, word("How it is used.", "signs", "published", "verifies", "retiring", "retired", "unknown")]
    created_at: datetime
    signs_from: Annotated[datetime, Field(description="From when on it signs, or a cookie key seals.")]
    retires_at: Annotated[datetime | SkipJsonSchema[None], Field(description="When it will retire, if planned.")] = None
    retired_at: datetime | SkipJsonSchema[None] = None
    sealed_under: Annotated[
        str | SkipJsonSchema[None], word("The master secret that opens it; absent: neither.", "current", "previous")
    ] = None


class KeysAnswer(BaseModel):
    """All keys, the oldest first. There are some hundreds at most, so there are no pages."""

    items: list[KeyAnswer]


class SignedOutAnswer(BaseModel):
    """The new keys, under which users sign in again."""

    access_kid: str
    refresh_kid: str


async def list_keys(keyturn: Keyturn, request: Request) -> Answer:
    """List all working keys, without their secrets."""
    await administrator(keyturn, request)
    return _listed(await keyturn.keys.list())


async def generate_key(keyturn: Keyturn, request: Request) -> Answer:
    """Make a key. Every instance knows it within two seconds, and it signs or seals a minute later."""
    session = await administrator(keyturn, request, changes=True)
    body = request.content(NewKey)
    by = request.by("administrator", session.user_id)
    made = await keyturn.key_changes.generate(body.use, body.algorithm, body.bits, by=by)
    return of_model(next(_key(key) for key in made.keys if key["kid"] == made.kid), status=201, exclude_none=True)


async def rotate_keys(keyturn: Keyturn, request: Request) -> Answer:
    """Make a key in the place of all others of its use, which retire when their last token is over.

    Nobody is signed out. The answer comes at once, and the list of keys shows the progress. A repeated call, while the
    new key is only published, makes no other. With `master`, all keys are sealed under the present master secret.
    """
    session = await administrator(keyturn, request, changes=True)
    body = request.content(KeyRotation)
    by = request.by("administrator", session.user_id)
    if body.use != "master":
        return _listed((await keyturn.key_changes.rotate(body.use, body.algorithm, body.bits, by=by)).keys)
    if body.algorithm or body.bits:
        raise InvalidRequest("algorithm", description="algorithm and bits are for access keys.")
    await keyturn.key_rotation.rewrap(by=by)
    return _listed(await keyturn.keys.list())


async def retire_key(keyturn: Keyturn, request: Request) -> Answer:
    """Retire a key at once: within two seconds what it made is refused everywhere.

    The sessions under a refresh key end. Where they are many, this goes on after the answer; a repeated call ends the
    rest, if the instance stopped meanwhile.
    """
    session = await administrator(keyturn, request, changes=True)
    kid = request.identifiers["kid"]
    if not _KID.fullmatch(kid):
        raise NotFound("not the form of a key's id")
    done = await keyturn.key_changes.begin_retirement(kid, by=request.by("administrator", session.user_id))
    return _listed(done.keys)


async def sign_everyone_out(keyturn: Keyturn, request: Request) -> Answer:
    """End all sessions of all users by one act on the keys, also the caller's own.

    The process that answers refuses all tokens made so far from its answer on. Every other one does so within two
    seconds, and mostly within one. Refresh tokens are refused with the reason `signed_out_everywhere`. New sign-ins
    work at once.
    """
    session = await administrator(keyturn, request, changes=True)
    done = await keyturn.key_changes.sign_everyone_out(by=request.by("administrator", session.user_id))
    return of_model(SignedOutAnswer(access_kid=done.access_kid, refresh_kid=done.refresh_kid))


def _listed(keys: Any) -> Answer:
    return of_model(KeysAnswer(items=[_key(key) for key in keys]), exclude_none=True)


def _key(key: Mapping[str, Any]) -> KeyAnswer:
    return KeyAnswer(**{name: key[name] for name in KeyAnswer.model_fields})


_CHANGING = (*CHANGING, Conflict)

ENDPOINTS = (
    Endpoint("GET", "/admin/keys", list_keys, tag="admin", credentials="bearer", model=KeysAnswer, refusals=READING),
    Endpoint(
        "POST",
        "/admin/keys",
        generate_key,
        tag="admin",
        credentials="bearer",
        body=NewKey,
        status=201,
        model=KeyAnswer,
        refusals=_CHANGING,
    ),
    Endpoint(
        "POST",
        "/admin/keys/rotate",
        rotate_keys,
        tag="admin",
        credentials="bearer",
        body=KeyRotation,
        model=KeysAnswer,
        refusals=_CHANGING,
    ),
    Endpoint(
        "POST",
        "/admin/keys/{kid}/retire",
        retire_key,
        tag="admin",
        credentials="bearer",
        model=KeysAnswer,
        refusals=(*_CHANGING, NotFound),
    ),
    Endpoint(
        "POST",
        "/admin/sign-everyone-out",
        sign_everyone_out,
        tag="admin",
        credentials="bearer",
        model=SignedOutAnswer,
        refusals=_CHANGING,
    ),
)
