"""The pace of one session's refreshes: pure against a model, then over HTTP, by both doors and on both databases."""

from __future__ import annotations

import asyncio
import os
import tracemalloc
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from uuid import UUID

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.actors import SERVICE
from app.errors import SlowDown
from app.keyturn import Keyturn
from app.limits.refreshes import Refreshes
from app.sessions.answers import Tokens
from app.storage.tables import uuid7
from tests.api import serving
from tests.conftest import PASSWORD, Opener, a_user

SESSION = UUID("019ac000-0000-7000-8000-000000000001")


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def token(session: UUID) -> bytes:
    """The bytes of a token of this session, as far as they matter here."""
    return b"\x01" + session.bytes + bytes(46)


@dataclass
class Pace:
    """A table of the product with a clock of the test."""

    rate: str = "30/60"
    slots: int = 1024
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.refreshes = Refreshes(self.rate, self.clock, self.slots)

    def wait(self, generation: int, session: UUID = SESSION) -> float:
        """How long the presentation has to wait. Zero: it is let through."""
        try:
            self.refreshes.presented(token(session), generation, session)
        except SlowDown as e:
            refusal = e
        else:
            return 0.0
        assert refusal.session_id == session
        assert refusal.retry_after is not None
        assert refusal.limit is not None
        assert refusal.limit.name == "session"
        return refusal.retry_after.total_seconds()


def test_a_session_in_a_loop_is_slowed_down_to_its_rate() -> None:
    pace = Pace()
    generation = 0
    for _ in range(30):
        assert pace.wait(generation) == 0
        generation += 1
    for _ in range(5):
        wait = pace.wait(generation)
        assert 0 < wait <= 2
        assert pace.wait(generation) == wait, "a refused presentation takes nothing"
        pace.clock.now += wait + 1e-6
        assert pace.wait(generation) == 0
        generation += 1


def test_the_retry_of_a_lost_answer_is_never_refused_for_the_rotations_before_it() -> None:
    pace = Pace()
    for generation in range(30):
        assert pace.wait(generation) == 0
        assert [pace.wait(generation) for _ in range(5)] == [0] * 5
    assert pace.wait(30) > 0
    assert [pace.wait(29) for _ in range(100)] == [0] * 100
    assert pace.wait(30) > 0


def test_hundreds_of_tabs_may_present_one_token_at_once_and_a_loop_of_it_ends_at_ten_a_second() -> None:
    pace = Pace()
    assert [pace.wait(7) for _ in range(601)] == [0] * 601
    assert 0 < pace.wait(7) <= 1
    let_through = 0
    for _ in range(1000):
        pace.clock.now += 0.01
        let_through += pace.wait(7) == 0
    assert 95 <= let_through <= 105


def test_an_older_token_does_not_make_the_newest_one_a_new_one() -> None:
    pace = Pace("6/60")
    for generation in range(6):
        assert pace.wait(generation) == 0
    assert pace.wait(2) == pace.wait(5) == pace.wait(0) == pace.wait(5) == 0
    assert pace.wait(6) > 0


def test_nobody_who_repeats_the_newest_token_keeps_the_reuse_of_an_older_one_from_being_seen() -> None:
    pace = Pace()
    for generation in range(3):
        pace.wait(generation)
    while not pace.wait(2):
        pass
    assert pace.wait(1) == pace.wait(0) == 0
    assert pace.wait(2) > 0


def test_off_means_off() -> None:
    pace = Pace("off")
    assert [pace.wait(generation) for generation in range(10_000)] == [0] * 10_000


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.floats(0, 5)), max_size=200),
    st.sampled_from([("6/60", 6, 60.0), ("30/60", 30, 60.0), ("2/1", 2, 1.0)]),
)
def test_each_session_gets_what_a_bucket_of_its_own_would_give_and_none_pays_for_another(
    presentations: list[tuple[int, int, float]], rate: tuple[str, int, float]
) -> None:
    text, most, window = rate
    pace = Pace(text, slots=4096)
    sessions = [UUID(int=(SESSION.int & ~0xFFFF) | number) for number in range(6)]
    newest, levels, seen = [-1] * 6, [[0.0, 0.0, 0.0] for _ in range(6)], [1000.0] * 6
    for which, step, pause in presentations:
        pace.clock.now += pause
        sizes = most, most * 20, most * 20
        for kind, parts in enumerate(sizes):
            leak = (pace.clock.now - seen[which]) * parts / window
            levels[which][kind] = max(0.0, levels[which][kind] - leak)
        seen[which] = pace.clock.now
        generation = max(0, newest[which] + step - 1)
        kind = 0 if generation > newest[which] else 1 if generation == newest[which] else 2
        level, parts = levels[which][kind], sizes[kind]
        waited = pace.wait(generation, sessions[which])
        if level + 1 <= parts - 1e-6:
            assert waited == 0
        elif level + 1 >= parts + 1e-6:
            assert waited > 0
        if not waited:
            levels[which][kind] += 1
            newest[which] = max(newest[which], generation)


def test_of_two_sessions_with_one_slot_the_one_in_a_loop_keeps_it_and_the_other_is_not_limited() -> None:
    pace = Pace(slots=1)
    other = UUID(int=SESSION.int + 1)
    for generation in range(30):
        assert pace.wait(generation) == 0
        assert pace.wait(generation, other) == 0
    assert pace.wait(30) > 0
    for generation in range(30, 200):
        assert pace.wait(generation, other) == 0
        assert pace.wait(30) > 0, "nobody can push a session in a loop out of its slot"
    pace.clock.now += 120
    assert pace.wait(200, other) == 0
    assert pace.wait(30) == 0, "a session with a whole budget gives its slot away"


def test_memory_is_fixed_whatever_comes() -> None:
    refreshes = Refreshes("30/60")
    ids = [UUID(bytes=os.urandom(16), version=4) for _ in range(20_000)]
    tokens = [token(each) for each in ids]
    for each, session in zip(tokens, ids, strict=True):
        refreshes.presented(each, 0, session)
    tracemalloc.start()
    before = tracemalloc.take_snapshot()
    for generation in range(1, 4):
        for each, session in zip(tokens, ids, strict=True):
            refreshes.presented(each, generation, session)
    grown = sum(each.size_diff for each in tracemalloc.take_snapshot().compare_to(before, "filename"))
    tracemalloc.stop()
    assert grown < 64 * 1024


# -- over HTTP


async def refreshed(client: httpx2.AsyncClient, text: str, **fields: str) -> httpx2.Response:
    return await client.post("/auth/refresh", json={"refresh_token": text}, headers=fields)


@dataclass
class Place:
    """An instance with a small limit, reached by either door."""

    keyturn: Keyturn
    client: httpx2.AsyncClient
    tokens: Tokens


@pytest.fixture(params=["fast", "slow"])
async def place(request: pytest.FixtureRequest, database_url: str) -> AsyncIterator[Place]:
    async with serving(database_url, limit_session="6/60", retry_window="60") as api:
        proof = await a_user(api.keyturn)
        tokens = await api.keyturn.starting.start(proof, by=SERVICE)
        if request.param == "slow":  # FastAPI's door gets requests with a field that is not plain
            api.client.headers["prefer"] = "respond-async"
        yield Place(api.keyturn, api.client, tokens)


async def test_a_loop_of_refreshes_is_answered_429_and_nothing_is_lost(place: Place) -> None:
    text = place.tokens.refresh_token
    for _ in range(6):
        answer = await refreshed(place.client, text)
        assert answer.status_code == 200
        before, text = text, answer.json()["refresh_token"]
    for _ in range(20):
        refused = await refreshed(place.client, text)
        assert refused.status_code == 429
        assert refused.json() == {
            "error": "slow_down",
            "error_description": "Too many attempts. Try again later.",
        }
        assert 1 <= int(refused.headers["retry-after"]) <= 10
        assert refused.headers["ratelimit-policy"] == '"session";q=6;w=60'
        assert refused.headers["ratelimit"].startswith('"session";r=0;t=')
        assert refused.headers["cache-control"] == "no-store"
    # The retry of the last answer, which may have been lost.
    again = await refreshed(place.client, before)
    assert again.status_code == 200
    assert again.json()["refresh_token"] == text


async def test_other_sessions_of_the_same_user_and_address_are_not_slowed_down(place: Place) -> None:
    proof = await place.keyturn.sign_in.authenticate("ada@example.com", PASSWORD)
    text = place.tokens.refresh_token
    for _ in range(7):
        answer = await refreshed(place.client, text)
        text = answer.json().get("refresh_token", text)
    assert answer.status_code == 429
    for _ in range(5):
        other = await place.keyturn.starting.start(proof, by=SERVICE)
        assert (await refreshed(place.client, other.refresh_token)).status_code == 200


async def test_100_at_once_with_one_token_all_get_the_same_answer(place: Place) -> None:
    text = place.tokens.refresh_token
    answers = await asyncio.gather(*(refreshed(place.client, text) for _ in range(100)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["refresh_token"] for answer in answers}) == 1


async def test_the_genuine_token_of_an_ended_session_is_slowed_down_too_and_costs_nothing_more(place: Place) -> None:
    await place.keyturn.ending.logout((), [place.tokens.refresh_token], "this", by=SERVICE)
    answers = [await refreshed(place.client, place.tokens.refresh_token) for _ in range(130)]
    codes = [answer.status_code for answer in answers]
    assert codes[:100] == [401] * 100
    assert codes[-1] == 429


async def test_reauthentication_counts_as_one_refresh(place: Place) -> None:
    text = place.tokens.refresh_token
    for _ in range(5):
        text = (await refreshed(place.client, text)).json()["refresh_token"]
    body = {"refresh_token": text, "password": PASSWORD}
    answer = await place.client.post("/auth/reauthenticate", json=body)
    assert answer.status_code == 200, answer.text
    text = answer.json()["refresh_token"]
    body["refresh_token"] = text
    assert (await place.client.post("/auth/reauthenticate", json=body)).status_code == 429
    wrong = {**body, "password": "not the right password"}
    answer = await place.client.post("/auth/reauthenticate", json=wrong)
    assert answer.status_code == 429, "no password is hashed for it"
    assert (await refreshed(place.client, text)).status_code == 429


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_two_processes_count_each_for_itself(open_keyturn: Opener) -> None:
    async with open_keyturn(limit_session="6/60") as one, open_keyturn(limit_session="6/60") as two:
        tokens = await one.starting.start(await a_user(one), by=SERVICE)
        text = tokens.refresh_token
        for number in range(12):
            text = (await (one, two)[number % 2].rotation.refresh(text, by=SERVICE)).refresh_token
        for each in (one, two):
            with pytest.raises(SlowDown):
                await each.rotation.refresh(text, by=SERVICE)


def test_the_random_bits_of_a_session_s_id_choose_its_slot() -> None:
    ids = [uuid7() for _ in range(1000)]
    assert len({token(each)[9:17] for each in ids}) == 1000
