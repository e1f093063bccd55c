"""/healthz and /readyz, for programs that watch the process."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel

from ..http.answers import Answer, of_model
from ..http.documentation import HEADERS, word
from ..http.endpoints import Endpoint
from ..http.request import Request
from ..keyturn import Keyturn
from ..revocation.rebuild import CacheState

ReadyState = Literal["ready", "degraded", "not ready"]

PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
"""The paths that programs ask all the time. Lines about their good answers would hide the others in the log."""


class Health(BaseModel):
    """The process answers."""

    status: Annotated[Literal["ok"], word("The process.", "ok")]


class Readiness(BaseModel):
    """The state of each part. If Redis is away, Keyturn is still ready: the database answers in its place."""

    status: Annotated[ReadyState, word("The whole.", *get_args(ReadyState))]
    database: Annotated[Literal["ok", "away"], word("Postgres, or the file of SQLite.", "ok", "away")]
    cache: Annotated[
        CacheState,
        word(
            "Redis, as this process sees it. In every state but `complete`, the database answers in its place.",
            *get_args(CacheState),
        ),
    ]


async def healthz(_keyturn: Keyturn, _request: Request) -> Answer:
    """Say that the process is alive."""
    return of_model(Health(status="ok"))


async def readyz(keyturn: Keyturn, _request: Request) -> Answer:
    """Say whether the process may take traffic."""
    # Answer from memory, so that a client that asks without pause takes nothing from other clients.
    cache = keyturn.revocations.rebuild.cache
    if not keyturn.revocations.fence.database_answers():
        readiness = Readiness(status="not ready", database="away", cache=cache)
        return of_model(readiness, [(b"retry-after", b"1")], status=503)
    status: Literal["ready", "degraded"] = "ready" if cache in {"complete", "none"} else "degraded"
    return of_model(Readiness(status=status, database="ok", cache=cache))


ENDPOINTS = (
    Endpoint("GET", "/healthz", healthz, tag="health", model=Health),
    Endpoint(
        "GET",
        "/readyz",
        readyz,
        tag="health",
        model=Readiness,
        responses={503: {"model": Readiness, "description": "The database is away.", "headers": HEADERS[503]}},
    ),
)
