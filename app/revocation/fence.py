"""The fence as this process reads it: which Redis server may be believed, under which epoch, and since when.

The fence is one row of the database. Every process reads it twice a second. A reading counts for `VOUCHES_FOR` from the
moment when it began, by the monotonic clock of the process.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any

from sqlalchemy import select

from ..errors import TemporarilyUnavailable
from ..metrics import EPOCHS
from ..settings import LEEWAY
from ..storage.database import Database
from ..storage.tables import CacheFence, Pulse
from ..storage.tasks import keep
from .lifetimes import LONGEST_STEP, STEP, VOUCHES_FOR
from .redis_server import Server

NEVER_CLAIMED = "none"
"""The epoch that the first migration writes. No process ever believed a server, so no ending needs to wait."""

READ_LIMIT = timedelta(milliseconds=400)
"""How long the database may take to answer a reading. A later answer still counts, from when the reading began."""

_GRACE = 0.05
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Fence:
    """A reading of the fence, with the moments (monotonic clock) when it began and when its epoch first arrived."""

    epoch: str
    server: str | None
    """The server that may be believed. None if there is none, or if this process does not believe the epoch."""
    began: float
    known_since: float
    vouches_from: int = 0
    """Seconds since 1970. If a token was issued earlier, the database may never have seen its session."""
    seen: dict[str, float] = field(default_factory=dict, compare=False, repr=False)
    """Sessions that the database showed as live under this epoch, and until when that counts (monotonic clock). All
    readings of one epoch share the dictionary."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A reading as other parts of the process get it. One statement reads the fence and the pulse."""

    began: float
    """When the reading began, in seconds of the monotonic clock."""
    now: datetime
    """The database's clock at the reading."""
    keys_version: int
    """The version number of the keys. If it differs from the one before, the keys have changed."""
    policies_version: int
    """The version number of the policies, likewise."""
    issuers_version: int
    """The version number of the issuers, likewise."""


def _ignore(_: Reading) -> None:
    pass


class FenceReader:
    """Reads the fence with the pulse, and keeps the last reading."""

    def __init__(self, db: Database, report: Callable[..., object]) -> None:
        """Reads nothing yet. `report` is that of `Revocations`."""
        self._db = db
        self._report = report
        self.last: Fence | None = None
        self.on_reading: Callable[[Reading], object] = _ignore
        """Called with each reading that is newer than the last. Not called if a reading fails."""
        self._failed_began = float("-inf")
        self._opened = datetime.now(UTC)
        self._latest = _LONG_AGO  # the latest moment that the database's clock showed
        self.stepped_from = _LONG_AGO
        """The latest moment that the database's clock showed before it went back."""
        self._disbelieved = ""  # an epoch
        self._database_answered = True  # a start without a database fails by itself

    # -- reading

    async def read(self) -> None:
        """Reads the fence once. Raises nothing: a failure is evidence that the database is away."""
        began = monotonic()
        reading = asyncio.create_task(self._take(began))
        keep(reading)
        # If this process was suspended, the answer arrives within the grace, so the delay is no evidence of an outage.
        for patience in (READ_LIMIT.total_seconds(), _GRACE):
            await asyncio.wait({reading}, timeout=patience)
        if not reading.done() or reading.exception() is not None:
            self._failed_began = max(self._failed_began, began)
        self._note_database(reading)

    async def _take(self, began: float) -> None:
        """Reads the fence. A late answer counts too, from when the reading began."""
        async with self._db.watch_connection() as connection:
            row = (
                await connection.execute(
                    select(
                        CacheFence.epoch,
                        CacheFence.server,
                        CacheFence.vouches_from,
                        (CacheFence.incarnation == self._db.incarnation()).label("same"),
                        self._db.now().label("now"),
                        self._db.read_only().label("read_only"),
                        Pulse.keys.label("keys_version"),
                        Pulse.policies.label("policies_version"),
                        Pulse.issuers.label("issuers_version"),
                    ).where(Pulse.id == CacheFence.id)  # the only row of each table is 1
                )
            ).one()
            if row.read_only == "on":
                await self._db.discard(connection)  # the next reading looks for the primary again
                raise TemporarilyUnavailable("this Postgres is read-only: not the primary")
        if monotonic() - began <= READ_LIMIT.total_seconds():
            self._db.observe(row.now, timedelta(seconds=monotonic() - began))
        self._look_at_the_clock(row.now, row.epoch)
        before = self.last
        if before is None or began >= before.began:
            believed = row.same and row.epoch != self._disbelieved
            server, vouches_from = row.server if believed else None, self._vouches_from(row)
            if before is not None and before.epoch == row.epoch:
                self.last = Fence(row.epoch, server, began, before.known_since, vouches_from, before.seen)
            else:
                EPOCHS.count()
                # With a new `seen`: a look-up that is under way adds to the one of the epoch before.
                self.last = Fence(row.epoch, server, began, monotonic(), vouches_from)
            self.on_reading(Reading(began, row.now, row.keys_version, row.policies_version, row.issuers_version))

    async def age(self) -> timedelta:
        """How long ago the fence got its epoch, by the database's clock.

        Raises:
            TemporarilyUnavailable: the database is away.
        """
        async with self._db.look() as connection:
            row = (await connection.execute(select(CacheFence.changed_at, self._db.now().label("now")))).one()
            age: timedelta = row.now - row.changed_at
            return age

    def _look_at_the_clock(self, now: datetime, epoch: str) -> None:
        """Disbelieves the epoch under which the database's clock goes back."""
        if now < self._latest - STEP:
            self.stepped_from = min(max(self.stepped_from, self._latest), now + LONGEST_STEP)
            self._latest = now
            self._disbelieved = epoch
        self._latest = max(self._latest, now)

    def _vouches_from(self, row: Any) -> int:
        # A process can't tell whether its SQLite file was restored before it opened the file.
        moments = [row.vouches_from, self.stepped_from, *([] if self._db.is_postgres else [self._opened])]
        latest: datetime = min(max(moments), row.now + LONGEST_STEP) + LEEWAY
        return math.ceil(latest.timestamp())

    def _note_database(self, reading: asyncio.Task[None]) -> None:
        """Reports when the database goes away and when it is back: at the same moments, /readyz changes."""
        answers = self.database_answers()
        if answers == self._database_answered:
            return
        self._database_answered = answers
        if answers:
            self._report("database_back", level="info", detail="the database answers again")
            return
        error = reading.exception() if reading.done() else None
        cause = error.cause if isinstance(error, TemporarilyUnavailable) else type(error).__name__
        cause = "no answer in time" if error is None else cause
        self._report("database_away", level="warning", detail=f"the database does not answer ({cause})")

    # -- the uses of the last reading

    def believes(self, server: Server, marker: bytes | None, now: float, age: timedelta) -> bool:
        """Whether a server of Redis may be believed when it has no key for a session.

        Args:
            server: the server without the key.
            marker: the marker that the server held in the same step.
            now: seconds of the monotonic clock.
            age: how long ago the last reading of the fence may have begun.
        """
        fence = self.last
        return (
            fence is not None
            and now - fence.began <= age.total_seconds()
            and self.names(server, marker)
            and not server.evicts
        )

    def names(self, server: Server, marker: bytes | None) -> bool:
        """Whether the last reading of the fence, however old, names this server and this marker."""
        fence, identity = self.last, server.identity
        return fence is not None and identity == fence.server is not None and marker == fence.epoch.encode()

    def names_another(self, server: Server) -> bool:
        """Whether the fence names another server, or another database of it."""
        return self.last is not None and self.last.server not in {None, server.identity}

    def disbelieve(self) -> None:
        """From the next reading on, this process does not believe the epoch of the last one."""
        if self.last is not None:
            self._disbelieved = self.last.epoch

    def database_is_away(self) -> bool:
        """Whether an attempt to read the fence that began within the last second has failed.

        An old reading alone is no proof, because this process may have been suspended. The failed attempt counts as
        long as a reading does (`VOUCHES_FOR`).
        """
        fence = self.last
        return (
            monotonic() - self._failed_began <= VOUCHES_FOR.total_seconds()
            and fence is not None
            and fence.began < self._failed_began
        )

    def database_answers(self) -> bool:
        """Whether the fence was read lately. This needs no I/O, so that no caller can starve the reading itself."""
        fence = self.last
        return (
            fence is not None
            and fence.began > self._failed_began
            and monotonic() - fence.began <= 2 * VOUCHES_FOR.total_seconds()
        )
