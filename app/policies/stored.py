"""The policy of a scope as the table has it, beside the one that is in force for it. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from .bounds import Bounds
from .members import SETTINGS, Values, shown
from .policy import Policy

Source = Literal["policy", "settings", "default"]
"""The place from which a value in force comes: a row of the table, the operator's settings, or Keyturn's default."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The policy of one scope."""

    scope: str
    changed_at: datetime | None
    """When it was changed last. None: never."""
    values: Values
    """The values that the row sets."""
    bounds: Bounds
    given: Collection[str]
    """The names of the settings that the operator gave."""

    @property
    def in_force(self) -> Policy:
        """The policy in force for this scope: the row's, cut by the settings."""
        return self.bounds.cut(self.values)

    @property
    def cut(self) -> Mapping[str, Any]:
        """The values of the row that are laxer than the settings, each with the value in force in its place."""
        return {name: value for name, value in self.bounds.cuts(self.values).items() if name in self.values}

    def changed(self, values: Values) -> Stored:
        """The same policy with other values of some members. None: the value of the settings.

        Raises:
            InvalidRequest: a value is laxer than the settings, or does not go with another member.
        """
        wanted = {name: value for name, value in {**self.values, **values}.items() if value is not None}
        self.bounds.check(wanted)
        return replace(self, values=wanted)

    def members(self) -> dict[str, Any]:
        """The policy as JSON has it: the row, what is in force, the settings, and the source of each value."""
        policies = {"in_force": self.in_force, "most": self.bounds.ceiling}
        return {
            "scope": self.scope,
            "changed_at": self.changed_at,
            "values": {name: shown(value) for name, value in self.values.items()},
            **{key: {name: shown(getattr(of, name)) for name in SETTINGS} for key, of in policies.items()},
            "sources": {name: self.source(name) for name in SETTINGS},
            "cut": list(self.cut),
        }

    def source(self, member: str) -> Source:
        """The place from which the value in force of a member comes."""
        value = getattr(self.in_force, member)
        if member in self.values and value == self.values[member]:
            return "policy"
        if value != getattr(self.bounds.ceiling, member):
            return "policy"  # another member of the row has cut this one
        return "settings" if SETTINGS[member] in self.given else "default"
