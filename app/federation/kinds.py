"""The kinds of external tokens, told apart by type and claims. Pure: no I/O, no clock.

One key set signs them all, and an issuer may give each the type `JWT`. A token whose kind is not plain is refused: a
token of another kind must never count as a proof that a user signed in (RFC 8725 section 3.12).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .issuer import Issuer, Kind
from .verdicts import Word, refused

_PLAIN = frozenset({"", "jwt"})
_ACCESS = "at+jwt"  # RFC 9068 section 2.1
_OF_ID_TOKENS = ("at_hash", "c_hash", "nonce")  # OpenID Connect Core sections 2 and 3.3.2.11
_OF_ACCESS_TOKENS = ("scope", "scp", "client_id")  # RFC 9068 section 2.2
_OF_OTHERS = ("events", "cnf")  # a logout token; a token that is bound to a key of its client (RFC 7800 section 3.1)
_OF_IDP_INITIATED = ("login_hint", "organization_id", "connection_id")
_STATED: Mapping[str, Kind] = {"bearer": "access_token", "access": "access_token", "id": "id_token"}
_USERS = ("usr_", "conn_")  # a user of the environment; a user of one connection, without a session


def foreign_kind(claims: Mapping[str, Any], issuer: Issuer) -> Word | None:
    """The word for a token that is about no user. None: it may be about one.

    Look here first, because such a token may lack claims that every token of a user has.
    """
    subject, client = claims.get("sub"), claims.get("client_id", claims.get("azp"))
    if subject is None and any(name in claims for name in _OF_IDP_INITIATED):
        return "idp_initiated"
    if subject is not None and subject == client:
        return "machine_token"
    if issuer.preset == "scalekit" and (
        isinstance(claims.get("scopes"), list) or any(str(name).startswith("m2m") for name in (subject, client))
    ):
        return "machine_token"
    if claims.get("gty") == "client-credentials" or claims.get("idtyp") == "app":
        return "machine_token"
    return None


def kind_of(media_type: str, claims: Mapping[str, Any], issuer: Issuer) -> Kind:
    """The kind of a token of a user.

    Args:
        media_type: the type in its header, as `UnverifiedToken` has it.
        claims: its claims, whose signature is right.
        issuer: the issuer.

    Raises:
        UnacceptableToken: the token is of another kind, its kind is not plain, or it lacks what its kind has.
    """
    if any(name in claims for name in _OF_OTHERS):
        raise refused("wrong_kind")
    if issuer.preset == "scalekit":
        return _of_scalekit(media_type, claims)
    return _of_oidc(media_type, claims)


def _of_scalekit(media_type: str, claims: Mapping[str, Any]) -> Kind:
    """Access tokens have `jti` and no digest; ID tokens have `azp` or a digest, and no `jti`."""
    if media_type not in _PLAIN:
        raise refused("wrong_kind")
    if not str(claims.get("sub")).startswith(_USERS):
        raise refused("subject")
    of_id_token = any(name in claims for name in (*_OF_ID_TOKENS, "azp"))
    if of_id_token == ("jti" in claims):
        raise refused("wrong_kind")
    if of_id_token:
        return "id_token"
    if "client_id" not in claims or (str(claims["sub"]).startswith("usr_") and "sid" not in claims):
        raise refused("missing_claim")
    return "access_token"


def _of_oidc(media_type: str, claims: Mapping[str, Any]) -> Kind:
    """A token of any issuer. Its own statement counts first, then the claims that the standards give to one kind."""
    of_id_token = any(name in claims for name in _OF_ID_TOKENS)
    of_access_token = any(name in claims for name in _OF_ACCESS_TOKENS)
    stated: set[Kind | None] = {"access_token"} if media_type == _ACCESS else set()
    if media_type not in {*_PLAIN, _ACCESS}:
        raise refused("wrong_kind")
    for name in ("typ", "token_use"):  # Keycloak's and Cognito's
        if name in claims:
            stated.add(_STATED.get(str(claims[name]).lower()))
    if len(stated) > 1 or None in stated:
        raise refused("wrong_kind")
    if stated == {"access_token"} and not {"at_hash", "c_hash"} & claims.keys():
        return "access_token"
    if stated == {"id_token"} or (not stated and of_id_token and not {"scope", "scp"} & claims.keys()):
        return "id_token"
    if not stated and of_access_token and not of_id_token:
        return "access_token"
    # `azp` alone is no sign: access tokens have it too, also those about a machine (Auth0's, Microsoft's).
    raise refused("wrong_kind")
