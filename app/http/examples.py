"""The examples of bodies and of good answers in the OpenAPI document, made from its schemas.

A name means the same in the whole interface, so one table has the value of each name. A field has an example of its own
where its value differs from the table's. So has a body that makes no sense with its required members alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict

Json = Mapping[str, Any]

USER = "0190b5a2-6b04-7e11-8a3c-5f2d9e7c4b60"
_SESSION = "0190b5a2-7c1e-7d3a-9f42-1c6e0a5b8d10"
_SIGNED_IN, _REFRESHED = "2026-01-31T12:00:00Z", "2026-01-31T12:10:00Z"
_EPOCH_SECONDS = 1769860800  # _SIGNED_IN
_JWT = "header.claims.signature"

VALUES: Json = {
    # tokens and claims
    "access_token": _JWT,
    "refresh_token": "ktr_" + "x" * 84,
    "refresh_expires_in": 604800,
    "session_expires_in": 2592000,
    "token": _JWT,
    "logout_token": _JWT,
    "iss": "https://auth.example.com",
    "sub": USER,
    "aud": "https://auth.example.com",
    "iat": _EPOCH_SECONDS,
    "exp": _EPOCH_SECONDS + 900,
    "auth_time": _EPOCH_SECONDS,
    "jti": "c9kX0m3vQ1u8Zr5t",
    "sid": _SESSION,
    "client_id": "first-party",
    # users and sessions
    "id": _SESSION,
    "created_at": _SIGNED_IN,
    "password": "seven-lamps-made-for-a-day",
    "user_id": USER,
    "pseudonym": "0190b5a2-9d3f-7a55-8e21-7c4b1f0d6e93",
    "session_id": _SESSION,
    "email": "ada@example.com",
    "role": "user",
    "claims": {"org": "acme"},
    "address": "192.0.2.7",
    "name": "Ada's phone",
    "browser": "Firefox 128",
    "system": "Windows 10",
    "kind": "desktop",
    "last_used_at": _REFRESHED,
    "rotated_at": _REFRESHED,
    "idle_expires_at": "2026-02-07T12:10:00Z",
    "absolute_expires_at": "2026-03-02T12:00:00Z",
    "authenticated_at": _SIGNED_IN,
    "ended": 3,
    # events and numbers
    "actor": "user",
    "actor_id": USER,
    "request_id": "5f0c7f9d1f6b4d0e8a53c1b2e7d4a690",
    "enabled": 1200,
    "disabled": 7,
    "live": 1900,
    "rotated": 52000,
    "retried": 31,
    "reuse_detected": 0,
    "refused": 12,
    "unavailable": 0,
    # keys
    "kid": "5d3c9a1e7b2f4860",
    "access_kid": "5d3c9a1e7b2f4860",
    "refresh_kid": "refresh-2",
    "sealed_under": "current",
    "key_ops": ["verify"],
    "crv": "P-256",
    "x": "x" * 43,
    "y": "y" * 43,
    # policies
    "access_lifetime": 900,
    "access_jitter": 0,
    "idle_lifetime": 604800,
    "absolute_lifetime": 2592000,
    "retry_window": 60,
    "scopes": "",
    "password_length": 15,
    "reauthentication_age": 900,
    "session_limit": 10,
    "mode": "bearer",
    "remember": True,
    "sources": dict.fromkeys(
        (
            *("access_jitter", "idle_lifetime", "absolute_lifetime", "retry_window", "password_length"),
            *("reauthentication_age", "mode", "remember", "scopes"),
        ),
        "default",
    )
    | {"access_lifetime": "policy", "session_limit": "policy"},
    "cut": [],
    # issuers
    "upstream_logout_url": "https://acme.scalekit.com/oidc/logout?id_token_hint=header.claims.signature",
    "organization": "org_123456789",
    "upstream_session": "ses_123456789",
    "kty": "RSA",
    "bits": 2048,
    "acceptable": True,
    "user": "usr_123456789",
    "device": "desktop, Windows, Firefox",
    "region": "DE",
    "attempts": 2,
    "changed_at": _SIGNED_IN,
    "due_at": "2026-01-31T12:15:00Z",
    "last_active_at": _REFRESHED,
    "revoked": 2,
    "total": 1,
}
"""The value of each member by its name. An answer shows an optional member only if its name is here."""


def like(**members: Any) -> ConfigDict:
    """The configuration of a model whose example has these members."""
    return ConfigDict(json_schema_extra={"examples": [members]})


_OF_KINDS = {"boolean": True, "date-time": _SIGNED_IN}


def of_body(schema: Json, schemas: Json) -> Any:
    """An example of a request's body: the schema's own, or else its required members.

    Raises:
        LookupError: a member has no value.
    """
    return _example("", schema, schemas, usual=False)


def of_answer(schema: Json, schemas: Json) -> Any:
    """An example of an answer: the schema's own, or else its required and its usual members.

    Raises:
        LookupError: a member has no value.
    """
    return _example("", schema, schemas, usual=True)


def _example(name: str, schema: Json, schemas: Json, *, usual: bool) -> Any:
    own = schema.get("examples")
    schema = next(each for each in schema.get("anyOf", (schema,)) if each != {"type": "null"})
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    if own := own or schema.get("examples"):
        return own[0]
    if name in VALUES and "properties" not in schema:
        return VALUES[name]
    match schema:
        case {"type": "object"}:
            needed = schema.get("required", ())
            return {
                member: _example(member, each, schemas, usual=usual)
                for member, each in schema.get("properties", {}).items()
                if member in needed or (usual and member in VALUES)
            }
        case {"type": "array"}:
            return [_example(name, schema["items"], schemas, usual=usual)]
        case {"enum": [first, *_]}:
            return first
        case {"type": "boolean"} | {"format": "date-time"}:
            return _OF_KINDS[schema.get("format", schema["type"])]
    raise LookupError(f"no example of the member {name or schema}: give its field one, or the table")
