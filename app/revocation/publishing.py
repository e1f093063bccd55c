"""Publishing: every verifier learns of the end of a session before the client who ended it is answered.

A function that ends sessions goes through five steps, in this order:

1. `publish` sets a key for each session in Redis, and notes the server and the epochs that it saw there.
2. `hold`, the first statement of the transaction, takes the advisory lock in share mode. A claim of the fence takes
   the same lock in exclusive mode. If the claim commits first, step 4 sees the claim. If the endings commit first, the
   rebuild that follows the claim sees them.
3. The statements that end the sessions.
4. `compare`, a statement that begins after `hold` has returned, compares the fence with step 1. If they differ, the
   transaction fences: it gives the fence a new epoch and no server. Then no process believes Redis until a rebuild.
5. After the commit, `Comparison.known_to_all` waits until no process relies on a reading of the fence from before the
   commit.

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
from ..metrics import FENCED, REVOCATION_LAG
from ..storage.database import Database
from ..storage.locks import ENDINGS
from ..storage.tables import CacheFence
from .fence import NEVER_CLAIMED, Fence, FenceReader
from .lifetimes import KEY_LIVES, KNOWN_TO_ALL_IN
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

Postgres reads all parts of a statement in one snapshot, taken after `hold`, so the order of the parts does not matter.
If another transaction fences meanwhile, the UPDATE waits for that transaction and then changes nothing: its new epoch
serves both. The answer must wait in that case too. So the condition, and not the count of changed rows, says whether
this ending fences.
"""

_LIVES = whole_seconds(KEY_LIVES)

_PUBLISH = """
for i = 3, #KEYS do redis.call('SET', KEYS[i], '1', 'EX', ARGV[1]) end
return redis.call('MGET', KEYS[1], KEYS[2])
"""


@dataclass(slots=True)  # not frozen: to make one takes a tenth of the time, and each request makes some
class Published:
    """The sessions whose keys were sent to Redis, and what acknowledged them."""

    ids: frozenset[UUID]
    server: str | None
    """The identity of the server that acknowledged every key. None: no server did."""
    epochs: frozenset[str]
    """The epochs that were in Redis when each key was set: as the marker, or as the nonce of a rebuild."""


@dataclass(slots=True)  # not frozen: to make one takes a tenth of the time, and each request makes some
class Comparison:
    """The outcome of `compare`. Await `known_to_all` after the commit and before the client is answered."""

    epoch: str
    """The epoch that `compare` found."""
    fenced: bool
    """Whether the transaction gave the fence a new epoch."""
    last_reading: Callable[[], Fence | None]
    """Returns the last reading of the fence."""

    def known_to_all_at(self) -> float:
        """The moment from which no process relies on an older fence, in seconds of the monotonic clock.

        Call this function once, after the commit: the duration counts from the call, if no reading of the fence fits.
        """
        if self.fenced:
            FENCED.count()
        now = monotonic()
        moment = self._moment(now)
        REVOCATION_LAG.observe(max(0.0, moment - now))
        return moment

    def _moment(self, now: float) -> float:
        if not self.fenced and self.epoch == NEVER_CLAIMED:
            return float("-inf")
        # Another transaction may have written the epoch a moment ago. Then readings from before that still count.
        reading = self.last_reading()
        if not self.fenced and reading is not None and reading.epoch == self.epoch:
            return reading.known_since + KNOWN_TO_ALL_IN.total_seconds()
        return now + KNOWN_TO_ALL_IN.total_seconds()

    async def known_to_all(self) -> None:
        """Returns at the moment `known_to_all_at`."""
        await until(self.known_to_all_at())


def new_epoch() -> str:
    """A random epoch, which no reading of the fence and no marker has."""
    return secrets.token_hex(16)


async def until(moment: float) -> None:
    """Waits until a moment, in seconds of the monotonic clock. Returns at once if the moment has passed."""
    if (wait := moment - monotonic()) > 0:
        await asyncio.sleep(wait)


class Publishing:
    """Makes the end of sessions known to all processes, by keys in Redis and by the fence."""

    def __init__(self, db: Database, fence: FenceReader, redis: RedisServer) -> None:
        self._db = db
        self._fence = fence
        self._redis = redis

    async def publish(self, ids: Iterable[UUID]) -> Published:
        """Sets the keys of these sessions in Redis. Raises nothing: if Redis acknowledges less, `compare` fences."""
        sessions = frozenset(ids)
        if not sessions or not self._redis.is_configured:
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
        """Takes the lock that a claim of the fence waits for. SQLite has one writer at a time and needs none."""
        if self._db.is_postgres:
            await tx.exec_driver_sql(HOLD_ON_POSTGRES)

    async def compare(self, tx: AsyncConnection, published: Published, ended: Collection[UUID]) -> Comparison:
        """Compares the fence with the outcome of `publish`, and fences if they differ. Call it last in a transaction.

        Args:
            tx: the transaction, which began with `hold`.
            published: the outcome of `publish`.
            ended: the sessions that the transaction ended.
        """
        fence = (await tx.execute(_FENCE)).one()
        acknowledged = published.server is not None and published.server == fence.server
        known_here = acknowledged and fence.epoch in published.epochs
        # An ending of no session has nothing to make known: a user who is disabled may have none.
        nothing = not ended and not published.ids
        fences = fence.server is not None and not nothing and not (known_here and published.ids.issuperset(ended))
        if fences:
            # Some process may believe a Redis server that lacks some of these keys.
            await self.fence(tx)
        return self.comparison(fence.epoch, fenced=fences)

    async def fence(self, tx: AsyncConnection) -> Comparison:
        """Gives the fence a new epoch and no server: no process believes Redis until a rebuild has filled it anew."""
        epoch = new_epoch()
        await tx.execute(update(CacheFence).values(epoch=epoch, server=None, changed_at=self._db.now()))
        return self.comparison(epoch, fenced=True)

    async def read_fence(self) -> None:
        """Reads the fence once. A process of the command line has no loop that reads the fence."""
        await self._fence.read()

    def comparison(self, epoch: str, *, fenced: bool) -> Comparison:
        """The outcome of a comparison that another statement made (see `FENCE_ON_POSTGRES`)."""
        return Comparison(epoch, fenced, lambda: self._fence.last)
