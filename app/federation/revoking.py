"""Revoking upstream: the end of a local session ends the issuer's session behind it.

A background task of each process takes down orders (`harvest`) and carries them out (`orders`, `scalekit`). So a local
act neither waits for the issuer nor fails with it, and an order survives the process. While no issuer revokes, the task
does no I/O.

If an issuer is away, this process asks it less and less often, and with one order at a time. So neither the issuer nor
the database pays for thousands of orders that can't be carried out now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic
from uuid import UUID

from sqlalchemy import select

from ..actors import Actor
from ..errors import Refusal, TemporarilyUnavailable
from ..events.audit import Event, record
from ..log import get_logger
from ..metrics import OUTBOX_ATTEMPTS
from ..storage.database import Database
from ..storage.tasks import own_task
from .harvest import Harvest
from .issuer import Configured
from .issuers import Issuers
from .orders import LEASE, Order, Orders
from .scalekit import Outcome, Scalekit

_EVERY = timedelta(seconds=1)
_THOROUGH_EVERY = timedelta(seconds=10)
_GIVE_UP_EVERY = timedelta(minutes=1)

_AT_ONCE = 4
"""Calls to one issuer at a time, in each process. Each has a TLS handshake, whose work refreshes have to wait for."""

_ATTEMPT = LEASE - timedelta(seconds=10)
"""How long one attempt may take. The rest of the lease is for writing what became of it."""

_LONGEST_REST = timedelta(minutes=1)
_MOST_DETAIL = 64  # characters of an event's detail: the most that the column takes

_log = get_logger()


@dataclass(slots=True)
class _Rest:
    """The rest that this process gives an issuer which is away."""

    failures: int = 0
    until: float = float("-inf")  # monotonic clock


class Revoking:
    """Revokes upstream sessions whose local session was ended by somebody."""

    def __init__(self, db: Database, issuers: Issuers, scalekit: Scalekit) -> None:
        self._db = db
        self._issuers = issuers
        self._scalekit = scalekit
        self._harvest = Harvest(db)
        self._orders = Orders(db)
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
        await self._note(f"{of.name} {upstream_id}", by)
        return outcome

    async def revoke_all(self, of: Configured, upstream_user: str, *, by: Actor) -> int | None:
        """Revokes all sessions of a user at an issuer now, with an event. Returns how many, if the issuer says it.

        Raises:
            NotFound: the issuer has no such user.
            InvalidRequest, TemporarilyUnavailable: as `revoke`.
        """
        revoked = await self._scalekit.revoke_sessions_of(of, upstream_user)
        await self._note(of.name, by)  # not the user: its id may be an address, and the event stays
        return revoked

    @own_task
    async def _note(self, what: str, by: Actor) -> None:
        """Writes the event of a revocation that an operator made without an order."""
        async with self._db.begin() as tx:
            now: datetime = (await tx.execute(select(self._db.now()))).scalar_one()
            shown = "".join(c if c.isprintable() else "?" for c in what[:_MOST_DETAIL])  # Postgres refuses NUL
            await record(tx, now, by, [Event("upstream_revoked", detail=shown)])

    # -- the task

    async def _turn(self) -> None:
        revoking = self._those_that_revoke()
        if not revoking:
            return
        await self._take_down(revoking)
        free = {name for name in revoking if self._is_free(name)}
        if free:  # else a long backlog of an issuer that is away would be read in vain
            for name in await self._orders.due() & free:
                self._rounds[name] = asyncio.create_task(self._round(name, self._rests[name]))

    def _those_that_revoke(self) -> Mapping[str, Configured]:
        return {name: of for name, of in self._issuers.in_force.items() if of.revokes}

    def _is_free(self, name: str) -> bool:
        """Whether a round of an issuer may begin: none is under way, and the issuer has no rest."""
        under_way = self._rounds.get(name)
        return (under_way is None or under_way.done()) and monotonic() >= self._rests.setdefault(name, _Rest()).until

    async def _take_down(self, issuers: Collection[str]) -> None:
        now = monotonic()
        await self._harvest.quick(issuers)
        if now >= self._thorough_at:
            await self._harvest.thorough(issuers)
            self._thorough_at = now + (_THOROUGH_EVERY if self._harvest.is_through else _EVERY).total_seconds()
        if now >= self._give_up_at:
            self._say_given_up(await self._orders.give_up_old())
            self._give_up_at = now + _GIVE_UP_EVERY.total_seconds()

    async def _round(self, name: str, rest: _Rest) -> None:
        """Carries out the orders of an issuer, until none is due, or the issuer is away or no longer configured."""
        try:
            while of := self._those_that_revoke().get(name):
                orders = await self._orders.claim(name, 1 if rest.failures else _AT_ONCE)
                if not orders:
                    return
                outcomes = await asyncio.gather(*(self._attempt(of, order) for order in orders))
                for order, outcome in zip(orders, outcomes, strict=True):
                    await self._write(order, outcome)
                away = [each for each in outcomes if isinstance(each, TemporarilyUnavailable)]
                if len(away) == len(outcomes):
                    self._pause(of, rest, away[0].cause)
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

    async def _write(self, order: Order, outcome: Outcome | Refusal) -> None:
        if not isinstance(outcome, Refusal):
            await self._orders.done(order, outcome)
            OUTBOX_ATTEMPTS.count("done")
        elif await self._orders.failed(order, outcome.cause):
            OUTBOX_ATTEMPTS.count("given_up")
            self._say_given_up([order.session_id])
        else:
            OUTBOX_ATTEMPTS.count("failed")

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
