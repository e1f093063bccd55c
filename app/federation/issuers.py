"""The issuers in force and their table: read by each process, followed by the pulse, and changed.

A change writes the row, its events and another version in the pulse, all in one transaction. Every process reads the
pulse twice a second with the fence. If the version differs, the process reads the table again. A process reads the file
of issuers once, at its start.
"""

from __future__ import annotations

import asyncio
import json
import secrets as random
from collections.abc import Mapping
from datetime import datetime
from time import monotonic
from types import MappingProxyType
from typing import Any

from sqlalchemy import delete, insert, outerjoin, select, true, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ..actors import Actor
from ..errors import Conflict, InvalidRequest, NotFound, TemporarilyUnavailable
from ..events.audit import Event, record
from ..log import get_logger
from ..settings import Settings
from ..storage.copies import Copy
from ..storage.database import Database
from ..storage.tables import Issuer as Row
from ..storage.tables import Pulse
from ..storage.tasks import own_task
from ..tokens.key_seal import KeySeal
from ..users.administrators import check_still
from . import issuer_file
from .issuer import Configured, Issuer, IssuerSecrets
from .issuer_events import events_of
from .issuer_rows import Listed, by_administrator, changed, listed, read
from .issuer_values import NAME

MOST_ISSUERS = 100
"""Rows of the table: each process reads them all within a second after a change."""

_log = get_logger()


class Issuers:
    """The issuers in force in this process, and the table that most of them come from."""

    def __init__(self, db: Database, seal: KeySeal, settings: Settings) -> None:
        """Reads the file of issuers. The table is read by `load`, and until then no issuer is in force.

        Raises:
            ConfigurationError: the file can't be read, or has something that is not valid.
        """
        self._db = db
        self._seal = seal
        path = settings.federation_file
        self._of_file: Mapping[str, Configured] = {} if path is None else issuer_file.read(path)
        self._in_force: Mapping[str, Configured] | None = None
        self._state: list[Any] = []  # the rows from which they were made
        self._causes: dict[str, str] = {}  # why an issuer is not in force, or not with its secrets
        self._told: dict[str, str] = {}  # those of the causes that the log has
        self._copy = Copy(self.load, "issuers_not_read")
        self._one_load = asyncio.Lock()  # so that no older reading of the table takes the place of a newer one

    @property
    def in_force(self) -> Mapping[str, Configured]:
        """The issuers by their names, now.

        Raises:
            TemporarilyUnavailable: this process has not read the table yet. Or it knows that its issuers are old, and
                can't read the new ones: an issuer that was removed must vouch for nobody.
        """
        if self._in_force is None:
            raise TemporarilyUnavailable("no issuers in force")
        return self._in_force

    def of(self, iss: str) -> Configured | None:
        """The issuer whose tokens have exactly this `iss`, or None if there is none.

        Raises:
            TemporarilyUnavailable: as `in_force`.
        """
        return next((each for each in self.in_force.values() if iss in each.issuer.all_issuers), None)

    def named(self, name: str) -> Configured:
        """The issuer of this name.

        Raises:
            NotFound: there is none in force.
            TemporarilyUnavailable: as `in_force`.
        """
        found = self.in_force.get(name)
        if found is None:
            raise NotFound("no such issuer")
        return found

    # -- reading

    async def load(self) -> None:
        """Reads the table. The connection is the one of the fence, so that no storm of requests delays a change.

        Raises:
            TemporarilyUnavailable: the database is away.
        """
        async with self._one_load:
            began = monotonic()
            # The version comes from the same statement as the rows, and so from the same snapshot.
            query = select(Pulse.issuers.label("version"), Row.__table__).select_from(outerjoin(Pulse, Row, true()))
            async with self._db.watch_connection() as connection:
                rows = (await connection.execute(query.order_by(Row.name))).all()
            found = listed([row for row in rows if row.name is not None], self._of_file, self._seal)
            # Compare the rows as they are: two mappings are equal in any order, and the order of roles counts.
            state = [(row.name, row.configuration, row.sealed) for row in rows]
            if self._in_force is None or state != self._state:  # else the objects stay, and what hangs on them
                in_force = {one.name: one.configured for one in found if one.status == "in_force" and one.configured}
                self._in_force, self._state = MappingProxyType(in_force), state
            self._causes = {each.name: each.status for each in found if each.status != "in_force"}
            self._causes |= {each.name: "secrets are lost" for each in found if each.secrets_are_lost}
            self._copy.was_read(rows[0].version, began)

    def follow(self, version: int, *, began: float) -> None:
        """Takes a reading of the pulse, and reads the table again if the version of the issuers has changed.

        Args:
            version: the version of the issuers in the pulse.
            began: when the reading began, in seconds of the monotonic clock.
        """
        if self._copy.follow(version, began) == "too old":
            self._in_force = None
        # Here, because no command follows the pulse: the log is for the process that serves.
        for name, cause in self._causes.items():
            if self._told.get(name) != cause:
                _log.warning("issuer_not_as_stored", issuer=name, cause=cause)
        self._told = self._causes

    @own_task
    async def rows(self) -> list[Listed]:
        """All issuers as file and table have them now, in force or not: first those of the file.

        Raises:
            TemporarilyUnavailable: the database is away.
        """
        async with self._db.look(hot_path=False) as connection:
            return listed(await _rows(connection), self._of_file, self._seal)

    async def find(self, name: str) -> Listed:
        """The issuer of this name, as file or table have it now.

        Raises:
            NotFound: there is none.
            TemporarilyUnavailable: the database is away.
        """
        found = next((each for each in await self.rows() if each.name == name), None)
        if found is None:
            raise NotFound("no such issuer")
        return found

    # -- changing

    def check_name(self, name: str) -> None:
        """Checks that a change may make or replace the issuer of this name.

        Raises:
            InvalidRequest: the name has not the form of one.
            Conflict: the name stands in the file, which only its operator changes.
        """
        if not NAME.fullmatch(name):
            raise InvalidRequest(
                "name of an issuer",
                description="name: must have 1 to 32 of a-z, 0-9 and -, and begin with a letter.",
            )
        if name in self._of_file:
            raise _in_the_file()

    @own_task
    async def put(
        self, name: str, issuer: Issuer, secrets: IssuerSecrets, *, by: Actor, seen: Configured | None = None
    ) -> Configured:
        """Adds an issuer, or replaces its members: in force on each instance within a second.

        Args:
            name: its name.
            issuer: all its members. A member that is not set has its default.
            secrets: the secrets to change. One that is not set stays, None removes it.
            by: the actor.
            seen: the issuer for which the caller has prepared the change. None: any will do.

        Returns:
            The issuer after the change.

        Raises:
            InvalidRequest: the name is malformed, another issuer would get the client secret, or the actor is an
                administrator, and the change is one for the command (see `by_administrator`).
            Conflict: the name stands in the file, another issuer has one of its `iss` values, there are too many, it is
                no longer the one that was seen, or its secrets can't be opened and are not given anew.
            AccessDenied: the actor is no administrator any more.
            TemporarilyUnavailable: the database is away. The issuer has changed or not: ask again.
        """
        self.check_name(name)
        async with self._db.begin() as tx:
            now = await self._changing(tx, by)
            rows = await _rows(tx)
            row = next((each for each in rows if each.name == name), None)
            self._check_others(issuer, [each for each in rows if each.name != name])
            before = None if row is None else read(row, self._seal)
            if by.kind == "administrator":
                issuer = by_administrator(name, issuer, before)
            if seen is not None and (before is None or seen != before.configured):
                raise Conflict("changed meanwhile", description="The issuer was changed meanwhile. Look at it again.")
            kept = IssuerSecrets() if before is None else before.kept(issuer, secrets)
            after = Configured(name=name, issuer=issuer, secrets=changed(kept, secrets))
            events = events_of(before, after)
            if events:
                await self._write(tx, after, now, new=row is None)
                await record(tx, now, by, events)
        return after

    @own_task
    async def remove(self, name: str, *, by: Actor) -> None:
        """Removes an issuer. Within a second no instance takes its tokens. Sessions that began by them go on.

        Raises:
            NotFound: the table has no such issuer.
            Conflict: the name stands in the file, and not in the table.
            AccessDenied: the actor is no administrator any more.
            TemporarilyUnavailable: the database is away. The issuer is removed or not: ask again.
        """
        async with self._db.begin() as tx:
            now = await self._changing(tx, by)
            removed = await tx.scalar(delete(Row).where(Row.name == name).returning(Row.name))
            if removed is None:
                raise _in_the_file() if name in self._of_file else NotFound("no such issuer")
            await tx.execute(update(Pulse).values(issuers=random.randbits(62)))
            await record(tx, now, by, [Event("issuer_removed", detail=name)])

    async def _changing(self, tx: AsyncConnection, by: Actor) -> datetime:
        """Begins a change, one at a time over all processes. Returns the time.

        The row of the pulse is the lock, as for policies. A rewrap of the master secret writes the same row first, so
        no row is sealed anew from an old reading.
        """
        await tx.execute(select(Pulse.id).with_for_update())
        await check_still(tx, by)
        now: datetime = (await tx.execute(select(self._db.now()))).scalar_one()
        return now

    def _check_others(self, issuer: Issuer, others: list[Any]) -> None:
        if len(others) >= MOST_ISSUERS:
            raise Conflict("too many issuers", description=f"There are {MOST_ISSUERS} issuers already.")
        for other in listed(others, self._of_file, self._seal):
            if other.configured and {*other.configured.issuer.all_issuers} & {*issuer.all_issuers}:
                raise Conflict("iss of another", description=f"{other.name} has one of these issuers already.")

    async def _write(self, tx: AsyncConnection, after: Configured, now: datetime, *, new: bool) -> None:
        configuration = after.issuer.model_dump_json(exclude_defaults=True)
        plain = {name: value.get_secret_value() for name, value in after.secrets if value is not None}
        sealed = self._seal.seal_secrets(json.dumps(plain).encode(), after.name, configuration) if plain else None
        row = {"configuration": configuration, "sealed": sealed, "changed_at": now}
        if new:
            await tx.execute(insert(Row).values(name=after.name, **row))
        else:
            await tx.execute(update(Row).where(Row.name == after.name).values(**row))
        # A random number, as for the keys: a count would come a second time after a restore.
        await tx.execute(update(Pulse).values(issuers=random.randbits(62)))


async def _rows(connection: AsyncConnection) -> list[Any]:
    return list((await connection.execute(select(Row.__table__).order_by(Row.name))).all())


def _in_the_file() -> Conflict:
    return Conflict(
        "in the file", description=f"The issuer stands in the file of {issuer_file.SETTING}: change it there."
    )
