"""Signing everyone out: one act on the keys, after which every token made so far is refused, and no session's row is
written."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from app.actors import SERVICE, Actor
from app.errors import ConfigurationError, InvalidGrant, InvalidToken, TemporarilyUnavailable
from app.events.reading import Events
from app.keyturn import Keyturn
from app.sessions.filters import Filter
from app.sessions.walk import BEGINNING
from app.storage.copies import READ_BY_ALL
from app.storage.tables import Key, Session
from tests.conftest import Opener, a_user
from tests.test_keys import nothing, published, status, until

REASON = "signed_out_everywhere"


async def session_rows(keyturn: Keyturn) -> list[Any]:
    async with keyturn.db.look() as connection:
        return list((await connection.execute(select(Session.__table__).order_by(Session.id))).all())


async def refused(keyturn: Keyturn, refresh_token: str, reason: str | None = REASON) -> None:
    with pytest.raises(InvalidGrant) as caught:
        await keyturn.rotation.refresh(refresh_token, by=SERVICE)
    assert caught.value.reason == reason


async def test_every_token_made_so_far_is_refused_everywhere_and_no_session_s_row_is_written(
    open_keyturn: Opener,
) -> None:
    async with open_keyturn() as one, open_keyturn() as two:
        proof = await a_user(one)
        tokens = [await one.starting.start(proof, by=SERVICE) for _ in range(3)]
        old = await one.rotation.refresh(tokens[0].refresh_token, by=SERVICE)
        cookie = one.cookies._sealed.seal("name", old.session_id, b"plain")
        before = await session_rows(one)
        made = await one.key_changes.sign_everyone_out(by=Actor("command", "ada"))
        await refused(one, old.refresh_token)  # at once, where the act was answered
        with pytest.raises(InvalidToken):
            await one.reading.verify(old.access_token)
        for keyturn in (one, two):
            await until(lambda: keyturn.keys.retired(1) is not None, READ_BY_ALL.total_seconds() * 5)  # noqa: B023  # called at once
            for each in (old, *tokens):
                with pytest.raises(InvalidToken):
                    await keyturn.reading.verify(each.access_token)
                with pytest.raises(InvalidToken):
                    await keyturn.reading.authorise(each.access_token)
                await refused(keyturn, each.refresh_token)
            assert keyturn.cookies._sealed.open("name", cookie) == (old.session_id, b"plain")
        assert await session_rows(one) == before
        assert (await one.reading.list(Filter(), limit=9)).sessions == []
        assert {row.over() for row in (await one.reading.list(Filter(status="all"), limit=9)).sessions} == {REASON}
        assert (await one.reading.find(old.session_id)).over() == REASON
        assert {made.access_kid, made.refresh_kid} < {k for k, said in (await status(one)).items() if said == "signs"}
        events = [e for e in await Events(one.db).list(limit=9) if e["event"] in {REASON, "key_retired"}]
        assert [e["event"] for e in events] == ["key_retired", "key_retired", REASON]
        assert {(e["actor"], e["actor_id"]) for e in events} == {("command", "ada")}


async def test_a_session_that_ended_before_keeps_its_reason(keyturn: Keyturn) -> None:
    tokens = await keyturn.starting.start(await a_user(keyturn), by=SERVICE)
    await keyturn.ending.end({tokens.session_id}, "logout", by=SERVICE)
    await keyturn.key_changes.sign_everyone_out(by=SERVICE)
    await keyturn.keys.load()
    assert (await keyturn.reading.find(tokens.session_id)).over() == "logout"
    await refused(keyturn, tokens.refresh_token, "logout")


async def test_no_later_act_gives_a_session_another_reason_or_another_end(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    tokens = [await keyturn.starting.start(proof, by=SERVICE, device_id="phone") for _ in range(2)][1]
    await keyturn.key_changes.sign_everyone_out(by=SERVICE)
    session_id, user_id = tokens.session_id, proof.user_id
    before = await keyturn.reading.find(session_id)
    assert (before.over(), before.over_since()) == (REASON, before.key_retired_at)
    assert before.key_retired_at is not None
    everything = Filter(user_id=user_id)
    assert await keyturn.reading.count(everything, after=BEGINNING, ranges=9) == (0, None)
    assert await keyturn.sweeping.end_matching(everything, by=SERVICE, ranges=9) == (0, None)
    assert await keyturn.ending.end({session_id}, "revoked_by_admin", by=SERVICE) == 0
    await keyturn.ending.logout([], [tokens.refresh_token], "this", by=SERVICE)
    await keyturn.starting.start(proof, by=SERVICE, device_id="phone")
    assert await keyturn.users.set_password(user_id, "another good one", by=SERVICE) == 1  # the new sign-in
    assert await keyturn.users.disable(user_id, by=SERVICE) == 0
    after = await keyturn.reading.find(session_id)
    assert (after.over(), after.over_since()) == (REASON, before.key_retired_at)
    events = await Events(keyturn.db).list(limit=9, session_id=session_id)
    assert [e["event"] for e in events] == ["session_started"]
    await keyturn.erasing.erase(user_id, by=SERVICE)  # alone goes before
    assert (await keyturn.reading.find(session_id)).over() == "user_erased"


async def test_keys_of_a_rotation_under_way_are_retired_too(keyturn: Keyturn) -> None:
    tokens = await keyturn.starting.start(await a_user(keyturn), by=SERVICE)
    await keyturn.key_changes.rotate("refresh", by=SERVICE)
    await keyturn.key_changes.rotate("access", by=SERVICE)
    made = await keyturn.key_changes.sign_everyone_out(by=SERVICE)
    in_force = {kid for kid, said in (await status(keyturn)).items() if said != "retired"}
    assert in_force == {made.access_kid, made.refresh_kid, keyturn.keys.signing_cookie.kid}
    await keyturn.keys.load()
    await refused(keyturn, tokens.refresh_token)


async def test_a_sign_in_works_at_once_also_where_the_new_keys_were_not_read_yet_and_everywhere(
    open_keyturn: Opener,
) -> None:
    async with open_keyturn() as one, open_keyturn() as late, open_keyturn() as third:
        proof = await a_user(one)
        for keyturn in (late, third):
            keyturn.revocations.fence.on_reading = lambda _: None  # no reading of the pulse tells it of new keys
        await one.key_changes.sign_everyone_out(by=SERVICE)
        tokens = await late.starting.start(proof, by=SERVICE)
        assert late.keys.verify_refresh_token(tokens.refresh_token).key.number == 2
        # By the time of the answer, every process that reads the pulse knows the keys.
        await one.reading.verify(tokens.access_token)
        tokens = await one.rotation.refresh(tokens.refresh_token, by=SERVICE)
        await third.keys.load()
        await third.reading.verify(tokens.access_token)
        await third.rotation.refresh(tokens.refresh_token, by=SERVICE)


async def test_a_sign_in_under_keys_that_only_this_process_knows_waits_until_all_know_them(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    await keyturn.starting.start(proof, by=SERVICE)
    assert not keyturn.keys._set.unpublished  # each process knows the first keys from its start on
    made = await keyturn.key_changes.sign_everyone_out(by=SERVICE)
    await keyturn.starting.start(proof, by=SERVICE)
    async with keyturn.db.look() as connection:
        answered = await connection.scalar(select(keyturn.db.now()))
        created = await connection.scalar(select(Key.created_at).where(Key.kid == made.refresh_kid))
    assert created is not None
    assert answered is not None
    assert answered - created >= READ_BY_ALL - timedelta(milliseconds=50)  # the process estimates the database's clock
    # A key that was published is known to all when it signs.
    await published(keyturn, (await keyturn.key_changes.rotate("refresh", by=SERVICE)).kid)
    await keyturn.keys.load()
    assert keyturn.keys.signing_refresh.number == 3
    assert list(keyturn.keys._set.unpublished) == [2]


async def test_sign_ins_that_find_new_keys_at_once_read_them_once(
    open_keyturn: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_keyturn() as one, open_keyturn() as late:
        late.revocations.fence.on_reading = lambda _: None
        await one.key_changes.sign_everyone_out(by=SERVICE)
        reads, read = 0, late.keys.read

        async def counted() -> Any:
            nonlocal reads
            reads += 1
            return await read()

        monkeypatch.setattr(late.keys, "read", counted)
        await asyncio.gather(*(late.keys.catch_up() for _ in range(20)))
        assert reads == 1
        await late.keys.catch_up()
        assert reads == 1


async def test_a_sign_in_that_can_not_read_the_new_keys_is_an_outage_and_no_defect(
    open_keyturn: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_keyturn() as one, open_keyturn() as late:
        late.revocations.fence.on_reading = lambda _: None
        proof = await a_user(one)
        await one.key_changes.sign_everyone_out(by=SERVICE)

        async def read() -> Any:
            raise ConfigurationError("a row was changed")

        monkeypatch.setattr(late.keys, "read", read)
        with pytest.raises(TemporarilyUnavailable, match="a row was changed"):
            await late.starting.start(proof, by=SERVICE)


async def test_a_refresh_under_way_gets_no_token_under_the_new_keys(
    open_keyturn: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_keyturn() as one:
        proof = await a_user(one)
        first, second = [await one.starting.start(proof, by=SERVICE) for _ in range(2)]
        rotations, rotate = one.rotation._rotations, one.rotation._rotate

        # The new keys are read after the token was verified and before its session is rotated.
        async def read_before(presented: Any) -> Any:
            await one.key_changes.sign_everyone_out(by=SERVICE)
            await one.keys.load()
            return await rotations(presented)

        monkeypatch.setattr(one.rotation, "_rotations", read_before)
        await refused(one, first.refresh_token)
        assert {row.key_number for row in await session_rows(one)} == {1}
        # The new keys are read after the session was rotated and before the answer is made.
        monkeypatch.setattr(one.rotation, "_rotations", rotations)
        third = await one.starting.start(proof, by=SERVICE)

        async def read_after(presented: Any) -> Any:
            [row] = await rotate([presented])
            await one.key_changes.sign_everyone_out(by=SERVICE)
            await one.keys.load()
            return row

        monkeypatch.setattr(one.rotation, "_rotations", read_after)
        await refused(one, third.refresh_token)
        monkeypatch.setattr(one.rotation, "_rotations", rotations)
        await refused(one, second.refresh_token)
        assert (await one.reading.list(Filter(), limit=9)).sessions == []


async def test_a_sign_in_that_looked_at_the_pulse_just_before_is_signed_out_too(
    open_keyturn: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_keyturn() as one, open_keyturn() as late:
        proof = await a_user(one)
        late.revocations.fence.on_reading = lambda _: None
        monkeypatch.setattr(late.keys, "catch_up", nothing)
        await one.key_changes.sign_everyone_out(by=SERVICE)
        tokens = await late.starting.start(proof, by=SERVICE)
        await one.keys.load()
        with pytest.raises(InvalidToken):
            await one.reading.verify(tokens.access_token)
        await refused(one, tokens.refresh_token)
        # The process reads the new keys between the transaction and the answer.
        known_to_all = late.keys.known_to_all

        async def read_after(key: Any) -> None:
            await late.keys.load()
            await known_to_all(key)

        monkeypatch.setattr(late.keys, "known_to_all", read_after)
        with pytest.raises(InvalidGrant) as caught:
            await late.starting.start(proof, by=SERVICE)
        assert caught.value.reason == REASON


@pytest.mark.parametrize("reach", ["this", "others", "all"])
async def test_a_token_of_a_session_that_was_signed_out_ends_no_other_session(keyturn: Keyturn, reach: Any) -> None:
    proof = await a_user(keyturn)
    old = await keyturn.starting.start(proof, by=SERVICE)
    await keyturn.key_changes.sign_everyone_out(by=SERVICE)
    new = await keyturn.starting.start(proof, by=SERVICE)
    if reach == "this":  # a session that is over already is no error
        assert await keyturn.ending.logout((), [old.refresh_token], "this", by=SERVICE) == {old.session_id}
    else:
        with pytest.raises(InvalidGrant) as caught:
            await keyturn.ending.logout((), [old.refresh_token], reach, by=SERVICE)
        assert caught.value.reason == REASON
    with pytest.raises(InvalidToken):
        await keyturn.ending.logout([old.access_token], (), reach, by=SERVICE)
    assert (await keyturn.reading.find(new.session_id)).over() is None
    await keyturn.rotation.refresh(new.refresh_token, by=SERVICE)


async def test_two_calls_at_once_leave_one_pair_of_keys_that_signs(open_keyturn: Opener) -> None:
    async with open_keyturn() as one, open_keyturn() as two:
        made = await asyncio.gather(*(k.key_changes.sign_everyone_out(by=SERVICE) for k in (one, two)))
        in_force = {kid for kid, said in (await status(one)).items() if said != "retired"}
        assert len(in_force) == 3
        assert sum(each.refresh_kid in in_force and each.access_kid in in_force for each in made) == 1


async def test_a_replaced_master_secret_still_says_revoked_by_admin(keyturn: Keyturn) -> None:
    tokens = await keyturn.starting.start(await a_user(keyturn), by=SERVICE)
    await keyturn.keys.replace(by=SERVICE)
    await keyturn.keys.load()
    assert (await keyturn.reading.find(tokens.session_id)).over() == "revoked_by_admin"
    async with keyturn.db.begin() as tx:
        await tx.execute(update(Key).where(Key.number == 1).values(retired_for=REASON))
    assert (await keyturn.reading.find(tokens.session_id)).over() == REASON
