"""The fair queue of password hashes: each sentence of its promise, held against a model that counts one by one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.users.fair_queue import FairQueue, Full, Joined, Ticket

Operation = tuple[str, str, bool, int]

OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["join", "join", "join", "serve", "leave"]),
        st.sampled_from("abcdefgh"),
        st.booleans(),
        st.integers(0, 30),
    ),
    max_size=120,
)


@dataclass
class Model:
    """The tickets that wait, in the order of their arrival. Everything else is counted anew each time."""

    waiting: list[Ticket[int]] = field(default_factory=list)

    def counts(self, *, known: bool) -> Counter[str]:
        return Counter(ticket.network for ticket in self.waiting if ticket.known == known)

    def size(self, *, known: bool) -> int:
        return self.counts(known=known).total()

    def guaranteed(self, room: int, *, known: bool) -> int:
        return room - room // 4 if known else room // 4

    def expected(self, network: str, room: int, *, known: bool) -> tuple[set[int], Full | None]:
        """The holders of which one has to give up its place; and why there is none."""
        if len(self.waiting) < room:
            return set(), None
        lane, other = self.counts(known=known), self.counts(known=not known)
        if self.size(known=known) < self.guaranteed(room, known=known) and other:
            return self._newest_of_the_greediest(other, known=not known), None
        if lane[network] + 1 < max(lane.values(), default=0):
            return self._newest_of_the_greediest(lane, known=known), None
        others = len([each for each in (*lane, *other) if each]) - (network in lane)
        return set(), "share" if lane[network] and others else "full"

    def _newest_of_the_greediest(self, lane: Counter[str], *, known: bool) -> set[int]:
        most = max(lane.values())
        newest = {t.network: t.holder for t in self.waiting if t.known == known and lane[t.network] == most}
        return set(newest.values())


@given(st.integers(0, 12), OPERATIONS)
@example(0, [("join", "a", False, 0)])
@example(4, [("join", "a", True, 0)] * 4 + [("join", "b", False, 0), ("join", "a", True, 0)])
@example(3, [("join", "a", False, 0)] * 3 + [("join", "b", False, 0), ("join", "a", False, 0)])
def test_the_queue_does_at_each_step_as_the_model_says(room: int, operations: list[Operation]) -> None:
    queue, model = FairQueue[int](), Model()
    for number, (what, network, known, which) in enumerate(operations):
        if what == "join":
            displaceable, obstacle = model.expected(network, room, known=known)
            assert queue.obstacle(network, known=known, room=room) == obstacle
            joined = queue.join(network, number, known=known, room=room)
            if not isinstance(joined, Joined):
                assert joined == obstacle
                continue
            assert obstacle is None
            if displaceable:
                assert joined.displaced is not None
                assert joined.displaced.holder in displaceable
                assert joined.why == ("share" if joined.displaced.known == known else "full")
                model.waiting.remove(joined.displaced)
            else:
                assert joined.displaced is None
            model.waiting.append(joined.ticket)
        elif what == "serve" and model.waiting:
            head = queue.head()
            assert queue.serve() is head
            assert head is not None
            older = [t for t in model.waiting if (t.network, t.known) == (head.network, head.known)]
            assert head is older[0], "the oldest hash of its network"
            model.waiting.remove(head)
        elif what == "leave" and model.waiting:
            ticket = model.waiting.pop(which % len(model.waiting))
            assert ticket in queue
            queue.leave(ticket)
            assert ticket not in queue
            queue.leave(ticket)
        assert len(queue) == len(model.waiting) <= max(room, 0)
        assert all(ticket in queue for ticket in model.waiting)
    served = []
    while queue.head() is not None:
        served.append(queue.serve())
    assert {id(ticket) for ticket in served} == {id(ticket) for ticket in model.waiting}


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), min_size=1, max_size=40),
    st.lists(st.lists(st.tuples(st.sampled_from("abcdefuvwxyz"), st.booleans()), max_size=6), max_size=400),
    st.data(),
)
def test_whoever_comes_meanwhile_each_hash_is_served_in_a_bounded_number_of_turns(
    first: list[tuple[str, bool]], later: list[list[tuple[str, bool]]], data: st.DataObject
) -> None:
    room = 40
    queue = FairQueue[str]()
    for network, known in first:
        queue.join(network, "early", known=known, room=room)
    tickets = [t for lane in (queue._known, queue._others) for each in lane.waiting.values() for t in each]
    watched = data.draw(st.sampled_from(tickets))
    before = [t for t in tickets if t is not watched and (t.network, t.known) == (watched.network, watched.known)]
    rounds = len(before) + 1
    turns = 0
    for arrivals in later:
        for network, known in arrivals:
            queue.join(network, "late", known=known, room=room)
        if watched not in queue:
            return  # displaced: its network had the most
        if queue.serve() is watched:
            return
        turns += 1
        # A round has at most one turn for each of `room` networks, and the lane has at least one turn of four.
        assert turns <= 4 * rounds * room + 4
    while queue.serve() is not watched:
        turns += 1
        assert turns <= 4 * rounds * room + 4


def joined(queue: FairQueue[int], network: str, *, known: bool = False, room: int = 32) -> Joined[int]:
    found = queue.join(network, 0, known=known, room=room)
    assert isinstance(found, Joined), found
    return found


def test_a_client_with_80_connections_gets_every_second_turn_beside_one_other() -> None:
    queue = FairQueue[int]()
    assert sum(isinstance(queue.join("greedy", 0, known=False, room=32), Joined) for _ in range(80)) == 32
    turns = []
    for _ in range(40):
        if queue.obstacle("honest", known=False, room=32) is None:
            joined(queue, "honest")
        turns.append(queue.serve().network)
        queue.join("greedy", 0, known=False, room=32)
    assert turns.count("honest") >= 19
    assert "honest" in turns[:2]


def test_a_newcomer_takes_the_place_of_the_newest_of_the_greediest() -> None:
    queue = FairQueue[int]()
    greedy = [joined(queue, "greedy", room=8).ticket for _ in range(8)]
    for number in range(4):
        found = joined(queue, "honest", room=8)
        assert found.displaced is greedy[7 - number]
        assert found.why == "share"
    assert queue.join("honest", 0, known=False, room=8) == "share"
    assert queue.join("greedy", 0, known=False, room=8) == "share"
    assert joined(queue, "third", room=8).displaced is not None


def test_alone_a_network_may_fill_the_queue_and_is_told_that_it_is_full() -> None:
    queue = FairQueue[int]()
    for _ in range(8):
        joined(queue, "office", room=8)
    assert queue.join("office", 0, known=False, room=8) == "full"


def test_where_all_networks_have_one_place_a_new_one_is_told_that_the_queue_is_full() -> None:
    queue = FairQueue[int]()
    for number in range(8):
        joined(queue, f"network {number}", room=8)
    assert queue.join("another", 0, known=False, room=8) == "full"
    assert queue.join("network 3", 0, known=False, room=8) == "share"


def test_a_known_device_goes_before_and_finds_a_place_in_a_queue_full_of_strangers() -> None:
    queue = FairQueue[int]()
    strangers = [joined(queue, f"network {number}", room=8).ticket for number in range(8)]
    found = joined(queue, "network 3", known=True, room=8)
    assert found.displaced in strangers
    assert found.why == "full"
    assert queue.serve() is found.ticket


@pytest.mark.parametrize("flood", [True, False])
def test_neither_lane_can_starve_the_other(flood: bool) -> None:
    queue = FairQueue[int]()
    for number in range(100):
        queue.join(f"network {number}", 0, known=flood, room=32)
    turns = []
    for number in range(100):
        queue.join(f"other {number}", 0, known=not flood, room=32)
        queue.join(f"further {number}", 0, known=flood, room=32)
        turns.append(queue.serve().known)
    share = 75 if flood else 25
    assert abs(turns.count(flood) - share) <= 2
    assert abs(sum(lane.size for lane in (queue._known,)) - 24) <= 1


def test_the_head_stays_the_head_until_it_is_served_or_leaves() -> None:
    queue = FairQueue[int]()
    first = joined(queue, "a").ticket
    assert queue.head() is first
    second = joined(queue, "b", known=True).ticket
    assert queue.head() is first
    queue.leave(first)
    assert queue.head() is second
