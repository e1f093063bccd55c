"""Refusals in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, get_args

from pydantic import BaseModel, Field, WithJsonSchema

from ..errors import (
    ContentTooLarge,
    HeaderFieldsTooLarge,
    InvalidGrant,
    InvalidRequest,
    Reason,
    Refusal,
    RequestTimeout,
    ServerError,
    UnsupportedMediaType,
)
from . import examples
from .bodies import JSON
from .heads import UriTooLong


def _codes(of: type[Refusal]) -> Iterator[str]:
    for refusal in of.__subclasses__():
        yield refusal.error
        yield from _codes(refusal)


def word(description: str, *words: str, example: str | None = None) -> WithJsonSchema:
    """The schema of a word in an answer. Its type is string: an enum would break clients when a release adds a word."""
    listed = ", ".join(f"`{one}`" for one in words)
    return WithJsonSchema(
        {"type": "string", "description": f"{description} At present {listed}; later releases may add others."}
        | {"examples": [example or words[0]]}
    )


class ErrorAnswer(BaseModel):  # not `Error`, which is a class of JavaScript and Java
    """Every refusal has this shape (RFC 6749 section 5.2)."""

    error: Annotated[
        str,
        word("A code of the standards, or of their style.", *sorted(set(_codes(Refusal))), example=InvalidGrant.error),
    ]
    error_description: str = Field(description="A sentence for the developer.", examples=[InvalidGrant.sentence])
    reason: Annotated[
        str | None,
        word("Why the session or token is over; only for the holder of a genuine token.", *get_args(Reason)),
    ] = None


IDENTIFIERS = {
    "identity_id": "The identity's `id`, as its list gives it.",
    "kid": "The key's `kid`.",
    "name": "The issuer's name, as the settings or an operator chose it.",
    "scope": "The policy's scope: `global`, `role:…` or `user:…`.",
    "session": "The issuer's own id of its session.",
    "session_id": "The session's `id`.",
    "user_id": "The user's `id`.",
}
"""The meaning of each part of a path that stands in braces."""

_CHALLENGE = {"WWW-Authenticate": {"schema": {"type": "string"}, "description": "RFC 6750 section 3."}}
_RETRY_AFTER = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
_RATE_LIMIT = {
    "RateLimit": {
        "schema": {"type": "string"},
        "description": 'The limit that was met: `"name";r=0;t=12` (draft-ietf-httpapi-ratelimit-headers). A quota of '
        "requests at the same time has no `t`.",
    },
    "RateLimit-Policy": {
        "schema": {"type": "string"},
        "description": 'Its quota and window in seconds: `"name";q=10;w=60` (same draft). Or how many requests at the '
        'same time: `"name";q=2;qu="concurrent-requests"`.',
    },
}
HEADERS: dict[int, dict[str, Any]] = {401: _CHALLENGE, 429: _RETRY_AFTER | _RATE_LIMIT, 503: _RETRY_AFTER}
"""Header fields of refusals, by status."""

_REQUEST_ID = {
    "schema": {"type": "string"},
    "description": "The `X-Request-Id` of the request, or a new one. The log has it too.",
}
_OF_THE_EDGE = (InvalidRequest, UriTooLong, HeaderFieldsTooLarge, ServerError)
_OF_THE_EDGE_TO_A_BODY = (RequestTimeout, ContentTooLarge, UnsupportedMediaType)


def _example(refusal: type[Refusal]) -> dict[str, Any]:
    """The refusal as it is answered where nothing more is said, under the name of its class."""
    return {refusal.__name__: {"value": {"error": refusal.error, "error_description": refusal.sentence}}}


def refused(*classes: type[Refusal]) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of an endpoint that may raise these. Refusals of one status share a response."""
    responses: dict[int | str, dict[str, Any]] = {}
    for each in classes:
        headers = _CHALLENGE if each.challenge else HEADERS.get(each.status, {})
        others = responses.get(each.status, {"description": "", "headers": {}, "content": {}})
        examples = others["content"].get(JSON, {}).get("examples", {})
        responses[each.status] = {
            "model": ErrorAnswer,
            "content": {JSON: {"examples": examples | _example(each)}},
            "description": f"{others['description']} {each.sentence}".lstrip(),
            "headers": others["headers"] | headers,
        }
    return responses


def _show(
    described: dict[str, Any],
    example: Callable[[Any, Any], Any],
    schemas: dict[str, Any],
    more: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Adds an example to each content of a body or an answer that is a named schema."""
    for content in described.get("content", {}).values():
        if "$ref" in content["schema"]:
            name = content["schema"]["$ref"].rpartition("/")[2]
            content["examples"] = {name: {"value": example(content["schema"], schemas) | more}}


def documented(
    document: dict[str, Any], shown: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
) -> dict[str, Any]:
    """FastAPI's OpenAPI document, corrected to what the service does.

    All refusals have one form, no answer has status 422, and the refusals of the edge are added. Each operation says
    whether it takes a token, because tools report an operation that does not say so. Each body and each good answer
    has an example under the name of its schema.

    Args:
        document: the document, which is changed.
        shown: members of the good answer's example, by the operation's id, where they differ from those of its schema.
    """
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    document["components"]["headers"] = {"RequestId": _REQUEST_ID}
    schema = {"$ref": "#/components/schemas/ErrorAnswer"}
    for path in document["paths"].values():
        for operation in path.values():
            operation.setdefault("security", [])
            responses = operation["responses"]
            responses.pop("422", None)
            for refusal in _OF_THE_EDGE + (_OF_THE_EDGE_TO_A_BODY if "requestBody" in operation else ()):
                content = {JSON: {"schema": schema, "examples": _example(refusal)}}
                responses.setdefault(str(refusal.status), {"description": refusal.sentence, "content": content})
            for answer in responses.values():
                if len(answer.get("content", ())) > 1 and answer["content"].get(JSON) == {"schema": {}}:
                    del answer["content"][JSON]  # FastAPI's own, beside those that the endpoint names
                answer.setdefault("headers", {})["X-Request-Id"] = {"$ref": "#/components/headers/RequestId"}
            operation["responses"] = dict(sorted(responses.items()))
            _show(operation.get("requestBody", {}), examples.of_body, schemas)
            for status, answer in responses.items():
                if status.startswith("2"):
                    _show(answer, examples.of_answer, schemas, shown.get(operation["operationId"], {}))
    return document
