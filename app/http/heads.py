"""The head of a request: its target and its header fields."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import chain
from urllib.parse import unquote_to_bytes

from starlette.types import Scope

from ..errors import HeaderFieldsTooLarge, InvalidRequest
from .request import Request

MAX_TARGET = 8192
"""Bytes of path and query. RFC 9112 section 3 asks for at least 8000 for the whole request line."""

# llhttp leaves the white space that may follow a value (RFC 9112 section 5.1).
_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*[ \t]*")
_STRAY_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")

# Each of these fields says what the request is or who sends it. If one stands twice, two parsers may read two different
# requests (RFC 9112 sections 3.2 and 6.3).
_SINGLE = frozenset({b"authorization", b"content-length", b"content-type", b"host", b"transfer-encoding"})
_SINGLE_AT_VERIFY = _SINGLE - {b"content-type"}  # the body of such a request is not read
# RFC 3986 sections 3.3 and 3.4. `check_escaped` checks each "%".
_IN_TARGETS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=:@/?%"

# Proxies ask this endpoint about their clients' requests. The path has three parts: the endpoint's own path, the
# proxy's demands, and the path that the client asked for. Any other demand makes the path unknown (404), because a
# mistyped demand must not let every client through.
VERIFY = "/auth/verify"
"""The path of the endpoint for proxies. `asked_by_proxy` looks at each request to this path or to a path below."""
_VERIFY = VERIFY.encode()
_ASKED = re.compile(rb"(/auth/verify)((?:;(?:role|scope|refresh|max_age|claim\.[^=/;]+)=[^/;]*)*)(/.*)?", re.DOTALL)


class UriTooLong(InvalidRequest):
    """The request target is longer than `MAX_TARGET`."""

    status = 414
    sentence = "The path and query are too long."


def check_head(request: Request, asgi_scope: Scope, max_header: int, *, at_verify: bool = False) -> None:
    """Checks target and header fields. `max_header` bounds them together, in bytes.

    Raises:
        Refusal: 400, 414 or 431.
    """
    headers, fields = request.headers, request.fields
    path: bytes = asgi_scope.get("raw_path") or b""
    query = request.query
    target = path + query
    if len(target) > MAX_TARGET:
        raise UriTooLong("request target")
    block = b"".join(chain.from_iterable(headers))
    if len(target) + len(block) + 4 * len(headers) > max_header:
        raise HeaderFieldsTooLarge("header block")
    if not block.isascii():
        _check_fields(headers)
    if len(fields) != len(headers):
        single = _SINGLE_AT_VERIFY if at_verify else _SINGLE
        names = [name for name, _ in headers if name in single]
        if len(names) != len(set(names)):
            raise InvalidRequest("a header field stands twice")
    if not _HOST.fullmatch(fields.get(b"host", b"\n" if asgi_scope["http_version"] == "1.1" else b"")):
        raise InvalidRequest("Host is missing or malformed")
    # RFC 9112 section 3.2 allows no other characters, but browsers send some. A proxy passes them on to the endpoint
    # for proxies, where the target of the client decides nothing.
    if not at_verify and target.translate(None, _IN_TARGETS):
        raise InvalidRequest("a character that no request target has")
    if b"%" in target or not target.isascii():
        check_escaped(path, "path")
        check_escaped(query, "query")


def asked_by_proxy(asgi_scope: Scope) -> Scope | None:
    """The ASGI scope of a proxy's question about its client's request, without the client's parts.

    None if the request is no such question. Envoy appends the path and query of its client to the endpoint's path, and
    nginx announces a body that it does not send. Keyturn looks at none of these. A demand stands where no client can
    write:

    1. in the query, if no path is appended;
    2. before the appended path, as a parameter of the last segment (RFC 3986 section 3.3): ``/auth/verify;role=admin``.
    """
    root_path: str = asgi_scope.get("root_path", "")
    raw_path: bytes = asgi_scope.get("raw_path") or b""
    if raw_path == _VERIFY and not root_path:  # most questions
        return asgi_scope
    parts = _ASKED.fullmatch(raw_path, len(root_path))
    if parts is None:
        return None
    path, demands, below = parts.groups()
    if not demands and below is None:
        return asgi_scope
    queries = [demands[1:].replace(b";", b"&")] if demands else []
    if below is None and asgi_scope["query_string"]:
        queries.append(asgi_scope["query_string"])
    return {
        **asgi_scope,
        "path": root_path + path.decode(),
        "raw_path": root_path.encode() + path,
        "query_string": b"&".join(queries),
    }


def _check_text(text: bytes, where: str) -> None:
    try:
        text.decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"{where} is not UTF-8") from None


def _check_fields(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Checks that the fields that Keyturn reads as text are UTF-8. All other fields are opaque (RFC 9110 section 5.5).

    Keyturn compares a media type as bytes, so its field is not checked.

    Raises:
        InvalidRequest: a field is not UTF-8.
    """
    for name, value in headers:
        if name in _SINGLE_AT_VERIFY:
            _check_text(value, "header field")


def check_escaped(text: bytes, where: str) -> None:
    """Checks percent-encoded text: each escape is whole, and the decoded bytes are UTF-8 without NUL.

    Raises:
        InvalidRequest: the text breaks one of these rules. `where` names it in the private cause.
    """
    if _STRAY_PERCENT.search(text):
        raise InvalidRequest(f"{where} has a broken escape")
    raw = unquote_to_bytes(text)
    if b"\0" in raw:
        raise InvalidRequest(f"{where} has a NUL")
    _check_text(raw, where)
