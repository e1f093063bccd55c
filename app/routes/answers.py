"""Answers as FastAPI gives them, and how refusals stand in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, get_args

from fastapi import Response
from pydantic import BaseModel, Field, WithJsonSchema

from ..errors import (
    ContentTooLarge,
    HeaderFieldsTooLarge,
    InvalidRequest,
    Reason,
    Refusal,
    RequestTimeout,
    ServerError,
    UnsupportedMediaType,
)
from ..http.answers import Answer
from ..http.heads import UriTooLong


def _codes(of: type[Refusal]) -> Iterator[str]:
    for refusal in of.__subclasses__():
        yield refusal.error
        yield from _codes(refusal)


def word(description: str, *words: str) -> WithJsonSchema:
    """The schema of a word in an answer: a string, because an enum would break a client at the first word added."""
    listed = ", ".join(f"`{one}`" for one in words)
    return WithJsonSchema(
        {"type": "string", "description": f"{description} At present {listed}; later releases may add others."}
        | {"examples": list(words[:1])}
    )


class ErrorAnswer(BaseModel):  # not `Error`, which is a class of JavaScript and Java
    """Every refusal has this shape (RFC 6749 section 5.2)."""

    error: Annotated[str, word("A code of the standards, or of their style.", *sorted(set(_codes(Refusal))))]
    error_description: str = Field(description="A sentence for the developer.")
    reason: Annotated[
        str | None,
        word("Why the session or token is over; only for the holder of a genuine token.", *get_args(Reason)),
    ] = None


_CHALLENGE = {"WWW-Authenticate": {"schema": {"type": "string"}, "description": "RFC 6750 section 3."}}
HEADERS: dict[int, dict[str, Any]] = {
    401: _CHALLENGE,
    503: {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}},
}
REQUEST_ID = {
    "schema": {"type": "string"},
    "description": "The `X-Request-Id` of the request, or a new one. The log has it too.",
}

EVERYWHERE = (InvalidRequest, UriTooLong, HeaderFieldsTooLarge, ServerError)
"""What the edge may answer to any request."""

WITH_BODY = (RequestTimeout, ContentTooLarge, UnsupportedMediaType)
"""What the edge may answer besides to one that has a body."""


def refusals(*classes: type[Refusal]) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of an endpoint that may raise these."""
    return {
        refused.status: {
            "model": ErrorAnswer,
            "description": refused.sentence,
            "headers": _CHALLENGE if refused.standard_challenge else HEADERS.get(refused.status, {}),
        }
        for refused in classes
    }


def response(answer: Answer) -> Response:
    """An answer as FastAPI's endpoints and handlers give it."""
    status, headers, body = answer
    given = Response(body, status)
    given.raw_headers = headers
    return given


def documented(document: dict[str, Any]) -> dict[str, Any]:
    """FastAPI's OpenAPI document as the service is.

    Refusals have the one shape, there is no 422, none is left out. Each operation says whether it takes a token: tools
    read silence as a mistake.
    """
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    document["components"]["headers"] = {"RequestId": REQUEST_ID}
    refused = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}}
    for path in document["paths"].values():
        for operation in path.values():
            operation.setdefault("security", [])
            responses = operation["responses"]
            responses.pop("422", None)
            for refusal in EVERYWHERE + (WITH_BODY if "requestBody" in operation else ()):
                responses.setdefault(str(refusal.status), {"description": refusal.sentence, "content": refused})
            for answer in responses.values():
                answer.setdefault("headers", {})["X-Request-Id"] = {"$ref": "#/components/headers/RequestId"}
            operation["responses"] = dict(sorted(responses.items()))
    return document
