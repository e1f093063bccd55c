"""The part of Scalekit's management API that is about sessions and users: rules, shapes and refusals. No I/O.

REST and gRPC are two ways to the same functions. Each returns the members of a message, or raises `Refused`.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from .store import Session, Store, User

Message = dict[str, Any]

LARGEST_PAGE = 100


class Refused(Exception):
    """A refusal with its gRPC code, from which the HTTP status follows."""

    def __init__(self, code: str, message: str, error_code: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.error_code = error_code or code

    @property
    def status(self) -> int:
        return {"NOT_FOUND": 404, "UNAUTHENTICATED": 401, "INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400}[
            self.code
        ]

    @property
    def body(self) -> Message:
        number = {"NOT_FOUND": 5, "UNAUTHENTICATED": 16, "INVALID_ARGUMENT": 3, "FAILED_PRECONDITION": 9}[self.code]
        info = {"@type": "type.googleapis.com/scalekit.v1.errdetails.ErrorInfo", "error_code": self.error_code}
        return {"code": number, "message": str(self), "details": [info]}


def check_bearer(store: Store, values: Sequence[str]) -> None:
    """Refuses a call without a management token. The SDK sends two after it renewed its own: either one may be good."""
    now = store.now()
    tokens = [value.partition(" ")[2] for value in values if value.lower().startswith("bearer ")]
    if not any(token in store.machine_tokens and store.machine_tokens[token] > now for token in tokens):
        raise Refused("UNAUTHENTICATED", "token is missing, unknown or expired", "INVALID_TOKEN")


def get_session(store: Store, session_id: str) -> Message:
    return _details(_session(store, session_id), store)


def user_sessions(
    store: Store,
    user_id: str,
    page_size: int = 0,
    page_token: str = "",
    statuses: Sequence[str] = (),
    start: datetime | None = None,
    end: datetime | None = None,
) -> Message:
    _checked_id("usr", user_id)
    _user(store, user_id)
    found = store.of_user(user_id, statuses, start, end)
    page, before, after = _page(store, found, page_size, page_token)
    return {
        "sessions": [_details(session, store) for session in page],
        "next_page_token": after,
        "prev_page_token": before,
        "total_size": len(found),
    }


def revoke_session(store: Store, session_id: str) -> Message:
    session = _session(store, session_id)
    if not store.end(session, "revoked"):
        if store.settings.ended_again == "not_found":
            raise Refused("NOT_FOUND", "no active session has this id", "RESOURCE_NOT_FOUND")
        if store.settings.ended_again == "conflict":
            raise Refused("FAILED_PRECONDITION", "session is not active", "SESSION_NOT_ACTIVE")
    return {"revoked_session": _revoked(session, store)}


def revoke_all(store: Store, user_id: str) -> Message:
    _checked_id("usr", user_id)
    _user(store, user_id)
    ended = [session for session in store.of_user(user_id, ["active"], None, None) if store.end(session, "revoked")]
    return {"revoked_sessions": [_revoked(session, store) for session in ended], "total_revoked": len(ended)}


def get_user(store: Store, user_id: str) -> Message:
    _checked_id("usr", user_id)
    return {"user": _user_details(_user(store, user_id))}


def users(store: Store, page_size: int = 0, page_token: str = "") -> Message:
    found = sorted(store.users.values(), key=lambda user: user.user_id)
    page, before, after = _page(store, found, page_size, page_token)
    return {
        "users": [_user_details(user) for user in page],
        "next_page_token": after,
        "prev_page_token": before,
        "total_size": len(found),
    }


def _page(store: Store, found: Sequence[Any], size: int, token: str) -> tuple[Sequence[Any], str, str]:
    if not 0 <= size <= LARGEST_PAGE:
        raise Refused("INVALID_ARGUMENT", f"page_size must be 0 to {LARGEST_PAGE}", "INVALID_ARGUMENT")
    size = size or store.settings.page_size
    try:
        first = int(urlsafe_b64decode(token)) if token else 0
    except ValueError:
        raise Refused("INVALID_ARGUMENT", "page_token is not one of ours", "INVALID_ARGUMENT") from None
    before = _token(max(0, first - size)) if first else ""
    after = _token(first + size) if first + size < len(found) else ""
    return found[first : first + size], before, after


def _token(first: int) -> str:
    return urlsafe_b64encode(str(first).encode()).decode()


def _checked_id(prefix: str, value: str) -> None:
    if not re.fullmatch(rf"{prefix}_[0-9]+", value, re.ASCII):
        raise Refused("INVALID_ARGUMENT", f"value does not match regex pattern `^{prefix}_[0-9]+$`", "INVALID_ARGUMENT")


def _session(store: Store, session_id: str) -> Session:
    _checked_id("ses", session_id)
    if session_id not in store.sessions:
        raise Refused("NOT_FOUND", "session not found", "RESOURCE_NOT_FOUND")
    return store.sessions[session_id]


def _user(store: Store, user_id: str) -> User:
    if user_id not in store.users:
        raise Refused("NOT_FOUND", "user not found", "RESOURCE_NOT_FOUND")
    return store.users[user_id]


def _revoked(session: Session, store: Store) -> Message:
    now = store.now()
    over = session.ended_at or (min(session.idle_expires_at, session.absolute_expires_at))
    return {
        "session_id": session.session_id,
        "user_id": session.user.user_id,
        "created_at": session.created_at,
        "updated_at": session.updated_at,
        "idle_expires_at": session.idle_expires_at,
        "absolute_expires_at": session.absolute_expires_at,
        "expired_at": over if session.status(now) in {"expired", "revoked"} else None,
        "logout_at": over if session.status(now) == "logout" else None,
        "status": session.status(now),
        "last_active_at": session.updated_at,
    }


def _details(session: Session, store: Store) -> Message:
    organization = session.user.organization_id
    return {
        **_revoked(session, store),
        "authenticated_organizations": [organization],
        "organization_id": organization,
        "device": {
            "user_agent": session.user_agent,
            "os": "Linux",
            "os_version": "",
            "browser": "Firefox",
            "browser_version": "140.0",
            "device_type": "desktop",
            "ip": "192.0.2.7",
            "location": {
                "region": "GB",
                "region_subdivision": "ENG",
                "city": "London",
                "latitude": "51.5",
                "longitude": "-0.1",
            },
        },
        "authenticated_clients": [{"client_id": session.client_id, "organization_id": organization}],
    }


def _user_details(user: User) -> Message:
    first, _, last = user.name.partition(" ")
    return {
        "id": user.user_id,
        "email": user.email,
        "memberships": [{"organization_id": user.organization_id, "roles": [{"name": name} for name in user.roles]}],
        "user_profile": {"first_name": first, "last_name": last, "email_verified": bool(user.email_verified)},
    }
