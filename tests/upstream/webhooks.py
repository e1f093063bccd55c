"""Webhooks as Scalekit sends them: the envelope of its OpenAPI description, signed after Standard Webhooks. Pure."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from .minting import new_id


def user_logout(session: Mapping[str, Any], environment_id: str = "env_69615647365005435") -> dict[str, Any]:
    """The event that the end of a session raises. Its `status` may still say ACTIVE, as the documented example does."""
    return {
        "spec_version": "1",
        "id": new_id("evt"),
        "type": "user.logout",
        "object": "UserLogout",
        "occurred_at": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "environment_id": environment_id,
        "organization_id": session.get("organization_id"),
        "data": {
            "user": {"id": session.get("user_id"), "email": session.get("email")},
            "user_session": {
                "session_id": session.get("session_id"),
                "user_id": session.get("user_id"),
                "organization_id": session.get("organization_id"),
                "status": "ACTIVE",
                "logout_at": None,
                "absolute_expires_at": session.get("absolute_expires_at"),
                "idle_expires_at": session.get("idle_expires_at"),
            },
        },
    }


def signed(
    event: Mapping[str, Any] | bytes,
    *secrets: str,
    message_id: str | None = None,
    timestamp: int | None = None,
) -> tuple[dict[str, str], bytes]:
    """The header fields and the body of a webhook, with one signature for each secret.

    Args:
        event: the event, or the bytes of the body as they shall be sent.
        secrets: `whsec_` or another prefix, and base64.
        message_id: its id; by default the event's.
        timestamp: seconds of the Unix time; by default now.
    """
    raw = event if isinstance(event, bytes) else json.dumps(event).encode()
    name = message_id or (new_id("msg") if isinstance(event, bytes) else str(event["id"]))
    moment = str(int(datetime.now(UTC).timestamp()) if timestamp is None else timestamp)
    signatures = [f"v1,{_mac(secret, f'{name}.{moment}.'.encode() + raw)}" for secret in secrets]
    fields = {"webhook-id": name, "webhook-timestamp": moment, "webhook-signature": " ".join(signatures)}
    return {"content-type": "application/json", **fields}, raw


def _mac(secret: str, content: bytes) -> str:
    key = base64.b64decode(secret.rpartition("_")[2])
    return base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()
