"""Requests to an issuer, and the JSON of its answers.

Their URLs come from the issuer's configuration and its discovery document, and never from a token. `Sending` bounds
them. Every failure is an outage of the issuer, and says nothing about a token.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from time import monotonic
from typing import Any
from urllib.parse import urlencode

from ..errors import TemporarilyUnavailable
from ..metrics import FETCH_DURATION, FETCHES
from ..outgoing.sending import AddressRefused, Peer, Sending
from .issuer import Configured
from .strict_json import parsed

_FIRST_ERROR = 400


class Fetching:
    """Sends requests to issuers."""

    def __init__(self, sending: Sending) -> None:
        self._sending = sending

    async def get_json(self, url: str, *, of: Configured, bearer: str | None = None) -> tuple[int, Any]:
        """Status and JSON value of a GET. The value of an answer without a body is None, as is an error's without JSON.

        Args:
            url: an https URL of the issuer's.
            of: the issuer, which decides about the addresses and authorities that count.
            bearer: an access token for the issuer's API (RFC 6750 section 2.1).

        Raises:
            AddressRefused: a host has an address that the issuer may not have.
            TemporarilyUnavailable: the issuer is away or slow, or its answer is a redirect, too large or no JSON.
        """
        return await self._send("GET", url, of, bearer)

    async def post_form(
        self, url: str, fields: Mapping[str, str], *, of: Configured, bearer: str | None = None
    ) -> tuple[int, Any]:
        """As `get_json`, for a POST of a form."""
        body = urlencode(fields).encode()
        return await self._send("POST", url, of, bearer, body, "application/x-www-form-urlencoded")

    async def post_json(
        self, url: str, body: Any = None, *, of: Configured, bearer: str | None = None
    ) -> tuple[int, Any]:
        """As `get_json`, for a POST of a JSON value. None: a POST without a body."""
        if body is None:
            return await self._send("POST", url, of, bearer)
        return await self._send("POST", url, of, bearer, json.dumps(body).encode(), "application/json")

    async def _send(
        self, method: str, url: str, of: Configured, bearer: str | None, body: bytes = b"", media_type: str = ""
    ) -> tuple[int, Any]:
        began = monotonic()
        try:
            status, value = await self._sent(method, url, of, bearer, body, media_type)
        except AddressRefused:
            FETCHES.count("address_refused")
            raise
        except (TemporarilyUnavailable, asyncio.CancelledError):  # cancelled: the caller had no more time for it
            FETCHES.count("away")
            raise
        finally:
            FETCH_DURATION.observe(monotonic() - began)
        FETCHES.count("answered" if status < _FIRST_ERROR else "refused")
        return status, value

    async def _sent(
        self, method: str, url: str, of: Configured, bearer: str | None, body: bytes, media_type: str
    ) -> tuple[int, Any]:
        headers = {"Accept": "application/json"}
        if bearer is not None:
            headers["Authorization"] = f"Bearer {bearer}"
        if media_type:
            headers["Content-Type"] = media_type
        to = Peer(f"issuer {of.name}", of.issuer.private_addresses, of.issuer.ca_file)
        status, raw = await self._sending.send(method, url, headers, body, to=to)
        return status, _value(status, raw, of)


def _value(status: int, raw: bytes, of: Configured) -> Any:
    """The JSON value of an answer. The status says all about an error, whose body may be a page of a proxy."""
    if not raw.strip():
        return None
    try:
        return parsed(raw)
    except ValueError:
        if status >= _FIRST_ERROR:
            return None
    raise TemporarilyUnavailable(f"issuer {of.name}: its answer is no JSON")
