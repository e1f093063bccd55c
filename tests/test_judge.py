"""Pure functions at their exact limits: `judge`, deadlines, durations on the wire, the cost of a stored hash."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pytest

from app.sessions.answers import Tokens
from app.sessions.rotation import Presented
from app.sessions.rows import SessionRow, Verdict, judge
from app.storage.tables import uuid7
from app.tokens.refresh_tokens import LAST_GENERATION, RefreshKey, RefreshToken, issue
from app.users.passwords import Cost, cost_of

KEY = RefreshKey.derive(7, bytes(range(32)))
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
WINDOW, MOMENT = timedelta(seconds=60), timedelta(microseconds=1)
FIRST = issue(KEY, uuid7())
SECOND = FIRST.successor(KEY)
THIRD = SECOND.successor(KEY)

ROW = SessionRow(
    id=FIRST.session_id,
    user_id=uuid7(),
    role="user",
    client_id="app",
    token_digest=SECOND.digest,
    key_number=7,
    generation=1,
    created_at=NOW - timedelta(hours=1),
    rotated_at=NOW,
    idle_expires_at=NOW + timedelta(days=7),
    absolute_expires_at=NOW + timedelta(days=30),
    retry_window=WINDOW,
    access_lifetime=timedelta(seconds=900),
    ended_at=None,
    end_reason=None,
    now=NOW,
)


def test_the_window_ends_exactly_when_it_is_over() -> None:
    for age, verdict in (
        (-timedelta(hours=1), Verdict.RETRY),
        (timedelta(0), Verdict.RETRY),
        (WINDOW - MOMENT, Verdict.RETRY),
        (WINDOW, Verdict.REUSE),
    ):
        assert judge(replace(ROW, now=NOW + age), FIRST, KEY) is verdict
    assert judge(replace(ROW, retry_window=timedelta(0)), FIRST, KEY) is Verdict.REUSE


OWN, OTHER = (sha256(key).digest() for key in (b"the key of the rotation", b"the key of somebody else"))


@pytest.mark.parametrize("window", [timedelta(0), WINDOW])
@pytest.mark.parametrize("age", [-timedelta(hours=1), timedelta(0), WINDOW - MOMENT, WINDOW, timedelta(days=3)])
@pytest.mark.parametrize("presented", [FIRST, SECOND, THIRD, RefreshToken(KEY, FIRST.session, 0, b"x" * 32)])
def test_only_the_predecessor_with_the_key_of_its_rotation_is_a_retry_after_the_window(
    presented: RefreshToken, age: timedelta, window: timedelta
) -> None:
    keyed = replace(ROW, now=NOW + age, retry_window=window, retry_key_digest=OWN)
    keyless = replace(keyed, retry_key_digest=None)
    without = judge(keyless, presented, KEY)
    for row, key in ((keyless, OWN), (keyless, OTHER), (keyed, None), (keyed, OTHER), (keyed, OWN[:-1] + b"\0")):
        assert judge(row, presented, KEY, key) is without
    assert judge(keyed, presented, KEY, OWN) is (Verdict.RETRY if presented is FIRST else without)


def test_the_key_of_the_rotation_opens_no_older_generation_and_no_session_that_is_over() -> None:
    keyed = replace(ROW, retry_key_digest=OWN)
    newer = replace(keyed, generation=2, token_digest=THIRD.digest)
    assert judge(newer, FIRST, KEY, OWN) is Verdict.REUSE
    assert judge(replace(keyed, ended_at=NOW, end_reason="logout"), FIRST, KEY, OWN) == "logout"
    assert judge(replace(keyed, idle_expires_at=NOW), FIRST, KEY, OWN) == "idle_timeout"
    assert judge(keyed, FIRST, None, OWN) is Verdict.REFUSED
    assert judge(replace(keyed, token_digest=b"x" * 32), FIRST, KEY, OWN) is Verdict.REFUSED


def test_the_digest_of_a_retry_key_is_in_no_repr() -> None:
    shown = repr(replace(ROW, retry_key_digest=OWN)) + repr(Presented(FIRST, OWN))
    assert repr(OWN)[2:-1] not in shown
    assert OWN.hex() not in shown


def test_the_newest_token_that_did_not_rotate_was_locked_and_is_sent_again() -> None:
    assert judge(ROW, SECOND, KEY) is Verdict.AGAIN
    last = RefreshToken(KEY, FIRST.session, LAST_GENERATION, SECOND.secret)
    at_the_end = replace(ROW, generation=LAST_GENERATION, token_digest=last.digest)
    assert judge(at_the_end, last, KEY) is Verdict.REFUSED


def test_another_branch_and_what_the_row_never_saw_are_refused_and_end_nothing() -> None:
    other = replace(ROW, token_digest=b"x" * 32)
    for row, presented, key in (
        (ROW, THIRD, KEY),
        (other, SECOND, KEY),
        (other, FIRST, KEY),
        (ROW, FIRST, None),
        (ROW, FIRST, RefreshKey.derive(8, bytes(32))),
    ):
        assert judge(row, presented, key) is Verdict.REFUSED


def test_two_generations_behind_is_reuse_at_any_age_and_with_any_key() -> None:
    newer = replace(ROW, generation=2, token_digest=THIRD.digest)
    for key in (KEY, None):
        assert judge(newer, FIRST, key) is Verdict.REUSE


def test_a_deadline_is_over_at_its_moment_and_the_earlier_one_is_the_reason() -> None:
    idle = replace(ROW, idle_expires_at=NOW)
    assert idle.over() == "idle_timeout"
    assert replace(idle, now=NOW - MOMENT).over() is None
    both = replace(ROW, idle_expires_at=NOW, absolute_expires_at=NOW)
    assert both.over() == "absolute_timeout"
    assert replace(both, now=NOW - MOMENT).over() is None
    assert replace(idle, absolute_expires_at=NOW + MOMENT, now=NOW + timedelta(days=1)).over() == "idle_timeout"
    assert replace(both, ended_at=NOW - MOMENT, end_reason="logout").over() == "logout"
    assert judge(both, FIRST, KEY) == "absolute_timeout"


def test_durations_on_the_wire_are_whole_seconds_and_never_negative() -> None:
    later = NOW + timedelta(seconds=900, microseconds=999_999), NOW, NOW - timedelta(seconds=5)
    body = Tokens("a", "r", FIRST.session_id, NOW, *later).body()
    assert body == {
        "access_token": "a",
        "token_type": "Bearer",
        "expires_in": 900,
        "refresh_token": "r",
        "refresh_expires_in": 0,
        "session_id": str(FIRST.session_id),
        "session_expires_in": 0,
    }
    assert all(type(value) is not float for value in body.values())


@pytest.mark.parametrize(
    ("parameters", "reasonable"),
    [
        ("m=1048576,t=64,p=16", True),
        ("m=1048577,t=1,p=1", False),
        ("m=8,t=65,p=1", False),
        ("m=520,t=1,p=17", False),
    ],
)
def test_a_stored_hash_is_computed_only_within_what_the_settings_may_ever_be(parameters: str, reasonable: bool) -> None:
    hashed = f"$argon2id$v=19${parameters}$c29tZXNhbHRzb21lc2FsdA$c29tZWhhc2hzb21laGFzaHNvbWVoYXNoc29tZWhhc2g"
    assert isinstance(cost_of(hashed), Cost) is reasonable
