"""Answers that are whole."""

from __future__ import annotations

import json
from functools import lru_cache

from ..errors import Refusal

Answer = tuple[int, list[tuple[bytes, bytes]], bytes]
"""Status, header fields and body, as ASGI wants them."""


def render(refusal: Refusal) -> Answer:
    """A refusal as it goes out."""
    fields, body = _rendered(tuple(refusal.body().items()), tuple(refusal.headers().items()))
    return refusal.status, list(fields), body


@lru_cache(maxsize=1024)  # nothing in it comes from the request, so there are a few dozen
def _rendered(
    members: tuple[tuple[str, str], ...], more: tuple[tuple[str, str], ...]
) -> tuple[tuple[tuple[bytes, bytes], ...], bytes]:
    body = json.dumps(dict(members), separators=(",", ":")).encode()
    fields = [("content-type", "application/json"), ("content-length", str(len(body))), *more]
    return tuple((name.encode(), value.encode("latin-1")) for name, value in fields), body
