"""HS256 keys that are shared with services which verify access tokens by themselves: imported and exported.

Such a service can also sign any access token: whoever checks HS256 can make it. So Keyturn gives no key out by itself.
Its own endpoints take role and state from the database, but the token says which session it is of (docs/keys.md).
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import select

from ..actors import Actor
from ..errors import Conflict, NotFound, WrongSettings
from ..events.audit import Event, record
from ..storage.database import Database
from ..storage.tables import Key
from ..storage.tasks import own_task
from .key_rows import in_force
from .key_seal import KeySeal
from .key_table import PUBLISHED_FOR, KeyTable
from .master_secret import master_secret, random_secret
from .primitives import to_base64url


class KeySharing:
    """Imports and exports HS256 keys."""

    def __init__(self, db: Database, table: KeyTable, seal: KeySeal, masters: Collection[bytes | None]) -> None:
        """`masters` are the master secrets, which are taken for no key."""
        self._db = db
        self._table = table
        self._seal = seal
        self._masters = masters

    @own_task
    async def take(self, text: str, *, by: Actor) -> str:
        """Imports an access key from its base64, base64url or hex text. It signs after `PUBLISHED_FOR`. Returns its id.

        Raises:
            WrongSettings: the key is shorter than 256 bits, is not random, or is a master secret.
            Conflict: the table has the key already, in force or retired.
            TemporarilyUnavailable: the database is away.
        """
        secret = random_secret(text, "the key")
        if master_secret(text) in self._masters:
            raise WrongSettings("the key: is the master secret, which nobody else may have")
        async with self._db.begin() as tx:
            now = await self._table.changing(tx)
            there = select(Key.__table__).where(Key.use == "access", Key.algorithm == "HS256")
            for row in (await tx.execute(there)).all():
                if self._seal.sealed_under(row) and self._seal.open(row) == secret:
                    raise Conflict("the key is there", description=f"This key is there already, as {row.kid}.")
            signs_from = now + PUBLISHED_FOR
            kid, _ = await self._table.insert(tx, "access", "HS256", secret, now, signs_from=signs_from)
            await record(tx, now, by, [Event("key_imported", detail=kid)])
        return kid

    @own_task
    async def give(self, kid: str, *, by: Actor) -> str:
        """Exports an access key as base64url. The event is committed before anyone sees the key.

        Raises:
            NotFound: the table has no such key.
            Conflict: the key is not of HS256, or is retired.
            ConfigurationError: the key can't be unsealed.
            TemporarilyUnavailable: the database is away.
        """
        async with self._db.begin() as tx:
            now = self._db.now()
            wanted = select(Key.__table__, now.label("now"), in_force(now).label("in_force")).where(Key.kid == kid)
            row = (await tx.execute(wanted)).one_or_none()
            if row is None:
                raise NotFound("no such key")
            if row.algorithm != "HS256":
                raise Conflict(
                    "not HS256",
                    description="Only HS256 keys are shared. The public half of another access key is in the JWK Set.",
                )
            if not row.in_force:
                raise Conflict("retired", description="The key is retired: no token under it is accepted any more.")
            secret = self._seal.open(row)
            await record(tx, row.now, by, [Event("key_exported", detail=kid)])
        return to_base64url(secret).decode()
