"""The table of the pulse."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Integer, text
from sqlalchemy.orm import Mapped, mapped_column

from .columns import Base


class Pulse(Base):
    """One row: a version for each thing that processes keep in memory. Each change writes another random number.

    A count would come a second time after a restore, with other keys.

    Every process reads the row with the fence, twice a second. The version has a table of its own: an update of the
    fence's row would change the incarnation that `Database.incarnation` reads from that row.
    """

    __tablename__ = "pulse"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    keys: Mapped[int] = mapped_column(BigInteger)
    policies: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    issuers: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))

    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)
