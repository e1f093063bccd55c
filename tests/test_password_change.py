"""`POST /auth/password`: which sessions it ends, and what a refused one leaves as it was."""

from __future__ import annotations

import asyncio

from tests.api import ADA, BARE, INVALID, Api, api, dump, refused
from tests.conftest import NEW_PASSWORD as NEW
from tests.conftest import PASSWORD

__all__ = ["api"]  # fixtures


async def test_a_password_change_ends_every_other_session_and_keeps_this_one(api: Api) -> None:
    mine, other = await api.login(), await api.login()
    body = {"current_password": PASSWORD, "new_password": NEW}
    answer = await api.post("/auth/password", body, mine["access_token"])
    assert (answer.status_code, answer.content, answer.headers["cache-control"]) == (204, b"", "no-store")
    assert await api.is_live(mine)
    for path in ("/auth/me", "/auth/verify"):
        refused(
            await api.get(path, other["access_token"]),
            401,
            "invalid_token",
            reason="password_changed",
            challenge=INVALID,
        )
    refused(
        await api.post("/auth/refresh", {"refresh_token": other["refresh_token"]}),
        401,
        "invalid_grant",
        reason="password_changed",
        challenge=BARE,
    )
    refused(await api.post("/auth/login", {"email": ADA, "password": PASSWORD}), 401, "invalid_grant", challenge=BARE)
    await api.login(ADA, NEW)


async def test_a_password_change_that_is_refused_changes_nothing(api: Api) -> None:
    mine, other = await api.login(), await api.login()
    before = await dump(api.keyturn)
    for current, new, status, error in (
        ("wrong password", NEW, 401, "invalid_grant"),
        (PASSWORD + "\0", NEW, 401, "invalid_grant"),
        ("", NEW, 401, "invalid_grant"),
        (PASSWORD, "short", 400, "invalid_request"),
        (PASSWORD, "", 400, "invalid_request"),
        (PASSWORD, "é" * 513, 400, "invalid_request"),
        (PASSWORD, "p" * 1025, 400, "invalid_request"),
        (PASSWORD, "with a\0NUL inside", 400, "invalid_request"),
    ):
        body = {"current_password": current, "new_password": new}
        refused(
            await api.post("/auth/password", body, mine["access_token"]), status, error,
            challenge=BARE if status == 401 else None,
        )  # fmt: skip
    assert await dump(api.keyturn) == before
    assert [await api.is_live(tokens) for tokens in (mine, other)] == [True, True]


async def test_an_ended_session_changes_no_password(api: Api) -> None:
    tokens = await api.login()
    await api.post("/auth/logout", bearer=tokens["access_token"])
    body = {"current_password": PASSWORD, "new_password": NEW}
    answer = await api.post("/auth/password", body, tokens["access_token"])
    refused(answer, 401, "invalid_token", reason="logout", challenge=INVALID)
    await api.login()


async def test_the_same_password_change_twice_at_once_leaves_one_password_that_works(api: Api) -> None:
    mine = await api.login()
    news = [f"new password number {n}" for n in range(5)]
    answers = await asyncio.gather(
        *(
            api.post("/auth/password", {"current_password": PASSWORD, "new_password": new}, mine["access_token"])
            for new in news
        )
    )
    assert sorted(a.status_code for a in answers) == [204, 401, 401, 401, 401]
    logins = [await api.post("/auth/login", {"email": ADA, "password": new}) for new in news]
    assert [a.status_code for a in logins] == [{204: 200, 401: 401}[a.status_code] for a in answers]
