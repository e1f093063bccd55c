"""Statistics: how many users there are, and how many live sessions of each client."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import and_, case, func, literal, select, union_all

from ..policies import Policies
from ..storage.database import Database
from ..storage.tables import Key, Session, User
from ..storage.tasks import own_task
from .filters import its_key, not_over

MOST = 1_000_000
"""How many users and how many live sessions are counted, at most.

The time rises with the rows that are read, and this bound holds it below the time limit of a statement.
"""


class Numbers(NamedTuple):
    """The numbers of one moment."""

    enabled: int
    """Users who may sign in."""
    disabled: int
    live: Mapping[str, int]
    """The live sessions of each client, those with the most first."""
    complete: bool
    """Whether all were counted: there were fewer than `MOST` of each."""


class Statistics:
    """Counts what the database has."""

    def __init__(self, db: Database, policies: Policies) -> None:
        """Under the policy in force, a session counts as live or over."""
        self._db = db
        self._policies = policies

    @own_task
    async def count(self) -> Numbers:
        """The numbers, by one statement after the clock's, and so of one moment.

        The statement reads each user, and each row of a session that has not ended, once. So the time rises with their
        number: a million sessions take a second or two, whatever the number of clients.

        Raises:
            TemporarilyUnavailable: the database is away, or needed too long.
        """
        async with self._db.look(hot_path=False) as connection:
            now = await connection.scalar(select(self._db.now()))
            assert now is not None
            rows = (await connection.execute(self._counted(now))).all()
        of_users = {row.name: row.number for row in rows if row.what == "user"}
        of_sessions = {row.name: row.number for row in rows if row.what == "session"}
        return Numbers(
            enabled=of_users.get("enabled", 0),
            disabled=of_users.get("disabled", 0),
            live=dict(sorted(of_sessions.items(), key=lambda client: (-client[1], client[0]))),
            complete=max(sum(of_users.values()), sum(of_sessions.values())) < MOST,
        )

    def _counted(self, now: datetime) -> Any:
        users = select(User.disabled_at).limit(MOST).subquery()
        # A join, and not a look for the key of each row (`lives`): it takes a quarter of the time.
        live = select(Session.client_id).join(Key, and_(*its_key(now))).where(*not_over(now, self._policies.in_force))
        sessions = live.limit(MOST).subquery()
        state = case((users.c.disabled_at.is_(None), "enabled"), else_="disabled")
        return union_all(
            select(literal("user").label("what"), state.label("name"), func.count().label("number")).group_by(state),
            select(literal("session"), sessions.c.client_id, func.count()).group_by(sessions.c.client_id),
        )
