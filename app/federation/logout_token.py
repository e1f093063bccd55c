"""A logout token, and the rules for its claims (OpenID Connect Back-Channel Logout 1.0). Pure: no I/O, no clock.

The caller has verified the signature, `iss` and `aud` as those of any external token. These rules tell a logout token
from the other tokens that the same keys sign. An ID token has no `events`, and a logout token must have no `nonce`
(Back-Channel Logout section 2.4), so neither passes for the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from ..errors import UnacceptableToken
from ..settings import LEEWAY
from .issuer import Configured

EVENT = "http://schemas.openid.net/event/backchannel-logout"
"""The member of `events` that makes a token a logout token. The name is a word, and no place to fetch anything from."""

HIGHEST_AGE = timedelta(minutes=5)
"""How old a logout token may be. An issuer sends it at once, and Back-Channel Logout section 2.4 advises two minutes.
"""

_LONGEST = 255  # characters of an id: the most that the columns take
_TYPED = frozenset({"logout+jwt", "application/logout+jwt"})  # RFC 7515 section 4.1.9: either spelling, any case


@dataclass(frozen=True, slots=True)
class LogoutToken:
    """A logout token, verified. `ExternalTokens.verify_logout_token` alone makes one."""

    jti: str = field(repr=False)
    upstream_id: str | None
    """The issuer's own session (`sid`). With it, that session alone was logged out."""
    subject: str | None = field(repr=False)
    """The user (`sub`). Without `upstream_id`, all sessions of the user were logged out."""
    issued_at: datetime

    @property
    def good_until(self) -> datetime:
        """The moment from which it is refused as too old, whatever its `exp` says."""
        return self.issued_at + HIGHEST_AGE + LEEWAY


def logout_token_of(header: Mapping[str, Any], claims: Mapping[str, Any], of: Configured, now: datetime) -> LogoutToken:
    """The logout token of a header and of claims whose signature, `iss` and `aud` are right.

    Raises:
        UnacceptableToken: a rule of Back-Channel Logout sections 2.4 and 2.6 is broken. The cause is one word.
    """
    _check_type(header.get("typ"), of)
    events = claims.get("events")
    if not isinstance(events, dict) or not isinstance(events.get(EVENT), dict) or "nonce" in claims:
        raise UnacceptableToken("wrong_kind")
    issued_at = _issued_at(claims, now)
    upstream_id, subject, jti = (_id(claims, name) for name in ("sid", "sub", "jti"))
    if jti is None or (upstream_id is None and subject is None):
        raise UnacceptableToken("missing_claim")
    return LogoutToken(jti, upstream_id, subject, issued_at)


def _check_type(media_type: object, of: Configured) -> None:
    """Checks `typ`. Every token of Scalekit's says `JWT`, so for Scalekit the claims alone tell them apart."""
    written = media_type.lower() if isinstance(media_type, str) else None
    if written not in _TYPED and not (of.issuer.preset == "scalekit" and written == "jwt"):
        raise UnacceptableToken("wrong_kind")


def _issued_at(claims: Mapping[str, Any], now: datetime) -> datetime:
    """The moment of `iat`, if this and the other moments are acceptable. `exp` may be absent: the age is bounded."""
    seconds, leeway = now.timestamp(), LEEWAY.total_seconds()
    if "iat" not in claims:
        raise UnacceptableToken("missing_claim")
    iat = _moment(claims["iat"])
    if iat > seconds + leeway:
        raise UnacceptableToken("issued_in_future")
    if iat < seconds - leeway - HIGHEST_AGE.total_seconds():
        raise UnacceptableToken("too_old")
    if "exp" in claims and _moment(claims["exp"]) <= seconds - leeway:
        raise UnacceptableToken("expired")
    if "nbf" in claims and _moment(claims["nbf"]) > seconds + leeway:
        raise UnacceptableToken("not_yet_valid")
    return datetime.fromtimestamp(iat, UTC)


def _moment(value: object) -> float:
    """A NumericDate (RFC 7519 section 2). NaN and infinity are none, because every comparison with NaN is false."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**53:
        raise UnacceptableToken("malformed")
    return float(value)


def _id(claims: Mapping[str, Any], name: str) -> str | None:
    """The id in a claim, of characters that both databases can hold. None where the claim is absent."""
    if name not in claims:
        return None
    value = claims[name]
    if not isinstance(value, str) or not value.isprintable() or not 1 <= len(value) <= _LONGEST:
        raise UnacceptableToken("malformed")
    return value
