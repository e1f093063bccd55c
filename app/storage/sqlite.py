"""The SQLite file of the embedded default: its engines, and the settings that each connection gets."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from ..own_files import mode_if_ours
from .locks import LOCK_LIMIT
from .tasks import QUEUE_LIMIT


def sqlite_engine(url: str, *, size: int, writes: bool) -> AsyncEngine:
    """An engine with a pool of `size` connections, whose transactions write or only read."""
    engine = create_async_engine(
        url,
        pool_size=size,
        max_overflow=0,
        pool_timeout=QUEUE_LIMIT.total_seconds(),
        hide_parameters=True,
        connect_args={"timeout": LOCK_LIMIT.total_seconds()},
    )
    configure_sqlite(engine.sync_engine, writes=writes)
    return engine


def configure_sqlite(engine: Engine, *, writes: bool) -> None:
    """Sets WAL, a full sync at each commit (guarantee 3) and foreign keys.

    If `writes`, each transaction takes the write lock when it begins. For if a deferred transaction reads first and
    writes later, it fails at once on a stale snapshot, or loses the update. BEGIN IMMEDIATE waits for the lock instead.

    A file that does not exist yet is made for its owner alone. SQLite gives its -wal and -shm the same mode.
    """

    @event.listens_for(engine, "do_connect")
    def make_private(_dialect: object, _record: object, arguments: Sequence[str], _options: object) -> None:
        if (path := arguments[0]) != ":memory:":
            with suppress(OSError):  # the driver reports what is wrong with the file
                # Open only a file that does not exist yet. If a process closes any descriptor of a file, it loses all
                # its locks on the file, even those of SQLite's other connections (POSIX, fcntl).
                with suppress(FileExistsError):
                    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
                mode_if_ours(Path(path), f"the database in {path} ")

    @event.listens_for(engine, "connect")
    def set_pragmas(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        _to_wal(cursor)
        for pragma in ("synchronous = FULL", "foreign_keys = ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    if writes:

        @event.listens_for(engine, "begin")
        def begin(connection: Any) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")


def _to_wal(cursor: Any) -> None:
    # WAL is a property of the file, so this changes something only once. For this change, unlike others, SQLite does
    # not wait for its lock. So without the loop, the second of two first starts would fail.
    until = time.monotonic() + LOCK_LIMIT.total_seconds()
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except Exception as e:
            if getattr(e, "sqlite_errorname", "") != "SQLITE_BUSY" or time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return
