"""/.well-known: the public keys."""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from ..http.answers import Answer, of_model
from ..http.documentation import word
from ..http.endpoints import Endpoint
from ..http.request import Request
from ..keyturn import Keyturn
from ..settings import Algorithm


class PublicKey(BaseModel):
    """A JSON Web Key (RFC 7517 section 4). Take no notice of members and keys that you do not know."""

    kid: Annotated[str, Field(description="Its RFC 7638 thumbprint; the `kid` in the header of a token.")]
    kty: Annotated[str, word("RFC 7518 section 6.1.", "EC", "RSA", "OKP")]
    use: Annotated[str, word("RFC 7517 section 4.2.", "sig")]
    alg: Annotated[str, word("RFC 7517 section 4.4.", *(name for name in get_args(Algorithm) if name != "HS256"))]
    key_ops: list[str]
    crv: Annotated[str | SkipJsonSchema[None], Field(description="EC and OKP: the curve.")] = None
    x: Annotated[str | SkipJsonSchema[None], Field(description="EC and OKP: base64url.")] = None
    y: Annotated[str | SkipJsonSchema[None], Field(description="EC: base64url.")] = None
    n: Annotated[str | SkipJsonSchema[None], Field(description="RSA: the modulus, base64url.")] = None
    e: Annotated[str | SkipJsonSchema[None], Field(description="RSA: the exponent, base64url.")] = None


class KeySetAnswer(BaseModel):
    """A JSON Web Key Set (RFC 7517 section 5). Empty with HS256: symmetric keys are never published."""

    keys: list[PublicKey]


async def jwks(keyturn: Keyturn, _request: Request) -> Answer:
    """Get the public keys of access tokens. A new key is published here a minute before it signs."""
    key_set = KeySetAnswer.model_validate(keyturn.keys.jwks())
    return of_model(key_set, [(b"cache-control", b"public, max-age=30")], exclude_none=True)


ENDPOINTS = (
    Endpoint(
        "GET",
        "/.well-known/jwks.json",
        jwks,
        tag="well-known",
        model=KeySetAnswer,
        response_headers={"Cache-Control": {"schema": {"type": "string"}, "description": "RFC 9111: 30 seconds."}},
    ),
)
