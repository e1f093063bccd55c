"""A database that was restored from a backup, with instances that run and a Redis that knows nothing of it."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import delete, select, text, update
from sqlalchemy.engine import make_url

from app.actors import SERVICE
from app.errors import InvalidGrant, InvalidToken, Refusal
from app.keyturn import Keyturn, opened, running
from app.sessions.answers import Tokens
from app.storage.tables import Event, Session
from tests.command_line import Command, command, on_sqlite
from tests.conftest import PASSWORD, a_user, settings_of
from tests.instances import (
    Pair,
    a_session,
    asks,
    cache,
    fence_of,
    keep_complete,
    logout,
    long_since_claimed,
    lost,
    own_redis,
    pair,
    read,
    refused,
)
from tests.servers import Postgres, Redis

__all__ = ["cache", "own_redis", "pair"]

on_postgres = pytest.mark.parametrize("engine", ["postgres"], indirect=True)


def dumped(postgres: Postgres, database_url: str, file: Path) -> None:
    _run(postgres, "pg_dump", "--format=custom", f"--file={file}", make_url(database_url).database or "")


def restored(postgres: Postgres, database_url: str, file: Path) -> None:
    """Loads the dump over the database, as an operator does while instances run."""
    over = ("--clean", "--if-exists", "--single-transaction")
    _run(postgres, "pg_restore", *over, f"--dbname={make_url(database_url).database}", str(file))


def _run(postgres: Postgres, program: str, *words: str) -> None:
    if not postgres.ours:
        pytest.skip("TEST_DATABASE_URL names a server, whose programs this test does not know")
    server = ("-h", "127.0.0.1", "-p", str(postgres.port), "-U", "postgres")
    subprocess.run([postgres._bin / program, *server, *words], check=True, timeout=60)


async def answer(call: Callable[[], Awaitable[object]]) -> str:
    """The answer in one word: "accepted", or the reason of the refusal; "unknown" where it has none."""
    try:
        await call()
    except Refusal as refusal:
        return refusal.reason or "unknown"
    return "accepted"


async def verified(keyturn: Keyturn, tokens: Tokens) -> str:
    return await answer(lambda: keyturn.reading.verify(tokens.access_token))


async def refreshed(keyturn: Keyturn, tokens: Tokens) -> str:
    return await answer(lambda: keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE))


async def soon(expected: str, call: Callable[[], Awaitable[str]]) -> None:
    """Waits until the answer is the expected one: a second for the pulse, and the rest for a busy machine."""
    async with asyncio.timeout(10):
        while await call() != expected:
            await asyncio.sleep(0.05)


@asynccontextmanager
async def instance(database_url: str, redis: Redis | None) -> AsyncIterator[Keyturn]:
    settings = settings_of(database_url, redis.url(9) if redis else None)
    async with opened(settings) as keyturn, running(keyturn):
        if redis is not None:
            await soon("complete", keyturn.revocations.ping)
        yield keyturn


@on_postgres
@pytest.mark.parametrize("with_redis", [True, False], ids=["redis", "no-redis"])
async def test_after_a_restore_instances_that_run_go_by_the_restored_database(
    postgres: Postgres, database_url: str, own_redis: Redis, cache: object, tmp_path: Path, with_redis: bool
) -> None:
    redis = own_redis if with_redis else None
    async with instance(database_url, redis) as one, instance(database_url, redis) as two:
        user = await a_user(one)
        kept, used_up, ended = [await one.starting.start(user, by=SERVICE) for _ in range(3)]
        dumped(postgres, database_url, tmp_path / "dump")
        newer = await one.rotation.refresh(used_up.refresh_token, by=SERVICE)
        await logout(one, ended)
        await long_since_claimed(one)  # so that Redis alone would answer for the session that begins next
        later = await one.starting.start(user, by=SERVICE)
        for keyturn in (one, two):
            await soon("logout", lambda: verified(keyturn, ended))  # noqa: B023  # called at once
            assert await verified(keyturn, later) == "accepted"

        restored(postgres, database_url, tmp_path / "dump")
        for keyturn in (one, two):
            await soon("unknown", lambda: verified(keyturn, later))  # noqa: B023  # called at once
            assert await refreshed(keyturn, later) == "unknown"
            assert await verified(keyturn, kept) == "accepted"
            # The newest token of this session was made after the dump: it is unknown, and no theft.
            assert await verified(keyturn, newer) == "accepted"
            assert await refreshed(keyturn, newer) == "unknown"
        async with one.db.look() as connection:
            assert (await connection.scalars(select(Session.ended_at))).all() == [None, None, None]
        # The logout is undone, and a token that was used up after the dump is good again.
        assert await refreshed(one, ended) == "accepted"
        assert await refreshed(two, used_up) == "accepted"

        await two.restored.take(by=SERVICE)
        for keyturn in (one, two):
            await soon("accepted", lambda: verified(keyturn, ended))  # noqa: B023  # called at once


@on_postgres
async def test_rows_that_were_put_back_unnoticed_count_from_the_command_on(pair: Pair) -> None:
    """Instances can't notice that rows were put back into the same table. So `doctor --after-restore` tells them."""
    kept, later, ended = [await a_session(pair.here) for _ in range(3)]
    await logout(pair.here, ended)
    await read(pair.there)
    await refused(pair.there, ended)
    async with pair.here.db.begin() as tx:
        await tx.execute(delete(Session).where(Session.id == later.session_id))
        await tx.execute(update(Session).where(Session.id == ended.session_id).values(ended_at=None, end_reason=None))
    await read(pair.there)
    assert await verified(pair.there, later) == "accepted"  # unnoticed
    await refused(pair.there, ended)  # by memory

    restoration = await pair.here.restored.take(by=SERVICE)
    assert restoration.newest is not None
    assert (await fence_of(pair.here))[1] is None
    await read(pair.there)
    pair.there.revocations.checks.forget_what_is_over()  # the loop of a running instance does so
    for _ in range(2):
        await lost(pair.there, later)
        assert await verified(pair.there, kept) == await verified(pair.there, ended) == "accepted"
    await keep_complete(pair.there)
    await read(pair.here)
    assert await pair.there.revocations.ping() == "complete"
    for keyturn in (pair.here, pair.there):
        await lost(keyturn, later)
        assert await verified(keyturn, kept) == "accepted"
    await logout(pair.here, kept)
    await read(pair.there)
    await refused(pair.there, kept)


async def test_the_command_waits_until_no_instance_believes_redis_from_before(pair: Pair) -> None:
    tokens = await a_session(pair.here)
    await read(pair.there)
    before = pair.there.revocations.fence.last
    assert before is not None
    began = asyncio.get_running_loop().time()
    await pair.here.restored.take(by=SERVICE)
    assert asyncio.get_running_loop().time() - began >= 1.1
    assert await asks(pair.there, tokens) == 1  # its reading is too old by now


async def test_every_instance_reads_keys_policies_and_issuers_again(pair: Pair) -> None:
    async def versions() -> tuple[int, ...]:
        async with pair.here.db.look() as connection:
            return tuple((await connection.execute(text("SELECT keys, policies, issuers FROM pulse"))).one())

    before = await versions()
    await pair.here.restored.take(by=SERVICE)
    after = await versions()
    assert all(old != new for old, new in zip(before, after, strict=True))
    async with pair.here.db.look() as connection:
        last = (await connection.execute(select(Event.event, Event.actor).order_by(Event.id.desc()).limit(1))).one()
    assert tuple(last) == ("database_restored", "service")


# -- the command


@pytest.fixture
def keyturn(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    monkeypatch.chdir(tmp_path)
    return command(database_url, capsys)


@on_sqlite
def test_the_command_says_what_was_done_and_what_is_undone(keyturn: Command) -> None:
    keyturn.ok("users", "create", "ada@example.com", stdin=PASSWORD.encode())
    tokens = keyturn.login("ada@example.com")
    said = keyturn.ok("doctor", "--after-restore").out
    assert said.startswith("ok  Redis from before the restore is not believed")
    newest = keyturn.ok("events", "list", "--event", "session_started", "--json").json[0]["at"][:19]
    assert f"!!  the newest event in this database is of {newest}Z: what happened later is undone\n" in said
    for words in ("doctor --after-restore --sign-everyone-out", "keys retire KID", "users disable", "refresh-1"):
        assert words in said
    assert keyturn.inside(lambda k: verified(k, tokens)) == "accepted"
    assert [
        event["actor"] for event in keyturn.ok("events", "list", "--event", "database_restored", "--json").json
    ] == ["command"]


@on_sqlite
def test_a_second_command_tells_the_same_newest_event(keyturn: Command) -> None:
    keyturn.ok("users", "create", "ada@example.com", stdin=PASSWORD.encode())
    first, second = (keyturn.inside(lambda k: k.restored.take(by=SERVICE)) for _ in range(2))
    assert second.newest == first.newest
    assert first.newest is not None


@on_sqlite
def test_sign_everyone_out_refuses_every_token_from_before(keyturn: Command) -> None:
    keyturn.ok("users", "create", "ada@example.com", stdin=PASSWORD.encode())
    before = keyturn.login("ada@example.com")
    said = keyturn.ok("doctor", "--after-restore", "--sign-everyone-out", "--json").json
    assert any(line.startswith("everyone is signed out") for line in said["done"])
    assert not any("--sign-everyone-out" in line or "keys retire" in line for line in said["left"])
    after = keyturn.login("ada@example.com")

    async def answers(k: Keyturn) -> list[str]:
        return [
            await each(k, tokens)
            for each, tokens in ((verified, before), (refreshed, before), (verified, after), (refreshed, after))
        ]

    verify, refresh, *new = keyturn.inside(answers)
    assert verify != "accepted"
    assert (refresh, *new) == ("signed_out_everywhere", "accepted", "accepted")
    live = keyturn.ok("sessions", "list", "--status", "live", "--json").json
    assert [session["id"] for session in live] == [str(after.session_id)]


@on_sqlite
def test_sign_everyone_out_needs_the_restore(keyturn: Command) -> None:
    assert "--sign-everyone-out needs --after-restore" in keyturn.refused(2, "doctor", "--sign-everyone-out")


# -- SQLite


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_a_sqlite_file_that_was_put_back_decides_from_the_next_start_on(
    database_url: str, own_redis: Redis, cache: object, tmp_path: Path
) -> None:
    file, copy = Path(make_url(database_url).database or ""), tmp_path / "backup.db"
    async with instance(database_url, own_redis) as one:
        user = await a_user(one)
        kept = await one.starting.start(user, by=SERVICE)
    shutil.copy(file, copy)  # no process has it open
    async with instance(database_url, own_redis) as one:
        await long_since_claimed(one)
        later = await one.starting.start(user, by=SERVICE)
        assert await verified(one, later) == "accepted"
    for each in (file, Path(f"{file}-wal"), Path(f"{file}-shm")):
        each.unlink(missing_ok=True)
    shutil.copy(copy, file)
    async with instance(database_url, own_redis) as one:
        with pytest.raises(InvalidToken):
            await one.reading.verify(later.access_token)
        with pytest.raises(InvalidGrant):
            await one.rotation.refresh(later.refresh_token, by=SERVICE)
        assert await verified(one, kept) == "accepted"
