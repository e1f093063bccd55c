"""Reauthentication and step-up: a fresh sign-in within a session, and who asks for one (RFC 9470)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx2
import jwt
import pytest
from sqlalchemy import select, update

from app.actors import SERVICE
from app.errors import InvalidGrant
from app.storage.tables import Event, Session
from tests.api import ADA, Api, authorization, serving
from tests.conftest import NEW_PASSWORD as NEW
from tests.conftest import PASSWORD, a_user, time_passes

Json = dict[str, Any]
SAME = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[Api]:
    async with serving(database_url) as api:
        await a_user(api.keyturn, ADA)
        yield api


async def again(api: Api, refresh_token: str, password: str = PASSWORD) -> httpx2.Response:
    return await api.post("/auth/reauthenticate", {"password": password, "refresh_token": refresh_token})


async def rows(api: Api) -> list[Any]:
    async with api.keyturn.db.look() as connection:
        return [*(await connection.execute(select(Session.__table__).order_by(Session.id))).mappings()]


def auth_time(tokens: Json) -> int:
    claims = jwt.decode(tokens["access_token"], options={"verify_signature": False})
    value: int = claims["auth_time"]
    return value


async def test_a_sign_in_gives_its_moment_as_auth_time_and_a_refresh_keeps_it(api: Api) -> None:
    tokens = await api.login()
    await time_passes(api.keyturn, timedelta(minutes=10))
    refreshed = (await api.post("/auth/refresh", {"refresh_token": tokens["refresh_token"]})).json()
    shifted = auth_time(tokens) - 600  # `time_passes` moves the moments of the rows back
    assert abs(auth_time(refreshed) - shifted) <= 1


async def test_the_password_again_renews_auth_time_and_rotates_the_refresh_token_of_the_same_session(api: Api) -> None:
    tokens = await api.login()
    await time_passes(api.keyturn, timedelta(hours=2))
    answer = await again(api, tokens["refresh_token"])
    assert answer.status_code == 200, answer.text
    fresh = answer.json()
    assert fresh["session_id"] == tokens["session_id"]
    assert fresh["refresh_token"] != tokens["refresh_token"]
    assert auth_time(fresh) > auth_time(tokens) - 3600
    assert (await rows(api))[0]["generation"] == 1
    newer = await api.post("/auth/refresh", {"refresh_token": fresh["refresh_token"]})
    assert (newer.status_code, auth_time(newer.json())) == (200, auth_time(fresh))
    reused = await api.post("/auth/refresh", {"refresh_token": tokens["refresh_token"]})
    assert (reused.status_code, reused.json()["reason"]) == (401, "reuse_detected")


async def test_a_lost_answer_is_retried_with_the_same_token_and_gives_the_same_refresh_token(api: Api) -> None:
    tokens = await api.login()
    first, second = [(await again(api, tokens["refresh_token"])).json() for _ in range(2)]
    assert first["refresh_token"] == second["refresh_token"]
    assert (await rows(api))[0]["generation"] == 1


async def test_a_wrong_password_changes_nothing(api: Api) -> None:
    tokens = await api.login()
    before = await rows(api)
    for wrong in ("wrong password", "x" * 1024, "", "\0" * 9):
        answer = await again(api, tokens["refresh_token"], wrong)
        assert (answer.status_code, answer.json()["error"]) == (401, "invalid_grant"), wrong
        assert answer.json()["error_description"] == "The password is wrong."
        assert "reason" not in answer.json()
    assert await rows(api) == before
    assert (await again(api, tokens["refresh_token"])).status_code == 200


async def test_a_reused_token_ends_the_session_whatever_the_password_is(api: Api) -> None:
    tokens = await api.login()
    newer = (await api.post("/auth/refresh", {"refresh_token": tokens["refresh_token"]})).json()
    await api.post("/auth/refresh", {"refresh_token": newer["refresh_token"]})
    answer = await again(api, tokens["refresh_token"], "wrong password")
    assert (answer.status_code, answer.json()["reason"]) == (401, "reuse_detected")
    assert not await api.is_live(newer)


async def test_a_session_that_is_over_is_refused_with_its_reason(api: Api) -> None:
    tokens = await api.login()
    await api.post("/auth/logout", bearer=tokens["access_token"])
    answer = await again(api, tokens["refresh_token"])
    assert (answer.status_code, answer.json()["reason"]) == (401, "logout")


async def test_junk_is_refused_before_any_password_is_checked(api: Api) -> None:
    answer = await again(api, "ktr_" + "A" * 84)
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_grant")
    assert answer.json()["error_description"] != "The password is wrong."


async def test_a_password_that_changed_meanwhile_renews_nothing(api: Api) -> None:
    keyturn, tokens = api.keyturn, await api.login()
    user = await keyturn.users.find(ADA)
    proof = await keyturn.sign_in.prove(user.id, PASSWORD)
    presented, _ = await keyturn.rotation.holder(tokens["refresh_token"], by=SERVICE)
    body = {"current_password": PASSWORD, "new_password": NEW}
    assert (await api.post("/auth/password", body, tokens["access_token"])).status_code == 204
    before = await rows(api)
    with pytest.raises(InvalidGrant):
        await keyturn.reauthentication._renew(presented, proof, SERVICE)
    assert await rows(api) == before


async def test_each_reauthentication_is_an_event_of_its_user(api: Api) -> None:
    tokens = await api.login()
    await again(api, tokens["refresh_token"], "wrong password")
    await again(api, tokens["refresh_token"])
    async with api.keyturn.db.look() as connection:
        found = (
            await connection.execute(select(Event.__table__).where(Event.event == "session_reauthenticated"))
        ).all()
    user = await api.keyturn.users.find(ADA)
    assert [(row.actor, row.actor_id, str(row.session_id)) for row in found] == [
        ("user", str(user.id), tokens["session_id"])
    ]


async def test_a_browser_gets_both_cookies_anew_and_keeps_them_at_a_wrong_password(api: Api) -> None:
    login = {"email": ADA, "password": PASSWORD, "mode": "cookie"}
    assert (await api.client.post("/auth/login", json=login, headers=SAME)).status_code == 200
    wrong = await api.client.post("/auth/reauthenticate", json={"password": "wrong password"}, headers=SAME)
    assert (wrong.status_code, "set-cookie" in wrong.headers) == (401, False)
    foreign = await api.client.post("/auth/reauthenticate", json={"password": PASSWORD})
    assert (foreign.status_code, foreign.json()["error"]) == (403, "cross_site")
    right = await api.client.post("/auth/reauthenticate", json={"password": PASSWORD}, headers=SAME)
    assert right.status_code == 200, right.text
    assert len(right.headers.get_list("set-cookie")) == 2
    assert not right.json().keys() & {"access_token", "refresh_token"}
    assert (await api.client.post("/auth/logout", headers=SAME | {"Cookie": cookies_of(right)})).status_code == 204
    over = await api.client.post(
        "/auth/reauthenticate", json={"password": PASSWORD}, headers=SAME | {"Cookie": cookies_of(right)}
    )
    assert (over.status_code, over.json()["reason"]) == (401, "logout")
    assert all("Max-Age=0" in field for field in over.headers.get_list("set-cookie"))


def cookies_of(answer: httpx2.Response) -> str:
    return "; ".join(field.partition(";")[0] for field in answer.headers.get_list("set-cookie"))


async def asked(api: Api, query: str, tokens: Json) -> httpx2.Response:
    return await api.client.get(f"/auth/verify{query}", headers=authorization(tokens["access_token"]))


async def test_verify_with_max_age_refuses_a_token_whose_user_signed_in_longer_ago(api: Api) -> None:
    tokens = await api.login()
    assert (await asked(api, "?max_age=600", tokens)).status_code == 200
    await time_passes(api.keyturn, timedelta(minutes=11))
    stale = (await api.post("/auth/refresh", {"refresh_token": tokens["refresh_token"]})).json()
    for query in ("?max_age=600", "?max_age=900&max_age=600", ";max_age=600", "?max_age=0"):
        answer = await asked(api, query, stale)
        assert (answer.status_code, answer.json()["error"]) == (401, "insufficient_user_authentication"), query
        wanted = "0" if query.endswith("=0") else "600"
        assert answer.headers["www-authenticate"].startswith('Bearer error="insufficient_user_authentication"')
        assert answer.headers["www-authenticate"].endswith(f'max_age="{wanted}"')
    assert (await asked(api, "?max_age=900", stale)).status_code == 200
    fresh = (await again(api, stale["refresh_token"])).json()
    assert (await asked(api, "?max_age=600", fresh)).status_code == 200


@pytest.mark.parametrize("value", ["", "x", "-1", "1.5", "1e3", "٣", "9" * 9, "%00"])
async def test_a_max_age_that_is_no_number_of_seconds_is_refused_before_the_token(api: Api, value: str) -> None:
    answer = await api.client.get(f"/auth/verify?max_age={value}")
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")


async def test_a_token_without_auth_time_counts_as_stale(api: Api) -> None:
    tokens = await api.login()
    for moment in (None, "now", 1e9, True):
        minted = api.minted(tokens, auth_time=moment)
        assert (await asked(api, "?max_age=86400", {"access_token": minted})).status_code == 401
        assert (await asked(api, "", {"access_token": minted})).status_code == 200


CLAIMS = '{"org":"acme","level":3,"beta":true,"groups":["a","b"],"deep":{"x":1},"nothing":null}'
DEMANDS = {
    "claim.org=acme": 200,
    "claim.org=ACME": 403,
    "claim.org=": 403,
    "claim.org=acme&claim.org=other": 403,
    "claim.level=3": 200,
    "claim.level=3.0": 403,
    "claim.beta=true": 200,
    "claim.beta=True": 403,
    "claim.groups=b": 200,
    "claim.groups=a&claim.groups=b": 200,
    "claim.groups=c": 403,
    "claim.deep=x": 403,
    "claim.nothing=null": 200,
    "claim.missing=": 403,
    "claim.=acme": 403,
    "claim.org=acme&role=user": 200,
    "claim.org=acme&role=admin": 403,
}


async def test_verify_demands_claims_by_name_and_value(api: Api) -> None:
    async with api.keyturn.db.begin() as tx:
        await tx.execute(update(Session).values(claims=CLAIMS))
    tokens = await api.login()
    async with api.keyturn.db.begin() as tx:
        await tx.execute(update(Session).values(claims=CLAIMS))
    tokens = (await api.post("/auth/refresh", {"refresh_token": tokens["refresh_token"]})).json()
    answer = await asked(api, "", tokens)
    assert answer.json()["org"] == "acme"
    assert answer.json()["groups"] == ["a", "b"]
    for demand, status in DEMANDS.items():
        assert (await asked(api, f"?{demand}", tokens)).status_code == status, demand
        assert (await asked(api, f";{demand.replace('&', ';')}", tokens)).status_code in {status, 404}, demand
    assert (await asked(api, ";claim.org=acme/any/path?claim.org=other", tokens)).status_code == 200
    assert (await asked(api, ";claim.org=other/any/path?claim.org=acme", tokens)).status_code == 403


async def test_verify_demands_scopes_of_the_session(api: Api) -> None:
    tokens = await api.login()
    async with api.keyturn.db.begin() as tx:
        await tx.execute(update(Session).values(scope="read write"))
    tokens = (await api.post("/auth/refresh", {"refresh_token": tokens["refresh_token"]})).json()
    assert tokens["scope"] == "read write"
    answer = await asked(api, "?scope=read", tokens)
    assert (answer.status_code, answer.headers["x-auth-scope"]) == (200, "read write")
    assert (await asked(api, "?scope=delete", tokens)).status_code == 403
