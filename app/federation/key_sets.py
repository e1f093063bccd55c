"""The key sets of issuers, kept in the memory of a process.

A key set is fetched when a token needs it: at its first token, when a token names an unknown key, and when the set is
older than `FRESH`. For each issuer and process, one fetch is under way at a time and one begins in `COOL_DOWN`,
whatever the load. Anyone can write a token with an unknown key, so tokens alone must not make Keyturn send requests.

No outage becomes a verdict on a token:

1. A key that is in the set verifies, also while the issuer is away. A withdrawn key stops at the first token after
   `FRESH`, if the issuer answers.
2. A key is called unknown only if a fetch that began after its token came does not have it. A weak one is called weak
   as long as a sound one would verify.
3. In every other case, the answer is 503, and a later attempt finds out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic

from ..errors import TemporarilyUnavailable
from ..log import get_logger
from ..outgoing.sending import LIMIT
from ..storage.tasks import keep
from .discovery import Discovery
from .fetching import Fetching
from .issuer import Configured
from .jwks import ExternalKey, JwkSet, jwk_set_of
from .verdicts import refused

COOL_DOWN = timedelta(seconds=10)
"""The least time from the beginning of one fetch to the next."""

FRESH = timedelta(minutes=10)
"""The age from which a key set is fetched again before it verifies, if the issuer answers."""

_OK = 200
_NEVER = float("-inf")
_NONE = JwkSet({}, frozenset())

_log = get_logger()


@dataclass(slots=True)
class _Held:
    """The key set of one issuer. Moments are of the monotonic clock."""

    of: Configured
    keys: JwkSet = _NONE
    read_at: float = _NEVER
    """When the fetch began that brought the keys."""
    begun_at: float = _NEVER
    """When the last fetch began."""
    asked_at: float = _NEVER
    """When the last fetch began that has ended, well or not."""
    failure: str = ""
    """Why that fetch failed. Empty if it did not."""
    fetch: asyncio.Task[None] | None = None

    @property
    def is_old(self) -> bool:
        return monotonic() - self.read_at > FRESH.total_seconds()

    @property
    def cool_down(self) -> timedelta:
        """How long no fetch may begin. Zero or less: one may begin now."""
        return COOL_DOWN - timedelta(seconds=min(monotonic() - self.begun_at, 1e6))


class KeySets:
    """The key sets of all issuers."""

    def __init__(self, fetching: Fetching, discovery: Discovery) -> None:
        """Fetches nothing yet."""
        self._fetching = fetching
        self._discovery = discovery
        self._held: dict[str, _Held] = {}

    async def key(self, of: Configured, kid: str) -> ExternalKey:
        """The key of this id.

        Raises:
            TemporarilyUnavailable: the issuer's keys can't be fetched now, and this one is not among those in memory.
            UnacceptableToken: the issuer does not publish the key, or the key is too weak.
        """
        came = monotonic()
        held = self._of(of)
        while True:
            known, asked = kid in held.keys, held.asked_at >= came
            if known and (asked or not held.is_old):
                return _sound(held.keys, kid)
            if not known and asked and not held.failure:
                self._discovery.doubt(of)  # the key may be at another place by now
                raise refused("unknown_key")
            fetch = held.fetch or self._begin(held)
            # After a failure, a key in memory counts at once, and the next fetch goes on behind it.
            if known and (fetch is None or held.failure):
                return _sound(held.keys, kid)
            if fetch is None:
                raise TemporarilyUnavailable(held.failure or "unknown key in the cool-down", retry_after=held.cool_down)
            await asyncio.shield(fetch)

    async def examine(self, of: Configured) -> JwkSet:
        """Asks an issuer for its document and its key set now, and keeps nothing. The issuer need not be in force.

        Raises:
            WrongDocument: the document is another issuer's.
            NoDocument: the issuer needs a document, and has none.
            AddressRefused: a host has an address that the issuer may not have.
            TemporarilyUnavailable: the issuer is away, or its key set can't be used. The cause says why.
        """
        return await self._read(of, self._discovery.examine)

    def follow(self, in_force: Mapping[str, Configured]) -> None:
        """Forgets the keys of issuers that are no longer in force."""
        for name in self._held.keys() - in_force.keys():
            del self._held[name]

    async def _read(self, of: Configured, place: Callable[[Configured], Awaitable[str]]) -> JwkSet:
        """The key set from its place.

        Raises:
            TemporarilyUnavailable: the issuer is away, or its key set can't be used. The cause says why.
        """
        try:
            async with asyncio.timeout(LIMIT.total_seconds()):  # for discovery and key set together
                status, document = await self._fetching.get_json(await place(of), of=of)
        except TimeoutError:
            raise TemporarilyUnavailable(f"issuer {of.name}: no answer in time") from None
        if status != _OK:
            raise TemporarilyUnavailable(f"issuer {of.name}: its key set answers {status}")
        try:
            return jwk_set_of(document)
        except ValueError as e:
            raise TemporarilyUnavailable(f"issuer {of.name}: its key set can't be used: {e}") from None

    def _of(self, of: Configured) -> _Held:
        """The key set of an issuer. None is kept from before a change of the place that its keys come from."""
        held = self._held.get(of.name)
        if held is None or held.of.issuer.place != of.issuer.place:
            held = self._held[of.name] = _Held(of)
        held.of = of
        return held

    def _begin(self, held: _Held) -> asyncio.Task[None] | None:
        """Begins a fetch. None in the cool-down."""
        if held.cool_down > timedelta(0):
            return None
        held.begun_at = monotonic()
        held.fetch = asyncio.create_task(self._fetch(held, held.begun_at))
        keep(held.fetch)  # a task of its own: a caller that leaves does not end it for the others
        return held.fetch

    async def _fetch(self, held: _Held, began: float) -> None:
        """Fetches the key set of an issuer. If that fails, the former keys stay."""
        failure = "the fetch was ended"
        try:
            held.keys, held.read_at, failure = await self._read(held.of, self._discovery.jwks_uri), began, ""
        except Exception as e:  # noqa: BLE001  # whatever it was, the former keys stay and the callers go on
            failure = e.cause if isinstance(e, TemporarilyUnavailable) else f"{type(e).__name__}: {e}"
            if failure != held.failure:  # one line for an outage
                _log.warning("issuer_keys_not_read", issuer=held.of.name, cause=failure, kept=bool(held.keys.keys))
            self._discovery.doubt(held.of)
        finally:
            held.asked_at, held.failure, held.fetch = began, failure, None


def _sound(keys: JwkSet, kid: str) -> ExternalKey:
    """A key of the set.

    Raises:
        UnacceptableToken: the key is too weak.
    """
    if kid in keys.weak:
        raise refused("weak_key")
    return keys.keys[kid]
