"""Rotation: a new key takes the place of the others of its use, and sealed rows move to a new master secret.

Both are declarative. A call says what shall be in the end, and a repeated one finds what is done already.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ..actors import Actor
from ..errors import ConfigurationError
from ..events.audit import Event, record
from ..settings import LEEWAY, Algorithm, Settings
from ..settings_sessions import LONGEST_ACCESS_TOKEN
from ..storage.database import Database
from ..storage.tables import Issuer, Key
from ..storage.tasks import own_task
from .key_rows import known_here
from .key_seal import KeySeal
from .key_set import AccessKey, Use
from .key_table import PUBLISHED_FOR, KeyTable, secret_of
from .primitives import RsaBits

_MARGIN = timedelta(seconds=60)
"""Time beside the lifetimes: for a process that learns late that another key signs, and for clocks."""


class KeyRotation:
    """Rotates the keys of one use, and moves all that is sealed under another master secret."""

    def __init__(self, db: Database, table: KeyTable, seal: KeySeal, settings: Settings) -> None:
        """The settings have the longest lifetimes that a policy may allow."""
        self._db = db
        self._table = table
        self._seal = seal
        idle, absolute = settings.refresh_token_lifetime, settings.session_lifetime
        # A client that lost its answer may come back with the token before, until its session ends. The rotation that
        # made the successor came at most `idle` after the last token under the old key, and the end `idle` later.
        of_sessions = min(2 * idle, absolute) + _MARGIN
        self._last: dict[Use, timedelta] = {
            "access": LONGEST_ACCESS_TOKEN + LEEWAY + _MARGIN,
            "refresh": of_sessions,
            "cookie": of_sessions,
        }

    @own_task
    async def rotate(
        self, use: Use, algorithm: Algorithm | None = None, bits: RsaBits | None = None, *, by: Actor
    ) -> str:
        """Makes a key that signs after `PUBLISHED_FOR`, and plans when the others of its use retire. Returns its id.

        The others retire when the last token under them is over. So nobody is refused, and no live session is under a
        refresh key when its moment comes: nothing has to be ended then.

        If a key of this use is published and does not sign yet, it is the new key, and none is made. An algorithm or
        size that was asked for has to be that key's, or else another one is made.

        Raises:
            Conflict: all numbers of refresh keys are taken.
            ConfigurationError: the published key can't be unsealed.
            TemporarilyUnavailable: the database is away.
        """
        # Before the transaction, as in `KeyTable.generate`.
        name = await self._table.algorithm(algorithm)
        secret = await secret_of(use, name, bits or 2048)
        async with self._db.begin() as tx:
            now = await self._table.changing(tx)
            events = []
            new = await self._published(tx, use, algorithm, bits, now)
            if new is None:
                signs_from = now + PUBLISHED_FOR
                kid, _ = await self._table.insert(tx, use, name, secret, now, signs_from=signs_from)
                events.append(Event("key_generated", detail=kid))
            else:
                kid, signs_from = new
            retires_at = signs_from + self._last[use]
            others = update(Key).where(Key.use == use, Key.kid != kid, Key.retired_at.is_(None), known_here())
            planned = sorted((await tx.scalars(others.values(retired_at=retires_at).returning(Key.kid))).all())
            events += [Event("key_retired", detail=f"{old} at {retires_at:%Y-%m-%dT%H:%MZ}") for old in planned]
            await record(tx, now, by, events)
        return kid

    async def _published(
        self, tx: AsyncConnection, use: Use, algorithm: Algorithm | None, bits: RsaBits | None, now: datetime
    ) -> tuple[str, datetime] | None:
        """The newest key that is published and does not sign yet: its id, and when it will. None if none is wanted."""
        published = (
            select(Key.__table__)
            .where(Key.use == use, Key.signs_from > now, Key.retired_at.is_(None), known_here())
            .order_by(Key.signs_from.desc(), Key.kid)
            .limit(1)
        )
        key: Any = (await tx.execute(published)).one_or_none()
        if key is None or (algorithm is not None and key.algorithm != algorithm):
            return None
        if bits is not None and (
            key.algorithm != "RS256" or AccessKey.of(key.kid, "RS256", self._seal.open(key)).signing.key_size != bits
        ):
            return None
        return key.kid, key.signs_from

    @own_task
    async def rewrap(self, *, by: Actor) -> int:
        """Seals each row that the previous master secret opens under the current one. Returns how many there were.

        The rows are those of keys, and those of issuers with secrets. All in one transaction: no row is ever without a
        secret that an instance has. A repeated call finds none.

        Raises:
            ConfigurationError: a key that is in force, or the secrets of an issuer, open under neither secret.
            TemporarilyUnavailable: the database is away.
        """
        async with self._db.begin() as tx:
            now = await self._table.changing(tx)
            moved = 0
            for row in (await tx.execute(select(Key.__table__).order_by(Key.kid))).all():
                under = self._seal.sealed_under(row)
                if under is None and (row.retired_at is None or row.retired_at > now):
                    raise ConfigurationError(
                        f"key {row.kid} opens neither under KEYTURN_SECRET nor under KEYTURN_SECRET_PREVIOUS; "
                        "nothing was changed"
                    )
                if under == "previous":
                    secret = self._seal.open(row)
                    sealed = self._seal.seal(secret, row.kid, row.use, row.algorithm, row.number)
                    await tx.execute(update(Key).where(Key.kid == row.kid).values(sealed=sealed))
                    moved += 1
            moved += await self._rewrap_issuers(tx)
            if moved:
                await record(tx, now, by, [Event("keys_rewrapped", detail=str(moved))])
        return moved

    async def _rewrap_issuers(self, tx: AsyncConnection) -> int:
        """The same for the secrets of issuers. A change of an issuer waits for the pulse's row, which `tx` has."""
        moved = 0
        sealed = select(Issuer.__table__).where(Issuer.sealed.is_not(None)).order_by(Issuer.name)
        for row in (await tx.execute(sealed)).all():
            opened = self._seal.open_secrets(row)
            if opened is None:
                raise ConfigurationError(
                    f"the secrets of the issuer {row.name} open neither under KEYTURN_SECRET nor under "
                    "KEYTURN_SECRET_PREVIOUS; nothing was changed; give them again by keyturn federation add"
                )
            under, secrets = opened
            if under == "previous":
                again = self._seal.seal_secrets(secrets, row.name, row.configuration)
                await tx.execute(update(Issuer).where(Issuer.name == row.name).values(sealed=again))
                moved += 1
        return moved
