"""A session that is refreshed from elsewhere: its history says so once a day, behind the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from sqlalchemy import select

from app.actors import Actor
from app.keyturn import Keyturn
from app.sessions.answers import Tokens
from app.sessions.moves import Moves
from app.storage.tables import Event, Session
from tests.conftest import a_user, time_passes

HOME, AWAY = Actor("anonymous", address="192.0.2.1"), Actor("anonymous", address="198.51.100.7")


async def signed_in(keyturn: Keyturn) -> Tokens:
    return await keyturn.starting.start(await a_user(keyturn), by=HOME, user_agent="phone")


async def refreshed(keyturn: Keyturn, tokens: Tokens, by: Actor, user_agent: str | None = "phone") -> Tokens:
    newer = await keyturn.rotation.refresh(tokens.refresh_token, by=by)
    keyturn.moves.seen(newer, by=by, user_agent=user_agent)
    return newer


async def moves(keyturn: Keyturn, count: int) -> list[Any]:
    """The events of moves, as soon as there are so many, or after five seconds."""
    found: list[Any] = []
    for _ in range(100):
        async with keyturn.db.look() as connection:
            query = select(Event.__table__).where(Event.event == "session_moved").order_by(Event.id)
            found = [*(await connection.execute(query)).mappings()]
        if len(found) >= count and not keyturn.moves._waiting:
            break
        await asyncio.sleep(0.05)
    return found


async def forgets(keyturn: Keyturn) -> None:
    """Another process: it has not asked the database about this session yet."""
    keyturn.moves._asked.clear()


async def test_a_refresh_from_the_same_place_is_no_move(keyturn: Keyturn) -> None:
    tokens = await signed_in(keyturn)
    await refreshed(keyturn, tokens, HOME)
    assert (keyturn.moves._waiting, await moves(keyturn, 0)) == (0, [])


async def test_a_refresh_from_another_address_is_an_event_and_the_row_has_the_new_address(keyturn: Keyturn) -> None:
    tokens = await signed_in(keyturn)
    newer = await refreshed(keyturn, tokens, AWAY)
    [move] = await moves(keyturn, 1)
    assert (move["actor"], move["address"], move["session_id"]) == ("user", AWAY.address, tokens.session_id)
    assert move["detail"] == "address"
    async with keyturn.db.look() as connection:
        row = (await connection.execute(select(Session.address, Session.moved_at, Session.generation))).one()
    assert (row.address, row.moved_at, row.generation) == (AWAY.address, move["at"], 1)
    await refreshed(keyturn, newer, AWAY)
    assert len(await moves(keyturn, 1)) == 1


async def test_another_user_agent_is_a_move_too(keyturn: Keyturn) -> None:
    tokens = await signed_in(keyturn)
    await refreshed(keyturn, tokens, HOME, "laptop")
    [move] = await moves(keyturn, 1)
    assert (move["address"], move["detail"]) == (HOME.address, "user agent")


async def test_a_session_between_two_places_is_noted_once_a_day_whichever_process_it_reaches(keyturn: Keyturn) -> None:
    tokens = await signed_in(keyturn)
    for by in (AWAY, HOME, AWAY, HOME):
        await forgets(keyturn)
        tokens = await refreshed(keyturn, tokens, by)
        await moves(keyturn, 1)
    assert len(await moves(keyturn, 1)) == 1
    await time_passes(keyturn, timedelta(days=1, minutes=1))
    await forgets(keyturn)
    await refreshed(keyturn, tokens, HOME)
    assert [move["address"] for move in await moves(keyturn, 2)] == [AWAY.address, HOME.address]


async def test_a_session_that_ended_meanwhile_has_no_more_moves(keyturn: Keyturn) -> None:
    tokens = await signed_in(keyturn)
    newer = await keyturn.rotation.refresh(tokens.refresh_token, by=AWAY)
    await keyturn.ending.end({tokens.session_id}, "logout", by=HOME)
    keyturn.moves.seen(newer, by=AWAY, user_agent="phone")
    assert await moves(keyturn, 0) == []


async def test_moves_that_come_together_are_each_noted(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    sessions = [await keyturn.starting.start(proof, by=HOME) for _ in range(30)]
    for tokens in sessions:
        keyturn.moves.seen(tokens, by=AWAY, user_agent=None)
    assert {move["session_id"] for move in await moves(keyturn, 30)} == {each.session_id for each in sessions}


async def test_a_busy_process_leaves_moves_to_the_next_refresh(keyturn: Keyturn) -> None:
    tokens = await signed_in(keyturn)
    for _ in range(1_500):
        keyturn.moves.seen(replace(tokens, session_id=tokens.session_id), by=AWAY, user_agent="phone")
    assert keyturn.moves._waiting <= 1
    others = Moves(keyturn.db)
    others._waiting = 1_000
    others.seen(tokens, by=AWAY, user_agent="phone")
    assert (others._waiting, len(others._asked)) == (1_000, 0)
    assert len(await moves(keyturn, 1)) == 1


async def test_the_memory_of_moves_is_bounded(keyturn: Keyturn) -> None:
    tokens = await signed_in(keyturn)
    make: Callable[[int], Tokens] = lambda n: replace(tokens, session_id=type(tokens.session_id)(int=n))  # noqa: E731
    for n in range(10_050):
        keyturn.moves._waiting = 0
        keyturn.moves.seen(make(n), by=AWAY, user_agent=None)
        if n % 500 == 0:
            await asyncio.sleep(0)
    assert len(keyturn.moves._asked) == 10_000
    await moves(keyturn, 0)
