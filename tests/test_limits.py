"""Limits on guesses: what an attempt takes, gives back and leaves behind, without a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.errors import Conflict, InvalidGrant, InvalidRequest, SlowDown, TemporarilyUnavailable
from app.limits.budgets import Quota
from app.limits.cells import Cells
from app.limits.limits import Attempt, DeviceForgotten, Limits
from app.limits.storms import Storms
from tests.conftest import settings_of

ADA = "ada@example.com"
KEY = bytes(32)


class Clock:
    """A clock that only the test moves, in microseconds."""

    now = 1_000_000_000

    def __call__(self) -> int:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += int(seconds * 1_000_000)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def limits_of(clock: Clock, **settings: Any) -> Limits:
    limits = Limits(settings_of("sqlite+aiosqlite:///x", None, **settings), KEY)
    limits._here = Cells(clock)
    return limits


@pytest.fixture
def limits(clock: Clock) -> Limits:
    return limits_of(clock)


async def wrong() -> None:
    await asyncio.sleep(0)
    raise InvalidGrant("wrong password")


async def right() -> str:
    await asyncio.sleep(0)
    return "signed in"


async def tried(limits: Limits, attempt: Attempt, check: Callable[[], Awaitable[Any]]) -> Any:
    """The outcome of an attempt: what the check returned, or the type of the refusal."""
    try:
        return await limits.guess(attempt, check)
    except (InvalidGrant, SlowDown, TemporarilyUnavailable, InvalidRequest, Conflict, DeviceForgotten) as refusal:
        return type(refusal)


def from_network(number: int) -> str:
    return f"10.{number // 256}.{number % 256}.1"


async def storm(limits: Limits, count: int = 1000, address: str = ADA) -> list[Any]:
    """Wrong passwords on one account, each from another network."""
    return [await tried(limits, limits.sign_in(address, from_network(n)), wrong) for n in range(count)]


async def test_of_guesses_on_one_account_from_a_thousand_networks_20_are_checked(limits: Limits) -> None:
    assert await storm(limits) == [InvalidGrant] * 20 + [SlowDown] * 980


async def test_of_guesses_on_one_account_from_one_network_10_are_checked_and_another_network_goes_on(
    limits: Limits,
) -> None:
    outcomes = [await tried(limits, limits.sign_in(ADA, "192.0.2.1"), wrong) for _ in range(50)]
    assert outcomes == [InvalidGrant] * 10 + [SlowDown] * 40
    assert await tried(limits, limits.sign_in(ADA, "192.0.2.200"), right) == SlowDown  # the same network
    assert await tried(limits, limits.sign_in(ADA, "198.51.100.1"), right) == "signed in"


async def test_of_a_thousand_accounts_guessed_once_each_from_one_address_100_are_checked(limits: Limits) -> None:
    outcomes = [await tried(limits, limits.sign_in(f"{n}@example.com", "192.0.2.1"), wrong) for n in range(1000)]
    assert outcomes == [InvalidGrant] * 100 + [SlowDown] * 900
    assert await tried(limits, limits.sign_in("0@example.com", "198.51.100.1"), right) == "signed in"


async def test_guesses_at_once_can_t_pass_before_the_first_failure_counts(limits: Limits) -> None:
    """Each waits for its check at the same time: those beyond the budget are refused all the same."""
    checked, go = 0, asyncio.Event()

    async def slow() -> None:
        nonlocal checked
        checked += 1
        await go.wait()
        raise InvalidGrant("wrong password")

    tasks = [asyncio.create_task(tried(limits, limits.sign_in(ADA, from_network(n)), slow)) for n in range(60)]
    await asyncio.sleep(0.01)
    go.set()
    outcomes = await asyncio.gather(*tasks)
    assert (checked, outcomes.count(InvalidGrant), outcomes.count(SlowDown)) == (20, 20, 40)


async def test_when_one_part_of_a_network_s_budget_is_back_one_guess_is_checked_however_many_come_at_once(
    limits: Limits, clock: Clock
) -> None:
    """A client with 60 connections, each trying another account again and again."""
    for n in range(150):
        await tried(limits, limits.sign_in(f"{n}@example.com", "192.0.2.1"), wrong)

    async def at_once(count: int, check: Callable[[], Awaitable[Any]]) -> list[Any]:
        attempts = [limits.sign_in(f"at-once-{n}@example.com", "192.0.2.1") for n in range(count)]
        return list(await asyncio.gather(*(tried(limits, each, check) for each in attempts)))

    for _ in range(3):
        clock.passes(6)
        outcomes = await at_once(60, wrong)
        assert (outcomes.count(InvalidGrant), outcomes.count(SlowDown)) == (1, 59)
    clock.passes(200)
    assert (await at_once(60, right)).count("signed in") == 33
    clock.passes(200)
    assert await at_once(500, right) == ["signed in"] * 500  # more than half of the budget is back


async def test_an_attempt_is_under_way_until_its_outcome_whatever_that_is(limits: Limits, clock: Clock) -> None:
    for n in range(90):
        await tried(limits, limits.sign_in(f"{n}@example.com", "192.0.2.1"), wrong)

    async def away() -> None:
        raise TemporarilyUnavailable("away")

    async def endless() -> None:
        await asyncio.Event().wait()

    for n in range(40):
        await tried(limits, limits.sign_in(f"a{n}@example.com", "192.0.2.1"), right if n % 2 else away)
    for n in range(3):
        task = asyncio.create_task(tried(limits, limits.sign_in(f"b{n}@example.com", "192.0.2.1"), endless))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait({task})
    assert limits._here._under_way == {}
    outcomes = [await tried(limits, limits.sign_in(f"c{n}@example.com", "192.0.2.1"), wrong) for n in range(20)]
    assert outcomes == [InvalidGrant] * 7 + [SlowDown] * 13


async def test_an_office_of_500_people_with_the_right_passwords_is_never_slowed_down(limits: Limits) -> None:
    people = [limits.sign_in(f"{n}@example.com", "192.0.2.1") for n in range(500)]
    for _ in range(3):
        outcomes = await asyncio.gather(*(tried(limits, each, right) for each in people))
        assert outcomes == ["signed in"] * 500


async def test_a_program_that_signs_in_often_at_once_with_the_right_password_is_never_slowed_down(
    limits: Limits,
) -> None:
    outcomes = await asyncio.gather(*(tried(limits, limits.sign_in(ADA, "192.0.2.1"), right) for _ in range(60)))
    assert outcomes == ["signed in"] * 60


async def test_after_a_storm_the_right_password_gets_in_from_a_new_device_within_a_minute(
    limits: Limits, clock: Clock
) -> None:
    await storm(limits, 5000)
    attempt = limits.sign_in(ADA, from_network(0))  # even from a network of the storm
    with pytest.raises(SlowDown) as refused:
        await limits.guess(attempt, right)
    assert refused.value.retry_after is not None
    assert refused.value.retry_after.total_seconds() <= 30
    clock.passes(30)
    assert await tried(limits, attempt, right) == "signed in"


async def test_a_known_device_gets_in_at_once_during_any_storm_also_from_its_network(limits: Limits) -> None:
    await storm(limits, 300)
    for n in range(300):
        await tried(limits, limits.sign_in(f"{n}@example.com", "192.0.2.1"), wrong)
    assert await tried(limits, limits.sign_in(ADA, "192.0.2.1"), right) == SlowDown
    assert await tried(limits, limits.sign_in(ADA, "192.0.2.1", b"known device"), right) == "signed in"


async def test_a_known_device_has_few_guesses_and_takes_those_of_no_other_device(limits: Limits) -> None:
    """After these it counts as a new one, with the limits of strangers."""
    outcomes = [await tried(limits, limits.sign_in(ADA, "192.0.2.1", b"stolen"), wrong) for _ in range(30)]
    assert outcomes == [InvalidGrant] * 8 + [DeviceForgotten] * 22
    assert await tried(limits, limits.sign_in(ADA, "192.0.2.1", b"known device"), right) == "signed in"
    assert await tried(limits, limits.sign_in(ADA, "192.0.2.1"), right) == "signed in"


async def test_the_30th_failure_on_an_account_is_refused_with_a_known_device_and_networks_mixed(
    limits: Limits,
) -> None:
    outcomes = []
    for n in range(30):
        device = b"stolen" if n % 3 == 0 else None
        outcomes.append(await tried(limits, limits.sign_in(ADA, from_network(n), device), wrong))
    assert outcomes.count(InvalidGrant) <= 28


async def test_passwords_within_a_session_have_a_budget_of_their_own(limits: Limits) -> None:
    await storm(limits, 100)
    session = uuid4()
    guesses = [await tried(limits, limits.within_session(session, "password"), wrong) for _ in range(12)]
    guesses += [await tried(limits, limits.within_session(session, "reauthenticate"), wrong) for _ in range(8)]
    assert guesses == [InvalidGrant] * 8 + [SlowDown] * 12
    assert await tried(limits, limits.within_session(uuid4(), "password"), right) == "signed in"


async def test_registrations_count_alike_whether_or_not_the_address_is_taken(limits: Limits) -> None:
    async def taken() -> None:
        raise Conflict("email exists")

    for check, outcome in ((taken, Conflict), (right, "signed in")):
        address = f"{outcome}@example.com"
        outcomes = [await tried(limits, limits.registration(address, from_network(n)), check) for n in range(8)]
        assert outcomes == [outcome] * 5 + [SlowDown] * 3
    outcomes = [await tried(limits, limits.registration(f"{n}@example.com", "192.0.2.1"), right) for n in range(150)]
    assert outcomes == ["signed in"] * 100 + [SlowDown] * 50


async def test_bad_external_tokens_of_one_network_are_slowed_down(limits: Limits) -> None:
    for _ in range(300):
        await limits.external_token_refused("exchange", "192.0.2.1")
    for _ in range(10):
        with pytest.raises(SlowDown):
            await limits.external_token_refused("exchange", "192.0.2.1")
    await limits.external_token_refused("exchange", "198.51.100.1")
    await limits.external_token_refused("exchange", None)


@pytest.mark.parametrize("error", [TemporarilyUnavailable("away"), InvalidRequest("too long"), MemoryError()])
async def test_an_outage_and_a_malformed_request_are_no_failed_guesses(limits: Limits, error: Exception) -> None:
    async def broken() -> None:
        raise error

    for n in range(100):
        with pytest.raises(type(error)):
            await limits.guess(limits.sign_in(ADA, from_network(n)), broken)
    assert len(limits._here) == 0
    assert await storm(limits, 30) == [InvalidGrant] * 20 + [SlowDown] * 10


async def test_a_guesser_who_closes_each_connection_in_time_is_counted(limits: Limits) -> None:
    async def endless() -> None:
        await asyncio.Event().wait()

    for n in range(20):
        task = asyncio.create_task(tried(limits, limits.sign_in(ADA, from_network(n)), endless))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
    assert await tried(limits, limits.sign_in(ADA, "192.0.2.1"), right) == SlowDown


async def test_a_limit_that_is_off_refuses_nobody(clock: Clock) -> None:
    off = dict.fromkeys(("limit_account", "limit_account_network", "limit_network", "limit_service"), "off")
    assert await storm(limits_of(clock, **off), 200) == [InvalidGrant] * 200


async def test_the_whole_service_has_a_limit(clock: Clock) -> None:
    limits = limits_of(clock, limit_service="50/60")
    outcomes = [await tried(limits, limits.sign_in(f"{n}@example.com", from_network(n)), wrong) for n in range(80)]
    assert outcomes == [InvalidGrant] * 50 + [SlowDown] * 30


async def test_a_client_without_an_address_shares_no_network_with_others(limits: Limits) -> None:
    outcomes = [await tried(limits, limits.sign_in(f"{n}@example.com", None), wrong) for n in range(300)]
    assert outcomes == [InvalidGrant] * 300
    assert [await tried(limits, limits.sign_in(ADA, None), wrong) for _ in range(30)].count(InvalidGrant) == 20


async def test_a_refusal_tells_the_limit_and_when_to_come_again(limits: Limits) -> None:
    await storm(limits, 20)
    with pytest.raises(SlowDown) as refused:
        await limits.guess(limits.sign_in(ADA, "192.0.2.1"), right)
    fields = refused.value.headers()
    assert fields["ratelimit-policy"] == '"account";q=20;w=600'
    assert fields["ratelimit"] == f'"account";r=0;t={fields["retry-after"]}'
    assert 1 <= int(fields["retry-after"]) <= 30
    assert refused.value.body() == {"error": "slow_down", "error_description": "Too many attempts. Try again later."}


async def test_nothing_of_the_limits_holds_an_address_or_a_device(limits: Limits) -> None:
    await storm(limits, 30)
    await tried(limits, limits.sign_in(ADA, "192.0.2.1", b"known device"), wrong)
    attempt = limits.sign_in(ADA, "192.0.2.1")
    kept = f"{list(limits._here._whole_at)}{list(limits._storms._storms)}{attempt}"
    assert "ada" not in kept.lower()
    assert b"known device".decode() not in kept
    assert all(len(key) == 16 for key in limits._here._whole_at)
    other = Limits(settings_of("sqlite+aiosqlite:///x", None), bytes(31) + b"\1")
    assert not {b.key for b in attempt.budgets} & {b.key for b in other.sign_in(ADA, "192.0.2.1").budgets}


def warnings(text: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == "limit_reached"]


async def test_a_storm_on_one_account_is_one_line_in_the_log_which_names_the_user(
    limits: Limits, capsys: pytest.CaptureFixture[str]
) -> None:
    user_id = UUID(int=7)

    async def wrong_for_a_user() -> None:
        raise InvalidGrant("wrong password", user_id=user_id)

    for n in range(1000):
        await tried(limits, limits.sign_in(ADA, from_network(n % 200)), wrong_for_a_user)
    (line,) = warnings(capsys.readouterr().err)
    assert (line["level"], line["limit"], line["surface"]) == ("warning", "account", "login")
    assert (line["user_id"], line["refused"]) == (str(user_id), 1)
    with pytest.raises(SlowDown) as refused:
        await limits.guess(limits.sign_in(ADA, "192.0.2.1"), right)
    assert refused.value.user_id == user_id


def test_a_storm_that_goes_on_has_another_line_after_ten_minutes_with_the_refusals_since(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now, quota = 0.0, Quota("junk", 5, timedelta(seconds=60))
    storms = Storms(lambda: now)
    for moment, count in ((0, 100), (599, 50), (600, 70), (1200, 1)):
        now = float(moment)
        for _ in range(count):
            storms.refusal(b"key", quota, timedelta(seconds=1), "verify", network="192.0.2.0/24")
    lines = warnings(capsys.readouterr().err)
    assert [(line["network"], line["refused"]) for line in lines] == [
        ("192.0.2.0/24", 1),
        ("192.0.2.0/24", 99 + 50 + 1),
        ("192.0.2.0/24", 69 + 1),
    ]


async def test_a_storm_from_one_network_is_one_line_which_names_the_network(
    limits: Limits, capsys: pytest.CaptureFixture[str]
) -> None:
    for n in range(500):
        await tried(limits, limits.sign_in(f"{n}@example.com", "192.0.2.1"), wrong)
    (line,) = warnings(capsys.readouterr().err)
    assert (line["limit"], line["network"]) == ("network", "192.0.2.0/24")
