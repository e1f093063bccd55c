"""Budgets: how many attempts may fail, and how fast a budget fills up again. Pure: no I/O, no clock.

The algorithm is GCRA (ITU-T I.371), which is a leaky bucket in one number: the moment at which the budget is whole
again. An attempt moves that moment by one interval. The attempt is refused if the moment would lie more than a whole
window ahead. So a refused attempt changes nothing, and one attempt is possible an interval after the last that counted,
however many were refused in between. All moments are whole microseconds, so that Redis and this file agree exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import NamedTuple, Self

from ..metrics import LimitWord
from ..settings_values import rate_in


@dataclass(frozen=True, slots=True)
class Quota:
    """The size of a budget."""

    name: LimitWord
    """A word for clients, metrics and the log."""
    most: int
    window: timedelta
    interval: int = field(init=False)
    """Microseconds in which one attempt comes back."""
    span: int = field(init=False)
    """Microseconds in which an empty budget is whole again."""

    def __post_init__(self) -> None:
        interval = self.window // timedelta(microseconds=1) // self.most
        object.__setattr__(self, "interval", interval)
        object.__setattr__(self, "span", interval * self.most)

    @classmethod
    def of(cls, name: LimitWord, rate: str) -> Self | None:
        """The quota of a setting, as ``20/600``. None for ``off``."""
        found = rate_in(rate)
        return None if found is None else cls(name, *found)

    def take(self, whole_at: int, now: int, under_way: int = 0) -> tuple[int, int]:
        """The moment after one more attempt, and how long the attempt has to wait: above zero, it is refused.

        Args:
            whole_at: the moment at which the budget is whole.
            now: the moment.
            under_way: how many attempts may still fail, and hold no part. They count while less than half of the budget
                is left. Otherwise all that come at once would pass whenever one part is back.
        """
        latest = now + self.span
        after = max(self._held(whole_at, latest), now) + self.interval
        if under_way and after > now + self.span // 2:
            return after, min(after + under_way * self.interval - latest, self.interval)
        return after, after - latest

    def charge(self, whole_at: int, now: int) -> int:
        """The moment after one more failure, which nobody could refuse any more: never later than an empty budget's."""
        return min(self.take(whole_at, now)[0], now + self.span)

    def give_back(self, whole_at: int, now: int) -> int:
        """The moment after an attempt turned out to be no failure.

        Time that passed meanwhile counts too. So an attempt may give back more than it took, by the time for which its
        part was held: milliseconds of an interval of many seconds.
        """
        return max(self._held(whole_at, now + self.span) - self.interval, now)

    @staticmethod
    def _held(whole_at: int, latest: int) -> int:
        """No moment lies further ahead than an empty budget's. So a clock that stepped back keeps nobody waiting."""
        return min(whole_at, latest)


class Budget(NamedTuple):
    """One budget that an attempt needs."""

    quota: Quota
    key: bytes
    """A keyed digest of the account, device or network: nobody can tell from it who is meant."""
    is_held: bool = True
    """Whether the attempt holds a part of the budget from its beginning, and gives it back unless it fails.

    Otherwise the attempt only needs some of the budget left, and takes a part when it has failed. So an office whose
    people all sign in at once, with the right passwords, takes nothing of its network's budget. While less than half is
    left, a process lets no more attempts be under way than there are parts.
    """


class Exhausted(NamedTuple):
    """The budget that refuses an attempt."""

    budget: Budget
    wait: timedelta
