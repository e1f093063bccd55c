"""The beginning of a request: methods that llhttp does not know, and targets in absolute form."""

from __future__ import annotations

import re
from typing import cast

from ..errors import InvalidRequest, MethodNotAllowed

USUAL = (b"GET ", b"POST ", b"HEAD ", b"PUT ", b"DELETE ", b"PATCH ", b"OPTIONS ")
"""A request that begins with one of these goes straight to llhttp."""

# The other methods that llhttp parses, and two for which llhttp has rules of its own: CONNECT, and HTTP/2's PRI.
_KNOWN = frozenset(
    b"CONNECT PRI TRACE ACL BIND CHECKOUT COPY LINK LOCK M-SEARCH MERGE MKACTIVITY MKCALENDAR MKCOL MOVE NOTIFY "
    b"PROPFIND PROPPATCH PURGE QUERY REBIND REPORT SEARCH SOURCE SUBSCRIBE UNBIND UNLINK UNLOCK UNSUBSCRIBE".split()
)
_OPENING = re.compile(rb"[\r\n]*([!#$%&'*+.^_`|~0-9A-Za-z-]*)")  # empty lines, then a token: RFC 9110 section 5.6.2
_MAX_METHOD = 64  # bytes; the longest that is registered has 17

# Without userinfo, which must not stand there: RFC 9110 section 4.2.4.
_ABSOLUTE_FORM = re.compile(rb"(?i:https?)://[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]+(/[^?]*)?(\?.*)?")


class UnknownMethod(MethodNotAllowed):
    """A word that is no method of HTTP's grammar, or is longer than any, or is ``CONNECT``."""

    def headers(self) -> dict[str, str]:
        """Header fields of the answer, with Allow (RFC 9110 section 15.5.6)."""
        return super().headers() | {"allow": "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"}


def with_known_method(data: bytes) -> tuple[str, bytes | None]:
    """Puts ``POST`` in the place of a method that llhttp does not know.

    RFC 9110 section 9.1 allows any token as a method. A proxy that asks about its client's request sends that request's
    method. But llhttp fails at a token that is not on its list. Of all methods, only CONNECT changes where a request
    ends (RFC 9112 section 6.3), and CONNECT is on the list. So llhttp reads the rest as with the real method.

    Returns:
        The unknown method, and the bytes for llhttp. If llhttp knows the method or has to refuse it: an empty string,
        and the same bytes. If the method may go on in the next read: an empty string, and None.
    """
    found = cast("re.Match[bytes]", _OPENING.match(data))
    start, end = found.span(1)
    if start == end or end - start > _MAX_METHOD:
        return "", data
    if end == len(data):
        return "", None
    if data[end] != ord(" ") or found[1] in _KNOWN or data.startswith(USUAL, start):
        return "", data
    return found[1].decode(), b"POST" + data[end:]


def origin_form(target: bytes, method: bytes) -> bytes:
    """The target in origin form, made from a target in absolute form (RFC 9112 sections 3.2.1 and 3.2.2).

    Raises:
        InvalidRequest: the target is in neither form, and is not the asterisk of OPTIONS.
    """
    if absolute := _ABSOLUTE_FORM.fullmatch(target):
        return (absolute[1] or b"/") + (absolute[2] or b"")
    if target != b"*" or method != b"OPTIONS":
        raise InvalidRequest("request target")
    return target
