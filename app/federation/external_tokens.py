"""External tokens: JWTs of configured issuers, verified before anything is done with them.

The order of the checks is the order of their costs, and of the trust that each needs (RFC 8725):

1. Size, form and header, without I/O.
2. The issuer, by the exact `iss` that stands in the configuration. A token of any other never causes a request.
3. The algorithm, which has to be in the issuer's list.
4. The key that the issuer publishes under the token's `kid`. The key alone decides the algorithm that verifies.
5. Signature, `iss` and `aud`, by PyJWT.
6. Every other claim (app/federation/external_claims.py), by the database's clock, which all instances share.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

import jwt
from jwt.exceptions import InvalidSubjectError
from jwt.types import Options

from ..storage.database import Database
from .external_claims import external_token
from .external_token import ExternalToken
from .issuer import Configured, Kind
from .issuers import Issuers
from .key_sets import KeySets
from .kinds import foreign_kind
from .logout_token import LogoutToken, logout_token_of
from .unverified_tokens import UnverifiedToken, unverified
from .verdicts import Word, refused

_OPTIONS: Final[Options] = {
    "verify_signature": True,
    "enforce_minimum_key_length": True,
    "verify_iss": True,
    "verify_aud": True,
    "verify_sub": True,
    "verify_jti": True,
    # PyJWT reads this machine's clock, and external_claims.py the database's.
    "verify_exp": False,
    "verify_iat": False,
    "verify_nbf": False,
    "strict_aud": False,
    "require": [],
}
_OF_USERS: Final = ("exp", "iat", "sub", "aud")
_OF_LOGOUTS: Final = ("iat", "jti", "aud")


class ExternalTokens:
    """Verifies external tokens."""

    def __init__(self, issuers: Issuers, key_sets: KeySets, db: Database) -> None:
        """The issuers are those in force at each call."""
        self._issuers = issuers
        self._key_sets = key_sets
        self._db = db

    async def verify(self, text: str, *, kind: Kind | None, grace: timedelta = timedelta(0)) -> ExternalToken:
        """The verified token. The caller sees to it that it is exchanged once.

        Args:
            text: the token as the client sent it.
            kind: the kind that the client says it is. None: each kind that is configured for the issuer.
            grace: how long ago it may have expired, or become too old.

        Raises:
            UnacceptableToken: the token is refused. The cause is one word of `SENTENCES`.
            TemporarilyUnavailable: the issuer's keys can't be had now. This says nothing about the token.
        """
        token = unverified(text)
        of = self._issuers.of(token.iss)
        if of is None:
            raise refused("unknown_issuer")
        claims = await self._claims(text, token, of, _OF_USERS, of.issuer.all_audiences)
        return external_token(token, claims, of, self._db.clock(), kind, grace)

    async def verify_logout_token(self, text: str, of: Configured) -> LogoutToken:
        """The verified logout token (OpenID Connect Back-Channel Logout 1.0 section 2.6). The caller takes it once.

        Args:
            text: the token as the issuer sent it.
            of: the issuer to whose path it was sent. No other may have signed it.

        Raises:
            UnacceptableToken: as `verify`.
            TemporarilyUnavailable: as `verify`.
        """
        token = unverified(text)
        if token.iss not in of.issuer.all_issuers:
            raise refused("unknown_issuer")
        audiences = of.issuer.all_audiences | {of.issuer.client_id}
        claims = await self._claims(text, token, of, _OF_LOGOUTS, audiences)
        return logout_token_of(token.header, claims, of, self._db.clock())

    async def _claims(
        self,
        text: str,
        token: UnverifiedToken,
        of: Configured,
        required: tuple[str, ...],
        audiences: frozenset[str],
    ) -> Mapping[str, Any]:
        """The claims, if the issuer signed them for one of the audiences.

        Raises:
            UnacceptableToken: as `verify`.
            TemporarilyUnavailable: as `verify`.
        """
        algorithm = token.header["alg"]
        if algorithm not in of.issuer.algorithms:
            raise refused("algorithm")
        key = await self._key_sets.key(of, token.kid)
        if algorithm != key.algorithm:
            raise refused("algorithm")
        word: Word
        try:
            claims: Mapping[str, Any] = jwt.decode(
                text,
                key.verifying,
                algorithms=[key.algorithm],
                audience=audiences,
                issuer=of.issuer.all_issuers,
                options={**_OPTIONS, "require": list(required)},
            )
        except (jwt.MissingRequiredClaimError, jwt.InvalidAudienceError) as e:
            # PyJWT has verified the signature by now. A token that is about no user often lacks subject or audience.
            plain: Word = "audience" if isinstance(e, jwt.InvalidAudienceError) else "missing_claim"
            word = foreign_kind(token.claims, of.issuer) or plain
        except jwt.PyJWTError as e:
            word = next((word for kind, word in _WORDS.items() if isinstance(e, kind)), "malformed")
        else:
            return claims
        raise refused(word)  # outside of the handlers: an error of the library may hold a part of the token


_WORDS: Final[Mapping[type[Exception], Word]] = {
    jwt.InvalidSignatureError: "signature",
    jwt.InvalidAlgorithmError: "algorithm",
    jwt.InvalidIssuerError: "unknown_issuer",
    InvalidSubjectError: "subject",
    jwt.InvalidKeyError: "weak_key",
}
