"""A sign-in ends the sessions that it displaces: those of the same device, and the oldest beyond the limit.

tests/test_sign_in_storm.py has many sign-ins at once on two processes.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Select, select

from app.actors import SERVICE, Actor
from app.errors import InvalidGrant, InvalidScope, InvalidToken, TemporarilyUnavailable
from app.keyturn import Keyturn
from app.revocation import redis_server
from app.revocation.publishing import Comparison, Published, Publishing
from app.sessions import start
from app.sessions.answers import Tokens
from app.sessions.displaced import Displaced, Live, Newcomer, end_displaced
from app.sessions.filters import Filter
from app.sessions.start import Authenticated, Starting
from app.storage.tables import Event, Session, uuid7
from tests.conftest import a_user, time_passes
from tests.instances import KEYS, Pair, a_session, fence_of, instance, statements
from tests.servers import Redis

Patch = pytest.MonkeyPatch


async def sign_in(keyturn: Keyturn, proof: Authenticated, device_id: str | None = None, **more: Any) -> Tokens:
    return await keyturn.starting.start(proof, by=SERVICE, device_id=device_id, **more)


async def states(keyturn: Keyturn, proof: Authenticated) -> dict[UUID, str | None]:
    """The sessions of a user in the order of their age, each with the reason of its end."""
    async with keyturn.db.look() as connection:
        query = select(Session.id, Session.end_reason).where(Session.user_id == proof.user_id).order_by(Session.id)
        return {row.id: row.end_reason for row in await connection.execute(query)}


async def reasons(keyturn: Keyturn, proof: Authenticated) -> list[str | None]:
    return list((await states(keyturn, proof)).values())


async def refused(keyturn: Keyturn, tokens: Tokens, reason: str) -> None:
    """Checks that neither token of a session is accepted, and that each refusal tells the reason."""
    with pytest.raises(InvalidToken) as access:
        await keyturn.reading.verify(tokens.access_token)
    with pytest.raises(InvalidGrant) as refresh:
        await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)
    assert [access.value.reason, refresh.value.reason] == [reason, reason]


def limited(keyturn: Keyturn, limit: int | None, **more: Any) -> None:
    """Changes the policy in force."""
    keyturn.policies._in_force = replace(keyturn.policies.in_force, session_limit=limit, **more)


# -- the same device


async def test_a_sign_in_from_the_same_device_replaces_its_session_and_no_other(keyturn: Keyturn) -> None:
    proof, stranger = await a_user(keyturn), await a_user(keyturn, "eve@example.com")
    first, other, none = [await sign_in(keyturn, proof, device) for device in ("laptop", "phone", None)]
    foreign = await sign_in(keyturn, stranger, "laptop")
    by = Actor("user", str(proof.user_id), "192.0.2.7", "request-7")
    again = await keyturn.starting.start(proof, by=by, device_id="laptop", device_name="Ada's laptop")
    await refused(keyturn, first, "replaced")
    for tokens in (other, none, foreign, again):
        await keyturn.reading.verify(tokens.access_token)
        await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)
    async with keyturn.db.look() as connection:
        row = (await connection.execute(select(Session.__table__).where(Session.id == again.session_id))).one()
        assert (row.device_id, row.device_name) == ("laptop", "Ada's laptop")
        told = select(Event.__table__).where(Event.event == "session_ended")
        (event,) = (await connection.execute(told)).all()
    assert (event.session_id, event.reason, event.actor) == (first.session_id, "replaced", "user")
    assert (event.actor_id, event.address, event.request_id) == (str(proof.user_id), "192.0.2.7", "request-7")


async def test_a_device_keeps_its_name_unless_the_sign_in_brings_another(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    tokens = await sign_in(keyturn, proof, "phone")
    await keyturn.naming.name(tokens.session_id, proof.user_id, "Ada's phone", by=SERVICE)
    names = []
    for device_id, more in (("phone", {}), ("other", {}), ("phone", {"device_name": "New"}), ("phone", {})):
        tokens = await sign_in(keyturn, proof, device_id, **more)
        names.append((await keyturn.reading.find(tokens.session_id)).device_name)
    assert names == ["Ada's phone", None, "New", "New"]


async def test_the_same_device_of_another_client_keeps_its_session(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    first = await sign_in(keyturn, proof, "laptop")
    answers, publishing = keyturn.rotation._answers, keyturn.revocations.publishing
    shop = Starting(keyturn.db, keyturn.keys, answers, keyturn.policies, "shop", publishing)
    await shop.start(proof, by=SERVICE, device_id="laptop")
    await keyturn.reading.verify(first.access_token)


async def test_a_sign_in_that_is_refused_ends_nothing(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    limited(keyturn, 1)
    first = await sign_in(keyturn, proof, "laptop")
    stale = replace(proof, password_hash="another")
    with pytest.raises(InvalidGrant):
        await sign_in(keyturn, stale, "laptop")
    with pytest.raises(InvalidScope):
        await sign_in(keyturn, proof, "laptop", scope=frozenset({"everything"}))
    assert await states(keyturn, proof) == {first.session_id: None}
    await keyturn.reading.verify(first.access_token)


async def test_without_device_and_limit_a_sign_in_makes_three_statements(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    await sign_in(keyturn, proof)
    with statements(keyturn) as sent:
        await sign_in(keyturn, proof)
    relevant = [each for each in sent if "users" in each or "INSERT" in each]
    assert [each.split()[0] for each in relevant] == ["SELECT", "INSERT", "INSERT"]
    assert ("FOR SHARE" in relevant[0]) == keyturn.db.is_postgres
    assert [each for each in sent if "FOR NO KEY UPDATE" in each or "pg_advisory" in each] == []


# -- the limit


async def test_of_more_sessions_than_the_limit_the_oldest_end(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    limited(keyturn, 3)
    all_of_them = [await sign_in(keyturn, proof) for _ in range(5)]
    assert await reasons(keyturn, proof) == ["session_limit", "session_limit", None, None, None]
    assert list(await states(keyturn, proof)) == [tokens.session_id for tokens in all_of_them]
    for tokens in all_of_them[:2]:
        await refused(keyturn, tokens, "session_limit")
    for tokens in all_of_them[2:]:
        await keyturn.reading.verify(tokens.access_token)


async def test_a_limit_of_one_leaves_the_newest_alone(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    limited(keyturn, 1)
    for _ in range(3):
        last = await sign_in(keyturn, proof)
    assert await reasons(keyturn, proof) == ["session_limit", "session_limit", None]
    await keyturn.reading.verify(last.access_token)


async def test_a_replaced_session_makes_room_and_no_other_has_to_go(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    limited(keyturn, 2)
    await sign_in(keyturn, proof, "phone")
    await sign_in(keyturn, proof, "laptop")
    await sign_in(keyturn, proof, "laptop")
    assert await reasons(keyturn, proof) == [None, "replaced", None]
    await sign_in(keyturn, proof, "tablet")
    assert await reasons(keyturn, proof) == ["session_limit", "replaced", None, None]


async def test_under_a_lower_limit_the_next_sign_in_ends_all_beyond_it_by_their_own_reasons(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    for device in ("phone", "laptop", None, "tablet", None):
        await sign_in(keyturn, proof, device)
    limited(keyturn, 2)
    assert await reasons(keyturn, proof) == [None] * 5
    await sign_in(keyturn, proof, "laptop")
    expected = ["session_limit", "replaced", "session_limit", "session_limit", None, None]
    assert await reasons(keyturn, proof) == expected


async def test_what_is_past_a_deadline_does_not_count_and_keeps_its_reason(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    limited(keyturn, 2, idle_lifetime=timedelta(seconds=1000))
    older, idle = [await sign_in(keyturn, proof, device) for device in ("phone", "laptop")]
    await time_passes(keyturn, timedelta(seconds=600))
    await keyturn.rotation.refresh(older.refresh_token, by=SERVICE)
    await time_passes(keyturn, timedelta(seconds=600))
    await sign_in(keyturn, proof, "laptop")
    assert await reasons(keyturn, proof) == [None] * 3
    assert (await keyturn.reading.find(idle.session_id)).over() == "idle_timeout"
    assert (await keyturn.reading.find(older.session_id)).over() is None
    await sign_in(keyturn, proof)
    assert await reasons(keyturn, proof) == ["session_limit", None, None, None]


async def test_what_is_under_a_retired_key_does_not_count_and_keeps_its_reason(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    before = [await sign_in(keyturn, proof, "laptop") for _ in range(1)]
    old = keyturn.keys.signing_refresh
    await keyturn.keys.replace(by=SERVICE)
    await keyturn.keys.load()
    assert keyturn.keys.retired(old.number)
    limited(keyturn, 2)
    live = [await sign_in(keyturn, proof, device) for device in ("laptop", None)]
    assert await reasons(keyturn, proof) == [None] * 3
    assert (await keyturn.reading.find(before[0].session_id)).over() not in {None, "replaced", "session_limit"}
    for tokens in live:
        await keyturn.reading.verify(tokens.access_token)


def a_session_of(client_id: str, device_id: str | None) -> Live:
    return Live(uuid7(), client_id, device_id)


@given(
    st.lists(st.builds(a_session_of, st.sampled_from("ab"), st.sampled_from([None, "x", "y"])), max_size=8),
    st.none() | st.integers(1, 6),
    st.sampled_from([None, "x", "y"]),
)
def test_a_sign_in_ends_those_of_its_device_and_of_the_others_as_few_as_the_limit_asks_for(
    live: list[Live], limit: int | None, device_id: str | None
) -> None:
    ends = Newcomer(UUID(int=0), "a", device_id).displaces(live, limit)
    same = {row.id for row in live if row.client_id == "a" and row.device_id == device_id and device_id is not None}
    assert ends.replaced == same
    stay = [row.id for row in live if row.id not in ends.ids]
    rest = [row.id for row in live if row.id not in same]
    assert len(stay) + 1 == (len(rest) + 1 if limit is None else min(limit, len(rest) + 1))
    assert stay == rest[len(rest) - len(stay) :]


# -- scopes


async def test_a_sign_in_gets_the_scopes_that_it_asks_for_and_the_policy_has(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)

    async def granted(scope: frozenset[str] | None) -> str | None:
        tokens = await sign_in(keyturn, proof, scope=scope)
        async with keyturn.db.look() as connection:
            found: str | None = await connection.scalar(select(Session.scope).where(Session.id == tokens.session_id))
        return found

    assert await granted(None) is None
    keyturn.policies._in_force = replace(keyturn.policies.in_force, scopes=frozenset({"write", "read"}))
    assert await granted(None) == "read write"
    assert await granted(frozenset({"read"})) == "read"
    with pytest.raises(InvalidScope):
        await granted(frozenset({"read", "admin"}))


# -- turns


async def test_a_sign_in_that_waits_too_long_for_others_of_its_user_makes_no_session(
    keyturn: Keyturn, monkeypatch: Patch
) -> None:
    proof, stranger = await a_user(keyturn), await a_user(keyturn, "eve@example.com")
    monkeypatch.setattr("app.sessions.turns.QUEUE_LIMIT", timedelta(seconds=0.2))
    async with keyturn.starting._turns.of(proof.user_id):
        with pytest.raises(TemporarilyUnavailable):
            await sign_in(keyturn, proof, "laptop")
        await sign_in(keyturn, stranger, "laptop")
    assert await states(keyturn, proof) == {}
    await sign_in(keyturn, proof, "laptop")
    gc.collect()
    assert len(keyturn.starting._turns._locks) == 0


# -- at once, everywhere


@pytest.fixture(scope="module")
def own_redis() -> Iterator[Redis]:
    with Redis.start() as server:
        yield server


@asynccontextmanager
async def two(database_url: str, own_redis: Redis, patch: Patch) -> AsyncIterator[Pair]:
    """Two instances with Redis, which is complete."""
    patch.setattr(redis_server, "ACKNOWLEDGE_LIMIT", timedelta(seconds=5))
    async with own_redis_client(own_redis) as cache:
        await cache.flushdb()
    async with instance(database_url, own_redis.url(9)) as here, instance(database_url, own_redis.url(9)) as there:
        pair = Pair(here, there)
        await pair.until_complete()
        yield pair


def own_redis_client(server: Redis) -> Any:
    from redis import asyncio as redis_asyncio

    return redis_asyncio.Redis.from_url(server.url(9), decode_responses=True)


async def displaces_at_once(pair: Pair) -> None:
    """Checks that the tokens of a displaced session are refused by the other instance, which asked Redis before."""
    proof = await a_user(pair.here, f"{uuid4()}@example.com")
    for keyturn in (pair.here, pair.there):
        limited(keyturn, 2)
    first, second = [await sign_in(pair.here, proof, device) for device in ("laptop", "phone")]
    for keyturn in (pair.here, pair.there):
        await keyturn.revocations.fence.read()
    for tokens in (first, second):
        await pair.there.reading.verify(tokens.access_token)
    before = await fence_of(pair.here)
    await sign_in(pair.here, proof, "laptop")
    await sign_in(pair.here, proof, "tablet")
    await pair.there.revocations.fence.read()  # else the database answers on a slow machine, and no bug shows
    for tokens in (first, second):
        with pytest.raises(InvalidToken):
            await pair.there.reading.verify(tokens.access_token)
    assert await fence_of(pair.here) == before, "a sign-in that was published need not fence"


postgres_alone = pytest.mark.parametrize("engine", ["postgres"], indirect=True)


@postgres_alone
async def test_where_redis_is_believed_a_displaced_session_is_refused_at_once_and_nothing_fences(
    database_url: str, own_redis: Redis, monkeypatch: Patch
) -> None:
    async with two(database_url, own_redis, monkeypatch) as pair:
        await displaces_at_once(pair)


@postgres_alone
async def test_the_keys_are_set_before_the_sessions_end(
    database_url: str, own_redis: Redis, monkeypatch: Patch
) -> None:
    async with two(database_url, own_redis, monkeypatch) as pair:
        await goes_in_order(pair)


def recorded(patch: Patch) -> list[str]:
    """Records the order of the steps that app/revocation/publishing.py asks for."""
    order: list[str] = []

    def noting(owner: Any, name: str, word: str) -> None:
        real = getattr(owner, name)

        async def noted(*args: Any, **more: Any) -> Any:
            if word != "looks" or order:  # the look before the first step decides nothing
                order.append(word)
            return await real(*args, **more)

        patch.setattr(owner, name, noted)

    noting(Publishing, "publish", "publish")
    noting(Publishing, "hold", "hold")
    noting(Newcomer, "looks", "looks")
    noting(start, "end_displaced", "ends")
    noting(Publishing, "compare", "compare")
    noting(Comparison, "known_to_all", "known to all")
    return order


@postgres_alone
async def test_an_act_that_ends_no_session_does_not_fence(
    database_url: str, own_redis: Redis, monkeypatch: Patch
) -> None:
    async with two(database_url, own_redis, monkeypatch) as pair:
        proof, before = await a_user(pair.here), await fence_of(pair.here)
        await sign_in(pair.here, proof, "laptop")
        assert await fence_of(pair.here) == before
        await pair.here.ending.end({(await a_session(pair.here)).session_id}, "logout", by=SERVICE)
        stranger = await a_user(pair.here, "eve@example.com")
        assert await pair.here.users.disable(stranger.user_id, by=SERVICE) == 0
        assert await fence_of(pair.here) == before


@postgres_alone
async def test_a_sign_in_that_finds_other_sessions_than_it_published_looks_again_and_does_not_fence(
    database_url: str, own_redis: Redis, monkeypatch: Patch
) -> None:
    async with two(database_url, own_redis, monkeypatch) as pair:
        proof = await a_user(pair.here)
        await sign_in(pair.here, proof, "laptop")
        before, publish, published = await fence_of(pair.here), Publishing.publish, list[frozenset[UUID]]()

        async def overtaken(self: Publishing, ids: Any) -> Published:
            seen = await publish(self, ids)
            if self is pair.here.revocations.publishing:
                published.append(seen.ids)
                if len(published) == 1:
                    await sign_in(pair.there, proof, "laptop")
            return seen

        monkeypatch.setattr(Publishing, "publish", overtaken)
        await sign_in(pair.here, proof, "laptop")
        assert len(published) == 2
        assert published[0] != published[1]
        assert await reasons(pair.here, proof) == ["replaced", "replaced", None]
        assert await fence_of(pair.here) == before


@postgres_alone
async def test_a_sign_in_that_others_overtake_again_and_again_fences_at_last(
    database_url: str, own_redis: Redis, monkeypatch: Patch
) -> None:
    async with two(database_url, own_redis, monkeypatch) as pair:
        proof = await a_user(pair.here)
        await sign_in(pair.here, proof, "laptop")
        publish, last = Publishing.publish, list[Tokens]()

        async def overtaken(self: Publishing, ids: Any) -> Published:
            seen = await publish(self, ids)
            if self is pair.here.revocations.publishing:
                last.append(await sign_in(pair.there, proof, "laptop"))
            return seen

        monkeypatch.setattr(Publishing, "publish", overtaken)
        await sign_in(pair.here, proof, "laptop")
        assert len(last) == start._ATTEMPTS
        assert (await fence_of(pair.here))[1] is None
        await pair.there.revocations.fence.read()
        with pytest.raises(InvalidToken):
            await pair.there.reading.verify(last[-1].access_token)


@postgres_alone
async def test_where_redis_has_stopped_a_displaced_session_is_refused_at_once(
    database_url: str, monkeypatch: Patch
) -> None:
    with Redis.start() as server:
        async with two(database_url, server, monkeypatch) as pair:
            proof = await a_user(pair.here)
            first = await sign_in(pair.here, proof, "laptop")
            await pair.there.reading.verify(first.access_token)
            server.stop()
            await sign_in(pair.here, proof, "laptop")
            with pytest.raises(InvalidToken) as caught:
                await pair.there.reading.verify(first.access_token)
            assert caught.value.reason == "replaced"
            assert (await fence_of(pair.here))[1] is None


# -- planted bugs

Check = Callable[[Pair], Any]


async def keeps_to_the_limit(pair: Pair) -> None:
    """Checks that two parallel sign-ins on two instances leave exactly as many sessions as the limit allows."""
    proof = await a_user(pair.here, f"{uuid4()}@example.com")
    for keyturn in (pair.here, pair.there):
        limited(keyturn, 3)
    for _ in range(3):
        await sign_in(pair.here, proof)
    assert await reasons(pair.here, proof) == [None] * 3
    await asyncio.gather(*(sign_in(keyturn, proof) for keyturn in (pair.here, pair.there)))
    assert await reasons(pair.here, proof) == ["session_limit"] * 2 + [None] * 3


async def counts_the_live_alone(pair: Pair) -> None:
    """Checks that a session past a deadline takes no room from an older one that lives."""
    proof = await a_user(pair.here, f"{uuid4()}@example.com")
    limited(pair.here, 2, idle_lifetime=timedelta(seconds=1000))
    older, _ = [await sign_in(pair.here, proof) for _ in range(2)]
    await time_passes(pair.here, timedelta(seconds=600))
    await pair.here.rotation.refresh(older.refresh_token, by=SERVICE)
    await time_passes(pair.here, timedelta(seconds=600))
    await sign_in(pair.here, proof)
    assert await reasons(pair.here, proof) == [None] * 3


async def goes_in_order(pair: Pair) -> None:
    """Checks the order of the steps, and that Redis has the key before the session ends."""
    with pytest.MonkeyPatch.context() as patch:
        proof = await a_user(pair.here, f"{uuid4()}@example.com")
        await sign_in(pair.here, proof, "laptop")
        real, there = end_displaced, list[int]()

        async def ends(tx: Any, db: Any, policy: Any, displaced: Displaced, *, by: Actor) -> Any:
            names = [f"{KEYS}{session_id}" for session_id in displaced.ids]
            _, (count,) = await pair.there.revocations.redis.send([("EXISTS", *names)])
            there.append(count)
            return await real(tx, db, policy, displaced, by=by)

        patch.setattr(start, "end_displaced", ends)
        order = recorded(patch)
        await sign_in(pair.here, proof, "laptop")
        assert order == ["publish", "hold", "looks", "ends", "compare", "known to all"]
        assert there == [1]


def no_lock(patch: Patch) -> None:
    real, looks = Select.with_for_update, Newcomer.looks
    patch.setattr(Select, "with_for_update", lambda self, **m: self if m.get("key_share") else real(self, **m))

    async def slowly(self: Newcomer, *args: Any) -> Any:
        found = await looks(self, *args)
        await asyncio.sleep(0.3)  # the other instance comes to the same count meanwhile
        return found

    patch.setattr(Newcomer, "looks", slowly)


def off_by(number: int) -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        real = Newcomer.displaces
        patch.setattr(Newcomer, "displaces", lambda self, live, limit: real(self, live, limit and limit + number))

    plant.__name__ = f"off_by_{number}"
    return plant


def expired_ones_count(patch: Patch) -> None:
    patch.setattr(Filter, "conditions", lambda self, *_: [*self.matching(), Session.ended_at.is_(None)])


def publish_left_out(patch: Patch) -> None:
    async def publish(_: Publishing, ids: Any) -> Published:
        return Published(frozenset(ids), None, frozenset())

    patch.setattr(Publishing, "publish", publish)


def compare_and_publish_left_out(patch: Patch) -> None:
    publish_left_out(patch)

    async def compare(self: Publishing, *_: Any) -> Comparison:
        return self.comparison("", fenced=False)

    patch.setattr(Publishing, "compare", compare)


def published_after_the_commit(patch: Patch) -> None:
    real, publish = Starting._start_in_turn, Publishing.publish
    late: list[Any] = []

    async def remembered(self: Publishing, ids: Any) -> Published:
        late.append((self, ids))
        return Published(frozenset(ids), None, frozenset())

    async def started(self: Starting, *args: Any) -> Any:
        done = await real(self, *args)
        for publishing, ids in late:
            await publish(publishing, ids)
        return done

    patch.setattr(Publishing, "publish", remembered)
    patch.setattr(Starting, "_start_in_turn", started)


def compared_before_the_sessions_end(patch: Patch) -> None:
    looks = Newcomer.looks

    async def compared(self: Newcomer, connection: Any, db: Any, *more: Any) -> Any:
        found = await looks(self, connection, db, *more)
        if publishing:
            await publishing[0].compare(connection, Published(found.ids, None, frozenset()), ())
        return found

    publishing: list[Publishing] = []
    hold = Publishing.hold

    async def held(self: Publishing, tx: Any) -> None:
        publishing[:] = [self]
        await hold(self, tx)

    patch.setattr(Publishing, "hold", held)
    patch.setattr(Newcomer, "looks", compared)


BUGS: Sequence[tuple[Callable[[Patch], None], Check]] = (
    (no_lock, keeps_to_the_limit),
    (off_by(1), keeps_to_the_limit),
    (off_by(-1), keeps_to_the_limit),
    (expired_ones_count, counts_the_live_alone),
    (publish_left_out, displaces_at_once),
    (compare_and_publish_left_out, displaces_at_once),
    (published_after_the_commit, goes_in_order),
    (compared_before_the_sessions_end, goes_in_order),
)


@postgres_alone
@pytest.mark.parametrize(("plant", "check"), BUGS, ids=lambda each: each.__name__)
async def test_each_planted_bug_is_found(
    database_url: str, own_redis: Redis, monkeypatch: Patch, plant: Callable[[Patch], None], check: Check
) -> None:
    async with two(database_url, own_redis, monkeypatch) as pair:
        await check(pair)
        if check is not goes_in_order:
            await pair.until_complete()
        with pytest.MonkeyPatch.context() as patch:
            plant(patch)
            with pytest.raises((AssertionError, pytest.fail.Exception)):
                await check(pair)
