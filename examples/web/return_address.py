"""The page to which a login leads back: a path of this application, or its start page."""

import re
from urllib.parse import quote, unquote

from starlette.requests import Request

START = "/"

# A browser reads `//host`, `/\host`, a tab or a scheme as another place (URL standard, "URL parsing"). So only letters,
# digits and marks that mean nothing to it may follow the first slash. A `%` stays as it is in a Location field.
_NAME = r"[A-Za-z0-9_~-][A-Za-z0-9._~-]*"
_PATH = re.compile(rf"/(?:{_NAME}(?:/{_NAME})*/?)?(?:\?[A-Za-z0-9._~=&%+-]*)?")
_LONGEST = 512


def safe(address: str) -> str:
    """The address, if it is a path of this application, and the start page otherwise."""
    return address if len(address) <= _LONGEST and _PATH.fullmatch(address) else START


def login_for(request: Request) -> str:
    """The login page, which leads back to the page that this request asked for."""
    path, query = request.url.path, request.url.query
    back = safe(f"{path}?{query}" if query else path)
    return "/login" if back == START else f"/login?return_to={quote(back, safe='')}"


def wanted_by(request: Request) -> str:
    """The page to which a login leads back. `return_to` must be the last field of the query.

    A proxy that leads browsers to the login page may have no encoding for the address, which then begins with a slash.
    """
    asked = request.url.query.partition("return_to=")[2]
    return safe(asked if asked.startswith("/") else unquote(asked))
