"""Changes of a user against 50 parallel sign-ins and refreshes, on two instances (Postgres) or one (SQLite)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from app.actors import SERVICE
from app.errors import InvalidGrant, InvalidToken, NotFound, TemporarilyUnavailable
from app.keyturn import Keyturn
from app.sessions.answers import Tokens
from app.sessions.start import Authenticated
from app.storage.tables import Session, User
from tests.conftest import Opener, a_user

ABREAST = 50
Change = Callable[[Keyturn, UUID], Awaitable[object]]


async def role(keyturn: Keyturn, user_id: UUID) -> None:
    await keyturn.users.set_role(user_id, "editor", by=SERVICE)


async def claims(keyturn: Keyturn, user_id: UUID) -> None:
    await keyturn.users.set_claims(user_id, {"org": "acme"}, by=SERVICE)


async def disable(keyturn: Keyturn, user_id: UUID) -> None:
    await keyturn.users.disable(user_id, by=SERVICE)


async def reset(keyturn: Keyturn, user_id: UUID) -> None:
    await keyturn.users.reset_password(user_id, by=SERVICE)


async def erase(keyturn: Keyturn, user_id: UUID) -> None:
    await keyturn.erasing.erase(user_id, by=SERVICE)


async def raced(
    instances: list[Keyturn], proof: Authenticated, live: list[Tokens], change: Change
) -> tuple[list[Tokens], list[Tokens]]:
    """Lets sign-ins and refreshes run, and the change among them. The tokens that each kind got."""

    async def one(number: int, act: Callable[[Keyturn], Awaitable[Tokens]]) -> Tokens | None:
        await asyncio.sleep(number / 1000)
        while True:
            try:
                return await act(instances[number % len(instances)])
            except InvalidGrant:
                return None
            except TemporarilyUnavailable:  # no verdict: the machine is busy, and a client asks again
                await asyncio.sleep(0.1)

    async def changed() -> object:
        await asyncio.sleep(ABREAST / 2000)
        while True:
            try:
                return await change(instances[0], proof.user_id)
            except TemporarilyUnavailable:  # as above: done or not, so the change is made once more
                await asyncio.sleep(0.1)
            except NotFound:
                return None

    signing = [one(n, lambda keyturn: keyturn.starting.start(proof, by=SERVICE)) for n in range(ABREAST)]
    refreshing = [
        one(n, lambda keyturn, token=tokens.refresh_token: keyturn.rotation.refresh(token, by=SERVICE))  # type: ignore[misc]
        for n, tokens in enumerate(live)
    ]
    _, started, refreshed = await asyncio.gather(changed(), asyncio.gather(*signing), asyncio.gather(*refreshing))
    return [each for each in started if each], [each for each in refreshed if each]


async def accepted(keyturn: Keyturn, tokens: Tokens) -> bool:
    try:
        await keyturn.reading.verify(tokens.access_token)
    except InvalidToken:
        return False
    return True


async def refreshes(keyturn: Keyturn, tokens: Tokens) -> bool:
    try:
        await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)
    except InvalidGrant:
        return False
    return True


@pytest.mark.parametrize("change", [role, claims, disable, reset, erase])
async def test_a_change_of_a_user_holds_for_each_sign_in_and_refresh_that_ran_beside_it(
    open_keyturn: Opener, engine: str, change: Change
) -> None:
    async with AsyncExitStack() as stack:
        count = 2 if engine == "postgres" else 1
        instances = [await stack.enter_async_context(open_keyturn()) for _ in range(count)]
        keyturn = instances[0]
        proof = await a_user(keyturn)
        live = [await keyturn.starting.start(proof, by=SERVICE) for _ in range(ABREAST)]
        started, refreshed = await raced(instances, proof, live, change)
        async with keyturn.db.look() as connection:
            sessions: list[Any] = [*(await connection.execute(select(Session.__table__))).mappings()]
            users = [*(await connection.execute(select(User.id))).scalars()]
        assert len(sessions) >= ABREAST + len(started)
        if change in (role, claims):
            assert len(started) == len(refreshed) == ABREAST
            assert {row["ended_at"] for row in sessions} == {None}
            kept = {(row["role"], row["claims"]) for row in sessions}
            assert kept == ({("editor", None)} if change is role else {("user", '{"org":"acme"}')})
            for tokens in (started[0], started[-1], refreshed[0], refreshed[-1]):
                renewed = await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)
                seen = (await keyturn.reading.verify(renewed.access_token)).claims
                assert seen["role"] == "editor" if change is role else seen["org"] == "acme"
            return
        assert None not in {row["ended_at"] for row in sessions}
        for tokens in (*started, *refreshed):
            for instance in instances:
                assert not await accepted(instance, tokens)
                assert not await refreshes(instance, tokens)
        assert (users == []) == (change is erase)
        if change is erase:
            assert proof.user_id not in {row["user_id"] for row in sessions}
            assert {row["end_reason"] for row in sessions} == {"user_erased"}
