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
        """Ask Keyturn, then the application."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        cookie = b"; ".join(value for name, value in scope["headers"] if name == b"cookie")
        try:
            answer = await self.keyturn.get("/auth/verify?refresh=true", headers={b"cookie": cookie} if cookie else {})
            status = answer.status_code
        except httpx2.HTTPError:
            status = 503
        if status not in {200, 401}:  # no verdict: nobody is signed out, and no cookie changes
            await self.unanswered(status if status in {400, 431} else 503)(scope, receive, send)
            return
        set_cookies = [value for name, value in answer.headers.raw if name.lower() == b"set-cookie"]
        # Identity fields from outside are dropped. Some servers take underscores for hyphens.
        dropped = (b"x-auth-", b"cookie")
        headers = [(n, v) for n, v in scope["headers"] if not n.replace(b"_", b"-").startswith(dropped)]
        if status == 200:
            headers += [(n.lower(), v) for n, v in answer.headers.raw if n.lower() in IDENTITY]
            # The access cookie that came may have expired. The application can ask Keyturn with the new one at once.
            new = [value.partition(b";")[0] for value in set_cookies if b"Max-Age=0;" not in value]
            names = {pair.partition(b"=")[0] for pair in new}
            kept = [pair for each in cookie.split(b";") if (pair := each.strip()).partition(b"=")[0] not in names]
            cookie = b"; ".join([*kept, *new])
        headers.append((b"cookie", cookie))

        async def answered(message: Message) -> None:
            if set_cookies and message["type"] in {"http.response.start", "websocket.accept"}:
                ours = [(b"set-cookie", value) for value in set_cookies] + [(b"cache-control", b"no-store")]
                # Ours come first: where the application signs in or out, its cookies come last, and stay.
                message["headers"] = [*ours, *message.get("headers", ())]
            await send(message)

        refreshed = status == 200 and bool(set_cookies)
        await self.app({**scope, "headers": headers, "refreshed": refreshed}, receive, answered)

    def unanswered(self, status: int) -> Response:
        """The answer without a verdict. 400 and 431: the browser's cookies are malformed, or too many."""
        return Response("No verdict on your session. Please try again.", status, {"Retry-After": "1"})
