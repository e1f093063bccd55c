"""E-mail addresses: one spelling for each account."""

from __future__ import annotations

import string
import unicodedata

from email_validator import SPECIAL_USE_DOMAIN_NAMES, EmailNotValidError, validate_email

from ..errors import InvalidRequest

# The library's documented way to allow domains that the Internet does not know. Users of a self-hosted service may have
# addresses there, as in corp.local.
SPECIAL_USE_DOMAIN_NAMES.clear()


def normalised(email: str) -> str:
    """The one spelling of an e-mail address: lower case, NFC, the domain in Unicode. That of a spelling is itself.

    ASCII white space around the address is dropped: keyboards of telephones add a blank that the user does not see.

    Raises:
        InvalidRequest: mail can't reach such an address (quotes, comments, an IP domain, over 254 characters).
    """
    email = email.strip(string.whitespace)
    try:
        normal = validate_email(
            email, check_deliverability=False, globally_deliverable=False, allow_quoted_local=False
        ).normalized
        # Lower case may need NFC again: J with a caron has no letter of its own, and j with a caron has one.
        address = unicodedata.normalize("NFC", normal.lower())
    except (EmailNotValidError, ValueError):
        raise InvalidRequest("email", description="email: is not an e-mail address.") from None
    if address.rpartition("@")[2].rpartition(".")[2].isdigit():  # no top-level domain: an IP address, however written
        raise InvalidRequest("email", description="email: is not an e-mail address.")
    if len(address) > 254:  # noqa: PLR2004  # RFC 5321 section 4.5.3.1.3, less the brackets
        raise InvalidRequest("email", description="email: is not an e-mail address.")
    return address
