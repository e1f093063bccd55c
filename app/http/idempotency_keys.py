"""The value of the header field Idempotency-Key (an IETF draft, "The Idempotency-Key HTTP Header Field"). Pure.

The draft writes the key as a string of a structured field (RFC 9651 section 3.3.3): in double quotes, with a backslash
before a quote or a backslash. Most clients send the bare key. Both spellings are the same key.

A proxy may join two fields of one name by a comma (RFC 9110 section 5.3). So a bare key has no comma: two joined keys
must not pass for one. A bare key has no double quote either, so that no spelling can be read in two ways.
"""

from __future__ import annotations

import re

from ..errors import InvalidRequest

FIELD = "Idempotency-Key"

PATTERN = r""""((?:[ !#-\[\]-~]|\\["\\]){16,255})"|([!#-+\--~][ !#-+\--~]{14,253}[!#-+\--~])"""
"""A value as a regular expression of Python and of ECMAScript: quoted or bare, 16 to 255 printable characters of ASCII,
counted without the quotes and the escaping backslashes."""

_KEY = re.compile(PATTERN.encode())
_ESCAPED = re.compile(rb"\\(.)")


def key_in(value: bytes) -> str:
    """The key that the value of the field spells.

    Raises:
        InvalidRequest: the value spells none. The refusal does not repeat it, because a key is a secret of the client.
    """
    found = _KEY.fullmatch(value.strip(b" \t"))
    if found is None:
        raise InvalidRequest(
            "Idempotency-Key malformed",
            description=f"{FIELD}: must be 16 to 255 printable ASCII characters, once. Quote it if it has a comma.",
        )
    quoted, bare = found.groups()
    return (_ESCAPED.sub(rb"\1", quoted) if bare is None else bytes(bare)).decode("ascii")
