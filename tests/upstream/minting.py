"""The claims of the tokens that the stand-in signs, kind by kind, as Scalekit documents them. Pure: no I/O."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from .keys import base64url

Kind = Literal["access_token", "id_token", "machine", "idp_initiated", "logout_token"]
KINDS: tuple[Kind, ...] = get_args(Kind)

ACCESS_LIFETIME = 300
MACHINE_LIFETIME = 86_399
ID_LIFETIME = 1_800
LOGOUT_LIFETIME = 120
BACK_CHANNEL = "http://schemas.openid.net/event/backchannel-logout"


@dataclass(frozen=True)
class Subject:
    """The user and the session that a token is about."""

    user_id: str = "usr_69615647365005430"
    session_id: str = "ses_69615647365005431"
    organization_id: str = "org_69615647365005432"
    connection_id: str = "conn_69615647365005433"
    email: str = "ada@example.com"
    email_verified: bool | None = True
    """None: the member is absent, as the documentation allows."""
    name: str = "Ada Lovelace"
    roles: tuple[str, ...] = ()
    permissions: tuple[str, ...] = ()
    auth_time: int | None = None


def new_id(prefix: str) -> str:
    """An id in Scalekit's form: a prefix and decimal digits."""
    return f"{prefix}_{secrets.randbelow(9 * 10**16) + 10**16}"


def half_digest(text: str) -> str:
    """`at_hash` or `c_hash` (OpenID Connect Core sections 3.1.3.6 and 3.3.2.11)."""
    return base64url(hashlib.sha256(text.encode()).digest()[:16])


def claims_of(kind: Kind, *, issuer: str, client_id: str, subject: Subject, now: int) -> dict[str, Any]:
    """The claims of a good token of this kind, issued now."""
    about = {"iss": issuer, "iat": now}
    match kind:
        case "access_token":
            return {
                **about,
                "sub": subject.user_id,
                "aud": [client_id],
                "client_id": client_id,
                "exp": now + ACCESS_LIFETIME,
                "nbf": now,
                "jti": new_id("tkn"),
                "sid": subject.session_id,
                "oid": subject.organization_id,
                **({"roles": [*subject.roles]} if subject.roles else {}),
                **({"permissions": [*subject.permissions]} if subject.permissions else {}),
            }
        case "id_token":
            return {
                **about,
                "sub": subject.user_id,
                "aud": [client_id],
                "azp": client_id,
                "client_id": client_id,
                "exp": now + ID_LIFETIME,
                "sid": subject.session_id,
                "oid": subject.organization_id,
                "amr": [subject.connection_id],
                "auth_time": subject.auth_time or now,
                "at_hash": half_digest(secrets.token_hex()),
                "c_hash": half_digest(secrets.token_hex()),
                "email": subject.email,
                **({} if subject.email_verified is None else {"email_verified": subject.email_verified}),
                "name": subject.name,
                "given_name": subject.name.partition(" ")[0],
                "family_name": subject.name.partition(" ")[2],
            }
        case "machine":
            machine = "m2morg_69615647365005434"
            return {
                **about,
                "sub": machine,
                "client_id": machine,
                "exp": now + MACHINE_LIFETIME,
                "nbf": now,
                "jti": new_id("tkn"),
                "oid": subject.organization_id,
                "scopes": ["orders:read"],
            }
        case "idp_initiated":
            return {
                **about,
                "aud": [client_id],
                "exp": now + ACCESS_LIFETIME,
                "nbf": now,
                "organization_id": subject.organization_id,
                "connection_id": subject.connection_id,
                "login_hint": subject.email,
                "relay_state": "",
            }
        case "logout_token":
            return {
                **about,
                "aud": client_id,
                "exp": now + LOGOUT_LIFETIME,
                "jti": new_id("tkn"),
                "sub": subject.user_id,
                "sid": subject.session_id,
                "events": {BACK_CHANNEL: {}},
            }


def changed(claims: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The claims with these changes. A claim that is `...` is left out; None is JSON's null."""
    return {name: value for name, value in {**claims, **changes}.items() if value is not ...}
