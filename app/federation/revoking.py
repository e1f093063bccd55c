"""Revoking upstream: the end of a local session ends the issuer's session behind it.

A background task of each process takes down orders (`harvest`) and carries them out (`orders`, `scalekit`). So a local
act neither waits for the issuer nor fails with it, and an order survives the process. While no issuer revokes, the task
does no I/O.

If an issuer is away, this process asks it less and less often, and with one order at a time. So neither the issuer nor
the database pays for thousands of orders that can't be carried out now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import Any, cast
from uuid import UUID

from ..actors import Actor
from ..errors import Refusal, TemporarilyUnavailable
from ..log import get_logger
from ..storage.database import Database
from .harvest import Harvest
from .issuer import Configured
from .issuers import Issuers
from .orders import LEASE, Order, Orders, Outcome
from .owed import Owed, State
from .scalekit import Scalekit

_EVERY = timedelta(seconds=1)
_THOROUGH_EVERY = timedelta(seconds=10)
_GIVE_UP_EVERY = timedelta(minutes=1)

_AT_ONCE = 16
"""Calls to one issuer at a time, in each process."""

_ATTEMPT = LEASE - timedelta(seconds=10)
"""How long one attempt may take. The rest of the lease is for writing what became of it."""

_LONGEST_REST = timedelta(minutes=1)

_log = get_logger()


@dataclass(slots=True)
class _Rest:
    """The rest that this process gives an issuer which is away."""

    failures: int = 0
    until: float = float("-inf")  # monotonic clock


class Revoking:
    """Revokes upstream sessions whose local session was ended by somebody."""

    def __init__(self, db: Database, issuers: Issuers, scalekit: Scalekit) -> None:
        self._issuers = issuers
        self._scalekit = scalekit
        self._harvest = Harvest(db)
        self._orders = Orders(db)
        self._owed = Owed(db)
        self._rounds: dict[str, asyncio.Task[None]] = {}
        self._rests: dict[str, _Rest] = {}
        self._thorough_at = self._give_up_at = float("-inf")
        self._failure = ""

    async def run(self) -> None:
        """Harvests and carries out, until it is cancelled. No failure ends it."""
        try:
            while True:
                try:
                    await self._turn()
                except Exception as e:  # noqa: BLE001  # whatever it was, the next turn tries again
                    self._note_failure(_cause(e))
                else:
                    self._failure = ""
                await asyncio.sleep(_EVERY.total_seconds())
        finally:
            rounds = self._rounds.values()
            for task in rounds:
                task.cancel()
            await asyncio.gather(*rounds, return_exceptions=True)

    # -- for operators

    async def revoke(self, of: Configured, upstream_id: str, *, by: Actor) -> Outcome:
        """Revokes a session at an issuer now, with an event. Local sessions end when the issuer tells of the end.

        Raises:
            InvalidRequest: the issuer has no API, or refuses.
            TemporarilyUnavailable: the issuer is away, or the database, for the event. A repeated call is safe.
        """
        outcome = await self._scalekit.revoke_session(of, upstream_id)
        await self._owed.note(f"{of.name} {upstream_id}", by=by)
        return outcome

    async def revoke_all(self, of: Configured, upstream_user: str, *, by: Actor) -> int | None:
        """Revokes all sessions of a user at an issuer now, with an event. Returns how many, if the issuer says it.

        Raises:
            NotFound: the issuer has no such user.
            InvalidRequest, TemporarilyUnavailable: as `revoke`.
        """
        revoked = await self._scalekit.revoke_sessions_of(of, upstream_user)
        await self._owed.note(f"{of.name} {upstream_user}", by=by)
        return revoked

    async def list(
        self, state: State | None = None, *, limit: int = 100, after: UUID | None = None
    ) -> Sequence[dict[str, Any]]:
        """Revocations that wait and those that were given up: see `Owed.list`."""
        return cast("Sequence[dict[str, Any]]", await self._owed.list(state, limit=limit, after=after))

    async def dead_letters(self, *, limit: int = 100, after: UUID | None = None) -> Sequence[dict[str, Any]]:
        """Revocations that were given up."""
        return await self.list("given_up", limit=limit, after=after)

    async def replay(self, session_id: UUID, *, by: Actor) -> None:
        """Orders a revocation anew that was given up.

        Raises:
            NotFound: nothing was given up for this local session.
            TemporarilyUnavailable: the database is away.
        """
        await self._owed.renew(session_id, by=by)

    # -- the task

    async def _turn(self) -> None:
        revoking = {name: of for name, of in self._issuers.in_force.items() if of.revokes}
        if not revoking:
            return
        await self._take_down(revoking)
        for name in await self._orders.due() & revoking.keys():
            rest, under_way = self._rests.setdefault(name, _Rest()), self._rounds.get(name)
            if (under_way is None or under_way.done()) and monotonic() >= rest.until:
                self._rounds[name] = asyncio.create_task(self._round(revoking[name], rest))

    async def _take_down(self, issuers: Collection[str]) -> None:
        now = monotonic()
        await self._harvest.quick(issuers)
        if now >= self._thorough_at:
            await self._harvest.thorough(issuers)
            self._thorough_at = now + (_THOROUGH_EVERY if self._harvest.is_through else _EVERY).total_seconds()
        if now >= self._give_up_at:
            self._say_given_up(await self._orders.give_up_old())
            self._give_up_at = now + _GIVE_UP_EVERY.total_seconds()

    async def _round(self, of: Configured, rest: _Rest) -> None:
        """Carries out the orders of an issuer, until none is due or the issuer is away."""
        try:
            while orders := await self._orders.claim(of.name, 1 if rest.failures else _AT_ONCE):
                outcomes = await asyncio.gather(*(self._attempt(of, order) for order in orders))
                pairs = list(zip(orders, outcomes, strict=True))
                done = [(order, outcome) for order, outcome in pairs if not isinstance(outcome, Refusal)]
                failed = [(order, outcome.cause) for order, outcome in pairs if isinstance(outcome, Refusal)]
                self._say_given_up(await self._orders.settle(of.name, done, failed))
                if all(isinstance(outcome, TemporarilyUnavailable) for outcome in outcomes):
                    self._pause(of, rest, failed[0][1])
                    return
                if rest.failures:
                    _log.info("upstream_back", issuer=of.name)
                rest.failures = 0
        except Exception as e:  # noqa: BLE001  # mostly the database: the orders are due again after the lease
            self._note_failure(_cause(e))

    async def _attempt(self, of: Configured, order: Order) -> Outcome | Refusal:
        try:
            async with asyncio.timeout(_ATTEMPT.total_seconds()):
                return await self._scalekit.revoke_session(of, order.upstream_id)
        except Refusal as e:
            return e
        except TimeoutError:
            return TemporarilyUnavailable("no answer in time")

    def _pause(self, of: Configured, rest: _Rest, cause: str) -> None:
        if not rest.failures:
            _log.warning("upstream_away", issuer=of.name, cause=cause)
        rest.failures += 1
        rest.until = monotonic() + min(_EVERY * 2 ** min(rest.failures, 10), _LONGEST_REST).total_seconds()

    def _say_given_up(self, sessions: Sequence[UUID]) -> None:
        for session_id in sessions:
            _log.warning("upstream_given_up", session_id=str(session_id))

    def _note_failure(self, cause: str) -> None:
        if cause != self._failure:  # one line, and not one in each second
            _log.warning("revoking_failed", cause=cause)
        self._failure = cause


def _cause(error: Exception) -> str:
    return error.cause if isinstance(error, Refusal) else f"{type(error).__name__}: {error}"
