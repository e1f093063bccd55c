"""/.well-known: the public keys."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

router = APIRouter(prefix="/.well-known", tags=["well-known"])


class KeySetAnswer(BaseModel):
    """A JSON Web Key Set (RFC 7517 section 5). Empty with HS256: symmetric keys are never published."""

    keys: list[dict[str, Any]]


@router.get("/jwks.json")
@router.api_route("/jwks.json", methods=["GET", "HEAD"], include_in_schema=False)
async def jwks(request: Request, response: Response) -> KeySetAnswer:
    """The public keys of access tokens. A new key stands here a minute before it signs."""
    response.headers["cache-control"] = "public, max-age=30"
    return KeySetAnswer.model_validate(request.app.state.keyturn.keys.jwks())
