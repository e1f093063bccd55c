"""The claims of an external token whose signature, `iss` and `aud` are right: from claims to an `ExternalToken`.

Pure: no I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from ..errors import InvalidRequest
from ..settings import LEEWAY
from ..users.emails import normalised
from .external_token import ExternalToken
from .issuer import Configured, Issuer, Kind
from .kinds import foreign_kind, kind_of
from .unverified_tokens import MOST_NAME, UnverifiedToken
from .verdicts import refused

_LEEWAY = LEEWAY.total_seconds()
_END_OF_TIME = 2**33  # seconds: the year 2242, which every date of Python and of both databases can hold
_LONGEST_AMR = 64  # characters of the column


def external_token(
    token: UnverifiedToken,
    claims: Mapping[str, Any],
    of: Configured,
    now: datetime,
    kind: Kind | None,
    grace: timedelta = timedelta(0),
) -> ExternalToken:
    """The token, if its claims are acceptable.

    Args:
        token: the token as it was parsed.
        claims: its claims, whose signature is right.
        of: the issuer, one of whose `iss` and audiences they have.
        now: the database's clock.
        kind: the kind that the caller wants. None: each kind that is configured.
        grace: how long ago it may have expired, or become too old.

    Raises:
        UnacceptableToken: a claim is missing, malformed or not acceptable. The cause is one word.
    """
    issued_at, expires_at = _times(claims, of.issuer, now, grace)
    if word := foreign_kind(claims, of.issuer):
        raise refused(word)
    is_kind = kind_of(token.type, claims, of.issuer)
    if is_kind not in of.issuer.all_kinds or kind not in {None, is_kind}:
        raise refused("wrong_kind")
    if is_kind == "id_token" and (now - grace).timestamp() - issued_at > of.issuer.id_token_age + _LEEWAY:
        raise refused("too_old")
    _check_parties(claims, of.issuer, is_kind)
    organization = _organization(claims, of.issuer)
    return ExternalToken(
        by=of,
        kind=is_kind,
        subject=_subject(claims),
        digest=token.digest,
        text_digest=token.text_digest,
        issued_at=datetime.fromtimestamp(issued_at, UTC),
        expires_at=datetime.fromtimestamp(expires_at, UTC),
        claims=claims,
        upstream_id=_name(claims, "sid"),
        organization=organization,
        auth_time=_auth_time(claims, issued_at),
        amr=_amr(claims),
        email=_email(claims, of.issuer) if is_kind == "id_token" else None,
    )


def _times(claims: Mapping[str, Any], issuer: Issuer, now: datetime, grace: timedelta) -> tuple[float, float]:
    """`iat` and `exp`, if the token is in force now and lives no longer than the issuer's tokens may."""
    seconds = now.timestamp()
    issued_at, expires_at, begins = (_moment(claims, name) for name in ("iat", "exp", "nbf"))
    if issued_at is None or expires_at is None:
        raise refused("missing_claim")
    if expires_at <= seconds - _LEEWAY - grace.total_seconds() or expires_at <= issued_at:
        raise refused("expired")
    if begins is not None and begins > seconds + _LEEWAY:
        raise refused("not_yet_valid")
    if issued_at > seconds + _LEEWAY:
        raise refused("issued_in_future")
    if expires_at - issued_at > issuer.longest_lifetime:
        raise refused("too_long_lived")
    return issued_at, expires_at


def _moment(claims: Mapping[str, Any], name: str) -> float | None:
    """A NumericDate (RFC 7519 section 2), which may have a fraction. None where the claim is absent."""
    value = claims.get(name)
    if value is None and name not in claims:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _END_OF_TIME:
        raise refused("malformed")
    return value


def _name(claims: Mapping[str, Any], name: str) -> str | None:
    """The name in a claim, of characters that both databases can hold. None where the claim is absent."""
    value = claims.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= MOST_NAME:
        raise refused("malformed")
    return value


def _organization(claims: Mapping[str, Any], issuer: Issuer) -> str | None:
    """The organization, if it is allowed. Other issuers than Scalekit give `oid` other meanings, unless it counts."""
    if issuer.preset != "scalekit" and not issuer.organizations:
        return None
    organization = _name(claims, "oid")
    if issuer.organizations and organization not in issuer.organizations:
        raise refused("organization")
    return organization


def _subject(claims: Mapping[str, Any]) -> str:
    """The subject, as it is and of any form: it means something only together with the issuer."""
    subject = claims.get("sub")
    if not isinstance(subject, str) or not subject.isprintable() or not 0 < len(subject) <= MOST_NAME:
        raise refused("subject")
    return subject


def _check_parties(claims: Mapping[str, Any], issuer: Issuer, kind: Kind) -> None:
    """Checks for which client a token was issued, beside its audience (OpenID Connect Core section 3.1.3.7).

    An audience may be shared: a token that another client got for it is refused, unless that client is configured.
    """
    ours = {issuer.client_id, *issuer.all_audiences}
    audiences = claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]]
    named = [claims[name] for name in ("azp", "client_id") if name in claims]
    if kind == "id_token" and len(set(audiences)) > 1 and "azp" not in claims:
        raise refused("audience")
    if not all(isinstance(client, str) and client in ours for client in named):
        raise refused("audience")


def _auth_time(claims: Mapping[str, Any], issued_at: float) -> datetime | None:
    """When the user signed in: never later than the token was issued, so that no claim makes a sign-in fresher."""
    moment = _moment(claims, "auth_time")
    return None if moment is None else datetime.fromtimestamp(min(moment, issued_at), UTC)


def _amr(claims: Mapping[str, Any]) -> str | None:
    """The methods of the sign-in (RFC 8176), as many as the column holds. A malformed one says nothing."""
    values = claims.get("amr")
    words: list[str] = []
    for value in values if isinstance(values, list) else []:
        if isinstance(value, str) and value and value.isascii() and value.isprintable() and " " not in value:
            words.append(value)
            if len(" ".join(words)) > _LONGEST_AMR:
                words.pop()
    return " ".join(words) or None


def _email(claims: Mapping[str, Any], issuer: Issuer) -> str | None:
    """The address of an ID token that its issuer has verified, if the issuer is trusted for that.

    `email_verified` has to be the boolean: a text such as "false" is no consent. An access token's address is not read,
    because an issuer may fill it from a field that the user edits.
    """
    email = claims.get("email")
    if not issuer.trust_email or claims.get("email_verified") is not True or not isinstance(email, str):
        return None
    try:
        return normalised(email)
    except InvalidRequest:
        return None
