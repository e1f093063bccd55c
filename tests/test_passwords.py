"""Passwords: taken as they come, hashed a few at a time, and no answer says whether there is such a user."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import unicodedata
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import argon2._password_hasher
import argon2.low_level
import pytest
from argon2 import PasswordHasher, Type, extract_parameters
from argon2.exceptions import VerifyMismatchError

from app.errors import InvalidGrant, InvalidRequest, TemporarilyUnavailable
from app.keyturn import Keyturn
from app.passwords import Authenticated, Passwords, acceptable
from app.settings import Settings, read
from tests.conftest import CHEAP, PASSWORD, Opener, a_user


def settings(**more: str) -> Settings:
    return read({f"KEYTURN_{name.upper()}": value for name, value in {**CHEAP, **more}.items()})


@pytest.fixture
async def passwords() -> AsyncIterator[Passwords]:
    passwords = Passwords(settings())
    yield passwords
    passwords.close()


@pytest.mark.parametrize("length", [8, 9, 1023, 1024])
def test_a_password_has_8_to_1024_bytes(length: int) -> None:
    assert acceptable("x" * length) == b"x" * length


@pytest.mark.parametrize(
    "password", ["", "x" * 7, "x" * 1025, "x" * 1_000_000, "é" * 513, "é" * 3, "\0" * 8, "eight or\0more", "12345678\0"]
)
def test_other_passwords_are_refused_and_not_repeated(password: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        acceptable(password)
    assert not password or password not in f"{caught.value.cause}{caught.value.description}"


def test_bytes_are_counted_and_not_characters() -> None:
    assert len(acceptable("é" * 4)) == 8
    assert len(acceptable("😀" * 256)) == 1024


STRANGE = [
    "  leading and trailing  ",
    "\ttabs\nand\r\nlines\n",
    "emoji 😀👩‍👩‍👧‍👦",
    "é" + "combined",
    "e\u0301" + "combined",
    "סיסמה בעברית",
    "\u202eright to left\u202c",
    "\ufb01ligature and \u200b zero width",
    "\ufeffbyte order mark",
    "UPPER lower",
]


@pytest.mark.parametrize("password", STRANGE)
async def test_a_password_is_kept_as_it_was_sent(passwords: Passwords, password: str) -> None:
    hashed = await passwords.hash(acceptable(password))
    assert await passwords.verify(hashed, password.encode())
    changed = (
        {
            *(unicodedata.normalize(form, password) for form in ("NFC", "NFD", "NFKC", "NFKD")),  # type: ignore[arg-type]
            password.strip(),
            password.lower(),
            password[:-1],
            password + " ",
            password.replace("\r\n", "\n"),
            password.replace("\u200b", ""),
        }
        - {password}
    )
    for other in changed:
        assert not await passwords.verify(hashed, other.encode()), repr(other)


async def test_the_last_of_1024_bytes_counts(passwords: Passwords) -> None:
    hashed = await passwords.hash(acceptable("x" * 1023 + "y"))
    assert await passwords.verify(hashed, b"x" * 1023 + b"y")
    assert not await passwords.verify(hashed, b"x" * 1024)


async def test_a_hash_is_argon2id_of_the_settings_with_a_salt_of_its_own() -> None:
    passwords = Passwords(settings(argon2_memory="64", argon2_passes="2", argon2_lanes="2"))
    first, second = await passwords.hash(b"one and the same"), await passwords.hash(b"one and the same")
    parameters = extract_parameters(first)
    assert first != second
    assert (parameters.type, parameters.memory_cost, parameters.time_cost, parameters.parallelism) == (
        Type.ID,
        64,
        2,
        2,
    )
    assert parameters.salt_len == 16
    assert parameters.hash_len == 32
    passwords.close()


@pytest.mark.parametrize(
    "stored",
    [
        "",
        "x",
        "plain text password",
        "$2b$12$KIXQm7h4c6mT1m5nQ8G3aO2eX0n3oT3sC5dQ6mJ9b1q7Yw8uZ1a2e",
        "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHRzYWx0$",
        "$argon2id$v=19$m=4194304,t=1,p=1$c2FsdHNhbHRzYWx0c2FsdA$aGFzaGhhc2hoYXNoaGFzaA",
        "$argon2id$v=19$m=8,t=4000000000,p=1$c2FsdHNhbHRzYWx0c2FsdA$aGFzaGhhc2hoYXNoaGFzaA",
        "$argon2id$v=19$m=8,t=1,p=16777215$c2FsdHNhbHRzYWx0c2FsdA$aGFzaGhhc2hoYXNoaGFzaA",
        "$argon2id$v=19$m=x,t=1,p=1$c2FsdHNhbHRzYWx0c2FsdA$aGFzaGhhc2hoYXNoaGFzaA",
    ],
)
async def test_a_stored_hash_that_is_none_is_a_wrong_password(passwords: Passwords, stored: str) -> None:
    assert not await passwords.verify(stored, b"plain text password")


async def test_a_hash_of_other_parameters_is_right_and_outdated(passwords: Passwords) -> None:
    old = PasswordHasher(time_cost=2, memory_cost=16, parallelism=1).hash(b"a good password")
    assert await passwords.verify(old, b"a good password")
    assert passwords.outdated(old)
    assert not passwords.outdated(await passwords.hash(b"a good password"))


async def test_beyond_slots_and_queue_it_is_503_at_once() -> None:
    passwords = Passwords(settings(hashing_slots="1", hashing_queue="2"))
    answers = await asyncio.gather(*(passwords.hash(b"a good password") for _ in range(6)), return_exceptions=True)
    full = [answer for answer in answers if isinstance(answer, TemporarilyUnavailable)]
    assert [isinstance(answer, str) for answer in answers] == [True] * 3 + [False] * 3
    assert len(full) == 3
    assert all(e.status == 503 and e.retry_after == timedelta(seconds=2) for e in full)
    # Room again as soon as they are done.
    assert await passwords.hash(b"a good password")
    passwords.close()


@asynccontextmanager
async def occupied(passwords: Passwords) -> AsyncIterator[None]:
    """Its one slot is taken while the block runs."""
    done = threading.Event()
    taken = asyncio.ensure_future(passwords._run(done.wait))
    await asyncio.sleep(0)
    try:
        yield
    finally:
        done.set()
        await taken


async def test_what_waited_too_long_for_a_slot_is_503_and_is_never_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.passwords.WAITS_FOR", timedelta(milliseconds=50))
    passwords, hashed = Passwords(settings(hashing_slots="1", hashing_queue="8")), list[int]()
    async with occupied(passwords):
        waiting = [passwords._run(hashed.append, i) for i in range(3)]
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(answer) for answer in answers] == [TemporarilyUnavailable] * 3
        assert passwords._busy == 1
    assert await passwords.hash(b"a good password")
    assert not hashed
    passwords.close()


async def test_a_hash_that_takes_too_long_is_503_and_holds_its_slot_until_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.passwords.TAKES_AT_MOST", timedelta(milliseconds=20))
    passwords = Passwords(settings(hashing_slots="1", hashing_queue="0"))
    release = threading.Event()
    monkeypatch.setattr(PasswordHasher, "hash", lambda *_: release.wait(10) and "done")
    with pytest.raises(TemporarilyUnavailable, match="takes too long"):
        await passwords.hash(b"a password")
    with pytest.raises(TemporarilyUnavailable, match="queue is full"):
        await passwords.hash(b"a password")
    release.set()
    while passwords._busy:
        await asyncio.sleep(0.01)
    monkeypatch.setattr("app.passwords.TAKES_AT_MOST", timedelta(seconds=30))
    assert await passwords.hash(b"a password") == "done"
    passwords.close()


async def test_who_goes_away_while_waiting_is_dropped_and_gives_his_place_to_others() -> None:
    passwords, hashed = Passwords(settings(hashing_slots="1", hashing_queue="1")), list[int]()
    async with occupied(passwords):
        gone = asyncio.ensure_future(passwords._run(hashed.append, 1))
        await asyncio.sleep(0)
        with pytest.raises(TemporarilyUnavailable):
            passwords.admit()
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        stays = asyncio.ensure_future(passwords._run(hashed.append, 2))
        await asyncio.sleep(0)
    await stays
    assert hashed == [2]
    passwords.close()


async def test_who_goes_away_holds_his_place_until_his_hash_is_done() -> None:
    passwords = Passwords(settings(hashing_slots="1", hashing_queue="0", argon2_memory="65536", argon2_passes="4"))
    gone = asyncio.ensure_future(passwords.hash(b"a good password"))
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    with pytest.raises(TemporarilyUnavailable):
        await passwords.hash(b"a good password")
    for _ in range(1000):
        await asyncio.sleep(0.01)
        if not passwords._busy:
            break
    assert await passwords.hash(b"a good password")
    passwords.close()


class Counted:
    """Counts what argon2 is asked to compute; it computes as ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[str, int, int, int]] = []
        for name in ("hash_secret", "verify_secret"):
            monkeypatch.setattr(argon2._password_hasher, name, self._counting(name, getattr(argon2.low_level, name)))

    def _counting(self, name: str, original: Any) -> Any:
        def counting(*args: Any, **options: Any) -> Any:
            if name == "verify_secret":
                parameters = extract_parameters(args[0].decode() if isinstance(args[0], bytes) else args[0])
                cost = (parameters.memory_cost, parameters.time_cost, parameters.parallelism)
            else:
                cost = (options["memory_cost"], options["time_cost"], options["parallelism"])
            self.asked.append((name, *cost))
            return original(*args, **options)

        return counting

    def taken(self) -> list[tuple[str, int, int, int]]:
        taken, self.asked = self.asked, []
        return taken


async def test_unknown_wrong_and_disabled_cost_the_same_and_say_the_same(
    keyturn: Keyturn, monkeypatch: pytest.MonkeyPatch
) -> None:
    await a_user(keyturn)
    disabled = await a_user(keyturn, "bob@example.com")
    await keyturn.users.disable(disabled.user_id)
    await keyturn.passwords.verify(None, b"the first of a process makes the decoy")
    counted = Counted(monkeypatch)
    said, done = [], []
    for email, password in (
        ("ada@example.com", "wrong password"),
        ("nobody@example.com", "wrong password"),
        ("nobody@example.com", PASSWORD),
        ("bob@example.com", PASSWORD),
        ("bob@example.com", "x"),
        ("ada@example.com", ""),
    ):
        with pytest.raises(InvalidGrant) as caught:
            await keyturn.users.authenticate(email, password)
        said.append((caught.value.body(), caught.value.headers(), caught.value.status, caught.value.cause))
        done.append(counted.taken())
    assert done == [[("verify_secret", 8, 1, 1)]] * len(done)
    assert all(answer == said[0] for answer in said)


@pytest.mark.parametrize("first", ["ada@example.com", "bob@example.com", "new@example.com", "nobody@example.com"])
async def test_after_the_parameters_were_changed_unknown_wrong_and_disabled_cost_the_same_from_the_first_on(
    open_keyturn: Opener, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    async with open_keyturn() as before:
        await a_user(before)
        disabled = await a_user(before, "bob@example.com")
        await before.users.disable(disabled.user_id)
    async with open_keyturn(argon2_memory="64") as between:
        await a_user(between, "carol@example.com")
    async with open_keyturn(argon2_passes="2") as now:
        await now.users.create("new@example.com", PASSWORD)
        counted = Counted(monkeypatch)
        for email, password in (
            (first, "wrong password"),
            ("ada@example.com", "wrong password"),
            ("bob@example.com", "wrong password"),
            ("bob@example.com", PASSWORD),
            ("carol@example.com", "wrong password"),
            ("new@example.com", "wrong password"),
            ("nobody@example.com", "wrong password"),
        ):
            with pytest.raises(InvalidGrant):
                await now.users.authenticate(email, password)
            assert sorted(counted.taken()) == [
                ("verify_secret", 8, 1, 1),
                ("verify_secret", 8, 2, 1),
                ("verify_secret", 64, 1, 1),
            ]
        await now.users.authenticate("new@example.com", PASSWORD)
        assert counted.taken() == [("verify_secret", 8, 2, 1)]


async def test_all_that_a_wrong_password_costs_takes_one_place_in_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    passwords = Passwords(settings(hashing_slots="1", hashing_queue="0"))
    for memory in (16, 32):
        passwords.learn(PasswordHasher(time_cost=1, memory_cost=memory, parallelism=1).hash(b"a good password"))
    passwords.learn("$argon2id$v=19$m=4194304,t=1,p=1$c2FsdHNhbHRzYWx0c2FsdA$aGFzaGhhc2hoYXNoaGFzaA")  # never computed
    counted = Counted(monkeypatch)
    wrong = asyncio.ensure_future(passwords.verify(None, b"a good password"))
    await asyncio.sleep(0)
    with pytest.raises(TemporarilyUnavailable):
        passwords.admit()
    assert not await wrong
    assert [cost for _, *cost in counted.taken()] == [[8, 1, 1], [16, 1, 1], [32, 1, 1]]
    passwords.close()


async def test_the_first_unknown_user_of_a_process_costs_the_same_too(
    passwords: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    assert not await passwords.verify(None, b"a good password")
    assert counted.taken() == [("verify_secret", 8, 1, 1)]


async def test_nobodys_hash_is_a_hash_like_any_other(passwords: Passwords) -> None:
    """One that argon2 can not read would be refused at once, and an unknown user would be told by the clock."""
    [decoy] = passwords._decoys.values()
    assert extract_parameters(decoy) == extract_parameters(passwords._hasher.hash(b"a good password"))
    with pytest.raises(VerifyMismatchError):
        passwords._hasher.verify(decoy, b"a good password")


@pytest.mark.parametrize(
    ("cores", "workers", "slots"),
    [(None, 1, 1), (1, 1, 1), (2, 1, 1), (3, 1, 2), (8, 1, 7), (2, 2, 1), (8, 2, 3), (8, 7, 1), (8, 8, 1)],
)
def test_one_core_is_left_to_the_event_loops(
    monkeypatch: pytest.MonkeyPatch, cores: int | None, workers: int, slots: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    passwords = Passwords(settings(workers=str(workers)))
    assert passwords._pool._max_workers == slots
    assert passwords._room == slots + 32
    passwords.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no policy of its own")
async def test_a_hash_is_computed_by_a_thread_that_stands_back_and_the_event_loop_does_not(
    passwords: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies: list[int] = []

    def hashed(*_: object) -> str:
        policies.append(os.sched_getscheduler(threading.get_native_id()))
        return ""

    monkeypatch.setattr(PasswordHasher, "hash", hashed)
    await passwords.hash(b"a password")
    assert policies == [os.SCHED_IDLE]
    assert os.sched_getscheduler(0) == os.sched_getscheduler(threading.get_native_id()) == os.SCHED_OTHER


def test_hashes_of_up_to_four_times_the_cost_that_is_set_are_computed() -> None:
    passwords = Passwords(settings(argon2_memory="100000", argon2_passes="20"))
    for memory, passes, reasonable in ((400000, 80, True), (400001, 1, False), (8, 81, False)):
        stored = f"$argon2id$v=19$m={memory},t={passes},p=1$c2FsdHNhbHRzYWx0c2FsdA$aGFzaGhhc2hoYXNoaGFzaA"
        assert passwords._reasonable(stored) is reasonable
    passwords.close()


async def test_the_right_password_costs_one_hash_too(keyturn: Keyturn, monkeypatch: pytest.MonkeyPatch) -> None:
    await a_user(keyturn)
    counted = Counted(monkeypatch)
    await keyturn.users.authenticate("ada@example.com", PASSWORD)
    assert counted.taken() == [("verify_secret", 8, 1, 1)]


async def test_an_address_that_exists_costs_as_much_to_register(
    keyturn: Keyturn, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    await keyturn.users.create("ada@example.com", PASSWORD)
    first = counted.taken()
    with pytest.raises(Exception, match="email exists"):
        await keyturn.users.create("ada@example.com", PASSWORD)
    assert counted.taken() == first == [("hash_secret", 8, 1, 1)]


@pytest.mark.parametrize("password", ["x" * 1025, "with\0nul at the end"])
async def test_what_can_be_nobodys_password_is_refused_without_a_hash(
    keyturn: Keyturn, monkeypatch: pytest.MonkeyPatch, password: str
) -> None:
    await a_user(keyturn)
    counted = Counted(monkeypatch)
    for email in ("ada@example.com", "nobody@example.com"):
        with pytest.raises(InvalidRequest):
            await keyturn.users.authenticate(email, password)
    assert counted.taken() == []


async def test_a_login_renews_an_outdated_hash(keyturn: Keyturn, open_keyturn: Any) -> None:
    await a_user(keyturn)
    async with open_keyturn(argon2_passes="2") as later:
        assert await later.users.authenticate("ada@example.com", PASSWORD)
        assert extract_parameters((await later.users.find("ada@example.com")).password_hash).time_cost == 2
    assert await keyturn.users.authenticate("ada@example.com", PASSWORD)


def test_the_proof_of_a_password_does_not_show_its_hash() -> None:
    assert "argon2" not in repr(Authenticated(user_id=None, password_hash="$argon2id$secret"))  # type: ignore[arg-type]
