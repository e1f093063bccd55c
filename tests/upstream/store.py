"""The users, sessions and tokens of the stand-in, in memory. One event loop alone touches them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from .minting import Subject, new_id

Status = Literal["active", "expired", "revoked", "logout"]
Ended = Literal["expired", "revoked", "logout"]


class Settings:
    """Settings of the environment. `set` changes them while the stand-in runs."""

    access_lifetime: int = 300
    absolute: int = 30 * 86_400
    idle: int = 7 * 86_400
    refresh_grace: int = 0
    """Seconds in which a used refresh token still gives an answer. The documentation says 0, the SDK says about 30."""
    ended_again: Literal["done", "conflict", "not_found"] = "conflict"
    """The answer to a revocation of an ended session: as if it were done, 400 `FAILED_PRECONDITION`, or 404."""
    page_size: int = 10
    logout_type: str = "JWT"
    """`typ` of a logout token. OpenID Connect asks for `logout+jwt`."""
    tries: int = 4
    """How often a webhook is sent that is not answered by 2xx."""
    pause: float = 0.2
    """Seconds before the second try. They double."""

    def set(self, **values: Any) -> None:
        for name, value in values.items():
            if name.startswith("_") or not hasattr(self, name) or callable(getattr(self, name)):
                raise KeyError(name)
            setattr(self, name, value)


@dataclass
class User:
    user_id: str
    email: str
    email_verified: bool | None
    name: str
    organization_id: str
    roles: tuple[str, ...] = ()
    permissions: tuple[str, ...] = ()


@dataclass
class Session:
    session_id: str
    user: User
    client_id: str
    created_at: datetime
    idle_expires_at: datetime
    absolute_expires_at: datetime
    updated_at: datetime
    user_agent: str = "Mozilla/5.0 (X11; Linux x86_64)"
    ended: Ended | None = None
    ended_at: datetime | None = None

    def status(self, now: datetime) -> Status:
        if self.ended:
            return self.ended
        return "expired" if now >= min(self.idle_expires_at, self.absolute_expires_at) else "active"

    @property
    def subject(self) -> Subject:
        user = self.user
        return Subject(
            user_id=user.user_id,
            session_id=self.session_id,
            organization_id=user.organization_id,
            email=user.email,
            email_verified=user.email_verified,
            name=user.name,
            roles=user.roles,
            permissions=user.permissions,
            auth_time=int(self.created_at.timestamp()),
        )


@dataclass
class Refresh:
    """A refresh token: opaque, good once."""

    session: Session
    used_at: datetime | None = None


@dataclass
class Code:
    """An authorization code: good once, for the client's redirect URI."""

    session: Session
    redirect_uri: str
    scope: str
    nonce: str | None
    expires_at: datetime


@dataclass
class Store:
    """Everything that a reset forgets."""

    settings: Settings = field(default_factory=Settings)
    users: dict[str, User] = field(default_factory=dict)
    sessions: dict[str, Session] = field(default_factory=dict)
    refresh_tokens: dict[str, Refresh] = field(default_factory=dict)
    codes: dict[str, Code] = field(default_factory=dict)
    machine_tokens: dict[str, datetime] = field(default_factory=dict)
    cookies: dict[str, Session] = field(default_factory=dict)
    redirects: set[str] = field(default_factory=set)
    """The allowed `redirect_uri` and `post_logout_redirect_uri` values. Empty: any."""
    on_end: Callable[[Session], None] = lambda _: None
    """Called once for each session that ends."""

    @staticmethod
    def now() -> datetime:
        return datetime.now(UTC)

    def user(self, email: str, **members: Any) -> User:
        """The user of an address, made at first need. `members` change the user."""
        user = next((each for each in self.users.values() if each.email == email), None)
        if user is None:
            name = email.partition("@")[0].capitalize()
            user = User(new_id("usr"), email, True, name, new_id("org"))
        for member, value in members.items():
            setattr(user, member, tuple(value) if isinstance(value, list) else value)
        self.users[user.user_id] = user
        return user

    def begin(self, user: User, client_id: str, **members: Any) -> Session:
        """A new session. `members` replace those of the session; a moment may be given in seconds from now."""
        now = self.now()
        session = Session(
            members.pop("session_id", None) or new_id("ses"),
            user,
            client_id,
            now,
            now + timedelta(seconds=self.settings.idle),
            now + timedelta(seconds=self.settings.absolute),
            now,
        )
        for member, value in members.items():
            moment = member.endswith("_at") and isinstance(value, int | float)
            setattr(session, member, now + timedelta(seconds=value) if moment else value)
        self.sessions[session.session_id] = session
        return session

    def end(self, session: Session, how: Ended) -> bool:
        """Ends an active session, with its refresh tokens. Returns whether this call did it."""
        if session.status(self.now()) != "active":
            return False
        session.ended, session.ended_at = how, self.now()
        session.updated_at = session.ended_at
        self.on_end(session)
        return True

    def refresh_token(self, session: Session) -> str:
        token = f"rt_{secrets.token_urlsafe(32)}"
        self.refresh_tokens[token] = Refresh(session)
        return token

    def rotated(self, token: str) -> Session | None:
        """The session of a refresh token, which is used by this call. None: it is unknown, used or its session ended."""
        found, now = self.refresh_tokens.get(token), self.now()
        if found is None or found.session.status(now) != "active":
            return None
        if found.used_at and (now - found.used_at).total_seconds() >= self.settings.refresh_grace:
            return None
        found.used_at = found.used_at or now
        found.session.updated_at = now
        found.session.idle_expires_at = min(
            now + timedelta(seconds=self.settings.idle), found.session.absolute_expires_at
        )
        return found.session

    def of_user(
        self, user_id: str, statuses: Iterable[str], start: datetime | None, end: datetime | None
    ) -> Sequence[Session]:
        """A user's sessions, the newest first."""
        now, wanted = self.now(), {status.lower() for status in statuses}
        found = [
            session
            for session in self.sessions.values()
            if session.user.user_id == user_id
            and (not wanted or session.status(now) in wanted)
            and (start is None or session.created_at >= start)
            and (end is None or session.created_at <= end)
        ]
        return sorted(found, key=lambda session: (session.created_at, session.session_id), reverse=True)
