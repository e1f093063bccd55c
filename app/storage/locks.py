"""Locks: how long a transaction waits for one, and the numbers of Postgres's advisory locks.

All programs that use the same database share these numbers.

Every transaction takes its locks in this order, so no two can wait for each other:

1. an advisory lock: `KEYS`, or `ENDINGS`;
2. rows of users: the enabled administrators by their ids, and then the one user whom the transaction is about;
3. rows of sessions, by their ids;
4. rows of events: an erasure alone changes these, and two erasures take turns by the rows of the administrators;
5. the one row of the pulse, or of the fence, and then rows of keys or policies.

A statement that has rows of several users (refresh, logout, move, `gc`) leaves out those that it would wait for: SKIP
LOCKED. SQLite has one writer at a time, and none of these locks.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

LOCK_LIMIT = timedelta(seconds=2)
"""How long a transaction waits for any lock, on both databases."""

MIGRATIONS: Final = 0x6B657900
"""The transaction of a migration holds this lock alone, so that one migration runs at a time."""

KEYS: Final = 0x6B657901
"""Each transaction that changes the keys holds this lock alone, so that two first starts make one set of keys."""

ENDINGS: Final = 0x6B657902
"""Transactions that end sessions share this lock. One that claims the fence for a Redis server holds it alone.

So each ending falls into one of two cases. (1) It commits before the claim, and the rebuild after the claim sees all of
it. (2) It takes the lock after the claim, and reads the new fence.
"""
