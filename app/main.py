"""The application that serves Keyturn over HTTP."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from . import tracing
from .errors import InvalidRequest, MethodNotAllowed, NotFound, Refusal, refusal_of
from .http.answers import Answer, render
from .http.client_addresses import ClientAddresses
from .http.documentation import documented
from .http.doors import Doors, response
from .http.edge import Edge
from .http.origins import Origins
from .http.request import Request as OurRequest
from .keyturn import Keyturn, opened, running
from .routes import (
    admin_events,
    admin_federation,
    admin_federation_check,
    admin_identities,
    admin_keys,
    admin_policies,
    admin_sessions,
    admin_stats,
    admin_upstream_revocations,
    admin_upstream_sessions,
    admin_user_changes,
    admin_users,
    admin_why,
    documents,
    exchange,
    federation,
    health,
    identities,
    login,
    me,
    metrics,
    reauthentication,
    sessions,
    tokens,
    verification,
    well_known,
)
from .routes.health import PROBES
from .settings import Settings, read
from .settings_clients import networks_in
from .settings_values import on_loopback, origins_in

_ENDPOINTS = (
    *login.ENDPOINTS,
    *exchange.ENDPOINTS,
    *identities.ENDPOINTS,
    *tokens.ENDPOINTS,
    *reauthentication.ENDPOINTS,
    *verification.ENDPOINTS,
    *me.ENDPOINTS,
    *sessions.ENDPOINTS,
    *admin_users.ENDPOINTS,
    *admin_user_changes.ENDPOINTS,
    *admin_identities.ENDPOINTS,
    *admin_sessions.ENDPOINTS,
    *admin_keys.ENDPOINTS,
    *admin_policies.ENDPOINTS,
    *admin_federation.ENDPOINTS,
    *admin_federation_check.ENDPOINTS,
    *admin_upstream_sessions.ENDPOINTS,
    *admin_upstream_revocations.ENDPOINTS,
    *admin_events.ENDPOINTS,
    *admin_stats.ENDPOINTS,
    *admin_why.ENDPOINTS,
    *federation.ENDPOINTS,
    *well_known.ENDPOINTS,
    *health.ENDPOINTS,
    *metrics.ENDPOINTS,
)
_ON_METRICS_PORT = {
    "/metrics": metrics.metrics_on_own_port,
    "/healthz": health.healthz,
    "/readyz": health.readyz,
}
_FIRST_SEGMENTS = frozenset(path.split("/")[1] for path in (*documents.PATHS, *(each.path for each in _ENDPOINTS)))
"""The first segments of all paths that Keyturn serves."""

_DESCRIPTION = """
A self-hosted token service. Durations (`…_in`) are whole seconds, moments (`…_at`) RFC 3339 in UTC.

A client refreshes before its access token expires, keeps what it got last, and sends the same refresh token again when
an answer is lost. A 401 of `refresh` is final: sign in anew. A 429 or 503 is no verdict: keep the tokens and try again.

Later releases may add members to answers and words to `error`, `reason` and the states: take no notice of what you do
not know.
"""
_TAGS = [
    {"name": "auth", "description": "Sign in, refresh, log out, verify."},
    {"name": "admin", "description": "For administrators: each act is the twin of a command."},
    {"name": "sessions", "description": "See where one is signed in, and end what one does not know."},
    {"name": "federation", "description": "For issuers that say who was logged out there."},
    {"name": "well-known", "description": "For services that verify access tokens by themselves."},
    {"name": "health", "description": "For those who watch the process."},
]


def create_app(settings: Settings | None = None) -> _Application:
    """Makes the application. Reads the settings if none are given, for ``uvicorn --factory app.main:create_app``.

    Give uvicorn ``--no-proxy-headers`` then. Otherwise its own reading of X-Forwarded-For comes before Keyturn's.

    Raises:
        ConfigurationError: the settings can't work.
    """
    settings = settings or read()

    @asynccontextmanager
    async def lifespan(app: _Application) -> AsyncIterator[None]:
        async with (
            tracing.running(on=settings.tracing, release=release()),
            opened(settings) as keyturn,
            running(keyturn),
        ):
            app.state.keyturn = app.doors.parts = undescribed.parts = keyturn
            yield

    # Plain http beyond this machine proves no origin: anybody on the way could write such a page.
    own = settings.address if on_loopback(urlsplit(settings.address).hostname or "") else settings.iss
    app = _Application(
        Origins(own, origins_in(settings.allowed_origins), settings.hsts),
        ClientAddresses(networks_in(settings.trusted_proxies), settings.proxy_field),
        frozenset() if settings.log_probes else PROBES,
        settings.metrics_port,
        lifespan=lifespan,
        openapi_url=None,  # FastAPI's route would write the document anew for each request
        docs_url=None,  # FastAPI's reference page loads its scripts from another host
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},  # see app/tracing.py
        redirect_slashes=False,
    )
    # Not an option: uvicorn's would add the prefix to every path, and FastAPI's sets this attribute with a warning.
    app.root_path = settings.root_path
    app.doors.add_to(app.router)
    app.exception_handler(Refusal)(_refused)
    app.exception_handler(HTTPException)(_starlette_refused)
    app.exception_handler(Exception)(_defect)

    @cache
    def openapi() -> dict[str, Any]:
        about = FastAPI(
            title="Keyturn",
            summary="Sign in, refresh, log out, verify.",
            description=_DESCRIPTION,
            version=release(),
            contact={"name": "Keyturn"},
            servers=[{"url": settings.address, "description": "The public URL of this service."}],
            openapi_tags=_TAGS,
            license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        )
        app.doors.describe_to(about.router)
        return documented(about.openapi(), {each.name: each.example for each in _ENDPOINTS})

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to change the document

    app.documents = documents.Documents(openapi, root_path=settings.root_path, version=release(), pages=settings.pages)
    undescribed = Doors[Keyturn](app.documents.endpoints)
    undescribed.add_to(app.router)
    return app


def served() -> FastAPI:
    """`create_app` for a process that does nothing else, as `keyturn serve` starts it.

    All objects that exist now live as long as the process, so the garbage collector may skip them. Otherwise, each full
    collection would keep every request waiting for tens of milliseconds.
    """
    app = create_app()
    app.documents.make()
    gc.collect()
    gc.freeze()
    return app


class _Application(FastAPI):
    """FastAPI behind the edge and the fast door.

    Both stand in front of FastAPI's whole stack, not among its middleware. Behind the outer layers and telemetry, each
    refresh would take a tenth longer.
    """

    documents: documents.Documents

    def __init__(
        self,
        origins: Origins,
        clients: ClientAddresses,
        quiet: frozenset[str],
        metrics_port: int | None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.doors = Doors[Keyturn](_ENDPOINTS)
        self.origins = origins
        self._metrics_port = metrics_port
        self._front = Edge(super().__call__, fast=self.doors.fast, origins=origins, clients=clients, quiet=quiet)
        self._behind_metrics_port = Edge(super().__call__, fast=self._metrics, quiet=quiet)

    async def __call__(self, asgi_scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if self._metrics_port is not None and _port(asgi_scope) == self._metrics_port:
            await self._behind_metrics_port(asgi_scope, receive, send)
            return
        asgi_scope["root_path"] = self.root_path
        if self.root_path and "path" in asgi_scope:
            self._prefix(asgi_scope)
        await self._front(asgi_scope, receive, send)

    async def _metrics(self, request: OurRequest) -> Answer:
        """The answer on the port of the metrics. Each path but three is unknown there, and so no other door opens."""
        answer = _ON_METRICS_PORT.get(request.path)
        if answer is None:
            raise NotFound("no such path on the port of the metrics")
        if request.method not in {"GET", "HEAD"}:
            return request.refused(MethodNotAllowed("no such method here"), [(b"allow", b"GET, HEAD")])
        return await answer(self.doors.parts, request)

    def _prefix(self, asgi_scope: Scope) -> None:
        """Adds the root path to the path if a proxy has stripped it, so that all code after this finds it there.

        The root path may equal the beginning of an endpoint's path (``/auth``). So it counts as present only if the
        rest of the path begins like an endpoint's path.
        """
        path: str = asgi_scope["path"]
        prefix = self.root_path + "/"
        if not path.startswith(prefix) or path[len(prefix) :].split("/", 1)[0] not in _FIRST_SEGMENTS:
            asgi_scope["path"] = self.root_path + path
            asgi_scope["raw_path"] = self.root_path.encode() + (asgi_scope.get("raw_path") or b"")


def _port(asgi_scope: Scope) -> int | None:
    """The port at which a request came in."""
    server = asgi_scope.get("server")
    return None if server is None else server[1]


def release() -> str:
    """The version of this release."""
    try:
        return version("keyturn")
    except PackageNotFoundError:
        return "0.1.0"


def _refused(request: Request, refusal: Refusal) -> Response:
    """Renders a refusal, and notes it for the line in the log, which has the private cause too."""
    OurRequest.of(request.scope).refusal = refusal
    return response(render(refusal))


def _starlette_refused(request: Request, error: HTTPException) -> Response:
    """Renders Starlette's own refusals: no such path, no such method, a body that could not be read."""
    refusal: Refusal
    match error.status_code:
        case 404:
            refusal = NotFound("no such path")
        case 405:
            refusal = MethodNotAllowed("no such method here")
        case _:
            refusal = InvalidRequest(f"refused by the framework: {error.status_code}")
    answer = _refused(request, refusal)
    if allow := (error.headers or {}).get("Allow"):
        answer.headers["allow"] = ", ".join(sorted(allow.split(", ")))  # RFC 9110 section 15.5.6
    return answer


def _defect(request: Request, error: Exception) -> Response:
    """Renders a defect. Starlette then raises the exception again, and the edge logs it."""
    return _refused(request, refusal_of(error))
