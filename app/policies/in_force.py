"""The policies in the table and in force: read by each process, followed by the pulse, and changed.

A change writes the row, an event for each member, and another version in the pulse, all in one transaction. Every
process reads the pulse twice a second with the fence. If the version differs, the process reads the table again.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import replace
from datetime import datetime
from time import monotonic
from typing import Any

from sqlalchemy import insert, outerjoin, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ..actors import Actor
from ..errors import NotFound, TemporarilyUnavailable
from ..events.audit import Event, record
from ..storage.copies import Copy
from ..storage.database import Database
from ..storage.tables import Policy as Row
from ..storage.tables import Pulse
from ..storage.tasks import own_task
from .bounds import Bounds
from .members import SETTINGS, Values, shown
from .policy import Policy
from .stored import Stored

GLOBAL = "global"
"""The scope of the policy of all sessions. Each client will have a scope of its own, which is one row more."""

_MOST_DETAIL = 64  # characters of an event's detail: the most that the column takes


class ChangedMeanwhileError(Exception):
    """Another change of the policy came first."""


class Policies:
    """The policy in force in this process, and the table that it comes from."""

    def __init__(
        self, db: Database, first: Policy, *, cookies: bool = True, given: Collection[str] = frozenset()
    ) -> None:
        """Until `load` is called, the policy of the settings is in force.

        Args:
            db: the database.
            first: the policy of the settings: the ceiling, and the values that no row sets.
            cookies: whether this deployment has cookies.
            given: the names of the settings that the operator gave; the other values are Keyturn's defaults.
        """
        self._db = db
        self.first = first
        """The policy of the settings. The very object is in force while no row makes it stricter."""
        self._bounds = Bounds(first, cookies=cookies)
        self._given = given
        self._in_force: Policy | None = first
        self._copy = Copy(self.load, "policies_not_read")

    @property
    def in_force(self) -> Policy:
        """The policy of all sessions, now.

        Raises:
            TemporarilyUnavailable: this process knows that its policy is old, and can't read the new one.
        """
        if self._in_force is None:
            raise TemporarilyUnavailable("no policy in force")
        return self._in_force

    # -- reading

    async def load(self) -> None:
        """Reads the table. The connection is the one of the fence, so that no storm of refreshes delays a policy.

        Raises:
            TemporarilyUnavailable: the database is away.
        """
        began = monotonic()
        # The version comes from the same statement as the row, and so from the same snapshot.
        query = select(Pulse.policies.label("version"), Row.__table__).select_from(
            outerjoin(Pulse, Row, Row.scope == GLOBAL)
        )
        async with self._db.watch_connection() as connection:
            row = (await connection.execute(query)).mappings().one()
        policy = self._bounds.cut(_values(row))
        self._in_force = self.first if policy == self.first else policy
        self._copy.was_read(row["version"], began)

    def follow(self, version: int, *, began: float) -> None:
        """Takes a reading of the pulse, and reads the table again if the version of the policies has changed.

        A process that has known for `READ_BY_ALL` that its policy is old goes by none: under the old one it could
        refresh a session that the new one has ended.

        Args:
            version: the version of the policies in the pulse.
            began: when the reading began, in seconds of the monotonic clock.
        """
        if self._copy.follow(version, began) == "too old":
            self._in_force = None

    @own_task
    async def rows(self) -> list[Stored]:
        """The policies of all scopes, as the table has them now: the global one first, with or without a row.

        Raises:
            TemporarilyUnavailable: the database is away.
        """
        async with self._db.look(hot_path=False) as connection:
            rows = (await connection.execute(select(Row.__table__).order_by(Row.scope))).mappings().all()
        found = {row["scope"]: self._stored(row["scope"], row) for row in rows}
        first = found.pop(GLOBAL, None) or self._stored(GLOBAL, {})
        return [first, *found.values()]

    async def find(self, scope: str) -> Stored:
        """The policy of a scope, as the table has it now.

        Raises:
            NotFound: there is no such scope.
            TemporarilyUnavailable: the database is away.
        """
        _check_scope(scope)
        return next(row for row in await self.rows() if row.scope == scope)

    def _stored(self, scope: str, row: Any) -> Stored:
        return Stored(scope, row.get("changed_at"), _values(row), self._bounds, self._given)

    # -- changing

    @own_task
    async def change(self, scope: str, values: Values, *, by: Actor, seen: Stored | None = None) -> Stored:
        """Changes members of a policy. It is in force on each instance within a second, and at once for live sessions.

        A shorter lifetime holds for sessions that began under a longer one. A longer one lengthens no session, because
        its row has what it was promised. Members that `values` does not name stay as they are.

        Args:
            scope: the scope of the policy.
            values: the new values of some members. None: the value of the settings.
            by: the actor.
            seen: the policy that the caller has prepared the change for. None: any will do.

        Returns:
            The policy after the change.

        Raises:
            NotFound: there is no such scope.
            InvalidRequest: a value is laxer than the settings, or does not go with another member.
            ChangedMeanwhileError: the policy is no longer the one that was seen. Nothing has changed.
            TemporarilyUnavailable: the database is away. The policy has changed or not: ask again.
        """
        _check_scope(scope)
        async with self._db.begin() as tx:
            now = await self._changing(tx)
            found = await tx.execute(select(Row.__table__).where(Row.scope == scope))
            row: Any = found.mappings().one_or_none()
            before = self._stored(scope, row or {})
            if seen is not None and before.values != seen.values:
                raise ChangedMeanwhileError
            after = before.changed(values)
            changed = [name for name in SETTINGS if after.values.get(name) != before.values.get(name)]
            if changed:
                written = {name: after.values.get(name) for name in changed}
                if "scopes" in written:
                    written["scopes"] = shown(written["scopes"])
                if row:
                    await tx.execute(update(Row).where(Row.scope == scope).values(**written, changed_at=now))
                else:
                    await tx.execute(insert(Row).values(scope=scope, **written, changed_at=now))
                # A random number, as for the keys: a count would come a second time after a restore.
                await tx.execute(update(Pulse).values(policies=secrets.randbits(62)))
                events = [Event("policy_changed", detail=_detail(name, after.values.get(name))) for name in changed]
                await record(tx, now, by, events)
        return replace(after, changed_at=now) if changed else before

    async def _changing(self, tx: AsyncConnection) -> datetime:
        """Begins a change, one at a time over all processes, so that a rule sees both of two members. Returns the time.

        On SQLite, the transaction holds the write lock already.
        """
        await tx.execute(select(Pulse.id).with_for_update())
        now: datetime = (await tx.execute(select(self._db.now()))).scalar_one()
        return now


def _check_scope(scope: str) -> None:
    if scope != GLOBAL:
        raise NotFound("no such scope", description=f"There is no such scope. There is one: {GLOBAL}.")


def _values(row: Any) -> Values:
    """The values that a row of the table sets, in the types of a policy."""
    values = {name: row[name] for name in SETTINGS if row.get(name) is not None}
    if "scopes" in values:
        values["scopes"] = frozenset(values["scopes"].split())
    return values


def _detail(member: str, value: Any) -> str:
    """The detail of an event: the member and its new value, cut to what the column takes."""
    text = f"{member} unset" if value is None else f"{member}={str(shown(value)).lower()}"
    return text if len(text) <= _MOST_DETAIL else f"{text[: _MOST_DETAIL - 1]}…"
