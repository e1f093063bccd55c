"""The refusals: one class for each error code of the standards, in CamelCase.

Raise a refusal with a private cause for the log: ``raise InvalidGrant("tag does not match")``. The client reads only
``error`` and ``error_description``, whose texts are fixed in the code. So no answer repeats an input or a secret.
``reason`` is public too, and only the holder of a genuine token gets it (guarantee 9).

The codes are those of RFC 6749 section 5.2 and RFC 6750 section 3.1. If these have none, the code is a word of the
same style.
"""

from __future__ import annotations

from datetime import timedelta
from typing import ClassVar, Literal, NamedTuple, Self
from uuid import UUID

from .outcomes import EXPIRED, OUTCOMES, Outcome

Reason = Literal[
    "logout",
    "logout_all",
    "idle_timeout",
    "absolute_timeout",
    "reuse_detected",
    "password_changed",
    "user_disabled",
    "revoked_by_admin",
    "upstream_logout",
    "session_limit",
    "replaced",
    "signed_out_everywhere",
    "user_erased",
    "token_expired",
]
"""The reason why a session ended, or why an access token is over."""


class Refusal(Exception):
    """A request that is refused.

    Args:
        cause: the cause in words for the log; never a secret, never shown to the client.
        reason: why the session or token is over; only for the holder of a genuine token.
        description: the public sentence, if the class's own is too general; never made of input values.
        retry_after: how long a client should wait before it tries again; rendered in whole seconds, rounded up.
        session_id: the session of the refusal, for the log; only if a genuine token or the database names it.
        user_id: the user of the refusal, likewise; never shown to the client.
        client_id: the client of that session, likewise.
        outcome: the word for metrics, if neither the code nor the reason says it.
    """

    status: ClassVar[int]
    error: ClassVar[str]
    sentence: ClassVar[str]
    challenge: str | None = None

    def __init__(
        self,
        cause: str = "",
        *,
        reason: Reason | None = None,
        description: str | None = None,
        retry_after: timedelta | None = None,
        session_id: UUID | None = None,
        user_id: UUID | None = None,
        client_id: str | None = None,
        outcome: Outcome | None = None,
    ) -> None:
        super().__init__(cause)
        self._outcome = outcome
        self.cause = cause
        self.reason = reason
        self.description = description or self.sentence
        self.retry_after = retry_after
        self.session_id = session_id
        self.user_id = user_id
        self.client_id = client_id

    @property
    def outcome(self) -> Outcome:
        """The outcome in one word, for metrics."""
        if self._outcome is not None:
            return self._outcome
        if self.reason is None:
            return OUTCOMES[self.error]
        return "expired" if self.reason in EXPIRED else "ended"

    def about(self, session_id: UUID | None, user_id: UUID | None = None, client_id: str | None = None) -> Self:
        """A copy of the refusal with session, user and client, unless it names them already.

        The refusal itself stays as it is, because each request that waited for one statement gets the same outage.
        """
        named = type(self).__new__(type(self), *self.args)  # `copy` would call `__init__`, whose arguments differ
        named.__dict__.update(self.__dict__)
        named.session_id = self.session_id or session_id
        named.user_id = self.user_id or user_id
        named.client_id = self.client_id or client_id
        return named

    def body(self) -> dict[str, str]:
        """The JSON members of RFC 6749 section 5.2, plus ``reason`` if there is one."""
        members = {"error": self.error, "error_description": self.description}
        if self.reason is not None:
            members["reason"] = self.reason
        return members

    def headers(self) -> dict[str, str]:
        """The header fields of the answer: no caching, a 401's challenge (RFC 9110 section 11.6.1), Retry-After."""
        fields = {"cache-control": "no-store"}
        if self.challenge is not None:
            fields["www-authenticate"] = self.challenge
        if self.retry_after is not None:
            fields["retry-after"] = _seconds(self.retry_after)
        return fields


def _seconds(duration: timedelta) -> str:
    """Whole seconds, rounded up, at least one (RFC 9110 section 10.2.3)."""
    return str(max(1, -(-duration // timedelta(seconds=1))))


class InvalidRequest(Refusal):
    """The request is malformed or lacks a field."""

    status = 400
    error = "invalid_request"
    sentence = "The request is malformed, lacks a field or has one that it must not have."


class RequestTimeout(InvalidRequest):
    """The body did not arrive in time."""

    status = 408
    sentence = "The request did not arrive in time."


class ContentTooLarge(InvalidRequest):
    """The body is larger than any request needs."""

    status = 413
    sentence = "The request body is too large."


class UnsupportedMediaType(InvalidRequest):
    """The body is not in the one format that the endpoint reads."""

    status = 415
    sentence = "The request body must be application/json, UTF-8, without content encoding."


class HeaderFieldsTooLarge(InvalidRequest):
    """The header block is larger than any request needs."""

    status = 431
    sentence = "The request line and header fields are too large."


class InvalidGrant(Refusal):
    """A credential that is exchanged for tokens is refused (RFC 6749 section 5.2). The JSON API answers 401."""

    status = 401
    error = "invalid_grant"
    sentence = "The credential is not valid. Sign in again."
    challenge = "Bearer"


class WrongPassword(InvalidGrant):
    """A password is not the user's. This refusal says nothing about the session in which it was asked for."""

    sentence = "The password is wrong."


class InvalidScope(InvalidRequest):
    """A scope is malformed, unknown, or more than was granted (RFC 6749 section 5.2)."""

    error = "invalid_scope"
    sentence = "The scope is malformed, or more than may be granted."


class UnacceptableToken(InvalidGrant):
    """An external token is not acceptable (RFC 8693 section 2.2.2). The cause is one word, and goes to the log."""

    sentence = "The subject token is not acceptable."


class InvalidToken(Refusal):
    """An access token is refused (RFC 6750 section 3.1)."""

    status = 401
    error = "invalid_token"
    sentence = "The access token is expired, revoked or not valid."
    challenge = 'Bearer error="invalid_token"'


class NoToken(InvalidToken):
    """The request has no credential, so the challenge has no error code (RFC 6750 section 3.1)."""

    sentence = "An access token is required."
    challenge = "Bearer"

    def __init__(self, cause: str = "") -> None:
        super().__init__(cause, outcome="missing")


class InsufficientUserAuthentication(Refusal):
    """The token is good, but its user signed in too long ago for this act (RFC 9470 section 3)."""

    status = 401
    error = "insufficient_user_authentication"
    sentence = "This needs a fresh sign-in. Call /auth/reauthenticate with the password, or sign in again."

    def __init__(self, cause: str, max_age: timedelta) -> None:
        super().__init__(cause)
        seconds = max_age // timedelta(seconds=1)
        self.challenge = f'Bearer error="{self.error}", error_description="{self.sentence}", max_age="{seconds}"'


class AccessDenied(Refusal):
    """The caller is known, and may not do this."""

    status = 403
    error = "access_denied"
    sentence = "Not allowed."


class CrossSite(Refusal):
    """A request that cookies would authenticate may come from another site's page (RFC 10017 section 6.1.3.3)."""

    status = 403
    error = "cross_site"
    sentence = "A request that uses or sets cookies needs an allowed Origin, or Sec-Fetch-Site: same-origin."


class InsufficientScope(Refusal):
    """The access token is valid, and does not allow this (RFC 6750 section 3.1)."""

    status = 403
    error = "insufficient_scope"
    sentence = "The access token does not cover this."
    challenge = 'Bearer error="insufficient_scope"'


class NotFound(Refusal):
    """The thing does not exist, or it belongs to another user. The answer does not tell which."""

    status = 404
    error = "not_found"
    sentence = "There is nothing here."


class MethodNotAllowed(Refusal):
    """The path exists, but has no such method."""

    status = 405
    error = "invalid_request"
    sentence = "The method is not allowed here."


class Conflict(Refusal):
    """The request contradicts what is there."""

    status = 409
    error = "conflict"
    sentence = "The request conflicts with what is there."


class RateLimit(NamedTuple):
    """A limit, as RateLimit and RateLimit-Policy describe it (draft-ietf-httpapi-ratelimit-headers-11)."""

    name: str
    """The name of the limit: a word of the code, never an input."""
    quota: int
    window: timedelta | None = None
    """None: the quota is that of requests at the same time, and no moment can be named at which one of them ends."""

    def headers(self, retry_after: timedelta) -> dict[str, str]:
        """Both fields, as structured fields (RFC 9651). Nothing remains, and one attempt is possible later."""
        if self.window is None:
            return {
                "ratelimit-policy": f'"{self.name}";q={self.quota};qu="concurrent-requests"',
                "ratelimit": f'"{self.name}";r=0',
            }
        return {
            "ratelimit-policy": f'"{self.name}";q={self.quota};w={_seconds(self.window)}',
            "ratelimit": f'"{self.name}";r=0;t={_seconds(retry_after)}',
        }


class SlowDown(Refusal):
    """Too many requests of one kind (RFC 6585 section 4). `limit` tells the client which limit it met."""

    status = 429
    error = "slow_down"
    sentence = "Too many attempts. Try again later."

    def __init__(
        self,
        cause: str = "",
        *,
        retry_after: timedelta = timedelta(seconds=1),
        limit: RateLimit | None = None,
        outcome: Outcome | None = None,
    ) -> None:
        super().__init__(cause, retry_after=retry_after, outcome=outcome)
        self.limit = limit
        self._wait = retry_after

    def headers(self) -> dict[str, str]:
        """As those of any refusal, and the limit's own."""
        return super().headers() | (self.limit.headers(self._wait) if self.limit else {})


class TemporarilyUnavailable(Refusal):
    """A part that Keyturn needs is away or full. This refusal says nothing about a token (guarantee 8)."""

    status = 503
    error = "temporarily_unavailable"
    sentence = "Not available at the moment. Try again."

    def __init__(self, cause: str = "", *, retry_after: timedelta = timedelta(seconds=1)) -> None:
        super().__init__(cause, retry_after=retry_after)


class Contention(TemporarilyUnavailable):
    """Postgres rolled a transaction back because of another one (SQLSTATE class 40). A retry may succeed at once."""


class ServerError(Refusal):
    """A defect of Keyturn. The answer has only a request id, under which the log has more."""

    status = 500
    error = "server_error"
    sentence = "Something went wrong. The log has more under this request id."


def refusal_of(error: Exception) -> Refusal:
    """The refusal that answers any other exception: an outage if memory is short, else a defect."""
    return TemporarilyUnavailable("no memory") if isinstance(error, MemoryError) else ServerError("exception")


class ConfigurationError(Exception):
    """The set-up can't work. The message is one clear line that names the setting and never its value."""


class WrongSettings(ConfigurationError):
    """The settings themselves are wrong or missing, before anything was opened."""
