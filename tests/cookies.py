"""Cookies for the tests: the store of a browser, and values that are sealed, opened and bent outside the product.

The store keeps the rules of RFC 6265 section 5 and of RFC 6265bis section 5.7 (prefixes of names). The tests move its
clock. A field that a browser would not store is an error here, because Keyturn must send none.
"""

from __future__ import annotations

import http.cookiejar
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

import httpx2
import jwt

from app.keyturn import Keyturn
from app.tokens.access_tokens import MEDIA_TYPE
from app.tokens.sealed_cookies import SealedCookies
from tests.conftest import PASSWORD

SAME_SITE = [("Sec-Fetch-Site", "same-origin")]
"""The header field by which a browser says that the request comes from a page of the same origin."""

LARGEST = 4096
"""Bytes of name, value and attributes together that a browser has to take (RFC 6265 section 6.1)."""


class Names(NamedTuple):
    """The names of the three cookies with a token, and of the two cookies about the device."""

    access: str
    refresh: str
    split: str

    @property
    def device(self) -> str:
        return self.access.replace("-access", "-device")

    @property
    def known(self) -> str:
        return self.split.replace("-split", "").replace("-refresh", "-known")


HTTPS = Names("__Host-Http-keyturn-access", "__Host-Http-keyturn-refresh", "__Secure-Http-keyturn-refresh")
DOMAIN = Names("__Secure-keyturn-access", "__Secure-keyturn-refresh", "__Secure-Http-keyturn-refresh")
LOOPBACK = Names("keyturn-access", "keyturn-refresh", "keyturn-split-refresh")


# -- Set-Cookie fields, and the store of a browser


@dataclass(frozen=True)
class SetCookie:
    """A Set-Cookie field (RFC 6265 section 4.1)."""

    name: str
    value: str = field(repr=False)
    attributes: dict[str, str]
    """Names in lower case. A flag has an empty value."""

    @classmethod
    def of(cls, line: str) -> SetCookie:
        pair, *rest = line.split("; ")
        name, equals, value = pair.partition("=")
        assert name, "a cookie without a name"
        assert equals, "a cookie without an equals sign"
        assert len(line) <= LARGEST, f"{len(line)} bytes"
        attributes: dict[str, str] = {}
        for each in rest:
            key, _, text = each.partition("=")
            assert key.lower() not in attributes, f"{key} stands twice"
            attributes[key.lower()] = text
        return cls(name, value, attributes)

    @property
    def clears(self) -> bool:
        return self.attributes.get("max-age") == "0"

    @property
    def form(self) -> tuple[str, dict[str, str]]:
        """Name and attributes without the age: by these, a browser finds the cookie that a field replaces or deletes."""
        return self.name, {k: v for k, v in self.attributes.items() if k not in {"max-age", "expires"}}


def set_cookies(answer: httpx2.Response) -> list[SetCookie]:
    """The Set-Cookie fields of an answer, in their order."""
    return [SetCookie.of(line) for line in answer.headers.get_list("set-cookie")]


def token_cookies(answer: httpx2.Response) -> list[SetCookie]:
    """As `set_cookies`, without the two cookies about the device."""
    return [each for each in set_cookies(answer) if not is_device(each.name)]


def is_device(name: str) -> bool:
    """Whether a cookie is one of the two about the device, which hold no token and outlive every logout."""
    return name.endswith(("keyturn-device", "keyturn-known"))


@dataclass
class _Kept:
    value: str
    attributes: dict[str, str]
    expires: float | None


class Browser:
    """The cookies that a browser keeps for one host. `now` is its clock, in seconds."""

    def __init__(self, host: str = "auth.example.com", *, secure: bool = True) -> None:
        self.host = host
        self.secure = secure
        self.now = 0.0
        self._kept: dict[tuple[str, str, str], _Kept] = {}

    def take(self, given: Iterable[SetCookie]) -> None:
        """Takes the fields of an answer in their order (RFC 6265bis section 5.7)."""
        for cookie in given:
            self._check(cookie)
            attributes = cookie.attributes
            key = cookie.name, attributes.get("domain", ""), attributes["path"]
            age = attributes.get("max-age")
            if age is not None and int(age) <= 0:
                self._kept.pop(key, None)
            else:
                self._kept[key] = _Kept(cookie.value, attributes, None if age is None else self.now + int(age))

    def _check(self, cookie: SetCookie) -> None:
        attributes = cookie.attributes
        assert "httponly" in attributes, cookie
        assert self.secure == ("secure" in attributes), cookie
        assert attributes["path"].startswith("/"), cookie
        assert attributes["samesite"] in {"Strict", "Lax"}, cookie
        name = cookie.name.lower()
        if name.startswith("__host-"):
            assert attributes["path"] == "/", cookie
            assert "domain" not in attributes, cookie
        if name.startswith(("__secure-", "__host-")) or "partitioned" in attributes:
            assert "secure" in attributes, cookie
        domain = attributes.get("domain", self.host)
        assert domain == self.host or self.host.endswith("." + domain), cookie
        assert attributes.keys() <= {"path", "domain", "max-age", "httponly", "secure", "samesite", "partitioned"}

    def sent_to(self, path: str) -> str:
        """The value of the Cookie field in a request to this path: longer paths first (RFC 6265 section 5.4)."""
        pairs = [
            (len(at), name, kept.value)
            for (name, _, at), kept in self._kept.items()
            if (kept.expires is None or kept.expires > self.now)
            and (path == at or path.startswith(at if at.endswith("/") else at + "/"))
        ]
        return "; ".join(f"{name}={value}" for _, name, value in sorted(pairs, key=lambda each: -each[0]))

    def drop(self, name: str) -> None:
        """Forgets a cookie, as a browser does when its age is over."""
        self._kept = {key: kept for key, kept in self._kept.items() if key[0] != name}

    def restart(self) -> None:
        """Forgets the cookies of the browser session."""
        self._kept = {key: kept for key, kept in self._kept.items() if kept.expires is not None}

    def names(self) -> set[str]:
        """The names of the cookies with tokens."""
        kept = self._kept.items()
        return {n for (n, _, _), k in kept if not is_device(n) and (k.expires is None or k.expires > self.now)}

    def value(self, name: str) -> str | None:
        return next((kept.value for (each, _, _), kept in self._kept.items() if each == name), None)


# -- requests


def client_of(app: Any, base_url: str = "https://auth.example.com") -> httpx2.AsyncClient:
    """A client of an application in this process, which keeps no cookies by itself."""
    nowhere = http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=base_url, cookies=nowhere)


async def ask(
    client: httpx2.AsyncClient,
    method: str,
    path: str,
    cookies: str | bytes | Sequence[str | bytes] = (),
    *,
    body: Any = None,
    headers: Sequence[tuple[str, str]] = (),
) -> httpx2.Response:
    """Sends a request with these Cookie fields: one if a text is given, none if it is empty."""
    several = [cookies] if isinstance(cookies, str | bytes) else list(cookies)
    fields: list[tuple[str, Any]] = [("Cookie", each) for each in several if each]
    return await client.request(method, path, headers=[*fields, *headers], json=body)


async def login(
    client: httpx2.AsyncClient,
    email: str,
    mode: str = "cookie",
    *,
    headers: Sequence[tuple[str, str]] = SAME_SITE,
    **more: Any,
) -> httpx2.Response:
    """A sign-in with the password of all tests."""
    body = {"email": email, "password": PASSWORD, "mode": mode, **more}
    answer = await ask(client, "POST", "/auth/login", body=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


# -- values


class Parts(NamedTuple):
    """The parts of a sealed value."""

    key: bytes
    session: bytes
    nonce: bytes
    sealed: bytes
    tag: bytes

    @classmethod
    def of(cls, value: str) -> Parts:
        raw = raw_of(value)
        return cls(raw[:8], raw[8:24], raw[24:36], raw[36:-16], raw[-16:])

    @property
    def text(self) -> str:
        return text_of(b"".join(self))


BOUNDARIES = (8, 24, 36)
"""Bytes of a value before session, nonce and ciphertext. The tag has the last 16 bytes."""


def raw_of(value: str) -> bytes:
    return urlsafe_b64decode(value + "=" * (-len(value) % 4))


def text_of(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def flipped(part: bytes, at: int = 0) -> bytes:
    """The bytes with one bit changed."""
    return part[:at] + bytes([part[at] ^ 1]) + part[at + 1 :] if at >= 0 else part[:at] + flipped(part[at:])


class Seen(NamedTuple):
    """The contents of a value."""

    session_id: UUID
    remembered: bool
    token: str


class Sealer:
    """Seals and opens values with the keys of an opened Keyturn."""

    def __init__(self, keyturn: Keyturn) -> None:
        self._sealed = SealedCookies(keyturn.keys)
        self._keyturn = keyturn

    def seal(self, name: str, session_id: UUID, token: str, *, remembered: bool = True) -> str:
        return self._sealed.seal(name, session_id, bytes([remembered]) + token.encode())

    def plain(self, name: str, session_id: UUID, plain: bytes) -> str:
        """A value with any plain bytes."""
        return self._sealed.seal(name, session_id, plain)

    def open(self, name: str, value: str) -> Seen:
        opened = self._sealed.open(name, value)
        assert opened is not None, "the value does not open"
        session_id, plain = opened
        assert plain[0] in {0, 1}
        return Seen(session_id, plain[0] == 1, plain[1:].decode())

    def opened(self, answer: httpx2.Response) -> dict[str, Seen]:
        """The contents of the cookies that an answer sets, by name. Cleared ones are left out."""
        return {each.name: self.open(each.name, each.value) for each in token_cookies(answer) if not each.clears}

    def minted(self, access_token: str, *, left: int, life: int = 900) -> str:
        """The access token with another age: it lives `left` seconds from now on. Only with HS256 keys."""
        key = self._keyturn.keys.signing_access
        genuine = jwt.decode(access_token, options={"verify_signature": False})
        exp = int(self._keyturn.db.clock().timestamp()) + left
        headers = {"typ": MEDIA_TYPE, "kid": key.kid}
        claims = genuine | {"iat": exp - life, "exp": exp}
        return jwt.encode(claims, key.signing, algorithm=key.algorithm, headers=headers)
