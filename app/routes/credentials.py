"""The credentials that a request presents: a bearer token, a refresh token in the body, or cookies.

A bearer token or a token in the body goes before cookies, because no other site's page can send either. All functions
about cookies pass over values that Keyturn did not seal. A page under another path or host may have left them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from ..errors import InvalidGrant, InvalidRequest, InvalidToken, NotFound, NoToken, Refusal
from ..http.answers import Answer, Fields, render
from ..http.request import Request
from ..keyturn import Keyturn
from ..sessions.answers import Tokens
from ..tokens.cookies import MOST_VALUES, Cookies, Mode, Opened

_SET_COOKIE = b"set-cookie"

SET_COOKIES = {
    "Set-Cookie": {
        "schema": {"type": "string"},
        "description": "A token that travels in a cookie: one field for each.",
    }
}
"""The header fields of an answer that may set cookies, for the document."""


@dataclass(frozen=True, slots=True)
class Jar:
    """The cookies of Keyturn in one request."""

    cookies: Cookies
    given: Sequence[tuple[str, str]]
    """Names and values, as the browser sent them."""
    opened: Sequence[Opened]
    """Those that Keyturn sealed."""

    @classmethod
    def of(cls, keyturn: Keyturn, request: Request, mode: Mode | None = None) -> Jar:
        """The cookies of a mode, or of both.

        Raises:
            InvalidRequest: there are more than `MOST_VALUES`.
            TemporarilyUnavailable: a cookie's key is unknown, and may be new.
        """
        cookies = keyturn.cookies
        given = cookies.among(request.cookies(), mode)
        if len(given) > MOST_VALUES:
            raise InvalidRequest("too many cookies of ours", description="There are too many cookies of this service.")
        return cls(cookies, given, cookies.opened(given))

    def __bool__(self) -> bool:
        return bool(self.given)

    def named(self, *names: str) -> list[Opened]:
        """The opened cookies of these names."""
        return [each for each in self.opened if each.name in names]

    def has(self, name: str) -> bool:
        """Whether the browser sent a cookie of this name, opened or not."""
        return any(each == name for each, _ in self.given)

    def modes(self) -> list[Mode]:
        """The modes of which the browser sent a refresh cookie."""
        found: list[Mode] = []
        if self.has(self.cookies.refresh):
            found.append("cookie")
        if self.has(self.cookies.split):
            found.append("split")
        return found

    async def access_token(self, keyturn: Keyturn) -> str:
        """The access token that counts: see `_newest_access_token`.

        Raises:
            InvalidToken: there is none, or the refresh cookie belongs to another session.
            TemporarilyUnavailable: neither Redis nor the database can say whether a session is live.
        """
        access, refresh = self.named(self.cookies.access), self.named(self.cookies.refresh)
        token = await _newest_access_token(keyturn, access)
        sessions = {each.session_id for each in access if each.token == token}
        if refresh and sessions.isdisjoint(each.session_id for each in refresh):
            raise InvalidToken("access and refresh cookie of two sessions")
        return token

    async def refresh_token(self, keyturn: Keyturn, mode: Mode) -> Opened:
        """The refresh cookie that counts: see `_newest_refresh_token`.

        Raises:
            InvalidGrant: there is none, or the access cookie belongs to another session.
            TemporarilyUnavailable: as `access_token`.
        """
        if mode == "split":
            return await _newest_refresh_token(keyturn, self.named(self.cookies.split))
        refresh = await _newest_refresh_token(keyturn, self.named(self.cookies.refresh))
        access = self.named(self.cookies.access)
        if access and all(each.session_id != refresh.session_id for each in access):
            raise InvalidGrant("access and refresh cookie of two sessions", session_id=refresh.session_id)
        return refresh

    def cleared(self) -> list[tuple[bytes, bytes]]:
        """The fields that delete the cookies which were presented. The access cookie goes with its refresh cookie."""
        names = {name for name, _ in self.given}
        if names & {self.cookies.access, self.cookies.refresh}:
            names |= {self.cookies.access, self.cookies.refresh}
        fields = [(_SET_COOKIE, self.cookies.clear(name)) for name in sorted(names)]
        return [*fields, *self.doubled()]

    def doubled(self) -> list[tuple[bytes, bytes]]:
        """The fields that delete cookies of the same name under another path or domain, if there are several."""
        names = [name for name, _ in self.given]
        return [
            (_SET_COOKIE, field)
            for name in sorted(set(names))
            if names.count(name) > 1
            for field in self.cookies.clear_others(name)
        ]


def given_by(cookies: Cookies, mode: Mode, tokens: Tokens, *, remembered: bool) -> list[tuple[bytes, bytes]]:
    """The Set-Cookie fields that give a session's tokens to a browser: the access cookie first."""
    if mode == "bearer":
        return []
    refresh = cookies.set(
        cookies.refresh if mode == "cookie" else cookies.split,
        tokens.session_id,
        tokens.refresh_token,
        tokens.refresh_expires_at - tokens.now,
        remembered=remembered,
    )
    if mode == "split":
        return [(_SET_COOKIE, refresh)]
    access = cookies.set(
        cookies.access,
        tokens.session_id,
        tokens.access_token,
        tokens.access_expires_at - tokens.now,
        remembered=remembered,
    )
    return [(_SET_COOKIE, access), (_SET_COOKIE, refresh)]


def refused(request: Request, refusal: Refusal, fields: Fields) -> Answer:
    """The answer of a refusal with further header fields: a final refusal also clears cookies."""
    request.refusal = refusal
    status, own, body = render(refusal)
    return status, [*own, *fields], body


async def access_token(keyturn: Keyturn, request: Request, *, changes: bool = False) -> str:
    """The access token of a request: the bearer token, or else the one in the access cookie.

    Args:
        keyturn: the parts of the process.
        request: the request.
        changes: whether the request changes something. Then its cookies count only on an allowed origin.

    Raises:
        NoToken: there is none.
        InvalidToken: no cookie holds a valid one, or two cookies hold those of two live sessions.
        InvalidRequest: there are several Authorization fields, or too many cookies.
        CrossSite: the cookies may have come from another site's page.
        TemporarilyUnavailable: a cookie's key is unknown, or whether a session is live.
    """
    token = request.bearer()
    if token is not None:
        return token
    jar = Jar.of(keyturn, request, "cookie")
    if not jar.has(keyturn.cookies.access):
        raise NoToken("no access token")
    if changes:
        request.require_own_site()
    return await jar.access_token(keyturn)


async def _newest_access_token(keyturn: Keyturn, opened: Sequence[Opened]) -> str:
    """The access token in these cookies, which may be over if there is one alone. Of several, the newest valid one.

    Raises:
        InvalidToken: no cookie holds a valid one, or two cookies hold those of two live sessions.
        TemporarilyUnavailable: neither Redis nor the database can say whether a session is live.
    """
    tokens = dict.fromkeys(each.token for each in opened)
    if len(tokens) == 1:
        return next(iter(tokens))
    valid: list[tuple[int, UUID, str]] = []
    refusal = InvalidToken("no access cookie of ours")
    for token in tokens:
        try:
            verified = await keyturn.reading.verify(token)
        except InvalidToken as e:
            refusal = e
        else:
            valid.append((verified.claims["iat"], verified.session_id, token))
    if len({session_id for _, session_id, _ in valid}) > 1:
        raise InvalidToken("access cookies of two live sessions")
    if not valid:
        raise refusal
    return max(valid)[2]


async def _newest_refresh_token(keyturn: Keyturn, opened: Sequence[Opened]) -> Opened:
    """The cookie with the refresh token that counts: the newest of the one live session.

    An older token must not be presented beside a newer one: Keyturn would take it for a reuse.

    Raises:
        InvalidGrant: no cookie holds a refresh token of Keyturn's, or two cookies hold those of two live sessions.
        TemporarilyUnavailable: the database is away, or a token's key is unknown.
    """
    newest: dict[UUID, tuple[int, Opened]] = {}
    refusal = InvalidGrant("no refresh cookie of ours")
    for each in opened:
        try:
            token = keyturn.keys.verify_refresh_token(each.token)
        except InvalidGrant as e:
            refusal = e
            continue
        before = newest.get(token.session_id)
        if before is None or before[0] < token.generation:
            newest[token.session_id] = token.generation, each
    if not newest:
        raise refusal
    candidates = [each for _, each in newest.values()]
    if len(candidates) > 1:
        live = [each for each in candidates if await _lives(keyturn, each.session_id)]
        if len(live) > 1:
            raise InvalidGrant("refresh cookies of two live sessions")
        candidates = live or candidates
    return candidates[0]


async def _lives(keyturn: Keyturn, session_id: UUID) -> bool:
    try:
        return (await keyturn.reading.find(session_id)).over() is None
    except NotFound:
        return False
