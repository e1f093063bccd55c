"""The settings about new passwords: their length, the list of common ones, and a service that knows breached ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field

from .place import Place
from .settings_values import checked_url

SHORTEST_PASSWORD, LONGEST_MINIMUM = 8, 64
"""The bounds of the least length that settings and policies may ask for, in characters (NIST SP 800-63B-4, 3.1.1.2)."""


class PasswordSettings(Place):
    """The settings about new passwords. None of them counts at a sign-in."""

    password_length: Annotated[
        int,
        Field(
            ge=SHORTEST_PASSWORD,
            le=LONGEST_MINIMUM,
            description="Characters (Unicode code points) that a new password must have.",
        ),
    ] = 15
    password_list_file: Annotated[
        Path | None,
        Field(
            description="Text file of common passwords, one a line, in the place of the list that Keyturn ships "
            "(docs/passwords.md)."
        ),
    ] = None
    password_range_url: Annotated[
        str | None,
        BeforeValidator(checked_url),
        Field(
            description="URL of a range API of breached passwords, as `https://api.pwnedpasswords.com/range`. It gets "
            "20 bits of a new password's SHA-1. Unset: nobody is asked."
        ),
    ] = None
    password_range_ca_file: Annotated[
        Path | None, Field(description="File of the authorities that count for the range API. Unset: the usual ones.")
    ] = None
    password_range_private: Annotated[
        bool, Field(description="Whether the range API may have a private or loopback address.")
    ] = False

    def password_rules(self) -> Iterator[tuple[bool, str]]:
        """For each rule on these settings: whether it is broken, and its message."""
        url = urlsplit(self.password_range_url or "https://none")
        plain = url.scheme == "https" and url.hostname and not (url.query or url.fragment or "@" in url.netloc)
        yield not plain, "KEYTURN_PASSWORD_RANGE_URL must begin with https://, and have no user, query and fragment"
        yield (
            self.password_range_url is None
            and (self.password_range_ca_file is not None or self.password_range_private),
            "KEYTURN_PASSWORD_RANGE_CA_FILE and KEYTURN_PASSWORD_RANGE_PRIVATE need KEYTURN_PASSWORD_RANGE_URL",
        )
