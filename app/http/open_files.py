"""Open files: how many of them, connections included, the operating system lets a process have at once."""

from __future__ import annotations

import resource
from contextlib import suppress

MOST = 65_536
"""Files. A process that serves more clients than this is not one of ours, so it asks for no more."""

RESERVE = 256
"""Files kept from the clients: connections to Postgres (202 at most) and Redis, listeners, libraries, SQLite."""


def raise_limit() -> None:
    """Raises this process's limit as far as the operating system lets it, for its children too.

    Most systems give a process 1,024 for the sake of old programs, and let it have more.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _files(soft) < (wanted := _files(hard)):
        with suppress(OSError, ValueError):  # macOS names a limit here that it does not give
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def limit() -> int:
    """Files that this process may have open now."""
    return _files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def for_clients(files: int) -> int:
    """How many clients may be connected at once to a process that may have that many files open."""
    return max(files - RESERVE, files // 2)


def _files(of_the_system: int) -> int:
    return MOST if of_the_system == resource.RLIM_INFINITY else min(of_the_system, MOST)
