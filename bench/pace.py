"""The cost of the limits within a process, to a refresh and a request: nanoseconds, and objects that stay.

.venv/bin/python -m bench.pace
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from uuid import UUID

from app.http.client_addresses import ClientAddresses
from app.http.request import Request
from app.limits.refreshes import Refreshes
from app.settings_clients import networks_in
from app.storage.tables import uuid7

SESSIONS = 10_000
ROUNDS = 20


def measured(name: str, act: Callable[[int], None], count: int) -> None:
    """Prints the best of several rounds, and how many blocks of memory each round leaves."""
    best, blocks = float("inf"), 0
    for _ in range(ROUNDS):
        gc.collect()
        before, began = sys.getallocatedblocks(), time.perf_counter()
        for number in range(count):
            act(number)
        best = min(best, (time.perf_counter() - began) / count)
        blocks = sys.getallocatedblocks() - before
    print(f"{name:60} {best * 1e9:7.0f} ns   {blocks:6d} blocks left")


def main() -> None:
    """Measures."""
    ids = [uuid7() for _ in range(SESSIONS)]
    tokens = [b"\x01" + each.bytes + os.urandom(46) for each in ids]
    generations = [0] * SESSIONS
    on, off = Refreshes("999999/60"), Refreshes("off")

    def nothing(number: int) -> None:
        generations[number] += 1

    def rotation(limit: Refreshes) -> Callable[[int], None]:
        def act(number: int) -> None:
            generations[number] += 1
            limit.presented(tokens[number], generations[number])

        return act

    measured("the loop alone", nothing, SESSIONS)
    measured("a rotation, limit off", rotation(off), SESSIONS)
    measured("a rotation, limit on, 10,000 sessions in turn", rotation(on), SESSIONS)
    measured("a rotation, limit on, 100 sessions in turn", rotation(on), 100)
    measured("a repetition, 100 sessions in turn", lambda n: on.presented(tokens[n], generations[n]), 100)

    request = Request()
    request.headers = [(b"host", b"x"), (b"x-forwarded-for", b"1.1.1.1, 203.0.113.7")]
    request.fields = dict(request.headers)
    direct, behind = ClientAddresses(), ClientAddresses(networks_in("10.0.0.0/8"))

    def address(of: ClientAddresses) -> Callable[[int], None]:
        def act(_: int) -> None:
            request.client = "10.0.0.1"
            of.of(request)

        return act

    measured("the client's address, no proxy trusted", address(direct), SESSIONS)
    measured("the client's address, behind a proxy", address(behind), SESSIONS)
    assert UUID(bytes=tokens[0][1:17]) == ids[0]


if __name__ == "__main__":
    main()
