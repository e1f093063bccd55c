"""/healthz and /readyz, for those who watch the process."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel

from ..keyturn import Keyturn
from ..revocation.rebuild import CacheState
from .answers import HEADERS, word

router = APIRouter(tags=["health"])


ReadyState = Literal["ready", "degraded", "not ready"]


class Health(BaseModel):
    """The process answers."""

    status: Annotated[Literal["ok"], word("The process.", "ok")]


class Readiness(BaseModel):
    """Each part by name. Without its cache Keyturn is ready, with the database answering in its place."""

    status: Annotated[ReadyState, word("The whole.", *get_args(ReadyState))]
    database: Annotated[Literal["ok", "away"], word("Postgres, or the file of SQLite.", "ok", "away")]
    cache: Annotated[CacheState, word("Redis.", *get_args(CacheState))]


async def _keyturn(request: Request) -> Keyturn:
    parts: Keyturn = request.app.state.keyturn
    return parts


@router.get("/healthz")
@router.api_route("/healthz", methods=["GET", "HEAD"], include_in_schema=False)
async def healthz() -> Health:
    """Alive."""
    return Health(status="ok")


@router.get(
    "/readyz",
    responses={503: {"model": Readiness, "description": "The database is away.", "headers": HEADERS[503]}},
)
@router.api_route("/readyz", methods=["GET", "HEAD"], include_in_schema=False)
async def readyz(response: Response, keyturn: Annotated[Keyturn, Depends(_keyturn)]) -> Readiness:
    """May take traffic."""
    # What the process knows anyway: who asks this without pause takes nothing from those who sign in and verify.
    cache = keyturn.revocations.rebuild.cache
    if not keyturn.revocations.fence.database_answers():
        response.status_code = 503
        response.headers["retry-after"] = "1"
        return Readiness(status="not ready", database="away", cache=cache)
    status: Literal["ready", "degraded"] = "ready" if cache in {"complete", "none"} else "degraded"
    return Readiness(status=status, database="ok", cache=cache)
