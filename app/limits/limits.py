"""The limits of one process: every attempt to guess something passes here, and counts if it fails.

1. No burst passes. An attempt holds a part of the budgets of its account before anything is checked, and gets it back
   unless it fails. So of any number of attempts at once, only as many are checked as the budget allows.
2. Nobody is locked out. A refused attempt takes nothing. So one interval after the last failure (at most a minute: see
   `LONGEST_WAIT`), the right password gets in.
3. A device that signed in to the account before proves it (`KnownDevices`), and has a budget of its own. A storm can't
   touch that one. A session is such a proof as well.
4. An account that does not exist is limited as one that does, because the budgets belong to the address.
5. The process's own count holds beside that of Redis. If Redis is away, flushed or replaced, each process still allows
   no more than the quota. So all together allow at most as many times the quota as there are processes.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal, TypeVar
from uuid import UUID

from .. import metrics
from ..errors import Conflict, InvalidGrant, SlowDown
from ..settings import Settings
from .budgets import Budget, Exhausted, Quota
from .cells import Cells
from .gates import Gates
from .networks import network_of
from .redis_cells import AwayError, RedisCells
from .storms import Storms

_KEY_BYTES = 16

_T = TypeVar("_T")


class DeviceForgotten(Exception):
    """A device counts as a new one: its budget is empty, or its proof is void. The caller tries again without it.

    So whoever stole the proof can't keep its device from signing in as any stranger may.
    """


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt that may be a guess."""

    surface: metrics.SurfaceWord
    """The word for what is asked for, in metrics and the log."""
    budgets: tuple[Budget, ...]
    subject: bytes
    """The key of the account, device or address that is tried: of its gate, and of its storm in the log."""
    network: str | None
    """The network from which the attempt comes, where it counts."""
    counts_success: bool = False
    """Whether the attempt takes from its budgets also when it succeeds."""
    is_of_device: bool = False
    """Whether a known device tries to sign in, which may do so without its proof too."""


class Limits:
    """Holds the budgets of accounts, devices and networks."""

    def __init__(self, settings: Settings, key: bytes) -> None:
        """`key` is derived from the master secret, so that all instances name a budget alike, and nobody else can."""
        self._key = key
        self._prefixes = settings.network_ipv4, settings.network_ipv6
        self._account = Quota.of("account", settings.limit_account)
        self._account_network = Quota.of("account_network", settings.limit_account_network)
        self._device = Quota.of("device", settings.limit_device)
        self._network = Quota.of("network", settings.limit_network)
        self._service = Quota.of("service", settings.limit_service)
        self._register = Quota.of("account", settings.limit_register)
        self._register_network = Quota.of("network", settings.limit_register_network)
        self._exchange = Quota.of("network", settings.limit_exchange)
        self._here = Cells()
        self._redis = RedisCells(settings.redis)
        self._gates = Gates()
        self._storms = Storms()

    # -- the attempts

    def sign_in(self, address: str, client: str | None, device: bytes | None = None) -> Attempt:
        """A sign-in with a password.

        Args:
            address: the e-mail address, in its one spelling.
            client: the client's address. None: unknown, so no limit by network holds.
            device: the id of the device, if it has proved that it signed in to this account before.
        """
        if device is not None:
            return replace(self._by_known_device("login", b"device", device), is_of_device=True)
        network, account = self._network_of(client), address.encode()
        budgets = [self._budget(b"account", self._account, account)]
        if network is not None:
            budgets += [
                self._budget(b"account_network", self._account_network, network.encode() + b"\0" + account),
                self._budget(b"network", self._network, network.encode(), is_held=False),
            ]
        budgets.append(self._budget(b"service", self._service, b"", is_held=False))
        return Attempt("login", _some(budgets), self._digest(b"account", account), network)

    def within_session(self, session_id: UUID, surface: Literal["password", "reauthenticate"]) -> Attempt:
        """The password once more, within a session. Its token proves as much as a known device does."""
        return self._by_known_device(surface, b"session", session_id.bytes)

    def registration(self, address: str, client: str | None) -> Attempt:
        """A registration. Each counts alike, so that a refusal does not tell whether the address is taken."""
        network, account = self._network_of(client), address.encode()
        budgets = [self._budget(b"register", self._register, account)]
        if network is not None:
            budgets.append(self._budget(b"register_network", self._register_network, network.encode()))
        subject = self._digest(b"register", account)
        return Attempt("register", _some(budgets), subject, network, counts_success=True)

    # -- what becomes of them

    async def guess(self, attempt: Attempt, check: Callable[[], Awaitable[_T]]) -> _T:
        """The outcome of the check, if the attempt is within its budgets.

        If the check raises `InvalidGrant` or `Conflict`, the attempt failed. If it is cancelled during the check, it
        counts as failed too: otherwise a guesser would close each connection in time. Any other error says nothing of
        the attempt, so its parts are given back.

        Raises:
            SlowDown: a budget is exhausted.
            DeviceForgotten: that of a known device is.
            Exception: whatever the check raises.
        """
        # Look here first, without waiting for a turn: a storm costs microseconds, and asks nobody.
        if (exhausted := self._here.take(attempt.budgets, only_look=True)) is not None:
            raise self._refusal(attempt, exhausted)
        async with self._gate(attempt):
            await self._take(attempt)
            try:
                outcome = await check()
            except (InvalidGrant, Conflict) as refusal:
                if refusal.user_id is not None:
                    self._storms.note_user(attempt.subject, refusal.user_id)
                await self._failed(attempt.budgets)
                raise
            except asyncio.CancelledError:
                self._here.failed(attempt.budgets)
                raise
            except Exception:
                await self._give_back(attempt.budgets)
                raise
            if not attempt.counts_success:
                await self._give_back(attempt.budgets)
            return outcome

    async def external_token_refused(self, surface: Literal["exchange", "identities"], client: str | None) -> None:
        """Counts an external token that was not acceptable. A good one never comes here, and is never refused.

        Args:
            surface: what the token was for. All have one budget, so nobody gets a second one by asking for another.
            client: the client's address. None: unknown, so nothing counts.

        Raises:
            SlowDown: the network of the client sent too many.
        """
        network = self._network_of(client)
        if network is None or self._exchange is None:
            return
        budgets = (Budget(self._exchange, self._digest(b"exchange", network.encode())),)
        await self._take(Attempt(surface, budgets, budgets[0].key, network))

    async def close(self) -> None:
        """Closes the connections to Redis."""
        await self._redis.close()

    # -- the budgets

    async def _take(self, attempt: Attempt) -> None:
        exhausted = self._here.take(attempt.budgets)
        if exhausted is None:
            try:
                exhausted = await self._redis.take(attempt.budgets)
            except AwayError:
                metrics.LIMITS_LOCAL.count()
                return
            except BaseException:  # the caller has gone: as in `guess`
                self._here.failed(attempt.budgets)
                raise
            if exhausted is not None:
                self._here.give_back(attempt.budgets)
        if exhausted is not None:
            raise self._refusal(attempt, exhausted)

    async def _failed(self, budgets: tuple[Budget, ...]) -> None:
        self._here.failed(budgets)
        await self._redis.failed(budgets)

    async def _give_back(self, budgets: tuple[Budget, ...]) -> None:
        self._here.give_back(budgets)
        await self._redis.give_back(budgets)

    def _refusal(self, attempt: Attempt, exhausted: Exhausted) -> SlowDown | DeviceForgotten:
        if attempt.is_of_device:
            return DeviceForgotten()
        quota, wait = exhausted.budget.quota, exhausted.wait
        user_id = self._storms.user_of(attempt.subject)
        # A storm on one account comes from many networks, and a storm from one network goes to many accounts. So the
        # network of one attempt would mislead where the limit is that of an account, and the user where it is wide.
        is_wide = quota.name in {"network", "service"}
        refusal = self._storms.refusal(
            exhausted.budget.key if is_wide else attempt.subject,
            quota,
            wait,
            attempt.surface,
            network=attempt.network if quota.name in {"network", "account_network"} else None,
            user_id=None if is_wide else user_id,
        )
        return refusal.about(None, user_id)

    def _gate(self, attempt: Attempt) -> AbstractAsyncContextManager[None]:
        return nullcontext() if attempt.counts_success else self._gates.of(attempt.subject)

    def _by_known_device(self, surface: metrics.SurfaceWord, kind: bytes, device: bytes) -> Attempt:
        return Attempt(surface, _some([self._budget(kind, self._device, device)]), self._digest(kind, device), None)

    def _budget(self, kind: bytes, quota: Quota | None, whose: bytes, *, is_held: bool = True) -> Budget | None:
        return None if quota is None else Budget(quota, self._digest(kind, whose), is_held)

    def _digest(self, kind: bytes, whose: bytes) -> bytes:
        return hmac.digest(self._key, kind + b"\0" + whose, "sha256")[:_KEY_BYTES]

    def _network_of(self, client: str | None) -> str | None:
        return network_of(client, *self._prefixes) if client else None


def _some(budgets: list[Budget | None]) -> tuple[Budget, ...]:
    """The budgets without those that are off."""
    return tuple(budget for budget in budgets if budget is not None)
