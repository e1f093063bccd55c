"""Answers that are lost for days, with retry keys and without; and thieves with a token alone. On both databases.

The clock of a session is moved by itself: the moments of its row become older. With TEST_LONG, a thousand sessions and
a thousand thieves; otherwise some dozens. `pytest -rP` prints the counts.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import pytest
from sqlalchemy import text

from app.actors import SERVICE
from app.errors import InvalidGrant, TemporarilyUnavailable
from app.keyturn import Keyturn
from app.sessions import rotation
from app.sessions.answers import Tokens
from app.sessions.rows import SessionRow, judge
from app.storage.tables import microseconds
from tests.conftest import Opener, a_user
from tests.test_races import rows

T = TypeVar("T")

LONG = "TEST_LONG" in os.environ
SESSIONS, ROTATIONS = (1000, 20) if LONG else (60, 8)
THIEVES = 1000 if LONG else 80
LOST = 0.3
WINDOW, DAY = 300, 86_400
"""Seconds. No wait of a test ends within the last two thirds of the window, because the real clock runs on."""
POLICY = {"retry_window": WINDOW, "refresh_token_lifetime": 366 * DAY, "session_lifetime": 3660 * DAY}


async def time_passes_for(keyturn: Keyturn, session_id: UUID, seconds: int) -> None:
    """Makes one session older."""
    shift: Any = timedelta(seconds=seconds)
    if not keyturn.db.is_postgres:
        shift = microseconds(shift)
    by = "CAST(:shift AS interval)" if keyturn.db.is_postgres else ":shift"
    columns = ("created_at", "rotated_at", "idle_expires_at", "absolute_expires_at")
    moves = ", ".join(f"{column} = {column} - {by}" for column in columns)
    which = session_id if keyturn.db.is_postgres else session_id.hex

    async def move() -> None:
        async with keyturn.db.begin() as tx:
            await tx.execute(text(f"UPDATE sessions SET {moves} WHERE id = :id"), {"shift": shift, "id": which})

    await patiently(move)


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Repeats the call while the queue for a connection is full."""
    for _ in range(50):
        try:
            return await call()
        except TemporarilyUnavailable:
            await asyncio.sleep(0.1)
    raise AssertionError("away for good")


async def refresh(keyturn: Keyturn, token: str, key: str | None) -> Tokens:
    return await patiently(lambda: keyturn.rotation.refresh(token, by=SERVICE, retry_key=key))


async def abreast(calls: Iterable[Callable[[], Awaitable[None]]]) -> None:
    """Awaits all, some dozens at a time."""
    queue = iter(calls)

    async def some() -> None:
        for call in queue:
            await call()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(24):
            tasks.create_task(some())


def a_wait(dice: random.Random) -> int:
    """Seconds from 0 to 3 days: a third is short, a third are hours, a third is anything."""
    return dice.choice([dice.randint(0, WINDOW // 3), dice.randint(WINDOW, 3 * 3600), dice.randint(WINDOW, 3 * DAY)])


# -- lost answers


@dataclass
class Phone:
    """A client that loses answers, and retries after a random time."""

    dice: random.Random
    keyed: bool
    session_id: UUID
    token: str
    rotations: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    over: str | None = None
    """Why its session is over."""
    must_be_over: bool = False

    async def use(self, keyturn: Keyturn) -> None:
        while self.rotations < ROTATIONS and self.over is None:
            await time_passes_for(keyturn, self.session_id, self.dice.randint(0, 900))
            await self._rotate(keyturn)

    async def _rotate(self, keyturn: Keyturn) -> None:
        key = secrets.token_urlsafe(24) if self.keyed else None  # stored before the request
        successors: set[str] = set()
        age = 0
        while True:
            self.must_be_over = age >= WINDOW and not self.keyed
            try:
                answer = await refresh(keyturn, self.token, key)
            except InvalidGrant as refusal:
                self.over = refusal.reason
                return
            assert not self.must_be_over, "a retry after the window, without a key"
            successors.add(answer.refresh_token)
            if self.dice.random() >= LOST:
                break
            self.seen["lost"] += 1
            wait = a_wait(self.dice)
            if WINDOW // 3 < age + wait < WINDOW:
                wait = WINDOW - age
            age += wait
            await time_passes_for(keyturn, self.session_id, wait)
            self.seen["after the window" if age >= WINDOW else "within the window"] += 1
        assert len(successors) == 1, "a fork"
        (self.token,) = successors
        self.rotations += 1


async def test_with_keys_no_lost_answer_loses_a_session_and_without_exactly_those_past_the_window(
    open_keyturn: Opener, engine: str
) -> None:
    async with open_keyturn(**POLICY) as one, open_keyturn(**POLICY) as other:
        proof = await a_user(one)
        phones = []
        for number in range(SESSIONS):
            tokens = await one.starting.start(proof, by=SERVICE)
            # Two phones each have the same luck: one with keys, one without.
            dice = random.Random(f"a phone {number // 2}")
            phones.append(Phone(dice, number % 2 == 0, tokens.session_id, tokens.refresh_token))
        await abreast(partial(phone.use, (one, other)[number // 2 % 2]) for number, phone in enumerate(phones))
        found = await rows(one, {phone.session_id for phone in phones})
        assert len(found) == SESSIONS
        lost: Counter[bool] = Counter()
        for phone in phones:
            state = found[phone.session_id]
            assert (phone.over is not None) is phone.must_be_over
            if phone.over is None:
                assert (state.generation, state.ended_at) == (ROTATIONS, None)
                digest = one.keys.verify_refresh_token(phone.token).digest
                assert state.token_digest == digest, "a fork"
            else:
                assert (phone.over, state.end_reason) == ("reuse_detected",) * 2
                lost[phone.keyed] += 1
        for keyed in (True, False):
            seen = sum((phone.seen for phone in phones if phone.keyed is keyed), Counter[str]())
            counted = f"{SESSIONS // 2} sessions x {ROTATIONS} rotations, {dict(seen)}, sessions lost: {lost[keyed]}"
            print(f"{engine}, {'with keys' if keyed else 'without keys'}: {counted}")
        assert lost[True] == 0
        assert lost[False] > SESSIONS / 8


# -- thieves


@dataclass
class Rule:
    """The rule without keys, in generations and seconds. It says what a token alone may do."""

    generation: int = 0
    age: int = 0

    def of(self, generation: int) -> str:
        if generation == self.generation:
            return "rotates"
        return "retry" if generation == self.generation - 1 and self.age < WINDOW else "reuse"


@dataclass
class Theft:
    """An owner with keys, and a thief who copied tokens from the wire and has no key of the owner."""

    dice: random.Random
    session_id: UUID
    owners: tuple[int, str]
    """The newest token of the owner, with its generation."""
    thiefs: tuple[int, str] | None = None
    rule: Rule = field(default_factory=Rule)
    key: str | None = None
    """The key of the last rotation."""
    had: set[tuple[int, str]] = field(default_factory=set, repr=False)
    """All that the thief was ever given."""
    seen: list[str] = field(default_factory=list)
    caught: bool = False

    async def play(self, keyturn: Keyturn) -> None:
        for _ in range(12):
            match self.dice.choice(["owner", "owner", "steal", "thief", "wait", "a lost answer"]):
                case "steal":
                    self.thiefs = self.owners
                case "wait":
                    await self._wait(keyturn, self.dice.choice([WINDOW, 3 * DAY]))
                case "thief" if self.thiefs is not None:
                    await self._thief(keyturn)
                case "owner":
                    await self._owner(keyturn, lost=False)
                case "a lost answer":
                    await self._owner(keyturn, lost=True)
            if self.caught:
                return
        # In the end, both use what they have. Whoever comes second is late.
        self.thiefs = self.thiefs or self.owners
        for turn in (self._thief, self._owner) if self.dice.random() < 0.5 else (self._owner, self._thief):
            await self._wait(keyturn, DAY)
            if not self.caught:
                await turn(keyturn)
        assert self.caught, self.seen

    async def _wait(self, keyturn: Keyturn, seconds: int) -> None:
        self.rule.age += seconds
        await time_passes_for(keyturn, self.session_id, seconds)

    async def _thief(self, keyturn: Keyturn) -> None:
        assert self.thiefs
        generation, token = self.thiefs
        key = self.dice.choice([None, "a key that the thief made up", "x" * 16])
        expected = self.rule.of(generation)
        own = key is not None and key == self.key and generation == self.rule.generation - 1
        if expected == "reuse" and own:
            expected = "retry"  # of a rotation of the thief's own
        self.seen.append(f"thief {expected}")
        given = await self._present(keyturn, generation, token, key, expected)
        if own and given:
            assert given in self.had, "the retry gives the thief what the thief has already"
        if expected == "rotates":
            self.key = key
        if given:
            self.thiefs = given
            self.had.add(given)

    async def _owner(self, keyturn: Keyturn, *, lost: bool = False) -> None:
        generation, token = self.owners
        key = secrets.token_urlsafe(24)
        expected = self.rule.of(generation)
        self.seen.append(f"owner {expected}")
        given = await self._present(keyturn, generation, token, key, expected)
        if expected == "rotates":
            self.key = key
        if given and lost:
            await self._wait(keyturn, self.dice.choice([WINDOW, 3 * DAY]))
            expected = self.rule.of(generation)
            if expected == "reuse" and generation == self.rule.generation - 1 and self.key == key:
                expected = "retry"  # what the key is for
            self.seen.append(f"owner again {expected}")
            given = await self._present(keyturn, generation, token, key, expected)
        if given:
            self.owners = given

    async def _present(
        self, keyturn: Keyturn, generation: int, token: str, key: str | None, expected: str
    ) -> tuple[int, str] | None:
        reason = None
        try:
            answer = await refresh(keyturn, token, key)
        except InvalidGrant as refusal:
            reason, self.caught = refusal.reason, True
        assert reason == ("reuse_detected" if expected == "reuse" else None), self.seen
        if reason:
            return None
        if expected == "rotates":
            self.rule = Rule(generation + 1)
        return generation + 1, answer.refresh_token


async def thefts(keyturn: Keyturn) -> list[Theft]:
    proof = await a_user(keyturn)
    played = []
    for number in range(THIEVES):
        tokens = await keyturn.starting.start(proof, by=SERVICE)
        played.append(Theft(random.Random(f"a theft {number}"), tokens.session_id, (0, tokens.refresh_token)))
    await abreast(partial(theft.play, keyturn) for theft in played)
    return played


async def test_a_thief_with_a_token_alone_is_caught_wherever_the_rule_without_keys_catches_him(
    open_keyturn: Opener, engine: str
) -> None:
    async with open_keyturn(**POLICY) as keyturn:
        played = await thefts(keyturn)
        found = await rows(keyturn, {theft.session_id for theft in played})
    assert {found[theft.session_id].end_reason for theft in played} == {"reuse_detected"}
    seen = Counter(step for theft in played for step in theft.seen)
    print(f"{engine}: {len(played)} thefts, all caught; {dict(seen)}")
    steps = {f"{who} {what}" for who in ("thief", "owner") for what in ("rotates", "retry", "reuse")}
    assert steps | {"owner again retry", "owner again reuse"} <= seen.keys()


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_a_service_that_takes_any_key_for_a_proof_lets_thieves_go(
    open_keyturn: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judged(row: SessionRow, presented: Any, key: Any, digest: bytes | None) -> Any:
        return judge(row, presented, key, digest and row.retry_key_digest)

    monkeypatch.setattr(rotation, "judge", judged)
    async with open_keyturn(**POLICY) as keyturn:
        with pytest.raises(ExceptionGroup) as found:
            await thefts(keyturn)
    assert found.group_contains(AssertionError)
