"""The rows of working keys, read: the key set for a process, and the list for an operator.

One key of each use signs or seals. All that are not retired verify or open. A retirement may lie ahead: until then, the
key is as any other that no longer signs. The database's clock decides, in each statement and at each reading.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import Any, get_args

from sqlalchemy import ColumnElement, and_, or_, outerjoin, select

from ..errors import ConfigurationError, Reason
from ..settings import Algorithm
from ..storage.database import Database
from ..storage.tables import Key, Pulse
from .key_seal import KeySeal
from .key_set import AccessKey, CookieKey, KeySet, Use, signing
from .refresh_tokens import RefreshKey

ALGORITHMS: dict[Use, str] = {"refresh": "HMAC-SHA256", "cookie": "A256GCM"}
"""The algorithms of the uses that have one alone."""


class KeyRows:
    """Reads the rows of the table."""

    def __init__(self, db: Database, seal: KeySeal) -> None:
        self._db = db
        self._seal = seal

    async def read(self) -> tuple[KeySet, int, datetime]:
        """The keys, their version in the pulse and the database's clock, all from one statement.

        A key whose use or algorithm only a later release knows is left out.

        Raises:
            ConfigurationError: a row was sealed under another master secret, or was changed.
            TemporarilyUnavailable: the database is away.
        """
        columns = select(Pulse.keys.label("version"), self._db.now().label("now"), Key.__table__)
        needed = and_(or_(in_force(self._db.now()), Key.use == "refresh"), known_here())
        # The version comes from the same statement, and so from the same snapshot. If a later version came with these
        # keys, the process would miss the change in between.
        query = columns.select_from(outerjoin(Pulse, Key, needed)).order_by(Key.created_at, Key.kid)
        async with self._db.look() as connection:
            rows = (await connection.execute(query)).all()
        keys = _Unsealed(self._seal)
        for row in rows:
            if row.kid is not None:  # else the version alone: the table has no key
                keys.add(row)
        return keys.as_set(), rows[0].version, rows[0].now

    async def list(self) -> list[dict[str, Any]]:
        """All keys, the oldest first, without secrets.

        `status` is retired, published (does not sign yet), signs, retiring (verifies until `retires_at`), verifies, or
        unknown (a later release made the key). A cookie key "signs" while it seals, and "verifies" while it only opens.
        `sealed_under` names the master secret that opens the row.

        Raises:
            TemporarilyUnavailable: the database is away.
        """
        query = select(Key.__table__, self._db.now().label("now"), known_here().label("known")).order_by(
            Key.created_at, Key.kid
        )
        async with self._db.look() as connection:
            rows = (await connection.execute(query)).all()
        signs = set()
        for use in get_args(Use):
            here = [row for row in rows if row.use == use and row.known and not _retired(row)]
            if here:
                signs.add(signing({row.kid: row.signs_from for row in here}, here[0].now))

        def status(row: Any) -> str:
            if _retired(row):
                return "retired"
            if not row.known:
                return "unknown"
            if row.kid in signs:
                return "signs"
            if row.signs_from > row.now:
                return "published"
            return "retiring" if row.retired_at is not None else "verifies"

        return [
            {
                "kid": row.kid,
                "use": row.use,
                "algorithm": row.algorithm,
                "number": row.number,
                "status": status(row),
                "created_at": row.created_at,
                "signs_from": row.signs_from,
                "retires_at": None if _retired(row) else row.retired_at,
                "retired_at": row.retired_at if _retired(row) else None,
                "sealed_under": self._seal.sealed_under(row),
            }
            for row in rows
        ]


class _Unsealed:
    """The keys of a key set, row by row."""

    def __init__(self, seal: KeySeal) -> None:
        self._seal = seal
        self._access: dict[str, AccessKey] = {}
        self._refresh: dict[int, RefreshKey] = {}
        self._retired: dict[int, RefreshKey] = {}
        self._cookie: dict[bytes, CookieKey] = {}
        self._signs_from: dict[str | int | bytes, datetime] = {}
        self._retires_at: dict[str | int | bytes, datetime] = {}
        self._retired_for: dict[int, Reason] = {}
        self._unpublished: dict[int, datetime] = {}

    def add(self, row: Any) -> None:
        """Adds a key. The rows come by age."""
        if _retired(row):
            self._add_retired(row)
            return
        secret = self._seal.open(row)
        name: str | int | bytes
        if row.use == "refresh":
            if row.signs_from == row.created_at and (self._refresh or self._retired):
                self._unpublished[row.number] = row.created_at
            self._refresh[row.number] = RefreshKey.derive(row.number, secret)
            name = row.number
        elif row.use == "cookie":
            key = CookieKey(row.kid, secret)
            self._cookie[key.raw_kid] = key
            name = key.raw_kid
        else:
            self._access[row.kid] = AccessKey.of(row.kid, row.algorithm, secret)
            name = row.kid
        self._signs_from[name] = row.signs_from
        if row.retired_at is not None:
            self._retires_at[name] = row.retired_at

    def _add_retired(self, row: Any) -> None:
        if row.use != "refresh":  # its moment came between two readings of the clock in one statement
            return
        # If a retired key can't be unsealed, the holders of its tokens do not learn why their sessions are over.
        with suppress(ConfigurationError):
            self._retired[row.number] = RefreshKey.derive(row.number, self._seal.open(row), retired=True)
            if row.retired_for is not None:
                self._retired_for[row.number] = row.retired_for

    def as_set(self) -> KeySet:
        """The key set of all keys that were added."""
        return KeySet(
            self._access,
            self._refresh,
            self._retired,
            self._cookie,
            self._signs_from,
            self._retires_at,
            self._retired_for,
            self._unpublished,
        )


def in_force(now: ColumnElement[datetime] | datetime) -> ColumnElement[bool]:
    """Whether a key is not retired at a moment: its retirement is not planned, or lies ahead."""
    return or_(Key.retired_at.is_(None), Key.retired_at > now)


def known_here() -> ColumnElement[bool]:
    """Whether this release knows use and algorithm of a row. A later release may share the table."""
    return Key.use.in_(get_args(Use)) & Key.algorithm.in_((*get_args(Algorithm), *ALGORITHMS.values()))


def _retired(row: Any) -> bool:
    return row.retired_at is not None and row.retired_at <= row.now
