"""Cookies for browsers (RFC 6265): their names, attributes and values, after RFC 10017 section 6.1.

Both tokens of a session may travel in cookies that no script can read. Each value is sealed: see `SealedCookies`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal
from uuid import UUID

from ..errors import ConfigurationError
from ..settings import Settings
from .access_tokens import longest_token
from .sealed_cookies import ADDED, SealedCookies

CookieMode = Literal["cookie", "split"]
Mode = Literal["bearer", CookieMode]
"""Where the tokens of a session travel. "bearer": in bodies. "cookie": in cookies. "split": only the refresh token in a
cookie."""

MOST_VALUES = 16
"""The most cookies of Keyturn's names that one request may carry. A browser sends two or three."""

_FLAGS = 1  # byte, before the token
_LARGEST = 4096  # bytes of name, value and attributes: RFC 6265 section 6.1
_LONGEST_AGE = timedelta(days=400)  # browsers keep no cookie longer
_REMEMBERED = 1  # the bit of the flags that says whether the browser keeps the cookie when it is closed


def margin(life: timedelta) -> timedelta:
    """How much longer than a token of this life its cookie lives, and how long before its end it is refreshed.

    Clocks differ, and an answer takes time to arrive: 60 seconds, or a tenth of a life of less than ten minutes.
    """
    return min(timedelta(seconds=60), life / 10)


@dataclass(slots=True)  # not frozen: to make one takes a tenth of the time, and each request makes some
class Opened:
    """A cookie that Keyturn sealed. Its token may be over."""

    session_id: UUID
    token: str = field(repr=False)
    remembered: bool


@dataclass(frozen=True, slots=True)
class _Form:
    """A cookie's name and attributes."""

    name: str
    path: str
    attributes: str
    """All attributes but Max-Age, with the semicolon before each."""


class Cookies:
    """Makes the cookies of one deployment, and opens them. No I/O."""

    def __init__(self, settings: Settings, sealed: SealedCookies) -> None:
        """Names and attributes follow from the settings.

        Raises:
            ConfigurationError: the cookie of the longest token would be larger than browsers take.
        """
        self._sealed = sealed
        self.enabled = settings.cookies
        """Whether cookies are read and set at all."""
        secure, domain = settings.iss.startswith("https://"), settings.cookie_domain
        self._domain = domain
        same_site = settings.cookie_same_site.capitalize()
        self._common = "; HttpOnly" + ("; Secure" if secure else "") + f"; SameSite={same_site}"
        self._common += "; Partitioned" if settings.cookie_partitioned else ""
        self._split_path = f"{settings.root_path}/auth"
        prefix = "" if not secure else "__Secure-" if domain else "__Host-Http-"
        access, refresh = f"{prefix}keyturn-access", f"{prefix}keyturn-refresh"
        split = "__Secure-Http-keyturn-refresh" if secure else "keyturn-split-refresh"
        id_token = "__Secure-Http-keyturn-id" if secure else "keyturn-id"
        self.access, self.refresh, self.split, self.id_token = access, refresh, split, id_token
        """The names: access cookie, refresh cookie of mode "cookie", refresh cookie of mode "split", ID token cookie.

        The last one holds an issuer's ID token for a logout there. It proves nothing here, so `ours` passes over it.
        Its path is that of a logout, so that no request to an app carries what it says about its user.
        """
        self._device = self._form(f"{prefix}keyturn-device", "/", domain)
        known = "__Secure-Http-keyturn-known" if secure else "keyturn-known"
        self._known = self._form(known, self._split_path, domain)
        self._forms = {
            name: self._form(name, path, domain)
            for name, path in ((access, "/"), (refresh, "/"), (split, self._split_path), (id_token, self._split_path))
        }
        self._names: dict[CookieMode | None, tuple[str, ...]] = {
            None: (access, refresh, split),
            "cookie": (access, refresh),
            "split": (split,),
        }
        if self.enabled:
            self._check_size(settings)

    def _form(self, name: str, path: str, domain: str | None) -> _Form:
        return _Form(name, path, f"; Path={path}" + (f"; Domain={domain}" if domain else "") + self._common)

    def _check_size(self, settings: Settings) -> None:
        value = -(-(ADDED + _FLAGS + longest_token(settings)) * 4 // 3)  # characters of base64url
        form = self._forms[self.access]
        if len(f"{form.name}=; Max-Age=99999999{form.attributes}") + value > _LARGEST:
            raise ConfigurationError(
                "KEYTURN_ISSUER and KEYTURN_AUDIENCE are too long: the access cookie could exceed 4096 bytes "
                "(KEYTURN_COOKIES=false: no cookies)"
            )

    @property
    def device(self) -> str:
        """The name of the device cookie. This cookie is no token, so `ours` and every logout pass over it."""
        return self._device.name

    @property
    def known(self) -> str:
        """The name of the cookie with the proofs of `KnownDevices`. It is no token, as the device cookie is none."""
        return self._known.name

    def refresh_name(self, mode: CookieMode) -> str:
        """The name of the cookie that holds the refresh token in this mode."""
        return self.split if mode == "split" else self.refresh

    # -- reading

    def ours(self, cookies: Mapping[str, list[str]], mode: CookieMode | None = None) -> dict[str, list[str]]:
        """Of all cookies of a request, Keyturn's own of one mode, or of both modes. Empty if cookies are off."""
        if not cookies or not self.enabled:
            return {}
        return {name: cookies[name] for name in self._names[mode] if name in cookies}

    def open(self, name: str, value: str) -> Opened | None:
        """The content of a cookie. None if Keyturn did not seal it, if a bit was changed, or if its key is retired.

        Raises:
            TemporarilyUnavailable: its key is unknown, and the key set may be out of date.
        """
        opened = self._sealed.open(name, value)
        if opened is None or not opened[1]:
            return None
        session_id, plain = opened
        return Opened(session_id, plain[_FLAGS:].decode("latin-1"), bool(plain[0] & _REMEMBERED))

    # -- setting

    def set(self, name: str, session_id: UUID, token: str, life: timedelta, *, remembered: bool) -> bytes:
        """The Set-Cookie field (RFC 6265 section 4.1) that gives a token to a browser.

        Args:
            name: one of the four names.
            session_id: the session of the token.
            token: the text of the token.
            life: how long the token lives from now on.
            remembered: whether the cookie survives the end of the browser session.
        """
        form = self._forms[name]
        value = self._sealed.seal(name, session_id, bytes([_REMEMBERED * remembered]) + token.encode())
        age = f"; Max-Age={min(life + margin(life), _LONGEST_AGE) // timedelta(seconds=1)}" if remembered else ""
        return f"{name}={value}{age}{form.attributes}".encode()

    def set_id_token(self, session_id: UUID, id_token: str, life: timedelta, *, remembered: bool) -> bytes | None:
        """As `set`, for the ID token of an issuer. None if the cookie would be larger than browsers take."""
        cookie = self.set(self.id_token, session_id, id_token, life, remembered=remembered)
        return cookie if len(cookie) <= _LARGEST else None

    def set_known(self, value: str, *, remembered: bool) -> bytes:
        """The Set-Cookie field that gives a browser its proofs of known devices. Keyturn signs them, and seals nothing.

        A thief of the value can try a few passwords more than others, and can't sign in with it.
        """
        return self._kept(self._known, value, remembered=remembered)

    def set_device(self, value: str, *, remembered: bool) -> bytes:
        """The Set-Cookie field that gives a browser the id of its device. The id is no secret, and stands in the open.

        A thief of the value gains nothing. A sign-in with it needs the password all the same, and then ends at most
        other sessions of the same user, which it could end anyway.
        """
        return self._kept(self._device, value, remembered=remembered)

    @staticmethod
    def _kept(form: _Form, value: str, *, remembered: bool) -> bytes:
        age = f"; Max-Age={_LONGEST_AGE // timedelta(seconds=1)}" if remembered else ""
        return f"{form.name}={value}{age}{form.attributes}".encode()

    def clear(self, name: str) -> bytes:
        """The Set-Cookie field that deletes a cookie. It names the same path and domain as the one that set it."""
        return self._cleared(self._forms[name])

    def clear_others(self, name: str) -> list[bytes]:
        """The fields that delete cookies of the same name under another path or domain, as other settings set them.

        A browser takes no such cookie if the name begins with ``__Host-``.
        """
        if name.startswith("__Host-"):
            return []
        this = self._forms[name]
        variants = (
            self._form(name, path, domain)
            for path in ("/", self._split_path)
            for domain in dict.fromkeys((None, self._domain))
        )
        return [self._cleared(form) for form in variants if form != this]

    @staticmethod
    def _cleared(form: _Form) -> bytes:
        return f"{form.name}=; Max-Age=0{form.attributes}".encode()
