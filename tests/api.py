"""The application with its edge, run in this process, and the form that all its refusals have."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import jwt
import pytest
from sqlalchemy import text

from app.actors import SERVICE
from app.keyturn import Keyturn
from app.main import create_app
from app.tokens.access_tokens import MEDIA_TYPE
from tests.conftest import PASSWORD, settings_of

ADA, BOB = "ada@example.com", "bob@example.com"
POSTS = ("/auth/register", "/auth/login", "/auth/refresh", "/auth/logout", "/auth/password")
GETS = ("/auth/me", "/auth/verify", "/healthz", "/readyz", "/.well-known/jwks.json")
EVERY_METHOD = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
OTHER_METHODS = ("TRACE", "PROPFIND", "REPORT", "MKCALENDAR", "QUERY", "FOO", "PURGE-ALL", "X" * 64)
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Api:
    """The application with its edge, run in this process, and the parts behind it."""

    client: httpx2.AsyncClient
    keyturn: Keyturn

    async def post(self, path: str, body: Any = None, bearer: str | None = None) -> httpx2.Response:
        return await self.client.post(path, json=body, headers=authorization(bearer))

    async def get(self, path: str, bearer: str | None = None) -> httpx2.Response:
        return await self.client.get(path, headers=authorization(bearer))

    async def login(self, email: str = ADA, password: str = PASSWORD) -> Json:
        answer = await self.post("/auth/login", {"email": email, "password": password})
        assert answer.status_code == 200, answer.text
        body: Json = answer.json()
        return body

    async def is_live(self, tokens: Json) -> bool:
        """Whether the session's access token is accepted. Asserts that verify and me agree."""
        statuses = {(await self.get(path, tokens["access_token"])).status_code for path in ("/auth/verify", "/auth/me")}
        assert statuses in ({200}, {401})
        return statuses == {200}

    def minted(self, tokens: Json, **claims: Any) -> str:
        """An access token as a resource server could make it, because it holds the same HS256 key."""
        key = self.keyturn.keys.signing_access
        genuine = jwt.decode(tokens["access_token"], options={"verify_signature": False})
        headers = {"typ": MEDIA_TYPE, "kid": key.kid}
        return jwt.encode(genuine | claims, key.signing, algorithm=key.algorithm, headers=headers)


@asynccontextmanager
async def serving(database_url: str, **settings: Any) -> AsyncIterator[Api]:
    app = create_app(settings_of(database_url, None, **settings))
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="https://auth.example.com") as client,
    ):
        yield Api(client, app.state.keyturn)


Serve = Callable[..., AbstractAsyncContextManager[Api]]


@pytest.fixture
def serve(database_url: str) -> Serve:
    return lambda **settings: serving(database_url, **settings)


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[Api]:
    """One instance with one user, Ada."""
    async with serving(database_url) as api:
        await api.keyturn.users.create(ADA, PASSWORD, by=SERVICE)
        yield api


def authorization(bearer: str | None) -> dict[str, str]:
    return {} if bearer is None else {"Authorization": f"Bearer {bearer}"}


def refused(
    answer: httpx2.Response, status: int, error: str, *, reason: str | None = None, challenge: str | None = None
) -> None:
    """Asserts that the answer is a refusal of this error, with the shape and header fields that all refusals have."""
    body = answer.json()
    assert (answer.status_code, body["error"], body.get("reason")) == (status, error, reason), answer.text
    assert body.keys() - {"reason"} == {"error", "error_description"}
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers.get("www-authenticate") == challenge
    assert "x-request-id" in answer.headers


BARE, INVALID = "Bearer", 'Bearer error="invalid_token"'


async def dump(keyturn: Keyturn) -> str:
    """The text of all rows of the tables that a request may change."""
    async with keyturn.db.look() as connection:
        return repr(
            [
                (await connection.execute(text(f"SELECT * FROM {table} ORDER BY 1"))).all()
                for table in ("users", "sessions", "keys", "cache_fence")
            ]
        )
