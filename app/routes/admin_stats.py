"""/admin/stats: users, live sessions and refreshes in numbers."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, Field

from ..http.answers import Answer, of_model
from ..http.endpoints import Endpoint
from ..http.request import Request
from ..keyturn import Keyturn
from ..sessions.statistics import MOST
from .administration import READING, administrator


class UserNumbers(BaseModel):
    """The accounts."""

    enabled: int
    disabled: int


class LiveSessions(BaseModel):
    """The live sessions of one client."""

    client_id: str
    live: int


class RefreshNumbers(BaseModel):
    """The refreshes of the process that answers, since its start. Each process counts its own."""

    since: datetime
    rotated: Annotated[int, Field(description="Got the next tokens.")]
    retried: Annotated[int, Field(description="Got the same answer again.")]
    reuse_detected: Annotated[int, Field(description="Were a reuse, and ended their session.")]
    refused: Annotated[int, Field(description="Were refused for another reason.")]
    unavailable: Annotated[int, Field(description="Were answered 503.")]


class StatsAnswer(BaseModel):
    """The numbers of users and live sessions, and of the refreshes of this process."""

    users: UserNumbers
    sessions: Annotated[list[LiveSessions], Field(description="By client, those with the most first.")]
    complete: Annotated[
        bool, Field(description=f"False if the counting of users or sessions stopped at {MOST}: there are more.")
    ]
    refreshes: RefreshNumbers


async def stats(keyturn: Keyturn, request: Request) -> Answer:
    """Count users and live sessions, and tell of the refreshes that this process answered."""
    await administrator(keyturn, request)
    numbers, refreshes = await keyturn.statistics.count(), keyturn.rotation.outcomes
    return of_model(
        StatsAnswer(
            users=UserNumbers(enabled=numbers.enabled, disabled=numbers.disabled),
            sessions=[LiveSessions(client_id=client, live=live) for client, live in numbers.live.items()],
            complete=numbers.complete,
            refreshes=RefreshNumbers(
                since=refreshes.since,
                rotated=refreshes.rotated,
                retried=refreshes.retried,
                reuse_detected=refreshes.reuse_detected,
                refused=refreshes.refused,
                unavailable=refreshes.unavailable,
            ),
        )
    )


ENDPOINTS = (
    Endpoint(
        "GET",
        "/admin/stats",
        stats,
        tag="admin",
        credentials="bearer",
        model=StatsAnswer,
        refusals=READING,
    ),
)
