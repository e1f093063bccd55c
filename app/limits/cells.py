"""The budgets in the memory of one process. They hold for its own attempts, whether or not Redis is there."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from datetime import timedelta

from .budgets import Budget, Exhausted

MOST = 65_536
"""The most budgets that one process remembers: about 12 MB."""


def _microseconds() -> int:
    return time.monotonic_ns() // 1000


class Cells:
    """For each key, the moment at which its budget is whole again. A whole budget needs no entry.

    Memory is bounded. A full one forgets the budget that was taken from least recently. A guesser who fills the memory
    with other accounts needs `MOST` failures of the hash meanwhile, and each guess on his own account renews its entry.
    """

    def __init__(self, clock: Callable[[], int] = _microseconds, most: int = MOST) -> None:
        self._clock = clock
        self._most = most
        self._whole_at: OrderedDict[bytes, int] = OrderedDict()
        self._under_way: dict[bytes, int] = {}  # attempts that took no part yet, by the budgets that they may fail on

    def __len__(self) -> int:
        return len(self._whole_at)

    def take(self, budgets: Collection[Budget], *, only_look: bool = False) -> Exhausted | None:
        """Takes a part of each budget that is held, or of none if one is empty. The empty one with the longest wait.

        If none is empty, the attempt is under way until `failed` or `give_back` is called, once.

        Args:
            budgets: those that the attempt needs.
            only_look: whether nothing is taken in any case.
        """
        now, worst, which, moments = self._clock(), 0, None, []
        for budget in budgets:
            under_way = 0 if budget.is_held else self._under_way.get(budget.key, 0)
            after, wait = budget.quota.take(self._whole_at.get(budget.key, 0), now, under_way)
            if wait > worst:
                worst, which = wait, budget
            if budget.is_held:
                moments.append((budget.key, after))
        if which is not None:
            return Exhausted(which, timedelta(microseconds=worst))
        if not only_look:
            for key, after in moments:
                self._keep(key, after, now)
            for budget in budgets:
                if not budget.is_held:
                    self._under_way[budget.key] = self._under_way.get(budget.key, 0) + 1
        return None

    def failed(self, budgets: Iterable[Budget]) -> None:
        """Takes a part of each budget that was not held."""
        now = self._clock()
        for budget in budgets:
            if not budget.is_held:
                self._is_over(budget.key)
                self._keep(budget.key, budget.quota.charge(self._whole_at.get(budget.key, 0), now), now)

    def give_back(self, budgets: Iterable[Budget]) -> None:
        """Gives the parts back that were held."""
        now = self._clock()
        for budget in budgets:
            if not budget.is_held:
                self._is_over(budget.key)
            elif budget.key in self._whole_at:
                self._keep(budget.key, budget.quota.give_back(self._whole_at[budget.key], now), now)

    def _is_over(self, key: bytes) -> None:
        left = self._under_way.pop(key, 0) - 1
        if left > 0:
            self._under_way[key] = left

    def _keep(self, key: bytes, whole_at: int, now: int) -> None:
        self._whole_at.pop(key, None)
        if whole_at > now:
            self._whole_at[key] = whole_at
        # The oldest entries go first. Two at a time, because most of them are whole by then: so the memory shrinks.
        for _ in range(2):
            oldest = next(iter(self._whole_at), None)
            if oldest is None or (self._whole_at[oldest] > now and len(self._whole_at) <= self._most):
                break
            del self._whole_at[oldest]
