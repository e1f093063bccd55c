"""Locks: how long a transaction waits for one, and the numbers of Postgres's advisory locks.

All programs that use one database share the numbers.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

LOCK_LIMIT = timedelta(seconds=2)
"""How long a transaction waits for any lock, on both databases."""

MIGRATIONS: Final = 0x6B657900
"""Held exclusively by the transaction of a migration, so that one runs at a time."""

KEYS: Final = 0x6B657901
"""Held exclusively by each transaction that changes the keys, so that two first starts make one set of them."""

ENDINGS: Final = 0x6B657902
"""Shared by the transactions that end sessions; exclusive while a process claims the fence for a Redis server. So the
snapshot that a claim rests on has either all of an ending or none of it, and the ending then reads the new fence."""
