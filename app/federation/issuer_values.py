"""The forms of values in an issuer's configuration: its name, URLs, words, roles and durations. Pure: no I/O."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

NAME = re.compile(r"[a-z][a-z0-9-]{0,31}", re.ASCII)
"""The form of an issuer's name, which stands in paths."""

_MOST_SECONDS = 365 * 86_400


def _https(url: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]{1,255}", url):
        raise ValueError("must have 1 to 255 characters of visible ASCII")
    if not is_https(url):
        raise ValueError("must be an https URL without user and fragment")
    return url


def _without_query(url: str) -> str:
    if "?" in url:  # OpenID Connect Core section 2
        raise ValueError("must be an https URL without query")
    return url


def is_https(url: str) -> bool:
    """Whether a text is an https URL with a host, and without user and fragment."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # its message may repeat a part of the URL
        return False
    return parts.scheme == "https" and bool(parts.hostname) and port != 0 and "@" not in parts.netloc and "#" not in url


Url = Annotated[str, AfterValidator(_https)]
Iss = Annotated[Url, AfterValidator(_without_query)]
Word = Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,255}$")]
Address = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9+.-]{0,31}:[\x21\x22\x24-\x7e]{1,223}$")]
"""A URI without a fragment, also of a native app's own scheme (RFC 8252 section 7.1)."""
Seconds = Annotated[int, Field(ge=1, le=_MOST_SECONDS)]
Names = Annotated[tuple[Word, ...], Field(max_length=50)]
Role = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
