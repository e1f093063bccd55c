"""How refusals stand in the OpenAPI document: one schema, each status with its header fields."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from app.errors import Refusal


class Error(BaseModel):
    """Every refusal has this shape (RFC 6749 section 5.2)."""

    error: str = Field(description="A code of the standards.", examples=["invalid_grant"])
    error_description: str = Field(description="A sentence for the developer.")
    reason: str | None = Field(
        default=None, description="Why the session ended; only for the holder of a genuine token.", examples=["logout"]
    )


_HEADERS = {
    401: {"WWW-Authenticate": {"schema": {"type": "string"}, "description": "RFC 6750 section 3."}},
    403: {},
    503: {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}},
}

EVERYWHERE = (400, 408, 413, 415, 431, 500)


def refusals(*classes: type[Refusal]) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of an endpoint that may raise these."""
    return {
        refused.status: {"model": Error, "description": refused.sentence, "headers": _HEADERS.get(refused.status, {})}
        for refused in classes
    }
