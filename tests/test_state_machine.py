"""The session state machine against a model of it: Hypothesis drives both, step by step, on both databases.

The model is written from the table in docs/architecture.md, and shares no code with the service. The model counts
whole seconds and generations; it has no digests and no SQL. Two instances take turns. After each step, every answer,
every row and every issued access token must be as the model says.

`pytest -rP` prints how often each transition and each reason was reached.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from hashlib import sha256
from types import SimpleNamespace
from typing import Any, TypeVar, cast
from uuid import UUID

import jwt
from hypothesis import HealthCheck, Phase, assume, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from hypothesis.strategies import booleans, integers, just, lists, sampled_from
from sqlalchemy import select, text

from app.actors import SERVICE
from app.errors import Conflict, InvalidGrant, InvalidToken, Reason, Refusal, TemporarilyUnavailable, WrongPassword
from app.keyturn import Keyturn, opened
from app.sessions.answers import Tokens
from app.sessions.filters import Filter
from app.sessions.reading import Page
from app.sessions.start import Authenticated
from app.storage.tables import Session
from app.tokens.access_tokens import AccessToken
from tests.conftest import settings_of, time_passes

T = TypeVar("T")

# Seconds. The first four are settings. The others are constants of the code.
WINDOW, ACCESS, IDLE, ABSOLUTE = 60, 300, 1000, 1200
LEEWAY = 5
REMEMBERED = 3600 + LEEWAY + 60 + 86400
WEEK, MONTH = 7 * 86400, 30 * 86400

MARGIN = 25
"""Seconds. The real clock runs on while the model's stands still. Therefore the model keeps at least this far away from
the moments before a deadline. If an example takes longer, on a machine that stood still, Hypothesis drops it."""


# -- the model


@dataclass(frozen=True)
class Refused:
    error: type[Refusal]
    reason: Reason | None = None


@dataclass
class Key:
    kid: str
    ready: bool = False
    retired: bool = False


@dataclass
class User:
    email: str
    id: UUID
    role: str
    password: int = 0
    disabled: bool = False


@dataclass(frozen=True, eq=False)
class Refresh:
    text: str
    key: Key


@dataclass(frozen=True, eq=False)
class Access:
    session: SignIn
    text: str
    key: Key
    generation: int
    role: str
    signed_at: int
    expires_at: int


@dataclass(eq=False)
class SignIn:
    """A session. `chain[n]` is its refresh token of generation n."""

    id: UUID
    user: User
    role: str
    created: int
    rotated: int
    chain: list[Refresh]
    access: list[Access] = field(default_factory=list)
    ended: tuple[Reason, int] | None = None
    gone: bool = False
    retry_key: str | None = None
    """The retry key of the last rotation."""

    @property
    def generation(self) -> int:
        return len(self.chain) - 1

    @property
    def absolute(self) -> int:
        return self.created + ABSOLUTE

    @property
    def deadline(self) -> tuple[int, Reason]:
        idle: tuple[int, Reason] = (self.rotated + IDLE, "idle_timeout")
        return idle if idle[0] < self.absolute else (self.absolute, "absolute_timeout")

    def over(self, now: int) -> Reason | None:
        if self.ended:
            return self.ended[0]
        moment, reason = self.deadline
        return reason if moment <= now else None

    def over_since(self) -> int:
        return min(self.deadline[0], self.ended[1] if self.ended else self.deadline[0])


class Model:
    def __init__(self) -> None:
        self.now = 0
        self.users: list[User] = []
        self.sessions: list[SignIn] = []
        self.keys: dict[str, list[Key]] = {"access": [], "refresh": []}

    def signing(self, use: str) -> Key:
        return [key for key in self.keys[use] if key.ready and not key.retired][-1]

    def live(self) -> list[SignIn]:
        return [s for s in self.sessions if not s.gone and s.over(self.now) is None]

    def refresh(self, s: SignIn, generation: int, key: str | None) -> str | Refused:
        """The result of a refresh with this generation's token: "rotate", "retry", "retry by key", or a refusal."""
        retired = s.chain[generation].key.retired
        over = self.over_under_retired_key(s) if retired else s.over(self.now)
        if s.gone or over or retired:
            return Refused(InvalidGrant, None if s.gone else over)
        if generation == s.generation:
            return "rotate"
        if generation == s.generation - 1:
            if s.chain[-1].key.retired:
                return Refused(InvalidGrant)  # no process can derive the answer again, and nobody stole anything
            if self.now - s.rotated < WINDOW:
                return "retry"
            if key is not None and key == s.retry_key:
                return "retry by key"
        self.end([s], "reuse_detected")
        return Refused(InvalidGrant, "reuse_detected")

    def over_under_retired_key(self, s: SignIn) -> Reason | None:
        """The reason for which the session is over, when a refresh token under a retired key is presented.

        If the session's newest token is under a retired key too, the session ends. Otherwise such a token changes
        nothing.
        """
        if s.gone:
            return None
        if s.chain[-1].key.retired and not s.over(self.now):
            self.end([s], "revoked_by_admin")
        return s.over(self.now)

    def retire(self, key: Key) -> int:
        return self.end([s for s in self.sessions if s.chain[-1].key is key], "revoked_by_admin")

    def end(self, sessions: list[SignIn], reason: Reason) -> int:
        """Ends the sessions that have not been ended, and returns the number of those that were live.

        A session whose deadline has passed keeps the timeout as its reason.
        """
        ending = [s for s in sessions if not s.ended and not s.gone]
        lived = [s for s in ending if not s.over(self.now)]
        for s in ending:
            moment, timeout = s.deadline
            s.ended = (reason, self.now) if s in lived else (timeout, moment)
        return len(lived)

    def end_all(self, user: User, reason: Reason, but: SignIn | None = None) -> int:
        return self.end([s for s in self.sessions if s.user is user and s is not but], reason)

    def logout(self, access: Access | None, refresh: tuple[SignIn, int] | None, scope: str) -> Refused | None:
        """A logout. Tokens of two sessions are allowed only with the scope "this"."""
        presented: dict[SignIn, int | None] = {}
        refused = Refused(InvalidToken)
        if access and not access.key.retired:
            presented[access.session] = None
        if refresh:
            if refresh[0].chain[refresh[1]].key.retired and not self.over_under_retired_key(refresh[0]):
                refused = Refused(InvalidGrant)
            else:
                presented[refresh[0]] = refresh[1]
        if not presented:
            return refused
        if scope == "this":
            self.end(list(presented), "logout")
            return None
        ((s, generation),) = presented.items()
        if s.gone or s.over(self.now):
            return Refused(InvalidGrant, None if s.gone else s.over(self.now))
        if generation is None:
            assert access
            if self.expired(access):
                return Refused(InvalidToken, "token_expired")
        elif generation < s.generation - 1 or (generation == s.generation - 1 and self.now - s.rotated >= WINDOW):
            return Refused(InvalidGrant)
        self.end_all(s.user, "logout_all", s if scope == "others" else None)
        return None

    def expired(self, access: Access) -> bool:
        return access.expires_at + LEEWAY <= self.now

    def verify(self, access: Access) -> Refused | None:
        if access.key.retired:
            return Refused(InvalidToken)
        if self.expired(access):
            return Refused(InvalidToken, "token_expired")
        assert not access.session.gone, "a session stays while its access tokens live"
        return Refused(InvalidToken, access.session.ended[0]) if access.session.ended else None

    def authorise(self, access: Access) -> Refused | None:
        refused, over = self.verify(access), access.session.over(self.now)
        return Refused(InvalidToken, over) if over and not refused else refused

    def last_administrator(self, user: User) -> bool:
        return [u for u in self.users if u.role == "admin" and not u.disabled] == [user]

    def gc(self, kept_for: int) -> int:
        long_over = [s for s in self.sessions if not s.gone and s.over_since() + max(kept_for, REMEMBERED) < self.now]
        for s in long_over:
            s.gone = True
        return len(long_over)

    def boundaries(self) -> list[int]:
        """The moments at which something changes without a request."""
        found: set[int] = set()
        for s in self.sessions:
            found |= {access.expires_at + LEEWAY for access in s.access}
            if not s.ended:
                # After the last of these moments, a rotation would meet the absolute deadline before the idle one.
                found |= {s.rotated + WINDOW, s.deadline[0], s.absolute, s.absolute - IDLE}
            if not s.gone:
                found |= {s.over_since() + kept + 1 for kept in (REMEMBERED, WEEK, MONTH)}
        return sorted(found)

    def later(self, seconds: int) -> int:
        """Lets at least that many seconds pass, and returns the number.

        If the end falls just before a boundary, the time goes on to the boundary, because the real clock runs on.
        """
        before = self.now
        self.now += seconds
        for boundary in self.boundaries():
            if boundary - MARGIN <= self.now < boundary:
                self.now = boundary
        return self.now - before


# -- the real service


class World:
    """Two instances on one database, on an event loop of their own."""

    def __init__(self, run: asyncio.Runner, instances: list[Keyturn]) -> None:
        self.runner = run
        self.instances = instances
        self.reached: Counter[str] = Counter()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coroutine)

    async def empty(self) -> None:
        async with self.instances[0].db.begin() as tx:
            for table in ("sessions", "users", "keys"):
                await tx.execute(text(f"DELETE FROM {table}"))
        await self.instances[0].keys.make_first(by=SERVICE)
        await self.load()

    async def load(self) -> None:
        for keyturn in self.instances:
            await keyturn.keys.load()

    async def a_minute_passes_for_keys(self) -> None:
        db = self.instances[0].db
        async with db.begin() as tx:
            minute = "CAST('61 seconds' AS interval)" if db.is_postgres else "61000000"
            await tx.execute(text(f"UPDATE keys SET signs_from = signs_from - {minute}"))
        await self.load()


@contextmanager
def a_world(database_url: str) -> Iterator[World]:
    lifetimes = {"retry_window": WINDOW, "access_token_lifetime": ACCESS}
    deadlines = {"refresh_token_lifetime": IDLE, "session_lifetime": ABSOLUTE}
    configured = settings_of(database_url, None, **lifetimes, **deadlines)
    # With a loop factory, the runner leaves pytest's own event loop the current one.
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        stack = AsyncExitStack()
        try:
            instances = [runner.run(stack.enter_async_context(opened(configured))) for _ in range(2)]
            for keyturn in instances:
                runner.run(keyturn.revocations.fence.read())
            yield World(runner, instances)
        finally:
            runner.run(stack.aclose())


async def ahead(keyturn: Keyturn, seconds: int, asked: Coroutine[Any, Any, T]) -> T:
    """Runs `asked` with the process's clock ahead. The times in an access token can't be made older afterwards."""
    clock = type(keyturn.db).clock
    keyturn.db.clock = lambda: clock(keyturn.db) + timedelta(seconds=seconds)  # type: ignore[method-assign]  # the clock ahead
    try:
        return await asked
    finally:
        vars(keyturn.db).pop("clock", None)


WHICH = integers(0, 15)
ROLES = sampled_from(["editor", "admin", "user"])
USES = sampled_from(["access", "refresh"])
FIRST, SECOND = "the first of two keys", "the second of two keys"
KEYS = sampled_from([FIRST, SECOND, FIRST, None])


class Machine(RuleBasedStateMachine):
    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        # Enable every rule in every example. By default, Hypothesis leaves some rules out of each example, and so few
        # examples would not reach every transition.
        self._rules_strategy.enabled_rules_strategy = just(cast("Any", SimpleNamespace(is_enabled=lambda _: True)))
        self.model = Model()
        self.proofs: list[tuple[User, int, Authenticated]] = []
        self.steps = 0
        self.run(world.empty())
        first = {"access": self.keyturn.keys.signing_access.kid, "refresh": "refresh-1"}
        self.model.keys = {use: [Key(kid, ready=True)] for use, kid in first.items()}
        for name, role in (("ada", "user"), ("eve", "user"), ("root", "admin")):
            email = f"{name}@example.com"
            real = self.run(self.keyturn.users.create(email, "a long password 0", role, by=SERVICE))
            self.model.users.append(User(email, real.id, role))
        self.began = time.monotonic()

    # -- questions to the service

    @property
    def keyturn(self) -> Keyturn:
        """The instance whose turn it is."""
        return self.world.instances[self.steps % 2]

    @property
    def drift(self) -> float:
        """How far the real clock may be ahead of the model's, in seconds."""
        return time.monotonic() - self.began + 0.01

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.world.run(coroutine)

    def ask(self, coroutine: Coroutine[Any, Any, T]) -> T | Refusal:
        try:
            answer: T | Refusal = self.run(coroutine)
        except Refusal as refusal:
            answer = refusal
        assume(self.drift < MARGIN)
        return answer

    def reach(self, transition: str) -> None:
        self.world.reached[transition] += 1

    def must_refuse(self, answer: object, expected: Refused) -> None:
        assert type(answer) is expected.error, answer
        assert answer.reason == expected.reason
        if expected.reason:
            self.reach(f"reason: {expected.reason}")

    def close_to(self, actual: float, expected: float) -> bool:
        """Whether a remaining time, in seconds, is the model's, less the drift."""
        return expected - self.drift - 1 < actual <= expected

    def must_be_newest(self, tokens: object, s: SignIn) -> None:
        """Checks that the answer is the session's newest pair, and that it says how long each part lives."""
        assert isinstance(tokens, Tokens), tokens
        assert (tokens.session_id, tokens.refresh_token) == (s.id, s.chain[-1].text)
        key, now = self.model.signing("access"), self.model.now
        expires_at = min(s.rotated + ACCESS, s.absolute)
        new = Access(s, tokens.access_token, key, s.generation, s.role, now, expires_at)
        # As time passes, the test moves the moments in the rows; those in tokens stay. So a retry gets the identical
        # token only at the same moment.
        same = [a for a in s.access if replace(a, text=new.text) == new] or [
            a for a in s.access if (a.key, a.generation, a.role, a.signed_at) == (key, new.generation, new.role, now)
        ]
        if same:
            assert tokens.access_token == same[0].text
        else:
            assert tokens.access_token not in {a.text for o in self.model.sessions for a in o.access}
            s.access.append(new)
        assert jwt.get_unverified_header(tokens.access_token)["kid"] == key.kid
        body = tokens.body()
        assert self.close_to(int(body["expires_in"]), max(0, expires_at - now))  # over at a late retry by key
        assert self.close_to(int(body["refresh_expires_in"]), s.deadline[0] - now)
        assert self.close_to(int(body["session_expires_in"]), s.absolute - now)

    def pick(self, which: int) -> SignIn:
        """A session. For an even number a live one, which is made if there is none. For an odd number any."""
        live = self.model.live()
        if which % 2 == 0 and not live:
            live = [self.sign_in(next(u for u in self.model.users if not u.disabled))]
        found = live if which % 2 == 0 else self.model.sessions
        return found[which // 2 % len(found)]

    # -- sign-in

    def sign_in(self, who: User) -> SignIn:
        proof = self.ask(self.keyturn.sign_in.authenticate(who.email, f"a long password {who.password}"))
        assert isinstance(proof, Authenticated), proof
        return self.start(who, proof)

    @initialize(user=integers(0, 2), sessions=integers(2, 3))
    def first_login(self, user: int, sessions: int) -> None:
        self.login(user, 1, sessions)

    @rule(user=integers(0, 2), right=integers(0, 3), sessions=integers(1, 2))
    def login(self, user: int, right: int, sessions: int) -> None:
        who = self.model.users[user]
        password = f"a long password {who.password}" if right else "another password"
        proof = self.ask(self.keyturn.sign_in.authenticate(who.email, password))
        if not right or who.disabled:
            self.must_refuse(proof, Refused(InvalidGrant))
            self.reach("login refused")
            return
        assert isinstance(proof, Authenticated), proof
        self.proofs.append((who, who.password, proof))
        for _ in range(sessions):
            self.start(who, proof)

    @precondition(lambda self: self.proofs)
    @rule(which=WHICH)
    def an_older_proof_of_the_password(self, which: int) -> None:
        who, password, proof = self.proofs[which % len(self.proofs)]
        if not who.disabled and password == who.password:
            self.start(who, proof)
            return
        self.must_refuse(self.ask(self.keyturn.starting.start(proof, by=SERVICE)), Refused(InvalidGrant))
        self.reach("outdated proof refused")

    def start(self, who: User, proof: Authenticated) -> SignIn:
        tokens = self.ask(self.keyturn.starting.start(proof, by=SERVICE))
        assert isinstance(tokens, Tokens), tokens
        assert tokens.session_id not in {s.id for s in self.model.sessions}
        first = Refresh(tokens.refresh_token, self.model.signing("refresh"))
        s = SignIn(tokens.session_id, who, who.role, self.model.now, self.model.now, [first])
        self.model.sessions.append(s)
        self.must_be_newest(tokens, s)
        self.reach("login")
        return s

    # -- refresh

    def present(self, s: SignIn, generation: int, times: int = 1, *, keys: Sequence[str | None] | None = None) -> None:
        """Presents a token several times at once: by turns to both instances, or with these retry keys to one."""

        async def one(keyturn: Keyturn, key: str | None) -> Tokens | Refusal:
            while True:
                try:
                    return await keyturn.rotation.refresh(s.chain[generation].text, by=SERVICE, retry_key=key)
                except TemporarilyUnavailable:
                    assert times > 1  # the row was locked, so the client tries again
                except Refusal as refusal:
                    return refusal

        async def all_at_once() -> list[Tokens | Refusal]:
            turns = [self.world.instances[(self.steps + i) % 2] for i in range(times)] if keys is None else None
            return await asyncio.gather(*map(one, turns or [self.keyturn] * len(presented), presented))

        presented = [None] * times if keys is None else keys
        answers = self.ask(all_at_once())
        assert isinstance(answers, list)
        for key, answer in zip(presented, answers, strict=True):
            expected = self.model.refresh(s, generation, key)
            if isinstance(expected, Refused):
                self.must_refuse(answer, expected)
                self.reach("reuse" if expected.reason == "reuse_detected" else "refresh refused")
                continue
            assert isinstance(answer, Tokens), answer
            if expected == "rotate":
                taken = {refresh.text for o in self.model.sessions for refresh in o.chain}
                assert answer.refresh_token not in taken
                s.chain.append(Refresh(answer.refresh_token, self.model.signing("refresh")))
                s.rotated, s.retry_key = self.model.now, key
            self.must_be_newest(answer, s)
            self.reach(expected)

    @rule(which=WHICH, times=integers(1, 3), at_once=integers(1, 3))
    def refresh(self, which: int, times: int, at_once: int) -> None:
        s = self.pick(which * 2)
        for _ in range(times):
            self.present(s, s.generation, at_once)

    @rule(which=WHICH, after=sampled_from([0, 10, 40]))
    def retry(self, which: int, after: int) -> None:
        s = self.pick(which * 2)
        if s.generation == 0:
            self.present(s, 0)
        if after:
            self.grow_older(after)
        self.present(s, s.generation - 1)

    @rule(
        which=WHICH,
        keys=lists(KEYS, min_size=1, max_size=3),
        back=sampled_from([1, 2, 1]),
        after=sampled_from([WINDOW, 10, IDLE]),
        again=KEYS,
    )
    def retry_with_a_key(self, which: int, keys: list[str | None], back: int, after: int, again: str | None) -> None:
        s = self.pick(which * 2)
        for _ in range(back):
            self.present(s, s.generation, keys=keys)
        self.grow_older(after)
        self.present(s, s.generation - back, keys=[again])

    @rule(which=WHICH, after=sampled_from([WINDOW, 700]))
    def a_late_retry_with_its_key(self, which: int, after: int) -> None:
        s = self.pick(which * 2)
        self.present(s, s.generation, keys=[FIRST])
        self.grow_older(after)
        self.present(s, s.generation - 1, keys=[FIRST])

    @rule(which=WHICH, back=integers(2, 4))
    def reuse(self, which: int, back: int) -> None:
        s = self.pick(which * 2)
        for _ in range(back - s.generation):
            self.present(s, s.generation)
        self.present(s, max(0, s.generation - back))

    @rule(which=WHICH, back=integers(0, 5), with_key=booleans())
    def present_any_generation(self, which: int, back: int, with_key: bool) -> None:
        s = self.pick(which)
        self.present(s, max(0, s.generation - back), keys=[s.retry_key if with_key else None])

    @rule(which=WHICH, at=integers(4, 87), to=sampled_from("AB_-z9"))
    def junk(self, which: int, at: int, to: str) -> None:
        genuine = self.pick(which).chain[-1].text
        bent = genuine[:at] + to + genuine[at + 1 :]
        for junk in (bent if bent != genuine else genuine[:-1], genuine + "A", ""):
            self.must_refuse(self.ask(self.keyturn.rotation.refresh(junk, by=SERVICE)), Refused(InvalidGrant))
        self.reach("junk")

    @rule(which=WHICH, step=sampled_from([-1, 0, 1]))
    def a_token_of_another_branch(self, which: int, step: int) -> None:
        """Presents an authentic token that is not in this row's history, as happens after a restore from a backup."""
        s = self.pick(which)
        if step < 0:
            self.present(s, s.generation, keys=["a key"])  # a live session gets a successor within its window
        newest = s.chain[-1]
        if newest.key.retired or s.generation + step < 0:
            return
        real = self.keyturn.keys.verify_refresh_token(newest.text)
        other = replace(real, generation=s.generation + step, secret=sha256(real.secret).digest(), raw=b"")
        over = None if s.gone else s.over(self.model.now)
        asked = self.keyturn.rotation.refresh(other.text, by=SERVICE, retry_key=s.retry_key)
        self.must_refuse(self.ask(asked), Refused(InvalidGrant, over))
        self.reach("another branch")

    # -- logout

    @rule(
        which=WHICH,
        back=integers(0, 3),
        tokens=sampled_from(["access", "refresh", "both", "junk and refresh", "access and junk", "junk"]),
        scope=sampled_from(["others", "this", "all"]),
    )
    def logout(self, which: int, back: int, tokens: str, scope: str) -> None:
        s = self.pick(which)
        if scope == "all" and s.ended and s.ended[0] == "logout_all":
            return  # a repeated logout of all sessions is no transition
        if back < 2 and s in self.model.live():
            self.sign_in(s.user)  # another session, which the logout ends or spares
            self.present(s, s.generation)  # a fresh access token
        access = s.access[max(0, len(s.access) - 1 - back)] if tokens in {"access", "both", "access and junk"} else None
        refresh = (s, max(0, s.generation - back)) if tokens in {"refresh", "both", "junk and refresh"} else None
        self.log_out(access, refresh, scope, junk="junk" in tokens)

    @rule(which=WHICH, other=WHICH)
    def logout_of_two(self, which: int, other: int) -> None:
        s = self.pick(other)
        self.log_out(self.pick(which).access[-1], (s, s.generation), "this")

    def log_out(
        self, access: Access | None, refresh: tuple[SignIn, int] | None, scope: str, *, junk: bool = False
    ) -> None:
        texts = (
            access.text if access else "junk" if junk else None,
            refresh[0].chain[refresh[1]].text if refresh else "junk" if junk else None,
        )
        given = [[text] if text is not None else [] for text in texts]
        older = self.model.now - access.signed_at if access else 0
        asked = self.keyturn.ending.logout(given[0], given[1], scope, by=SERVICE)  # type: ignore[arg-type]  # both are literals
        answer = self.ask(ahead(self.keyturn, older, asked))
        expected = self.model.logout(access, refresh, scope)
        if isinstance(expected, Refused):
            error = InvalidGrant if junk and not refresh else expected.error  # the refresh token is checked last
            self.must_refuse(answer, replace(expected, error=error) if expected.reason is None else expected)
            self.reach("logout refused")
        else:
            assert isinstance(answer, set), answer
            self.reach(f"logout {scope}")

    # -- users

    @rule(which=WHICH, right=integers(0, 3))
    def change_password(self, which: int, right: int) -> None:
        s = self.pick(which)
        if s.gone or (not s.ended and s.over(self.model.now)):
            return  # the session is refused before the password is checked
        who = s.user
        current = f"a long password {who.password}" if right else "another password"
        asked = self.keyturn.users.change_password(
            s.id, who.id, current, f"a long password {who.password + 1}", by=SERVICE
        )
        answer = self.ask(asked)
        if not right or s.ended or who.disabled:
            self.must_refuse(answer, Refused(WrongPassword if not right or who.disabled else InvalidGrant))
            self.reach("password change refused")
            return
        assert answer is None
        who.password += 1
        self.model.end_all(who, "password_changed", s)
        self.reach("password changed")

    @rule(user=integers(0, 2), for_good=booleans())
    def disable(self, user: int, for_good: bool) -> None:
        who = self.model.users[user]
        answer = self.ask(self.keyturn.users.disable(who.id, by=SERVICE))
        if self.model.last_administrator(who):
            self.must_refuse(answer, Refused(Conflict))
            self.reach("last administrator kept")
            return
        who.disabled = True
        assert answer == self.model.end_all(who, "user_disabled")
        self.reach("disabled")
        if not for_good:
            self.enable(who)

    def enable(self, who: User) -> None:
        assert self.ask(self.keyturn.users.enable(who.id, by=SERVICE)) is None
        who.disabled = False
        self.reach("enabled")

    @rule(which=WHICH, role=ROLES)
    def change_role(self, which: int, role: str) -> None:
        self.set_role(self.pick(which * 2).user, role)

    @rule(what=sampled_from(["revoke", "enable", "password"]), which=WHICH)
    def administer(self, what: str, which: int) -> None:
        who = self.model.users[which % len(self.model.users)]
        match what:
            case "revoke":
                self.revoke(self.pick(which))
            case "enable":
                self.enable(who)
            case "password":
                who.password += 1
                count = self.ask(self.keyturn.users.set_password(who.id, f"a long password {who.password}", by=SERVICE))
                assert count == self.model.end_all(who, "password_changed")
                self.reach("password set")

    def revoke(self, s: SignIn) -> None:
        answer = self.ask(self.keyturn.ending.end({s.id}, "revoked_by_admin", by=SERVICE))
        assert answer == self.model.end([s], "revoked_by_admin")
        self.reach("revoked")
        self.present(s, s.generation)

    def set_role(self, who: User, role: str) -> None:
        answer = self.ask(self.keyturn.users.set_role(who.id, role, by=SERVICE))
        if role != "admin" and self.model.last_administrator(who):
            self.must_refuse(answer, Refused(Conflict))
            self.reach("last administrator kept")
            return
        assert answer is None
        who.role = role
        for s in self.model.sessions:
            if s.user is who and not s.ended:
                s.role = role
        self.reach("role changed")

    # -- keys

    @rule(what=sampled_from(["retire", "rotate", "generate", "a minute passes"]), use=USES, which=integers(0, 3))
    def keys(self, what: str, use: Any, which: int) -> None:
        match what:
            case "rotate":
                self.generate(use)
                s = self.pick(which * 2)
                self.present(s, s.generation)  # until the new key signs, tokens are under the old one
                self.a_minute_passes()
            case "retire":
                if not self.retire(use, which):
                    self.generate(use)
                    self.a_minute_passes()
                    self.retire(use, which)
            case "generate":
                self.generate(use)
            case "a minute passes":
                self.a_minute_passes()

    @rule(which=WHICH)
    def the_refresh_key_of_live_sessions_is_retired(self, which: int) -> None:
        s = self.pick(which * 2)
        self.sign_in(s.user)
        self.generate("refresh")
        self.a_minute_passes()
        there = [key for key in self.model.keys["refresh"] if not key.retired]
        self.retire("refresh", there.index(s.chain[-1].key) + which % 2 * len(there))

    def generate(self, use: Any) -> None:
        self.model.keys[use].append(Key(self.run(self.keyturn.keys.generate(use, by=SERVICE))))
        self.run(self.world.load())
        self.reach(f"{use} key generated")

    def a_minute_passes(self) -> None:
        self.run(self.world.a_minute_passes_for_keys())
        for key in self.model.keys["access"] + self.model.keys["refresh"]:
            key.ready = True
        self.reach("new key signs")

    def retire(self, use: str, which: int) -> bool:
        there = [key for key in self.model.keys[use] if not key.retired]
        key = there[which % len(there)]
        if use == "refresh" and (under := [s for s in self.model.live() if s.chain[-1].key is key]):
            self.sign_in(under[0].user)
            self.present(under[0], under[0].generation)  # if a newer key signs, this session moves to it
        answer = self.ask(self.keyturn.keys.retire(key.kid, by=SERVICE))
        self.run(self.world.load())
        if not any(other.ready for other in there if other is not key):
            self.must_refuse(answer, Refused(Conflict))
            self.reach("last key kept")
            return False
        key.retired = True
        self.reach(f"{use} key retired")
        if use == "access":
            assert answer is None
            return True
        assert isinstance(answer, int)
        under = [s for s in self.model.live() if s.chain[-1].key is key]
        if under and which % 2:  # the client comes before the command reaches its session
            self.present(under[0], under[0].generation)
        assert self.ask(self.keyturn.sweeping.end_under(answer, most=2, by=SERVICE)) == self.model.retire(key)
        for s in under[:2]:
            self.present(s, s.generation)
            self.log_out(None, (s, s.generation), "this")
            self.reach("ended with its key")
        for s in self.model.live()[:4]:
            for generation in [g for g, token in enumerate(s.chain) if token.key is key][-1:]:
                self.present(s, generation)
                self.log_out(None, (s, generation), "this")
                self.reach("went on under another key")
        return True

    # -- time

    @rule(seconds=sampled_from([1, 10, 30, WINDOW, 700]))
    def time_passes(self, seconds: int) -> None:
        self.grow_older(seconds)

    @rule(which=WHICH, deadline=sampled_from(["idle", "window"]), just_before=booleans())
    def a_token_is_presented_at_a_deadline(self, which: int, deadline: str, just_before: bool) -> None:
        self.present_at(self.pick(which * 2), deadline, just_before)

    @rule(which=WHICH, just_before=booleans())
    def a_token_is_presented_at_the_absolute_deadline(self, which: int, just_before: bool) -> None:
        self.present_at(self.pick(which * 2), "absolute", just_before)

    def present_at(self, s: SignIn, deadline: str, just_before: bool) -> None:
        if deadline == "absolute":
            self.grow_older(max(1, s.absolute - IDLE - self.model.now))
        if deadline != "idle":
            self.present(s, s.generation)
        until = {"idle": s.deadline[0], "window": s.rotated + WINDOW, "absolute": s.absolute}[deadline]
        self.grow_older(max(1, until - self.model.now - (MARGIN + 1 if just_before else 0)))
        self.present(s, s.generation - (deadline == "window" and s.generation > 0))

    def grow_older(self, seconds: int) -> None:
        self.run(time_passes(self.keyturn, timedelta(seconds=self.model.later(seconds))))
        self.reach("time passes")

    @precondition(lambda self: len(self.model.live()) < len(self.model.sessions))
    @rule(kept_for=sampled_from([0, WEEK, MONTH]), much_later=booleans())
    def gc(self, kept_for: int, much_later: bool) -> None:
        if much_later:
            self.grow_older(max(kept_for, REMEMBERED))
        count = self.ask(self.keyturn.upkeep.gc(kept_for=timedelta(seconds=kept_for), most=3, by=SERVICE))
        assert count == self.model.gc(kept_for)
        self.reach("gc deletes" if count else "gc finds nothing")

    # -- after each step

    @invariant()
    def rows_and_tokens_are_as_the_model_says(self) -> None:
        self.steps += 1  # the other instance checks the work of the first
        self.ask(self.compare_rows())
        self.ask(self.compare_access_tokens("verify", [s.access[-1] for s in self.model.sessions if s.access]))

    def teardown(self) -> None:
        if sys.exc_info()[0] is None:
            issued = [access for s in self.model.sessions for access in s.access]
            for ask in ("verify", "authorise"):
                self.ask(self.compare_access_tokens(ask, issued))
            live = self.ask(self.keyturn.reading.list(Filter(), limit=1000))
            assert isinstance(live, Page), live
            assert {state.id for state in live.sessions} == {s.id for s in self.model.live()}

    async def compare_rows(self) -> None:
        db = self.keyturn.db
        async with db.look() as connection:
            rows = (await connection.execute(select(Session.__table__, db.now().label("now")))).all()
        there = {s.id: s for s in self.model.sessions if not s.gone}
        assert {row.id for row in rows} == there.keys()
        for row in rows:
            s = there[row.id]
            assert (row.user_id, row.role, row.generation) == (s.user.id, s.role, s.generation)
            assert (row.end_reason, row.ended_at is not None) == (s.ended[0] if s.ended else None, bool(s.ended))
            assert row.token_digest == sha256(self.bytes_of(s)).digest()
            assert row.retry_key_digest == (sha256(s.retry_key.encode()).digest() if s.retry_key else None)
            assert f"refresh-{row.key_number}" == s.chain[-1].key.kid
            moments = [
                (row.created_at, s.created),
                (row.rotated_at, s.rotated),
                (row.idle_expires_at, s.deadline[0]),
                (row.absolute_expires_at, s.absolute),
            ]
            for real, moment in [*moments, (row.ended_at, s.ended[1])] if s.ended else moments:
                assert 0 <= (row.now - real).total_seconds() - (self.model.now - moment) < self.drift

    def bytes_of(self, s: SignIn) -> bytes:
        return bytes(self.keyturn.keys.verify_refresh_token(s.chain[-1].text))

    async def compare_access_tokens(self, ask: str, issued: list[Access]) -> None:
        async def compare(access: Access) -> None:
            expected = getattr(self.model, ask)(access)
            older = self.model.now - access.signed_at
            try:
                asked = getattr(self.keyturn.reading, ask)(access.text)
                answer = await ahead(self.keyturn, older, asked)
            except InvalidToken as refusal:
                assert expected
                self.must_refuse(refusal, expected)
                return
            assert expected is None
            if isinstance(answer, AccessToken):
                s = access.session
                assert (answer.session_id, answer.subject, answer.role) == (s.id, str(s.user.id), access.role)
                assert answer.claims["jti"] == f"{s.id}.{access.generation}"
            else:
                assert answer.role == access.session.role

        await asyncio.gather(*(compare(access) for access in issued))


TRANSITIONS = {
    "login", "login refused", "outdated proof refused", "rotate", "retry", "retry by key", "reuse", "refresh refused", "junk",
    "another branch", "logout this", "logout others", "logout all", "logout refused", "password changed",
    "password change refused", "password set", "disabled", "enabled", "role changed", "last administrator kept",
    "revoked", "access key generated", "refresh key generated", "new key signs", "access key retired",
    "refresh key retired", "ended with its key", "went on under another key", "last key kept", "time passes", "gc deletes", "gc finds nothing",
}  # fmt: skip

REASONS: set[Reason] = {
    "logout",
    "logout_all",
    "idle_timeout",
    "absolute_timeout",
    "reuse_detected",
    "password_changed",
    "user_disabled",
    "revoked_by_admin",
}


def drive(world: World, *, examples: int, steps: int = 25) -> None:
    """Lets Hypothesis take the steps. They are the same in each run, so each run reaches the same transitions."""
    run_state_machine_as_test(
        cast("Any", lambda: Machine(world)),
        settings=settings(
            derandomize=True,
            database=None,
            deadline=None,
            max_examples=examples,
            stateful_step_count=steps,
            phases=[Phase.generate],
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_service_and_the_model_agree_after_each_step(database_url: str) -> None:
    with a_world(database_url) as world:
        drive(world, examples=90)
    for transition, count in sorted(world.reached.items()):
        print(f"{count:6} {transition}")
    assert TRANSITIONS | {f"reason: {reason}" for reason in REASONS} <= world.reached.keys()
