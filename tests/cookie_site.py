"""An application in this process for the tests of cookies: its sessions, their cookies, and what changes in its database."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import Any

import httpx2
from sqlalchemy import text

from app.actors import SERVICE
from app.keyturn import Keyturn
from app.main import create_app
from tests.conftest import PASSWORD, settings_of, time_passes
from tests.cookies import HTTPS, SAME_SITE, Sealer, ask, client_of, login, set_cookies, token_cookies

A, R, S = HTTPS


@dataclass
class Site:
    """One application in this process, and how many requests its fast door took."""

    app: Any
    client: httpx2.AsyncClient
    keyturn: Keyturn
    taken: int = 0

    @cached_property
    def sealer(self) -> Sealer:
        return Sealer(self.keyturn)

    async def user(self) -> str:
        email = f"{secrets.token_hex(6)}@example.com"
        await self.keyturn.users.create(email, PASSWORD, by=SERVICE)
        return email

    async def sign_in(self, email: str, mode: str = "cookie", **more: Any) -> SignIn:
        answer = await login(self.client, email, mode, **more)
        fields = {each.name: each.value for each in token_cookies(answer)}
        return SignIn(self, email, answer.json()["session_id"], fields)

    async def rows(self) -> dict[str, list[Any]]:
        """All rows that a request may change, by table."""
        async with self.keyturn.db.look() as connection:
            return {
                table: [tuple(row) for row in await connection.execute(text(f"SELECT * FROM {table} ORDER BY 1"))]
                for table in ("users", "sessions", "keys", "events")
            }

    async def key(self) -> bytes:
        """Makes a further cookie key, which does not seal yet. Returns the bytes of its id."""
        kid = await self.keyturn.keys.generate("cookie", by=SERVICE)
        await self.keyturn.keys.load()
        return bytes.fromhex(kid)

    @contextmanager
    def sealing_under(self, key: bytes) -> Iterator[None]:
        keys = self.keyturn.keys
        before, keys._signing_cookie = keys._signing_cookie, keys.cookie(key)
        try:
            yield
        finally:
            keys._signing_cookie = before


@asynccontextmanager
async def site_of(database_url: str, redis_url: str | None = None, **settings: Any) -> AsyncIterator[Site]:
    app: Any = create_app(settings_of(database_url, redis_url, **settings))
    async with app.router.lifespan_context(app), client_of(app) as client:
        site = Site(app, client, app.state.keyturn)
        fast = app._front._fast

        def counted(request: Any) -> Awaitable[Any] | None:
            answering: Awaitable[Any] | None = fast(request)
            site.taken += answering is not None
            return answering

        app._front._fast = counted
        yield site


@dataclass
class SignIn:
    """A session in mode "cookie", and the values of its cookies."""

    site: Site
    email: str
    session_id: str
    fields: dict[str, str] = field(repr=False)

    @property
    def a(self) -> str:
        """The access cookie's value."""
        return self.fields[A]

    @property
    def r(self) -> str:
        """The refresh cookie's value."""
        return self.fields[R]

    @property
    def access_token(self) -> str:
        return self.site.sealer.open(A, self.a).token

    @property
    def refresh_token(self) -> str:
        return self.site.sealer.open(R, self.r).token

    @property
    def s(self) -> str:
        """The same refresh token in the cookie of mode "split"."""
        return self.sealed(S, self.refresh_token)

    @property
    def pair(self) -> str:
        return f"{A}={self.a}; {R}={self.r}"

    def sealed(self, name: str, token: str, **more: Any) -> str:
        return self.site.sealer.seal(name, self.site.sealer.open(R, self.r).session_id, token, **more)

    def plain(self, name: str, plain: bytes) -> str:
        return self.site.sealer.plain(name, self.site.sealer.open(R, self.r).session_id, plain)

    def aged(self, left: int) -> str:
        """The access cookie's value, as if its token lived `left` seconds from now on."""
        return self.sealed(A, self.site.sealer.minted(self.access_token, left=left))

    @property
    def expired(self) -> str:
        return f"{A}={self.aged(-100)}"

    async def refreshed(self) -> SignIn:
        """The session after a refresh. This object keeps the older cookies."""
        answer = await ask(self.site.client, "POST", "/auth/refresh", f"{R}={self.r}", headers=SAME_SITE)
        assert answer.status_code == 200, answer.text
        return SignIn(self.site, self.email, self.session_id, {c.name: c.value for c in set_cookies(answer)})


@dataclass
class World:
    """Two sessions of one user, and one of another."""

    site: Site
    one: SignIn
    two: SignIn
    stranger: SignIn
    moved: bool = False
    """Whether a case changed the sessions before it presented something."""

    @classmethod
    async def made(cls, site: Site) -> World:
        email = await site.user()
        return cls(site, await site.sign_in(email), await site.sign_in(email), await site.sign_in(await site.user()))

    async def sessions(self) -> dict[str, tuple[str, int, str | None]]:
        """Label, generation and reason of the end, by session."""
        labels = {each.session_id: label for label, each in vars(self).items() if isinstance(each, SignIn)}
        async with self.site.keyturn.db.look() as connection:
            found = (await connection.execute(text("SELECT id, generation, end_reason FROM sessions"))).all()
        by_id = {str(row.id).replace("-", ""): (row.generation, row.end_reason) for row in found}
        return {id_: (label, *by_id[id_.replace("-", "")]) for id_, label in labels.items()}

    async def end(self, reason: str) -> None:
        """Ends the first session for a reason."""
        keyturn, one = self.site.keyturn, self.one
        id_ = self.site.sealer.open(R, one.r).session_id
        match reason:
            case "idle_timeout":
                await time_passes(keyturn, keyturn.settings.refresh_token_lifetime + timedelta(hours=1))
            case "user_disabled":
                user = await keyturn.users.find(one.email)
                await keyturn.users.disable(user.id, by=SERVICE)
            case _:
                await keyturn.ending.end({id_}, reason, by=SERVICE)  # type: ignore[arg-type]  # a literal
