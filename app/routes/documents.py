"""/, /docs and /openapi.json: the service tells people and programs about itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, metadata
from typing import Any

from pydantic_core import to_json

from ..errors import TemporarilyUnavailable
from ..http.answers import Answer, Fields
from ..http.endpoints import Endpoint
from ..http.request import Request
from ..keyturn import Keyturn
from ..pages.html_page import FIELDS
from ..pages.reference import reference
from ..pages.start import Facts, start

PATHS = ("/", "/docs", "/openapi.json")

_JSON = ((b"content-type", b"application/json"),)


class Documents:
    """The contract as JSON, and the pages. None of their endpoints is itself in the contract.

    Args:
        contract: makes the OpenAPI document.
        root_path: the prefix under which a proxy publishes the service.
        version: the version of this release.
        pages: whether the pages are served.
    """

    def __init__(self, contract: Callable[[], dict[str, Any]], *, root_path: str, version: str, pages: bool) -> None:
        self._contract = contract
        self._root_path = root_path
        self._version = version
        self._pages = pages
        self._elsewhere = _project_urls()
        self._cookie_names: dict[str, str] = {}
        self._made: dict[str, tuple[bytes, bytes]] = {}
        self._front: tuple[Facts, bytes] | None = None

    @property
    def endpoints(self) -> Sequence[Endpoint[Keyturn]]:
        """The endpoints."""
        contract: Endpoint[Keyturn] = Endpoint("GET", "/openapi.json", self.openapi, tag="documents")
        if not self._pages:
            return (contract,)
        return (
            contract,
            Endpoint("GET", "/", self.front, tag="documents"),
            Endpoint("GET", "/docs", self.docs, tag="documents"),
        )

    def make(self) -> None:
        """Makes the contract now, so that who asks for it first keeps no other request waiting."""
        self._document("/openapi.json")

    async def front(self, keyturn: Keyturn, _request: Request) -> Answer:
        """Get the start page."""
        # Answer from memory, so that a client that asks without pause takes nothing from other clients.
        try:
            algorithm = keyturn.keys.signing_access.algorithm
        except TemporarilyUnavailable:
            algorithm = None
        facts = Facts(
            database="ok" if keyturn.revocations.fence.database_answers() else "away",
            cache=keyturn.revocations.rebuild.cache,
            version=self._version,
            issuer=keyturn.settings.iss,
            issuer_is_set=bool(keyturn.settings.issuer),
            address=keyturn.settings.address,
            algorithm=algorithm,
            elsewhere=self._elsewhere,
        )
        # To make the page takes longer than a refresh, and anyone may ask. So make it only if a fact has changed.
        if self._front is None or self._front[0] != facts:
            self._front = facts, start(facts)
        body = self._front[1]
        return 200, (*FIELDS, _length(body)), body

    async def docs(self, keyturn: Keyturn, request: Request) -> Answer:
        """Get the reference of the API."""
        if request.path not in self._made:  # a tenth of a second, so other requests are answered meanwhile
            self._cookie_names = {"cookie": keyturn.cookies.access, "refresh_cookie": keyturn.cookies.refresh}
            await asyncio.to_thread(self._document, request.path)
        return self._answer(request, FIELDS)

    async def openapi(self, _keyturn: Keyturn, request: Request) -> Answer:
        """Get the contract."""
        return self._answer(request, _JSON)

    def _answer(self, request: Request, fields: Fields) -> Answer:
        """The document at the path of the request, or 304 if the client has it already (RFC 9110 section 13.1.2)."""
        tag, body = self._document(request.path)
        kept = ((b"etag", tag), (b"cache-control", b"no-cache"))
        known = request.fields.get(b"if-none-match", b"")
        if {tag, b"*"} & {one.strip().removeprefix(b"W/") for one in known.split(b",")}:
            return 304, kept, b""
        return 200, (*fields, *kept, _length(body)), body

    def _document(self, path: str) -> tuple[bytes, bytes]:
        """Entity tag and content. Made once, because anyone may ask."""
        made = self._made.get(path)
        if made is None:
            body = reference(self._contract(), self._cookie_names) if path == "/docs" else self._openapi()
            made = self._made[path] = b'"%s"' % sha256(body).hexdigest()[:32].encode(), body
        return made

    def _openapi(self) -> bytes:
        contract = self._contract()
        if self._root_path:
            contract = {**contract, "servers": [{"url": self._root_path}, *contract["servers"]]}
        return to_json(contract)


def _length(body: bytes) -> tuple[bytes, bytes]:
    return b"content-length", b"%d" % len(body)


def _project_urls() -> dict[str, str]:
    """The project's own pages, by name, as the metadata of the installed package has them."""
    try:
        found = metadata("keyturn").get_all("Project-URL") or []
    except PackageNotFoundError:
        return {}
    urls = (each.partition(",") for each in found)
    return {name.strip(): url.strip() for name, _, url in urls if url.strip().startswith("https://")}
