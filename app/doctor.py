"""`keyturn doctor`: asks for everything that a start or a request needs, and says what to do where it is missing.

Each examination is a function that yields findings. A finding without advice is good news. An examination that opens
something raises what the start itself would raise, so the doctor and the start agree.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import func, select

from .errors import TemporarilyUnavailable
from .keyturn import Keyturn, opened
from .models import User
from .settings import ConfigurationError, read
from .setup import called, check_schema


class Finding(NamedTuple):
    """What was looked at, and what to do about it: nothing, where `advice` is empty."""

    check: str
    advice: str = ""

    @property
    def away(self) -> bool:
        """Whether something that Keyturn needs can't be reached."""
        return self.advice.startswith("away")


async def examine() -> list[Finding]:
    """All findings, in the order in which a start would meet them. The first that stops a start is the last."""
    findings: list[Finding] = []
    try:
        settings = read()
        findings.append(Finding("settings"))
        async with opened(settings) as keyturn:
            findings.append(Finding("master secret"))
            for look in _EXAMINATIONS:
                findings.extend([finding async for finding in look(keyturn)])
    except ConfigurationError as e:
        findings.append(Finding("set-up", str(e)))
    except TemporarilyUnavailable as e:
        findings.append(Finding("database", f"away: {e.cause}"))
    return findings


async def _schema(keyturn: Keyturn) -> AsyncIterator[Finding]:
    await check_schema(keyturn.db)
    yield Finding("database and schema")


async def _keys(keyturn: Keyturn) -> AsyncIterator[Finding]:
    await keyturn.keys.load()
    keys = await keyturn.keys.list()
    signing = {key["use"] for key in keys if key["status"] == "signs"}
    yield Finding("keys", "" if signing == {"access", "refresh"} else f"run {called()} serve once to make them")
    # A key that is published signs within a minute.
    access = [key for key in keys if key["use"] == "access" and key["status"] in {"signs", "published"}]
    algorithms, wanted = [key["algorithm"] for key in access], keyturn.settings.signing_algorithm
    still = "" if not algorithms or wanted in algorithms else algorithms[0]
    yield Finding(f"tokens signed with {wanted}", still and f"still {still}: {called()} keys generate access")


async def _administrators(keyturn: Keyturn) -> AsyncIterator[Finding]:
    enabled = User.disabled_at.is_(None)
    async with keyturn.db.look() as connection:
        initial = await connection.scalar(select(User.email).where(User.password_is_initial, enabled).limit(1))
        admins = await connection.scalar(select(func.count()).where(User.role == "admin", enabled))
    yield Finding("initial password", f"change it: {called()} users set-password {initial}" if initial else "")
    yield Finding("administrator", "" if admins else f"make one: {called()} users create EMAIL --role admin")


async def _hashing(keyturn: Keyturn) -> AsyncIterator[Finding]:
    room = keyturn.passwords.room
    yield Finding(f"password hashes: {room.words}", room.advice)
    count, oldest = await keyturn.users.not_computed()
    advice = f"{count} are not computed, so these users can't sign in: {called()} users set-password {oldest} and so on"
    yield Finding("stored password hashes", advice if count else "")


async def _clock(keyturn: Keyturn) -> AsyncIterator[Finding]:
    async with keyturn.db.look() as connection:
        theirs = await connection.scalar(select(keyturn.db.now()))
    skew = abs(datetime.now(theirs.tzinfo) - theirs) if theirs else timedelta(0)
    yield Finding("clock", "" if skew < timedelta(seconds=2) else "this machine's clock differs from the database's")


async def _redis(keyturn: Keyturn) -> AsyncIterator[Finding]:
    await keyturn.revocations.read_fence()
    cache = await keyturn.revocations.ping()
    advice = ""
    if cache == "away":
        advice = "away: Redis can't be reached; the database answers in its place"
    elif cache == "not complete" and await keyturn.revocations.may_evict():
        advice = "set maxmemory-policy noeviction: what may evict keys is never believed, the database answers"
    elif cache == "not complete":
        advice = f"Redis is not filled yet: {called()} serve does it; until then the database answers"
    yield Finding(f"cache ({cache})", advice)


_EXAMINATIONS = (_schema, _keys, _administrators, _hashing, _clock, _redis)
