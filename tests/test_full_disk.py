"""The SQLite file of a running service when the disk is full."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from app.actors import SERVICE
from app.errors import TemporarilyUnavailable
from app.keyturn import Keyturn
from app.sessions.answers import Tokens
from tests.conftest import a_user


@pytest.fixture
def engine() -> str:
    return "sqlite"


async def limit_pages(keyturn: Keyturn, pages: int) -> None:
    """Limits the size of the file, so that SQLite itself reports SQLITE_FULL to the one connection that writes."""
    async with keyturn.db.begin() as connection:
        await connection.execute(text(f"PRAGMA max_page_count = {pages}"))


async def test_a_full_disk_is_503_and_nothing_is_lost_once_there_is_space(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    kept = [await keyturn.starting.start(proof, by=SERVICE)]
    await limit_pages(keyturn, 1)  # SQLite takes the present size instead, which is the least
    full = None
    for _ in range(200):
        try:
            kept.append(await keyturn.starting.start(proof, by=SERVICE))
        except TemporarilyUnavailable as e:
            full = e
            break
    assert full is not None
    assert "SQLITE_FULL" in full.cause
    # A refresh needs no new page and still works, and no acknowledged session is lost.
    kept = [await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE) for tokens in kept]
    await limit_pages(keyturn, 1_000_000)
    last: Tokens = await keyturn.starting.start(proof, by=SERVICE)
    for tokens in (*kept, last):
        await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)
