"""Whole answers: status, header fields and body."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache

from pydantic import BaseModel

from ..errors import Refusal

Fields = Sequence[tuple[bytes, bytes]]
"""Header fields in the form of ASGI: names are in lower case."""

Answer = tuple[int, Fields, bytes]
"""Status, header fields and body."""

NO_CONTENT: Answer = (204, (), b"")

_JSON = (b"content-type", b"application/json")


def of_json(body: bytes, more: Fields = (), *, status: int = 200) -> Answer:
    """The answer whose body is this JSON text."""
    return status, (_JSON, (b"content-length", b"%d" % len(body)), *more), body


def of_model(model: BaseModel, more: Fields = (), *, status: int = 200, exclude_none: bool = False) -> Answer:
    """The answer whose body is this model."""
    return of_json(model.__pydantic_serializer__.to_json(model, exclude_none=exclude_none), more, status=status)


def render(refusal: Refusal) -> Answer:
    """The answer that a refusal gives."""
    fields, body = _rendered(tuple(refusal.body().items()), tuple(refusal.headers().items()))
    return refusal.status, fields, body


@lru_cache(maxsize=1024)  # nothing in a refusal comes from the request, so there are a few dozen
def _rendered(members: tuple[tuple[str, str], ...], more: tuple[tuple[str, str], ...]) -> tuple[Fields, bytes]:
    body = json.dumps(dict(members), separators=(",", ":")).encode()
    fields = [("content-type", "application/json"), ("content-length", str(len(body))), *more]
    return tuple((name.encode(), value.encode("latin-1")) for name, value in fields), body
