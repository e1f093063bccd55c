"""The slots of password hashes: a few run at a time, each in a thread of its own, and some wait for their turn.

The queue is fair between networks (app/users/fair_queue.py). All that find no place are answered at once: 503, or 429
if their own network has its share of the queue.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from datetime import timedelta
from time import monotonic
from typing import NamedTuple, Self, TypeVar

from .. import metrics
from ..actors import Actor
from ..errors import RateLimit, Refusal, SlowDown, TemporarilyUnavailable
from ..limits.networks import network_of
from ..settings import Settings
from .fair_queue import FairQueue, Full, Joined, Ticket
from .hashing_room import HashingRoom

WAITS_FOR = timedelta(seconds=5)
"""How long a hash may wait for its turn. Few clients wait longer for an answer."""

TAKES_AT_MOST = timedelta(seconds=30)
"""How long a caller waits for a hash that has begun. The hash runs only while no other thread wants the core."""

_COME_AGAIN = timedelta(seconds=2)

_T = TypeVar("_T")


class Asker(NamedTuple):
    """The one who asks for a hash, as far as the queue is concerned."""

    address: str | None = None
    """The client's address. None for the command line and for Keyturn itself."""
    known: bool = False
    """Whether a device that signed in to the account before, a session or a right password vouches for the client."""

    @classmethod
    def of(cls, by: Actor) -> Self:
        """The asker of an act. All but strangers have a session, or are on this machine."""
        return cls(by.address, known=by.kind != "anonymous")


ITSELF = Asker(known=True)
"""Keyturn itself, or the command line."""


class _Turn:
    """The wait of one hash for its slots: `begins` has None when its turn comes, or a refusal if its place is lost."""

    __slots__ = ("begins", "has_begun", "slots")

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.begins: asyncio.Future[Refusal | None] = asyncio.get_running_loop().create_future()
        self.has_begun = False

    @property
    def is_lost(self) -> bool:
        """Whether another hash has taken the place."""
        return self.begins.done() and not self.begins.cancelled() and self.begins.result() is not None


class Hashing:
    """Runs password hashes, a few at a time."""

    def __init__(self, room: HashingRoom, settings: Settings) -> None:
        self._room = room
        self._prefixes = settings.network_ipv4, settings.network_ipv6
        self._queue = FairQueue[_Turn]()
        self._free = room.slots
        self._running = 0
        metrics.HASH_SLOTS.set(room.slots)

    @property
    def busy(self) -> int:
        """How many hashes run or wait."""
        return self._running + len(self._queue)

    def admit(self, asker: Asker = ITSELF) -> None:
        """Checks that one more hash may wait. Callers ask before they look anything up for it.

        Raises:
            SlowDown: those of the asker's network take its share of the queue already, and others wait too.
            TemporarilyUnavailable: too many wait already.
        """
        network = self._network_of(asker)
        if obstacle := self._queue.obstacle(network, known=asker.known, room=self._room_to_wait()):
            metrics.HASHES.count(obstacle)
            raise self._no_place(obstacle, network, known=asker.known)

    async def run(self, memory: int, function: Callable[[], _T], asker: Asker = ITSELF) -> _T:
        """Waits for its turn, and runs a function that takes this much memory (KiB) in a thread of its own."""
        slots = self._room.slots_of(memory)
        if not slots:
            metrics.HASHES.count("failed")
            raise HashFailed(f"a hash of {memory} KiB has no room in {self._room.memory} KiB")
        await self._take(slots, asker)
        began = monotonic()
        try:
            future = _in_a_thread(function)
        except (RuntimeError, MemoryError) as e:  # RuntimeError: the system gives no more threads
            metrics.HASHES.count("failed")
            self._give_back(slots)
            raise HashFailed(f"{type(e).__name__}: {e}") from None

        def ended(future: asyncio.Future[_T]) -> None:
            metrics.HASHES.count("failed" if future.cancelled() or future.exception() else "done")
            metrics.HASH_DURATION.observe(monotonic() - began)
            self._give_back(slots)

        future.add_done_callback(ended)
        # If the caller is cancelled now, the hash goes on: a thread can't be stopped. Its slots count until it ends.
        try:
            async with asyncio.timeout(TAKES_AT_MOST.total_seconds()):
                return await asyncio.shield(future)
        except TimeoutError:
            raise TemporarilyUnavailable("a hash takes too long", retry_after=_COME_AGAIN) from None
        except MemoryError as e:
            raise HashFailed(f"MemoryError: {e}") from None

    async def _take(self, slots: int, asker: Asker) -> None:
        """Takes slots when its turn has come. A hash that needs several is not overtaken by smaller ones then.

        If the caller is cancelled while it waits here, its hash is not computed.
        """
        turn, came, network = _Turn(slots), monotonic(), self._network_of(asker)
        joined = self._queue.join(network, turn, known=asker.known, room=self._room_to_wait())
        if not isinstance(joined, Joined):
            metrics.HASHES.count(joined)
            raise self._no_place(joined, network, known=asker.known)
        if (lost := joined.displaced) is not None and not lost.holder.begins.done():
            metrics.HASHES.count(joined.why)
            lost.holder.begins.set_result(self._no_place(joined.why, lost.network, known=lost.known))
        self._begin_those_who_can()
        try:
            async with asyncio.timeout(WAITS_FOR.total_seconds()):
                refusal = await turn.begins
        except BaseException as e:
            self._leave(joined.ticket)
            if not turn.is_lost:  # else it was counted when it lost its place
                metrics.HASHES.count("late" if isinstance(e, TimeoutError) else "left")
            if isinstance(e, TimeoutError):
                raise TemporarilyUnavailable("waited too long to be hashed", retry_after=_COME_AGAIN) from None
            raise
        if refusal is not None:
            raise refusal
        metrics.HASH_WAIT.observe(monotonic() - came)

    def _begin_those_who_can(self) -> None:
        while (head := self._queue.head()) is not None and head.holder.slots <= self._free:
            turn = self._queue.serve().holder
            if not turn.begins.done():  # otherwise its caller was cancelled just now
                self._free -= turn.slots
                self._running += 1
                turn.has_begun = True
                turn.begins.set_result(None)
        metrics.HASHES_RUNNING.set(self._room.slots - self._free)
        metrics.HASHES_WAITING.set(len(self._queue))

    def _leave(self, ticket: Ticket[_Turn]) -> None:
        if ticket.holder.has_begun:  # its turn came, and its caller was cancelled in the same moment
            self._give_back(ticket.holder.slots)
        else:
            self._queue.leave(ticket)
            self._begin_those_who_can()  # the hash that left may have been the head, which waited for several slots

    def _give_back(self, slots: int) -> None:
        self._running -= 1
        self._free += slots
        self._begin_those_who_can()

    def _room_to_wait(self) -> int:
        """How many hashes may be in the queue, one that begins at once among them."""
        return self._room.slots + self._room.queue - self._running

    def _network_of(self, asker: Asker) -> str:
        return network_of(asker.address, *self._prefixes) if asker.address else ""

    def _no_place(self, why: Full, network: str, *, known: bool) -> Refusal:
        """The refusal of a hash. A share changes with those who wait: the places that the network has are its share."""
        if why == "full":
            return TemporarilyUnavailable("the hashing queue is full", retry_after=_COME_AGAIN)
        share = RateLimit("hash_share", self._queue.places(network, known=known))
        return SlowDown("the network's share of the hashing queue is full", retry_after=_COME_AGAIN, limit=share)


class HashFailed(TemporarilyUnavailable):
    """Memory or threads are short. The operator has to act, while a full queue passes by itself."""

    def __init__(self, cause: str) -> None:
        super().__init__(f"no hash could be computed: {cause}", retry_after=_COME_AGAIN)


def _stand_back() -> None:
    """Gives the event loop the core first, so that a flood of sign-ins does not slow refreshes down.

    On Linux each thread has its own scheduling policy, and the threads that it starts (Argon2's lanes) inherit it.
    Elsewhere the policy would hold for the whole process, so nothing is done.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))


def _in_a_thread(function: Callable[[], _T]) -> asyncio.Future[_T]:
    """Runs a function in a new thread, whose start takes a thousandth of a hash's time.

    A pool of threads would not do: it keeps work for which it got no thread, and breaks if its first thread fails.

    Raises:
        RuntimeError: the system gives no more threads.
    """
    done: Future[_T] = Future()

    def run() -> None:
        try:
            _stand_back()
            done.set_result(function())
        except BaseException as e:  # noqa: BLE001  # it is raised where the future is awaited
            done.set_exception(e)

    threading.Thread(target=run, name="argon2").start()
    return asyncio.wrap_future(done)
