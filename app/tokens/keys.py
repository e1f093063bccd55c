"""The key set: working keys as sealed rows, one of a use signs, all that are not retired verify.

A row is sealed with AES-256-GCM under a key that HKDF (RFC 5869) derives from the master secret; the row's id, use,
algorithm and number are associated data, so that no sealed key can be passed off as another (a changed bit stops the
start). Working keys are random and never derived from each other or from the master secret: whoever learns one of them
learns no other.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, TypeVar, get_args

from sqlalchemy import ColumnElement, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ..actors import Actor
from ..errors import Conflict, InvalidGrant, NotFound, TemporarilyUnavailable
from ..settings import Algorithm, ConfigurationError
from ..storage.database import Database, monotonic, own_task
from ..storage.tables import Key
from .key_set import AccessKey, KeySet, Use, kid_of, new_secret, signing
from .primitives import KEY_BYTES, RsaBits, Sealing, derive
from .refresh_tokens import RefreshKey, RefreshToken, key_number, verify

_N = TypeVar("_N")
_K = TypeVar("_K")

POLL = timedelta(seconds=15)
"""Each process reads the key set this often."""

PUBLISHED_FOR = timedelta(seconds=60)
"""How long a new key is known before it signs: four polls, so that no process meets a token of a key it never saw."""

READ_BY_ALL = POLL + timedelta(seconds=5)
"""How long after a change of the table every process that reaches the database goes by it."""

UNREAD_LIMIT = timedelta(seconds=30)
"""A process that could not read the key set for this long can't call an unknown refresh key junk any more."""


class Keys:
    """The key set of this process, kept at most `POLL` behind the table."""

    def __init__(self, db: Database, master: bytes, algorithm: Algorithm) -> None:
        """Nothing is read yet: `load` first."""
        self._db = db
        self._sealing = Sealing(derive(master, b"keyturn sealed working key v1"))
        self._algorithm = algorithm
        self._set = KeySet({}, {}, {}, {})
        self._read_at = float("-inf")
        self._signing: tuple[AccessKey, RefreshKey] | None = None

    # -- what the tokens ask

    @property
    def signing_access(self) -> AccessKey:
        """The key that signs access tokens now."""
        return self._signing_now()[0]

    @property
    def signing_refresh(self) -> RefreshKey:
        """The key under which refresh tokens are issued now."""
        return self._signing_now()[1]

    def _signing_now(self) -> tuple[AccessKey, RefreshKey]:
        if self._signing is None:
            raise TemporarilyUnavailable("no key set was read yet")
        return self._signing

    def access(self, kid: str) -> AccessKey | None:
        """The access key of this id that still verifies, or None.

        Raises:
            TemporarilyUnavailable: as `refresh`.
        """
        return self._known(self._set.access, kid)

    def refresh(self, number: int) -> RefreshKey | None:
        """The refresh key of this number, or None if there is none or it is retired.

        Raises:
            TemporarilyUnavailable: it is unknown, and this process could not read the key set for so long that it
                may be a new one.
        """
        return self._known(self._set.refresh, number)

    def _known(self, keys: Mapping[_N, _K], name: _N) -> _K | None:
        key = keys.get(name)
        if key is None and monotonic() - self._read_at > UNREAD_LIMIT.total_seconds():
            raise TemporarilyUnavailable("unknown key, and the key set is out of date")
        return key

    def retired(self, number: int) -> bool:
        """Whether there was a refresh key of this number, and its sessions are over or about to be."""
        return number in self._set.retired

    def verify_refresh_token(self, text: str) -> RefreshToken:
        """The refresh token that a text spells, without any I/O. Its key may be `retired`: then it opens nothing.

        Raises:
            InvalidGrant: we did not issue it.
            TemporarilyUnavailable: as `refresh`.
        """
        number = key_number(text)
        if number is None:
            raise InvalidGrant("not of a refresh token's form")
        key = self._set.retired.get(number) or self.refresh(number)
        if key is None:
            raise InvalidGrant("unknown refresh key")
        token = verify(text, key)
        if token is None:
            raise InvalidGrant("tag does not match")
        return token

    def jwks(self) -> dict[str, Any]:
        """The public keys (RFC 7517 section 5)."""
        return {"keys": [jwk for key in self._set.access.values() if (jwk := key.jwk())]}

    # -- reading

    async def load(self) -> None:
        """Reads the table. What a later release made of a use or algorithm that this one does not know is left alone.

        Raises:
            ConfigurationError: a row was sealed under another master secret, or changed.
            TemporarilyUnavailable: the database is away.
        """
        began = monotonic()
        async with self._db.look() as connection:
            rows = (
                await connection.execute(
                    select(Key.__table__, self._db.now().label("now"))
                    .where(
                        or_(Key.retired_at.is_(None), Key.use == "refresh"),
                        _known_here(),
                    )
                    .order_by(Key.created_at, Key.kid)
                )
            ).all()
        access: dict[str, AccessKey] = {}
        refresh: dict[int, RefreshKey] = {}
        retired: dict[int, RefreshKey] = {}
        signs_from: dict[str | int, datetime] = {}
        for row in rows:
            if row.retired_at is not None:
                # What can't be unsealed any more only says less to its holders.
                with suppress(ConfigurationError):
                    retired[row.number] = RefreshKey.derive(row.number, self._unseal(row))
                continue
            secret = self._unseal(row)
            if row.use == "refresh":
                refresh[row.number] = RefreshKey.derive(row.number, secret)
                signs_from[row.number] = row.signs_from
            else:
                access[row.kid] = AccessKey.of(row.kid, row.algorithm, secret)
                signs_from[row.kid] = row.signs_from
        self._set = KeySet(access, refresh, retired, signs_from)
        self._signing = self._set.signing(rows[0].now) if rows else None
        self._read_at = began

    async def poll(self, report: Callable[[Exception], object], at_once: asyncio.Event) -> None:
        """Reads the table again and again, also when `at_once` is set; what goes wrong is reported and tried again."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL.total_seconds()):
                    await at_once.wait()
            at_once.clear()
            try:
                await self.load()
            except Exception as e:  # noqa: BLE001  # whatever it was, the next poll tries again
                report(e)

    def _unseal(self, row: Any) -> bytes:
        secret = self._sealing.open(row.sealed, _associated(row.kid, row.use, row.algorithm, row.number))
        if secret is None:
            raise ConfigurationError(
                f"key {row.kid} can't be unsealed: KEYTURN_SECRET is not the one it was sealed under, "
                "or the row was changed; where that secret is lost: keyturn keys replace --sign-everyone-out"
            )
        return secret

    # -- writing

    @own_task
    async def make_first(self, *, by: Actor) -> bool:
        """Makes the first key of each use where there is none; two starts at once make one. True if it made any."""
        live = select(Key.use).where(Key.retired_at.is_(None))
        async with self._db.look() as connection:
            if set((await connection.scalars(live)).all()) == {"access", "refresh"}:
                return False
        secret = new_secret(self._algorithm)
        async with self._db.begin() as tx:
            await self._lock(tx)
            there = set((await tx.scalars(live)).all())
            if "access" not in there:
                await self._insert(tx, "access", self._algorithm, secret, timedelta(0))
            if "refresh" not in there:
                await self._insert(tx, "refresh", None, os.urandom(KEY_BYTES), timedelta(0))
        return there != {"access", "refresh"}

    @own_task
    async def generate(self, use: Use, algorithm: Algorithm | None = None, bits: RsaBits = 2048, *, by: Actor) -> str:
        """Makes a key, which signs from `PUBLISHED_FOR` on. Its id (for refresh: its number is in `list`).

        Raises:
            Conflict: all numbers of refresh keys are taken.
        """
        made = (algorithm or self._algorithm) if use == "access" else None
        # Before the transaction: to find the primes of an RSA key may take longer than a transaction may last.
        secret = new_secret(made, bits) if made else os.urandom(KEY_BYTES)
        async with self._db.begin() as tx:
            await self._lock(tx)
            return await self._insert(tx, use, made, secret, PUBLISHED_FOR)

    @own_task
    async def retire(self, kid: str, *, by: Actor) -> int | None:
        """Ends a key: its tokens are refused within `READ_BY_ALL` everywhere. Done again, it changes nothing.

        Returns:
            The number of a refresh key: `Sessions.end_under` has to end its sessions.

        Raises:
            NotFound: there is no such key.
            Conflict: it is the only one of its use that can sign by now.
        """
        async with self._db.begin() as tx:
            await self._lock(tx)
            key = (await tx.execute(select(Key.use, Key.number, Key.retired_at).where(Key.kid == kid))).one_or_none()
            if key is None:
                raise NotFound("no such key")
            use, number, retired_at = key
            if retired_at is not None:
                return number
            others = select(func.count()).where(
                Key.use == use,
                Key.kid != kid,
                Key.retired_at.is_(None),
                Key.signs_from <= self._db.now(),
                _known_here(),
            )
            if not await tx.scalar(others):
                raise Conflict(
                    "the only key that can sign",
                    description=f"It is the only {use} key that can sign. Generate another and wait "
                    f"{PUBLISHED_FOR // timedelta(seconds=1)} seconds.",
                )
            await tx.execute(update(Key).where(Key.kid == kid).values(retired_at=self._db.now()))
        return number

    @own_task
    async def replace(self, *, by: Actor) -> tuple[str, str, int]:
        """Retires all keys, also those that this master secret can't unseal, and makes new ones that sign at once.

        Numbers of refresh keys stay taken, so that no session passes for one under a new key.

        Returns:
            The ids of the new access key and refresh key, and the latter's number:
            `Sessions.end_all_but_under` has to end the sessions under others.

        Raises:
            Conflict: all numbers of refresh keys are taken.
        """
        secret = new_secret(self._algorithm)  # before the transaction, as in `generate`
        async with self._db.begin() as tx:
            await self._lock(tx)
            await tx.execute(update(Key).where(Key.retired_at.is_(None)).values(retired_at=self._db.now()))
            access = await self._insert(tx, "access", self._algorithm, secret, timedelta(0))
            refresh = await self._insert(tx, "refresh", None, os.urandom(KEY_BYTES), timedelta(0))
            number = await tx.scalar(select(Key.number).where(Key.kid == refresh))
        assert number is not None
        return access, refresh, number

    async def list(self) -> list[dict[str, Any]]:
        """All keys by age, without secrets.

        `status` is retired, published (does not sign yet), signs, verifies, or unknown (a later release made it).
        """
        query = select(Key.__table__, self._db.now().label("now"), _known_here().label("known")).order_by(
            Key.created_at, Key.kid
        )
        async with self._db.look() as connection:
            rows = (await connection.execute(query)).all()
        signs = set()
        for use in get_args(Use):
            here = [row for row in rows if row.use == use and row.known and row.retired_at is None]
            if here:
                signs.add(signing({row.kid: row.signs_from for row in here}, here[0].now))

        def status(row: Any) -> str:
            if row.retired_at is not None:
                return "retired"
            if not row.known:
                return "unknown"
            if row.kid in signs:
                return "signs"
            return "published" if row.signs_from > row.now else "verifies"

        return [
            {
                "kid": row.kid,
                "use": row.use,
                "algorithm": row.algorithm,
                "number": row.number,
                "status": status(row),
                "created_at": row.created_at,
                "signs_from": row.signs_from,
                "retired_at": row.retired_at,
            }
            for row in rows
        ]

    async def _lock(self, tx: AsyncConnection) -> None:
        # One maker at a time, over all processes. SQLite's transaction holds the write lock already.
        if self._db.is_postgres:
            await tx.execute(select(func.pg_advisory_xact_lock(LOCK_KEYS)))

    async def _insert(
        self, tx: AsyncConnection, use: Use, algorithm: Algorithm | None, secret: bytes, published_for: timedelta
    ) -> str:
        now = await tx.scalar(select(self._db.now()))
        assert now is not None
        number = None
        if algorithm is None:
            taken = set((await tx.scalars(select(Key.number).where(Key.number.is_not(None)))).all())
            number = next((n for n in range(1, 255) if n not in taken), None)
            if number is None:
                raise Conflict("254 refresh keys", description="All 254 numbers of refresh keys are taken.")
            kid = f"refresh-{number}"
        else:
            kid = kid_of(algorithm, secret)
        algorithm_name = algorithm or "HMAC-SHA256"
        sealed = self._sealing.seal(secret, _associated(kid, use, algorithm_name, number))
        await tx.execute(
            insert(Key).values(
                kid=kid,
                use=use,
                algorithm=algorithm_name,
                number=number,
                sealed=sealed,
                created_at=now,
                signs_from=now + published_for,
            )
        )
        return kid


LOCK_KEYS = 0x6B657901
"""Advisory lock of whoever makes keys or the first administrator (any number that no one else takes)."""


def _known_here() -> ColumnElement[bool]:
    """Whether a row is of a use and an algorithm that this release knows: a later one may share the table."""
    return Key.use.in_(get_args(Use)) & Key.algorithm.in_((*get_args(Algorithm), "HMAC-SHA256"))


def _associated(kid: str, use: str, algorithm: str, number: int | None) -> bytes:
    return json.dumps([kid, use, algorithm, number]).encode()
