"""Events: each is written in the transaction of the change that it describes.

So an event exists if and only if its change was committed. A refresh writes none, so that storage does not grow with
the number of refreshes (guarantee 5).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from ..actors import Actor
from ..storage.tables import Event as Row
from ..storage.tables import uuid7

EventKind = Literal[
    "user_created",
    "user_disabled",
    "user_enabled",
    "user_erased",
    "registration_repeated",
    "role_changed",
    "claims_changed",
    "password_changed",
    "password_reset",
    "session_started",
    "session_moved",
    "session_renamed",
    "session_reauthenticated",
    "session_ended",
    "sessions_deleted",
    "signed_out_everywhere",
    "database_restored",
    "policy_changed",
    "key_generated",
    "key_imported",
    "key_exported",
    "key_retired",
    "keys_rewrapped",
    "identity_linked",
    "identity_unlinked",
    "email_verified",
    "issuer_changed",
    "issuer_removed",
    "upstream_revoked",
    "upstream_given_up",
    "upstream_ordered_anew",
]
"""The kinds of events."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its kind, the user or session that it is about, and the reason. `record` adds actor and moment."""

    what: EventKind
    user_id: UUID | None = None
    session_id: UUID | None = None
    client_id: str | None = None
    reason: str | None = None
    """Why a session ended."""
    detail: str | None = None
    """The id of a key, a new role, a member of a policy with its new value, the number of sessions or keys, or the new
    things about a session that moved."""


async def record(tx: AsyncConnection, now: datetime, by: Actor, events: Iterable[Event]) -> None:
    """Writes events of one actor within a transaction.

    Args:
        tx: the transaction of the change.
        now: the database's clock, as a statement of that transaction read it.
        by: the actor. An actor of the kind `user` without an id is the user that the event is about.
        events: the events of the transaction.
    """
    await record_each(tx, now, ((by, event) for event in events))


async def record_each(tx: AsyncConnection, now: datetime, acts: Iterable[tuple[Actor, Event]]) -> None:
    """As `record`, where each event has an actor of its own."""
    rows = [
        (
            uuid7(),
            now,
            event.what,
            by.kind,
            by.id or (str(event.user_id) if by.kind == "user" and event.user_id else None),
            event.user_id,
            event.session_id,
            event.client_id,
            by.address,
            by.request_id,
            event.reason,
            event.detail,
        )
        for by, event in acts
    ]
    if not rows:
        return
    if tx.dialect.name == "postgresql":
        # One statement, whatever their number: a user may have a hundred thousand sessions.
        await tx.exec_driver_sql(_RECORD_ON_POSTGRES, tuple(map(list, zip(*rows, strict=True))))
    else:
        await tx.execute(insert(Row), [dict(zip(_COLUMNS, row, strict=True)) for row in rows])


_COLUMNS = (
    *("id", "at", "event", "actor", "actor_id", "user_id", "session_id", "client_id"),
    *("address", "request_id", "reason", "detail"),
)
_RECORD_ON_POSTGRES = f"""
INSERT INTO events ({", ".join(_COLUMNS)})
SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::text[], $5::text[], $6::uuid[], $7::uuid[],
  $8::text[], $9::text[], $10::text[], $11::text[], $12::text[])
"""  # noqa: S608  # only names of columns are put in
