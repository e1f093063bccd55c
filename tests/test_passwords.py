"""Passwords are taken unchanged and hashed a few at a time. No answer says whether a user exists."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import unicodedata
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import argon2._password_hasher
import argon2.low_level
import pytest
from argon2 import PasswordHasher, Type, extract_parameters
from argon2.exceptions import Argon2Error, InvalidHashError, VerifyMismatchError
from argon2.low_level import hash_secret
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import update

from app.actors import SERVICE
from app.errors import InvalidGrant, InvalidRequest, TemporarilyUnavailable
from app.keyturn import Keyturn
from app.sessions.start import Authenticated
from app.settings import Settings, read
from app.storage.tables import User
from app.users.container import Container, Limit
from app.users.hashing_room import BEFORE_REQUESTS, FOR_REQUESTS, MIB, HashingRoom
from app.users.passwords import Cost, Passwords, cost_of
from tests.conftest import CHEAP, PASSWORD, Opener, a_user
from tests.servers import free_port
from tests.service import ROOT, Service


def settings(**more: str) -> Settings:
    return read({f"KEYTURN_{name.upper()}": value for name, value in {**CHEAP, **more}.items()})


NO_LIMITS = Container(cores=Limit(8, "the test"), memory=None, address_space=None, threads=None)


def hashing(found: Container = NO_LIMITS, **more: str) -> Passwords:
    """Makes Passwords with these settings, in a container that the test chooses."""
    return Passwords(settings(**more), HashingRoom.of(settings(**more), found))


@pytest.fixture
async def passwords() -> Passwords:
    return hashing()


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
    hashed = await passwords.hash(password.encode())
    assert await passwords.verify(hashed, password.encode())
    changed = {
        *(unicodedata.normalize(form, password) for form in ("NFC", "NFD", "NFKC", "NFKD")),
        password.strip(),
        password.lower(),
        password[:-1],
        password + " ",
        password.replace("\r\n", "\n"),
        password.replace("\u200b", ""),
    } - {password}
    for other in changed:
        assert not await passwords.verify(hashed, other.encode()), repr(other)


async def test_the_last_of_1024_bytes_counts(passwords: Passwords) -> None:
    hashed = await passwords.hash(b"x" * 1023 + b"y")
    assert await passwords.verify(hashed, b"x" * 1023 + b"y")
    assert not await passwords.verify(hashed, b"x" * 1024)


async def test_a_hash_is_argon2id_of_the_settings_with_a_salt_of_its_own() -> None:
    passwords = hashing(argon2_memory="64", argon2_passes="2", argon2_lanes="2")
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
    passwords = hashing(hashing_slots="1", hashing_queue="2")
    answers = await asyncio.gather(*(passwords.hash(b"a good password") for _ in range(6)), return_exceptions=True)
    full = [answer for answer in answers if isinstance(answer, TemporarilyUnavailable)]
    assert [isinstance(answer, str) for answer in answers] == [True] * 3 + [False] * 3
    assert len(full) == 3
    assert all(e.status == 503 and e.retry_after == timedelta(seconds=2) for e in full)
    # The queue has room again as soon as the hashes are done.
    assert await passwords.hash(b"a good password")


@asynccontextmanager
async def occupied(passwords: Passwords) -> AsyncIterator[None]:
    """Occupies the one hashing slot while the block runs."""
    done = threading.Event()
    taken = asyncio.ensure_future(passwords.hashing.run(8, done.wait))
    await asyncio.sleep(0)
    try:
        yield
    finally:
        done.set()
        await taken


async def test_what_waited_too_long_for_a_slot_is_503_and_is_never_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.users.hashing.WAITS_FOR", timedelta(milliseconds=50))
    passwords, hashed = hashing(hashing_slots="1", hashing_queue="8"), list[int]()
    async with occupied(passwords):
        waiting = [passwords.hashing.run(8, partial(hashed.append, i)) for i in range(3)]
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(answer) for answer in answers] == [TemporarilyUnavailable] * 3
        assert passwords.hashing.busy == 1
    assert await passwords.hash(b"a good password")
    assert not hashed


async def test_a_hash_that_takes_too_long_is_503_and_holds_its_slot_until_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.users.hashing.TAKES_AT_MOST", timedelta(milliseconds=20))
    passwords = hashing(hashing_slots="1", hashing_queue="0")
    release = threading.Event()
    monkeypatch.setattr(PasswordHasher, "hash", lambda *_: release.wait(10) and "done")
    with pytest.raises(TemporarilyUnavailable, match="takes too long"):
        await passwords.hash(b"a password")
    with pytest.raises(TemporarilyUnavailable, match="queue is full"):
        await passwords.hash(b"a password")
    release.set()
    while passwords.hashing.busy:
        await asyncio.sleep(0.01)
    monkeypatch.setattr("app.users.hashing.TAKES_AT_MOST", timedelta(seconds=30))
    assert await passwords.hash(b"a password") == "done"


async def test_who_goes_away_while_waiting_is_dropped_and_gives_his_place_to_others() -> None:
    passwords, hashed = hashing(hashing_slots="1", hashing_queue="1"), list[int]()
    async with occupied(passwords):
        gone = asyncio.ensure_future(passwords.hashing.run(8, partial(hashed.append, 1)))
        await asyncio.sleep(0)
        with pytest.raises(TemporarilyUnavailable):
            passwords.hashing.admit()
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        stays = asyncio.ensure_future(passwords.hashing.run(8, partial(hashed.append, 2)))
        await asyncio.sleep(0)
    await stays
    assert hashed == [2]


async def test_who_goes_away_holds_his_place_until_his_hash_is_done() -> None:
    passwords = hashing(hashing_slots="1", hashing_queue="0", argon2_memory="65536", argon2_passes="4")
    gone = asyncio.ensure_future(passwords.hash(b"a good password"))
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    with pytest.raises(TemporarilyUnavailable):
        await passwords.hash(b"a good password")
    for _ in range(3000):  # with its low priority, a hash runs only on an idle core
        await asyncio.sleep(0.01)
        if not passwords.hashing.busy:
            break
    assert await passwords.hash(b"a good password")


class Counted:
    """Counts the calls of argon2, and computes them as usual."""

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
    await keyturn.users.disable(disabled.user_id, by=SERVICE)
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
            await keyturn.sign_in.authenticate(email, password)
        said.append((caught.value.body(), caught.value.headers(), caught.value.status))
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
        await before.users.disable(disabled.user_id, by=SERVICE)
    async with open_keyturn(argon2_memory="64") as between:
        await a_user(between, "carol@example.com")
    async with open_keyturn(argon2_passes="2") as now:
        await now.users.create("new@example.com", PASSWORD, by=SERVICE)
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
                await now.sign_in.authenticate(email, password)
            assert sorted(counted.taken()) == [
                ("verify_secret", 8, 1, 1),
                ("verify_secret", 8, 2, 1),
                ("verify_secret", 64, 1, 1),
            ]
        await now.sign_in.authenticate("new@example.com", PASSWORD)
        assert counted.taken() == [("verify_secret", 8, 2, 1)]


async def test_all_that_a_wrong_password_costs_takes_one_place_in_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    passwords = hashing(hashing_slots="1", hashing_queue="0")
    for memory in (16, 32):
        passwords.learn(PasswordHasher(time_cost=1, memory_cost=memory, parallelism=1).hash(b"a good password"))
    # These parameters are above the limit, so such a hash is never computed.
    passwords.learn("$argon2id$v=19$m=4194304,t=1,p=1$c2FsdHNhbHRzYWx0c2FsdA$aGFzaGhhc2hoYXNoaGFzaA")
    counted = Counted(monkeypatch)
    wrong = asyncio.ensure_future(passwords.verify(None, b"a good password"))
    await asyncio.sleep(0)
    with pytest.raises(TemporarilyUnavailable):
        passwords.hashing.admit()
    assert not await wrong
    assert [cost for _, *cost in counted.taken()] == [[8, 1, 1], [16, 1, 1], [32, 1, 1]]


async def test_the_first_unknown_user_of_a_process_costs_the_same_too(
    passwords: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    assert not await passwords.verify(None, b"a good password")
    assert counted.taken() == [("verify_secret", 8, 1, 1)]


async def test_nobodys_hash_is_a_hash_like_any_other(passwords: Passwords) -> None:
    """The decoy of an unknown user is a hash that argon2 can read and compute.

    Otherwise argon2 would fail at once, and the time of the answer would reveal that the user does not exist.
    """
    [decoy] = passwords._decoys.values()
    assert extract_parameters(decoy) == extract_parameters(passwords._hasher.hash(b"a good password"))
    with pytest.raises(VerifyMismatchError):
        passwords._hasher.verify(decoy, b"a good password")


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


async def test_the_right_password_costs_one_hash_too(keyturn: Keyturn, monkeypatch: pytest.MonkeyPatch) -> None:
    await a_user(keyturn)
    counted = Counted(monkeypatch)
    await keyturn.sign_in.authenticate("ada@example.com", PASSWORD)
    assert counted.taken() == [("verify_secret", 8, 1, 1)]


async def test_an_address_that_exists_costs_as_much_to_register(
    keyturn: Keyturn, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    await keyturn.users.create("ada@example.com", PASSWORD, by=SERVICE)
    first = counted.taken()
    with pytest.raises(Exception, match="email exists"):
        await keyturn.users.create("ada@example.com", PASSWORD, by=SERVICE)
    assert counted.taken() == first == [("hash_secret", 8, 1, 1)]


@pytest.mark.parametrize("password", ["x" * 1025, "with\0nul at the end"])
async def test_what_can_be_nobodys_password_is_refused_without_a_hash(
    keyturn: Keyturn, monkeypatch: pytest.MonkeyPatch, password: str
) -> None:
    await a_user(keyturn)
    counted = Counted(monkeypatch)
    for email in ("ada@example.com", "nobody@example.com"):
        with pytest.raises(InvalidRequest):
            await keyturn.sign_in.authenticate(email, password)
    assert counted.taken() == []


async def test_a_login_renews_an_outdated_hash(keyturn: Keyturn, open_keyturn: Any) -> None:
    await a_user(keyturn)
    async with open_keyturn(argon2_passes="2") as later:
        assert await later.sign_in.authenticate("ada@example.com", PASSWORD)
        assert extract_parameters((await later.users.find("ada@example.com")).password_hash).time_cost == 2
    assert await keyturn.sign_in.authenticate("ada@example.com", PASSWORD)


def test_the_proof_of_a_password_does_not_show_its_hash() -> None:
    assert "argon2" not in repr(Authenticated(user_id=None, password_hash="$argon2id$secret"))  # type: ignore[arg-type]


# -- a verdict, or 503


PARTS = ("$argon2id", "$argon2i", "$argon2d", "$argon2", "$v=19", "$v=16", "$v=18", "$m=8,t=1,p=1", "$m=16,t=2,p=2", "$m=8,t=1,p=2",
         "$m=08,t=1,p=1", "$m=8,t=0,p=1", "$m=8,t=1,p=1,x=1", "$c2FsdHNhbHRzYWx0", "$c2FsdA", "$aGFzaGhhc2hoYXNoaGFzaA", "$aGFzaGhhc2hoYXNoaGFzaB",
         "$aGFz", "$", "=", "\n", "é")  # fmt: skip


@given(stored=st.lists(st.sampled_from(PARTS), min_size=3, max_size=6).map("".join) | st.text(max_size=60))
@example(stored="$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHRzYWx0$aGFzaGhhc2hoYXNoaGFzaA")
@example(stored="$argon2i$m=16,t=2,p=2$c2FsdHNhbHRzYWx0$aGFzaGhhc2hoYXNoaGFzaA")
@example(stored="$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHRzYWx0$aGFzaGhhc2hoYXNoaGFzaB")
def test_argon2_computes_each_stored_hash_that_is_taken_for_one_and_no_other(stored: str) -> None:
    try:
        PasswordHasher().verify(stored, b"a password")
        raise AssertionError
    except VerifyMismatchError:
        computed = "$v=18" not in stored
    except (Argon2Error, InvalidHashError, UnicodeError):
        computed = False
    assert isinstance(cost_of(stored), Cost) is computed


@pytest.mark.parametrize("kind", list(Type))
@pytest.mark.parametrize("version", [16, 19])
async def test_hashes_of_each_kind_and_version_of_argon2_are_right(
    passwords: Passwords, kind: Type, version: int
) -> None:
    stored = hash_secret(b"a good password", b"salt" * 4, 1, 16, 2, 24, kind, version).decode()
    assert await passwords.verify(stored, b"a good password")
    assert not await passwords.verify(stored, b"another password")
    assert passwords.outdated(stored)


@pytest.mark.parametrize(
    "before",
    [
        {"argon2_passes": 17},
        {"argon2_passes": 64},
        {"argon2_memory": 270_000},
        {"argon2_lanes": 16, "argon2_memory": 128},
    ],
)
async def test_lowering_a_parameter_locks_nobody_out(open_keyturn: Opener, before: dict[str, int]) -> None:
    async with open_keyturn(**before) as keyturn:
        await a_user(keyturn)
    async with open_keyturn() as keyturn:
        assert await keyturn.sign_in.authenticate("ada@example.com", PASSWORD)
        assert await keyturn.sign_in.not_computed() == (0, None)


async def test_a_stored_hash_that_is_not_computed_is_logged_with_the_user_and_without_the_hash(
    keyturn: Keyturn, capsys: pytest.CaptureFixture[str]
) -> None:
    proof = await a_user(keyturn)
    for stored in (
        "$2b$12$KIXQm7h4c6mT1m5nQ8G3aO",
        "$argon2id$v=19$m=4194304,t=1,p=1$c2FsdHNhbHRzYWx0c2FsdA$aGFzaGhhc2hoYXNoaGFzaA",
    ):
        async with keyturn.db.begin() as tx:
            await tx.execute(update(User).values(password_hash=stored))
        capsys.readouterr()
        with pytest.raises(InvalidGrant):
            await keyturn.sign_in.authenticate("ada@example.com", PASSWORD)
        line = json.loads(capsys.readouterr().err)
        assert (line["event"], line["level"], line["user_id"]) == (
            "stored_hash_not_computed",
            "error",
            str(proof.user_id),
        )
        assert not any(part in json.dumps(line) for part in stored.split("$") if len(part) > 2)
        assert await keyturn.sign_in.not_computed() == (1, proof.user_id)


async def test_a_hash_for_which_there_is_no_memory_is_503_and_no_decoy(capsys: pytest.CaptureFixture[str]) -> None:
    passwords = hashing(replace(NO_LIMITS, memory=Limit(512 * MIB, "memory.max")))
    large = "$argon2id$v=19$m=1048576,t=1,p=1$c2FsdHNhbHRzYWx0c2FsdA$aGFzaGhhc2hoYXNoaGFzaA"
    with pytest.raises(TemporarilyUnavailable, match="no room"):
        await passwords.verify(large, b"a good password")
    assert passwords.obstacle(large)
    assert not await passwords.verify(None, b"a good password")
    assert '"hash_failed"' in capsys.readouterr().err


async def test_what_is_wrong_never_costs_much_more_than_today(monkeypatch: pytest.MonkeyPatch) -> None:
    """One user's expensive hash from long ago must not make each wrong password take a minute."""
    passwords = hashing()
    for memory, passes in ((1048576, 64), (1048576, 5), (1048576, 3), (16, 1), (1048576, 2)):
        assert passwords.learn(
            f"$argon2id$v=19$m={memory},t={passes},p=1$c2FsdHNhbHRzYWx0c2FsdA$aGFzaGhhc2hoYXNoaGFzaA"
        )
    assert [(cost.memory, cost.passes) for cost in passwords._decoys] == [(8, 1), (1048576, 3), (16, 1)]


async def test_larger_hashes_wait_until_all_fit_and_none_is_overtaken_for_ever() -> None:
    found = replace(NO_LIMITS, memory=Limit(BEFORE_REQUESTS + FOR_REQUESTS + 4 * MIB, "memory.max"))
    passwords = hashing(found, argon2_memory="1024", hashing_slots="4")
    assert passwords.room.slots == 4
    running, most, order = 0, 0, list[int]()

    def hashed(memory: int) -> None:
        nonlocal running, most
        running += memory
        most = max(most, running)
        order.append(memory)
        time.sleep(0.01)
        running -= memory

    sizes = [1024, 4096, 1024, 1024, 2048, 3000, 1024, 1024, 1024, 1024]
    await asyncio.gather(*(passwords.hashing.run(size, partial(hashed, size)) for size in sizes))
    assert most <= 4096
    assert order == sizes or sorted(order) == sorted(sizes)
    assert passwords.hashing.busy == 0
    assert passwords.hashing._free == 4


async def test_without_a_thread_for_it_a_hash_is_503_and_the_next_is_as_ever(
    passwords: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    hashed = await passwords.hash(b"a good password")
    with monkeypatch.context() as without:
        without.setattr(threading.Thread, "start", start)
        for _ in range(100):  # more than slots and queue together, so that a place that is not freed is noticed
            with pytest.raises(TemporarilyUnavailable, match="can't start new thread"):
                await passwords.verify(hashed, b"a good password")
            with pytest.raises(TemporarilyUnavailable, match="can't start new thread"):
                await passwords.hash(b"a good password")
    assert await passwords.verify(hashed, b"a good password")


# -- a real process whose memory is short


@contextmanager
def no_more_addresses(service: Service, but: int) -> Iterator[None]:
    """Lets the service map at most `but` more bytes of memory while the block runs."""
    import resource

    taken = int(Path(f"/proc/{service.pid}/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.prlimit(service.pid, resource.RLIMIT_AS)
    resource.prlimit(service.pid, resource.RLIMIT_AS, (taken + but, before[1]))
    try:
        yield
    finally:
        resource.prlimit(service.pid, resource.RLIMIT_AS, before)


def post(service: Service, path: str, password: str, email: str = "ada@example.com") -> tuple[int, dict[str, Any], Any]:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    with closing(connection):
        body = json.dumps({"email": email, "password": password})
        connection.request("POST", f"/auth/{path}", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read()), answer.headers


linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits another process's address space")


@linux
@pytest.mark.parametrize(
    ("argon2", "room", "cause"),
    [
        ({"ARGON2_MEMORY": "262144"}, 64 * MIB, "Memory allocation error"),
        ({"ARGON2_MEMORY": "128", "ARGON2_LANES": "16"}, 10 * MIB, "Threading failure"),
    ],
)
def test_without_memory_no_password_is_called_wrong_and_nothing_is_a_defect(
    tmp_path: Path, argon2: dict[str, str], room: int, cause: str
) -> None:
    environment = {"KEYTURN_REGISTRATION": "true", **{f"KEYTURN_{name}": value for name, value in argon2.items()}}
    with Service.start({**environment, "KEYTURN_DATA_DIR": str(tmp_path / "data")}, logs=tmp_path) as service:
        # With several lanes, this hash would leave stacks of threads in memory for the next.
        if "ARGON2_LANES" not in argon2:
            assert post(service, "register", PASSWORD)[0] == 201
        with no_more_addresses(service, room):
            for path, password in (("login", PASSWORD), ("login", "wrong password"), ("register", PASSWORD)):
                status, body, fields = post(
                    service, path, password, "bob@example.com" if path == "register" else "ada@example.com"
                )
                assert (status, body["error"]) == (503, "temporarily_unavailable"), path
                assert int(fields["Retry-After"]) > 0
        assert cause in service.text_with(cause)
        assert '"exception"' not in service.text()
        if "ARGON2_LANES" in argon2:
            assert post(service, "register", PASSWORD)[0] == 201
        assert post(service, "login", PASSWORD)[0] == 200
        assert post(service, "login", "wrong password")[0] == 401


@linux
def test_the_right_password_signs_in_where_there_is_no_memory_to_renew_its_hash(tmp_path: Path) -> None:
    environment = {
        "KEYTURN_DATA_DIR": str(tmp_path / "data"),
        "KEYTURN_REGISTRATION": "true",
        "KEYTURN_ARGON2_LANES": "1",
        "KEYTURN_ARGON2_MEMORY": "8",
    }
    with Service.start(environment, logs=tmp_path) as service:
        assert post(service, "register", PASSWORD)[0] == 201
    with Service.start({**environment, "KEYTURN_ARGON2_MEMORY": "262144"}, logs=tmp_path) as service:
        with no_more_addresses(service, 64 * MIB):
            assert post(service, "login", PASSWORD)[0] == 200
        assert '"hash_not_renewed"' in service.text_with('"hash_not_renewed"')
        assert post(service, "login", PASSWORD)[0] == 200
        assert service.text().count('"hash_not_renewed"') == 1


@linux
@pytest.mark.skipif(not shutil.which("prlimit"), reason="there is no prlimit (util-linux)")
def test_a_start_and_the_doctor_name_a_limit_below_one_hash_in_one_line(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "KEYTURN_DATA_DIR": str(tmp_path / "data"),
        "KEYTURN_ARGON2_MEMORY": "1048576",
        "PYTHONPATH": str(ROOT),
    }

    def limited(mib: int, *words: str) -> tuple[int, str]:
        command = ["prlimit", f"--as={mib * MIB}", sys.executable, "-m", "app", *words]
        done = subprocess.run(
            command, check=False, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        return done.returncode, done.stdout + done.stderr

    serve = ("serve", "--port", str(free_port()))
    code, said = limited(900, *serve)
    assert code == 1
    assert re.fullmatch(r"keyturn: one password hash takes 1,024 MiB, and RLIMIT_AS leaves \d+ MiB for it: .*\n", said)
    # At the start one hash seems to fit, and then memory is too short. No administrator is made; the next start makes
    # one.
    code, said = limited(1280, *serve)
    assert code == 3
    assert re.fullmatch(r"keyturn: not available: no hash could be computed: .*\n", said)
    code, said = limited(900, "doctor")
    assert code == 1
    assert re.search(r"(?m)^!!  password hashes: .*: one password hash takes 1,024 MiB, and RLIMIT_AS leaves", said)
