"""Refresh, verify and logout in front of FastAPI, as plain ASGI.

FastAPI's matching, dependencies and validation cost a request several times what all the rest does.

Only requests of the plain form are taken here. Whatever is unusual about one (a field too many, another scheme, a
query) goes on to FastAPI's endpoint of the same path, which refuses or serves it. Both end in the same functions, so
there is no second set of rules; and FastAPI's are the ones that stand in the OpenAPI document.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.datastructures import State
from starlette.types import Scope

from ..http.answers import Answer
from ..keyturn import Keyturn
from .auth import MAX_TOKEN, VERIFY_METHODS, answer_logout, answer_refresh, answer_verify


class Direct:
    """What `app.edge.Edge` asks first. Refusals are raised: the edge renders them as it does all."""

    def __init__(self, state: State) -> None:
        """`state` is where the application keeps ``keyturn``."""
        self._state = state

    def __call__(self, scope: Scope) -> Awaitable[Answer] | None:
        """The answer to come, or None where it is FastAPI's to give."""
        endpoint = _ENDPOINTS.get((scope["method"], scope["path"][len(scope["root_path"]) :]))
        return endpoint(self._state.keyturn, scope) if endpoint is not None else None


def _refresh(keyturn: Keyturn, scope: Scope) -> Awaitable[Answer] | None:
    match scope["state"].get("json"):
        case {"refresh_token": str() as token, **others} if not others and len(token) <= MAX_TOKEN:
            return answer_refresh(keyturn, scope["state"], token)
    return None


def _verify(keyturn: Keyturn, scope: Scope) -> Awaitable[Answer] | None:
    token = _bearer(scope)
    return answer_verify(keyturn, scope["state"], token, [], []) if token and not scope["query_string"] else None


def _logout(keyturn: Keyturn, scope: Scope) -> Awaitable[Answer] | None:
    bearer = _bearer(scope)
    if bearer is None and any(name == b"authorization" for name, _ in scope["headers"]):
        return None
    match scope["state"].get("json", {}):
        case {"refresh_token": str() as token, **others} if not others and len(token) <= MAX_TOKEN:
            return answer_logout(keyturn, scope["state"], bearer, token, "this")
        case {**others} if not others and bearer:
            return answer_logout(keyturn, scope["state"], bearer, None, "this")
    return None


def _bearer(scope: Scope) -> str | None:
    """The bearer token, where there is one Authorization field and it is of the usual spelling."""
    fields: list[bytes] = [value for name, value in scope["headers"] if name == b"authorization"]
    return fields[0][7:].decode("latin-1").strip(" \t") if len(fields) == 1 and fields[0][:7] == b"Bearer " else None


_ENDPOINTS: dict[tuple[str, str], Callable[[Keyturn, Scope], Awaitable[Answer] | None]] = {
    ("POST", "/auth/refresh"): _refresh,
    ("POST", "/auth/logout"): _logout,
    **{(method, "/auth/verify"): _verify for method in VERIFY_METHODS},
}
