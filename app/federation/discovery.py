"""Discovery: what an issuer says of itself below its URL (OpenID Connect Discovery 1.0 section 4).

The document names the key set and the page that ends a browser's session there. Scalekit's are known without it. A
document that names another issuer than the configured one counts for nothing (OpenID Connect Discovery 1.0 section
4.3): else a host could speak for another.

Each process keeps the documents of the issuers in force in memory, and reads each again every hour, or if a key is not
at the place that it names. If that fails, the one before stays: an outage of the issuer takes nothing away.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import Any, TypeGuard

from ..errors import TemporarilyUnavailable
from ..log import get_logger
from ..storage.tasks import keep
from .fetching import Fetching
from .issuer import Configured, Issuer, is_https

FRESH_FOR = timedelta(hours=1)
"""How long a document counts before it is read again."""

COOL_DOWN = timedelta(seconds=10)
"""The least time between two readings of one document, whatever the load."""

_OK = 200
_MISSING = {404, 410}
_URL = re.compile(r"[\x21-\x7e]{1,2048}")

_log = get_logger()


class WrongDocument(TemporarilyUnavailable):
    """The document is not one of this issuer. The cause repeats nothing of the document."""


class NoDocument(TemporarilyUnavailable):
    """There is no document below the URL of the issuer."""


@dataclass(frozen=True, slots=True)
class Document:
    """The members of a document that Keyturn goes by."""

    jwks_uri: str
    end_session_endpoint: str | None
    """None if the issuer has none, or none that a browser may be sent to."""


@dataclass(slots=True)
class _Held:
    """The document of one issuer, as long as the place stays that it comes from."""

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

    def doubt(self, of: Configured) -> None:
        """Lets the document be read again when it is used next, because keys can't be had at the place that it names.

        The former one goes on meanwhile.
        """
        if held := self._held.get(of.name):
            held.read_at = float("-inf")

    def end_session_endpoint(self, of: Configured) -> str | None:
        """The page of the issuer that ends a browser's session there. None if there is none, or none is known yet.

        There is no I/O, because a logout must not wait for the issuer.
        """
        if of.issuer.preset == "scalekit":
            return f"{of.issuer.base}/oidc/logout"
        held = self._held.get(of.name)
        here = held is not None and held.issuer.place == of.issuer.place
        return held.document.end_session_endpoint if held and here and held.document else None

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
        """The state that is held of an issuer. A reading begins if it is due and none is under way."""
        held = self._held.get(of.name)
        if held is None or held.issuer.place != of.issuer.place:
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
        except Exception as e:  # noqa: BLE001  # whatever it was, the former document stays and the callers go on
            failure = e.cause if isinstance(e, TemporarilyUnavailable) else f"{type(e).__name__}: {e}"
            if failure != held.failure:  # one line, and not one for each attempt
                _log.warning("discovery_not_read", issuer=of.name, cause=failure)
            held.failure = failure
            if isinstance(e, NoDocument) and _known_keys(of.issuer) is not None:
                held.read_at = monotonic()  # an issuer whose key set is configured needs none: ask in an hour again
        else:
            held.document, held.read_at, held.failure = document, monotonic(), ""

    async def _fetch(self, of: Configured) -> Document:
        status, value = await self._fetching.get_json(url_of(of.issuer), of=of)
        if status in _MISSING:
            raise NoDocument(f"issuer {of.name}: there is no discovery document below its URL")
        if status != _OK:
            raise TemporarilyUnavailable(f"issuer {of.name}: its discovery document is answered with {status}")
        return document_of(value, of)

    async def examine(self, of: Configured) -> str:
        """The URL of the issuer's key set, after a look at its document now. Nothing is kept.

        Raises:
            WrongDocument: the document is another issuer's.
            NoDocument: the issuer needs a document, and has none.
            TemporarilyUnavailable: the issuer needs its document, and it can't be read now.
        """
        known = _known_keys(of.issuer)
        if known is None:
            return (await self._fetch(of)).jwks_uri
        try:
            await self._fetch(of)
        except WrongDocument:  # it need not be there, but must not be another's
            raise
        except TemporarilyUnavailable:
            pass
        return known


def url_of(issuer: Issuer) -> str:
    """The URL of the document (OpenID Connect Discovery 1.0 section 4.1)."""
    return f"{issuer.base}/.well-known/openid-configuration"


def document_of(value: Any, of: Configured) -> Document:
    """The document in a JSON value.

    Raises:
        WrongDocument: it is no document, or another issuer's, or its key set is not reached by https.
    """
    if not isinstance(value, dict):
        raise WrongDocument(f"issuer {of.name}: its discovery document is no JSON object")
    found, issuer = value.get("issuer"), of.issuer.issuer
    if found != issuer:
        slash = isinstance(found, str) and found.rstrip("/") == issuer.rstrip("/")
        more = " (they differ in the slash at the end)" if slash else ""
        raise WrongDocument(f"issuer {of.name}: its discovery document names another issuer{more}")
    jwks_uri, end_session = value.get("jwks_uri"), value.get("end_session_endpoint")
    if not _is_url(jwks_uri):
        raise WrongDocument(f"issuer {of.name}: its discovery document has no https jwks_uri")
    return Document(jwks_uri, end_session if _is_url(end_session) else None)


def _is_url(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and _URL.fullmatch(value) is not None and is_https(value)


def _known_keys(issuer: Issuer) -> str | None:
    """The URL of the key set where it does not come from discovery."""
    if issuer.jwks_uri is not None:
        return issuer.jwks_uri
    return f"{issuer.base}/keys" if issuer.preset == "scalekit" else None
