"""E-mail addresses: one spelling for each account."""

from __future__ import annotations

import string

from email_validator import SPECIAL_USE_DOMAIN_NAMES, EmailNotValidError, validate_email

from ..errors import InvalidRequest

# The library's documented way to allow domains that the Internet doesn't know, such as corp.local: a self-hosted
# service has users there.
SPECIAL_USE_DOMAIN_NAMES.clear()


def normalised(email: str) -> str:
    """The one spelling of an e-mail address: lower case, NFC, domain in its ASCII-compatible reading.

    ASCII white space around it is left out: telephones' keyboards add a blank, which the user does not see.

    Raises:
        InvalidRequest: it is no address that mail could reach (quotes, comments, an IP domain, over 254 characters).
    """
    email = email.strip(string.whitespace)
    try:
        address = validate_email(
            email, check_deliverability=False, globally_deliverable=False, allow_quoted_local=False
        ).normalized.lower()
    except (EmailNotValidError, ValueError):
        raise InvalidRequest("email", description="email: is not an e-mail address.") from None
    if address.rpartition("@")[2].rpartition(".")[2].isdigit():  # no top-level domain: an IP address, however written
        raise InvalidRequest("email", description="email: is not an e-mail address.")
    if len(address) > 254:  # noqa: PLR2004  # RFC 5321 section 4.5.3.1.3, less the brackets
        raise InvalidRequest("email", description="email: is not an e-mail address.")
    return address
