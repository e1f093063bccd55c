"""The device of a sign-in: by the client's own id, or by the device cookie of a browser."""

from __future__ import annotations

import re
from dataclasses import dataclass
from secrets import token_urlsafe

from ..http.answers import Fields
from ..http.request import Request
from ..tokens.cookies import CookieMode, Cookies

_BYTES = 16
_FORM = re.compile(r"[A-Za-z0-9_-]{22}")


@dataclass(frozen=True, slots=True)
class Device:
    """The device from which a request signs in."""

    cookies: Cookies
    id: str | None
    """The id for the session's row. None: the client tells nothing about its device."""
    is_new: bool = False
    """Whether Keyturn made the id, and the browser has to learn it."""

    @classmethod
    def of(cls, cookies: Cookies, request: Request, mode: CookieMode | None, own: str | None) -> Device:
        """The device of a request.

        Args:
            cookies: the names and attributes of the deployment's cookies.
            request: the request.
            mode: the mode of the sign-in, or None for "bearer", in which no cookie counts.
            own: the client's own id, which goes before the cookie.
        """
        if own is not None or mode is None:
            return cls(cookies, own)
        # Another form is no id of Keyturn's. A neighbour's page may have written it, or an older release.
        given = (value for value in request.cookies().get(cookies.device, ()) if _FORM.fullmatch(value))
        known = next(given, None)
        return cls(cookies, known or token_urlsafe(_BYTES), is_new=known is None)

    def fields_to_set(self, *, remembered: bool) -> Fields:
        """The Set-Cookie field that gives the browser a new id. None where the client has an id already."""
        if not self.is_new or self.id is None:
            return ()
        return ((b"set-cookie", self.cookies.set_device(self.id, remembered=remembered)),)
