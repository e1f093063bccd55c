"""Redis: the connections of this process, the names of its keys, and the server that answers at the other end.

No other file sends a command to Redis for revocations. After each answer, the server describes itself over the same
connection. No identity ever returns, so a server that has an identity after the answer had it before, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from redis.asyncio.connection import AbstractConnection, SSLConnection
from redis.exceptions import RedisError, ResponseError

from .. import tracing
from ..errors import TemporarilyUnavailable
from ..storage.redis_errors import cause
from ..storage.redis_pool import pool

ACKNOWLEDGE_LIMIT = timedelta(milliseconds=250)
"""How long Redis may take to answer, unless a caller gives it longer."""

MARKER = "{keyturn}:complete"
"""The key that holds the epoch of a complete keyspace. The braces put all keys into one slot of a cluster."""

REVOKED = "{keyturn}:revoked:"
"""With the id of a session behind it: the key that says that the session ended."""

NONCE = "{keyturn}:rebuild"
"""The key that holds the epoch of a rebuild under way."""

CHUNK = 1000
"""How many keys one command sets at most, so that Redis serves others in between."""

Command = tuple[str | bytes, ...]


def whole_seconds(duration: timedelta) -> str:
    """A time to live as Redis takes it: whole seconds, rounded up, at least one."""
    return str(max(1, -(-duration // timedelta(seconds=1))))


def key_name(session_id: UUID) -> str:
    """The key of a session that ended."""
    return f"{REVOKED}{session_id}"


def packed(command: Command) -> bytes:
    """A command as it goes over the wire (RESP). With the driver's function, checks take twice as long."""
    parts = [b"*%d\r\n" % len(command)]
    for word in command:
        raw = word.encode() if isinstance(word, str) else word
        parts.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
    return b"".join(parts)


_DESCRIBE_YOURSELF = packed(("INFO", "replication")) + packed(("INFO", "memory"))


@dataclass(frozen=True, slots=True)
class Server:
    """A Redis server as it described itself."""

    run_id: str
    replication_id: str
    evicts: bool
    database: int = 0

    @property
    def identity(self) -> str | None:
        """The name of this server in the fence. None if the server does not tell its ids.

        The number of the database proves nothing, because SWAPDB exchanges two databases. With the number, processes
        that use different databases don't take the fence from each other without pause.
        """
        if not self.run_id.strip("0") or not self.replication_id:
            return None
        return f"{self.run_id}:{self.replication_id}/{self.database}"


class RedisAwayError(TemporarilyUnavailable):
    """Redis is away, slow or no Redis, refuses a command, or is another server now. Not raised for the database."""


class RedisRefusedError(RedisAwayError):
    """Redis answered with an error."""


class RedisServer:
    """The Redis of this process, if one is configured."""

    def __init__(self, url: str | None) -> None:
        """Opens nothing yet; the first command connects."""
        self._pool = pool(url, most=8, waits_for=ACKNOWLEDGE_LIMIT, greet=_greet) if url else None

    @property
    def is_configured(self) -> bool:
        """Whether there is a Redis. If there is none, nothing but `close` may be called."""
        return self._pool is not None

    async def send(self, commands: Sequence[Command], *, limit: timedelta | None = None) -> tuple[Server, list[Any]]:
        """Sends commands over one connection. Returns the server as it described itself afterwards, and the replies.

        Args:
            commands: one round trip for all of them.
            limit: how long they may take together; `ACKNOWLEDGE_LIMIT` if None.

        Raises:
            RedisAwayError: Redis is away, slow, refuses a command, or is no Redis.
        """
        assert self._pool is not None
        connection: Any = None  # redis-py does not type its pool
        tls = issubclass(self._pool.connection_class, SSLConnection)
        span = None if tracing.active is None else tracing.active.commands(str(each[0]) for each in commands)
        failure = None
        try:
            async with asyncio.timeout((limit or ACKNOWLEDGE_LIMIT).total_seconds()):
                connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]  # as above
                await connection.send_packed_command(b"".join([*map(packed, commands), _DESCRIBE_YOURSELF]))
                replies = [await connection.read_response() for _ in commands]
                replication = await connection.read_response()
                memory = await connection.read_response()
                run_id: str = connection.keyturn_run_id  # set by _greet
                database = int(connection.db or 0)
        except (RedisError, OSError, TimeoutError, ValueError, MemoryError, RuntimeError) as e:
            # RuntimeError: the system gives no thread for the look-up of a host name.
            if connection is not None:
                # Replies may still be on their way. No other caller may read them.
                with suppress(RedisError, OSError):
                    await connection.disconnect(nowait=True)
            failure = type(e).__name__
            kind = RedisRefusedError if isinstance(e, ResponseError) else RedisAwayError
            raise kind(f"Redis {cause(e, connected=connection is not None, tls=tls)}") from None
        finally:
            if span is not None and tracing.active is not None:
                tracing.active.end(span, failure)
            if connection is not None:
                await self._pool.release(connection)
        return Server(run_id, field(replication, "master_replid"), evicts(memory), database), replies

    async def send_to(
        self, server: Server, commands: Sequence[Command], *, limit: timedelta | None = None
    ) -> list[Any]:
        """As `send`, for commands whose replies count only if this server gave them.

        Raises:
            RedisAwayError: as `send`; also if another server answered, or this one described itself in another way.
        """
        answered_by, replies = await self.send(commands, limit=limit)
        if answered_by != server:
            raise RedisAwayError("another Redis answers now")
        return replies

    async def refusals(self) -> list[str]:
        """The commands of `_TRIALS` that Redis refuses, each with the reason. No trial leaves a key for over a second.

        Raises:
            TemporarilyUnavailable: Redis can't be reached, or answers too late.
        """
        refused: dict[str, list[str]] = {}
        await self.send([])
        for command in _TRIALS:
            try:
                await self.send([command])
            except RedisRefusedError as e:
                refused.setdefault(str(e.cause), []).append(str(command[0]))
        return [f"{why} (tried: {', '.join(dict.fromkeys(names))})" for why, names in refused.items()]

    async def close(self) -> None:
        """Closes the connections."""
        if self._pool is not None:
            with suppress(RedisError, OSError):
                await self._pool.aclose()


_TRIALS: tuple[Command, ...] = (
    ("TIME",),
    *(("SET", key, "", "NX", "PX", "1") for key in (MARKER, NONCE)),
    ("SET", key_name(UUID(int=0)), "1", "EX", "1"),
    ("GET", MARKER),
    ("MGET", MARKER, NONCE, key_name(UUID(int=0))),
    ("EXISTS", key_name(UUID(int=0))),
    ("GETEX", key_name(UUID(int=0)), "EX", "1"),
    ("EXPIRE", key_name(UUID(int=0)), "1"),
    ("DEL", key_name(UUID(int=0))),
    ("EVAL", "return 1", "0"),
)
"""Every command that Keyturn or its scripts send, but INFO and SELECT, without which no connection is made."""


async def _greet(connection: AbstractConnection) -> None:
    """Notes the run id when a connection is made. The same process of Redis gives every answer on this connection."""
    await connection.on_connect()
    await connection.send_command("INFO", "server")
    connection.keyturn_run_id = field(await connection.read_response(), "run_id")  # type: ignore[attr-defined]  # read in `send`


def field(info: bytes | str, key: str) -> str:
    """One value of INFO's text; empty where there is none."""
    text = info.decode(errors="replace") if isinstance(info, bytes) else info
    return text.partition(f"\n{key}:")[2].partition("\n")[0].strip()


def evicts(memory: bytes | str) -> bool:
    """Whether a server whose INFO gives this section may drop keys when its memory is full."""
    return field(memory, "maxmemory") != "0" and field(memory, "maxmemory_policy") != "noeviction"
