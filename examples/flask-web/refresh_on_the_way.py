"""Refresh on the way, for Flask and other WSGI applications: Keyturn says who asks, and new cookies go back."""

from collections.abc import Iterable
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import urllib3

IDENTITY = {"X-Auth-Subject", "X-Auth-Role", "X-Auth-Scope", "X-Auth-Session"}
UNANSWERED = {400: "400 Bad Request", 431: "431 Request Header Fields Too Large"}
UNANSWERED_FIELDS = [("Retry-After", "1"), ("Content-Type", "text/plain")]


class RefreshOnTheWay:
    """Gives each request the four identity fields of Keyturn, or none of them."""

    def __init__(self, app: WSGIApplication, url: str) -> None:
        self.app = app
        self.url = f"{url}/auth/verify?refresh=true"
        # A pool of urllib3 keeps no cookies. A `requests.Session` would send those of one visitor for the next.
        self.keyturn = urllib3.PoolManager(timeout=5, retries=False, maxsize=20)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Ask Keyturn, then the application."""
        cookie = environ.get("HTTP_COOKIE", "")
        try:
            answer = self.keyturn.request("GET", self.url, headers={"Cookie": cookie})
            status = answer.status
        except urllib3.exceptions.HTTPError:
            status = 503
        if status not in {200, 401}:  # no verdict: nobody is signed out, and no cookie changes
            start_response(UNANSWERED.get(status, "503 Service Unavailable"), UNANSWERED_FIELDS)
            return [b"No verdict on your session. Please try again."]
        set_cookies = answer.headers.getlist("Set-Cookie")
        # Identity fields from outside are dropped. WSGI writes `X_Auth_Role` and `X-Auth-Role` as one name.
        for name in [name for name in environ if name.startswith("HTTP_X_AUTH_")]:
            del environ[name]
        if status == 200:
            for name in IDENTITY:
                environ["HTTP_" + name.upper().replace("-", "_")] = answer.headers.get(name, "")
            # The access cookie that came may have expired. The application can ask Keyturn with the new one at once.
            new = [value.partition(";")[0] for value in set_cookies if "Max-Age=0;" not in value]
            names = {pair.partition("=")[0] for pair in new}
            kept = [pair for each in cookie.split(";") if (pair := each.strip()).partition("=")[0] not in names]
            environ["HTTP_COOKIE"] = "; ".join([*kept, *new])

        def answered(line: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            ours = [("Set-Cookie", value) for value in set_cookies]
            if ours:
                ours.append(("Cache-Control", "no-store"))
            # Ours come first: where the application signs in or out, its cookies come last, and stay.
            return start_response(line, [*ours, *headers], *error)

        return self.app(environ, answered)
