"""A process that is killed between two steps of a logout, or overtaken."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterable
from time import monotonic
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import text

from app.actors import SERVICE
from app.revocation.lifetimes import KNOWN_TO_ALL_IN
from app.revocation.publishing import Published
from tests.instances import Pair, a_session, cache, engine, instance, logout, no_haste, own_redis, pair, read, refused
from tests.servers import Redis, free_port

__all__ = ["cache", "engine", "no_haste", "own_redis", "pair"]  # fixtures


STEPS = ["before SET", "after SET", "statement 1", "statement 2", "before COMMIT", "after COMMIT"]
STEPS_OF_A_FENCE = [*STEPS, "in the wait"]


def die_on_request() -> None:
    """The program of a process that reads a logout from each line of its input.

    For each logout, the program starts a child that is killed at the given step, and prints the child's exit code.
    """
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            asyncio.run(_die(*json.loads(line)))
            os._exit(0)  # reached only if the child was not killed
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


async def _die(step: str, database_url: str, redis_url: str, refresh_token: str) -> None:
    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    async with instance(database_url, redis_url) as keyturn:
        publishing = keyturn.ending._publishing
        publish = publishing.publish
        count = 0

        async def published(ids: Iterable[UUID]) -> Published:
            if step == "before SET":
                die()
            acknowledged = await publish(ids)
            if step == "after SET":
                die()
            return acknowledged

        publishing.publish = published  # type: ignore[method-assign]  # to die before or after the SET
        for name in ("execute", "fetch"):
            sends = getattr(asyncpg.Connection, name)

            async def sent(self: Any, query: str, *rest: Any, sends: Any = sends, **more: Any) -> Any:
                nonlocal count
                count += query.startswith("BEGIN") or "INSERT INTO events" in query
                if step in ({"before COMMIT"} if query == "COMMIT" else {f"statement {count}"}):
                    die()
                answer = await sends(self, query, *rest, **more)
                if query == "COMMIT" and step == "after COMMIT":
                    die()
                if query == "COMMIT" and step == "in the wait":
                    asyncio.get_running_loop().call_later(0.2, die)
                return answer

            setattr(asyncpg.Connection, name, sent)
        await keyturn.ending.logout((), [refresh_token], "this", by=SERVICE)


async def test_a_process_killed_between_two_steps_of_a_logout_leaves_nothing_that_a_second_logout_does_not_end(
    pair: Pair, database_url: str, own_redis: Redis
) -> None:
    program = "from tests.test_killed_logout import die_on_request; die_on_request()"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin
    assert process.stdout
    unreachable = f"redis://127.0.0.1:{free_port()}/9"
    for redis_url, steps in ((own_redis.url(9), STEPS), (unreachable, STEPS_OF_A_FENCE)):
        for step in steps:
            await pair.until_complete()
            tokens = await a_session(pair.here)
            await read(pair.there)
            process.stdin.write(json.dumps([step, database_url, redis_url, tokens.refresh_token]).encode() + b"\n")
            assert int(await process.stdout.readline()) == -signal.SIGKILL, step
            committed = step in {"after COMMIT", "in the wait"}
            if not committed:
                await pair.there.reading.verify(tokens.access_token)
            elif redis_url != unreachable:
                await refused(pair.there, tokens)
            await logout(pair.here, tokens)
            pair.there.revocations.checks._ended.clear()
            await refused(pair.there, tokens)
            await pair.until_complete()
            pair.there.revocations.checks._ended.clear()
            await refused(pair.there, tokens)
    process.stdin.close()
    assert await process.wait() == 0


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_a_logout_whose_fence_another_transaction_overtakes_waits_until_no_older_reading_counts(
    pair: Pair, database_url: str
) -> None:
    tokens = await a_session(pair.here)
    await read(pair.there)
    async with instance(database_url, f"redis://127.0.0.1:{free_port()}/9") as cut_off:
        async with cut_off.db.begin() as tx:
            await tx.execute(text("UPDATE cache_fence SET epoch = md5(epoch), server = NULL"))
            ending = asyncio.create_task(logout(cut_off, tokens))
            # The logout's statement has read the old fence, and waits for this transaction.
            async with asyncio.timeout(5):
                waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
                while not await tx.scalar(waits):
                    await asyncio.sleep(0.02)
        committed = monotonic()
        await ending
        assert monotonic() - committed >= KNOWN_TO_ALL_IN.total_seconds()
    await refused(pair.there, tokens)
