"""Locks: how long a transaction waits for one, and the numbers of Postgres's advisory locks.

All programs that use the same database share these numbers.
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
