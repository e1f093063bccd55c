"""The budgets in Redis, which all instances share. One script judges and takes in one round trip.

Attempts that come together travel together. An outage of Redis keeps no request waiting for longer than twice
`WAITS_FOR`. After that no request asks again until a task in the background got an answer. Meanwhile each process
counts by itself (`Cells`).
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final, Literal, NamedTuple

from redis.asyncio.connection import SSLConnection
from redis.exceptions import RedisError

from .. import tracing
from ..errors import TemporarilyUnavailable
from ..log import get_logger
from ..storage.batches import Batch
from ..storage.redis_errors import cause
from ..storage.redis_pool import pool
from .budgets import Budget, Exhausted

WAITS_FOR = timedelta(milliseconds=50)
"""How long an attempt waits at most until its question is sent, and how long the round trip may take then."""

ASKS_AGAIN = timedelta(seconds=1)
"""How often a process asks whether Redis is back, and how long it waits for that answer."""

PREFIX = "{keyturn}:limit:"
"""With a keyed digest behind it: the moment at which that budget is whole again. The braces are those of all keys."""

_AT_A_TIME = 2  # round trips
_NONE_IS_EMPTY: Final = (0, 0)

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


class AwayError(TemporarilyUnavailable):
    """Redis is away, slow or no Redis. The process counts by itself, so no client learns of it."""


class _Question(NamedTuple):
    """One call of the script."""

    act: Literal["take", "failed", "give back"]
    budgets: Sequence[Budget]

    def command(self) -> tuple[str | int, ...]:
        keys = [PREFIX + budget.key.hex() for budget in self.budgets]
        numbers = [
            number
            for budget in self.budgets
            for number in (budget.quota.interval, budget.quota.span, int(budget.is_held))
        ]
        return "EVAL", SCRIPT, len(keys), *keys, 0, self.act, *numbers


class RedisCells:
    """The connections to Redis for budgets. Those for revocations are others, because no storm must slow them."""

    def __init__(self, url: str | None, waits_for: timedelta = WAITS_FOR) -> None:
        """Opens nothing yet. None: there is no Redis, and nothing here refuses an attempt."""
        self._pool = pool(url, most=_AT_A_TIME + 1, waits_for=ASKS_AGAIN) if url else None
        self._waits_for = waits_for
        self._questions = Batch(self._ask, name="limits", in_flight=_AT_A_TIME, queue_limit=waits_for)
        self._asking: asyncio.Task[None] | None = None

    @property
    def is_away(self) -> bool:
        """Whether Redis did not answer lately. Then no request asks it, and a task in the background does."""
        return self._asking is not None

    async def take(self, budgets: Sequence[Budget]) -> Exhausted | None:
        """As `Cells.take`.

        Raises:
            AwayError: Redis did not answer in time. A part may have been taken all the same.
        """
        which, wait = await self._answer(_Question("take", budgets))
        return Exhausted(budgets[which - 1], timedelta(microseconds=wait)) if which else None

    async def failed(self, budgets: Sequence[Budget]) -> None:
        """As `Cells.failed`. Does nothing if Redis is away."""
        with suppress(AwayError):
            await self._answer(_Question("failed", [budget for budget in budgets if not budget.is_held]))

    async def give_back(self, budgets: Sequence[Budget]) -> None:
        """As `Cells.give_back`. Does nothing if Redis is away: then the part comes back after an interval."""
        with suppress(AwayError):
            await self._answer(_Question("give back", [budget for budget in budgets if budget.is_held]))

    async def close(self) -> None:
        """Closes the connections."""
        if self._asking is not None:
            self._asking.cancel()
            with suppress(asyncio.CancelledError):
                await self._asking
        if self._pool is not None:
            with suppress(RedisError, OSError):
                await self._pool.aclose()

    async def _answer(self, question: _Question) -> tuple[int, int]:
        """Which budget is empty (the first is 1; 0: none is), and the wait in microseconds.

        Raises:
            AwayError: Redis is away, or the process is so busy that the question waited too long.
        """
        if self._pool is None or not question.budgets:
            return _NONE_IS_EMPTY
        if self.is_away:
            raise AwayError("limits: Redis is away")
        try:
            return await self._questions(question)
        except TemporarilyUnavailable:
            raise AwayError("limits: Redis is away") from None

    async def _ask(self, questions: Sequence[_Question]) -> list[tuple[int, int]]:
        """Asks for all that came together, in one round trip."""
        if self.is_away:  # it was there when these came
            raise AwayError("limits: Redis is away")
        return await self._send([question.command() for question in questions], limit=self._waits_for)

    async def _send(self, commands: Sequence[tuple[str | int, ...]], *, limit: timedelta) -> list[tuple[int, int]]:
        """Sends calls of the script. No caller's cancellation reaches this, so no reply is ever left to another caller.

        Raises:
            AwayError: Redis did not answer in time, or not as the script does. From now on it counts as away.
        """
        span = None if tracing.active is None else tracing.active.commands(str(each[0]) for each in commands)
        answer = asyncio.ensure_future(self._round_trip(commands))
        try:
            await asyncio.wait({answer}, timeout=limit.total_seconds())
            for _ in range(3):  # the process may have been busy: look once more before Redis is called slow
                if not answer.done():
                    await asyncio.sleep(0)
        finally:
            answer.cancel()  # does nothing to one that is done
        await asyncio.wait({answer})
        error = AwayError("Redis does not answer in time") if answer.cancelled() else answer.exception()
        if span is not None and tracing.active is not None:
            tracing.active.end(span, None if error is None else type(error).__name__)
        if error is None:
            return answer.result()
        if self._asking is None:
            _log.warning("limits_redis_away", cause=error.cause if isinstance(error, AwayError) else str(error))
            # In a context of its own: no request or batch waits for it.
            self._asking = asyncio.create_task(self._ask_until_it_answers(), context=contextvars.Context())
        raise AwayError("limits: Redis is away")

    async def _round_trip(self, commands: Sequence[tuple[str | int, ...]]) -> list[tuple[int, int]]:
        """The replies. Whatever goes wrong, also by a defect here, is `AwayError`, so that nobody's sign-in fails."""
        assert self._pool is not None
        connection: Any = None  # redis-py does not type its pool
        try:
            connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]  # as above
            await connection.send_packed_command(connection.pack_commands(commands))
            replies = [await connection.read_response() for _ in commands]
            return [(int(which), int(wait)) for which, wait in replies]
        except BaseException as e:
            if connection is not None:
                # Replies may still be on their way. No other caller may read them.
                with suppress(RedisError, OSError):
                    await connection.disconnect(nowait=True)
            if isinstance(e, RedisError | OSError | MemoryError | RuntimeError):
                tls = issubclass(self._pool.connection_class, SSLConnection)
                raise AwayError(f"Redis {cause(e, connected=connection is not None, tls=tls)}") from None
            if isinstance(e, Exception):
                raise AwayError(f"Redis answers otherwise than the script does ({type(e).__name__})") from None
            raise
        finally:
            if connection is not None:
                await self._pool.release(connection)

    async def _ask_until_it_answers(self) -> None:
        # The script writes, because a Redis that answers and can't write is as good as away. All connections are made,
        # because to make one may take longer than an attempt waits.
        trial = ("EVAL", SCRIPT, 1, f"{PREFIX}probe", 0, "failed", 1, 1, 0)
        while True:
            with suppress(AwayError):
                await asyncio.gather(*(self._send([trial], limit=ASKS_AGAIN) for _ in range(_AT_A_TIME)))
                break
            await asyncio.sleep(ASKS_AGAIN.total_seconds())
        self._asking = None
        _log.info("limits_redis_back")
