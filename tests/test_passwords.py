"""Passwords: taken as they come, hashed a few at a time, and no answer says whether there is such a user."""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import argon2._password_hasher
import argon2.low_level
import pytest
from argon2 import PasswordHasher, Type, extract_parameters

from app.errors import InvalidGrant, InvalidRequest, TemporarilyUnavailable
from app.keyturn import Keyturn
from app.passwords import Authenticated, Passwords, acceptable
from app.settings import Settings, read
from tests.conftest import CHEAP, PASSWORD, a_user


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


async def test_the_first_unknown_user_of_a_process_costs_the_same_too(
    passwords: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    assert not await passwords.verify(None, b"a good password")
    assert counted.taken() == [("verify_secret", 8, 1, 1)]


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
