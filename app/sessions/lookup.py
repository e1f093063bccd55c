"""Reading sessions by their ids. Look-ups that come together go to the database in one statement."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import select

from ..policies import Policies
from ..storage.batches import Batch
from ..storage.database import Database
from ..storage.tables import Session
from .rows import SessionRow


class Lookup:
    """Reads one row of a session, under the policy in force."""

    def __init__(self, db: Database, policies: Policies) -> None:
        self._db = db
        self._policies = policies
        self._reads = Batch(self._read, name="lookup", in_flight=2)
        # Built once, because building the statement costs as much as sending it.
        self._these = select(Session.__table__, db.now().label("now")).where(db.among(Session.id))

    async def row(self, session_id: UUID) -> SessionRow | None:
        """The session of this id, live or over, as the primary database has it. None if there is none.

        Raises:
            TemporarilyUnavailable: the database is away.
        """
        return await self._reads(session_id)

    async def _read(self, ids: Sequence[UUID]) -> Sequence[SessionRow | None]:
        async with self._db.look() as connection:
            found = await connection.execute(self._these, {"ids": list(set(ids))})
            rows = {row["id"]: SessionRow.of(row, row["now"], self._policies.in_force) for row in found.mappings()}
        return [rows.get(i) for i in ids]
