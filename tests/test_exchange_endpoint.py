"""/auth/exchange, /auth/identities and their twins, on real services that trust a stand-in of Scalekit."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import select, text

from app.actors import SERVICE
from app.federation.exchange import caller_of
from app.keyturn import opened, running
from app.storage.tables import Base, Session, User
from tests.authorisation import ISSUER, World, a_world, an_identity, new_database
from tests.conftest import CHEAP, NEW_PASSWORD, PASSWORD, SECRET, settings_of
from tests.cookies import set_cookies
from tests.service import Service
from tests.upstream.minting import Subject
from tests.upstream.upstream import Upstream

KEY = "k" * 32
OWN_SITE = {"Origin": ISSUER}


@pytest.fixture(scope="module", params=["postgres", "sqlite"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return new_database(request.param, request, tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
async def world(database: str, logs: Path) -> AsyncIterator[World]:
    async with a_world(database, logs) as world:
        yield world


def a_subject(world: World) -> Subject:
    return world.upstream.other(secrets.randbelow(10**9))


async def exchange(world: World, token: str, headers: dict[str, str] | None = None, **members: Any) -> httpx2.Response:
    return await world.client.post("/auth/exchange", json={"subject_token": token, **members}, headers=headers)


async def sessions(world: World) -> int:
    async with world.keyturn.db.look(hot_path=False) as connection:
        return await connection.scalar(text("SELECT count(*) FROM sessions")) or 0


# -- the exchange


async def test_an_exchange_answers_like_a_login_and_its_tokens_work_everywhere(world: World) -> None:
    subject = a_subject(world)
    answer = await exchange(world, world.upstream.mint("id_token", subject=subject))
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    tokens = answer.json()
    login = (await world.signed_in((await world.a_user())[0])).json()
    assert tokens.keys() == login.keys()
    bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
    claims = (await world.client.get("/auth/verify", headers=bearer)).json()
    assert (claims["role"], claims["sid"]) == ("user", tokens["session_id"])
    me = (await world.client.get("/auth/me", headers=bearer)).json()
    assert "email" not in me["user"], "nobody has told one"
    [own] = (await world.client.get("/auth/sessions", headers=bearer)).json()["items"]
    assert own["id"] == tokens["session_id"]
    assert own["upstream"] == {
        "issuer": "acme",
        "organization": world.upstream.subject.organization_id,
        "session_id": subject.session_id,
    }
    assert own["amr"] == [world.upstream.subject.connection_id]
    refreshed = await world.client.post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]})
    assert refreshed.status_code == 200
    assert (await world.client.post("/auth/logout", headers=bearer)).status_code in {200, 204}
    over = await world.client.get("/auth/verify", headers=bearer)
    assert (over.status_code, over.json()["reason"]) == (401, "logout")


async def test_refused_tokens_of_a_network_are_slowed_down_and_a_good_one_never_is(database: str, logs: Path) -> None:
    async with a_world(database, logs, limit_exchange="5/300") as world:
        refused = [await exchange(world, "no.good.token") for _ in range(8)]
        assert [answer.status_code for answer in refused] == [401] * 5 + [429] * 3
        assert refused[-1].json()["error"] == "slow_down"
        assert refused[-1].headers["ratelimit-policy"] == '"network";q=5;w=300'
        assert 1 <= int(refused[-1].headers["retry-after"]) <= 60
        for _ in range(3):
            token = world.upstream.mint("id_token", subject=a_subject(world))
            first, retry = [await exchange(world, token) for _ in range(2)]
            assert (first.status_code, retry.status_code) == (200, 200)
        assert (await exchange(world, "no.good.token")).status_code == 429


@pytest.mark.parametrize(
    ("kind", "names"),
    [("access_token", (None, "jwt", "access_token")), ("id_token", (None, "jwt", "id_token"))],
)
async def test_each_type_has_a_short_word_and_the_name_of_the_standard(
    world: World, kind: Any, names: tuple[str | None, ...]
) -> None:
    for name in (*names, *(f"urn:ietf:params:oauth:token-type:{each}" for each in names if each)):
        token = world.upstream.mint(kind, subject=a_subject(world))
        answer = await exchange(world, token, **({"subject_token_type": name} if name else dict[str, Any]()))
        assert answer.status_code == 200, (name, answer.text)
    other = {"access_token": "id_token", "id_token": "access_token"}[kind]
    for name in (other, f"urn:ietf:params:oauth:token-type:{other}"):
        answer = await exchange(world, world.upstream.mint(kind, subject=a_subject(world)), subject_token_type=name)
        assert (answer.status_code, answer.json()["error"]) == (401, "invalid_grant"), name


@pytest.mark.parametrize(
    "members",
    [
        {"subject_token_type": "urn:ietf:params:oauth:token-type:refresh_token"},
        {"subject_token_type": "refresh_token"},
        {"subject_token_type": "urn:ietf:params:oauth:token-type:saml2"},
        {"subject_token_type": ""},
        {"requested_token_type": "urn:ietf:params:oauth:token-type:access_token"},
        {"audience": "https://api.example.com"},
        {"resource": "https://api.example.com"},
        {"actor_token": "a.b.c"},
        {"grant_type": "urn:ietf:params:oauth:grant-type:token-exchange"},
        {"issuer": "acme"},
        {"subject_token": None},
        {"subject_token": ["a.b.c"]},
        {"mode": "jar"},
        {"device_id": "with a blank"},
        {"device_name": "\u0007"},
        {"scope": 7},
    ],
)
async def test_what_this_service_does_not_offer_is_refused_and_never_ignored(
    world: World, members: dict[str, Any]
) -> None:
    before = await sessions(world)
    answer = await exchange(world, **{"token": world.upstream.mint(subject=a_subject(world)), **members})
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    assert await sessions(world) == before


async def test_a_token_that_is_not_acceptable_gets_one_answer_and_the_log_alone_says_why(world: World) -> None:
    mint, subject = world.upstream.mint, a_subject(world)
    said = set()
    for token in (
        "junk",
        "rt_" + "x" * 43,
        mint(subject=subject, iss="https://elsewhere.example.com"),
        mint(subject=subject, aud=["another"]),
        mint("machine", subject=subject),
        mint("idp_initiated", subject=subject),
        mint(subject=subject, exp=1),
        mint(subject=subject)[:-6] + "AAAAAA",
    ):
        answer = await exchange(world, token)
        said.add((answer.status_code, answer.text, answer.headers["www-authenticate"]))
    assert said == {
        (401, '{"error":"invalid_grant","error_description":"The subject token is not acceptable."}', "Bearer")
    }


async def test_a_large_token_is_refused_as_such_and_a_larger_body_as_too_large(world: World) -> None:
    assert (await exchange(world, "a" * 60_000)).status_code == 401
    assert (await exchange(world, "a" * 70_000)).status_code == 413


# -- retries


async def test_a_retry_of_the_same_client_gets_the_same_answer_and_another_client_none(world: World) -> None:
    token, agent = world.upstream.mint(subject=a_subject(world)), {"User-Agent": "app/1"}
    first = (await exchange(world, token, agent)).json()
    again = (await exchange(world, token, agent)).json()
    for member in ("access_token", "refresh_token", "session_id"):
        assert again[member] == first[member]
    for others, members in (
        ({"User-Agent": "app/2"}, {}),
        ({**agent, "Idempotency-Key": KEY}, {}),
        (agent, {"device_id": "d1"}),
    ):
        answer = await exchange(world, token, others, **members)
        assert (answer.status_code, answer.json()["error"]) == (401, "invalid_grant")
        assert "reason" not in answer.json()


async def test_a_caller_with_a_key_is_told_from_one_with_another_key_or_none(world: World) -> None:
    token, key = world.upstream.mint(subject=a_subject(world)), {"Idempotency-Key": KEY}
    first = (await exchange(world, token, key)).json()
    quoted = {"Idempotency-Key": f'"{KEY}"'}
    assert (await exchange(world, token, quoted)).json()["refresh_token"] == first["refresh_token"]
    for headers in ({}, {"Idempotency-Key": "j" * 32}):
        assert (await exchange(world, token, headers)).status_code == 401
    assert (await exchange(world, token, {"Idempotency-Key": "short"})).status_code == 400


async def test_a_browser_whose_answer_was_lost_gets_the_same_session_in_its_cookies(world: World) -> None:
    token = world.upstream.mint(subject=a_subject(world))
    first = await exchange(world, token, OWN_SITE, mode="cookie")
    again = await exchange(world, token, OWN_SITE, mode="cookie")
    assert first.status_code == again.status_code == 200
    assert "access_token" not in first.json()
    assert "refresh_token" not in first.json()
    assert again.json()["session_id"] == first.json()["session_id"]
    names = [[each.name.rpartition("-")[2] for each in set_cookies(answer)] for answer in (first, again)]
    assert names == [["access", "refresh", "device"]] * 2
    jar = "; ".join(f"{each.name}={each.value}" for each in set_cookies(again))
    refreshed = await world.client.post("/auth/refresh", headers={**OWN_SITE, "Cookie": jar})
    assert refreshed.status_code == 200
    known = await exchange(
        world, world.upstream.mint(subject=a_subject(world)), {**OWN_SITE, "Cookie": jar}, mode="cookie"
    )
    assert "device" not in [each.name.rpartition("-")[2] for each in set_cookies(known)], "the browser has an id"


async def test_the_modes_with_cookies_need_an_allowed_origin_and_the_token_is_not_used_up(world: World) -> None:
    token = world.upstream.mint(subject=a_subject(world))
    for mode in ("cookie", "split"):
        for headers in ({}, {"Origin": "https://evil.example.com"}, {"Sec-Fetch-Site": "same-site"}):
            answer = await exchange(world, token, headers, mode=mode)
            assert (answer.status_code, answer.json()["error"]) == (403, "cross_site")
            assert not set_cookies(answer)
    split = await exchange(world, token, {"Sec-Fetch-Site": "same-origin"}, mode="split")
    assert split.status_code == 200
    assert "access_token" in split.json()
    assert "refresh_token" not in split.json()


async def test_a_session_of_the_same_device_is_replaced(world: World) -> None:
    subject = a_subject(world)
    first = (await exchange(world, world.upstream.mint(subject=subject), device_id="d1")).json()
    second = (await exchange(world, world.upstream.mint(subject=subject), device_id="d1")).json()
    assert first["session_id"] != second["session_id"]
    over = await world.client.get("/auth/verify", headers={"Authorization": f"Bearer {first['access_token']}"})
    assert over.json()["reason"] == "replaced"


async def test_a_disabled_user_learns_why_and_is_not_made_anew(world: World) -> None:
    _, user_id = await world.a_user()
    subject, _ = await an_identity(world, user_id)
    await world.keyturn.users.disable(user_id, by=SERVICE)
    users = await world.state(user_id)
    answer = await exchange(world, world.upstream.mint(subject=subject))
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_grant")
    assert answer.json()["reason"] == "user_disabled"
    assert await world.state(user_id) == users


async def test_a_service_without_an_issuer_says_so(database: str, logs: Path, upstream: Upstream) -> None:
    environment = {
        "KEYTURN_DATABASE_URL": database,
        "KEYTURN_REDIS_URL": "none",
        "KEYTURN_SECRET": SECRET,
        "KEYTURN_ISSUER": ISSUER,
        **{f"KEYTURN_{name.upper()}": value for name, value in CHEAP.items()},
    }
    with await asyncio.to_thread(Service.start, environment, logs=logs) as service:
        async with httpx2.AsyncClient(base_url=service.url, timeout=30) as client:
            answer = await client.post("/auth/exchange", json={"subject_token": upstream.mint()})
            assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
            assert "issuer" in answer.json()["error_description"]


async def test_while_the_issuer_s_keys_are_away_the_answer_is_503_and_the_token_stays_good(
    database: str, logs: Path, upstream: Upstream, tmp_path: Path
) -> None:
    async with services(database, logs, upstream, tmp_path, number=1) as [(_, client)]:
        upstream.refuse()
        token = upstream.mint(subject=upstream.other(secrets.randbelow(10**9)))
        for _ in range(2):
            answer = await client.post("/auth/exchange", json={"subject_token": token})
            assert (answer.status_code, answer.json()["error"]) == (503, "temporarily_unavailable")
            assert int(answer.headers["retry-after"]) >= 1
        upstream.heal()
        for _ in range(60):
            answer = await client.post("/auth/exchange", json={"subject_token": token})
            if answer.status_code == 200:
                break
            assert answer.status_code == 503
            await asyncio.sleep(0.5)
        assert answer.status_code == 200


# -- two processes


@asynccontextmanager
async def services(
    database: str, logs: Path, upstream: Upstream, folder: Path, number: int = 2
) -> AsyncIterator[list[tuple[Service, httpx2.AsyncClient]]]:
    """Services in processes of their own, on one database, which trust the same issuer, each with a client."""
    issuers = folder / "issuers.toml"
    issuers.write_text(upstream.toml(), encoding="utf-8")
    issuers.chmod(0o600)
    values = {"database_url": database, "redis_url": "none", "secret": SECRET, "issuer": ISSUER}
    values |= {"federation_file": str(issuers), **CHEAP}
    environment = {f"KEYTURN_{name.upper()}": value for name, value in values.items()}
    async with AsyncExitStack() as stack:
        found = []
        for _ in range(number):
            service = stack.enter_context(await asyncio.to_thread(Service.start, environment, logs=logs))
            limits = httpx2.Limits(max_connections=100)
            client = httpx2.AsyncClient(base_url=service.url, timeout=30, limits=limits)
            found.append((service, await stack.enter_async_context(client)))
        yield found


async def test_a_hundred_exchanges_of_one_token_on_two_processes_give_equal_answers_and_one_session(
    database: str, logs: Path, upstream: Upstream, tmp_path: Path
) -> None:
    async with services(database, logs, upstream, tmp_path) as found:
        clients = [client for _, client in found]
        for turn in range(3):
            subject = upstream.other(10**10 + secrets.randbelow(10**9))
            token = upstream.mint(subject=subject)
            body = {"subject_token": token, "device_id": f"d{turn}"} if turn else {"subject_token": token}
            answers = await asyncio.gather(
                *(client.post("/auth/exchange", json=body) for client in clients for _ in range(50))
            )
            assert {answer.status_code for answer in answers} == {200}
            same = {
                tuple(answer.json()[name] for name in ("session_id", "access_token", "refresh_token"))
                for answer in answers
            }
            assert len(same) == 1
        settings = settings_of(database, None)
        async with opened(settings) as keyturn, keyturn.db.look(hot_path=False) as connection:
            its = "SELECT count(*) FROM identities WHERE subject = :subject"
            assert await connection.scalar(text(its), {"subject": subject.user_id}) == 1
            of_the_user = (
                "SELECT count(*) FROM sessions WHERE user_id ="
                " (SELECT user_id FROM identities WHERE subject = :subject)"
            )
            assert await connection.scalar(text(of_the_user), {"subject": subject.user_id}) == 1


@pytest.mark.deep
async def test_whatever_process_dies_in_a_storm_of_exchanges_each_token_has_one_session_and_its_answer_comes_again(
    database: str, logs: Path, upstream: Upstream, tmp_path: Path
) -> None:
    async with services(database, logs, upstream, tmp_path) as [(service, one), (_, other)]:
        minted = [upstream.mint(subject=upstream.other(2 * 10**10 + secrets.randbelow(10**9))) for _ in range(40)]

        async def ask(client: httpx2.AsyncClient, token: str) -> tuple[str, str] | None:
            try:
                answer = await client.post("/auth/exchange", json={"subject_token": token})
            except httpx2.HTTPError:
                return None
            found = answer.json()
            return (found["session_id"], found["refresh_token"]) if answer.status_code == 200 else None

        async def kill() -> None:
            await asyncio.sleep(0.15)
            service.kill()

        first = await asyncio.gather(*(ask(one, token) for token in minted), kill())
        again = [await ask(other, token) for token in minted]
        assert all(again), "the retry window is open"
        for before, after in zip(first, again, strict=False):
            assert before in {None, after}
        async with opened(settings_of(database, None)) as keyturn, keyturn.db.look(hot_path=False) as connection:
            for session_id, _ in filter(None, again):
                query = select(Session.user_id).where(Session.id == UUID(session_id))
                user_id = await connection.scalar(query)
                of_user = await connection.scalars(select(Session.id).where(Session.user_id == user_id))
                assert [str(each) for each in of_user] == [session_id]


# -- identities


async def a_session(world: World) -> tuple[UUID, dict[str, str]]:
    email, user_id = await world.a_user()
    return user_id, {"Authorization": f"Bearer {(await world.signed_in(email)).json()['access_token']}"}


async def test_a_user_links_lists_and_unlinks_identities(world: World) -> None:
    user_id, bearer = await a_session(world)
    assert (await world.client.get("/auth/identities", headers=bearer)).json() == {"items": []}
    subject = a_subject(world)
    token = world.upstream.mint(subject=subject)
    made = await world.client.post("/auth/identities", json={"subject_token": token}, headers=bearer)
    assert made.status_code == 201, made.text
    identity = made.json()
    assert (identity["issuer"], identity["subject"]) == (world.upstream.url, subject.user_id)
    assert identity.keys() == {"id", "issuer", "subject", "created_at", "last_used_at"}
    again = await world.client.post("/auth/identities", json={"subject_token": token}, headers=bearer)
    assert again.json() == identity
    assert (await world.client.get("/auth/identities", headers=bearer)).json() == {"items": [identity]}
    tokens = (await exchange(world, world.upstream.mint(subject=subject))).json()
    me = await world.client.get("/auth/me", headers={"Authorization": f"Bearer {tokens['access_token']}"})
    assert me.json()["user"]["id"] == str(user_id)
    gone = await world.client.delete(f"/auth/identities/{identity['id']}", headers=bearer)
    assert (gone.status_code, gone.content) == (204, b"")
    assert (await world.client.get("/auth/identities", headers=bearer)).json() == {"items": []}
    assert (await world.client.delete(f"/auth/identities/{identity['id']}", headers=bearer)).status_code == 404


async def test_refused_tokens_for_links_and_exchanges_take_from_one_budget_and_a_good_one_is_never_slowed_down(
    database: str, logs: Path
) -> None:
    async with a_world(database, logs, limit_exchange="8/480") as world:
        _, bearer = await a_session(world)

        async def link(token: str) -> httpx2.Response:
            return await world.client.post("/auth/identities", json={"subject_token": token}, headers=bearer)

        owner, _ = await a_session(world)
        subject, _ = await an_identity(world, owner)
        for _ in range(10):  # a good token that is another user's: no guess
            assert (await link(world.upstream.mint(subject=subject))).status_code == 409
        assert [(await exchange(world, "no.good.token")).status_code for _ in range(2)] == [401] * 2
        storm = await asyncio.gather(*(link("no.good.token") for _ in range(20)))
        assert Counter(each.status_code for each in storm) == {401: 6, 429: 14}
        refused = next(each for each in storm if each.status_code == 429)
        assert refused.json()["error"] == "slow_down"
        assert refused.headers["ratelimit-policy"] == '"network";q=8;w=480'
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert (await exchange(world, "no.good.token")).status_code == 429, "no second budget"
        assert (await link(world.upstream.mint(subject=a_subject(world)))).status_code == 201


async def test_an_identity_of_another_user_is_a_conflict_to_link_and_a_missing_thing_to_unlink(world: World) -> None:
    owner, _ = await a_session(world)
    subject, identity_id = await an_identity(world, owner)
    _, thief = await a_session(world)
    body = {"subject_token": world.upstream.mint(subject=subject)}
    answer = await world.client.post("/auth/identities", json=body, headers=thief)
    assert (answer.status_code, answer.json()["error"]) == (409, "conflict")
    said = set()
    for wanted in (identity_id, UUID(int=7), "x", str(identity_id).upper()):
        answer = await world.client.delete(f"/auth/identities/{wanted}", headers=thief)
        kept = {k: v for k, v in answer.headers.items() if k not in {"date", "x-request-id"}}
        said.add((answer.status_code, answer.text, str(sorted(kept.items()))))
    assert len(said) == 1
    assert said.pop()[0] == 404


async def test_the_last_way_in_stays(world: World) -> None:
    tokens = (await exchange(world, world.upstream.mint("id_token", subject=a_subject(world)))).json()
    bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
    [identity] = (await world.client.get("/auth/identities", headers=bearer)).json()["items"]
    answer = await world.client.delete(f"/auth/identities/{identity['id']}", headers=bearer)
    assert (answer.status_code, answer.json()["error"]) == (409, "conflict")


async def test_without_a_fresh_sign_in_nobody_changes_the_ways_in(world: World) -> None:
    stale = await world.caller("stale")
    fromnow = (await exchange(world, world.upstream.mint(subject=a_subject(world)))).json()
    unknown = {"Authorization": f"Bearer {fromnow['access_token']}"}
    for headers in (dict(stale.headers), unknown):
        body = {"subject_token": world.upstream.mint(subject=a_subject(world))}
        for answer in (
            await world.client.post("/auth/identities", json=body, headers=headers),
            await world.client.delete(f"/auth/identities/{UUID(int=7)}", headers=headers),
        ):
            assert (answer.status_code, answer.json()["error"]) == (401, "insufficient_user_authentication")


# -- administrators and operators


async def test_an_administrator_sees_and_takes_away_identities_and_vouches_for_addresses(world: World) -> None:
    admin = dict((await world.caller("admin")).headers)
    _, user_id = await world.a_user()
    path = f"/admin/users/{user_id}"
    user = (await world.client.get(path, headers=admin)).json()
    assert user["password_set"] is True
    assert "email_verified_at" not in user
    verified = await world.client.put(f"{path}/email-verified", json={"email_verified": True}, headers=admin)
    assert verified.json()["email_verified_at"]
    withdrawn = await world.client.put(f"{path}/email-verified", json={"email_verified": False}, headers=admin)
    assert "email_verified_at" not in withdrawn.json()
    _, identity_id = await an_identity(world, user_id)
    [identity] = (await world.client.get(f"{path}/identities", headers=admin)).json()["items"]
    assert identity["id"] == str(identity_id)
    assert (await world.client.delete(f"{path}/identities/{identity_id}", headers=admin)).status_code == 204
    assert (await world.client.get(f"{path}/identities", headers=admin)).json() == {"items": []}
    assert (await world.client.get(f"/admin/users/{UUID(int=7)}/identities", headers=admin)).status_code == 404
    events = await world.client.get("/admin/events", params={"user": str(user_id)}, headers=admin)
    kinds = [event["event"] for event in events.json()["items"]]
    assert kinds[:4] == ["identity_unlinked", "identity_linked", "email_verified", "email_verified"]


async def test_a_user_without_an_address_is_shown_without_one_everywhere(world: World) -> None:
    admin = dict((await world.caller("admin")).headers)
    tokens = (await exchange(world, world.upstream.mint(subject=a_subject(world)))).json()
    session = (await world.client.get(f"/admin/sessions/{tokens['session_id']}", headers=admin)).json()
    assert "email" not in session
    path = f"/admin/users/{session['user_id']}"
    user = (await world.client.get(path, headers=admin)).json()
    assert user["password_set"] is False
    assert "email" not in user
    listed = (await world.client.get("/admin/users", params={"limit": 100}, headers=admin)).json()["items"]
    assert user in listed
    for answer in (
        await world.client.post(f"{path}/password", headers=admin),
        await world.client.put(f"{path}/email-verified", json={"email_verified": True}, headers=admin),
    ):
        assert (answer.status_code, answer.json()["error"]) == (409, "conflict")
    assert (await world.client.post(f"{path}/disable", headers=admin)).json()["status"] == "disabled"
    assert (await world.client.delete(path, headers=admin)).status_code == 200


async def test_a_user_without_a_password_signs_in_with_none_and_learns_nothing(world: World) -> None:
    email, user_id = await world.a_user()
    async with world.keyturn.db.begin() as tx:
        await tx.execute(User.__table__.update().where(User.id == user_id).values(password_hash=None))  # type: ignore[attr-defined]  # a table
    answers = []
    for address in (email, f"{secrets.token_hex(8)}@example.com"):
        for password in (PASSWORD, NEW_PASSWORD, "None-None"):
            answer = await world.client.post("/auth/login", json={"email": address, "password": password})
            answers.append((answer.status_code, answer.text))
    assert set(answers) == {(401, '{"error":"invalid_grant","error_description":"E-mail or password is wrong."}')}


# -- nothing of the upstream's tokens is kept


async def test_no_token_of_the_issuer_is_in_the_database_or_an_answer(world: World) -> None:
    subject = a_subject(world)
    token = world.upstream.mint("id_token", subject=subject)
    answer = await exchange(world, token, OWN_SITE, mode="cookie")
    refused = await exchange(world, token, {"User-Agent": "thief"})
    shown = [answer.text, str(answer.headers), refused.text, str(refused.headers)]
    async with world.keyturn.db.look(hot_path=False) as connection:
        for table in Base.metadata.sorted_tables:
            rows = (await connection.execute(select(table))).all()
            shown += [repr(tuple(row)) for row in rows]
    parts = [part for part in token.split(".") if len(part) > 20]
    assert len(parts) == 3
    for text_ in shown:
        for part in parts:
            assert part not in text_
        assert "rt_" not in text_


async def test_an_answer_of_a_refused_exchange_repeats_nothing_that_was_sent(world: World) -> None:
    planted = "planted" + secrets.token_hex(8)
    for body in (
        {"subject_token": planted},
        {"subject_token": f"{planted}.{planted}.{planted}"},
        {"subject_token": "a.b.c", "subject_token_type": planted},
        {"subject_token": "a.b.c", "device_id": planted * 10},
        {"subject_token": {"a": planted}},
    ):
        answer = await world.client.post("/auth/exchange", json=body)
        assert answer.status_code in {400, 401}
        assert planted not in answer.text
        assert planted not in json.dumps(dict(answer.headers))


async def test_an_exchange_takes_a_token_again_after_an_instance_was_started_anew(world: World) -> None:
    token = world.upstream.mint(subject=a_subject(world))
    first = (await exchange(world, token, {"User-Agent": "app/1"})).json()
    folder = Path(str(world.keyturn.settings.federation_file))
    more = {"federation_file": str(folder), "registration": "true"}
    async with opened(settings_of(world.database_url, None, **more)) as keyturn, running(keyturn):
        tokens = await keyturn.exchange.exchange(
            token, None, caller=caller_of(keyturn.settings.client_id, None, None, "app/1"), by=SERVICE
        )
    assert (str(tokens.session_id), tokens.refresh_token) == (first["session_id"], first["refresh_token"])
