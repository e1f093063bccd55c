"""A session as Scalekit's API describes it. Pure: no I/O, no clock.

The API's answers come from outside. So a member that has another type than it should have counts as absent, and every
text is cut. Only a session without id or status is no session.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

MOST_CHARACTERS = 255


@dataclass(frozen=True, slots=True)
class ScalekitSession:
    """A session at Scalekit, with the members that operators need. Of its place, only the region."""

    id: str
    status: str
    """In lower case: `active`, `expired`, `revoked`, `logout`, or a word of a later release."""
    user: str | None
    organization: str | None
    created_at: datetime | None
    last_active_at: datetime | None
    idle_expires_at: datetime | None
    absolute_expires_at: datetime | None
    ended_at: datetime | None
    device: str | None
    """Kind of device, operating system and browser."""
    address: str | None
    region: str | None

    @property
    def over(self) -> bool:
        """Whether it is over for certain. A word of a later release is no such certainty."""
        return self.status in {"expired", "revoked", "logout"}

    def members(self) -> dict[str, Any]:
        """Its members by name."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class SessionPage:
    """A page of a user's sessions."""

    sessions: tuple[ScalekitSession, ...]
    next_page: str | None
    """The token of the page after this one. None: there is none."""
    total: int | None


def session_in(value: Any) -> ScalekitSession | None:
    """The session that a JSON value describes, or None if it describes none."""
    if not isinstance(value, Mapping):
        return None
    session_id, status = _text(value, "session_id"), _text(value, "status")
    if session_id is None or status is None:
        return None
    device = value.get("device")
    device = device if isinstance(device, Mapping) else {}
    location = device.get("location")
    kind = [_text(device, name) for name in ("device_type", "os", "browser")]
    return ScalekitSession(
        session_id,
        status.lower(),  # the interface says lower case, and samples show upper case
        user=_text(value, "user_id"),
        organization=_text(value, "organization_id"),
        created_at=_moment(value, "created_at"),
        last_active_at=_moment(value, "last_active_at"),
        idle_expires_at=_moment(value, "idle_expires_at"),
        absolute_expires_at=_moment(value, "absolute_expires_at"),
        ended_at=_moment(value, "logout_at") or _moment(value, "expired_at"),
        device=", ".join(word for word in kind if word) or None,
        address=_text(device, "ip"),
        region=_text(location, "region") if isinstance(location, Mapping) else None,
    )


def page_in(value: Any) -> SessionPage | None:
    """The page that a JSON value describes, or None if it describes none."""
    if not isinstance(value, Mapping):
        return None
    listed = value.get("sessions", [])  # an empty list may be left out (the JSON form of protocol buffers)
    if not isinstance(listed, list):
        return None
    sessions = tuple(session for each in listed if (session := session_in(each)) is not None)
    total = value.get("total_size")
    return SessionPage(sessions, _text(value, "next_page_token", most=2048), total if type(total) is int else None)


def _text(value: Mapping[str, Any], name: str, *, most: int = MOST_CHARACTERS) -> str | None:
    text = value.get(name)
    return text[:most] if isinstance(text, str) and text else None


def _moment(value: Mapping[str, Any], name: str) -> datetime | None:
    """A moment after RFC 3339, or None. One without an offset is none."""
    text = _text(value, name)
    try:
        moment = None if text is None else datetime.fromisoformat(text)
        return None if moment is None or moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
