"""The one-page application's server: static files on an origin of their own, which may call Keyturn and nobody else."""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from .response_fields import ResponseFields
from .settings import Settings

_HERE = Path(__file__).parent


def create(settings: Settings | None = None) -> ASGIApp:
    """The server of the one-page application."""
    keyturn = (settings or Settings.of_environment()).keyturn

    async def config(_: Request) -> Response:
        return JSONResponse({"keyturn": keyturn})

    fields = {
        "content-security-policy": f"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        f"connect-src 'self' {keyturn}; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
        "cross-origin-opener-policy": "same-origin",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "cache-control": "no-cache",
    }
    return Starlette(
        routes=[
            Route("/config.json", config),
            Mount("/static", StaticFiles(directory=_HERE / "static")),
            Mount("/", StaticFiles(directory=_HERE / "one_page", html=True)),
        ],
        middleware=[Middleware(ResponseFields, fields=fields)],
    )
