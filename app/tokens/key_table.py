"""Changes of the table of working keys: keys are made, retired and replaced.

Working keys are random, and not derived from each other or from the master secret. So a leaked key tells nothing of the
others. Each change gives the keys another version in the pulse, in its own transaction.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from datetime import datetime, timedelta
from typing import get_args

from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ..actors import Actor
from ..errors import Conflict, NotFound
from ..events.audit import Event, record
from ..settings import FIRST_ALGORITHM, Algorithm
from ..storage.database import Database
from ..storage.locks import KEYS
from ..storage.tables import Key, Pulse
from ..storage.tasks import own_task
from .key_rows import ALGORITHMS, KeyRows, in_force, known_here
from .key_seal import KeySeal
from .key_set import COOKIE_KID_BYTES, Use, kid_of, new_secret
from .primitives import KEY_BYTES, RsaBits

PUBLISHED_FOR = timedelta(seconds=60)
"""How long a new key is known before it signs: twice `keys.UNREAD_LIMIT`, so that no process takes its tokens for junk.
"""

_NUMBERS = range(1, 255)
"""The numbers of refresh keys. No number is given twice."""

_OF_GENERATION = range(1, 201)
"""The numbers that `generate` and a rotation may take. The rest is kept back for `sign_everyone_out` and `replace`.

Otherwise a stolen session of an administrator could use up all numbers, and nobody could be signed out by the keys any
more.
"""


class KeyTable(KeyRows):
    """The rows of the table: read and changed."""

    def __init__(self, db: Database, seal: KeySeal, algorithm: Algorithm | None) -> None:
        """`algorithm` is for access keys if a call names no other. None: they go on with that of the newest."""
        super().__init__(db, seal)
        self._algorithm = algorithm

    async def algorithm(self, asked: Algorithm | None = None) -> Algorithm:
        """The algorithm of the next access key: the one asked for, or the setting's, or that of the newest key.

        So a command whose environment lacks the setting changes no algorithm.

        Raises:
            TemporarilyUnavailable: the database is away.
        """
        return asked or self._algorithm or await self.newest_algorithm() or FIRST_ALGORITHM

    async def newest_algorithm(self) -> Algorithm | None:
        """The algorithm of the access key in force that signs, or that will sign last. None if there is no key.

        Raises:
            TemporarilyUnavailable: the database is away.
        """
        newest = (
            select(Key.algorithm)
            .where(Key.use == "access", in_force(self._db.now()), known_here())
            .order_by(Key.signs_from.desc(), Key.kid)
            .limit(1)
        )
        async with self._db.look() as connection:
            found: Algorithm | None = await connection.scalar(newest)
        return found

    @own_task
    async def make_first(self, *, by: Actor) -> bool:
        """Makes the first key of each use that has none. Returns whether it made any. Two starts at once make one key.

        Raises:
            TemporarilyUnavailable: the database is away.
        """
        live = select(Key.use).where(in_force(self._db.now()))
        async with self._db.look() as connection:
            if set((await connection.scalars(live)).all()) >= set(get_args(Use)):
                return False
        algorithm = await self.algorithm()
        secret = await secret_of("access", algorithm)  # before the transaction, as in `generate`
        async with self._db.begin() as tx:
            now = await self.changing(tx)
            there = set((await tx.scalars(live)).all())
            made = [
                await self.insert(tx, use, algorithm, _secret(use, secret), now, signs_from=now)
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
        algorithm = await self.algorithm(algorithm)
        # Before the transaction, because to find the primes of an RSA key may take longer than a transaction may last.
        secret = await secret_of(use, algorithm, bits)
        async with self._db.begin() as tx:
            now = await self.changing(tx)
            kid, _ = await self.insert(tx, use, algorithm, secret, now, signs_from=now + PUBLISHED_FOR)
            await record(tx, now, by, [Event("key_generated", detail=kid)])
        return kid

    @own_task
    async def retire(self, kid: str, *, by: Actor) -> int | None:
        """Retires a key: each process refuses what it made within `READ_BY_ALL`. A repeated call changes nothing.

        Where this leaves only keys whose retirement is planned, they stay: their rotation is taken back with its new
        key.

        Returns:
            The number of a refresh key. Its sessions have to end too: `KeyChanges.retire` does both.

        Raises:
            NotFound: the table has no such key.
            Conflict: no other key of its use can sign by now.
            TemporarilyUnavailable: the database is away.
        """
        async with self._db.begin() as tx:
            now = await self.changing(tx)
            key = (await tx.execute(select(Key.use, Key.number, Key.retired_at).where(Key.kid == kid))).one_or_none()
            if key is None:
                raise NotFound("no such key")
            use, number, retired_at = key
            if retired_at is not None and retired_at <= now:
                return number
            others = (Key.use == use, Key.kid != kid, in_force(now), Key.signs_from <= now, known_here())
            can_sign = (await tx.scalars(select(Key.retired_at).where(*others))).all()
            if not can_sign:
                can = "seal" if use == "cookie" else "sign"
                raise Conflict(
                    f"the only key that can {can}",
                    description=f"It is the only {use} key that can {can}. Generate another and wait "
                    f"{PUBLISHED_FOR // timedelta(seconds=1)} seconds.",
                )
            await tx.execute(update(Key).where(Key.kid == kid).values(retired_at=now))
            if None not in can_sign:
                await tx.execute(update(Key).where(*others).values(retired_at=None))
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
        algorithm = await self.algorithm()
        secret = await secret_of("access", algorithm)  # before the transaction, as in `generate`
        async with self._db.begin() as tx:
            now = await self.changing(tx)
            retire_all = update(Key).where(in_force(now)).values(retired_at=now).returning(Key.kid)
            retired = sorted((await tx.scalars(retire_all)).all())
            made: dict[Use, tuple[str, int | None]] = {
                use: await self.insert(tx, use, algorithm, _secret(use, secret), now, signs_from=now)
                for use in get_args(Use)
            }
            events = [Event("key_retired", detail=kid) for kid in retired]
            events += [Event("key_generated", detail=kid) for kid, _ in made.values()]
            await record(tx, now, by, events)
        number = made["refresh"][1]
        assert number is not None
        return {use: kid for use, (kid, _) in made.items()}, number

    @own_task
    async def sign_everyone_out(self, *, by: Actor) -> dict[Use, str]:
        """Retires all access and refresh keys, and makes new ones that sign at once. No row of a session is written.

        Every session lives by a token under one of those keys, so all are over. Cookie keys stay: a cookie holds such a
        token, and opens nothing without it.

        Returns:
            The ids of the new keys by their uses.

        Raises:
            Conflict: all numbers of refresh keys are taken.
            TemporarilyUnavailable: the database is away.
        """
        uses: tuple[Use, ...] = ("access", "refresh")
        algorithm = await self.algorithm()
        secret = await secret_of("access", algorithm)  # before the transaction, as in `generate`
        async with self._db.begin() as tx:
            now = await self.changing(tx)
            over = update(Key).where(Key.use.in_(uses), in_force(now))
            over = over.values(retired_at=now, retired_for="signed_out_everywhere")
            retired = sorted((await tx.scalars(over.returning(Key.kid))).all())
            made = {
                use: (await self.insert(tx, use, algorithm, _secret(use, secret), now, signs_from=now))[0]
                for use in uses
            }
            events = [Event("key_retired", detail=kid) for kid in retired]
            events += [Event("key_generated", detail=kid) for kid in made.values()]
            await record(tx, now, by, [Event("signed_out_everywhere"), *events])
        return made

    async def changing(self, tx: AsyncConnection) -> datetime:
        """Begins a change of the table, one at a time over all processes, and gives it a new version. Returns the time.

        The version is a random number: a count would come a second time after a restore.
        """
        if self._db.is_postgres:  # SQLite's transaction holds the write lock already
            await tx.execute(select(func.pg_advisory_xact_lock(KEYS)))
        # Nobody sees the new version before this transaction's other changes. `one`: without the pulse's row no process
        # would learn of the change.
        bump = update(Pulse).values(keys=secrets.randbits(62)).returning(self._db.now().label("now"))
        now: datetime = (await tx.execute(bump)).scalar_one()
        return now

    async def insert(
        self, tx: AsyncConnection, use: Use, algorithm: Algorithm, secret: bytes, now: datetime, *,
        signs_from: datetime,
    ) -> tuple[str, int | None]:  # fmt: skip
        """Inserts a key. `algorithm` is for an access key alone. Returns its id, and the number of a refresh key.

        A key that signs at once is an act of `sign_everyone_out`, of `replace`, or of a start without keys. Only such
        a key may take a number that is kept back.

        Raises:
            Conflict: all numbers of refresh keys are taken that this act may take.
        """
        number = None
        if use == "refresh":
            taken = set((await tx.scalars(select(Key.number).where(Key.number.is_not(None)))).all())
            may_take = _NUMBERS if signs_from <= now else _OF_GENERATION
            number = next((n for n in may_take if n not in taken), None)
            if number is None:
                raise Conflict(
                    f"{may_take[-1]} refresh keys",
                    description=f"All {may_take[-1]} numbers of refresh keys are taken that this act may take.",
                )
            kid = f"refresh-{number}"
        elif use == "cookie":
            kid = secrets.token_hex(COOKIE_KID_BYTES)
        else:
            kid = kid_of(algorithm, secret)
        name = ALGORITHMS.get(use, algorithm)
        row = {"kid": kid, "use": use, "algorithm": name, "number": number, "created_at": now, "signs_from": signs_from}
        await tx.execute(insert(Key).values(**row, sealed=self._seal.seal(secret, kid, use, name, number)))
        return kid, number


async def secret_of(use: Use, algorithm: Algorithm, bits: RsaBits = 2048) -> bytes:
    """The secret of a new key. Requests go on meanwhile: a thread looks for the primes of an RSA key."""
    return await asyncio.to_thread(new_secret, algorithm, bits) if use == "access" else os.urandom(KEY_BYTES)


def _secret(use: Use, of_access_key: bytes) -> bytes:
    """The secret of a first key. An access key's was made before the transaction, because it may take long."""
    return of_access_key if use == "access" else os.urandom(KEY_BYTES)
