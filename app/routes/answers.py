"""Answers as FastAPI gives them, and how refusals stand in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from fastapi import Response
from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from ..edge import Answer, UriTooLong
from ..errors import (
    ContentTooLarge,
    HeaderFieldsTooLarge,
    InvalidRequest,
    Refusal,
    RequestTimeout,
    ServerError,
    UnsupportedMediaType,
)


class Error(BaseModel):
    """Every refusal has this shape (RFC 6749 section 5.2)."""

    error: str = Field(description="A code of the standards.", examples=["invalid_grant"])
    error_description: str = Field(description="A sentence for the developer.")
    reason: str | SkipJsonSchema[None] = Field(
        default=None,
        description="Why the session or token is over; only for the holder of a genuine token.",
        examples=["logout"],
    )


HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"schema": {"type": "string"}, "description": "RFC 6750 section 3."}},
    503: {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}},
}

EVERYWHERE = (InvalidRequest, UriTooLong, HeaderFieldsTooLarge, ServerError)
"""What the edge may answer to any request."""

WITH_BODY = (RequestTimeout, ContentTooLarge, UnsupportedMediaType)
"""What the edge may answer besides to one that has a body."""


def refusals(*classes: type[Refusal]) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of an endpoint that may raise these."""
    return {
        refused.status: {"model": Error, "description": refused.sentence, "headers": HEADERS.get(refused.status, {})}
        for refused in classes
    }


def response(answer: Answer) -> Response:
    """An answer as FastAPI's endpoints and handlers give it."""
    status, headers, body = answer
    given = Response(body, status)
    given.raw_headers = headers
    return given


def documented(document: dict[str, Any]) -> dict[str, Any]:
    """FastAPI's OpenAPI document as the service is: refusals have the one shape, there is no 422, none is left out."""
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    refused = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    for path in document["paths"].values():
        for operation in path.values():
            responses = operation["responses"]
            responses.pop("422", None)
            for refusal in EVERYWHERE + (WITH_BODY if "requestBody" in operation else ()):
                responses.setdefault(str(refusal.status), {"description": refusal.sentence, "content": refused})
            operation["responses"] = dict(sorted(responses.items()))
    return document
