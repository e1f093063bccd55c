"""The cookies of Keyturn in one request, and the token among them that counts.

Values that Keyturn did not seal are passed over: a page under another path or host may have left them. So are tokens of
sessions that are over, if the browser sends another one beside them. Two live sessions are refused, because nobody can
tell which of them the user means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from operator import itemgetter
from typing import get_args
from uuid import UUID

from ..errors import CrossSite, InvalidGrant, InvalidRequest, InvalidToken, NoToken, TemporarilyUnavailable
from ..http.request import Request
from ..keyturn import Keyturn
from ..sessions.answers import Tokens
from ..tokens.cookies import MOST_VALUES, CookieMode, Cookies, Mode, Opened
from ..tokens.sealed_cookies import of_one_session

_SET_COOKIE = b"set-cookie"


@dataclass(slots=True)  # not frozen: to make one takes a tenth of the time, and each request makes some
class PresentedCookies:
    """The cookies of Keyturn in one request. Opens a cookie only when its token is asked for."""

    keyturn: Keyturn = field(repr=False)
    values: Mapping[str, Sequence[str]] = field(repr=False)
    """The values by name, as the browser sent them. A name without a value is absent."""

    @classmethod
    def of(cls, keyturn: Keyturn, request: Request, mode: CookieMode | None = None) -> PresentedCookies:
        """The cookies of one mode, or of both.

        Raises:
            InvalidRequest: there are more than `MOST_VALUES`.
        """
        cookies = keyturn.cookies
        values = cookies.ours(request.cookies(), mode)
        if sum(map(len, values.values())) > MOST_VALUES:
            raise InvalidRequest("too many cookies of ours", description="There are too many cookies of this service.")
        return cls(keyturn, values)

    @property
    def cookies(self) -> Cookies:
        """The names and attributes of this deployment's cookies."""
        return self.keyturn.cookies

    def __bool__(self) -> bool:
        return bool(self.values)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def opened(self, name: str) -> list[Opened]:
        """The cookies of this name that open.

        Raises:
            TemporarilyUnavailable: a cookie's key is unknown, and may be new.
        """
        found = (self.cookies.open(name, value) for value in self.values.get(name, ()))
        return [opened for opened in found if opened is not None]

    def modes(self) -> list[CookieMode]:
        """The modes of which the browser sent a refresh cookie."""
        return [mode for mode in get_args(CookieMode) if self.cookies.refresh_name(mode) in self]

    def require_own_site(self, request: Request) -> None:
        """As `Request.require_own_site`. If the cookies are all of one session, the log names it.

        Raises:
            CrossSite: a page of another site may have sent the cookies.
        """
        try:
            request.require_own_site()
        except CrossSite as refusal:
            sessions: set[UUID] = set()
            with suppress(TemporarilyUnavailable):  # of a key that is unknown here: then nobody is named
                sessions = {each.session_id for name in self.values for each in self.opened(name)}
            raise refusal.about(sessions.pop() if len(sessions) == 1 else None) from None

    async def access_token(self) -> str:
        """The access token that counts: the newest valid one. One alone may be over.

        Raises:
            NoToken: there is no access cookie.
            InvalidToken: no cookie holds one, two hold those of live sessions, or the refresh cookie is of another
                session.
            TemporarilyUnavailable: a key may be new, or neither Redis nor the database can say which session lives.
        """
        if self.cookies.access not in self:
            raise NoToken("no access token")
        counts = await self._newest_access(self.opened(self.cookies.access))
        if not self._together() and not self._goes_with(self.cookies.refresh, counts):
            raise InvalidToken("access and refresh cookie of two sessions", outcome="refused")
        return counts.token

    async def refresh_token(self, mode: CookieMode) -> Opened:
        """The cookie with the refresh token that counts: the newest of the one live session.

        An older token must not be presented beside a newer one: Keyturn would take it for a reuse.

        Raises:
            InvalidGrant: no cookie holds one, two hold those of live sessions, or the access cookie is of another
                session.
            TemporarilyUnavailable: as `access_token`.
        """
        counts = await self._newest_refresh(self.opened(self.cookies.refresh_name(mode)))
        if mode == "cookie" and not self._together():
            if not self._goes_with(self.cookies.access, counts):
                raise InvalidGrant("access and refresh cookie of two sessions", session_id=counts.session_id)
            valid, _ = await self._valid(self.opened(self.cookies.access))
            if len({each.session_id for _, each in valid}) > 1:
                raise InvalidGrant("access cookies of two live sessions", session_id=counts.session_id)
        return counts

    def _together(self) -> bool:
        """Whether the cookies of mode "cookie" were set together, as far as their beginnings tell. Opens nothing."""
        access, refresh = (self.values.get(name, ()) for name in (self.cookies.access, self.cookies.refresh))
        if len(access) == len(refresh) == 1:
            return of_one_session(access[0], refresh[0])
        return len(access) + len(refresh) <= 1

    def _goes_with(self, name: str, counts: Opened) -> bool:
        """Whether a cookie of this name has the session of the one that counts, or none of this name opens."""
        sessions = {each.session_id for each in self.opened(name)}
        return not sessions or counts.session_id in sessions

    async def _newest_access(self, opened: Sequence[Opened]) -> Opened:
        if len({each.token for each in opened}) == 1:
            return opened[0]
        valid, refusal = await self._valid(opened)
        if len({each.session_id for _, each in valid}) > 1:
            raise InvalidToken("access cookies of two live sessions", outcome="refused")
        if not valid:
            raise refusal
        return max(valid, key=itemgetter(0))[1]

    async def _valid(self, opened: Sequence[Opened]) -> tuple[list[tuple[int, Opened]], InvalidToken]:
        """The cookies with a valid access token, each after its ``iat``; and the refusal of the last other one."""
        valid: list[tuple[int, Opened]] = []
        refusal = InvalidToken("no access cookie of ours")
        for each in opened:
            try:
                valid.append(((await self.keyturn.reading.verify(each.token)).claims["iat"], each))
            except InvalidToken as e:
                refusal = e
        return valid, refusal

    async def _newest_refresh(self, opened: Sequence[Opened]) -> Opened:
        if len(opened) == 1:
            return opened[0]
        newest: dict[UUID, tuple[int, Opened]] = {}
        refusal = InvalidGrant("no refresh cookie of ours", outcome="junk")
        for each in opened:
            try:
                generation = self.keyturn.keys.verify_refresh_token(each.token).generation
            except InvalidGrant as e:
                refusal = e
            else:
                newest[each.session_id] = max(
                    newest.get(each.session_id, (-1, each)), (generation, each), key=itemgetter(0)
                )
        if not newest:
            raise refusal
        candidates = [each for _, each in newest.values()]
        if len(candidates) == 1:
            return candidates[0]
        living = await self.keyturn.reading.living(newest)  # one statement, however many cookies there are
        if len(living) > 1:
            raise InvalidGrant("refresh cookies of two live sessions")
        return next((each for each in candidates if each.session_id in living), candidates[0])

    # -- the answer

    def fields_to_set(self, mode: CookieMode, tokens: Tokens, *, remembered: bool) -> list[tuple[bytes, bytes]]:
        """The fields that set the tokens anew, and delete doubles of the cookies."""
        return [*fields_to_set(self.cookies, mode, tokens, remembered=remembered), *self._fields_to_clear_doubles()]

    def fields_to_clear(self) -> list[tuple[bytes, bytes]]:
        """The fields that delete the presented cookies. Access and refresh cookie go together, in this order.

        The ID token cookie goes after them. Its path may have kept it from this request, so it is deleted in any case
        where an issuer is configured.
        """
        names = set(self.values)
        if names & {self.cookies.access, self.cookies.refresh}:
            names |= {self.cookies.access, self.cookies.refresh}
        last = [self.cookies.id_token] if names and self.keyturn.end_session.has_issuers() else []
        clearing = ((_SET_COOKIE, self.cookies.clear(name)) for name in [*sorted(names), *last])
        return [*clearing, *self._fields_to_clear_doubles()]

    def _fields_to_clear_doubles(self) -> list[tuple[bytes, bytes]]:
        """The fields that delete cookies of the same name under another path or domain, if there are several."""
        return [
            (_SET_COOKIE, field)
            for name, values in self.values.items()
            if len(values) > 1
            for field in self.cookies.clear_others(name)
        ]


def fields_to_set(cookies: Cookies, mode: Mode, tokens: Tokens, *, remembered: bool) -> list[tuple[bytes, bytes]]:
    """The Set-Cookie fields that give the tokens to a browser: the access cookie first. None for mode "bearer"."""
    if mode == "bearer":
        return []
    session_id, now = tokens.session_id, tokens.now
    name, life = cookies.refresh_name(mode), tokens.refresh_expires_at - now
    refresh = (_SET_COOKIE, cookies.set(name, session_id, tokens.refresh_token, life, remembered=remembered))
    if mode == "split":
        return [refresh]
    # The access token of a late retry may have expired, and Max-Age has no sign (RFC 6265 section 4.1.1).
    life = max(tokens.access_expires_at - now, timedelta(0))
    access = cookies.set(cookies.access, session_id, tokens.access_token, life, remembered=remembered)
    return [(_SET_COOKIE, access), refresh]


def fields_to_clear_of(keyturn: Keyturn, request: Request, session_id: UUID) -> list[tuple[bytes, bytes]]:
    """The fields that delete the cookies of a session that ends, and leave those of another mode and session.

    Raises:
        InvalidRequest: there are more than `MOST_VALUES`.
        TemporarilyUnavailable: a cookie's key is unknown, and may be new.
    """
    fields: list[tuple[bytes, bytes]] = []
    for mode in get_args(CookieMode):
        presented = PresentedCookies.of(keyturn, request, mode)
        if any(each.session_id == session_id for name in presented.values for each in presented.opened(name)):
            fields += presented.fields_to_clear()
    return fields
