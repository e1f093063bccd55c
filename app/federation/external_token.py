"""An external token whose signature and claims were verified. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from ..settings import LEEWAY
from .issuer import Configured, Kind


@dataclass(frozen=True, slots=True)
class ExternalToken:
    """A token of a configured issuer, verified. `ExternalTokens.verify` alone makes one."""

    by: Configured
    """The issuer."""
    kind: Kind
    subject: str
    digest: bytes = field(repr=False)
    """SHA-256 over its header and payload. A second signature of the same content has the same digest."""
    text_digest: bytes = field(repr=False)
    """SHA-256 of its whole text, with the signature. It is stored nowhere: a refresh token is derived from it."""
    issued_at: datetime
    expires_at: datetime
    claims: Mapping[str, Any] = field(repr=False)
    """All its claims. Only those that the issuer's configuration maps may reach a local token."""
    upstream_id: str | None = None
    """The issuer's own session (`sid`), where the token names it."""
    organization: str | None = None
    """The organization (`oid`), likewise."""
    auth_time: datetime | None = None
    """When the user signed in there (OpenID Connect Core section 2). None: the token does not say."""
    amr: str | None = None
    """How (RFC 8176): words separated by blanks, 64 characters at most."""
    email: str | None = field(default=None, repr=False)
    """The normalised e-mail address, if the issuer is trusted for it and says that it is verified. Else None."""

    @property
    def good_until(self) -> datetime:
        """The moment from which it is refused as expired."""
        return self.expires_at + LEEWAY

    def completed_by(self, other: ExternalToken) -> ExternalToken:
        """This token, and what it does not say as the ID token of the same sign-in says it."""
        return replace(
            self,
            email=self.email or other.email,
            auth_time=self.auth_time or other.auth_time,
            amr=self.amr or other.amr,
        )
