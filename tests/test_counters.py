"""Each word of each counter, held against what happened: refreshes, verifications, sign-ins, logouts, ends, requests.

tests/test_counters_of_parts.py and tests/test_counters_of_issuers.py have the other counters. tests/test_metrics.py
holds the numbers of several processes.
"""

from __future__ import annotations

import ast
import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import event, text

from app import metrics
from app.actors import SERVICE
from app.errors import Refusal
from app.keyturn import Keyturn
from app.metric_kinds import Metric
from app.sessions.answers import Tokens
from tests.api import ADA, Api, authorization, serving
from tests.conftest import NEW_PASSWORD, PASSWORD, Opener, a_user, time_passes
from tests.cookies import HTTPS, SAME_SITE, ask, client_of, login, set_cookies
from tests.tally import Tally

WRONG = "a wrong password, long enough"
JUNK = "ktr_" + "A" * 84
A_WEEK = timedelta(days=8)


@pytest.fixture
def engine() -> str:
    return "sqlite"


@pytest.fixture
async def api(database_url: str) -> Any:
    async with serving(database_url, scopes="orders.read", registration="true", limit_register="1/60") as api:
        await api.keyturn.users.create(ADA, PASSWORD, by=SERVICE)
        yield api


async def refresh(api: Api, token: str, **more: Any) -> dict[str, Any]:
    answer = await api.post("/auth/refresh", {"refresh_token": token, **more})
    body: dict[str, Any] = answer.json()
    return body


async def verify(api: Api, token: str | None, query: str = "") -> int:
    return (await api.get(f"/auth/verify{query}", token)).status_code


async def forget(api: Api, tokens: dict[str, Any]) -> None:
    """Deletes a session, as a restored backup does."""
    async with api.keyturn.db.begin() as tx:
        for table, column in (("events", "session_id"), ("sessions", "id")):
            session_id = UUID(tokens["session_id"]).hex
            await tx.execute(text(f"DELETE FROM {table} WHERE {column} = :id"), {"id": session_id})


async def two_sessions(api: Api, name: str) -> tuple[httpx2.AsyncClient, str]:
    """A client, and a Cookie field with the values of two live sessions under one name."""
    client = client_of(api.client._transport.app)  # type: ignore[attr-defined]  # it is that of ASGI
    answers = [await login(client, ADA) for _ in range(2)]
    values = [next(each.value for each in set_cookies(answer) if each.name == name) for answer in answers]
    return client, "; ".join(f"{name}={value}" for value in values)


async def test_each_outcome_of_a_refresh_is_counted_once(api: Api) -> None:
    first, deleted, late, scoped = [await api.login() for _ in range(4)]
    client, cookies = await two_sessions(api, HTTPS.refresh)
    tally = Tally()
    second = await refresh(api, first["refresh_token"])
    assert (await refresh(api, first["refresh_token"]))["refresh_token"] == second["refresh_token"]
    third = await refresh(api, second["refresh_token"])
    for presented in (first, third, first):
        assert (await refresh(api, presented["refresh_token"]))["reason"] == "reuse_detected"
    await forget(api, deleted)
    for token in (deleted["refresh_token"], JUNK, JUNK[:-1], scoped["access_token"]):
        assert (await refresh(api, token))["error"] == "invalid_grant"
    assert (await refresh(api, scoped["refresh_token"], scope="orders.write"))["error"] == "invalid_scope"
    assert (await ask(client, "POST", "/auth/refresh", cookies, headers=SAME_SITE)).status_code == 401
    assert (await api.post("/auth/refresh", {})).status_code == 400  # no token: no refresh
    await time_passes(api.keyturn, A_WEEK)
    assert (await refresh(api, late["refresh_token"]))["reason"] == "idle_timeout"
    tally.exactly(
        metrics.REFRESHES, rotated=2, retried=1, reuse=1, ended=2, unknown=1, junk=3, denied=1, refused=1, expired=1
    )
    await client.aclose()


async def test_each_outcome_of_a_verification_is_counted_once(api: Api) -> None:
    live, deleted, ended = [await api.login() for _ in range(3)]
    client, cookies = await two_sessions(api, HTTPS.access)
    old = api.minted(live, exp=1_700_000_900, iat=1_700_000_000)
    await forget(api, deleted)
    assert (await api.post("/auth/logout", {"refresh_token": ended["refresh_token"]})).status_code == 204
    tally, access = Tally(), live["access_token"]
    for token, query, status in (
        *[(access, "", 200)] * 3,
        (None, "", 401),
        (access[:-6] + "AAAAAA", "", 401),
        (deleted["access_token"], "", 401),
        *[(ended["access_token"], "", 401)] * 2,
        (old, "", 401),
        (access, "?role=admin", 403),
        (access, "?scope=orders.write", 403),
        (access, "?max_age=soon", 400),
    ):
        assert await verify(api, token, query) == status, query
    assert (await ask(client, "GET", "/auth/verify", cookies)).status_code == 401
    tally.exactly(
        metrics.VERIFICATIONS,
        accepted=3,
        missing=1,
        junk=1,
        unknown=1,
        ended=2,
        expired=1,
        denied=2,
        malformed=1,
        refused=1,
    )
    await client.aclose()


async def test_each_outcome_of_a_sign_in_is_counted_once(api: Api) -> None:
    tally = Tally()
    for email, password, more, status in (
        *[(ADA, PASSWORD, {}, 200)] * 2,
        (ADA, WRONG, {}, 401),
        ("nobody@example.com", WRONG, {}, 401),
        (ADA, "ä" * 600, {}, 400),
        (ADA, PASSWORD, {"scope": "orders.write"}, 400),
        ("no address", PASSWORD, {}, 400),  # a body that is not well-formed is no sign-in
    ):
        answer = await api.post("/auth/login", {"email": email, "password": password, **more})
        assert answer.status_code == status, answer.text
    tally.exactly(metrics.LOGINS, signed_in=2, refused=2, malformed=1, denied=1)


async def test_each_outcome_of_a_logout_is_counted_once(api: Api) -> None:
    one, deleted, ended, expired, old, other = [await api.login() for _ in range(6)]
    newer = await refresh(api, old["refresh_token"])
    await refresh(api, newer["refresh_token"])
    await forget(api, deleted)
    await api.post("/auth/logout", {"refresh_token": ended["refresh_token"]})
    late = api.minted(expired, exp=1_700_000_900, iat=1_700_000_000)
    tally = Tally()
    for body, bearer, status in (
        *[({"refresh_token": one["refresh_token"]}, None, 204)] * 2,
        ({"refresh_token": JUNK}, None, 401),
        ({}, None, 401),
        ({"scope": "others"}, deleted["access_token"], 401),
        ({"scope": "others"}, ended["access_token"], 401),
        ({"scope": "others"}, late, 401),
        ({"scope": "others", "refresh_token": old["refresh_token"]}, None, 401),
        ({"scope": "all"}, other["access_token"], 204),
        ({"scope": "some"}, other["access_token"], 400),
    ):
        answer = await api.post("/auth/logout", body, bearer)
        assert answer.status_code == status, answer.text
    tally.exactly(metrics.LOGOUTS, done=3, junk=1, missing=1, unknown=1, ended=1, expired=1, refused=1)


# -- ends of sessions


async def _logout(keyturn: Keyturn, tokens: Tokens, _: UUID) -> None:
    await keyturn.ending.logout((), [tokens.refresh_token], "this", by=SERVICE)


async def _all(keyturn: Keyturn, tokens: Tokens, _: UUID) -> None:
    await keyturn.ending.logout((), [tokens.refresh_token], "all", by=SERVICE)


async def _reuse(keyturn: Keyturn, tokens: Tokens, _: UUID) -> None:
    newer = await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)
    await keyturn.rotation.refresh(newer.refresh_token, by=SERVICE)
    for _again in range(3):
        with suppress(Refusal):
            await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)


async def _password(keyturn: Keyturn, _tokens: Tokens, user_id: UUID) -> None:
    await keyturn.users.set_password(user_id, NEW_PASSWORD, by=SERVICE)


async def _disable(keyturn: Keyturn, _tokens: Tokens, user_id: UUID) -> None:
    await keyturn.users.disable(user_id, by=SERVICE)


async def _erase(keyturn: Keyturn, _tokens: Tokens, user_id: UUID) -> None:
    await keyturn.erasing.erase(user_id, by=SERVICE)


async def _revoke(keyturn: Keyturn, tokens: Tokens, _: UUID) -> None:
    for _again in range(2):
        await keyturn.ending.end({tokens.session_id}, "revoked_by_admin", by=SERVICE)


async def _upstream(keyturn: Keyturn, tokens: Tokens, _: UUID) -> None:
    await keyturn.ending.end({tokens.session_id}, "upstream_logout", by=SERVICE)


async def _everyone(keyturn: Keyturn, _tokens: Tokens, _: UUID) -> None:
    await keyturn.key_changes.sign_everyone_out(by=SERVICE)


async def _idle(keyturn: Keyturn, tokens: Tokens, user_id: UUID) -> None:
    await time_passes(keyturn, keyturn.settings.refresh_token_lifetime)
    await _logout(keyturn, tokens, user_id)


async def _absolute(keyturn: Keyturn, tokens: Tokens, user_id: UUID) -> None:
    hour = timedelta(hours=1)
    await keyturn.policy_changes.change("global", {"idle_lifetime": hour, "absolute_lifetime": hour}, by=SERVICE)
    await keyturn.policies.load()
    await time_passes(keyturn, hour)
    await _logout(keyturn, tokens, user_id)


@pytest.mark.parametrize(
    ("act", "counted"),
    [
        (_logout, {"logout": 1}),
        (_all, {"logout_all": 2}),
        (_reuse, {"reuse_detected": 1}),
        (_password, {"password_changed": 2}),
        (_disable, {"user_disabled": 2}),
        (_erase, {"user_erased": 2}),
        (_revoke, {"revoked_by_admin": 1}),
        (_upstream, {"upstream_logout": 1}),
        (_idle, {"idle_timeout": 1}),
        (_absolute, {"absolute_timeout": 1}),
        (_everyone, {}),  # an act on the keys, which writes no row of a session
    ],
)
async def test_each_session_that_an_act_ends_is_counted_once(
    open_keyturn: Opener, act: Callable[[Keyturn, Tokens, UUID], Awaitable[None]], counted: dict[str, int]
) -> None:
    async with open_keyturn() as keyturn:
        user = await a_user(keyturn)
        tokens, _other = [await keyturn.starting.start(user, by=SERVICE) for _ in range(2)]
        tally = Tally()
        await act(keyturn, tokens, user.user_id)
        tally.exactly(metrics.SESSIONS_ENDED, counted)


async def test_each_session_that_a_sign_in_displaces_is_counted_once(open_keyturn: Opener) -> None:
    async with open_keyturn(session_limit=2) as keyturn:
        user = await a_user(keyturn)
        tally = Tally()
        for device in ("phone", "phone", "laptop", "watch", "tv"):
            await keyturn.starting.start(user, by=SERVICE, device_id=device)
        tally.exactly(metrics.SESSIONS_ENDED, replaced=1, session_limit=2)


# -- requests


async def test_each_refused_request_is_counted_once_under_its_endpoint_and_outcome(api: Api) -> None:
    tokens = await api.login()
    access = tokens["access_token"]
    over, deleted, stolen = [await api.login() for _ in range(3)]
    await api.post("/auth/logout", {"refresh_token": over["refresh_token"]})
    await refresh(api, (await refresh(api, stolen["refresh_token"]))["refresh_token"])
    await forget(api, deleted)
    late = api.minted(tokens, exp=1_700_000_900, iat=1_700_000_000)
    tally, seen, answered = Tally(), Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for method, path, bearer, body, endpoint, outcome in (
        ("POST", "/auth/refresh", None, {"refresh_token": JUNK}, "refresh", "junk"),
        ("POST", "/auth/refresh", None, {"refresh_token": over["refresh_token"]}, "refresh", "ended"),
        ("POST", "/auth/refresh", None, {"refresh_token": stolen["refresh_token"]}, "refresh", "reuse"),
        ("POST", "/auth/refresh", None, {"refresh_token": deleted["refresh_token"]}, "refresh", "unknown"),
        ("POST", "/auth/refresh", None, {"refresh_token": tokens["refresh_token"]}, "refresh", None),
        ("GET", "/auth/verify", None, None, "verify", "missing"),
        ("GET", "/auth/verify/below?x=1", late, None, "verify", "expired"),
        ("PUT", "/auth/verify;role=admin", access, None, "verify", "denied"),
        ("GET", "/auth/verify", access, None, "verify", None),
        ("POST", "/auth/login", None, {"email": ADA, "password": WRONG}, "login", "refused"),
        ("POST", "/auth/login", None, [], "login", "malformed"),
        ("PATCH", "/auth/login", None, None, "login", "malformed"),
        ("POST", "/auth/logout", None, {}, "logout", "missing"),
        ("POST", "/auth/exchange", None, {"subject_token": "a.b.c"}, "exchange", "malformed"),
        ("POST", "/auth/register", None, {"email": ADA, "password": PASSWORD}, "register", "conflict"),
        ("POST", "/auth/register", None, {"email": ADA, "password": PASSWORD}, "register", "limited"),
        ("POST", "/auth/password", "a.b.c", {}, "password", "junk"),
        ("POST", "/auth/reauthenticate", None, {"password": PASSWORD}, "reauthenticate", "malformed"),
        ("GET", "/auth/me", over["access_token"], None, "me", "ended"),
        ("GET", "/auth/me", access, None, "me", None),
        ("GET", f"/auth/sessions/{UUID(int=0)}", access, None, "sessions", "not_found"),
        ("GET", "/auth/identities", None, None, "identities", "missing"),
        ("GET", "/admin/users", access, None, "admin", "denied"),
        ("POST", "/federation/acme/webhook", None, {}, "federation", "malformed"),
        ("GET", "/.well-known/jwks.json", None, None, "well_known", None),
        ("GET", "/.well-known/nothing", None, None, "well_known", "not_found"),
        ("GET", "/healthz", None, None, "health", None),
        ("GET", "/metrics", None, None, "health", "not_found"),
        ("GET", "/nowhere", None, None, "other", "not_found"),
        ("GET", "/oauth/token", None, None, "other", "not_found"),
    ):
        answer = await api.client.request(method, path, json=body, headers=authorization(bearer))
        assert (answer.status_code < 400) == (outcome is None), (method, path, answer.text)
        answered[endpoint, f"{answer.status_code // 100}xx"] += 1
        if outcome is not None:
            seen[endpoint, outcome] += 1
    tally.exactly(metrics.REFUSALS, seen)
    tally.exactly(metrics.DURATION, answered)


async def test_a_defect_and_a_client_that_left_are_counted_as_such(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    tally, app = Tally(), api.client._transport.app  # type: ignore[attr-defined]  # it is that of ASGI
    monkeypatch.setattr(type(api.keyturn.keys), "jwks", None)
    assert (await api.get("/.well-known/jwks.json")).status_code == 500
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "https",
        "method": "POST",
        "path": "/auth/login",
        "raw_path": b"/auth/login",
        "query_string": b"",
        "root_path": "",
        "client": ("192.0.2.1", 1),
        "server": ("auth.example.com", 443),
        "state": {},
        "headers": [(b"host", b"auth.example.com"), (b"content-type", b"application/json"), (b"content-length", b"9")],
    }

    async def left() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        raise AssertionError("nobody is there")

    await app(scope, left, send)
    tally.exactly(metrics.REFUSALS, {("well_known", "failed"): 1})
    tally.exactly(metrics.DURATION, {("well_known", "5xx"): 1, ("login", "none"): 1})


# -- an outage


@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
async def test_each_request_that_finds_no_connection_is_counted_as_unavailable(database_url: str) -> None:
    async with serving(database_url, database_pool="2") as api:
        await api.keyturn.users.create(ADA, PASSWORD, by=SERVICE)
        tokens = await api.login()
        body = {"refresh_token": tokens["refresh_token"]}
        tally, db = Tally(), api.keyturn.db
        async with db.begin(), db._writer.begin() if db.is_postgres else nullcontext():
            answers = await asyncio.gather(
                *(api.post("/auth/refresh", body) for _ in range(4)),
                *(api.post("/auth/logout", body) for _ in range(3)),
                *(api.post("/auth/login", {"email": ADA, "password": PASSWORD}) for _ in range(2)),
            )
        assert [answer.status_code for answer in answers] == [503] * 9
        tally.exactly(metrics.REFRESHES, unavailable=4)
        tally.exactly(metrics.LOGOUTS, unavailable=3)
        tally.exactly(metrics.LOGINS, unavailable=2)
        tally.exactly(
            metrics.REFUSALS, {("refresh", "unavailable"): 4, ("logout", "unavailable"): 3, ("login", "unavailable"): 2}
        )
        tally.exactly(metrics.SESSIONS_ENDED)


@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
async def test_each_verification_that_nobody_can_answer_is_counted_as_unavailable(database_url: str) -> None:
    async with serving(database_url) as api:
        await api.keyturn.users.create(ADA, PASSWORD, by=SERVICE)
        tokens = await api.login()

        def away(*_: object) -> None:
            raise ConnectionRefusedError

        event.listen(api.keyturn.db._reader.sync_engine, "before_cursor_execute", away)
        tally = Tally()
        assert [await verify(api, tokens["access_token"]) for _ in range(3)] == [503] * 3
        assert await verify(api, "a.b.c") == 401
        tally.exactly(metrics.VERIFICATIONS, unavailable=3, junk=1)
        tally.exactly(metrics.ANSWERERS, unavailable=3)
        tally.exactly(metrics.REFUSALS, {("verify", "unavailable"): 3, ("verify", "junk"): 1})


# -- all of them


PAGES = ("test_counters.py", "test_counters_of_parts.py", "test_counters_of_issuers.py")


def held() -> dict[str, set[str]]:
    """By the name of each metric: the words in the functions that assert its exact numbers."""
    found = defaultdict[str, set[str]](set)
    for page in PAGES:
        for function in ast.walk(ast.parse((Path(__file__).parent / page).read_text(encoding="utf-8"))):
            if isinstance(function, ast.AsyncFunctionDef):
                nodes = list(ast.walk(function))
                words = {each.value for each in nodes if isinstance(each, ast.Constant) and isinstance(each.value, str)}
                words |= {each.arg for each in nodes if isinstance(each, ast.keyword) and each.arg}
                for call in nodes:
                    if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.args:
                        name = call.args[0]
                        if call.func.attr == "exactly" and isinstance(name, ast.Attribute):
                            found[name.attr] |= words
    return found


def test_every_word_of_every_counter_is_held_by_an_exact_number() -> None:
    words = held()
    for name, metric in vars(metrics).items():
        if isinstance(metric, Metric) and metric.kind == "counter":
            assert name in words, f"no test holds {name}"
            for label, listed in metric.labels.items():
                assert set(listed) - words[name] == set(), f"{name}: no test has these words of {label}"
