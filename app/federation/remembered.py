"""Values that a process remembers: those used last, up to a number, so that strangers can't fill its memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Remembered(Generic[K, V]):
    """A mapping that forgets the value which was not used for the longest time."""

    def __init__(self, most: int) -> None:
        """Remembers at most so many values."""
        self._most = most
        self._values: OrderedDict[K, V] = OrderedDict()

    def __contains__(self, key: K) -> bool:
        return key in self._values

    def __getitem__(self, key: K) -> V:
        """The value, which counts as used now."""
        self._values.move_to_end(key)
        return self._values[key]

    def get(self, key: K) -> V | None:
        """The value, which counts as used now, or None if there is none."""
        return self[key] if key in self._values else None

    def forget(self, key: K) -> None:
        """Forgets the value, if there is one."""
        self._values.pop(key, None)

    def __setitem__(self, key: K, value: V) -> None:
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._most:
            self._values.popitem(last=False)
