"""A row that a command prints, and its values as JSON has them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeAlias
from uuid import UUID

Row: TypeAlias = Mapping[str, Any]
"""The members of one thing by name, in the order in which they are printed."""


def plain(value: Any) -> Any:
    """A value as JSON has it: a moment after RFC 3339, an id as text, and so within lists and objects."""
    if isinstance(value, Mapping):
        return {name: plain(member) for name, member in value.items()}
    if isinstance(value, list):
        return [plain(member) for member in value]
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return str(value) if isinstance(value, UUID) else value
