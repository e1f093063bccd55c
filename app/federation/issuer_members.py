"""The members of an issuer as texts: those that a command gives, and those that an event tells. Pure: no I/O.

A list is comma-separated, and a mapping is comma-separated pairs `THEIRS=OURS`. Either may be JSON instead, for values
that hold a comma.
"""

from __future__ import annotations

import json
from typing import Any, get_origin

from .issuer import Issuer


def value_of(member: str, text: str) -> Any:
    """The value of a member that a command gives as text. `Issuer` checks it.

    Raises:
        ValueError: the text is not a list, or no mapping. The message repeats nothing of it.
    """
    kind = get_origin(Issuer.model_fields[member].annotation)
    if kind not in {tuple, dict}:
        return text
    if text.startswith(("[", "{")):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError("is not valid JSON") from None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if kind is tuple:
        return parts
    pairs = [part.rpartition("=") for part in parts]
    if not all(theirs and ours for theirs, _, ours in pairs):
        raise ValueError("must be THEIRS=OURS, comma-separated")
    return {theirs: ours for theirs, _, ours in pairs}


def shown(value: Any) -> str:
    """A value as one text, for an event or a table."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case tuple() | list():
            return ",".join(map(str, value))
        case dict():
            return ",".join(f"{theirs}={ours}" for theirs, ours in value.items())
        case _:
            return str(value)
