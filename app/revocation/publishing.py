"""Publishing: how a transaction that ends sessions reaches every verifier before its client is answered.

A function that ends sessions goes through five steps, in this order:

1. `publish` sets a key for each session in Redis, and notes the server and the epochs that it saw there.
2. `hold`, the first statement of the transaction, takes the advisory lock in share mode. A claim of the fence takes it
   alone. So either the claim committed before, and step 4 sees the claim; or its rebuild sees these endings.
3. The statements that end the sessions.
4. `compare`, a statement that begins after `hold` has returned, compares the fence with step 1. If they differ, the
   transaction fences: it gives the fence a new epoch and no server. Then no process believes Redis until its rebuild.
5. After the commit, `Settling.settled` waits until no reading of the fence from before the commit counts any more.

docs/revocation.md has the proof.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from time import monotonic
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ..errors import TemporarilyUnavailable
from ..storage.database import Database
from ..storage.locks import ENDINGS
from ..storage.tables import CacheFence
from .fence import NEVER_CLAIMED, Fence, FenceReader
from .lifetimes import KEY_LIVES, SETTLES_IN
from .redis_server import CHUNK, MARKER, NONCE, REVOKED, Command, RedisServer, whole_seconds

HOLD_ON_POSTGRES = f"SELECT pg_advisory_xact_lock_shared({ENDINGS})"
"""`Publishing.hold` in SQL."""

_FENCE = select(CacheFence.epoch, CacheFence.server)

DIFFERS_ON_POSTGRES = "server IS NOT NULL AND (server = {server}::text AND epoch = ANY ({epochs}::text[])) IS NOT TRUE"
"""The condition of `Publishing.compare` in SQL, for a statement that ends only sessions that were published."""

FENCE_ON_POSTGRES = f"""fenced AS (
  UPDATE cache_fence SET epoch = {{new}}, server = NULL, changed_at = statement_timestamp() WHERE {DIFFERS_ON_POSTGRES}
)"""  # noqa: S608  # only a condition of our own is put in
"""`Publishing.compare` as a part of a statement.

A statement reads one snapshot, from after `hold`, so the order of its parts does not matter. If another transaction
fences meanwhile, the UPDATE waits for it and then changes nothing, because the other new epoch will do. The answer must
wait in that case too. So the condition, and not the count of changed rows, says whether this ending fences.
"""

_LIVES = whole_seconds(KEY_LIVES)

_PUBLISH = """
for i = 3, #KEYS do redis.call('SET', KEYS[i], '1', 'EX', ARGV[1]) end
return redis.call('MGET', KEYS[1], KEYS[2])
"""


@dataclass(frozen=True, slots=True)
class Published:
    """The sessions whose keys were sent to Redis, and what acknowledged them."""

    ids: frozenset[UUID]
    server: str | None
    """The identity of the server that acknowledged every key. None: no server did."""
    epochs: frozenset[str]
    """The epochs that were in Redis when each key was set: as the marker, or as the nonce of a rebuild."""


@dataclass(frozen=True, slots=True)
class Settling:
    """A transaction that ended sessions. Call `settled` after its commit, before the client is answered."""

    epoch: str
    """The epoch that `compare` found."""
    fenced: bool
    """Whether the transaction gave the fence a new epoch."""
    known: Callable[[], Fence | None]
    """Gives the last reading of the fence."""

    def at(self) -> float:
        """The moment (monotonic clock) when no process relies on an older fence any more. Call it after the commit."""
        if not self.fenced and self.epoch == NEVER_CLAIMED:
            return float("-inf")
        # Another transaction may have written the epoch so lately that readings from before it still count.
        known = self.known()
        if not self.fenced and known is not None and known.epoch == self.epoch:
            return known.known_since + SETTLES_IN.total_seconds()
        return monotonic() + SETTLES_IN.total_seconds()

    async def settled(self) -> None:
        """Returns when `at` is past."""
        await past(self.at())


def new_epoch() -> str:
    """A random epoch, which no reading of the fence and no marker has."""
    return secrets.token_hex(16)


async def past(moment: float) -> None:
    """Returns at a moment (seconds of the monotonic clock), or at once if that is past."""
    if (wait := moment - monotonic()) > 0:
        await asyncio.sleep(wait)


class Publishing:
    """Makes the end of sessions known, in Redis and by the fence."""

    def __init__(self, db: Database, fence: FenceReader, redis: RedisServer) -> None:
        self._db = db
        self._fence = fence
        self._redis = redis

    async def publish(self, ids: Iterable[UUID]) -> Published:
        """Sets the keys of these sessions in Redis. Raises nothing: if a key was not acknowledged, `compare` fences."""
        sessions = frozenset(ids)
        if not self._redis.is_configured:
            return Published(sessions, None, frozenset())
        names = [f"{REVOKED}{session_id}" for session_id in sessions]
        commands: list[Command] = []
        for start in range(0, len(names), CHUNK):
            keys = (MARKER, NONCE, *names[start : start + CHUNK])
            commands.append(("EVAL", _PUBLISH, str(len(keys)), *keys, _LIVES))
        try:
            server, replies = await self._redis.send(commands)
        except TemporarilyUnavailable:
            return Published(sessions, None, frozenset())
        seen = [frozenset(epoch.decode(errors="replace") for epoch in reply if epoch) for reply in replies]
        return Published(sessions, server.identity, frozenset.intersection(*seen) if seen else frozenset())

    async def hold(self, tx: AsyncConnection) -> None:
        """Takes the lock that a claim of the fence waits for. SQLite needs none, as it has one writer at a time."""
        if self._db.is_postgres:
            await tx.exec_driver_sql(HOLD_ON_POSTGRES)

    async def compare(self, tx: AsyncConnection, published: Published, ended: Collection[UUID]) -> Settling:
        """Compares the fence with the outcome of `publish`, and fences if they differ. A transaction's last statement.

        Args:
            tx: the transaction, which began with `hold`.
            published: the outcome of `publish`.
            ended: the sessions that the transaction ended.
        """
        fence = (await tx.execute(_FENCE)).one()
        acknowledged = published.server is not None and published.server == fence.server
        known_here = acknowledged and fence.epoch in published.epochs
        fences = fence.server is not None and not (known_here and published.ids.issuperset(ended))
        if fences:
            # Some process may believe a server that does not have all the keys.
            await tx.execute(update(CacheFence).values(epoch=new_epoch(), server=None, changed_at=self._db.now()))
        return self.settling(fence.epoch, fenced=fences)

    async def read_fence(self) -> None:
        """Reads the fence once. The process of a command that ends many sessions has no loop that reads it."""
        await self._fence.read()

    def settling(self, epoch: str, *, fenced: bool) -> Settling:
        """The outcome of a comparison that another statement made (see `FENCE_ON_POSTGRES`)."""
        return Settling(epoch, fenced, lambda: self._fence.last)
