"""`POST /auth/logout`: which sessions end by which tokens, and from when on nobody is let in."""

from __future__ import annotations

import asyncio

import httpx2
import jwt
import pytest

from app.actors import SERVICE
from tests.api import BARE, BOB, INVALID, Api, api, dump, refused
from tests.conftest import PASSWORD

__all__ = ["api"]  # fixtures


@pytest.mark.parametrize("how", ["refresh token", "access token", "both"])
async def test_logout_ends_the_session_of_the_token_and_is_safe_to_repeat(api: Api, how: str) -> None:
    tokens, other = await api.login(), await api.login()
    body = {"refresh_token": tokens["refresh_token"]} if how != "access token" else None
    bearer = tokens["access_token"] if how != "refresh token" else None
    for _ in range(3):
        answer = await api.post("/auth/logout", body, bearer)
        assert (answer.status_code, answer.content) == (204, b"")
        assert answer.headers["cache-control"] == "no-store"
        assert not await api.is_live(tokens)
    refused(
        await api.post("/auth/refresh", {"refresh_token": tokens["refresh_token"]}),
        401,
        "invalid_grant",
        reason="logout",
        challenge=BARE,
    )
    assert await api.is_live(other)


async def test_logout_with_the_tokens_of_two_sessions_ends_both(api: Api) -> None:
    one, two, three = await api.login(), await api.login(), await api.login()
    answer = await api.post("/auth/logout", {"refresh_token": two["refresh_token"]}, one["access_token"])
    assert answer.status_code == 204
    assert [await api.is_live(tokens) for tokens in (one, two, three)] == [False, False, True]


async def test_logout_with_a_good_token_beside_junk_goes_by_the_good_one(api: Api) -> None:
    one, two, three = await api.login(), await api.login(), await api.login()
    assert (await api.post("/auth/logout", {"refresh_token": "junk"}, one["access_token"])).status_code == 204
    assert (await api.post("/auth/logout", {"refresh_token": two["refresh_token"]}, "junk")).status_code == 204
    assert [await api.is_live(tokens) for tokens in (one, two, three)] == [False, False, True]


async def test_logout_with_junk_alone_is_refused_and_ends_nothing(api: Api) -> None:
    tokens = await api.login()
    expired_and_forged = api.minted(tokens, exp=1)[:-2] + "AA"
    before = await dump(api.keyturn)
    refused(await api.post("/auth/logout"), 401, "invalid_token", challenge=BARE)
    refused(await api.post("/auth/logout", {}), 401, "invalid_token", challenge=BARE)
    refused(await api.post("/auth/logout", {"refresh_token": "junk"}), 401, "invalid_grant", challenge=BARE)
    refused(
        await api.post("/auth/logout", {"refresh_token": tokens["access_token"]}), 401, "invalid_grant", challenge=BARE
    )
    for bearer in ("junk", tokens["refresh_token"], expired_and_forged):
        refused(await api.post("/auth/logout", {}, bearer), 401, "invalid_token", challenge=INVALID)
    assert await dump(api.keyturn) == before
    assert await api.is_live(tokens)


async def test_an_expired_access_token_still_logs_its_session_out(api: Api) -> None:
    tokens, other = await api.login(), await api.login()
    genuine = jwt.decode(tokens["access_token"], options={"verify_signature": False})
    expired = api.minted(tokens, iat=genuine["iat"] - 4000, exp=genuine["iat"] - 3100)
    refused(await api.get("/auth/verify", expired), 401, "invalid_token", reason="token_expired", challenge=INVALID)
    assert (await api.post("/auth/logout", bearer=expired)).status_code == 204
    assert [await api.is_live(t) for t in (tokens, other)] == [False, True]


@pytest.mark.parametrize(
    ("scope", "live"), [("this", [False, True]), ("others", [True, False]), ("all", [False, False])]
)
@pytest.mark.parametrize("by", ["refresh token", "access token"])
async def test_logout_ends_exactly_the_sessions_of_its_scope(api: Api, scope: str, live: list[bool], by: str) -> None:
    await api.keyturn.users.create(BOB, PASSWORD, by=SERVICE)
    mine, other, bobs = await api.login(), await api.login(), await api.login(BOB)
    body = {"scope": scope} | ({"refresh_token": mine["refresh_token"]} if by == "refresh token" else {})
    answer = await api.post("/auth/logout", body, mine["access_token"] if by == "access token" else None)
    assert answer.status_code == 204
    assert [await api.is_live(tokens) for tokens in (mine, other)] == live
    assert await api.is_live(bobs)


async def test_logout_of_all_with_the_tokens_of_two_sessions_is_done(api: Api) -> None:
    one, two = await api.login(), await api.login()
    answer = await api.post(
        "/auth/logout", {"refresh_token": two["refresh_token"], "scope": "all"}, one["access_token"]
    )
    assert answer.status_code == 204
    assert [await api.is_live(tokens) for tokens in (one, two)] == [False, False]


async def test_only_a_token_that_still_works_ends_other_sessions(api: Api) -> None:
    first, other = await api.login(), await api.login()
    second = (await api.post("/auth/refresh", {"refresh_token": first["refresh_token"]})).json()
    await api.post("/auth/refresh", {"refresh_token": second["refresh_token"]})
    answer = await api.post("/auth/logout", {"refresh_token": first["refresh_token"], "scope": "all"})
    refused(answer, 401, "invalid_grant", challenge=BARE)
    assert await api.is_live(other)
    await api.post("/auth/logout", bearer=first["access_token"])
    for scope in ("others", "all"):
        answer = await api.post("/auth/logout", {"scope": scope}, first["access_token"])
        refused(answer, 401, "invalid_grant", reason="logout", challenge=BARE)
    assert await api.is_live(other)


async def test_no_verification_that_begins_after_the_logout_was_answered_succeeds(api: Api) -> None:
    tokens = await api.login()
    answered = asyncio.Event()
    late: list[int] = []

    async def read() -> None:
        while True:
            after = answered.is_set()
            await asyncio.sleep(0)  # lets the logout go on: without a socket, a refusal from memory never suspends
            status = (await api.get("/auth/verify", tokens["access_token"])).status_code
            if after:
                late.append(status)
                return

    readers = [asyncio.create_task(read()) for _ in range(50)]
    assert (await api.post("/auth/logout", bearer=tokens["access_token"])).status_code == 204
    answered.set()
    await asyncio.gather(*readers)
    assert late == [401] * 50


async def test_parallel_logins_and_a_logout_of_all_leave_no_session_half_ended(api: Api) -> None:
    mine = await api.login()
    logins = [api.login() for _ in range(10)]
    logout = api.post("/auth/logout", {"scope": "all"}, mine["access_token"])
    *sessions, answer = await asyncio.gather(*logins[:5], *logins[5:], logout)
    assert isinstance(answer, httpx2.Response)
    assert answer.status_code == 204
    for tokens in sessions:
        assert isinstance(tokens, dict)
        live = await api.is_live(tokens)
        refreshed = await api.post("/auth/refresh", {"refresh_token": tokens["refresh_token"]})
        assert refreshed.status_code == (200 if live else 401)
        if not live:
            refused(refreshed, 401, "invalid_grant", reason="logout_all", challenge=BARE)
    assert not await api.is_live(mine)
