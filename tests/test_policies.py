"""The policy of a session stands in its row. The policy in force can shorten its durations, and lengthens none."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from app.actors import SERVICE, Actor
from app.errors import InvalidGrant
from app.keyturn import Keyturn
from app.policies import Policies, Policy
from app.sessions.start import Authenticated, Starting
from app.storage.tables import Session
from tests.conftest import Opener, a_user, time_passes

SECOND = timedelta(seconds=1)
SHOP = Policy(
    idle_lifetime=3000 * SECOND, absolute_lifetime=9000 * SECOND, retry_window=10 * SECOND, access_lifetime=120 * SECOND
)
BANK = Policy(
    idle_lifetime=1000 * SECOND, absolute_lifetime=1500 * SECOND, retry_window=0 * SECOND, access_lifetime=45 * SECOND
)


def of_client(keyturn: Keyturn, policy: Policy, client_id: str) -> Starting:
    publishing, policies = keyturn.revocations.publishing, Policies(keyturn.db, policy)
    return Starting(keyturn.db, keyturn.keys, keyturn.rotation._answers, policies, client_id, publishing)


def lifetimes(tokens: Any) -> Sequence[object]:
    body = tokens.body()
    return [body[name] for name in ("expires_in", "refresh_expires_in", "session_expires_in")]


async def test_two_clients_with_different_lifetimes_that_refresh_in_one_batch_each_get_theirs(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    shop, bank = [
        await of_client(keyturn, policy, name).start(proof, by=SERVICE)
        for policy, name in ((SHOP, "shop"), (BANK, "bank"))
    ]
    assert lifetimes(shop) == [120, 3000, 9000]
    assert lifetimes(bank) == [45, 1000, 1500]
    await time_passes(keyturn, 600 * SECOND)
    sizes: list[int] = []
    run = keyturn.rotation._rotations._run

    async def recorded(batch: Any) -> Any:
        sizes.append(len(batch))
        return await run(batch)

    keyturn.rotation._rotations._run = recorded
    refreshed = await asyncio.gather(*(keyturn.rotation.refresh(t.refresh_token, by=SERVICE) for t in (shop, bank)))
    assert sizes == [2]
    (access, idle, absolute), (bank_access, bank_idle, bank_absolute) = map(lifetimes, refreshed)
    assert (access, idle) == (120, 3000)
    assert 8390 <= int(str(absolute)) <= 8400
    # At the bank, the absolute deadline is 900 seconds ahead and nearer than the idle deadline.
    assert bank_access == 45
    assert bank_idle == bank_absolute
    assert 890 <= int(str(bank_idle)) <= 900
    tokens = [await keyturn.reading.verify(each.access_token) for each in refreshed]
    assert [(t.client_id, t.claims["exp"] - t.claims["iat"]) for t in tokens] == [("shop", 120), ("bank", 45)]
    # A retry window of zero means strict single use. The shop's retry gets the same answer again.
    again = await keyturn.rotation.refresh(shop.refresh_token, by=SERVICE)
    assert (again.access_token, again.refresh_token) == (refreshed[0].access_token, refreshed[0].refresh_token)
    with pytest.raises(InvalidGrant) as caught:
        await keyturn.rotation.refresh(bank.refresh_token, by=SERVICE)
    assert caught.value.reason == "reuse_detected"


async def test_the_idle_lifetime_of_the_row_ends_a_session_however_long_the_one_in_force_is(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    shop, bank = [
        await of_client(keyturn, policy, name).start(proof, by=SERVICE)
        for policy, name in ((SHOP, "shop"), (BANK, "bank"))
    ]
    bank = await keyturn.rotation.refresh(bank.refresh_token, by=SERVICE)
    await time_passes(keyturn, 1001 * SECOND)
    with pytest.raises(InvalidGrant) as caught:
        await keyturn.rotation.refresh(bank.refresh_token, by=SERVICE)
    assert caught.value.reason == "idle_timeout"
    await keyturn.rotation.refresh(shop.refresh_token, by=SERVICE)


async def test_a_policy_in_force_that_is_shorter_shortens_every_duration_of_the_row(open_keyturn: Opener) -> None:
    short = {"refresh_token_lifetime": 500, "session_lifetime": 800, "retry_window": 5, "access_token_lifetime": 60}
    async with open_keyturn() as long, open_keyturn(**short) as strict:
        proof = await a_user(long)
        first = await of_client(long, SHOP, "shop").start(proof, by=SERVICE)
        second = await strict.rotation.refresh(first.refresh_token, by=SERVICE)
        access, idle, absolute = lifetimes(second)
        assert (access, idle) == (60, 500)
        assert 790 <= int(str(absolute)) <= 800
        await time_passes(long, 6 * SECOND)
        assert (await long.rotation.refresh(first.refresh_token, by=SERVICE)).refresh_token == second.refresh_token
        with pytest.raises(InvalidGrant) as caught:
            await strict.rotation.refresh(first.refresh_token, by=SERVICE)
        assert caught.value.reason == "reuse_detected"


async def test_a_policy_in_force_that_is_longer_lengthens_nothing(open_keyturn: Opener) -> None:
    short = {"refresh_token_lifetime": 500, "session_lifetime": 800, "retry_window": 0, "access_token_lifetime": 60}
    async with open_keyturn() as long, open_keyturn(**short) as strict:
        tokens = await strict.starting.start(await a_user(strict), by=SERVICE)
        newer = await long.rotation.refresh(tokens.refresh_token, by=SERVICE)
        access, idle, absolute = lifetimes(newer)
        assert (access, idle) == (60, 500)
        assert 790 <= int(str(absolute)) <= 800
        with pytest.raises(InvalidGrant) as caught:
            await long.rotation.refresh(tokens.refresh_token, by=SERVICE)
        assert caught.value.reason == "reuse_detected"


async def test_a_sign_in_keeps_on_the_row_how_when_and_from_where_it_was_made(keyturn: Keyturn) -> None:
    proof: Authenticated = await a_user(keyturn)
    tokens = await keyturn.starting.start(proof, by=Actor("user", str(proof.user_id), "192.0.2.1", "request-1"))
    async with keyturn.db.look() as connection:
        row = (await connection.execute(select(Session.__table__))).one()
    assert row.id == tokens.session_id
    assert (row.amr, row.address, row.auth_time) == ("pwd", "192.0.2.1", row.created_at)
    assert Policy.of(keyturn.settings) == Policy(
        row.idle_lifetime, row.absolute_lifetime, row.retry_window, row.access_lifetime
    )


async def test_a_session_that_a_shorter_policy_ended_keeps_that_reason_whoever_ends_it_later(
    open_keyturn: Opener,
) -> None:
    async with open_keyturn() as keyturn:
        proof = await a_user(keyturn)
        sessions = [await keyturn.starting.start(proof, by=SERVICE) for _ in range(2)]
    async with open_keyturn(refresh_token_lifetime=1000) as stricter:
        await time_passes(stricter, timedelta(seconds=1100))
        assert (await stricter.reading.find(sessions[0].session_id)).over() == "idle_timeout"
        assert await stricter.ending.end({sessions[0].session_id}, "revoked_by_admin", by=SERVICE) == 0
        await stricter.ending.logout((), [sessions[1].refresh_token], "this", by=SERVICE)
        for tokens in sessions:
            assert (await stricter.reading.find(tokens.session_id)).over() == "idle_timeout"
    async with open_keyturn(session_lifetime=1000, refresh_token_lifetime=900) as stricter:
        tokens = await stricter.starting.start(proof, by=SERVICE)
        await time_passes(stricter, timedelta(seconds=800))
        tokens = await stricter.rotation.refresh(tokens.refresh_token, by=SERVICE)
        await time_passes(stricter, timedelta(seconds=300))
        assert await stricter.ending.end({tokens.session_id}, "revoked_by_admin", by=SERVICE) == 0
        assert (await stricter.reading.find(tokens.session_id)).over() == "absolute_timeout"
