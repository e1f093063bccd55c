"""The budgets in Redis, which all instances share. One script judges and takes in one round trip.

An outage of Redis never keeps a request waiting: a command has `WAITS_FOR`, and after a failure no request asks again
until a task in the background got an answer. Meanwhile each process counts by itself (`Cells`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Literal

from redis import asyncio as redis_asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from ..log import get_logger
from ..storage.tasks import own_task
from .budgets import Budget, Exhausted

WAITS_FOR = timedelta(milliseconds=50)
"""How long one attempt waits for Redis at most, each time that it asks: before the check, and once after it."""

ASKS_AGAIN = timedelta(seconds=1)
"""How often a process asks whether Redis is back, and how long it waits for that answer."""

PREFIX = "{keyturn}:limit:"
"""With a keyed digest behind it: the moment at which that budget is whole again. The braces are those of all keys."""

_CONNECTIONS = 8

# The arithmetic is that of `Quota`, in whole microseconds: doubles hold these exactly until the year 2255. The clock is
# that of Redis, so all instances agree. Redis runs a script without any other command in between.
SCRIPT = """
local now = tonumber(ARGV[1])
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local judges, longest, which, written = ARGV[2] == 'take', 0, 0, {}
for i, key in ipairs(KEYS) do
  local interval, span, held = tonumber(ARGV[3 * i]), tonumber(ARGV[3 * i + 1]), ARGV[3 * i + 2] == '1'
  local latest = now + span
  local whole_at = math.min(tonumber(redis.call('GET', key) or 0), latest)
  local after = math.max(whole_at, now) + interval
  if judges then
    if after - latest > longest then
      longest, which = after - latest, i
    end
    if held then
      written[i] = after
    end
  elseif ARGV[2] == 'failed' and not held then
    written[i] = math.min(after, latest)
  elseif ARGV[2] == 'give back' and held then
    written[i] = math.max(whole_at - interval, now)
  end
end
if which > 0 then
  return {which, string.format('%.0f', longest)}
end
for i, key in ipairs(KEYS) do
  if written[i] and written[i] > now then
    redis.call('SET', key, string.format('%.0f', written[i]), 'PX', math.ceil((written[i] - now) / 1000))
  elseif written[i] then
    redis.call('DEL', key)
  end
end
return {0, '0'}
"""

_log = get_logger()


class AwayError(Exception):
    """Redis is away, slow or no Redis, or there is none. The process counts by itself."""


class RedisCells:
    """The connection to Redis for budgets. It shares nothing with that for revocations, which a storm must not slow."""

    def __init__(self, url: str | None) -> None:
        """Opens nothing yet. None: there is no Redis."""
        self._pool = _pool(url) if url else None
        self._asking: asyncio.Task[None] | None = None

    @property
    def is_away(self) -> bool:
        """Whether the next request would not even ask Redis."""
        return self._pool is None or self._asking is not None

    async def take(self, budgets: Sequence[Budget]) -> Exhausted | None:
        """As `Cells.take`.

        Raises:
            AwayError: Redis did not answer in time. A part may have been taken all the same.
        """
        which, wait = await self._run("take", budgets)
        return Exhausted(budgets[which - 1], timedelta(microseconds=int(wait))) if which else None

    async def failed(self, budgets: Sequence[Budget]) -> None:
        """As `Cells.failed`. Does nothing if Redis is away."""
        with suppress(AwayError):
            await self._run("failed", [budget for budget in budgets if not budget.is_held])

    async def give_back(self, budgets: Sequence[Budget]) -> None:
        """As `Cells.give_back`. Does nothing if Redis is away: then the part comes back after an interval."""
        with suppress(AwayError):
            await self._run("give back", [budget for budget in budgets if budget.is_held])

    async def close(self) -> None:
        """Closes the connections."""
        if self._asking is not None:
            self._asking.cancel()
            with suppress(asyncio.CancelledError):
                await self._asking
        if self._pool is not None:
            with suppress(RedisError, OSError):
                await self._pool.aclose()

    async def _run(self, act: Literal["take", "failed", "give back"], budgets: Sequence[Budget]) -> tuple[int, bytes]:
        if not budgets:
            return 0, b"0"
        if self.is_away:
            raise AwayError
        keys = [PREFIX + budget.key.hex() for budget in budgets]
        numbers = [
            number for budget in budgets for number in (budget.quota.interval, budget.quota.span, int(budget.is_held))
        ]
        which, wait = await self._command("EVAL", SCRIPT, len(keys), *keys, 0, act, *numbers, limit=WAITS_FOR)
        return int(which), wait

    @own_task
    async def _command(self, *words: str | int, limit: timedelta) -> Any:
        """Sends one command. A caller that leaves must not take a connection out of the pool for ever, so this goes on.

        Raises:
            AwayError: Redis did not answer in time. From now on it counts as away.
        """
        assert self._pool is not None
        connection: Any = None  # redis-py does not type its pool
        try:
            async with asyncio.timeout(limit.total_seconds()):
                connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]  # as above
                await connection.send_command(*words)
                return await connection.read_response()
        except (RedisError, OSError, TimeoutError, ValueError, MemoryError, RuntimeError) as e:
            if connection is not None:
                # The reply may still be on its way. No other caller may read it.
                with suppress(RedisError, OSError):
                    await connection.disconnect(nowait=True)
            if self._asking is None:
                _log.warning("limits_redis_away", cause=type(e).__name__)
                self._asking = asyncio.create_task(self._ask_until_it_answers())
            raise AwayError from None
        finally:
            if connection is not None:
                await self._pool.release(connection)

    async def _ask_until_it_answers(self) -> None:
        while True:
            with suppress(AwayError):
                # The script writes, because a Redis that answers and can't write is as good as away.
                await self._command("EVAL", SCRIPT, 1, f"{PREFIX}probe", 0, "failed", 1, 1, 0, limit=ASKS_AGAIN)
                break
            await asyncio.sleep(ASKS_AGAIN.total_seconds())
        self._asking = None
        _log.info("limits_redis_back")


def _pool(url: str) -> redis_asyncio.ConnectionPool:
    return redis_asyncio.BlockingConnectionPool.from_url(
        url,
        max_connections=_CONNECTIONS,
        timeout=WAITS_FOR.total_seconds(),
        socket_timeout=None,  # each command has one limit for all that it does: see `_command`
        socket_connect_timeout=ASKS_AGAIN.total_seconds(),
        retry=Retry(NoBackoff(), 0),
        retry_on_timeout=False,
    )
