"""The device of a sign-in: by the client's own id, or by the device cookie of a browser.

A browser may hold the cookies of both modes side by side, for two apps of one host. So each mode counts as a device of
its own: a sign-in ends the session whose cookies it replaces, and not that of the other app.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
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
    new_cookie: str | None = field(default=None, repr=False)
    """The value of the device cookie, if the browser has to learn it."""

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
        new = token_urlsafe(_BYTES) if known is None else None
        return cls(cookies, f"{known or new}.{mode}", new)

    def fields_to_set(self, *, remembered: bool) -> Fields:
        """The Set-Cookie field that gives the browser a new id. None where the client has an id already."""
        if self.new_cookie is None:
            return ()
        return ((b"set-cookie", self.cookies.set_device(self.new_cookie, remembered=remembered)),)
