"""The table of working keys, in sealed rows. One key of each use signs or seals; all not retired verify or open.

Each row is sealed with AES-256-GCM under a key that HKDF (RFC 5869) derives from the master secret. The row's id, use,
algorithm and number are associated data. So nobody can put a sealed key in the place of another: if a bit was changed,
the service does not start. Working keys are random, and not derived from each other or from the master secret. So a
leaked key tells nothing of the others.
"""

from __future__ import annotations

import json
import os
import secrets
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, get_args

from sqlalchemy import ColumnElement, and_, func, insert, or_, outerjoin, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ..actors import Actor
from ..errors import ConfigurationError, Conflict, NotFound
from ..events.audit import Event, record
from ..settings import Algorithm
from ..storage.database import Database
from ..storage.locks import KEYS
from ..storage.tables import Key, Pulse
from ..storage.tasks import own_task
from .key_set import COOKIE_KID_BYTES, AccessKey, CookieKey, KeySet, Use, kid_of, new_secret, signing
from .primitives import KEY_BYTES, RsaBits, Sealing, derive
from .refresh_tokens import RefreshKey

PUBLISHED_FOR = timedelta(seconds=60)
"""How long a new key is known before it signs: twice `keys.UNREAD_LIMIT`, so that no process takes its tokens for junk.
"""

_ALGORITHMS: dict[Use, str] = {"refresh": "HMAC-SHA256", "cookie": "A256GCM"}  # of the uses that have one alone


class KeyTable:
    """The rows of the table: read, listed and changed."""

    def __init__(self, db: Database, master: bytes, algorithm: Algorithm) -> None:
        """`master` is the master secret. `algorithm` is for access keys if a call names no other."""
        self._db = db
        self._sealing = Sealing(derive(master, b"keyturn sealed working key v1"))
        self._algorithm = algorithm

    # -- reading

    async def read(self) -> tuple[KeySet, int, datetime]:
        """The keys, their version in the pulse and the database's clock, all from one statement.

        A key whose use or algorithm only a later release knows is left out.

        Raises:
            ConfigurationError: a row was sealed under another master secret, or was changed.
            TemporarilyUnavailable: the database is away.
        """
        columns = select(Pulse.keys.label("version"), self._db.now().label("now"), Key.__table__)
        needed = and_(or_(Key.retired_at.is_(None), Key.use == "refresh"), _known_here())
        # The version comes from the same statement, and so from the same snapshot. If a later version came with these
        # keys, the process would miss the change in between.
        query = columns.select_from(outerjoin(Pulse, Key, needed)).order_by(Key.created_at, Key.kid)
        async with self._db.look() as connection:
            rows = (await connection.execute(query)).all()
        access: dict[str, AccessKey] = {}
        refresh: dict[int, RefreshKey] = {}
        retired: dict[int, RefreshKey] = {}
        cookie: dict[bytes, CookieKey] = {}
        signs_from: dict[str | int | bytes, datetime] = {}
        for row in rows:
            if row.kid is None:  # the version alone: the table has no key
                continue
            if row.retired_at is not None:
                # If a retired key can't be unsealed, the holders of its tokens do not learn why their sessions ended.
                with suppress(ConfigurationError):
                    retired[row.number] = RefreshKey.derive(row.number, self._unseal(row), retired=True)
                continue
            secret = self._unseal(row)
            if row.use == "refresh":
                refresh[row.number] = RefreshKey.derive(row.number, secret)
                signs_from[row.number] = row.signs_from
            elif row.use == "cookie":
                key = CookieKey(row.kid, secret)
                cookie[key.raw_kid] = key
                signs_from[key.raw_kid] = row.signs_from
            else:
                access[row.kid] = AccessKey.of(row.kid, row.algorithm, secret)
                signs_from[row.kid] = row.signs_from
        return KeySet(access, refresh, retired, cookie, signs_from), rows[0].version, rows[0].now

    async def list(self) -> list[dict[str, Any]]:
        """All keys, the oldest first, without secrets.

        `status` is retired, published (does not sign yet), signs, verifies, or unknown (a later release made the key).
        A cookie key "signs" while it seals, and "verifies" while it only opens.

        Raises:
            TemporarilyUnavailable: the database is away.
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

    def _unseal(self, row: Any) -> bytes:
        secret = self._sealing.open(row.sealed, _associated(row.kid, row.use, row.algorithm, row.number))
        if secret is None:
            raise ConfigurationError(
                f"key {row.kid} can't be unsealed: KEYTURN_SECRET is not the one it was sealed under, "
                "or the row was changed; where that secret is lost: keyturn keys replace --sign-everyone-out"
            )
        return secret

    # -- changing

    @own_task
    async def make_first(self, *, by: Actor) -> bool:
        """Makes the first key of each use that has none. Returns whether it made any. Two starts at once make one key.

        Raises:
            TemporarilyUnavailable: the database is away.
        """
        live = select(Key.use).where(Key.retired_at.is_(None))
        async with self._db.look() as connection:
            if set((await connection.scalars(live)).all()) >= set(get_args(Use)):
                return False
        secret = new_secret(self._algorithm)  # before the transaction, as in `generate`
        async with self._db.begin() as tx:
            now = await self._changing(tx)
            there = set((await tx.scalars(live)).all())
            made = [
                await self._insert(tx, use, self._algorithm, _secret(use, secret), now, signs_from=now)
                for use in get_args(Use)
                if use not in there
            ]
            await record(tx, now, by, [Event("key_generated", detail=kid) for kid, _ in made])
        return bool(made)

    @own_task
    async def generate(self, use: Use, algorithm: Algorithm | None = None, bits: RsaBits = 2048, *, by: Actor) -> str:
        """Makes a key, which is used after `PUBLISHED_FOR`. Returns its id. `list` has the number of a refresh key.

        Raises:
            Conflict: all numbers of refresh keys are taken.
            TemporarilyUnavailable: the database is away.
        """
        algorithm = algorithm or self._algorithm
        # Before the transaction, because to find the primes of an RSA key may take longer than a transaction may last.
        secret = new_secret(algorithm, bits) if use == "access" else os.urandom(KEY_BYTES)
        async with self._db.begin() as tx:
            now = await self._changing(tx)
            kid, _ = await self._insert(tx, use, algorithm, secret, now, signs_from=now + PUBLISHED_FOR)
            await record(tx, now, by, [Event("key_generated", detail=kid)])
        return kid

    @own_task
    async def retire(self, kid: str, *, by: Actor) -> int | None:
        """Retires a key: each process refuses what it made within `READ_BY_ALL`. A repeated call changes nothing.

        Returns:
            The number of a refresh key. Its sessions have to end too: `KeyChanges.retire` does both.

        Raises:
            NotFound: the table has no such key.
            Conflict: no other key of its use can sign by now.
            TemporarilyUnavailable: the database is away.
        """
        async with self._db.begin() as tx:
            now = await self._changing(tx)
            key = (await tx.execute(select(Key.use, Key.number, Key.retired_at).where(Key.kid == kid))).one_or_none()
            if key is None:
                raise NotFound("no such key")
            use, number, retired_at = key
            if retired_at is not None:
                return number
            others = select(func.count()).where(
                Key.use == use, Key.kid != kid, Key.retired_at.is_(None), Key.signs_from <= now, _known_here()
            )
            if not await tx.scalar(others):
                can = "seal" if use == "cookie" else "sign"
                raise Conflict(
                    f"the only key that can {can}",
                    description=f"It is the only {use} key that can {can}. Generate another and wait "
                    f"{PUBLISHED_FOR // timedelta(seconds=1)} seconds.",
                )
            await tx.execute(update(Key).where(Key.kid == kid).values(retired_at=now))
            await record(tx, now, by, [Event("key_retired", detail=kid)])
        return number

    @own_task
    async def replace(self, *, by: Actor) -> tuple[dict[Use, str], int]:
        """Retires all keys, and makes new ones that sign and seal at once. The old keys need not be unsealed for it.

        Numbers of refresh keys stay taken, so that no old session passes for a session under a new key.

        Returns:
            The ids of the new keys by their uses, and the number of the refresh key. The sessions under other numbers
            have to end too: `KeyChanges.replace` does both.

        Raises:
            Conflict: all numbers of refresh keys are taken.
            TemporarilyUnavailable: the database is away.
        """
        secret = new_secret(self._algorithm)  # before the transaction, as in `generate`
        async with self._db.begin() as tx:
            now = await self._changing(tx)
            retire_all = update(Key).where(Key.retired_at.is_(None)).values(retired_at=now).returning(Key.kid)
            retired = sorted((await tx.scalars(retire_all)).all())
            made: dict[Use, tuple[str, int | None]] = {
                use: await self._insert(tx, use, self._algorithm, _secret(use, secret), now, signs_from=now)
                for use in get_args(Use)
            }
            events = [Event("key_retired", detail=kid) for kid in retired]
            events += [Event("key_generated", detail=kid) for kid, _ in made.values()]
            await record(tx, now, by, events)
        number = made["refresh"][1]
        assert number is not None
        return {use: kid for use, (kid, _) in made.items()}, number

    async def _changing(self, tx: AsyncConnection) -> datetime:
        """Begins a change of the table, one at a time over all processes. Adds one to the version. Returns the time."""
        if self._db.is_postgres:  # SQLite's transaction holds the write lock already
            await tx.execute(select(func.pg_advisory_xact_lock(KEYS)))
        # Nobody sees the new version before this transaction's other changes. `one`: without the pulse's row no process
        # would learn of the change.
        bump = update(Pulse).values(keys=secrets.randbits(62)).returning(self._db.now().label("now"))
        now: datetime = (await tx.execute(bump)).scalar_one()
        return now

    async def _insert(
        self, tx: AsyncConnection, use: Use, algorithm: Algorithm, secret: bytes, now: datetime, *,
        signs_from: datetime,
    ) -> tuple[str, int | None]:  # fmt: skip
        """Inserts a key. `algorithm` is for an access key alone. Returns its id, and the number of a refresh key."""
        number = None
        if use == "refresh":
            taken = set((await tx.scalars(select(Key.number).where(Key.number.is_not(None)))).all())
            number = next((n for n in range(1, 255) if n not in taken), None)
            if number is None:
                raise Conflict("254 refresh keys", description="All 254 numbers of refresh keys are taken.")
            kid = f"refresh-{number}"
        elif use == "cookie":
            kid = secrets.token_hex(COOKIE_KID_BYTES)
        else:
            kid = kid_of(algorithm, secret)
        name = _ALGORITHMS.get(use, algorithm)
        row = {"kid": kid, "use": use, "algorithm": name, "number": number, "created_at": now, "signs_from": signs_from}
        await tx.execute(
            insert(Key).values(**row, sealed=self._sealing.seal(secret, _associated(kid, use, name, number)))
        )
        return kid, number


def _known_here() -> ColumnElement[bool]:
    """Whether this release knows use and algorithm of a row. A later release may share the table."""
    return Key.use.in_(get_args(Use)) & Key.algorithm.in_((*get_args(Algorithm), *_ALGORITHMS.values()))


def _secret(use: Use, of_access_key: bytes) -> bytes:
    """The secret of a first key. An access key's was made before the transaction, because it may take long."""
    return of_access_key if use == "access" else os.urandom(KEY_BYTES)


def _associated(kid: str, use: str, algorithm: str, number: int | None) -> bytes:
    return json.dumps([kid, use, algorithm, number]).encode()
