"""Marking sessions as ended: the statements, and the events that go with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, and_, case, false, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.dml import ReturningUpdate

from ..actors import Actor
from ..errors import Reason
from ..events.audit import Event, record_each
from ..metrics import SESSIONS_ENDED
from ..policies import Policy
from ..revocation.publishing import DIFFERS_ON_POSTGRES, FENCE_ON_POSTGRES, HOLD_ON_POSTGRES, Published, new_epoch
from ..storage.database import Database
from ..storage.tables import Session, uuid7
from .filters import not_signed_out

_ENDED = (
    Session.id,
    Session.user_id,
    Session.client_id,
    Session.generation,
    Session.rotated_at,
    Session.ended_at,
    Session.end_reason,
)

TIMEOUTS = {"idle_timeout", "absolute_timeout"}
"""The reasons of a session that nobody ended."""


def ends(
    db: Database, policy: Policy, reason: Reason | ColumnElement[str], *which: ColumnElement[bool]
) -> ReturningUpdate[Any]:
    """The statement that ends some sessions, for one reason or for one that depends on the row.

    The first reason stays:

    1. To end an ended session changes nothing.
    2. A deadline that has passed came first. Such a row is marked all the same: until their leeway is over, its access
       tokens would be good.
    3. A session that ended when everyone was signed out is left alone. Its key says why it is over, and its access
       tokens are refused by theirs.

    One reason goes before all: the sessions of an erased user get it, so that `Upkeep.gc` finds and deletes them.
    """
    now: ColumnElement[Any] = db.now()
    idle = db.earliest(Session.idle_expires_at, db.after(Session.rotated_at, policy.idle_lifetime))
    absolute = db.earliest(Session.absolute_expires_at, db.after(Session.created_at, policy.absolute_lifetime))
    deadline = db.earliest(idle, absolute)
    erased = isinstance(reason, str) and reason == "user_erased"
    late = false() if erased else deadline <= now
    over_by_key = [] if erased else [not_signed_out(now)]
    return (
        update(Session)
        .where(*which, Session.end_reason.is_(None), *over_by_key)
        .values(
            ended_at=case((late, deadline), else_=now),
            end_reason=case((and_(late, idle < absolute), "idle_timeout"), (late, "absolute_timeout"), else_=reason),
        )
        .returning(*_ENDED, now.label("now"))
    )


async def mark(
    tx: AsyncConnection,
    statement: ReturningUpdate[Any],
    actor_of: Callable[[UUID], Actor],
    parameters: Mapping[str, Sequence[UUID]] | None = None,
) -> Sequence[Any]:
    """Ends sessions by a statement of `ends`, each with its event; the rows of those that ended."""
    rows: Sequence[Any] = (await tx.execute(statement, parameters)).all()
    if rows:
        await record_each(tx, rows[0].now, ((actor_of(row.id), _event(row)) for row in rows))
    return rows


async def mark_logouts_on_postgres(
    db: Database, policy: Policy, actors: Mapping[UUID, Actor], published: Published
) -> Any:
    """Ends sessions for a logout, each with its event, and compares the fence: one statement in its own transaction.

    The statement begins after `Publishing.hold`, which goes with BEGIN.

    Returns:
        `ended` and `reasons`, the ids of those that ended, and why; `epoch`, the fence's; `fenced`, whether the fence
        has a new epoch.
    """
    columns = zip(*((uuid7(), by.kind, by.id, by.address, by.request_id) for by in actors.values()), strict=True)
    durations = policy.idle_lifetime, policy.absolute_lifetime
    fencing = published.server, list(published.epochs), new_epoch()
    (row,) = await db.fetch(_LOG_OUT, list(actors), *map(list, columns), *fencing, *durations, first=HOLD_ON_POSTGRES)
    return row


def count_ended(reasons: Iterable[Reason]) -> None:
    """Counts sessions that ended, for metrics. Call it after the commit."""
    for reason in reasons:
        SESSIONS_ENDED.count(reason)


def _event(row: Any) -> Event:
    """The event of a session that ended."""
    return Event("session_ended", row.user_id, row.id, row.client_id, reason=row.end_reason)


def unended_of(user_id: UUID) -> Select[UUID]:
    """The sessions of a user that no one has ended, in the order of their ids, in which all transactions lock them.

    Some may be over by a deadline. The transaction that ends them marks these with it.
    """
    return select(Session.id).where(Session.user_id == user_id, Session.ended_at.is_(None)).order_by(Session.id)


def locked(*which: ColumnElement[bool]) -> ColumnElement[bool]:
    """Locks the rows in the order of their ids: so two transactions that end several never wait for each other."""
    return Session.id.in_(select(Session.id).where(*which).order_by(Session.id).with_for_update())


def lived(ended: Sequence[Any]) -> int:
    """How many of the ended sessions were not over before, by a deadline."""
    return sum(row.end_reason not in TIMEOUTS for row in ended)


# The same rules as `ends`, for a batch in which each session has an actor of its own. SKIP LOCKED, LATERAL and LIMIT as
# in a rotation.
_LOG_OUT = f"""
WITH batch AS (
  SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[])
    AS b(id, event_id, actor, actor_id, address, request_id)
  ORDER BY id LIMIT cardinality($1)
), hit AS MATERIALIZED (
  SELECT b.*, live.* FROM batch b CROSS JOIN LATERAL (
    SELECT least(s.idle_expires_at, s.rotated_at + $10::interval) AS idle,
      least(s.absolute_expires_at, s.created_at + $11::interval) AS absolute
    FROM sessions s WHERE s.id = b.id AND s.end_reason IS NULL FOR NO KEY UPDATE SKIP LOCKED
  ) live
), ended AS (
  UPDATE sessions s
  SET ended_at = least(hit.idle, hit.absolute, statement_timestamp()),
    end_reason = CASE WHEN least(hit.idle, hit.absolute) > statement_timestamp() THEN 'logout'
      WHEN hit.idle < hit.absolute THEN 'idle_timeout' ELSE 'absolute_timeout' END
  FROM hit WHERE s.id = hit.id
  RETURNING s.id, s.user_id, s.client_id, s.end_reason, hit.event_id, hit.actor, hit.actor_id, hit.address,
    hit.request_id
), recorded AS (
  INSERT INTO events (id, at, event, actor, actor_id, user_id, session_id, client_id, address, request_id, reason)
  SELECT event_id, statement_timestamp(), 'session_ended', actor,
    CASE WHEN actor = 'user' THEN coalesce(actor_id, user_id::text) ELSE actor_id END,
    user_id, id, client_id, address, request_id, end_reason
  FROM ended
), {FENCE_ON_POSTGRES.format(server="$7", epochs="$8", new="$9")}
SELECT epoch, {DIFFERS_ON_POSTGRES.format(server="$7", epochs="$8")} AS fenced, ARRAY(SELECT id FROM ended) AS ended,
  ARRAY(SELECT end_reason FROM ended) AS reasons
FROM cache_fence
"""  # noqa: S608  # only names of parameters are put in
