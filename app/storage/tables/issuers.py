"""The table of issuers whose tokens are exchanged for local ones."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import String, Text
from sqlalchemy.orm import Mapped, mapped_column

from .columns import Base


class Issuer(Base):
    """An issuer as an operator has added it. Its secrets are sealed under the master secret, like working keys."""

    __tablename__ = "issuers"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    configuration: Mapped[str] = mapped_column(Text)  # a JSON object, without secrets
    sealed: Mapped[bytes | None]  # a JSON object of secrets
    changed_at: Mapped[datetime]

    def __repr__(self) -> str:
        return f"Issuer({self.name})"
