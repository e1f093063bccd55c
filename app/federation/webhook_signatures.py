"""Signatures of webhooks, after Standard Webhooks: HMAC-SHA256 over id, moment and raw body. Pure: no I/O, no clock.

The bytes of the body are signed, and not the values in it. So no second spelling of the same values passes. The edge
has parsed the body by then, but nothing is done with its values before the signature is right.
"""

from __future__ import annotations

import hmac
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from datetime import datetime, timedelta
from hashlib import sha256

from ..errors import InvalidRequest

HEADERS = ("webhook-id", "webhook-timestamp", "webhook-signature")
"""The header fields of a webhook, each of which must stand once."""

WINDOW = timedelta(minutes=5)
"""How far the moment of a webhook may lie from now. Within it, the id alone keeps a webhook from counting twice."""

_FEWEST = 16  # bytes of a key; the senders make 24 or more
_MOST_SIGNATURES = 16  # a sender that rotates its secret sends two
_ID = re.compile(r"[\x21-\x7e]{1,255}")
_MOMENT = re.compile(r"[0-9]{1,12}", re.ASCII)
_SENTENCE = "The webhook's signature, time or id is not acceptable."


def key_of(secret: str) -> bytes:
    """The key in a webhook's secret: base64, after a prefix such as ``whsec_`` or without one.

    Raises:
        ValueError: the secret has another form, or is too short to protect anything.
    """
    text = secret.rpartition("_")[2]  # base64 (RFC 4648 section 4) has no underscore
    try:
        key = b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), validate=True)
    except ValueError:
        key = b""
    if len(key) < _FEWEST:
        raise ValueError(f"must be base64 of at least {_FEWEST} bytes, after a prefix as in whsec_…")
    return key


def verified_id(secret: str, fields: Mapping[str, str], raw: bytes, now: datetime) -> str:
    """The id of a webhook whose signature and moment are right.

    Args:
        secret: the secret that the sender and we share.
        fields: the header fields by their names in lower case. Those of a webhook stand once.
        raw: the body as it came.
        now: the database's clock.

    Raises:
        InvalidRequest: a field is missing or malformed, the moment is too far from now, or no signature is right.
    """
    webhook_id, moment, signatures = (fields.get(name, "") for name in HEADERS)
    if not _ID.fullmatch(webhook_id) or not _MOMENT.fullmatch(moment):
        raise InvalidRequest("webhook: id or timestamp", description=_SENTENCE)
    if abs(now.timestamp() - int(moment)) > WINDOW.total_seconds():
        raise InvalidRequest("webhook: outside the window", description=_SENTENCE)
    content = f"{webhook_id}.{moment}.".encode() + raw
    right = b"v1," + b64encode(hmac.digest(key_of(secret), content, sha256))
    given = signatures.split(" ")
    # All are compared, in constant time each. Bytes, because `compare_digest` takes no text beyond ASCII.
    matches = [hmac.compare_digest(right, each.encode()) for each in given[:_MOST_SIGNATURES]]
    if not any(matches):
        raise InvalidRequest("webhook: signature", description=_SENTENCE)
    return webhook_id
