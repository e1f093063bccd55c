"""Counts the files of app/ on the way of a request, and the hand-overs between them.

    .venv/bin/python -m bench.way 2>/dev/null           prints a table; the service logs to stderr
    .venv/bin/python -m bench.way --list 2>/dev/null    prints the hand-overs as well, in order

A hand-over is a call from a function in one file of app/ to a function in another file. If a library (FastAPI,
uvicorn) stands between the two, the nearest function of app/ below it is the caller. A function counts once in a
request, even if it is called or resumed again. The reading of a property is no call.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import threading
from base64 import b64encode
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from os import urandom
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send

from app import log
from app.actors import SERVICE
from app.http.protocol import KeyturnHttpProtocol
from app.main import create_app
from app.settings import Settings, read
from app.storage.migrating import migrate
from bench.report import table
from bench.sessions import PASSWORD
from tests.servers import Postgres, Redis, free_port
from tests.service import ROOT

APP = f"{ROOT / 'app'}/"
EMAIL = "ada@example.com"
TRIES = 5
"""How often each request is recorded; the smallest count is taken."""

_background: ContextVar[bool] = ContextVar("background", default=False)
"""True in the tasks that the application starts at its own start, such as the one that watches Redis."""


@dataclass
class Way:
    """The way of one request: the files it passed and the hand-overs between them."""

    files: list[str] = field(default_factory=list)
    hand_overs: list[tuple[str, str]] = field(default_factory=list)


class Recorder:
    """A profile function (sys.setprofile) that records the calls within app/ while it is on."""

    def __init__(self) -> None:
        self.on = False
        self._begin()

    def _begin(self) -> None:
        self._seen: dict[FrameType, None] = {}  # holds the frames, so that no id is used again
        self.way = Way()

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> None:
        if not self.on or event != "call" or frame in self._seen or not _is_ours(frame) or _background.get():
            return
        self._seen[frame] = None
        file, caller = _file(frame), frame.f_back
        if file not in self.way.files:
            self.way.files.append(file)
        while caller is not None and not _is_ours(caller):
            caller = caller.f_back
        if caller is not None and _file(caller) != file and not _is_property(frame):
            name = _name(frame)
            if all(name != called for _, called in self.way.hand_overs):
                self.way.hand_overs.append((_name(caller), name))

    async def record(self, act: Callable[[], Awaitable[None]]) -> Way:
        """Records the calls while `act` runs, and for 5 ms more."""
        self._begin()
        self.on = True
        await act()
        await asyncio.sleep(0.005)  # the access line is written after the answer
        self.on = False
        return self.way


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(APP)


def _is_property(frame: FrameType) -> bool:
    owner, _, name = frame.f_code.co_qualname.rpartition(".")
    return isinstance(getattr(frame.f_globals.get(owner), name, None), property)


def _file(frame: FrameType) -> str:
    return frame.f_code.co_filename.removeprefix(APP)


def _name(frame: FrameType) -> str:
    return f"{_file(frame)}:{frame.f_code.co_qualname}"


class Client:
    """A client with one connection, and the tokens that it holds."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.tokens: dict[str, Any] = {}

    async def ask(self, method: str, path: str, body: dict[str, str] | None = None, bearer: str = "") -> dict[str, Any]:
        """Returns the answer's JSON. Raises RuntimeError if the status is no success."""
        content = json.dumps(body).encode() if body else b""
        head = [f"{method} {path} HTTP/1.1", "Host: x"]
        head += ["Content-Type: application/json", f"Content-Length: {len(content)}"] if body else []
        head += [f"Authorization: Bearer {bearer}"] if bearer else []
        self._writer.write("".join(f"{line}\r\n" for line in [*head, ""]).encode() + content)
        fields = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        _, _, length = fields.partition("content-length: ")
        answer = await self._reader.readexactly(int(length.partition("\r\n")[0])) if length else b""
        if not fields.startswith("http/1.1 20"):
            raise RuntimeError(f"{method} {path}: {fields}{answer.decode()}")
        return json.loads(answer) if answer else {}

    async def login(self) -> None:
        self.tokens = await self.ask("POST", "/auth/login", {"email": EMAIL, "password": PASSWORD})

    async def refresh(self) -> None:
        self.tokens |= await self.ask("POST", "/auth/refresh", {"refresh_token": self.tokens["refresh_token"]})

    async def verify(self) -> None:
        await self.ask("GET", "/auth/verify", bearer=self.tokens["access_token"])

    async def logout(self) -> None:
        await self.ask("POST", "/auth/logout", {"refresh_token": self.tokens["refresh_token"]})


async def ways(settings: Settings) -> dict[str, Way]:
    """Starts the application with these settings, and records the ways of login, refresh, verify and logout."""
    app = create_app(settings)

    async def marked(scope: Scope, receive: Receive, send: Send) -> None:
        _background.set(scope["type"] == "lifespan")
        await app(scope, receive, send)

    port, recorder = free_port(), Recorder()
    log.configure(settings.log_level)
    config = uvicorn.Config(
        marked,
        port=port,
        http=KeyturnHttpProtocol,
        ws="none",
        lifespan="on",
        log_config=log.logging_config(settings.log_level),
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )
    server = uvicorn.Server(config)
    threading.setprofile(recorder)  # before the threads start that hash passwords
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    await app.state.keyturn.users.create(EMAIL, PASSWORD, "user", by=SERVICE)
    await asyncio.sleep(6)  # until Redis is filled, so that it answers for the tokens issued from now on
    client = Client(*await asyncio.open_connection("127.0.0.1", port))
    found: dict[str, list[Way]] = {"refresh": [], "logout": [], "verify": [], "login": []}
    sys.setprofile(recorder)
    for _ in range(TRIES + 1):
        for name in ("login", "refresh", "verify", "logout"):
            found[name].append(await recorder.record(getattr(client, name)))
    sys.setprofile(None)
    server.should_exit = True
    await serving
    # The first round is left out, because it finds the caches empty.
    return {name: min(some[1:], key=lambda way: len(way.hand_overs)) for name, some in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.way", description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print the hand-overs too, in order")
    given = parser.parse_args()
    with Postgres.start() as postgres, Redis.start() as redis, TemporaryDirectory() as folder:
        secret = Path(folder) / "secret"
        secret.touch(mode=0o600)
        secret.write_text(b64encode(urandom(32)).decode(), encoding="ascii")
        settings = read(
            {
                "KEYTURN_DATABASE_URL": postgres.url(),
                "KEYTURN_REDIS_URL": redis.url(),
                "KEYTURN_SECRET_FILE": str(secret),
                "KEYTURN_ISSUER": "https://auth.example.com",
                "KEYTURN_ARGON2_MEMORY": "8",
                "KEYTURN_ARGON2_PASSES": "1",
                "KEYTURN_ARGON2_LANES": "1",
            }
        )
        migrate(settings)
        found = asyncio.run(ways(settings))
    lines = [[name, str(len(way.files)), str(len(way.hand_overs))] for name, way in found.items()]
    print(table(["request", "files", "hand-overs"], lines))
    if given.list:
        for name, way in found.items():
            print(f"\n{name}: {', '.join(way.files)}\n")
            for number, (caller, called) in enumerate(way.hand_overs, 1):
                print(f"{number:3}  {caller} -> {called}")


if __name__ == "__main__":
    main()
