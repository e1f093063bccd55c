"""Refresh on the way, for FastAPI and Starlette: Keyturn says who asks, and new cookies go back with the answer."""

from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx2
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

IDENTITY = {b"x-auth-subject", b"x-auth-role", b"x-auth-scope", b"x-auth-session"}


class RefreshOnTheWay:
    """Gives each request the four identity fields of Keyturn, or none of them."""

    def __init__(self, app: ASGIApp, url: str) -> None:
        self.app = app
        # A client that kept cookies would send those of one visitor with the requests of the next.
        jar = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
        self.keyturn = httpx2.AsyncClient(base_url=url, timeout=5, cookies=jar, trust_env=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        cookie = b"; ".join(value for name, value in scope["headers"] if name == b"cookie")
        try:
            answer = await self.keyturn.get("/auth/verify?refresh=true", headers=[(b"cookie", cookie)])
            status = answer.status_code
        except httpx2.HTTPError:
            status = 503
        if status not in {200, 401}:  # no verdict: neither an identity nor a cookie changes
            await self.unanswered(min(status, 503))(scope, receive, send)
            return
        set_cookies = [value for name, value in answer.headers.raw if name.lower() == b"set-cookie"]
        dropped = (b"x-auth-", b"cookie")  # from outside; some servers take `x_auth_` for the same
        headers = [(n, v) for n, v in scope["headers"] if not n.replace(b"_", b"-").startswith(dropped)]
        if status == 200:
            headers += [(n.lower(), v) for n, v in answer.headers.raw if n.lower() in IDENTITY]
            # The access cookie that came may have expired. The application asks Keyturn with the new one already.
            cookie = b"; ".join([cookie, *(value.partition(b";")[0] for value in set_cookies)])
        headers.append((b"cookie", cookie))
        along = [(b"set-cookie", value) for value in set_cookies] + [(b"cache-control", b"no-store")]

        async def answered(message: Message) -> None:
            if set_cookies and message["type"] in {"http.response.start", "websocket.accept"}:
                # Ours come first, so that the cookies of a login or a logout are the last ones and stay.
                message["headers"] = [*along, *message.get("headers", ())]
            await send(message)

        refreshed = status == 200 and bool(set_cookies)
        await self.app({**scope, "headers": headers, "refreshed": refreshed}, receive, answered)

    def unanswered(self, status: int) -> Response:
        return Response("Keyturn is away: try again. You are still signed in.", status, {"Retry-After": "1"})
