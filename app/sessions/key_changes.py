"""Changes of the working keys and their consequences: the sessions under a retired refresh key end.

The command line and an API are two callers of the same function.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from ..actors import Actor
from ..errors import Conflict, InvalidRequest, NotFound, TemporarilyUnavailable
from ..settings import Algorithm
from ..storage.copies import READ_BY_ALL
from ..storage.tasks import TIME_LIMIT, keep
from ..tokens.key_rotation import KeyRotation
from ..tokens.key_set import Use
from ..tokens.keys import Keys
from ..tokens.primitives import RsaBits
from .sweeping import Sweeping

LAST_SIGN_IN = READ_BY_ALL + TIME_LIMIT
"""How long after the retirement of a refresh key a sign-in or refresh under it may still be answered.

1. A process may use the key until it has read that the key is retired, which takes `READ_BY_ALL` at most.
2. The process then answers within `TIME_LIMIT` or not at all.
3. If its transaction commits later than that, no client got a token.
"""


@dataclass(frozen=True, slots=True)
class Generated:
    """A key that was made."""

    kid: str
    keys: Sequence[Mapping[str, Any]]
    """All keys of its use, as `Keys.list` returns them."""


@dataclass(frozen=True, slots=True)
class Retired:
    """A key that was retired."""

    kid: str
    use: Use
    retired_before: datetime | None
    """The moment of an earlier retirement. None if this call retired the key."""
    signed: bool
    """Whether the key signed until this call."""
    keys: Sequence[Mapping[str, Any]]
    """All keys of its use after the retirement, as `Keys.list` returns them."""
    ended: int | None = None
    """How many sessions of a refresh key ended at once. None for an access or a cookie key, which has no sessions."""
    ended_later: int | None = None
    """How many more ended after `LAST_SIGN_IN`, because other processes started them meanwhile."""


@dataclass(frozen=True, slots=True)
class Replaced:
    """New keys in the place of all old keys."""

    access_kid: str
    refresh_kid: str
    cookie_kid: str
    keys: Sequence[Mapping[str, Any]]
    """All keys after the change, as `Keys.list` returns them."""
    ended: int = 0
    """How many sessions ended."""


@dataclass(frozen=True, slots=True)
class SignedOut:
    """The new keys, after everyone was signed out."""

    access_kid: str
    refresh_kid: str


class KeyChanges:
    """Makes, rotates, retires and replaces working keys."""

    def __init__(self, keys: Keys, rotation: KeyRotation, sweeping: Sweeping) -> None:
        self._keys = keys
        self._rotation = rotation
        self._sweeping = sweeping

    async def generate(
        self, use: Use, algorithm: Algorithm | None = None, bits: RsaBits | None = None, *, by: Actor
    ) -> Generated:
        """Makes a key, which signs or seals after `PUBLISHED_FOR`, when every process knows it.

        Args:
            use: the tokens that the key is for, or the cookies.
            algorithm: of an access key. None: as in the settings, which may go on with that of the newest key.
            bits: of an RS256 key. None: 2048.
            by: the actor.

        Raises:
            InvalidRequest: algorithm or bits do not go with the use, or the bits with the algorithm.
            Conflict: all numbers of refresh keys are taken.
            TemporarilyUnavailable: the database is away.
        """
        await self._check(use, algorithm, bits)
        kid = await self._keys.generate(use, algorithm, bits or 2048, by=by)
        return Generated(kid, await self._of_use(use))

    async def rotate(
        self, use: Use, algorithm: Algorithm | None = None, bits: RsaBits | None = None, *, by: Actor
    ) -> Generated:
        """Makes a key as `generate`, and plans when the others of its use retire: when their last token is over.

        Nobody is signed out, and no session ends. A repeated call, while the new key is only published, makes none and
        returns the same. Arguments and errors are those of `generate`.
        """
        await self._check(use, algorithm, bits)
        kid = await self._rotation.rotate(use, algorithm, bits, by=by)
        return Generated(kid, await self._of_use(use))

    async def signs(self, kid: str) -> Generated:
        """Waits until a published key signs. Every process knows it by then.

        Raises:
            Conflict: the key was retired meanwhile, or another key took its place.
            TemporarilyUnavailable: the database is away.
        """
        while True:
            keys = await self._keys.list()
            key = next((key for key in keys if key["kid"] == kid), None)
            if key is None or key["status"] not in {"published", "signs"}:
                raise Conflict("no longer published", description=f"The key {kid} does not sign: see the list of keys.")
            if key["status"] == "signs":
                return Generated(kid, [each for each in keys if each["use"] == key["use"]])
            await asyncio.sleep(1)

    async def sign_everyone_out(self, *, by: Actor) -> SignedOut:
        """Ends all sessions of all users by one act on the keys. No row of a session is written.

        On return, this process refuses all tokens made so far. Every other process that reaches the database does so
        within `READ_BY_ALL`, and mostly within a second. New sign-ins work at once.

        Raises:
            Conflict: all numbers of refresh keys are taken.
            TemporarilyUnavailable: the database is away.
        """
        kids = await self._keys.sign_everyone_out(by=by)
        with suppress(TemporarilyUnavailable):  # the act is done, and the pulse will tell this process of it
            await self._keys.catch_up()
        return SignedOut(kids["access"], kids["refresh"])

    async def _check(self, use: Use, algorithm: Algorithm | None, bits: RsaBits | None) -> None:
        if use != "access" and (algorithm or bits):
            raise InvalidRequest("algorithm", description="algorithm and bits are for access keys.")
        if bits and await self._keys.algorithm(algorithm) != "RS256":
            raise InvalidRequest("bits", description="bits is for RS256 keys.")

    async def _of_use(self, use: Use) -> Sequence[Mapping[str, Any]]:
        return [key for key in await self._keys.list() if key["use"] == use]

    async def retire(self, kid: str, *, by: Actor, begun: Callable[[Retired], object] | None = None) -> Retired:
        """Retires a key. Each process refuses what it made within `READ_BY_ALL`, and its sessions have ended on return.

        For a refresh key, this takes `LAST_SIGN_IN` and longer. If a call breaks off, call it again to end the rest.

        Args:
            kid: the key's id.
            by: the actor.
            begun: called when the key is retired and before its sessions end, with the result so far.

        Raises:
            NotFound: the table has no such key.
            Conflict: no other key of its use can sign by now.
            TemporarilyUnavailable: the database is away. The key may be retired, and some of its sessions may live.
        """
        before = {key["kid"]: key for key in await self._keys.list()}.get(kid)
        if before is None:
            raise NotFound("no such key")
        number = await self._keys.retire(kid, by=by)
        keys = await self._of_use(before["use"])
        done = Retired(kid, before["use"], before["retired_at"], before["status"] == "signs", keys)
        if begun is not None:
            begun(done)
        if number is None:
            return done
        ended, ended_later = await _twice(lambda: self._sweeping.end_under(number, by=by))
        return replace(done, ended=ended, ended_later=ended_later)

    async def begin_retirement(self, kid: str, *, by: Actor) -> Retired:
        """Retires a key as `retire` does, and returns when that is done. The sessions end in a task of its own.

        The raised errors are those of `retire`. If the process stops, a further call ends the rest.
        """
        begun: asyncio.Future[Retired] = asyncio.get_running_loop().create_future()
        ending = asyncio.create_task(self.retire(kid, by=by, begun=begun.set_result))
        keep(ending)
        await asyncio.wait({begun, ending}, return_when=asyncio.FIRST_COMPLETED)
        return begun.result() if begun.done() else await ending

    async def replace(self, *, by: Actor, begun: Callable[[Replaced], object] | None = None) -> Replaced:
        """Retires all keys, makes new ones in use at once, and ends all sessions, after a leak of the master secret.

        This works also if no key can be unsealed, and takes `LAST_SIGN_IN` and longer. If a call breaks off when the
        keys are replaced, no session can be refreshed. A further call replaces the new keys too.

        Args:
            by: the actor.
            begun: called when the keys are replaced and before the sessions end, with the result so far.

        Raises:
            Conflict: all numbers of refresh keys are taken.
            TemporarilyUnavailable: the database is away. The keys may be replaced, and some sessions may live.
        """
        kids, number = await self._keys.replace(by=by)
        done = Replaced(kids["access"], kids["refresh"], kids["cookie"], await self._keys.list())
        if begun is not None:
            begun(done)
        return replace(done, ended=sum(await _twice(lambda: self._sweeping.end_all_but_under(number, by=by))))


async def _twice(end: Callable[[], Awaitable[int]]) -> tuple[int, int]:
    """Ends sessions at once, and again after `LAST_SIGN_IN`, when no more can start. Returns how many each time."""
    at_once = await end()
    await asyncio.sleep(LAST_SIGN_IN.total_seconds())
    return at_once, await end()
