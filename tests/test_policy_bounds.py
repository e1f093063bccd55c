"""A policy may be stricter than the settings, and never laxer. These rules are pure functions."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidRequest
from app.policies import Policy, jittered
from app.policies.bounds import Bounds
from app.policies.members import SETTINGS, shown, value_of
from app.storage.tables import uuid7
from tests.conftest import settings_of

SECOND = timedelta(seconds=1)


def bounds(**settings: Any) -> Bounds:
    read = settings_of("sqlite+aiosqlite:///x.db", None, **settings)
    return Bounds(Policy.of(read), cookies=read.cookies)


def values(**given: Any) -> dict[str, Any]:
    return {name: value_of(name, value) for name, value in given.items()}


def test_every_member_has_a_setting_and_the_settings_alone_are_a_policy_that_breaks_no_rule() -> None:
    ours = bounds()
    assert set(SETTINGS) == set(Policy.__dataclass_fields__)
    assert set(SETTINGS.values()) <= set(type(settings_of("sqlite+aiosqlite:///x.db", None)).model_fields)
    assert ours.cut({}) == ours.ceiling
    assert ours.cuts({}) == {}


@pytest.mark.parametrize(
    ("stricter", "laxer", "member"),
    [
        ({"access_lifetime": 600}, {"access_lifetime": 901}, "access_lifetime"),
        (
            {"access_lifetime": 180},
            {"access_lifetime": 179},
            "retry_window",
        ),  # the retry window of the settings is 60 seconds
        ({"access_lifetime": 2, "retry_window": 0}, {"access_lifetime": 1, "retry_window": 0}, "access_lifetime"),
        ({"access_jitter": 300}, {"access_jitter": 301}, "access_jitter"),
        (
            {"access_jitter": 200, "access_lifetime": 600},
            {"access_jitter": 201, "access_lifetime": 600},
            "access_jitter",
        ),
        ({"idle_lifetime": 900}, {"idle_lifetime": 899}, "access_lifetime"),  # not below the access lifetime in force
        ({"idle_lifetime": 604800}, {"idle_lifetime": 604801}, "idle_lifetime"),
        (
            {"absolute_lifetime": 604800},
            {"absolute_lifetime": 604799},
            "idle_lifetime",
        ),  # not below the idle lifetime in force
        ({"absolute_lifetime": 2592000}, {"absolute_lifetime": 2592001}, "absolute_lifetime"),
        ({"retry_window": 0}, {"retry_window": 61}, "retry_window"),
        ({"retry_window": 50, "access_lifetime": 150}, {"retry_window": 51, "access_lifetime": 150}, "retry_window"),
        ({"session_limit": 5}, {"session_limit": 6}, "session_limit"),
        ({"session_limit": 1}, {"session_limit": 0}, "session_limit"),
        ({"password_length": 15}, {"password_length": 14}, "password_length"),  # stricter the larger it is
        ({"password_length": 64}, {"password_length": 65}, "password_length"),
        ({"reauthentication_age": 60}, {"reauthentication_age": 59}, "reauthentication_age"),
        ({"reauthentication_age": 900}, {"reauthentication_age": 901}, "reauthentication_age"),
        ({"mode": "cookie"}, {"mode": "cookie", "retry_window": 0}, "mode"),
        ({"remember": False}, None, "remember"),
        ({"scopes": "read"}, {"scopes": "read write admin"}, "scopes"),
        ({"scopes": ""}, {"scopes": "other"}, "scopes"),
    ],
)
def test_a_value_may_be_stricter_than_the_settings_and_a_laxer_one_is_refused(
    stricter: dict[str, Any], laxer: dict[str, Any] | None, member: str
) -> None:
    ours = bounds(session_limit=5, scopes="read write")
    ours.check(values(**stricter))
    allowed = ours.cut(values(**stricter))
    assert {name: shown(getattr(allowed, name)) for name in stricter} == stricter
    if laxer is not None:
        with pytest.raises(InvalidRequest) as caught:
            ours.check(values(**laxer))
        name, _, rule = caught.value.description.partition(": ")
        assert name == member
        assert rule.startswith("must be ")


def test_without_cookies_or_without_a_limit_in_the_settings_the_rules_are_those_of_the_settings() -> None:
    with pytest.raises(InvalidRequest):
        bounds(cookies="false").check(values(mode="split"))
    bounds(cookies="false").check(values(mode="bearer"))
    bounds().check(values(session_limit=1000))
    with pytest.raises(InvalidRequest):
        bounds().check(values(session_limit=1001))
    with pytest.raises(InvalidRequest):
        bounds().check(values(scopes="read"))


def test_a_row_that_is_laxer_than_settings_that_changed_later_is_cut_at_the_ceiling() -> None:
    row = values(access_lifetime=600, idle_lifetime=86400, retry_window=60, session_limit=9, scopes="read write")
    now = bounds(
        access_token_lifetime=30, retry_window=10, refresh_token_lifetime=3600, session_limit=3, scopes="read other"
    )
    in_force = now.cut(row)
    assert in_force.access_lifetime == 30 * SECOND
    assert in_force.retry_window == 10 * SECOND
    assert in_force.idle_lifetime == 3600 * SECOND
    assert in_force.session_limit == 3
    assert in_force.scopes == {"read"}
    assert set(now.cuts(row)) == set(row)


def test_a_row_that_somebody_wrote_by_hand_gives_a_policy_all_the_same() -> None:
    row = {
        "access_lifetime": -5 * SECOND,
        "access_jitter": -1 * SECOND,
        "idle_lifetime": 0 * SECOND,
        "session_limit": -1,
        "password_length": -1,
        "mode": "nothing",
    }
    in_force = bounds().cut(row)
    assert (in_force.access_lifetime, in_force.access_jitter) == (2 * SECOND, 0 * SECOND)
    assert (in_force.idle_lifetime, in_force.session_limit, in_force.mode) == (60 * SECOND, 1, "bearer")
    assert in_force.password_length == 15


seconds = st.integers(-10, 4_000_000).map(lambda n: n * SECOND)
rows = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys((name for name in SETTINGS if name.endswith(("lifetime", "window", "jitter", "age"))), seconds),
        "session_limit": st.integers(-1, 2000),
        "password_length": st.integers(-1, 100),
        "mode": st.sampled_from(["bearer", "cookie", "split"]),
        "remember": st.booleans(),
        "scopes": st.frozensets(st.sampled_from(["read", "write", "admin"])),
    },
)


@given(rows, st.booleans(), st.sampled_from([2, 30, 900, 3600]))
def test_no_row_gives_a_policy_that_is_laxer_than_the_settings_or_breaks_a_rule(
    row: dict[str, Any], cookies: bool, access: int
) -> None:
    ours = bounds(
        access_token_lifetime=access,
        retry_window=access // 3 if access < 180 else 60,
        session_limit=7,
        scopes="read write",
        cookies=str(cookies).lower(),
    )
    policy, most = ours.cut(row), ours.ceiling
    for name in ("access_lifetime", "idle_lifetime", "absolute_lifetime", "retry_window", "reauthentication_age"):
        assert timedelta(0) <= getattr(policy, name) <= getattr(most, name)
        if name in row:
            assert getattr(policy, name) <= max(row[name], 60 * SECOND)
    assert 2 * SECOND <= policy.access_lifetime <= policy.idle_lifetime <= policy.absolute_lifetime
    assert 3 * policy.retry_window <= policy.access_lifetime
    assert 3 * policy.access_jitter <= policy.access_lifetime
    assert policy.session_limit is not None
    assert 1 <= policy.session_limit <= 7
    assert most.password_length <= policy.password_length <= 64
    assert policy.scopes <= most.scopes
    assert policy.mode == "bearer" or (cookies and policy.retry_window > timedelta(0))
    # What is in force is allowed, and what is allowed is in force as it is.
    whole = {name: getattr(policy, name) for name in SETTINGS}
    ours.check(whole)
    assert ours.cut(whole) == policy
    try:
        ours.check(row)
    except InvalidRequest:
        assert ours.cuts(row)
    else:
        assert all(getattr(policy, name) == value for name, value in row.items())


@pytest.mark.parametrize(
    ("member", "given"),
    [
        ("access_lifetime", "10m"),
        ("access_lifetime", "-1"),
        ("access_lifetime", True),
        ("retry_window", 1.5),
        ("session_limit", "many"),
        ("session_limit", True),
        ("password_length", "long"),
        ("mode", "cookies"),
        ("remember", "yes"),
        ("remember", 1.0),
        ("scopes", 'a "b"'),
        ("scopes", "x" * 257),
    ],
)
def test_a_value_of_another_form_is_refused_and_never_repeated(member: str, given: Any) -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        value_of(member, given)
    assert str(given) not in str(caught.value)


# -- jitter


def test_jitter_only_shortens_by_a_third_at_most_and_is_the_same_for_a_retry() -> None:
    session_id, hour = uuid7(), timedelta(hours=1)
    lifetimes = [jittered(hour, 60 * SECOND, session_id, n) for n in range(1000)]
    assert lifetimes == [jittered(hour, 60 * SECOND, session_id, n) for n in range(1000)]
    assert min(lifetimes) == hour - 60 * SECOND
    assert max(lifetimes) == hour
    assert all(not each % SECOND for each in lifetimes)
    # A session that began under a shorter lifetime keeps two thirds of it.
    short = [jittered(9 * SECOND, 1200 * SECOND, session_id, n) for n in range(1000)]
    assert (min(short), max(short)) == (6 * SECOND, 9 * SECOND)
    assert jittered(hour, timedelta(0), session_id, 1) == hour
    assert jittered(2 * SECOND, 60 * SECOND, session_id, 1) == 2 * SECOND


def test_jitter_spreads_sessions_and_generations_evenly() -> None:
    one = UUID("01890000-0000-7000-8000-000000000000")
    for seen in (
        Counter(jittered(900 * SECOND, 9 * SECOND, uuid7(), 0) for _ in range(5000)),
        Counter(jittered(900 * SECOND, 9 * SECOND, one, n) for n in range(5000)),
    ):
        assert len(seen) == 10
        assert all(350 < count < 650 for count in seen.values())
