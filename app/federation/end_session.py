"""The URL by which a browser ends its session at the issuer (OpenID Connect RP-Initiated Logout 1.0).

Only the browser can do that, because the issuer finds its session by a cookie of its own. So an answer to a logout
names the URL, and the app sends its user there. The logout here has happened by then: a look-up that fails or takes too
long costs the URL, and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from urllib.parse import quote, urlencode
from uuid import UUID

from sqlalchemy import select

from ..errors import TemporarilyUnavailable
from ..log import get_logger
from ..storage.batches import Batch
from ..storage.database import Database
from ..storage.tables import UpstreamSession
from .discovery import Discovery
from .issuer import Configured
from .issuers import Issuers

BOUND = timedelta(milliseconds=500)
"""How long a logout waits for the look-up."""

_MOST = 4  # sessions of one logout that are looked up; a browser presents one or two

_log = get_logger()


class EndSession:
    """Finds the end-session endpoint of the issuer that a session came from."""

    def __init__(self, db: Database, issuers: Issuers, discovery: Discovery) -> None:
        self._db = db
        self._issuers = issuers
        self._discovery = discovery
        self._names = Batch(self._read, name="upstream", in_flight=2)

    def has_issuers(self) -> bool:
        """Whether any issuer is configured. True as well while this process can't tell."""
        try:
            return bool(self._issuers.in_force)
        except TemporarilyUnavailable:
            return True

    async def url(
        self, session_ids: Collection[UUID], hints: Mapping[UUID, str], return_to: str | None = None
    ) -> str | None:
        """The URL for a browser whose sessions have ended. None if none of them came from an issuer with an endpoint.

        Raises nothing, and takes `BOUND` at most. No look-up is made where no issuer is configured.

        Args:
            session_ids: the sessions.
            hints: the ID token of the issuer, for those sessions whose browser has it.
            return_to: the page to which the issuer shall send the browser. Passed on only if the issuer's configuration
                lists it, so that no client makes the issuer send a user elsewhere.
        """
        try:
            issuers = self._issuers.in_force
            if not issuers:
                return None
            # Those with a hint first: without one, the issuer has to ask the user.
            ids = sorted(session_ids, key=lambda each: (each not in hints, each))[:_MOST]
            async with asyncio.timeout(BOUND.total_seconds()):
                names = await asyncio.gather(*map(self._names, ids))
        except (TemporarilyUnavailable, TimeoutError) as e:
            _log.warning("upstream_logout_url_missing", cause=getattr(e, "cause", "took too long"))
            return None
        for session_id, name in zip(ids, names, strict=True):
            of = None if name is None else issuers.get(name)
            endpoint = None if of is None else self._discovery.end_session_endpoint(of)
            if of is not None and endpoint is not None:
                return _with_query(endpoint, of, hints.get(session_id), return_to)
        return None

    async def _read(self, ids: Sequence[UUID]) -> Sequence[str | None]:
        columns = select(UpstreamSession.session_id, UpstreamSession.issuer_name)
        query = columns.where(self._db.among(UpstreamSession.session_id))
        async with self._db.look() as connection:
            rows = await connection.execute(query, {"ids": list(set(ids))})
            names = {row.session_id: row.issuer_name for row in rows}
        return [names.get(each) for each in ids]


def _with_query(endpoint: str, of: Configured, hint: str | None, return_to: str | None) -> str:
    """The endpoint with the parameters of OpenID Connect RP-Initiated Logout 1.0 section 2."""
    query = {}
    if hint is not None:
        query["id_token_hint"] = hint
    elif of.issuer.preset == "oidc":
        query["client_id"] = of.issuer.client_id  # else the issuer could not check the page to return to
    if return_to is not None and return_to in of.issuer.post_logout_redirect_uris:
        query["post_logout_redirect_uri"] = return_to
    if not query:
        return endpoint
    return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(query, quote_via=quote)}"
