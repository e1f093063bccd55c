"""Erasing a user: nothing personal stays, and no token of the user is accepted again. On both databases."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis
from sqlalchemy import select, text, update

from app.actors import SERVICE, Actor
from app.errors import Conflict, InvalidGrant, InvalidToken, NotFound
from app.keyturn import Keyturn
from app.revocation.lifetimes import LOOK_BACK
from app.revocation.redis_server import MARKER
from app.sessions.answers import Tokens
from app.storage.tables import Event, Session, uuid7
from tests.command_line import Command
from tests.command_line import keyturn as command
from tests.conftest import PASSWORD, Opener, a_user, time_passes
from tests.servers import Redis

__all__ = ["command"]

ADA, BOB = "ada@example.com", "bob@example.com"
HOME = "203.0.113.77"
TABLES = ("users", "sessions", "events", "keys", "policies", "pulse", "cache_fence")


@pytest.fixture
def empty_redis(redis: Redis) -> Iterator[Redis]:
    flush(redis)
    yield redis
    flush(redis)


def flush(server: Redis) -> None:
    with redis.Redis(port=server.port) as client:
        client.flushall()


async def rows(keyturn: Keyturn, table: Any) -> list[Any]:
    async with keyturn.db.look() as connection:
        return [*(await connection.execute(select(table.__table__).order_by(table.id))).mappings()]


async def everything(keyturn: Keyturn) -> str:
    """The text of all rows of all tables."""
    async with keyturn.db.look() as connection:
        return repr([(await connection.execute(text(f"SELECT * FROM {table}"))).all() for table in TABLES])


async def ada_signs_in(keyturn: Keyturn, user_id: UUID) -> Tokens:
    """A session in whose row every column that is personal has a value."""
    proof = await keyturn.sign_in.authenticate(ADA, PASSWORD)
    by = Actor("user", str(user_id), HOME, "adas-own-request")
    tokens = await keyturn.starting.start(proof, by=by, user_agent="Adas own browser")
    async with keyturn.db.begin() as tx:
        personal = {
            "device_id": "adas-device",
            "device_name": "Ada's telephone",
            "claims": '{"org":"adas org"}',
            "cnf_jkt": "adas-key",
            "retry_key_digest": b"adas-retry-key".ljust(32),
            "moved_at": keyturn.db.clock(),
        }
        await tx.execute(update(Session).where(Session.id == tokens.session_id).values(personal))
    return tokens


async def is_refused(keyturn: Keyturn, tokens: Tokens) -> None:
    """Asserts that no way leads in with these tokens."""
    with pytest.raises(InvalidToken):
        await keyturn.reading.verify(tokens.access_token)
    with pytest.raises(InvalidToken):
        await keyturn.reading.authorise(tokens.access_token)
    with pytest.raises(InvalidGrant):
        await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)


async def test_nothing_personal_stays_of_an_erased_user(keyturn: Keyturn) -> None:
    user_id = (await a_user(keyturn)).user_id
    await keyturn.users.set_claims(user_id, {"org": "adas org"}, by=SERVICE)
    ended, live = await ada_signs_in(keyturn, user_id), await ada_signs_in(keyturn, user_id)
    await keyturn.ending.logout((), [ended.refresh_token], "this", by=Actor("user", None, HOME, "adas-own-request"))
    personal = (ADA, str(user_id), user_id.hex, repr(user_id), HOME, "Ada", "adas")
    before = await everything(keyturn)
    assert all(word in before for word in (ADA, HOME, "adas-own-request", "Ada's telephone", "adas org", "adas-key"))
    pseudonym = await keyturn.erasing.erase(user_id, by=Actor("command", "root"))
    after = await everything(keyturn)
    assert [word for word in personal if word in after] == []
    with pytest.raises(NotFound):
        await keyturn.users.find(user_id)
    with pytest.raises(NotFound):
        await keyturn.users.find(ADA)
    for row in await rows(keyturn, Session):
        assert (row["user_id"], row["end_reason"]) == (pseudonym, "user_erased")
        names = ("claims", "cnf_jkt", "device_id", "device_name", "address", "user_agent", "moved_at")
        assert [name for name in (*names, "retry_key_digest") if row[name] is not None] == []
    assert {row["id"] for row in await rows(keyturn, Session)} == {ended.session_id, live.session_id}
    await is_refused(keyturn, ended)
    await is_refused(keyturn, live)


async def test_events_stay_under_a_pseudonym_and_say_who_erased(keyturn: Keyturn) -> None:
    user_id, other = (await a_user(keyturn)).user_id, (await a_user(keyturn, BOB, "admin")).user_id
    tokens = await ada_signs_in(keyturn, user_id)
    bobs = await keyturn.events.list(limit=99, user_id=other)
    kinds = [row["event"] for row in await rows(keyturn, Event) if row["user_id"] == user_id]
    pseudonym = await keyturn.erasing.erase(user_id, by=Actor("administrator", str(other), "192.0.2.1", "r"))
    events = [row for row in await rows(keyturn, Event) if row["user_id"] == pseudonym]
    assert [row["event"] for row in events] == [*kinds, "user_erased", "session_ended"]
    assert {row["address"] for row in events[:-2]} == {row["detail"] for row in events} == {None}
    assert {row["actor_id"] for row in events if row["actor"] == "user"} == {str(pseudonym)}
    assert [(row["actor"], row["actor_id"], row["address"]) for row in events[-2:]] == [
        ("administrator", str(other), "192.0.2.1")
    ] * 2
    assert (events[-1]["session_id"], events[-1]["reason"]) == (tokens.session_id, "user_erased")
    assert await keyturn.events.list(limit=99, session_id=tokens.session_id)
    assert await keyturn.events.list(limit=99, user_id=other) == bobs
    assert await keyturn.events.list(limit=99, user_id=user_id) == []


async def test_what_an_administrator_did_to_others_stays_without_the_administrators_name(keyturn: Keyturn) -> None:
    """Also of one who was demoted since, and of one who erases himself."""
    for number, demoted in enumerate((False, True)):
        proof = await a_user(keyturn, f"root{number}@example.com", "admin")
        other = await keyturn.users.create(f"user{number}@example.com", PASSWORD, by=SERVICE)
        await keyturn.users.create(f"rest{number}@example.com", PASSWORD, "admin", by=SERVICE)
        root = Actor("administrator", str(proof.user_id), HOME, "roots-own-request")
        await keyturn.users.set_role(other.id, "editor", by=root)
        by = root
        if demoted:
            await keyturn.users.set_role(proof.user_id, "user", by=SERVICE)
            by = SERVICE
        pseudonym = await keyturn.erasing.erase(proof.user_id, by=by)
        event = (await keyturn.events.list(limit=1, user_id=other.id))[0]
        assert (event["event"], event["detail"], event["user_id"]) == ("role_changed", "editor", other.id)
        assert (event["actor"], event["actor_id"], event["address"]) == ("administrator", str(pseudonym), None)
        after = await everything(keyturn)
        assert [word for word in (str(proof.user_id), HOME, "roots-own-request") if word in after] == []


async def test_the_last_enabled_administrator_is_not_erased_and_nobody_is_erased_twice(keyturn: Keyturn) -> None:
    root = (await a_user(keyturn, BOB, "admin")).user_id
    disabled = (await a_user(keyturn, ADA, "admin")).user_id
    await keyturn.users.disable(disabled, by=SERVICE)
    before = await everything(keyturn)
    with pytest.raises(Conflict):
        await keyturn.erasing.erase(root, by=SERVICE)
    with pytest.raises(NotFound):
        await keyturn.erasing.erase(uuid7(), by=SERVICE)
    assert await everything(keyturn) == before
    await keyturn.erasing.erase(disabled, by=SERVICE)
    with pytest.raises(NotFound):
        await keyturn.erasing.erase(disabled, by=SERVICE)


async def test_two_administrators_who_erase_each_other_at_once_leave_one(open_keyturn: Opener) -> None:
    async with open_keyturn() as one, open_keyturn() as two:
        for _ in range(5):
            ada, bob = (await a_user(one, ADA, "admin")).user_id, (await a_user(one, BOB, "admin")).user_id
            done = await asyncio.gather(
                one.erasing.erase(bob, by=SERVICE), two.erasing.erase(ada, by=SERVICE), return_exceptions=True
            )
            assert [type(each) for each in done if isinstance(each, Exception)] == [Conflict]
            [left] = await one.users.list(limit=9)
            await one.users.create("next@example.com", PASSWORD, "admin", by=SERVICE)
            await one.erasing.erase(left.id, by=SERVICE)
            [last] = await one.users.list(limit=9)
            async with one.db.begin() as tx:
                await tx.execute(text("DELETE FROM users"))
            assert last.email == "next@example.com"


async def test_the_same_address_created_again_gets_nothing_of_the_former_user(keyturn: Keyturn) -> None:
    first = await a_user(keyturn)
    await keyturn.users.set_claims(first.user_id, {"org": "acme"}, by=SERVICE)
    tokens = await keyturn.starting.start(first, by=SERVICE)
    await keyturn.erasing.erase(first.user_id, by=SERVICE)
    second = await a_user(keyturn)
    assert second.user_id != first.user_id
    user = await keyturn.users.find(ADA)
    assert (user.role, user.claims, user.disabled_at) == ("user", None, None)
    assert user.id not in {row["user_id"] for row in await rows(keyturn, Session)}
    assert [event["event"] for event in await keyturn.events.list(limit=9, user_id=user.id)] == ["user_created"]
    with pytest.raises(InvalidGrant):
        await keyturn.starting.start(first, by=SERVICE)
    await is_refused(keyturn, tokens)
    fresh = await keyturn.starting.start(second, by=SERVICE)
    await is_refused(keyturn, tokens)
    assert (await keyturn.reading.authorise(fresh.access_token)).user_id == second.user_id
    await keyturn.ending.end_of_user(second.user_id, "logout_all", by=SERVICE)
    former = await keyturn.reading.find(tokens.session_id)
    assert former.end_reason == "user_erased"


async def test_no_access_token_of_an_erased_user_is_accepted_whatever_happens_to_redis(
    open_keyturn: Opener, empty_redis: Redis
) -> None:
    async def complete(*instances: Keyturn) -> None:
        with redis.Redis(port=empty_redis.port) as client:
            while not client.exists(MARKER):
                await asyncio.sleep(0.02)
        for instance in instances:
            while await instance.revocations.ping() != "complete":
                await asyncio.sleep(0.02)

    url = empty_redis.url()
    async with open_keyturn(redis_url=url) as one, open_keyturn(redis_url=url) as two:
        await complete(one, two)
        user_id = (await a_user(one)).user_id
        other = await one.starting.start(await a_user(one, BOB), by=SERVICE)
        before = await ada_signs_in(one, user_id)
        await one.ending.end({before.session_id}, "logout", by=SERVICE)
        live = [await ada_signs_in(one, user_id) for _ in range(3)]
        for instance in (one, two):
            for tokens in live:
                await instance.reading.verify(tokens.access_token)
        await one.erasing.erase(user_id, by=SERVICE)
        for instance in (one, two):
            for tokens in (before, *live):
                await is_refused(instance, tokens)
        flush(empty_redis)
        async with open_keyturn(redis_url=url) as three:  # it has no memory of what ended
            for tokens in (before, *live):
                await is_refused(three, tokens)
            await complete(one, two, three)
            with redis.Redis(port=empty_redis.port) as client:  # the rebuild has found each row
                keys = b" ".join(client.keys("*"))
            assert [t.session_id for t in (before, *live) if str(t.session_id).encode() not in keys] == [], keys
            for instance in (one, two, three):
                for tokens in (before, *live):
                    await is_refused(instance, tokens)
                await instance.reading.verify(other.access_token)


async def test_a_session_that_a_deadline_ended_unnoticed_is_erased_too(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    tokens = await keyturn.starting.start(proof, by=SERVICE)
    await time_passes(keyturn, timedelta(days=8))
    pseudonym = await keyturn.erasing.erase(proof.user_id, by=SERVICE)
    [row] = await rows(keyturn, Session)
    assert (row["user_id"], row["end_reason"], row["id"]) == (pseudonym, "user_erased", tokens.session_id)


async def test_the_sessions_of_an_erased_user_stay_as_long_as_revocations_need_them(keyturn: Keyturn) -> None:
    erased, other = await a_user(keyturn), await a_user(keyturn, BOB)
    for proof in (erased, other):
        await keyturn.starting.start(proof, by=SERVICE)
    await keyturn.erasing.erase(erased.user_id, by=SERVICE)
    await keyturn.users.disable(other.user_id, by=SERVICE)
    await time_passes(keyturn, LOOK_BACK - timedelta(minutes=5))
    assert await keyturn.upkeep.gc(by=SERVICE) == 0
    await time_passes(keyturn, timedelta(minutes=5))
    assert await keyturn.upkeep.gc(by=SERVICE) == 1
    assert [row["end_reason"] for row in await rows(keyturn, Session)] == ["user_disabled"]


async def test_an_erasure_that_fails_half_way_has_changed_nothing(
    keyturn: Keyturn, monkeypatch: pytest.MonkeyPatch
) -> None:
    user_id = (await a_user(keyturn)).user_id
    tokens = await ada_signs_in(keyturn, user_id)
    before = await everything(keyturn)

    async def fails(*_: object) -> object:
        raise ArithmeticError("the last statement of the transaction")

    monkeypatch.setattr(keyturn.revocations.publishing, "compare", fails)
    with pytest.raises(ArithmeticError, match="the last statement"):
        await keyturn.erasing.erase(user_id, by=SERVICE)
    assert await everything(keyturn) == before
    assert await keyturn.reading.verify(tokens.access_token)


async def test_a_user_who_never_was_an_administrator_is_erased_without_a_look_at_all_events(keyturn: Keyturn) -> None:
    if not keyturn.db.is_postgres:
        return
    from sqlalchemy import event as listening

    statements: list[str] = []
    user_id = (await a_user(keyturn)).user_id
    await a_user(keyturn, BOB, "admin")
    engine = keyturn.db._engine.sync_engine

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    listening.listen(engine, "before_cursor_execute", note)
    await keyturn.erasing.erase(user_id, by=SERVICE)
    [rewritten] = [statement for statement in statements if statement.startswith("UPDATE events")]
    assert "actor_id = " not in rewritten.partition("WHERE")[2]


def test_the_command_erases_a_user_and_must_be_told_so(command: Command) -> None:
    command.ok("users", "create", ADA, stdin=PASSWORD.encode())
    command.login(ADA)
    command.refused(2, "users", "erase", ADA)
    line = command.ok("users", "erase", ADA, "--yes-erase").out
    assert line.startswith("the user is erased; events name ")
    pseudonym = line.split()[6]
    assert UUID(pseudonym)
    command.refused(1, "users", "show", ADA)
    [session] = command.ok("sessions", "list", "--json").json
    assert (session["user_id"], session["status"], session["email"]) == (pseudonym, "user_erased", None)
    events = command.ok("events", "list", "--json").json
    assert {event["user_id"] for event in events if event["user_id"]} == {pseudonym}
    of_pseudonym = command.ok("events", "list", "--user", pseudonym, "--json").json
    assert of_pseudonym == [event for event in events if event["user_id"]]
    assert command.ok("events", "list", "--user", str(uuid4()), "--json").json == []
