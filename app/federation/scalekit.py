"""Scalekit's API for sessions: get one, list those of a user, revoke one or all of a user.

Each call carries an access token for the API, which the client's id and secret are exchanged for (RFC 6749 section
4.4). The token is kept in memory until shortly before its end, and renewed once if Scalekit refuses it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from time import monotonic
from typing import Any, Literal
from urllib.parse import quote, urlencode

from ..errors import InvalidRequest, NotFound, TemporarilyUnavailable
from .fetching import Fetching
from .flights import Flights
from .issuer import Configured
from .remembered import Remembered
from .scalekit_session import MOST_CHARACTERS, ScalekitSession, SessionPage, page_in, session_in

Status = Literal["active", "expired", "revoked", "logout"]
"""The words by which a list of sessions is filtered."""

Outcome = Literal["revoked", "gone"]
"""The outcome of a revocation: revoked now, or over before."""

_MOST = 1024
"""Of so many issuers at most, something is kept here: an issuer that was removed is forgotten in the end."""

_MARGIN = timedelta(seconds=60)
"""How long before its end a token is renewed, so that it does not expire on its way. A tenth of a short life."""

_NO_EXPIRY = timedelta(minutes=5)
"""The life of a token whose answer names none (RFC 6749 section 5.1 recommends the member)."""

_LONGEST_LIFE = timedelta(days=1)

_GOOD, _CLIENT_ERRORS = range(200, 300), range(400, 500)
_BAD_REQUEST, _UNAUTHORIZED, _NOT_FOUND = 400, 401, 404
_NO_VERDICT = {_UNAUTHORIZED, 403, 408, 429}
"""Client errors that say nothing about a session: a missing permission, a time limit, a rate limit."""


@dataclass(frozen=True, slots=True)
class _ApiToken:
    """A token for the API, and until when it counts (monotonic clock)."""

    text: str = field(repr=False)
    client: tuple[str, str, str] = field(repr=False)
    """URL, client id and secret that it was got with. A change of one makes it another client's."""
    until: float


class Scalekit:
    """Calls the API of issuers that are Scalekit environments, and whose client secret is known (`has_api`)."""

    def __init__(self, fetching: Fetching) -> None:
        self._fetching = fetching
        self._tokens = Remembered[str, _ApiToken](_MOST)  # by the issuer's name
        self._renewals = Flights[tuple[str, str, str, str], _ApiToken]()

    async def get_session(self, of: Configured, session_id: str) -> ScalekitSession:
        """A session, live or over.

        Raises:
            NotFound: Scalekit has no such session.
            InvalidRequest: the issuer has no API, or Scalekit refuses the values.
            TemporarilyUnavailable: Scalekit is away, or does not let this client call.
        """
        url = _url(of, "sessions", _named(session_id))
        body = await self._called(of, lambda token: self._fetching.get_json(url, of=of, bearer=token))
        # The proto names no envelope, and samples show one.
        found = session_in(body.get("session", body) if isinstance(body, dict) else body)
        if found is None:
            raise _not_understood(of)
        return found

    async def list_sessions(
        self,
        of: Configured,
        user_id: str,
        *,
        page_size: int | None = None,
        page_token: str | None = None,
        statuses: Collection[Status] = (),
        created_after: datetime | None = None,
        created_before: datetime | None = None,
    ) -> SessionPage:
        """A page of a user's sessions. The filters and the size of a page are Scalekit's.

        Raises:
            NotFound: Scalekit has no such user.
            InvalidRequest, TemporarilyUnavailable: as `get_session`.
        """
        moments = (("filter.start_time", created_after), ("filter.end_time", created_before))
        query = [
            *((("page_size", str(page_size)),) if page_size is not None else ()),
            *((("page_token", page_token),) if page_token is not None else ()),
            *(("filter.status", status) for status in statuses),
            *((name, at.isoformat().replace("+00:00", "Z")) for name, at in moments if at is not None),
        ]
        url = _url(of, "users", _named(user_id), "sessions") + (f"?{urlencode(query)}" if query else "")
        page = page_in(await self._called(of, lambda token: self._fetching.get_json(url, of=of, bearer=token)))
        if page is None:
            raise _not_understood(of)
        return page

    async def revoke_session(self, of: Configured, session_id: str) -> Outcome:
        """Revokes a session. A repeated call is safe: a session that is over, or unknown, is "gone".

        No document says how Scalekit answers about a session that is over. So a refusal is followed by a look.

        Raises:
            InvalidRequest: Scalekit refuses, although the session is live.
            TemporarilyUnavailable: as `get_session`.
        """
        try:
            url = _url(of, "sessions", _named(session_id), "revoke")
            await self._called(of, lambda token: self._fetching.post_json(url, of=of, bearer=token))
        except NotFound:
            return "gone"
        except InvalidRequest:
            try:
                if (await self.get_session(of, session_id)).over:
                    return "gone"
            except NotFound:
                return "gone"
            raise
        return "revoked"

    async def revoke_sessions_of(self, of: Configured, user_id: str) -> int | None:
        """Revokes all live sessions of a user. Returns how many, if Scalekit says it.

        Raises:
            NotFound, InvalidRequest, TemporarilyUnavailable: as `list_sessions`.
        """
        url = _url(of, "users", _named(user_id), "sessions", "revoke")
        body = await self._called(of, lambda token: self._fetching.post_json(url, of=of, bearer=token))
        total = body.get("total_revoked") if isinstance(body, dict) else None
        return total if type(total) is int else None

    # -- the token

    async def _called(self, of: Configured, send: Callable[[str], Awaitable[tuple[int, Any]]]) -> Any:
        """The body of a good answer. A token that Scalekit refuses is renewed once.

        Raises:
            NotFound, InvalidRequest, TemporarilyUnavailable: as `get_session`.
        """
        if not of.has_api:
            raise InvalidRequest("no API", description="The issuer is not Scalekit, or its client_secret is missing.")
        token = await self._token(of)
        status, body = await send(token.text)
        if status == _UNAUTHORIZED:
            if self._tokens.get(of.name) is token:  # else another caller has renewed it meanwhile
                self._tokens.forget(of.name)
            token = await self._token(of)
            status, body = await send(token.text)
        if status in _GOOD:
            return body
        if status == _NOT_FOUND and isinstance(body, dict):  # a proxy's page says nothing about a session
            raise NotFound(f"issuer {of.name}: it has no such session or user")
        cause = f"issuer {of.name}: its API answered {status}"
        if status in _CLIENT_ERRORS and status not in {_NOT_FOUND, *_NO_VERDICT}:
            raise InvalidRequest(cause, description="The issuer refuses the request.")
        raise TemporarilyUnavailable(cause)

    async def _token(self, of: Configured) -> _ApiToken:
        assert of.secrets.client_secret is not None
        client = of.issuer.issuer, of.issuer.client_id, of.secrets.client_secret.get_secret_value()
        held = self._tokens.get(of.name)
        if held is not None and held.client == client and monotonic() < held.until:
            return held
        return await self._renewals((of.name, *client), lambda: self._renewed(of, client))

    async def _renewed(self, of: Configured, client: tuple[str, str, str]) -> _ApiToken:
        """Exchanges the client's id and secret for a token. They travel in the body, as Scalekit asks."""
        began = monotonic()
        form = {"grant_type": "client_credentials", "client_id": client[1], "client_secret": client[2]}
        status, body = await self._fetching.post_form(f"{of.issuer.base}/oauth/token", form, of=of)
        if status in {_BAD_REQUEST, _UNAUTHORIZED}:  # RFC 6749 section 5.2
            raise TemporarilyUnavailable(f"issuer {of.name}: it refuses the client's secret ({status})")
        if status not in _GOOD:
            raise TemporarilyUnavailable(f"issuer {of.name}: its token endpoint answered {status}")
        text = body.get("access_token") if isinstance(body, dict) else None
        if not isinstance(text, str) or not text.isascii() or not text.isprintable() or not text:
            raise _not_understood(of)
        seconds = body.get("expires_in")
        named = type(seconds) in {int, float} and seconds > 0
        life = float(min(seconds, _LONGEST_LIFE.total_seconds()) if named else _NO_EXPIRY.total_seconds())
        token = _ApiToken(text, client, began + life - min(_MARGIN.total_seconds(), life / 10))
        self._tokens[of.name] = token
        return token


def _url(of: Configured, *segments: str) -> str:
    return "/".join((of.issuer.base, "api/v1", *segments))


def _named(value: str) -> str:
    """An id as a segment of a path (RFC 3986 section 3.3). Ids are opaque: Scalekit alone knows their form.

    Raises:
        NotFound: nothing can have the id. "." and ".." would name another path.
    """
    if not 0 < len(value) <= MOST_CHARACTERS or value in {".", ".."}:
        raise NotFound("not the form of an id")
    try:
        return quote(value, safe="")
    except UnicodeEncodeError:
        raise NotFound("not the form of an id") from None


def _not_understood(of: Configured) -> TemporarilyUnavailable:
    return TemporarilyUnavailable(f"issuer {of.name}: its API's answer is not understood")
