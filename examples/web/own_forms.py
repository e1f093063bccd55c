"""The rule against forged forms: a request that changes something must come from a page of this application."""

from collections.abc import Iterable
from urllib.parse import parse_qs

from starlette.requests import Request

_LARGEST = 16 * 1024


def from_own_page(request: Request, origin: str) -> bool:
    """Whether a browser says that a page of this origin sent the request (the fields Origin and Sec-Fetch-Site)."""
    if request.headers.getlist("sec-fetch-site") == ["same-origin"]:
        return True
    return request.headers.getlist("origin") == [origin]


async def fields(request: Request, names: Iterable[str]) -> dict[str, str] | None:
    """The fields of a form by these names, each empty if it is missing. None: no form of ours looks like that."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LARGEST:
            return None
    try:
        values = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=20)
    except ValueError:  # not UTF-8, or more fields than any form of ours has
        return None
    return {name: values.get(name, [""])[0] for name in names}
