"""Compares Keyturn with the session middleware of Scalekit's SDK, both in two processes before the same stand-in.

    python3 dev.py conformance                  once: installs the SDK
    .venv/bin/python -m bench.federation        prints the table of docs/federation.md

Each row is a disturbance that meets a number of signed-in users at the moment at which their access token is refreshed.
Counted is who is signed out afterwards, when all is well again. The middleware is the unmodified one of the SDK, as its
documentation sets it up. The stand-in is that of the tests, which the SDK takes for Scalekit (tests/upstream/).
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx2

from app.storage.migrating import migrate
from tests.conftest import settings_of
from tests.federated_app import federated, federation_file
from tests.scalekit_sdk import MISSING, PYTHON, environment
from tests.sentinel import Sentinel
from tests.servers import Postgres, free_port
from tests.upstream.keys import Keys
from tests.upstream.upstream import Upstream

USERS = 20
HANGING = 3
"""Users of the row in which the issuer hangs: each one's answer takes half a minute."""
AT_ONCE = 5
LIFETIME = 12
"""Seconds that an access token of the stand-in lives. The middleware refreshes it ten seconds before its end."""
PATIENCE = 60.0
"""Seconds that a browser waits for an answer. Real ones wait longer."""


@dataclass
class Row:
    """One disturbance, and how many of how many users each side signed out."""

    name: str
    middleware: str = "-"
    keyturn: str = "-"


class Visitor:
    """A browser at the application with the middleware."""

    def __init__(self, client: httpx2.AsyncClient, ports: list[int]) -> None:
        self._client = client
        self._ports = ports
        self.cookie: str | None = None

    async def sign_in(self, email: str) -> None:
        to_issuer = await self._get(self._ports[0], "/login", None)
        state = to_issuer.headers["set-cookie"].partition(";")[0]
        back = await self._client.get(f"{to_issuer.headers['location']}&{urlencode({'login_hint': email})}")
        query = back.headers["location"].partition("?")[2]
        done = await self._get(self._ports[0], f"/callback?{query}", state)
        self._keep(done)
        assert self.cookie, done.text

    async def visit(self, process: int = 0, *, lost: bool = False) -> int:
        """Asks for a page that needs a session. A `lost` answer does not reach the browser."""
        answer = await self._get(self._ports[process], "/account", self.cookie)
        if not lost:
            self._keep(answer)
        return answer.status_code

    async def visits(self) -> None:
        """Several requests at once, spread over the processes. The answers change the cookie as they come."""
        cookie = self.cookie

        async def one(number: int) -> None:
            self._keep(await self._get(self._ports[number % len(self._ports)], "/account", cookie))

        await asyncio.gather(*(one(number) for number in range(AT_ONCE)))

    async def is_signed_out(self) -> bool:
        return await self.visit() != 200

    async def _get(self, port: int, path: str, cookie: str | None) -> httpx2.Response:
        fields = {"cookie": cookie} if cookie else {}
        return await self._client.get(f"http://127.0.0.1:{port}{path}", headers=fields)

    def _keep(self, answer: httpx2.Response) -> None:
        for value in answer.headers.get_list("set-cookie"):
            if value.startswith("sk_session="):
                pair = value.partition(";")[0]
                self.cookie = None if "Max-Age=0" in value or pair in {"sk_session=", 'sk_session=""'} else pair


class User:
    """A client of Keyturn."""

    def __init__(self, client: httpx2.AsyncClient, urls: list[str]) -> None:
        self._client = client
        self._urls = urls
        self._refresh_token = ""
        self._access_token = ""

    async def sign_in(self, subject_token: str) -> None:
        answer = await self._client.post(f"{self._urls[0]}/auth/exchange", json={"subject_token": subject_token})
        assert answer.status_code == 200, answer.text
        self._keep(answer)

    async def refresh(self, instance: int = 0, *, lost: bool = False) -> int:
        answer = await self._client.post(
            f"{self._urls[instance]}/auth/refresh", json={"refresh_token": self._refresh_token}
        )
        if not lost and answer.status_code == 200:
            self._keep(answer)
        return answer.status_code

    async def refreshes(self) -> None:
        token = self._refresh_token

        async def one(number: int) -> None:
            url = self._urls[number % len(self._urls)]
            answer = await self._client.post(f"{url}/auth/refresh", json={"refresh_token": token})
            if answer.status_code == 200:
                self._keep(answer)

        await asyncio.gather(*(one(number) for number in range(AT_ONCE)))

    async def is_signed_out(self) -> bool:
        return await self.refresh() != 200

    async def is_refused(self, instance: int) -> bool:
        fields = {"authorization": f"Bearer {self._access_token}"}
        return (await self._client.get(f"{self._urls[instance]}/auth/verify", headers=fields)).status_code == 401

    def _keep(self, answer: httpx2.Response) -> None:
        tokens = answer.json()
        self._refresh_token, self._access_token = tokens["refresh_token"], tokens["access_token"]


class Comparison:
    """Both sides before one stand-in."""

    def __init__(self, upstream: Upstream, client: httpx2.AsyncClient, ports: list[int], urls: list[str]) -> None:
        self._upstream = upstream
        self._client = client
        self._ports = ports
        self._urls = urls

    async def visitors(self, count: int = USERS, *, grace: int = 0) -> list[Visitor]:
        """Users of the middleware whose access token is due for a refresh."""
        self._upstream.settings(access_lifetime=LIFETIME, refresh_grace=grace)
        visitors = [Visitor(self._client, self._ports) for _ in range(count)]
        for number, visitor in enumerate(visitors):
            await visitor.sign_in(f"visitor{number}-{secrets.token_hex(3)}@example.com")
        await asyncio.sleep(LIFETIME - 9)
        return visitors

    async def users(self, count: int = USERS) -> list[User]:
        """Users of Keyturn."""
        self._upstream.settings(access_lifetime=300)
        users = [User(self._client, self._urls) for _ in range(count)]
        for number, user in enumerate(users):
            await user.sign_in(self._upstream.sign_in(f"user{number}-{secrets.token_hex(3)}@example.com").access_token)
        return users

    async def rows(self) -> AsyncIterator[Row]:
        for second, where in ((0, "the same process"), (1, "another process")):
            for grace in (0, 30):
                # A second try within one process is answered from its memory, so the grace of the issuer plays no part.
                if grace and not second:
                    continue
                name = f"the answer to the browser is lost, the next request reaches {where}"
                visitors = await self.visitors(grace=grace)
                for visitor in visitors:
                    await visitor.visit(0, lost=True)
                    await visitor.visit(second)
                users = await self.users()
                for user in users:
                    await user.refresh(0, lost=True)
                    await user.refresh(second)
                yield Row(f"{name}{_grace(grace) if second else ''}", await _out(visitors), await _out(users))
        for grace in (0, 30):
            visitors = await self.visitors(grace=grace)
            for visitor in visitors:
                await visitor.visits()
            users = await self.users()
            for user in users:
                await user.refreshes()
            name = f"{AT_ONCE} requests at once, on two processes{_grace(grace)}"
            yield Row(name, await _out(visitors), await _out(users))
        for name, disturb in (
            ("the issuer's answer to a refresh is lost", lambda: self._upstream.fault("/oauth/token", "lost")),
            ("the issuer answers 503 for a moment", lambda: self._upstream.fault("/", "status", status=503)),
            ("the issuer refuses connections for a moment", self._upstream.refuse),
            ("the issuer has rotated its keys", self._upstream.rotate),
        ):
            yield await self._disturbed(name, disturb)
        yield await self._hanging()
        yield await self._revoked()

    async def _disturbed(self, name: str, disturb: Callable[[], Any]) -> Row:
        visitors, users = await self.visitors(grace=30), await self.users()
        await asyncio.sleep(1)  # the users' sign-in took some time, in which the visitors became due
        disturb()
        for visitor in visitors:
            await visitor.visit()
        for user in users:
            await user.refresh()
        self._upstream.heal()
        row = Row(name, await _out(visitors), await _out(users))
        # The middleware never reads the key set again, so the next row needs the first key.
        self._upstream.publish(self._upstream.keys.rsa(1))
        return row

    async def _hanging(self) -> Row:
        visitors, users = await self.visitors(HANGING, grace=30), await self.users(HANGING)
        self._upstream.fault("/", "hang")
        slowest = [0.0, 0.0]

        async def timed(side: int, act: Callable[[], Awaitable[int]]) -> None:
            began = time.monotonic()
            await act()
            slowest[side] = max(slowest[side], time.monotonic() - began)

        await asyncio.gather(*(timed(0, visitor.visit) for visitor in visitors))
        await asyncio.gather(*(timed(1, user.refresh) for user in users))
        self._upstream.heal()
        outs = [await _out(visitors), await _out(users)]
        sides = [f"{out}, answered after {took:.2f} s" for out, took in zip(outs, slowest, strict=True)]
        return Row("the issuer takes connections and does not answer", *sides)

    async def _revoked(self) -> Row:
        """The seconds in which a session that was logged out at the issuer still opens pages."""
        self._upstream.settings(access_lifetime=40)
        visitor = Visitor(self._client, self._ports)
        email = f"revoked-{secrets.token_hex(3)}@example.com"
        await visitor.sign_in(email)
        login = self._upstream.sign_in(email)
        [user] = [User(self._client, self._urls)]
        await user.sign_in(login.access_token)
        self._upstream.send_to(back_channel=(f"{self._urls[1]}/federation/acme/logout",))
        for session in self._upstream.call("sessions_of", user_id=login.user_id):
            self._upstream.end(session)
        ended = time.monotonic()
        self._upstream.tried(2)
        refused = [await user.is_refused(instance) for instance in (0, 1)]
        here = "refused at once on both" if all(refused) else "STILL VALID"
        while await visitor.visit() == 200 and time.monotonic() - ended < PATIENCE:
            await asyncio.sleep(0.2)
        took = time.monotonic() - ended
        return Row("the session is logged out at the issuer", f"pages for {took:.0f} s more (token of 40 s)", here)


def _grace(seconds: int) -> str:
    return f" (issuer takes a used refresh token for {seconds} s more)" if seconds else " (issuer takes it once)"


async def _out(people: list[Visitor] | list[User]) -> str:
    out = [await person.is_signed_out() for person in people]
    return f"{sum(out)} of {len(out)} signed out"


@asynccontextmanager
async def _middleware(upstream: Upstream, folder: Path, count: int = 2) -> AsyncIterator[list[int]]:
    """Processes of one application with the middleware."""
    ports = [free_port() for _ in range(count)]
    values = {
        **environment(upstream),
        "CLIENT_ID": upstream.client_id,
        "CLIENT_SECRET": upstream.client_secret,
        "ENV_URL": upstream.url,
        "REDIRECT_URI": f"http://127.0.0.1:{ports[0]}/callback",
        "COOKIE_SECRET": secrets.token_urlsafe(32),
    }
    sentinels = []
    try:
        for port in ports:
            sentinel = Sentinel()
            sentinels.append(sentinel)
            log = folder / f"middleware-{port}.log"
            words = ["-m", "uvicorn", "--factory", "tests.upstream.middleware_app:create", "--port", str(port)]
            sentinel.run([PYTHON, *words], environment=values, log=log)
            code = sentinel.wait(60, lambda log=log: "startup complete" in log.read_text())  # type: ignore[misc]
            assert code is None, log.read_text()
        yield ports
    finally:
        for sentinel in sentinels:
            sentinel.close()


async def main() -> None:
    if MISSING:
        sys.exit(MISSING)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        keys = Keys(folder)
        upstream = stack.enter_context(Upstream.start(keys))
        postgres = stack.enter_context(Postgres.start())
        await postgres.create_database("compare")
        await asyncio.to_thread(migrate, settings_of(postgres.url("compare"), None))
        file = federation_file(folder, upstream.toml("acme"))
        instances = [stack.enter_context(federated(file, folder, postgres.url("compare"))) for _ in range(2)]
        ports = await stack.enter_async_context(_middleware(upstream, folder))
        client = await stack.enter_async_context(httpx2.AsyncClient(verify=False, trust_env=False, timeout=PATIENCE))
        client.cookies.jar.set_policy(_no_cookies())
        comparison = Comparison(upstream, client, ports, [instance.url for instance in instances])
        print(f"{os.cpu_count()} cores, {USERS} users of each side in each row\n", flush=True)
        print("| disturbance | the SDK's middleware | Keyturn |\n|---|---|---|", flush=True)
        async for row in comparison.rows():
            print(f"| {row.name} | {row.middleware} | {row.keyturn} |", flush=True)


def _no_cookies() -> Any:
    return DefaultCookiePolicy(allowed_domains=[])


if __name__ == "__main__":
    asyncio.run(main())
