"""The events of a change of an issuer: one for each member, with its new value; for each secret, without it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..events.audit import Event
from .issuer import Configured, Issuer
from .issuer_members import shown
from .issuer_rows import Listed

_MOST_DETAIL = 64  # characters of an event's detail: the most that the column takes


def events_of(before: Listed | None, after: Configured) -> list[Event]:
    """The events of a change from one state to another. None if nothing changes."""
    return [Event("issuer_changed", detail=_cut(f"{after.name}: {detail}")) for detail in _details(before, after)]


def _details(before: Listed | None, after: Configured) -> Iterator[str]:
    old = before.configured if before else None
    for member, field in Issuer.model_fields.items():
        value = getattr(after.issuer, member)
        if _differ(value, getattr(old.issuer, member) if old else field.default):
            yield f"{member} unset" if value == field.default else f"{member}={shown(value)}"
    for member, secret in after.secrets:
        if secret != (getattr(old.secrets, member) if old else None):
            yield f"{member} removed" if secret is None else f"{member} changed"
    if before and before.secrets_are_lost and not any(secret for _, secret in after.secrets):
        yield "lost secrets removed"


def _differ(value: Any, before: Any) -> bool:
    """Whether two values of a member differ. The order of a mapping counts: the first role that matches is given."""
    return bool(value != before) or (isinstance(value, dict) and list(value) != list(before))


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_DETAIL else f"{text[: _MOST_DETAIL - 1]}…"
