"""A model of the revocation scheme of `app/revocation/`, explored state by state in every interleaving.

The promise: a verify that begins after a logout has returned never accepts an access token of that session.

The model has one session; the database's fence; two places that clients may reach at the same time; logouts, rebuilds,
a verifier, and faults. The fence names an epoch and the one Redis server whose silence is believed. There are two cases
of places:
1. The places are two Redis servers (split brain).
2. The places are two databases of one server. SWAPDB exchanges them, and both have the server's identity. Therefore no
   process knows which of them it reaches.

The model leaves out the stated exception, VERIFY_WITHOUT_DATABASE.

These reductions keep the model small. None of them hides a failure (docs/revocation.md has the proof itself):
1. The death of a process is no step. A dead process takes no further step, and every prefix of a run is explored. Only
   a death inside a transaction has an effect, the rollback, and that is a step.
2. A verify is a property of a state, and no step. Its MGET is atomic. A verify accepts if its process's reading of the
   fence vouches for the content of a server. Values of the fence never recur, so the order of MGET and reading does not
   matter.
3. Time passes only in the wait before a return. An expired reading accepts nothing, so readings that live longer
   elsewhere only add behaviour. Once a logout has returned, no reading expires, because a verify that begins just then
   may hold it longer. The step `return` also stands for a writer that died while that time passed. So the model shows
   that the commit alone is enough.
4. A rebuild may overwrite another rebuild's nonce, which stands for a nonce that had expired. One rebuild at a time
   saves work; safety does not depend on it.
5. After its claim, a rebuild does not check which server it reaches. The nonce and the verifier do that.
6. A SET that was not acknowledged was applied or not. If Redis applies it later, it adds a key, and a key only makes
   the verifier ask the database.
7. The verifier never reads a fenced row. Such a reading accepts nothing, while the older reading that the verifier
   keeps may accept, so the model allows more.

`pytest -rP` prints the numbers of states, and the shortest counterexample without each safeguard.
"""

from collections import deque
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import pytest


class Fence(NamedTuple):
    """The database's row, or a process's reading of it. `change` is the version of the row."""

    epoch: int = 0
    server: int | None = None  # the identity of the trusted server; None if there is none
    change: int = 0


class Redis(NamedTuple):
    """A server. The marker or nonce 0 means that there is none. The fence names a server by its `identity`.

    Each start of the server's process makes a new identity. A server that takes over another's data needs a new one
    too: a demoted master loses keys in the resync, and keeps its run id, its connections and the marker. Its
    `master_replid` changes with every demotion and promotion.
    """

    identity: int
    revoked: bool = False
    marker: int = 0
    nonce: int = 0
    evicts: bool = False  # whether the server's settings let it evict keys, and it has evicted some


class Logout(NamedTuple):
    step: str
    epochs: tuple[int, ...] = ()  # marker and nonce that it read in the same step as it set its key
    server: int | None = None  # the identity of the server that the process reached with its SET
    acknowledged: bool = False
    pending: Fence | None = None  # written and not yet committed
    seen: int = 0  # the logout returns when every reading has seen this change


class Rebuild(NamedTuple):
    step: str
    at: int = 0  # the place that it fills, X or Y
    server: int | None = None  # the identity of that server when the rebuild connected
    epoch: int = 0


class State(NamedTuple):
    fence: Fence
    reading: Fence  # the reading of the verifier
    redis: tuple[Redis, ...]
    logouts: tuple[Logout, ...]
    rebuilds: tuple[Rebuild, ...]
    ended: bool = False  # whether the session has ended in the database
    returned: bool = False
    copy: Redis | None = None  # an old snapshot, or the data of a replica
    faults: int = 0


class Scenario(NamedTuple):
    """The start of a run, and the numbers of logouts, rebuilds and faults in it."""

    trusted: bool  # whether X is believed at the start
    logouts: int
    rebuilds: int
    faults: int
    one_server: bool = False  # X and Y are databases of one server
    left_nonce: bool = False  # whether Y holds the nonce of a rebuild that died

    def __str__(self):
        start = "trusted" if self.trusted else "untrusted"
        start = f"{'databases' if self.one_server else 'servers'}-{start}{'-nonce-left' if self.left_nonce else ''}"
        return f"{start}-{self.logouts}-logouts-{self.rebuilds}-rebuilds-{self.faults}-faults"


Step = tuple[str, State]
X, Y = 0, 1
NAME = "XY"
NEW = 100  # rebuilds number their epochs from here on, because they make them before the claim

# Each name says what the safeguard guarantees. A model runs `without` one of them, or with all of them ("").
SET_FIRST = "the SET comes before the commit"
LOST_SET = "a SET that was not acknowledged fences"
EPOCH_IN_TRANSACTION = "the transaction compares the epoch"
EPOCH_OF_KEYSPACE = "the epoch compared is the one that stands where the key was set"
SAME_STEP = "it is read in the same step as the SET"
NONCE_OF_EPOCH = "a nonce counts only if it is the epoch's"
FILL_SEES_NONCE = "a rebuild sets keys only where its nonce is"
SERVER_IN_TRANSACTION = "the transaction compares the server"
LOCK = "a claim and the transaction of a logout exclude each other"
WAIT = "a logout waits until no older reading of the fence vouches"
WAIT_FOR_OTHERS = "it waits for another's change of the fence too"
WAIT_FROM_COMMIT = "it counts from the commit of the change, not from its statement"
SERVER_AT_VERIFIER = "the verifier compares the server"
EPOCH_AT_VERIFIER = "the verifier compares the marker with the epoch"
NONCE = "the marker is set only where the nonce still is"
NONCE_FIRST = "the nonce is written before the claim"
CLAIM_FIRST = "the claim comes before the snapshot"
NEW_EPOCH = "each claim has a new epoch"
NO_EVICTION = "a server that can evict is not believed"
REPLICATION_ID = "a server that takes over another's data changes its identity"


def start(scenario: Scenario, without: str) -> State:
    fence = Fence(1, X if scenario.trusted else None, 1)
    other = Redis(X if scenario.one_server else Y, nonce=-1 if scenario.left_nonce else 0)
    servers = (Redis(X, marker=1 if scenario.trusted else 0), other)
    logouts = (Logout(logout_order(without)[0]),) * scenario.logouts
    rebuilds = (Rebuild(rebuild_order(without)[0]),) * scenario.rebuilds
    return State(fence, fence, servers, logouts, rebuilds)


def put(items: tuple[Any, ...], index: int, item: object) -> Any:
    return (*items[:index], item, *items[index + 1 :])


def on(s: State, server: int, **change) -> tuple[Redis, ...]:
    return put(s.redis, server, s.redis[server]._replace(**change))


def logout_order(without: str) -> list[str]:
    first = ["look", "SET"] if without == SAME_STEP else ["SET"]
    return [*first, "update", "commit", "return", "done"]


def logout_steps(s: State, i: int, without: str) -> Iterator[Step]:
    w = s.logouts[i]
    order = logout_order(without)

    def go(what: str, then: Logout, **world) -> Step:
        then = then if then.step == "done" else then._replace(step=order[order.index(w.step) + 1])
        return f"logout {i} {what}", s._replace(logouts=put(s.logouts, i, then), **world)

    match w.step:
        case "look":
            for at, redis in enumerate(s.redis):
                yield go(f"looks at {NAME[at]}", w._replace(epochs=(redis.marker, redis.nonce)))
        case "SET":
            for at, redis in enumerate(s.redis):
                lost = w._replace(server=redis.identity)
                if without == EPOCH_OF_KEYSPACE:
                    # The epoch that the process has just read in the fence.
                    lost = lost._replace(epochs=(s.fence.epoch,))
                elif without != SAME_STEP:
                    lost = lost._replace(epochs=(redis.marker, redis.nonce))
                sure = lost._replace(acknowledged=True)
                if without == SET_FIRST:  # the writer may be dead by the time of the SET
                    yield go(f"puts off its SET on {NAME[at]}", sure)
                    continue
                applied = on(s, at, revoked=True)
                yield go(f"sends SET to {NAME[at]}, acknowledged", sure, redis=applied)
                yield go(f"sends SET to {NAME[at]}, applied and not acknowledged", lost, redis=applied)
                yield go(f"sends SET to {NAME[at]}, lost", lost)
        case "update":
            doubt = (
                (not w.acknowledged and without != LOST_SET)
                or not (s.fence.epoch in w.epochs or told_without(w, without))
                or (w.server != s.fence.server and without != SERVER_IN_TRANSACTION)
            )
            change = s.fence.change + 1
            if not doubt or s.fence.server is None:
                yield go("ends the session", Logout("", seen=s.fence.change if without != WAIT_FOR_OTHERS else 0))
            elif not any(other.pending for other in s.logouts):  # otherwise the row is locked
                yield go("ends the session and fences", Logout("", pending=Fence(change, None, change), seen=change))
        case "commit":
            then = Logout("done") if s.returned else w._replace(pending=None)
            yield go("commits", then, ended=True, fence=w.pending or s.fence)
            yield go("dies and is rolled back", Logout("done"))
        case "return" if not s.returned:
            outlived = s.reading.change < w.seen and without != WAIT
            yield go("returns", Logout("done"), returned=True, reading=Fence() if outlived else s.reading)


def told_without(w: Logout, without: str) -> bool:
    return without == EPOCH_IN_TRANSACTION or (without == NONCE_OF_EPOCH and bool(w.epochs[1]))


def rebuild_order(without: str) -> list[str]:
    if without == NONCE_FIRST:
        return ["connect", "claim", "snapshot", "fill", "nonce", "mark", "done"]
    if without == CLAIM_FIRST:
        return ["connect", "nonce", "snapshot", "fill", "claim", "mark", "done"]
    return ["connect", "nonce", "claim", "snapshot", "fill", "mark", "done"]


def rebuild_steps(s: State, i: int, without: str) -> Iterator[Step]:
    r = s.rebuilds[i]
    order = rebuild_order(without)

    def go(what: str, then: Rebuild = r, skip: int = 0, **world) -> Step:
        step = order[order.index(r.step) + 1 + skip]
        then = Rebuild("done") if step == "done" else then._replace(step=step)
        return f"rebuild {i} {what}", s._replace(rebuilds=put(s.rebuilds, i, then), **world)

    match r.step:
        case "connect":
            for at, redis in enumerate(s.redis):
                connected = Rebuild(order[1], at, redis.identity)
                yield from rebuild_steps(s._replace(rebuilds=put(s.rebuilds, i, connected)), i, without)
        case "nonce":
            epoch = r.epoch or NEW + i
            yield go(f"writes nonce {epoch} on {NAME[r.at]}", r._replace(epoch=epoch), redis=on(s, r.at, nonce=epoch))
        case "claim":
            if not any(w.pending or (w.step == "commit" and without != LOCK) for w in s.logouts):
                epoch = NEW + i if without != NEW_EPOCH else s.fence.epoch
                fence = Fence(epoch, r.server, s.fence.change + 1)
                yield go(f"claims epoch {epoch} on {NAME[r.at]}", r._replace(epoch=epoch), fence=fence)
        case "snapshot" if s.ended:
            yield go("reads that the session is ended")
        case "snapshot":
            yield go("reads that the session is alive", skip=1)
        case "fill" if s.redis[r.at].nonce in {NEW + i, r.epoch} or without in {FILL_SEES_NONCE, NONCE_FIRST}:
            yield go(f"sends SET to {NAME[r.at]}", redis=on(s, r.at, revoked=True))
        case "mark" if s.redis[r.at].nonce in {NEW + i, r.epoch} or without == NONCE:
            yield go(f"sets marker {r.epoch} on {NAME[r.at]}", redis=on(s, r.at, marker=r.epoch, nonce=0))


def verifier_steps(s: State, without: str) -> Iterator[Step]:
    pending = [w.pending.change for w in s.logouts if w.pending]
    change = max([s.fence.change, *pending]) if without == WAIT_FROM_COMMIT else s.fence.change
    reading = s.fence._replace(change=change)
    if reading.server is not None and reading != s.reading:
        yield f"verifier reads epoch {reading.epoch}", s._replace(reading=reading)


def fault_steps(s: State, most: int, without: str, *, one_server: bool) -> Iterator[Step]:
    if s.faults == most:
        return
    faults = s.faults + 1
    new = faults + Y  # an identity that no server has had
    if one_server:
        yield "X and Y change places", s._replace(faults=faults, redis=s.redis[::-1])
        yield "X and Y restart empty", s._replace(faults=faults, redis=(Redis(new), Redis(new)))
        for at, redis in enumerate(s.redis):
            yield f"{NAME[at]} is flushed", s._replace(faults=faults, redis=put(s.redis, at, Redis(redis.identity)))
        return
    copy = s.copy if faults < most else None
    for at, redis in enumerate(s.redis):
        if s.copy is None and (redis.marker or redis.nonce):  # a server without marker and nonce is as good as empty
            yield f"{NAME[at]} is copied", s._replace(copy=redis._replace(identity=-1))
        then = {"is flushed": Redis(redis.identity, evicts=redis.evicts), "restarts empty": Redis(new)}
        if redis.revoked:
            then["evicts the key"] = redis._replace(revoked=False, evicts=True)
        if s.copy:
            then["restarts from the copy"] = s.copy._replace(identity=new)
            then["takes over the copy"] = s.copy._replace(identity=redis.identity if without == REPLICATION_ID else new)
        for what, server in then.items():
            yield f"{NAME[at]} {what}", s._replace(redis=put(s.redis, at, server), copy=copy, faults=faults)


def steps(s: State, scenario: Scenario, without: str) -> Iterator[Step]:
    for i, w in enumerate(s.logouts):
        yield from logout_steps(s, i, without)
        if w.step == logout_order(without)[0]:
            break  # logouts are alike, so the first one starts first
    for i, r in enumerate(s.rebuilds):
        yield from rebuild_steps(s, i, without)
        if r.step == rebuild_order(without)[0]:
            break
    yield from verifier_steps(s, without)
    yield from fault_steps(s, scenario.faults, without, one_server=scenario.one_server)


def trusted(s: State, without: str = "") -> list[Redis]:
    """The servers whose silence the verifier would believe."""
    return [
        redis
        for redis in s.redis
        if s.reading.server is not None
        and (redis.identity == s.reading.server or without == SERVER_AT_VERIFIER)
        and (redis.marker == s.reading.epoch or (redis.marker and without == EPOCH_AT_VERIFIER))
        and (not redis.evicts or without == NO_EVICTION)
    ]


def accepts(s: State, without: str = "") -> bool:
    return any(not redis.revoked for redis in trusted(s, without))


class Exploration(NamedTuple):
    states: int
    counterexample: list[str] | None
    witnessed: frozenset[str]


# The exploration must reach these states. Otherwise a model in which nothing happens would keep the promise too.
WITNESSES = {
    "a trusted server's silence lets the token through": lambda s: accepts(s) and not s.ended,
    "it still does after the commit, before the return": lambda s: accepts(s) and s.ended,
    "a logout returns and fenced nothing": lambda s: s.returned and s.fence.change == 1 and trusted(s),
    "a logout fences": lambda s: s.ended and s.fence.server is None and s.fence.change > 1,
    "a reading expires while a logout waits": lambda s: s.returned and s.reading == Fence(),
    "the verifier still believes a server that the fence no longer names": lambda s: (
        accepts(s) and s.fence.server not in {None, s.reading.server}
    ),
    "both servers carry the same marker": lambda s: s.redis[X].marker == s.redis[Y].marker > 0,
    "a rebuild makes an untrusted server trusted": lambda s: accepts(s) and s.fence.change > 1 and not s.ended,
    "a rebuild after a logout brings the key": lambda s: (
        s.returned and any(r.step == "done" for r in s.rebuilds) and s.reading == s.fence and trusted(s)
    ),
    "a server that the fence names has the marker, and has lost the key": lambda s: any(
        s.ended and redis.evicts and not redis.revoked and redis.marker == s.fence.epoch for redis in s.redis
    ),
    "a rebuild ends without its nonce": lambda s: any(
        r.step == "mark" and s.redis[r.at].nonce == 0 for r in s.rebuilds
    ),
}


@cache
def explore(scenario: Scenario, without: str = "") -> Exploration:
    """Explores all reachable states, breadth first, and stops at the first that breaks the promise."""
    first = start(scenario, without)
    came: dict[State, tuple[str, State] | None] = {first: None}
    queue = deque([first])
    witnesses = dict(WITNESSES)
    while queue:
        state = queue.popleft()
        for name in [name for name, holds in witnesses.items() if holds(state)]:
            del witnesses[name]
        if state.returned and accepts(state, without):
            return Exploration(len(came), run_to(state, came), frozenset(WITNESSES.keys() - witnesses))
        for what, after in steps(state, scenario, without):
            if after not in came:
                came[after] = what, state
                queue.append(after)
    return Exploration(len(came), None, frozenset(WITNESSES.keys() - witnesses))


def run_to(state: State, came: dict[State, tuple[str, State] | None]) -> list[str]:
    run = []
    while origin := came[state]:
        what, state = origin
        run.append(what)
    return run[::-1]


SCENARIOS = [
    Scenario(trusted=True, logouts=1, rebuilds=1, faults=2),
    Scenario(trusted=True, logouts=2, rebuilds=1, faults=1),
    Scenario(trusted=True, logouts=1, rebuilds=2, faults=1),
    Scenario(trusted=False, logouts=1, rebuilds=1, faults=2),
    Scenario(trusted=False, logouts=2, rebuilds=1, faults=1),
    Scenario(trusted=False, logouts=1, rebuilds=2, faults=0),
    Scenario(trusted=True, logouts=1, rebuilds=1, faults=3, one_server=True),
    Scenario(trusted=True, logouts=2, rebuilds=1, faults=2, one_server=True),
    Scenario(trusted=True, logouts=1, rebuilds=2, faults=2, one_server=True),
    Scenario(trusted=True, logouts=1, rebuilds=1, faults=2, one_server=True, left_nonce=True),
    Scenario(trusted=False, logouts=1, rebuilds=2, faults=1, one_server=True),
]

# The smallest scenario in which the lack of each safeguard breaks the promise, beside one logout from a trusted start.
NOTHING, FAULT, REBUILD = Scenario(True, 1, 0, 0), Scenario(True, 1, 0, 1), Scenario(True, 1, 1, 0)
FAULT_AND_REBUILD = Scenario(True, 1, 1, 1)
DATABASES, NONCE_LEFT = Scenario(True, 1, 0, 0, one_server=True), Scenario(True, 1, 0, 0, True, True)
SWAP, SWAPS_AND_REBUILD = Scenario(True, 1, 0, 1, one_server=True), Scenario(True, 1, 1, 2, one_server=True)
SAFEGUARDS = {
    SET_FIRST: NOTHING,
    LOST_SET: NOTHING,
    EPOCH_IN_TRANSACTION: FAULT_AND_REBUILD,
    EPOCH_OF_KEYSPACE: DATABASES,
    SAME_STEP: SWAP,
    NONCE_OF_EPOCH: NONCE_LEFT,
    FILL_SEES_NONCE: SWAPS_AND_REBUILD,
    SERVER_IN_TRANSACTION: FAULT,
    LOCK: REBUILD,
    WAIT: NOTHING,
    WAIT_FOR_OTHERS: REBUILD,
    WAIT_FROM_COMMIT: NOTHING,
    SERVER_AT_VERIFIER: FAULT,
    EPOCH_AT_VERIFIER: REBUILD,
    NONCE: FAULT_AND_REBUILD,
    NONCE_FIRST: FAULT_AND_REBUILD,
    CLAIM_FIRST: REBUILD,
    NEW_EPOCH: FAULT_AND_REBUILD,
    REPLICATION_ID: FAULT,
    NO_EVICTION: FAULT,
}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_no_access_token_is_accepted_after_a_logout_has_returned(scenario):
    exploration = explore(scenario)
    print(f"{exploration.states:,} states")
    assert exploration.counterexample is None, "\n".join(exploration.counterexample)


@pytest.mark.parametrize("witness", WITNESSES)
def test_the_model_reaches_what_makes_the_promise_hard_to_keep(witness):
    assert witness in explore(FAULT_AND_REBUILD).witnessed


@pytest.mark.parametrize("safeguard", SAFEGUARDS)
def test_without_this_safeguard_a_token_comes_back_to_life(safeguard):
    scenario = SAFEGUARDS[safeguard]
    assert explore(scenario).counterexample is None
    exploration = explore(scenario, safeguard)
    assert exploration.counterexample is not None
    print(f"{exploration.states:,} states", *exploration.counterexample, sep="\n  ")
