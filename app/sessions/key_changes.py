"""Changes of the working keys with all that follows from them: the sessions under a retired refresh key end.

The command line and an API are two callers of the same function.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from ..actors import Actor
from ..errors import InvalidRequest, NotFound
from ..settings import Algorithm
from ..storage.tasks import TIME_LIMIT
from ..tokens.key_set import Use
from ..tokens.keys import READ_BY_ALL, Keys
from ..tokens.primitives import RsaBits
from .ending import Ending

LAST_SIGN_IN = READ_BY_ALL + TIME_LIMIT
"""How long after its retirement a sign-in or refresh under a refresh key may still be answered.

A process may have taken the key just before it read that the key is retired, and answers within `TIME_LIMIT` or not at
all. Where its transaction commits later than that, nobody got a token, and no process takes one of the retired key.
"""


@dataclass(frozen=True, slots=True)
class Generated:
    """A key that was made."""

    kid: str
    keys: Sequence[Mapping[str, Any]]
    """All keys of its use, as `Keys.list` has them."""


@dataclass(frozen=True, slots=True)
class Retired:
    """A key that was retired."""

    kid: str
    use: Use
    retired_before: datetime | None
    """When somebody had retired it already; None where this call did."""
    signed: bool
    """Whether it was the one that signed until this call."""
    keys: Sequence[Mapping[str, Any]]
    """All keys of its use after that, as `Keys.list` has them."""
    ended: int | None = None
    """How many sessions of a refresh key were ended at once. None for an access key, which has no sessions."""
    ended_later: int | None = None
    """How many more were ended after `LAST_SIGN_IN`: other processes still signed in under the key."""


@dataclass(frozen=True, slots=True)
class Replaced:
    """New keys in the place of all."""

    access_kid: str
    refresh_kid: str
    keys: Sequence[Mapping[str, Any]]
    """All keys after that, as `Keys.list` has them."""
    ended: int = 0
    """How many sessions were ended."""


class KeyChanges:
    """Makes, retires and replaces working keys."""

    def __init__(self, keys: Keys, ending: Ending, algorithm: Algorithm) -> None:
        """`algorithm` is the one of access keys where none is named."""
        self._keys = keys
        self._ending = ending
        self._algorithm = algorithm

    async def generate(
        self, use: Use, algorithm: Algorithm | None = None, bits: RsaBits | None = None, *, by: Actor
    ) -> Generated:
        """Makes a key. It signs after `PUBLISHED_FOR`, when every process knows it.

        Args:
            use: the tokens that it is for.
            algorithm: of an access key; None: the one of the settings.
            bits: of an RS256 key; None: 2048.
            by: who asked for it.

        Raises:
            InvalidRequest: algorithm or bits do not go with the use, or the bits with the algorithm.
            Conflict: all numbers of refresh keys are taken.
            TemporarilyUnavailable: the database is away.
        """
        if use == "refresh" and (algorithm or bits):
            raise InvalidRequest("algorithm", description="--algorithm and --bits are for access keys.")
        if bits and (algorithm or self._algorithm) != "RS256":
            raise InvalidRequest("bits", description="--bits is for RS256 keys.")
        kid = await self._keys.generate(use, algorithm, bits or 2048, by=by)
        return Generated(kid, [key for key in await self._keys.list() if key["use"] == use])

    async def retire(self, kid: str, *, by: Actor, begun: Callable[[Retired], object] | None = None) -> Retired:
        """Retires a key. Each process refuses its tokens within `READ_BY_ALL`, and its sessions have ended on return.

        For a refresh key it takes `LAST_SIGN_IN` and longer. If it breaks off, call it again: it goes on.

        Args:
            kid: the key's id.
            by: who asked for it.
            begun: called when the key is retired, before its sessions end, with what is known by then.

        Raises:
            NotFound: there is no such key.
            Conflict: it is the only one of its use that can sign by now.
            TemporarilyUnavailable: the database is away. The key may be retired, and sessions may be left.
        """
        before = {key["kid"]: key for key in await self._keys.list()}.get(kid)
        if before is None:
            raise NotFound("no such key")
        number = await self._keys.retire(kid, by=by)
        keys = [key for key in await self._keys.list() if key["use"] == before["use"]]
        done = Retired(kid, before["use"], before["retired_at"], before["status"] == "signs", keys)
        if begun is not None:
            begun(done)
        if number is None:
            return done
        ended, ended_later = await _twice(lambda: self._ending.end_under(number, by=by))
        return replace(done, ended=ended, ended_later=ended_later)

    async def replace(self, *, by: Actor, begun: Callable[[Replaced], object] | None = None) -> Replaced:
        """Retires all keys, makes new ones that sign at once, and ends all sessions: for a master secret that leaked.

        No key need be readable for it. It takes `LAST_SIGN_IN` and longer. If it breaks off, the keys are replaced and
        no session can be refreshed. Called again, it replaces the new keys too.

        Args:
            by: who asked for it.
            begun: called when the keys are replaced, before the sessions end, with what is known by then.

        Raises:
            Conflict: all numbers of refresh keys are taken.
            TemporarilyUnavailable: the database is away. The keys may be replaced, and sessions may be left.
        """
        access_kid, refresh_kid, number = await self._keys.replace(by=by)
        done = Replaced(access_kid, refresh_kid, await self._keys.list())
        if begun is not None:
            begun(done)
        return replace(done, ended=sum(await _twice(lambda: self._ending.end_all_but_under(number, by=by))))


async def _twice(end: Callable[[], Awaitable[int]]) -> tuple[int, int]:
    """Ends sessions at once, and those that began meanwhile when no more can begin; how many each time."""
    at_once = await end()
    await asyncio.sleep(LAST_SIGN_IN.total_seconds())
    return at_once, await end()
