"""The calls by which the web application signs a visitor in and out, with the visitor's own cookies."""

from __future__ import annotations

from datetime import datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx2
from starlette.requests import Request
from starlette.responses import Response

_TOLD = (b"cookie", b"origin", b"sec-fetch-site", b"user-agent")
_SECONDS = 10  # a login waits for its turn at the password hash


class AwayError(Exception):
    """Keyturn gives no verdict now. The visitor's cookies stay as they are."""


class Keyturn:
    """Keyturn, asked in a visitor's name.

    The application has no secret and no session of its own. Keyturn judges the visitor's cookies, and needs the fields
    by which a browser says where a request comes from: else it takes a login or a logout for a forged one.
    """

    def __init__(self, url: str) -> None:
        # A client that kept cookies would send those of one visitor with the requests of the next.
        jar = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
        self._http = httpx2.AsyncClient(base_url=url, timeout=_SECONDS, cookies=jar, trust_env=False)

    async def login(self, request: Request, email: str, password: str, *, remember: bool) -> httpx2.Response:
        """Sign in. The tokens come as cookies, which `pass_on` hands to the browser."""
        body = {"email": email, "password": password, "mode": "cookie", "remember": remember}
        return await self._ask("POST", "/auth/login", request, json=body)

    async def logout(self, request: Request, reach: str) -> httpx2.Response:
        """End this session (`this`), or also all others of the user (`all`)."""
        return await self._ask("POST", "/auth/logout", request, json={"scope": reach, "mode": "cookie"})

    async def me(self, request: Request) -> dict[str, Any] | None:
        """The user and the session, with moments as `datetime`. None if there is no session."""
        answer = await self._ask("GET", "/auth/me", request)
        if answer.status_code != httpx2.codes.OK:
            return None
        me: dict[str, Any] = answer.json()
        for name, value in me["session"].items():
            if name.endswith("_at"):
                me["session"][name] = datetime.fromisoformat(value)
        return me

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _ask(self, method: str, path: str, request: Request, json: Any = None) -> httpx2.Response:
        # As bytes, because a cookie of another application may hold any of them.
        told = [(name, value) for name, value in request.headers.raw if name in _TOLD]
        if request.client:
            told.append((b"x-forwarded-for", request.client.host.encode()))
        try:
            answer = await self._http.request(method, path, headers=told, json=json)
        except httpx2.HTTPError as error:
            raise AwayError(type(error).__name__) from error
        if answer.status_code >= httpx2.codes.INTERNAL_SERVER_ERROR:
            raise AwayError(str(answer.status_code))
        return answer


def pass_on(answer: httpx2.Response, to: Response) -> None:
    """Hand every cookie that Keyturn sets or clears to the browser, unchanged."""
    for value in answer.headers.get_list("set-cookie"):
        to.headers.append("set-cookie", value)
