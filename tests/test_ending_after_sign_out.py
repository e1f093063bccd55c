"""Sessions that were over since everyone was signed out keep that reason and that moment, whatever ends them again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import select, update

from app.actors import SERVICE
from app.keyturn import Keyturn
from app.sessions.answers import Tokens
from app.sessions.filters import Filter
from app.storage.tables import Key, Session
from tests.conftest import a_user

End = Callable[[Keyturn, Tokens], Awaitable[object]]


async def _by_filter(keyturn: Keyturn, _: Tokens) -> int:
    every = Filter(client_id="first-party")
    preview = await keyturn.reading.count(every, ranges=9)
    ended = (await keyturn.sweeping.end_matching(every, by=SERVICE, ranges=9))[0]
    assert preview == (ended, None)
    return ended


async def _by_id(keyturn: Keyturn, old: Tokens) -> int:
    ended = await keyturn.ending.end({old.session_id}, "revoked_by_admin", by=SERVICE)
    assert ended == 0
    return ended + 1


async def _of_user(keyturn: Keyturn, old: Tokens) -> int:
    user_id = (await keyturn.reading.find(old.session_id)).user_id
    return await keyturn.ending.end_of_user(user_id, "password_changed", by=SERVICE)


async def _by_logout(keyturn: Keyturn, old: Tokens) -> int:
    await keyturn.ending.logout((), [old.refresh_token], "this", by=SERVICE)
    return 1


@pytest.mark.parametrize("end", [_by_filter, _by_id, _of_user, _by_logout])
async def test_a_later_end_keeps_the_reason_and_counts_only_the_sessions_that_lived(keyturn: Keyturn, end: End) -> None:
    proof = await a_user(keyturn)
    old = await keyturn.starting.start(proof, by=SERVICE)
    await keyturn.key_changes.sign_everyone_out(by=SERVICE)
    await keyturn.keys.load()
    await keyturn.starting.start(proof, by=SERVICE)
    assert await end(keyturn, old) == 1
    row = await keyturn.reading.find(old.session_id)
    async with keyturn.db.look() as connection:
        retired_at = await connection.scalar(select(Key.retired_at).where(Key.use == "refresh", Key.number == 1))
    assert (row.over(), row.over_since(), row.ended_at) == ("signed_out_everywhere", retired_at, None)


async def test_a_deadline_that_passed_before_everyone_was_signed_out_stays_the_reason(keyturn: Keyturn) -> None:
    old = await keyturn.starting.start(await a_user(keyturn), by=SERVICE)

    async with keyturn.db.begin() as tx:
        await tx.execute(update(Session).values(idle_expires_at=Session.rotated_at))
    await keyturn.key_changes.sign_everyone_out(by=SERVICE)
    assert await keyturn.ending.end({old.session_id}, "logout", by=SERVICE) == 0
    assert (await keyturn.reading.find(old.session_id)).over() == "idle_timeout"


async def test_a_deadline_that_passes_after_everyone_was_signed_out_is_not_the_reason(keyturn: Keyturn) -> None:
    old = await keyturn.starting.start(await a_user(keyturn), by=SERVICE)
    await keyturn.key_changes.sign_everyone_out(by=SERVICE)
    async with keyturn.db.begin() as tx:
        now = await tx.scalar(select(keyturn.db.now()))
        assert now is not None
        await tx.execute(update(Session).values(idle_expires_at=now))
    assert await keyturn.ending.end({old.session_id}, "logout", by=SERVICE) == 0
    assert (await keyturn.reading.find(old.session_id)).over() == "signed_out_everywhere"
