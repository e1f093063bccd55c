"""Bugs planted in the service: the state machine of test_state_machine must find each of them.

A test that can't fail proves nothing. These tests show that its model, steps and comparisons notice each bug.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from hashlib import sha256
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from hypothesis.errors import FlakyFailure
from sqlalchemy import false, select, update

from app.actors import SERVICE
from app.errors import InvalidGrant
from app.revocation.checks import Checks
from app.sessions import ending, marking, rotation, upkeep
from app.sessions.answers import Answers
from app.sessions.ending import Ending
from app.sessions.rotation import Rotation
from app.sessions.rows import SessionRow, Verdict, judge
from app.sessions.sweeping import Sweeping
from app.storage.tables import Session
from app.tokens import key_table, keys
from app.tokens.keys import Keys
from app.tokens.refresh_tokens import PATTERN, RefreshKey, RefreshToken
from app.users import users
from tests.test_state_machine import ACCESS, a_world, drive

Patch = pytest.MonkeyPatch
BUGS: list[Callable[[Patch], None]] = []


def bug(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
    BUGS.append(plant)
    return plant


def in_rotation(patch: Patch, right: str, wrong: str) -> None:
    """Changes the SQL statement that rotates."""
    real = rotation._rotate_sqlite
    assert right in real(1)

    def changed(count: int) -> str:
        return real(count).replace(right, wrong)

    patch.setattr(rotation, "_rotate_sqlite", changed)


def ends_nothing(patch: Patch, reason: str) -> None:
    real = marking.ends
    patch.setattr(
        ending,
        "ends",
        lambda db, policy, why, *which: real(db, policy, why, *which, *([false()] if why == reason else [])),
    )


def ends_all_of_the_user(patch: Patch, reason: str) -> None:
    real = marking.ends

    def ends(db: Any, policy: Any, why: Any, *which: Any) -> Any:
        users_of = Session.user_id.in_(select(Session.user_id).where(*which))
        return real(db, policy, why, *([users_of] if why == reason else which))

    patch.setattr(ending, "ends", ends)


def in_judgement(patch: Patch, change: Callable[..., Any]) -> None:
    """Changes the verdict on a token that did not rotate."""
    real = judge
    patch.setattr(rotation, "judge", lambda *seen: change(real(*seen), *seen))


@bug
def the_window_slides_on_a_retry(patch: Patch) -> None:
    real = Rotation.refresh

    async def refresh(self: Rotation, presented: str, **more: Any) -> Any:
        tokens = await real(self, presented, **more)
        async with self._db.begin() as tx:
            moved = update(Session).where(Session.id == tokens.session_id).values(rotated_at=self._db.now())
            await tx.execute(moved.execution_options(synchronize_session=False))
        return tokens

    patch.setattr(Rotation, "refresh", refresh)


@bug
def the_window_never_closes(patch: Patch) -> None:
    real = judge
    patch.setattr(rotation, "judge", lambda row, *rest: real(replace(row, retry_window=timedelta(days=99)), *rest))


@bug
def any_older_generation_is_a_retry_within_the_window(patch: Patch) -> None:
    def change(verdict: Any, row: SessionRow, *_: Any) -> Any:
        young = row.now - row.rotated_at < row.retry_window
        return Verdict.RETRY if verdict is Verdict.REUSE and young else verdict

    in_judgement(patch, change)


@bug
def a_reused_token_is_only_refused(patch: Patch) -> None:
    in_judgement(patch, lambda verdict, *_: Verdict.REFUSED if verdict is Verdict.REUSE else verdict)


@bug
def reuse_ends_all_sessions_of_the_user(patch: Patch) -> None:
    ends_all_of_the_user(patch, "reuse_detected")


@bug
def reuse_ends_nothing(patch: Patch) -> None:
    ends_nothing(patch, "reuse_detected")


@bug
def a_retry_gets_a_fresh_random_successor(patch: Patch) -> None:
    real = Answers.tokens

    def tokens(self: Answers, row: Any, refresh_token: RefreshToken, now: datetime, *more: Any) -> Any:
        if now != row.rotated_at:  # a retry
            refresh_token = replace(refresh_token, secret=os.urandom(32), raw=b"")
        return real(self, row, refresh_token, now, *more)

    patch.setattr(Answers, "tokens", tokens)


@bug
def a_session_that_lay_idle_too_long_still_refreshes(patch: Patch) -> None:
    in_rotation(patch, "sessions.idle_expires_at > ?3 AND", "")
    in_rotation(patch, "sessions.rotated_at + ?4 > ?3 AND", "")


@bug
def a_session_past_its_absolute_deadline_still_refreshes(patch: Patch) -> None:
    for deadline in ("idle_expires_at > ?3", "absolute_expires_at > ?3", "created_at + ?5 > ?3"):
        in_rotation(patch, f"sessions.{deadline}", f"sessions.{deadline.replace('?3', '?3 - 100000000')}")


@bug
def a_refresh_moves_the_absolute_deadline(patch: Patch) -> None:
    moved = "absolute_expires_at = ?3 + ?5, created_at = ?3, idle_expires_at = ?3 + ?4\nFROM"
    in_rotation(
        patch,
        "idle_expires_at = min(?3 + min(idle_lifetime * 1000000, ?4), absolute_expires_at, created_at + ?5)\nFROM",
        moved,
    )


@bug
def a_refresh_does_not_move_the_idle_deadline(patch: Patch) -> None:
    in_rotation(
        patch, "idle_expires_at = min(?3 + min(idle_lifetime * 1000000, ?4),", "idle_expires_at = min(idle_expires_at,"
    )


KEY_IS_STORED = "retry_key_digest = batch.retry_key,"


@bug
def a_retry_key_is_not_remembered(patch: Patch) -> None:
    in_rotation(patch, KEY_IS_STORED, "")


@bug
def a_rotation_without_a_key_keeps_the_older_one(patch: Patch) -> None:
    in_rotation(patch, KEY_IS_STORED, "retry_key_digest = coalesce(batch.retry_key, retry_key_digest),")


@bug
def a_retry_key_is_stored_as_it_came(patch: Patch) -> None:
    patch.setattr(rotation, "sha256", lambda key: SimpleNamespace(digest=lambda: bytes(key)))


@bug
def a_retry_key_proves_nothing(patch: Patch) -> None:
    patch.setattr(rotation, "judge", lambda row, presented, key, _: judge(row, presented, key))


@bug
def any_retry_key_is_the_right_one(patch: Patch) -> None:
    def judged(row: SessionRow, presented: RefreshToken, key: Any, digest: bytes | None) -> Any:
        return judge(replace(row, retry_key_digest=row.retry_key_digest and digest), presented, key, digest)

    patch.setattr(rotation, "judge", judged)


@bug
def no_retry_key_equals_no_retry_key(patch: Patch) -> None:
    def judged(row: SessionRow, presented: RefreshToken, key: Any, digest: bytes | None) -> Any:
        return judge(replace(row, retry_key_digest=row.retry_key_digest or b"-"), presented, key, digest or b"-")

    patch.setattr(rotation, "judge", judged)


@bug
def another_retry_key_is_reuse_within_the_window(patch: Patch) -> None:
    def change(verdict: Any, row: SessionRow, _presented: RefreshToken, _key: Any, digest: bytes | None) -> Any:
        return Verdict.REUSE if verdict is Verdict.RETRY and row.retry_key_digest != digest else verdict

    in_judgement(patch, change)


def with_its_key(patch: Patch, opens: Callable[[Any, int], bool]) -> None:
    """Plants a verdict of a retry where the retry key is the row's, and `opens` says so of verdict and generations."""

    def change(verdict: Any, row: SessionRow, presented: RefreshToken, key: Any, digest: bytes | None) -> Any:
        own = digest is not None and digest == row.retry_key_digest and key is not None
        return Verdict.RETRY if own and opens(verdict, row.generation - presented.generation) else verdict

    in_judgement(patch, change)


@bug
def its_retry_key_opens_older_generations(patch: Patch) -> None:
    with_its_key(patch, lambda verdict, back: verdict is Verdict.REUSE and back > 1)


@bug
def its_retry_key_opens_another_branch(patch: Patch) -> None:
    with_its_key(patch, lambda verdict, back: verdict is Verdict.REFUSED and back == 1)


@bug
def its_retry_key_opens_a_session_that_is_over(patch: Patch) -> None:
    with_its_key(patch, lambda verdict, back: isinstance(verdict, str) and back == 1)


@bug
def a_retry_replaces_the_retry_key(patch: Patch) -> None:
    real = Rotation.refresh

    async def refresh(self: Rotation, presented: str, *, retry_key: str | None = None, **more: Any) -> Any:
        tokens = await real(self, presented, retry_key=retry_key, **more)
        digest = None if retry_key is None else sha256(retry_key.encode()).digest()
        async with self._db.begin() as tx:
            await tx.execute(update(Session).where(Session.id == tokens.session_id).values(retry_key_digest=digest))
        return tokens

    patch.setattr(Rotation, "refresh", refresh)


@bug
def of_several_retry_keys_in_a_batch_the_last_one_is_remembered(patch: Patch) -> None:
    real = Rotation._rotate

    async def rotate(self: Rotation, batch: Any) -> Any:
        return (await real(self, batch[::-1]))[::-1]

    patch.setattr(Rotation, "_rotate", rotate)


@bug
def the_newest_token_does_not_rotate_with_the_key_of_the_rotation_before(patch: Patch) -> None:
    in_rotation(
        patch,
        "sessions.token_digest = batch.old AND",
        "sessions.token_digest = batch.old AND coalesce(batch.retry_key <> retry_key_digest, true) AND",
    )


@bug
def the_digest_of_the_presented_token_is_not_compared(patch: Patch) -> None:
    in_rotation(patch, "sessions.token_digest = batch.old AND", "batch.old IS NOT NULL AND")


@bug
def an_ended_session_still_refreshes(patch: Patch) -> None:
    in_rotation(patch, "AND sessions.ended_at IS NULL", "")


@bug
def the_successor_is_not_compared(patch: Patch) -> None:
    def change(verdict: Any, row: SessionRow, presented: RefreshToken, key: Any, *_: Any) -> Any:
        one_older = presented.generation == row.generation - 1 and key is not None
        young = row.now - row.rotated_at < row.retry_window
        return Verdict.RETRY if verdict is Verdict.REFUSED and one_older and young else verdict

    in_judgement(patch, change)


@bug
def a_generation_that_never_was_is_reuse(patch: Patch) -> None:
    def change(verdict: Any, row: SessionRow, presented: RefreshToken, *_: Any) -> Any:
        return Verdict.REUSE if verdict is Verdict.REFUSED else verdict

    in_judgement(patch, change)


@bug
def a_token_with_a_wrong_tag_is_taken_for_ours(patch: Patch) -> None:
    def unverified(spelled: str, known: Mapping[int, RefreshKey]) -> RefreshToken:
        if not PATTERN.fullmatch(spelled):
            raise InvalidGrant("not of a refresh token's form")
        raw = base64.urlsafe_b64decode(spelled[4:])
        return RefreshToken(known[raw[0]], raw[1:17], int.from_bytes(raw[17:21]), raw[21:53])

    patch.setattr(keys, "verify", unverified)


@bug
def a_new_refresh_key_signs_at_once(patch: Patch) -> None:
    patch.setattr(key_table, "PUBLISHED_FOR", timedelta(0))


@bug
def a_retired_refresh_key_still_opens(patch: Patch) -> None:
    derive = RefreshKey.derive
    patch.setattr(RefreshKey, "derive", staticmethod(lambda number, secret, **_: derive(number, secret)))
    patch.setattr(Keys, "retired", lambda *_: False)


@bug
def the_sessions_of_a_retired_refresh_key_live_on(patch: Patch) -> None:
    async def end_under(*_: Any, **__: Any) -> int:
        return 0

    patch.setattr(Sweeping, "end_under", end_under)


@bug
def a_token_under_a_retired_key_ends_a_session_that_moved_on(patch: Patch) -> None:
    async def over(self: Ending, session_id: UUID, **_: Any) -> Any:
        await self.end({session_id}, "revoked_by_admin", by=SERVICE)
        return await self._lookup.row(session_id)

    patch.setattr(Ending, "over_under_retired_key", over)


@bug
def a_changed_role_is_not_copied_to_the_sessions(patch: Patch) -> None:
    patch.setattr(users, "unended_of", lambda _: select(Session.id).where(false()))


@bug
def a_password_change_ends_no_other_session(patch: Patch) -> None:
    ends_nothing(patch, "password_changed")


@bug
def the_sessions_of_a_disabled_user_live_on(patch: Patch) -> None:
    ends_nothing(patch, "user_disabled")


@bug
def a_logout_ends_nothing(patch: Patch) -> None:
    ends_nothing(patch, "logout")


@bug
def a_logout_of_the_others_ends_this_one_too(patch: Patch) -> None:
    ends_all_of_the_user(patch, "logout_all")


@bug
def a_second_reason_replaces_the_first(patch: Patch) -> None:
    def ends(db: Any, _policy: Any, reason: Any, *which: Any) -> Any:
        now = db.now()
        ended = update(Session).where(*which).values(ended_at=now, end_reason=reason)
        return ended.returning(*marking._ENDED, now.label("now"))

    patch.setattr(ending, "ends", ends)


@bug
def what_ends_after_its_deadline_takes_the_later_reason(patch: Patch) -> None:
    def ends(db: Any, _policy: Any, reason: Any, *which: Any) -> Any:
        now = db.now()
        ended = update(Session).where(*which, Session.ended_at.is_(None)).values(ended_at=now, end_reason=reason)
        return ended.returning(*marking._ENDED, now.label("now"))

    patch.setattr(ending, "ends", ends)


@bug
def a_verifier_that_does_not_ask_whether_the_session_ended(patch: Patch) -> None:
    async def check(*_: Any) -> None:
        return

    patch.setattr(Checks, "check", check)


@bug
def gc_forgets_too_early(patch: Patch) -> None:
    patch.setattr(upkeep, "LOOK_BACK", timedelta(seconds=ACCESS))


@pytest.fixture
def engine() -> str:
    """SQLite is enough, because these tests examine the state machine and not the database."""
    return "sqlite"


@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: plant.__name__)
def test_the_state_machine_finds(plant: Callable[[Patch], None], database_url: str, monkeypatch: Patch) -> None:
    plant(monkeypatch)
    # A failure that depends on the second in which it comes is flaky to Hypothesis, and found all the same.
    with a_world(database_url) as world, pytest.raises((AssertionError, FlakyFailure)) as found:
        drive(world, examples=60)
    assert isinstance(found.value, AssertionError) or found.group_contains(AssertionError)
    where = found.traceback[-1]
    print(f"in {where.name}: {where.statement}")
