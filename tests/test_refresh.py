"""`POST /auth/refresh`: the next pair, the retry, reuse, junk, and a database without a free connection."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext

import pytest

from app.actors import SERVICE
from tests.api import ADA, BARE, INVALID, Api, Serve, api, dump, refused, serve
from tests.conftest import PASSWORD

__all__ = ["api", "serve"]  # fixtures


async def test_refresh_answers_as_login_does_and_a_retry_gets_the_same_pair(api: Api) -> None:
    first = await api.login()
    answer = await api.post("/auth/refresh", {"refresh_token": first["refresh_token"]})
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    second = answer.json()
    assert second.keys() == first.keys()
    assert second["expires_in"] == 900
    assert second["session_id"] == first["session_id"]
    assert second["refresh_token"] != first["refresh_token"]
    again = (await api.post("/auth/refresh", {"refresh_token": first["refresh_token"]})).json()
    assert (again["access_token"], again["refresh_token"]) == (second["access_token"], second["refresh_token"])


async def test_reuse_is_refused_with_its_reason_and_ends_the_session(api: Api) -> None:
    first = await api.login()
    second = (await api.post("/auth/refresh", {"refresh_token": first["refresh_token"]})).json()
    await api.post("/auth/refresh", {"refresh_token": second["refresh_token"]})
    for _ in range(2):
        answer = await api.post("/auth/refresh", {"refresh_token": first["refresh_token"]})
        refused(answer, 401, "invalid_grant", reason="reuse_detected", challenge=BARE)
    refused(
        await api.get("/auth/me", second["access_token"]),
        401,
        "invalid_token",
        reason="reuse_detected",
        challenge=INVALID,
    )


async def test_junk_refresh_tokens_all_get_one_answer(api: Api) -> None:
    tokens = await api.login()
    genuine = tokens["refresh_token"]
    junk = [
        "",
        "x",
        "ktr_" + "x" * 84,
        genuine[:-1],
        genuine + "A",
        genuine + " ",
        " " + genuine,
        genuine + "\n",
        genuine[:20] + ("A" if genuine[20] != "A" else "B") + genuine[21:],
        genuine.upper(),
        "KTR_" + genuine[4:],
        "\uff4b" + genuine[1:],
        tokens["access_token"],
    ]
    answers = [await api.post("/auth/refresh", {"refresh_token": token}) for token in junk]
    assert len({(a.status_code, a.content, tuple(name for name, _ in a.headers.multi_items())) for a in answers}) == 1
    refused(answers[0], 401, "invalid_grant", challenge=BARE)
    assert (await api.post("/auth/refresh", {"refresh_token": genuine})).status_code == 200


async def test_a_refresh_token_is_read_from_the_body_alone(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    token = (await api.login())["refresh_token"]
    before = await dump(api.keyturn)
    answers = [
        await api.client.post(f"/auth/refresh?refresh_token={token}"),
        await api.client.post("/auth/refresh", headers={"Authorization": f"Bearer {token}"}),
        await api.client.post(
            "/auth/refresh", headers={"Cookie": f"refresh_token={token}; __Host-keyturn-refresh={token}"}
        ),
        await api.client.post("/auth/refresh", headers={"X-Refresh-Token": token}),
        await api.client.post("/auth/refresh", data={"refresh_token": token}),
        await api.client.get(f"/auth/refresh/{token}"),
    ]
    assert [a.status_code for a in answers] == [400, 400, 400, 400, 415, 404]
    assert await dump(api.keyturn) == before
    assert token not in capsys.readouterr().err


async def test_with_no_connection_free_a_change_is_answered_503_and_junk_is_junk_still(serve: Serve) -> None:
    async with serve(database_pool="2") as api:
        await api.keyturn.users.create(ADA, PASSWORD, by=SERVICE)
        tokens = await api.login()
        db = api.keyturn.db
        async with db.begin(), db._writer.begin() if db.is_postgres else nullcontext():
            logout, login, junk = await asyncio.gather(
                api.post("/auth/logout", {"refresh_token": tokens["refresh_token"]}),
                api.post("/auth/login", {"email": ADA, "password": PASSWORD}),
                api.post("/auth/refresh", {"refresh_token": "ktr_" + "x" * 84}),
            )
        for answer in (logout, login):
            refused(answer, 503, "temporarily_unavailable")
            assert 1 <= int(answer.headers["retry-after"]) <= 10
        refused(junk, 401, "invalid_grant", challenge=BARE)
        assert await api.is_live(tokens)
        assert (await api.post("/auth/logout", {"refresh_token": tokens["refresh_token"]})).status_code == 204


async def test_a_refresh_that_found_no_connection_may_come_back_well_within_the_window(serve: Serve) -> None:
    async with serve(database_pool="2", retry_window="30") as api:
        await api.keyturn.users.create(ADA, PASSWORD, by=SERVICE)
        tokens = await api.login()
        body = {"refresh_token": tokens["refresh_token"]}
        async with api.keyturn.db._writer.begin():
            answers = await asyncio.gather(*(api.post("/auth/refresh", body) for _ in range(8)))
        for answer in answers:
            refused(answer, 503, "temporarily_unavailable")
            assert 1 <= int(answer.headers["retry-after"]) <= 5
        assert (await api.post("/auth/refresh", body)).status_code == 200
