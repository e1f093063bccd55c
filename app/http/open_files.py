"""Open files: how many of them, connections included, the operating system lets a process have at once."""

from __future__ import annotations

import resource
from contextlib import suppress

MOST = 65_536
"""Files. No Keyturn process needs more, so none asks the operating system for more."""

RESERVE = 256
"""Files kept from the clients: connections to Postgres (202 at most) and Redis, listeners, libraries, SQLite."""


def raise_limit() -> None:
    """Raises this process's limit as far as the operating system lets it, for its children too.

    Most systems give a process 1,024 files for the sake of old programs, and allow more if the process asks.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _files(soft) < (wanted := _files(hard)):
        with suppress(OSError, ValueError):  # macOS names a limit that it then refuses to set
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def limit() -> int:
    """Files that this process may have open now."""
    return _files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def for_clients(files: int) -> int:
    """How many clients may be connected at once to a process that may have this many files open."""
    return max(files - RESERVE, files // 2)


def _files(of_the_system: int) -> int:
    return MOST if of_the_system == resource.RLIM_INFINITY else min(of_the_system, MOST)
