"""A retry that proves itself: Idempotency-Key at a refresh, on both databases and through both doors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from hashlib import sha256
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import update

from app.actors import SERVICE
from app.errors import InvalidGrant, InvalidRequest, InvalidScope, Refusal
from app.http.edge import Edge
from app.http.idempotency_keys import key_in
from app.keyturn import Keyturn
from app.main import create_app
from app.sessions.answers import Tokens
from app.storage.tables import Session
from tests.conftest import Opener, a_user, settings_of, time_passes
from tests.cookie_site import R, S, Site, site_of
from tests.cookies import SAME_SITE, ask, set_cookies
from tests.test_sessions import a_session, refused, rejected, row

KEY, OTHER = "8e03978e-40d5-43dd-bc93-6894a57f9324", "f81d4fae-7dec-11d0-a765-00a0c91e6bf6"
SECOND, DAY = timedelta(seconds=1), timedelta(days=1)
WINDOW = 60 * SECOND
FASTAPI = ("X-Never-Heard-Of", "x")
"""A header field that is not plain. With it, FastAPI's door takes the request."""


async def refresh(keyturn: Keyturn, tokens: Tokens, key: str | None = None, **more: Any) -> Tokens:
    return await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE, retry_key=key, **more)


def digest(key: str) -> bytes:
    return sha256(key.encode()).digest()


# -- the form of the field

SAME = [
    ("x" * 16, "x" * 16),
    ("x" * 255, "x" * 255),
    (f'"{KEY}"', KEY),
    (f"  {KEY}\t", KEY),
    ('"' + "x" * 255 + '"', "x" * 255),
    ('"a key, with a comma"', "a key, with a comma"),
    (r'"a \"quoted\" key \\ here"', r'a "quoted" key \ here'),
    (r"a backslash \ is bare", r"a backslash \ is bare"),
    ('"' + r"\\" * 255 + '"', "\\" * 255),
    ('"       led by blanks"', "       led by blanks"),
    ("key; with=semicolon", "key; with=semicolon"),
]
MALFORMED = [
    "", " ", "x" * 15, "x" * 256, '""', '"' + "x" * 15 + '"', '"' + "x" * 256 + '"', '"' + r"\\" * 15 + '"',
    f'"{KEY}', f'{KEY}"', f'{KEY[:18]}"{KEY[18:]}', f'"{KEY}""', f'"{KEY}";a=1', f'"{KEY}", "{OTHER}"',
    f"{KEY}, {OTHER}", f"{KEY},{OTHER}", f"{KEY},", r'"a bad \escape, here"', r'"ends with an escape\"',
    f"{KEY}\x00", f"{KEY}\x7f", f"{KEY[:18]}\t{KEY[18:]}", f"{KEY}\n", f"{KEY}é", f"ÿ{KEY}", f":{KEY},:", f"'{KEY}',",
]  # fmt: skip


@pytest.mark.parametrize(("value", "key"), SAME)
def test_a_quoted_and_a_bare_key_are_the_same_key(value: str, key: str) -> None:
    assert key_in(value.encode()) == key


@pytest.mark.parametrize("value", MALFORMED)
def test_a_value_that_spells_no_key_is_refused_and_not_repeated(value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        key_in(value.encode("latin-1"))
    shown = f"{caught.value.cause} {caught.value.description} {caught.value!r}"
    assert KEY[:12] not in shown
    assert "xxxxxx" not in shown


# -- what a key does


async def test_the_same_key_gets_the_same_answer_after_the_window_too(keyturn: Keyturn) -> None:
    first = await a_session(keyturn)
    second = await refresh(keyturn, first, KEY)
    for passed in (0 * SECOND, WINDOW, DAY, 2 * DAY):
        await time_passes(keyturn, passed)
        again = await refresh(keyturn, first, KEY)
        assert again.refresh_token == second.refresh_token
        assert (again.access_token == second.access_token) is (not passed)
        assert (await row(keyturn, first)).generation == 1
    # A late answer is the same one: its access token began at the rotation, and is over.
    assert again.body()["expires_in"] == 0
    third = await refresh(keyturn, again, OTHER)
    assert third.body()["expires_in"] == 900
    await refused(keyturn, first.refresh_token, "reuse_detected")


@pytest.mark.parametrize("presented", [None, OTHER, KEY.upper(), KEY + " "])
async def test_without_the_key_of_the_rotation_the_window_alone_decides(
    keyturn: Keyturn, presented: str | None
) -> None:
    first = await a_session(keyturn)
    second = await refresh(keyturn, first, KEY)
    await time_passes(keyturn, 20 * SECOND)
    assert (await refresh(keyturn, first, presented)).refresh_token == second.refresh_token
    assert (await row(keyturn, first)).retry_key_digest == digest(KEY)  # a retry changes nothing
    await time_passes(keyturn, WINDOW)
    with pytest.raises(InvalidGrant) as caught:
        await refresh(keyturn, first, presented)
    assert caught.value.reason == "reuse_detected"
    await rejected(keyturn, second.access_token, "reuse_detected")
    with pytest.raises(InvalidGrant):  # the session is over for the owner too, who learns why
        await refresh(keyturn, first, KEY)


async def test_a_key_that_the_rotation_did_not_have_proves_nothing_later(keyturn: Keyturn) -> None:
    first = await a_session(keyturn)
    await refresh(keyturn, first)
    await refresh(keyturn, first, KEY)  # within the window
    await time_passes(keyturn, WINDOW)
    with pytest.raises(InvalidGrant) as caught:
        await refresh(keyturn, first, KEY)
    assert caught.value.reason == "reuse_detected"


@pytest.mark.parametrize("next_key", [None, OTHER])
async def test_each_rotation_forgets_the_key_before_it(keyturn: Keyturn, next_key: str | None) -> None:
    first = await a_session(keyturn)
    second = await refresh(keyturn, first, KEY)
    await refresh(keyturn, second, next_key)
    assert (await row(keyturn, first)).retry_key_digest == (digest(next_key) if next_key else None)
    await time_passes(keyturn, WINDOW)
    with pytest.raises(InvalidGrant) as caught:
        await refresh(keyturn, second, KEY)
    assert caught.value.reason == "reuse_detected"


async def test_one_key_for_all_refreshes_opens_no_older_generation(keyturn: Keyturn) -> None:
    first = await a_session(keyturn)
    await refresh(keyturn, await refresh(keyturn, first, KEY), KEY)
    with pytest.raises(InvalidGrant) as caught:
        await refresh(keyturn, first, KEY)
    assert caught.value.reason == "reuse_detected"


async def test_a_key_opens_no_session_that_is_over(keyturn: Keyturn) -> None:
    first = await a_session(keyturn)
    second = await refresh(keyturn, first, KEY)
    await keyturn.ending.logout((), [second.refresh_token], "this", by=SERVICE)
    with pytest.raises(InvalidGrant) as caught:
        await refresh(keyturn, first, KEY)
    assert caught.value.reason == "logout"
    idle = await a_session(keyturn, "idle@example.com")
    await refresh(keyturn, idle, KEY)
    await time_passes(keyturn, keyturn.settings.refresh_token_lifetime)
    with pytest.raises(InvalidGrant) as caught:
        await refresh(keyturn, idle, KEY)
    assert caught.value.reason == "idle_timeout"


async def test_with_a_window_of_zero_the_key_alone_makes_a_retry(open_keyturn: Opener) -> None:
    async with open_keyturn(retry_window=0) as strict:
        first = await a_session(strict)
        second = await refresh(strict, first, KEY)
        assert (await refresh(strict, first, KEY)).refresh_token == second.refresh_token
        with pytest.raises(InvalidGrant) as caught:
            await refresh(strict, first, OTHER)
        assert caught.value.reason == "reuse_detected"


async def test_the_row_holds_only_the_digest_of_the_key(keyturn: Keyturn) -> None:
    first = await a_session(keyturn)
    assert (await row(keyturn, first)).retry_key_digest is None
    await refresh(keyturn, first, KEY)
    found = await row(keyturn, first)
    assert found.retry_key_digest == digest(KEY)
    assert KEY not in repr(found)


async def test_another_instance_and_a_moved_refresh_key_know_the_retry_too(
    keyturn: Keyturn, open_keyturn: Opener
) -> None:
    first = await a_session(keyturn)
    second = await refresh(keyturn, first, KEY)
    await keyturn.keys.generate("refresh", by=SERVICE)
    await time_passes(keyturn, DAY)
    async with open_keyturn() as other:
        assert (await refresh(other, first, KEY)).refresh_token == second.refresh_token


@pytest.mark.parametrize("window", [0, 60])
async def test_of_one_token_with_several_keys_in_one_batch_the_first_rotates_and_the_others_are_judged(
    open_keyturn: Opener, window: int
) -> None:
    async with open_keyturn(retry_window=window) as keyturn:
        first = await a_session(keyturn)
        sizes: list[int] = []
        run = keyturn.rotation._rotations._run

        async def recorded(batch: Sequence[Any]) -> Any:
            sizes.append(len(batch))
            return await run(batch)

        keyturn.rotation._rotations._run = recorded
        keys = (KEY, OTHER, KEY, None)
        answers = await asyncio.gather(*(refresh(keyturn, first, key) for key in keys), return_exceptions=True)
        assert sizes == [4]
        found = await row(keyturn, first)
        assert (found.generation, found.retry_key_digest) == (1, digest(KEY))
        if window:
            assert len({each.refresh_token for each in answers if isinstance(each, Tokens)}) == 1
            assert found.ended_at is None
        else:
            assert [isinstance(each, Tokens) for each in answers] == [True, False, True, False]
            assert [getattr(each, "reason", "-") for each in answers] == ["-", "reuse_detected"] * 2
            assert found.end_reason == "reuse_detected"


# -- scope


async def granted(keyturn: Keyturn, scope: str | None, email: str = "ada@example.com") -> Tokens:
    tokens = await a_session(keyturn, email)
    async with keyturn.db.begin() as tx:
        await tx.execute(update(Session).where(Session.id == tokens.session_id).values(scope=scope))
    return tokens


@pytest.mark.parametrize("scope", ["read", "", None])
async def test_a_scope_beyond_the_granted_one_rotates_nothing_and_ends_nothing(
    keyturn: Keyturn, scope: str | None
) -> None:
    first = await granted(keyturn, scope)
    before = await row(keyturn, first)
    for asked in ({"write"}, {"read", "write"}, {"rea"}, {"READ"}):
        with pytest.raises(InvalidScope):
            await refresh(keyturn, first, KEY, scope=frozenset(asked))
    assert await row(keyturn, first) == before
    second = await refresh(keyturn, first, KEY)
    with pytest.raises(InvalidScope):  # as a retry too
        await refresh(keyturn, first, KEY, scope=frozenset({"write"}))
    assert (await refresh(keyturn, first, KEY)).refresh_token == second.refresh_token


async def test_a_narrower_scope_rotates_once_and_leaves_the_granted_scope(keyturn: Keyturn) -> None:
    first = await granted(keyturn, "read send write")
    second = await refresh(keyturn, first, KEY, scope=frozenset({"read"}))
    retried = await refresh(keyturn, first, KEY, scope=frozenset({"read", "write"}))
    assert retried.refresh_token == second.refresh_token
    everything = await refresh(keyturn, first, KEY)
    scopes = [
        (tokens.body()["scope"], keyturn.reading.verify_new(tokens.access_token).claims["scope"])
        for tokens in (second, retried, everything)
    ]
    assert scopes == [("read",) * 2, ("read write",) * 2, ("read send write",) * 2]
    found = await row(keyturn, first)
    assert (found.generation, found.scope, found.retry_key_digest) == (1, "read send write", digest(KEY))
    await refresh(keyturn, second, scope=frozenset({"send", "write"}))  # more than last time, and granted


async def test_a_refused_scope_hides_no_reuse_and_no_reason(keyturn: Keyturn) -> None:
    first = await granted(keyturn, "read")
    await refresh(keyturn, await refresh(keyturn, first))
    for scope in ({"write"}, {"read"}):
        with pytest.raises(InvalidGrant) as caught:
            await refresh(keyturn, first, scope=frozenset(scope))
        assert caught.value.reason == "reuse_detected"


# -- through both doors


@asynccontextmanager
async def doors(database_url: str) -> AsyncIterator[tuple[Keyturn, list[httpx2.AsyncClient]]]:
    """The parts of one application, and two clients: as it is served, and through FastAPI's door alone."""
    app = create_app(settings_of(database_url, None))
    slow = Edge(partial(FastAPI.__call__, app), origins=app.origins)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="https://x") as fast,
        httpx2.AsyncClient(transport=httpx2.ASGITransport(slow), base_url="https://x") as through,
    ):
        yield app.state.keyturn, [fast, through]


async def test_both_doors_read_the_key_in_either_spelling(database_url: str) -> None:
    async with doors(database_url) as (keyturn, clients):
        proof = await a_user(keyturn)
        for first_door, second_door in (clients, reversed(clients)):
            for spelled, again in ((KEY, f'"{KEY}"'), (f'"{KEY}"', KEY)):
                body = {"refresh_token": (await keyturn.starting.start(proof, by=SERVICE)).refresh_token}
                first = await first_door.post("/auth/refresh", json=body, headers={"Idempotency-Key": spelled})
                await time_passes(keyturn, DAY)
                second = await second_door.post("/auth/refresh", json=body, headers={"idempotency-key": again})
                assert (first.status_code, second.status_code) == (200, 200)
                assert first.json()["refresh_token"] == second.json()["refresh_token"]
                late = await first_door.post("/auth/refresh", json=body)
                assert (late.status_code, late.json()["reason"]) == (401, "reuse_detected")


async def test_a_malformed_key_or_scope_is_400_through_both_doors_and_changes_nothing(database_url: str) -> None:
    async with doors(database_url) as (keyturn, clients):
        tokens = await a_session(keyturn)
        before = await row(keyturn, tokens)
        body = {"refresh_token": tokens.refresh_token}
        name, key = b"Idempotency-Key", KEY.encode()
        fields = [[(name, value.encode("latin-1"))] for value in MALFORMED]
        fields += [[(name, key)] * 2, [(name, key), (name.lower(), b"")]]
        for client in clients:
            for headers in fields:
                answer = await client.post("/auth/refresh", json=body, headers=headers)
                assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request"), headers
                assert KEY[:12] not in answer.text
            for scope in ("", " ", 'a"b', "a\nb", "read"):
                answer = await client.post("/auth/refresh", json={**body, "scope": scope})
                assert (answer.status_code, answer.json()["error"]) == (400, "invalid_scope"), scope
            for wrong in (1, ["read"], "x" * 257):
                answer = await client.post("/auth/refresh", json={**body, "scope": wrong})
                assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request"), wrong
        assert await row(keyturn, tokens) == before


async def test_a_scope_of_the_body_counts_for_a_token_and_for_a_cookie(site: Site) -> None:
    signed_in = await site.sign_in(await site.user(), "split")
    async with site.keyturn.db.begin() as tx:
        await tx.execute(update(Session).values(scope="read write"))
    sent, headers = f"{S}={signed_in.fields[S]}", [*SAME_SITE, ("Idempotency-Key", KEY)]
    refused = await ask(site.client, "POST", "/auth/refresh", sent, body={"scope": "admin"}, headers=headers)
    assert (refused.status_code, refused.json()["error"], set_cookies(refused)) == (400, "invalid_scope", [])
    answer = await ask(site.client, "POST", "/auth/refresh", sent, body={"scope": "read"}, headers=headers)
    assert (answer.status_code, answer.json()["scope"]) == (200, "read")
    token = site.sealer.open(S, next(c.value for c in set_cookies(answer) if c.name == S)).token
    answer = await ask(site.client, "POST", "/auth/refresh", body={"refresh_token": token, "scope": "write"})
    assert (answer.status_code, answer.json()["scope"]) == (200, "write")


async def test_no_other_endpoint_reads_the_field(database_url: str) -> None:
    async with doors(database_url) as (keyturn, clients):
        tokens = await a_session(keyturn)
        for client in clients:
            headers = {"Authorization": f"Bearer {tokens.access_token}", "Idempotency-Key": "short"}
            assert (await client.get("/auth/verify", headers=headers)).status_code == 200
            assert (await client.get("/auth/me", headers=headers)).status_code == 200


# -- cookies


@pytest.fixture
async def site(database_url: str) -> AsyncIterator[Site]:
    async with site_of(database_url) as site:
        yield site


@pytest.mark.parametrize("more", [[], [FASTAPI]], ids=["fast", "FastAPI"])
@pytest.mark.parametrize("mode", ["cookie", "split"])
async def test_a_key_proves_the_retry_of_a_browser_too(site: Site, mode: str, more: list[tuple[str, str]]) -> None:
    signed_in = await site.sign_in(await site.user(), remember=True)
    sent = f"{R}={signed_in.r}" if mode == "cookie" else f"{S}={signed_in.s}"
    headers = [*SAME_SITE, *more, ("Idempotency-Key", KEY)]
    taken = site.taken
    first = await ask(site.client, "POST", "/auth/refresh", sent, headers=headers)
    await time_passes(site.keyturn, DAY)
    second = await ask(site.client, "POST", "/auth/refresh", sent, headers=headers)
    assert (first.status_code, second.status_code) == (200, 200)
    assert site.taken - taken == (0 if more else 2)
    name = R if mode == "cookie" else S
    one, other = ({c.name: c for c in set_cookies(answer)} for answer in (first, second))
    opened = site.sealer.open(name, one[name].value), site.sealer.open(name, other[name].value)
    assert opened[0].token == opened[1].token
    for cookie in other.values():  # the access token is over, and so its cookie is deleted at once
        assert int(cookie.attributes["max-age"]) == 0 if cookie.name != name else 5 * 86400
    late = await ask(site.client, "POST", "/auth/refresh", sent, headers=[*SAME_SITE, *more])
    assert (late.status_code, late.json()["reason"]) == (401, "reuse_detected")


async def test_a_refresh_on_the_way_does_not_take_the_field_for_its_own(site: Site) -> None:
    signed_in = await site.sign_in(await site.user())
    for key in (KEY, "short"):
        headers = [*SAME_SITE, ("Idempotency-Key", key)]
        answer = await ask(site.client, "GET", "/auth/verify?refresh=true", f"{R}={signed_in.r}", headers=headers)
        assert answer.status_code == 200
    async with site.keyturn.db.look() as connection:
        found = (await connection.execute(Session.__table__.select())).one()
    assert (found.generation, found.retry_key_digest) == (1, None)


def test_a_refusal_names_the_field_and_no_value() -> None:
    with pytest.raises(Refusal) as caught:
        key_in(f"{KEY}, {OTHER}".encode())
    assert "Idempotency-Key" in str(caught.value.description)
