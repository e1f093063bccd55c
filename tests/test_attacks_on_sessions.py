"""Attacks on sessions and their administration, by thieves of sessions and by holders of shared keys."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from app.actors import SERVICE
from app.errors import InvalidGrant
from app.keyturn import Keyturn
from app.users.hashing import Asker
from tests.api import ADA, Api, authorization, serving
from tests.conftest import PASSWORD, a_user, time_passes

ROOT, EVE = "root@example.com", "eve@example.com"


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[Api]:
    async with serving(database_url) as api:
        await api.keyturn.users.create(ROOT, PASSWORD, "admin", by=SERVICE)
        await api.keyturn.users.create(EVE, PASSWORD, "admin", by=SERVICE)
        await api.keyturn.users.create(ADA, PASSWORD, by=SERVICE)
        yield api


@pytest.mark.parametrize(("path", "status"), [("/admin/keys", 201), ("/admin/keys/rotate", 200)])
async def test_no_request_waits_while_an_rsa_key_is_made(
    api: Api, monkeypatch: pytest.MonkeyPatch, path: str, status: int
) -> None:
    makers: list[int] = []
    make = rsa.generate_private_key

    def noted(*args: Any, **kwargs: Any) -> rsa.RSAPrivateKey:
        makers.append(threading.get_ident())
        return make(*args, **kwargs)

    monkeypatch.setattr(rsa, "generate_private_key", noted)
    token = (await api.login(ROOT))["access_token"]
    answer = await api.post(path, {"use": "access", "algorithm": "RS256"}, token)
    assert answer.status_code == status, answer.text
    # The search for primes takes up to seconds. Each request of the process waits for the thread of the event loop.
    assert makers
    assert threading.get_ident() not in makers


async def test_a_reauthentication_with_a_made_password_says_that_it_must_be_changed(api: Api) -> None:
    ada = await api.keyturn.users.find(ADA)
    made = await api.keyturn.users.reset_password(ada.id, by=SERVICE)
    login = (await api.post("/auth/login", {"email": ADA, "password": made.password})).json()
    assert login["password_change_required"] is True
    again = {"refresh_token": login["refresh_token"], "password": made.password}
    assert (await api.post("/auth/reauthenticate", again)).json()["password_change_required"] is True
    own = await api.login(ROOT)
    again = {"refresh_token": own["refresh_token"], "password": PASSWORD}
    assert "password_change_required" not in (await api.post("/auth/reauthenticate", again)).json()


@pytest.mark.parametrize("act", ["create", "password"])
@pytest.mark.parametrize("loss", ["demoted", "disabled", "erased"])
async def test_an_administrator_who_is_dismissed_while_a_hash_is_computed_changes_nothing(
    api: Api, act: str, loss: str
) -> None:
    eve, ada = await api.keyturn.users.find(EVE), await api.keyturn.users.find(ADA)
    token = (await api.login(EVE))["access_token"]
    passwords, users = api.keyturn.users._passwords, api.keyturn.users
    hash_of, begun, go_on = passwords.hash, asyncio.Event(), asyncio.Event()

    async def slow(password: bytes, *asker: Asker) -> str:
        begun.set()
        await go_on.wait()
        return await hash_of(password, *asker)

    passwords.hash = slow  # type: ignore[method-assign,assignment]  # the real hash, at a moment that the test chooses
    path = "/admin/users" if act == "create" else f"/admin/users/{ada.id}/password"
    body = {"email": "mole@example.com", "password": PASSWORD, "role": "admin"} if act == "create" else None
    request = asyncio.create_task(api.client.request("POST", path, json=body, headers=authorization(token)))
    await asyncio.wait_for(begun.wait(), 10)
    match loss:
        case "demoted":
            await users.set_role(eve.id, "user", by=SERVICE)
        case "disabled":
            await users.disable(eve.id, by=SERVICE)
        case _:
            await api.keyturn.erasing.erase(eve.id, by=SERVICE)
    go_on.set()
    answer = await request
    assert (answer.status_code, answer.json()["error"]) == (403, "access_denied"), answer.text
    assert [user.email for user in await users.list(limit=9)] == [ROOT, *([EVE] if loss != "erased" else []), ADA]
    assert (await users.find(ADA)).password_expires_at is None
    # Neither does an event name the erased one.
    assert loss != "erased" or not [
        event for event in await api.keyturn.events.list(limit=100) if str(eve.id) in str(dict(event))
    ]


async def test_an_administrator_demotes_and_erases_himself(api: Api) -> None:
    eve = await api.keyturn.users.find(EVE)
    token = (await api.login(EVE))["access_token"]
    answer = await api.client.request("DELETE", f"/admin/users/{eve.id}", headers=authorization(token))
    assert answer.status_code == 200
    assert UUID(answer.json()["pseudonym"]) != eve.id


async def test_a_policy_that_was_shortened_during_the_walk_of_a_longer_one_keeps_its_sessions_ended(
    keyturn: Keyturn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise one administrator would bring back what another one, in an emergency, has just ended."""
    tokens = await keyturn.starting.start(await a_user(keyturn), by=SERVICE)
    two_hours = {"idle_lifetime": timedelta(hours=2), "access_lifetime": timedelta(minutes=5)}
    await keyturn.policy_changes.change("global", two_hours, by=SERVICE)
    await keyturn.policies.load()
    await time_passes(keyturn, timedelta(hours=1))
    walk, walks = keyturn.sweeping.end_over, 0

    async def walked(**by: Any) -> None:
        nonlocal walks
        walks += 1
        await walk(**by)
        if walks == 1:
            await keyturn.policies.change("global", {"idle_lifetime": timedelta(minutes=10)}, by=SERVICE)
            await keyturn.policies.load()
            with pytest.raises(InvalidGrant, match="over"):
                await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)

    monkeypatch.setattr(keyturn.sweeping, "end_over", walked)  # the real walk, and another change at its end
    await keyturn.policy_changes.change("global", {"idle_lifetime": timedelta(hours=3)}, by=SERVICE)
    await keyturn.policies.load()
    assert keyturn.policies.in_force.idle_lifetime == timedelta(hours=3)
    with pytest.raises(InvalidGrant) as refused:
        await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)
    assert (refused.value.reason, walks) == ("idle_timeout", 2)
