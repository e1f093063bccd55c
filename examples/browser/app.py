"""The page and one protected path, behind nginx, which says who asks. It knows nothing about tokens."""

from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

HERE = Path(__file__).parent
FILES = {
    "/login": HERE / "index.html",
    "/static/page.js": HERE / "page.js",
    "/static/session.js": HERE.parent / "web" / "one_page" / "session.js",
    "/static/icon.svg": HERE.parent / "web" / "static" / "icon.svg",
}


async def hello(request: Request) -> Response:
    """Greet whoever is signed in. nginx lets nobody else pass."""
    return JSONResponse({"hello": request.headers["X-Auth-Subject"]})


async def file(request: Request) -> Response:
    """The page and its scripts, for everyone."""
    return FileResponse(FILES[request.url.path], headers={"Cache-Control": "no-cache"})


app = Starlette(routes=[Route("/hello", hello), *(Route(path, file) for path in FILES)])
