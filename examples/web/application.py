"""The web application: a start page, a login, a protected page, the visitor's session and a logout."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from . import pages
from .journal import Journal
from .keyturn import AwayError, Keyturn, pass_on
from .middleware import RefreshOnTheWay
from .own_forms import fields, from_own_page
from .response_fields import ResponseFields
from .return_address import START, login_for, wanted_by
from .settings import Settings

Page = Callable[[Request], Awaitable[Response]]

# `same-origin` and not `no-referrer`: with the latter, browsers write `Origin: null` into our own forms.
_FIELDS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}


class WithPages(RefreshOnTheWay):
    """Refresh on the way, with a page of ours where Keyturn gives no verdict."""

    def unanswered(self, status: int) -> Response:
        """Say that nothing is lost, and that it is worth another try."""
        return away() if status >= HTTPStatus.INTERNAL_SERVER_ERROR else refused(HTTPStatus(status))


class Application:
    """The pages, and the parts that they share."""

    def __init__(self, settings: Settings) -> None:
        self.origin = settings.origin
        self.keyturn = Keyturn(settings.keyturn)
        self.journal = Journal()

    async def start(self, request: Request) -> Response:
        """The page that everyone may see."""
        return HTMLResponse(pages.start(identity(request)))

    async def login_form(self, request: Request) -> Response:
        """The login form. Those who are signed in are led on."""
        return_to = wanted_by(request)
        if identity(request):
            return RedirectResponse(return_to, HTTPStatus.SEE_OTHER)
        return HTMLResponse(pages.login(return_to))

    async def login(self, request: Request) -> Response:
        """Sign in, and go back to the page that asked for it."""
        return_to = wanted_by(request)
        form = await fields(request, ("email", "password", "remember"))
        if form is None:
            return refused(HTTPStatus.BAD_REQUEST)
        email, remember = form["email"], form["remember"] == "true"
        answer = await self.keyturn.login(request, email, form["password"], remember=remember)
        response: Response
        if answer.is_success:
            self.journal.add(answer.json()["session_id"], "Signed in")
            response = RedirectResponse(return_to, HTTPStatus.SEE_OTHER)
        else:
            problem = answer.json().get("error_description", "The sign-in was refused.")
            response = HTMLResponse(pages.login(return_to, email=email, problem=problem), answer.status_code)
        pass_on(answer, response)
        return response

    async def protected(self, request: Request) -> Response:
        """A page for those who are signed in."""
        who = identity(request)
        return HTMLResponse(pages.protected(who)) if who else RedirectResponse(login_for(request), HTTPStatus.SEE_OTHER)

    async def session(self, request: Request) -> Response:
        """The visitor's own session."""
        who = identity(request)
        if who is None:
            return RedirectResponse(login_for(request), HTTPStatus.SEE_OTHER)
        me = await self.keyturn.me(request)
        return HTMLResponse(pages.session(who, me, self.journal.of(who["session"])))

    async def logout(self, request: Request) -> Response:
        """End the session, or all of the user's, and go to the start page."""
        form = await fields(request, ("reach",))
        if form is None:
            return refused(HTTPStatus.BAD_REQUEST)
        answer = await self.keyturn.logout(request, "all" if form["reach"] == "all" else "this")
        # Without a cookie Keyturn says 400, and with one of an ended session 401: as good as a logout.
        if not answer.is_success and answer.status_code not in {HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED}:
            return refused(HTTPStatus(answer.status_code))
        response = RedirectResponse(START, HTTPStatus.SEE_OTHER)
        pass_on(answer, response)
        return response

    def guarded(self, page: Page) -> Page:
        """The page, with an outage shown as one, forged forms refused and refreshes written down."""

        async def answer(request: Request) -> Response:
            who = identity(request)
            if who and request.scope.get("refreshed"):
                self.journal.add(who["session"], f"Refreshed on the way to {request.url.path}")
            if request.method == "POST" and not from_own_page(request, self.origin):
                return refused(HTTPStatus.FORBIDDEN)
            try:
                return await page(request)
            except AwayError:
                return away()

        return answer

    def route(self, path: str, page: Page, method: str = "GET") -> Route:
        """The page at its path."""
        return Route(path, self.guarded(page), methods=[method])


def identity(request: Request) -> pages.Identity | None:
    """The visitor as Keyturn knows them. None: nobody is signed in."""
    if not request.headers.get("x-auth-subject"):
        return None
    return {name: request.headers.get(f"x-auth-{name}", "") for name in ("subject", "role", "session")}


def away() -> Response:
    """The answer while Keyturn is away: no cookie is touched, so the session goes on afterwards.

    The browser tries again by itself. Keyturn may have refreshed without the answer having arrived, and gives the same
    answer again only within the retry window.
    """
    text = "The sign-in service does not answer. Those who were signed in are still signed in. This page tries again."
    page = pages.problem("One moment", text)
    return HTMLResponse(page, HTTPStatus.SERVICE_UNAVAILABLE, {"retry-after": "1", "refresh": "3"})


def refused(status: HTTPStatus) -> Response:
    """The answer to a request that no page of ours would send."""
    return HTMLResponse(pages.problem("Refused", "No page of this application sends such a request."), status)


async def missing(_: Request, __: Exception) -> Response:
    """The answer to an address that no page has."""
    return HTMLResponse(pages.problem("Not found", "There is no such page."), HTTPStatus.NOT_FOUND)


def create(settings: Settings | None = None) -> ASGIApp:
    """The application, with the middleware or behind a proxy that does the same."""
    settings = settings or Settings.of_environment()
    application = Application(settings)
    inner: ASGIApp = Starlette(
        routes=[
            application.route("/", application.start),
            application.route("/login", application.login_form),
            application.route("/login", application.login, "POST"),
            application.route("/protected", application.protected),
            application.route("/session", application.session),
            # A link must log nobody out. A visitor who comes by GET, as after an outage, finds the buttons there.
            Route("/logout", RedirectResponse("/session", HTTPStatus.SEE_OTHER), methods=["GET"]),
            application.route("/logout", application.logout, "POST"),
        ],
        exception_handlers={HTTPStatus.NOT_FOUND: missing},
    )
    closing = [application.keyturn.close]
    if not settings.trust_proxy_identity:
        inner = WithPages(inner, settings.keyturn)
        closing.append(inner.keyturn.aclose)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        for close in closing:
            await close()

    # Style sheet and icon are the same for all, and need no verdict of Keyturn's.
    static = StaticFiles(directory=Path(__file__).parent / "static")
    return Starlette(
        routes=[Mount("/static", static), Mount("/", inner)],
        middleware=[Middleware(ResponseFields, fields=_FIELDS)],
        lifespan=lifespan,
    )
