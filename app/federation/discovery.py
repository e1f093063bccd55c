"""Discovery: what an issuer says of itself below its URL (OpenID Connect Discovery 1.0 section 4).

The document names the key set and the page that ends a browser's session there. Scalekit's are known without it. A
document that names another issuer than the configured one counts for nothing (OpenID Connect Discovery 1.0 section
4.3): else a host could speak for another.

Each process keeps the documents of the issuers in force in memory, and reads each again every hour. If that fails, the
one before stays: an outage of the issuer takes nothing away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import Any

from ..errors import InvalidRequest, TemporarilyUnavailable
from ..log import get_logger
from ..storage.tasks import keep
from .fetching import AddressRefused, Fetching
from .issuer import Configured, Issuer, is_https

FRESH_FOR = timedelta(hours=1)
"""How long a document counts before it is read again."""

COOL_DOWN = timedelta(seconds=10)
"""The least time between two readings of one document, whatever the load."""

_OK = 200
_MISSING = {404, 410}
_LONGEST_URL = 2048

_log = get_logger()


class WrongDocumentError(Exception):
    """The document is not one of this issuer. The message is a sentence, and repeats nothing of the document."""


class NoDocumentError(WrongDocumentError):
    """There is no document below the URL of the issuer."""


@dataclass(frozen=True, slots=True)
class Document:
    """The members of a document that Keyturn goes by."""

    jwks_uri: str
    end_session_endpoint: str | None
    """None if the issuer has none, or none that a browser may be sent to."""


@dataclass(slots=True)
class _Held:
    """The document of one issuer, as long as its configuration stays."""

    issuer: Issuer
    document: Document | None = None
    read_at: float = float("-inf")
    tried_at: float = float("-inf")
    failure: str = ""
    reading: asyncio.Task[None] | None = None


class Discovery:
    """The documents of the issuers in force."""

    def __init__(self, fetching: Fetching) -> None:
        """Reads nothing yet."""
        self._fetching = fetching
        self._held: dict[str, _Held] = {}

    # -- the uses of a document

    async def jwks_uri(self, of: Configured) -> str:
        """The URL of the issuer's key set.

        Raises:
            TemporarilyUnavailable: the document was never read, and can't be read now.
        """
        known = _known_keys(of.issuer)
        return known if known is not None else (await self._document(of)).jwks_uri

    def end_session_endpoint(self, of: Configured) -> str | None:
        """The page of the issuer that ends a browser's session there. None if there is none, or none is known yet.

        There is no I/O, because a logout must not wait for the issuer.
        """
        if of.issuer.preset == "scalekit":
            return f"{_base(of.issuer)}/oidc/logout"
        held = self._held.get(of.name)
        return held.document.end_session_endpoint if held and held.issuer == of.issuer and held.document else None

    # -- reading

    def follow(self, in_force: Mapping[str, Configured]) -> None:
        """Begins to read the documents that are due, and forgets those of issuers that are no longer in force."""
        for name in self._held.keys() - in_force.keys():
            del self._held[name]
        for each in in_force.values():
            if each.issuer.preset == "oidc":
                self._refresh(each)

    async def _document(self, of: Configured) -> Document:
        held = self._refresh(of)
        if held.document is None and held.reading is not None:
            await asyncio.wait({held.reading})  # many wait for one reading, and none ends it by leaving
        if held.document is None:
            raise TemporarilyUnavailable(held.failure)
        return held.document

    def _refresh(self, of: Configured) -> _Held:
        """What is held of an issuer. Begins to read the document if that is due and no reading is under way."""
        held = self._held.get(of.name)
        if held is None or held.issuer != of.issuer:
            held = self._held[of.name] = _Held(of.issuer)
        now = monotonic()
        due = now - held.read_at > FRESH_FOR.total_seconds() and now - held.tried_at > COOL_DOWN.total_seconds()
        if due and (held.reading is None or held.reading.done()):
            held.tried_at = now
            held.reading = asyncio.create_task(self._read(of, held))
            keep(held.reading)
        return held

    async def _read(self, of: Configured, held: _Held) -> None:
        try:
            document = await self._fetch(of)
        except (TemporarilyUnavailable, WrongDocumentError) as e:
            failure = e.cause if isinstance(e, TemporarilyUnavailable) else f"issuer {of.name}: {e}"
            if failure != held.failure:  # one line, and not one for each attempt
                _log.warning("discovery_not_read", issuer=of.name, cause=failure)
            held.failure = failure
        else:
            held.document, held.read_at, held.failure = document, monotonic(), ""

    async def _fetch(self, of: Configured) -> Document:
        status, value = await self._fetching.get_json(url_of(of.issuer), of=of)
        if status in _MISSING:
            raise NoDocumentError("there is no discovery document below its URL")
        if status != _OK:
            raise TemporarilyUnavailable(f"issuer {of.name}: its discovery document is answered with {status}")
        return document_of(value, of.issuer)

    # -- before a change

    async def examine(self, of: Configured) -> str:
        """Looks at an issuer before its configuration is stored: at the document, and at the key set.

        Returns:
            Why the issuer could not be examined, in words for an operator: an issuer may be added while it is away.
            Empty if all is well.

        Raises:
            InvalidRequest: the document is another issuer's, an oidc issuer has none, or its host has an address that
                it may not have.
        """
        keys = _known_keys(of.issuer)
        try:
            if keys is None:
                keys = (await self._fetch(of)).jwks_uri
            else:  # the document need not be there, but must not be another issuer's
                with suppress(NoDocumentError, TemporarilyUnavailable):
                    await self._fetch(of)
            return await self._examine_keys(keys, of)
        except WrongDocumentError as e:
            raise InvalidRequest("discovery", description=f"issuer: {e}.") from None
        except AddressRefused as e:
            raise InvalidRequest(
                e.cause,
                description="issuer: a host of it has a private or reserved address. See private_addresses.",
            ) from None
        except TemporarilyUnavailable as e:
            return e.cause

    async def _examine_keys(self, url: str, of: Configured) -> str:
        status, value = await self._fetching.get_json(url, of=of)
        if status != _OK:
            return f"issuer {of.name}: its key set is answered with {status}"
        keys = value.get("keys") if isinstance(value, dict) else None
        return "" if isinstance(keys, list) and keys else f"issuer {of.name}: its key set has no keys"


def url_of(issuer: Issuer) -> str:
    """The URL of the document (OpenID Connect Discovery 1.0 section 4.1): a slash at the end of the issuer goes."""
    return f"{_base(issuer)}/.well-known/openid-configuration"


def document_of(value: Any, issuer: Issuer) -> Document:
    """The document in a JSON value.

    Raises:
        WrongDocumentError: it is no document, or another issuer's, or its key set is not reached by https.
    """
    if not isinstance(value, dict):
        raise WrongDocumentError("its discovery document is no JSON object")
    found = value.get("issuer")
    if found != issuer.issuer:
        slash = isinstance(found, str) and found.rstrip("/") == issuer.issuer.rstrip("/")
        more = " (they differ in the slash at the end)" if slash else ""
        raise WrongDocumentError(f"its discovery document names another issuer{more}")
    jwks_uri, end_session = value.get("jwks_uri"), value.get("end_session_endpoint")
    if not (isinstance(jwks_uri, str) and _is_url(jwks_uri)):
        raise WrongDocumentError("its discovery document has no https jwks_uri")
    return Document(jwks_uri, end_session if _is_url(end_session) else None)


def _is_url(value: Any) -> bool:
    return (
        isinstance(value, str)
        and len(value) <= _LONGEST_URL
        and value.isascii()
        and value.isprintable()
        and (" " not in value and is_https(value))
    )


def _known_keys(issuer: Issuer) -> str | None:
    """The URL of the key set where it does not come from discovery."""
    if issuer.jwks_uri is not None:
        return issuer.jwks_uri
    return f"{_base(issuer)}/keys" if issuer.preset == "scalekit" else None


def _base(issuer: Issuer) -> str:
    return issuer.issuer.removesuffix("/")
