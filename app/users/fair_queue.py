"""The queue for password hashes, fair between networks. Pure: no I/O, no clock.

Anyone may ask for a hash, by as many connections as he likes. So the order of arrival would give the whole queue to the
client with the most connections. Instead:

1. Networks take turns. The next hash is that of the network which has waited longest for a turn, and of its hashes the
   oldest.
2. In a full queue, a network that has fewer places than another one by two or more takes the newest place of the
   network with the most. So no network keeps more than its share while others want one.
3. Those who proved something before (a known device, a session) wait in a lane of their own. Three turns of four and
   three places of four are theirs, while the other lane wants them too. So neither lane can starve the other.

Nothing starves. In its lane, a hash with `n` older ones of its own network is served after at most `n` rounds. A round
has one turn for each network that waits.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

_TURNS_IN_A_ROW = 3
"""Turns of the lane of those who are known, before the other lane gets one; and its places for each of the other's."""

T = TypeVar("T")

Full = Literal["full", "share"]
"""Why there is no place: `share` if the network has its share of the queue already, `full` otherwise."""


@dataclass(slots=True, eq=False)
class Ticket(Generic[T]):
    """A place in the queue."""

    network: str
    known: bool
    holder: T


@dataclass(frozen=True, slots=True)
class Joined(Generic[T]):
    """A new place, and the one that it took away, if the queue was full."""

    ticket: Ticket[T]
    displaced: Ticket[T] | None = None
    why: Full = "full"
    """Why the other place was taken away."""


@dataclass(slots=True)
class _Lane(Generic[T]):
    """The hashes that wait in one lane."""

    waiting: dict[str, deque[Ticket[T]]] = field(default_factory=dict)
    """By network, the one whose turn is next first."""
    by_size: dict[int, dict[str, None]] = field(default_factory=dict)
    """The networks by how many of their hashes wait."""
    most: int = 0
    """How many wait of the network with the most."""
    size: int = 0

    def count(self, network: str) -> int:
        return len(self.waiting.get(network, ()))

    def append(self, ticket: Ticket[T]) -> None:
        self.waiting.setdefault(ticket.network, deque()).append(ticket)
        self._resized(ticket.network, +1)

    def head(self) -> Ticket[T]:
        return next(iter(self.waiting.values()))[0]

    def newest_of_the_greediest(self) -> Ticket[T]:
        return self.waiting[next(reversed(self.by_size[self.most]))][-1]

    def remove(self, ticket: Ticket[T], *, is_served: bool = False) -> None:
        tickets = self.waiting[ticket.network]
        tickets.remove(ticket)
        if is_served or not tickets:  # the network's turn is over, so the others come first
            del self.waiting[ticket.network]
            if tickets:
                self.waiting[ticket.network] = tickets
        self._resized(ticket.network, -1)

    def _resized(self, network: str, by: int) -> None:
        size = self.count(network)
        if former := self.by_size.get(size - by):
            former.pop(network, None)
            if not former:
                del self.by_size[size - by]
        if size:
            self.by_size.setdefault(size, {})[network] = None
        self.size += by
        if size > self.most or (self.most and self.most not in self.by_size):
            self.most = size  # it grew by one, or the network that had the most lost one


class FairQueue(Generic[T]):
    """A queue of hashes. Its caller says at each arrival for how many there is room."""

    def __init__(self) -> None:
        self._known, self._others = _Lane[T](), _Lane[T]()
        self._head: Ticket[T] | None = None
        self._in_a_row = 0

    def __len__(self) -> int:
        return self._known.size + self._others.size

    def __contains__(self, ticket: Ticket[T]) -> bool:
        return ticket in self._lane(ticket.known).waiting.get(ticket.network, ())

    def places(self, network: str, *, known: bool) -> int:
        """How many hashes of a network wait in a lane."""
        return self._lane(known).count(network)

    def obstacle(self, network: str, *, known: bool, room: int) -> Full | None:
        """Why one more hash would find no place. None if it would find one."""
        return self._found(network, known=known, room=room)[1]

    def join(self, network: str, holder: T, *, known: bool, room: int) -> Joined[T] | Full:
        """Takes a place, also away from another one. Or says why there is none.

        Args:
            network: the network from which the hash is asked for.
            holder: whatever the caller has to know about it.
            known: whether it belongs into the lane of those who proved something before.
            room: how many may wait in all.
        """
        displaced, obstacle = self._found(network, known=known, room=room)
        if obstacle is not None:
            return obstacle
        if displaced is not None:
            self.leave(displaced)
        ticket = Ticket(network, known, holder)
        self._lane(known).append(ticket)
        return Joined(ticket, displaced, "share" if displaced is not None and displaced.known == known else "full")

    def head(self) -> Ticket[T] | None:
        """The hash whose turn it is: the same one until it is served or leaves, whoever comes meanwhile."""
        if self._head is None and len(self):
            lane = self._others if self._is_turn_of_the_others() else self._known
            self._head = lane.head()
        return self._head

    def serve(self) -> Ticket[T]:
        """Takes the head out: its turn has come."""
        ticket = self.head()
        assert ticket is not None, "nobody waits"
        self._in_a_row = self._in_a_row + 1 if ticket.known and self._others.size else 0
        self._lane(ticket.known).remove(ticket, is_served=True)
        self._head = None
        return ticket

    def leave(self, ticket: Ticket[T]) -> None:
        """Takes a hash out, wherever it stands. Does nothing if it is not in the queue any more."""
        if ticket in self:
            self._lane(ticket.known).remove(ticket)
            if ticket is self._head:
                self._head = None

    def _found(self, network: str, *, known: bool, room: int) -> tuple[Ticket[T] | None, Full | None]:
        """The place to take away, if one has to be; and the obstacle, if there is one."""
        if len(self) < room:
            return None, None
        lane, other = self._lane(known), self._lane(not known)
        places_of_the_others = room // (_TURNS_IN_A_ROW + 1)
        if lane.size < (room - places_of_the_others if known else places_of_the_others) and other.size:
            return other.newest_of_the_greediest(), None
        if lane.count(network) + 1 < lane.most:
            return lane.newest_of_the_greediest(), None
        has_its_share = lane.count(network) > 0 and (len(lane.waiting) > 1 or other.size > 0)
        return None, "share" if has_its_share else "full"

    def _lane(self, known: bool) -> _Lane[T]:  # noqa: FBT001  # a ticket's own word
        return self._known if known else self._others

    def _is_turn_of_the_others(self) -> bool:
        if not self._known.size:
            return True
        return self._others.size > 0 and self._in_a_row >= _TURNS_IN_A_ROW
