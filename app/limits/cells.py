"""The budgets in the memory of one process. They hold for its own attempts, whether or not Redis is there."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from datetime import timedelta

from .budgets import Budget, Exhausted

MOST = 65_536
"""The most budgets that one process remembers: about 12 MB."""


_LOOKS = 2
"""How many budgets each change looks at, in turn, for those that are whole by now."""


def _microseconds() -> int:
    return time.monotonic_ns() // 1000


class Cells:
    """For each key, the moment at which its budget is whole again. A whole budget needs no entry.

    Memory is bounded. Each change looks at a few budgets in turn, and forgets those that are whole. If memory is full
    all the same, it forgets the one of these that would be whole first. So budgets that are nearly whole, which cost a
    guesser little, push no exhausted one out.
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
        budgets, fullest = self._whole_at, None
        for _ in range(_LOOKS):
            if (looked_at := next(iter(budgets), None)) is None:
                return
            moment = budgets[looked_at]
            if moment <= now:
                del budgets[looked_at]
                continue
            budgets.move_to_end(looked_at)
            if fullest is None or moment < budgets[fullest]:
                fullest = looked_at
        if fullest is not None and len(budgets) > self._most:
            del budgets[fullest]
