"""/admin/federation/{name}/check: how an issuer answers now, and the verdict on a token. The twin of the command."""

from __future__ import annotations

import asyncio
from typing import Annotated

from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from ..errors import NotFound, TemporarilyUnavailable
from ..federation.unverified_tokens import MOST_BYTES
from ..http.answers import Answer, of_model
from ..http.endpoints import Endpoint
from ..http.examples import like
from ..http.request import Request
from ..keyturn import Keyturn
from .administration import CHANGING, administrator
from .models import RequestBody


class IssuerCheck(RequestBody):
    """The question about an issuer, with a token to judge or without one."""

    model_config = like(token="header.claims.signature")  # noqa: S106  # an example

    token: Annotated[
        str | None, Field(max_length=MOST_BYTES, repr=False, description="A token to judge. Nothing is done with it.")
    ] = None


class IssuerKey(BaseModel):
    """A key of the issuer."""

    kid: str
    kty: str | SkipJsonSchema[None] = None
    bits: int | SkipJsonSchema[None] = None
    left_out: Annotated[
        str | SkipJsonSchema[None], Field(description="Why it verifies nothing. Absent if it does.")
    ] = None


class TokenVerdict(BaseModel):
    """The verdict on the token."""

    acceptable: Annotated[
        bool | SkipJsonSchema[None], Field(description="Absent if the issuer's keys can't be had now.")
    ] = None
    word: Annotated[str | SkipJsonSchema[None], Field(description="The word of the refusal, as the log has it.")] = None
    sentence: Annotated[str, Field(examples=["It would be accepted."])]


class IssuerCheckAnswer(BaseModel):
    """How the issuer answers, as this instance sees it now."""

    reachable: Annotated[bool, Field(description="Whether its key set can be read and used.")]
    failure: Annotated[str | SkipJsonSchema[None], Field(description="Why not.")] = None
    keys: list[IssuerKey]
    api_failure: Annotated[
        str | SkipJsonSchema[None],
        Field(description="Why its API for sessions can't be called. Absent if it can, or has no use here."),
    ] = None
    token: TokenVerdict | SkipJsonSchema[None] = None


async def check_issuer(keyturn: Keyturn, request: Request) -> Answer:
    """Ask an issuer for its keys now, and judge a token. Nothing changes, and no answer holds a part of the token."""
    await administrator(keyturn, request, changes=True)
    asked, name = request.content(IssuerCheck), request.identifiers["name"]
    # Both at once: each may take as long as a request to the issuer may.
    [found], token = await asyncio.gather(keyturn.diagnosis.conditions(name), _judged(keyturn, asked.token, name))
    keys = [IssuerKey(kid=key.kid, kty=key.kty, bits=key.bits, left_out=key.left_out or None) for key in found.keys]
    answer = IssuerCheckAnswer(
        reachable=not found.failure,
        failure=found.failure or None,
        keys=keys,
        api_failure=found.api or None,
        token=token,
    )
    return of_model(answer, exclude_none=True)


async def _judged(keyturn: Keyturn, token: str | None, name: str) -> TokenVerdict | None:
    if token is None:
        return None
    try:
        verdict = await keyturn.diagnosis.judge(token, name)
    except TemporarilyUnavailable:
        return TokenVerdict(sentence="Nothing can be said about it: the issuer's keys can't be had now.")
    return TokenVerdict(acceptable=verdict.word is None, word=verdict.word, sentence=verdict.sentence)


ENDPOINTS = (
    Endpoint(
        "POST",
        "/admin/federation/{name}/check",
        check_issuer,
        tag="admin",
        credentials="bearer",
        body=IssuerCheck,
        model=IssuerCheckAnswer,
        refusals=(*CHANGING, NotFound),
    ),
)
