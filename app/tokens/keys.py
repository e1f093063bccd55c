"""The key set of one process, kept in memory and up to date.

The key set is a copy of the table, which follows the version of the keys in the pulse: see `app/storage/copies.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime, timedelta
from time import monotonic
from typing import Any, TypeVar

from sqlalchemy import select

from ..errors import ConfigurationError, InvalidGrant, Reason, TemporarilyUnavailable
from ..settings import Algorithm
from ..storage.copies import READ_BY_ALL, Copy
from ..storage.database import Database
from ..storage.tables import Pulse
from .key_seal import KeySeal
from .key_set import AccessKey, CookieKey, KeySet
from .key_table import KeyTable
from .refresh_tokens import RefreshKey, RefreshToken, verify

_N = TypeVar("_N")
_K = TypeVar("_K")

UNREAD_LIMIT = timedelta(seconds=30)
"""If a process has not read the version for this long, an unknown key may be a new one, and is not called junk."""


class Keys(KeyTable):
    """The table, and its key set in memory, which is at most `READ_BY_ALL` behind the table."""

    def __init__(self, db: Database, seal: KeySeal, algorithm: Algorithm | None) -> None:
        """The key set is empty until `load` is called."""
        super().__init__(db, seal, algorithm)
        self._set = KeySet({}, {}, {}, {}, {})
        self._presentable: Mapping[int, RefreshKey] = {}  # all refresh keys, also retired ones
        self._copy = Copy(self.load, "keys_not_read")
        self._read_at = float("-inf")  # when the last reading of the pulse with the version of the key set began
        self._signing: tuple[AccessKey, RefreshKey] | None = None
        self._signing_cookie: CookieKey | None = None
        self._one_load = asyncio.Lock()  # so that no older reading of the table takes the place of a newer one

    # -- for the tokens

    @property
    def signing_access(self) -> AccessKey:
        """The key that signs access tokens now.

        Raises:
            TemporarilyUnavailable: this process has no key set in force.
        """
        if self._signing is None:
            raise TemporarilyUnavailable("no key set in force")
        return self._signing[0]

    @property
    def signing_refresh(self) -> RefreshKey:
        """The key under which refresh tokens are issued now.

        Raises:
            TemporarilyUnavailable: this process has no key set in force.
        """
        if self._signing is None:
            raise TemporarilyUnavailable("no key set in force")
        return self._signing[1]

    @property
    def signing_cookie(self) -> CookieKey:
        """The key that seals cookies now.

        Raises:
            TemporarilyUnavailable: this process has no key set in force, or the table has no cookie key.
        """
        if self._signing_cookie is None:
            raise TemporarilyUnavailable("no cookie key in force")
        return self._signing_cookie

    def access(self, kid: str) -> AccessKey | None:
        """The access key of this id that still verifies, or None.

        Raises:
            TemporarilyUnavailable: as `refresh`.
        """
        return self._known(self._set.access, kid)

    def refresh(self, number: int) -> RefreshKey | None:
        """The refresh key of this number, or None if there is none or it is retired.

        Raises:
            TemporarilyUnavailable: the key is unknown, and may be new: this process has not read the version for
                `UNREAD_LIMIT`.
        """
        return self._known(self._set.refresh, number)

    def cookie(self, kid: bytes) -> CookieKey | None:
        """The cookie key of this id that still opens, or None.

        Raises:
            TemporarilyUnavailable: as `refresh`.
        """
        return self._known(self._set.cookie, kid)

    def _known(self, keys: Mapping[_N, _K], name: _N) -> _K | None:
        key = keys.get(name)
        if key is None:
            self._check_age()
        return key

    def _check_age(self) -> None:
        if monotonic() - self._read_at > UNREAD_LIMIT.total_seconds():
            raise TemporarilyUnavailable("unknown key, and the key set is out of date")

    def retired(self, number: int) -> Reason | None:
        """Why the sessions under this refresh key are over or about to end. None if the key was not retired."""
        if number not in self._set.retired:
            return None
        return self._set.retired_for.get(number, "revoked_by_admin")

    def verify_refresh_token(self, text: str) -> RefreshToken:
        """The refresh token that a text spells, found without I/O. If its key is `retired`, the token opens nothing.

        Raises:
            InvalidGrant: the token is not one of Keyturn's.
            TemporarilyUnavailable: as `refresh`.
        """
        try:
            return verify(text, self._presentable)
        except KeyError:
            self._check_age()
        raise InvalidGrant("unknown refresh key", outcome="junk")

    def jwks(self) -> dict[str, Any]:
        """The public keys (RFC 7517 section 5).

        Raises:
            TemporarilyUnavailable: this process has no key set in force.
        """
        if self._signing is None:
            raise TemporarilyUnavailable("no key set in force")
        return {"keys": [jwk for key in self._set.access.values() if (jwk := key.jwk())]}

    # -- reading

    async def load(self) -> None:
        """Reads the table.

        Raises:
            ConfigurationError: a row was sealed under another master secret, or was changed.
            TemporarilyUnavailable: the database is away.
        """
        async with self._one_load:
            await self._load()

    async def _load(self) -> None:
        began = monotonic()
        self._set, version, now = await self.read()
        self._go_by(now)
        self._read_at = began
        self._copy.was_read(version, began)

    async def catch_up(self) -> None:
        """Reads the table if it has changed since this process read it: a sign-in must not begin under retired keys.

        Raises:
            TemporarilyUnavailable: the database is away, or the keys have changed and can't be read.
        """
        async with self._db.look() as connection:
            version = await connection.scalar(select(Pulse.keys))
        if version == self._copy.version:
            return
        async with self._one_load:
            if version == self._copy.version:  # another sign-in has read the table meanwhile
                return
            try:
                await self._load()
            except ConfigurationError as e:
                raise TemporarilyUnavailable(f"the keys have changed and can't be read: {e}") from e

    async def known_to_all(self, key: RefreshKey) -> None:
        """Waits until every process knows a key that signed as soon as it was made, in the place of other keys.

        Until then, another process would refuse what the key made. `READ_BY_ALL` after its making all know it.
        """
        made = self._set.unpublished.get(key.number)
        if made is not None:
            left = made + READ_BY_ALL - self._db.clock()
            await asyncio.sleep(min(left, READ_BY_ALL).total_seconds())  # a clock that went back must not add to it

    def _go_by(self, now: datetime) -> None:
        """Takes planned retirements into account, and chooses the keys that sign at a moment."""
        self._set = self._set.as_of(now)
        self._presentable = {**self._set.refresh, **self._set.retired}
        self._signing = self._set.signing(now)
        self._signing_cookie = self._set.signing_cookie(now)

    def follow(self, version: int, *, now: datetime, began: float) -> None:
        """Takes a reading of the pulse, and reads the table again if the version of the keys has changed.

        A process that has known for longer than `READ_BY_ALL` that its key set is old goes by none: a retired key may
        be in it.

        Args:
            version: the version of the keys in the pulse.
            now: the database's clock at the reading. With it, a published key begins to sign when its time comes, and
                a key whose retirement was planned for then is retired.
            began: when the reading began, in seconds of the monotonic clock.
        """
        match self._copy.follow(version, began):
            case "current":
                self._read_at = max(self._read_at, began)
                self._go_by(now)
            case "too old":
                self._set, self._presentable, self._signing = KeySet({}, {}, {}, {}, {}), {}, None
                self._signing_cookie = None
                self._read_at = float("-inf")  # so that every key is unknown for now, and no token is junk
