"""Budgets: the arithmetic against an exact model, in the process and in Redis, and the bound of the memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from fractions import Fraction
from typing import Any

import pytest
import redis as redis_sync
from hypothesis import given
from hypothesis import strategies as st

from app.errors import ConfigurationError
from app.limits.budgets import Budget, Quota
from app.limits.cells import Cells
from app.limits.networks import network_of
from app.limits.redis_cells import PREFIX, SCRIPT
from app.settings import Settings
from app.settings_limits import LONGEST_WAIT, LimitSettings
from app.settings_values import rate_in
from tests.conftest import settings_of
from tests.servers import Redis

START = 1_800_000_000_000_000
ACTS = st.lists(
    st.tuples(st.sampled_from(["take", "failed", "give back"]), st.integers(0, 40_000_000)), min_size=1, max_size=60
)
QUOTAS = st.builds(
    lambda most, seconds: Quota("account", most, timedelta(seconds=seconds)), st.integers(1, 50), st.integers(1, 900)
)


class Model:
    """A leaky bucket in exact fractions: what leaks in one interval is one attempt, and the bucket holds `most`."""

    def __init__(self, quota: Quota, now: int) -> None:
        self.most, self.interval = quota.most, quota.interval
        self.level, self.at = Fraction(0), now

    def leak(self, now: int) -> None:
        self.level = max(Fraction(0), self.level - Fraction(now - self.at, self.interval))
        self.at = now

    def take(self) -> Fraction:
        """Takes one, or returns in how many intervals one will be possible."""
        if self.level + 1 > self.most:
            return self.level + 1 - self.most
        self.level += 1
        return Fraction(0)

    def failed(self) -> None:
        self.level = min(self.level + 1, Fraction(self.most))

    def give_back(self) -> None:
        self.level = max(Fraction(0), self.level - 1)


@given(QUOTAS, ACTS)
def test_a_budget_in_the_process_is_the_exact_leaky_bucket(quota: Quota, acts: list[tuple[str, int]]) -> None:
    now = START
    cells, model = Cells(lambda: now), Model(quota, now)
    held, not_held = [Budget(quota, b"key")], [Budget(quota, b"key", is_held=False)]
    for act, passes in acts:
        now += passes
        model.leak(now)
        if act == "take":
            exhausted, wait = cells.take(held), model.take()
            assert (exhausted is None) == (wait == 0)
            if exhausted is not None:
                assert exhausted.wait / timedelta(microseconds=1) == wait * quota.interval
        elif act == "failed":
            cells.failed(not_held)
            model.failed()
        else:
            cells.give_back(held)
            model.give_back()
        assert Fraction(max(cells._whole_at.get(b"key", 0) - now, 0), quota.interval) == model.level


@pytest.fixture(scope="module")
def asked(redis: Redis) -> Iterator[redis_sync.Redis]:
    with redis_sync.Redis.from_url(redis.url(15)) as client:
        yield client
        client.flushdb()


def in_redis(client: redis_sync.Redis, now: int, act: str, *budgets: Budget, keep: bool = False) -> tuple[int, int]:
    """With `keep`, no entry expires by Redis's own clock: the script and `PERSIST` are one transaction."""
    numbers = [n for b in budgets for n in (b.quota.interval, b.quota.span, int(b.is_held))]
    keys = [PREFIX + budget.key.hex() for budget in budgets]
    with client.pipeline() as pipe:
        pipe.eval(SCRIPT, len(keys), *keys, now, act, *numbers)
        for key in keys if keep else ():
            pipe.persist(key)
        (which, wait), *_ = pipe.execute()
    return which, int(wait)


@given(QUOTAS, QUOTAS, st.lists(st.tuples(st.sampled_from(["take", "failed", "give back"]), st.just(0) | st.integers(0, 40_000_000), st.booleans()), min_size=1, max_size=30))  # fmt: skip
def test_the_script_in_redis_does_the_same_as_the_process(
    asked: redis_sync.Redis, one: Quota, two: Quota, acts: list[tuple[str, int, bool]]
) -> None:
    """With two budgets at once, one of which may be held or only looked at."""
    asked.flushdb()
    now = START
    cells = Cells(lambda: now)
    for act, passes, is_held in acts:
        now += passes
        budgets = [Budget(one, b"one"), Budget(two, b"two", is_held=is_held)]
        which, wait = in_redis(asked, now, act, *budgets, keep=True)
        if act == "take":
            exhausted = cells.take(budgets)
            assert (exhausted is not None) == (which > 0)
            if exhausted is not None:
                assert (exhausted.budget, exhausted.wait) == (budgets[which - 1], timedelta(microseconds=wait))
            else:  # over at once: only the process also counts attempts that are under way
                cells.give_back([budget for budget in budgets if not budget.is_held])
        elif act == "failed":
            cells.failed(budgets)
        else:
            cells.give_back(budgets)
        for key in (b"one", b"two"):
            there = int(asked.get(PREFIX + key.hex()) or 0)
            assert max(there - now, 0) == max(cells._whole_at.get(key, 0) - now, 0), (act, key)


def test_a_budget_in_redis_goes_by_itself_when_it_is_whole(asked: redis_sync.Redis) -> None:
    quota = Quota("account", 10, timedelta(seconds=300))
    assert in_redis(asked, 0, "take", Budget(quota, b"fresh")) == (0, 0)
    left = asked.pttl(PREFIX + b"fresh".hex())
    assert 0 < left <= 30_000
    assert in_redis(asked, 0, "give back", Budget(quota, b"fresh")) == (0, 0)
    assert asked.get(PREFIX + b"fresh".hex()) is None


def test_of_several_budgets_none_is_taken_from_if_one_is_empty() -> None:
    cells = Cells(lambda: START)
    small, large = Quota("account", 2, timedelta(seconds=60)), Quota("network", 5, timedelta(seconds=60))
    both = [Budget(large, b"large"), Budget(small, b"small")]
    assert cells.take(both) is None
    assert cells.take(both) is None
    for _ in range(20):
        exhausted = cells.take(both)
        assert exhausted is not None
        assert (exhausted.budget, exhausted.wait) == (both[1], timedelta(seconds=30))
    only = [Budget(large, b"large")]
    assert [cells.take(only) is None for _ in range(5)] == [True] * 3 + [False] * 2


def test_a_look_takes_nothing_and_failures_that_nobody_could_refuse_delay_nobody_for_more_than_an_interval() -> None:
    now = START
    cells, quota = Cells(lambda: now), Quota("network", 100, timedelta(seconds=600))
    budgets = [Budget(quota, b"key", is_held=False)]
    for _ in range(1000):
        assert cells.take(budgets, only_look=True) is None
        assert cells.take(budgets) is None
    assert len(cells) == 0
    for _ in range(1000):
        cells.failed(budgets)
    exhausted = cells.take(budgets)
    assert exhausted is not None
    assert exhausted.wait == timedelta(seconds=6)
    now += 6_000_000
    assert cells.take(budgets) is None


def test_a_clock_that_stepped_back_keeps_nobody_waiting_for_longer_than_an_empty_budget_does() -> None:
    now = START
    cells, budgets = Cells(lambda: now), [Budget(Quota("account", 2, timedelta(seconds=60)), b"key")]
    assert [cells.take(budgets) is None for _ in range(3)] == [True, True, False]
    now -= 3_600_000_000
    exhausted = cells.take(budgets)
    assert exhausted is not None
    assert exhausted.wait == timedelta(seconds=30)


def test_the_memory_of_budgets_is_bounded_and_keeps_the_emptiest() -> None:
    now = START
    cells, quota = Cells(lambda: now, most=100), Quota("account", 2, timedelta(seconds=60))
    victim = [Budget(quota, b"victim")]
    for number in range(10_000):
        if number < 2:
            assert cells.take(victim) is None
        cells.take([Budget(quota, number.to_bytes(4))])
        assert len(cells) <= 100
    assert cells.take(victim) is not None
    now += 60_000_000
    for number in range(200):
        cells.take([Budget(quota, b"later" + number.to_bytes(4))])
        now += 30_000_000
    assert len(cells) <= 2  # those that are whole go by themselves


def test_cheap_failures_from_any_number_of_networks_push_no_exhausted_budget_out() -> None:
    """Refused external tokens need no hash, and a guesser may have millions of networks of IPv6."""
    now = START
    cells, quota = Cells(lambda: now, most=1000), Quota("network", 300, timedelta(seconds=60))
    account = [Budget(Quota("account", 20, timedelta(seconds=600)), b"account")]
    assert [cells.take(account) is None for _ in range(21)] == [True] * 20 + [False]
    for number in range(20_000):
        assert cells.take([Budget(quota, number.to_bytes(4))]) is None
        now += 1000
    assert len(cells) < 400  # those of the last 200 milliseconds, and some that were not looked at since
    assert cells.take(account) is not None


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.77", "192.0.2.0/24"),
        ("::ffff:192.0.2.77", "192.0.2.0/24"),
        ("2001:db8:1:2ff::1", "2001:db8:1:200::/56"),
        ("2001:DB8:1:2AB:ffff::", "2001:db8:1:200::/56"),
        ("fe80::1%eth0", "fe80::/56"),
        ("::1", "::/56"),
        ("unknown", "unknown"),
        ("_hidden", "unknown"),
        ("", "unknown"),
        ("192.0.2.77:8080", "unknown"),
        ("x" * 10_000, "unknown"),
        ("2001:db8::%" + "x" * 10_000, "unknown"),
    ],
)
def test_the_network_of_an_address(address: str, network: str) -> None:
    assert network_of(address) == network


def test_the_bits_of_a_network_are_settings() -> None:
    assert network_of("192.0.2.77", 32, 64) == "192.0.2.77/32"
    assert network_of("2001:db8:1:2ff::1", 24, 64) == "2001:db8:1:2ff::/64"


def test_by_default_every_limit_gives_one_more_attempt_within_a_minute() -> None:
    """So nobody is locked out: the wait after any storm is one interval of each limit."""
    names = [name for name in LimitSettings.model_fields if name.startswith("limit_")]
    assert len(names) >= 8
    for name in names:
        rate = rate_in(Settings.model_fields[name].default)
        assert rate is not None
        assert rate[1] / rate[0] <= LONGEST_WAIT == timedelta(seconds=60)


def test_by_default_the_30th_failure_on_an_account_is_refused_from_wherever_the_others_came() -> None:
    """Those of one known device and of all networks together."""
    account, device = (rate_in(Settings.model_fields[name].default) for name in ("limit_account", "limit_device"))
    assert account is not None
    assert device is not None
    assert account[0] + device[0] < 30


@pytest.mark.parametrize(
    "value", ["0/60", "20", "20/", "/60", "20/0", "-1/60", "1e3/60", "20/60s", "", "OFF", "1/61", "5/600"]
)
def test_a_limit_that_is_malformed_or_locks_people_out_stops_the_start(value: str) -> None:
    slow = "must give one back every 60 seconds at least, as 10/600; or off"
    malformed = "must be 1 to 999999, a slash and 1 to 99999 seconds, as 20/600; or off"
    told = {"": "must not be empty", "1/61": slow, "5/600": slow}.get(value, malformed)
    with pytest.raises(ConfigurationError, match=f"^KEYTURN_LIMIT_ACCOUNT: {told}$"):
        settings_of("sqlite+aiosqlite:///x", None, limit_account=value)


@pytest.mark.parametrize("value", ["1/60", "20/600", "999999/1", "off"])
def test_a_limit_may_be_any_that_locks_nobody_out(value: str) -> None:
    assert settings_of("sqlite+aiosqlite:///x", None, limit_account=value).limit_account == value


def test_a_redis_whose_clock_stepped_back_keeps_nobody_waiting_for_longer_either(asked: redis_sync.Redis) -> None:
    budget = Budget(Quota("account", 2, timedelta(seconds=60)), b"stepped")
    assert [in_redis(asked, START, "take", budget) for _ in range(3)] == [(0, 0), (0, 0), (1, 30_000_000)]
    assert in_redis(asked, START - 3_600_000_000, "take", budget) == (1, 30_000_000)
    assert in_redis(asked, START - 3_600_000_000, "failed", budget._replace(is_held=False)) == (0, 0)
    assert in_redis(asked, START - 3_570_000_000, "take", budget) == (0, 0)


async def test_attempts_on_one_account_take_turns_and_only_so_many_wait() -> None:
    from app.errors import SlowDown
    from app.limits.gates import AT_A_TIME, WAITING, Gates

    gates, most, now, done = Gates(), 0, 0, asyncio.Event()

    async def attempt() -> Any:
        nonlocal most, now
        async with gates.of(b"key"):
            now += 1
            most = max(most, now)
            await done.wait()
            now -= 1

    tasks = [asyncio.create_task(attempt()) for _ in range(AT_A_TIME + WAITING + 5)]
    async with gates.of(b"another"):  # is not in the way
        await asyncio.sleep(0)
    tasks[7].cancel()  # one that waits
    done.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    refused = [each.headers() for each in outcomes if isinstance(each, SlowDown)]
    assert refused == 5 * [
        {
            "cache-control": "no-store",
            "retry-after": "1",
            "ratelimit-policy": '"account_queue";q=66;qu="concurrent-requests"',
            "ratelimit": '"account_queue";r=0',
        }
    ]
    assert most == AT_A_TIME
    assert len(gates) == 0


async def test_an_attempt_that_waits_too_long_for_its_turn_learns_how_many_are_checked_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from app.errors import SlowDown
    from app.limits import gates

    monkeypatch.setattr(gates, "WAITS_FOR", timedelta(milliseconds=1))
    account = gates.Gates()
    async with account.of(b"key"), account.of(b"key"):
        with pytest.raises(SlowDown) as caught:
            async with account.of(b"key"):
                pytest.fail("its turn has not come")
    fields = caught.value.headers()
    assert fields["ratelimit-policy"] == '"account_turns";q=2;qu="concurrent-requests"'
    assert (fields["ratelimit"], fields["retry-after"]) == ('"account_turns";r=0', "1")
