"""The service that knows breached passwords: what it learns, and what becomes of a sign-up when it is away.

The service here is a real HTTPS server of the form that haveibeenpwned.com documents (API v3, range).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from app.actors import SERVICE
from app.errors import ConfigurationError, InvalidRequest
from app.keyturn import Keyturn
from app.outgoing.sending import MOST_BYTES
from app.users import breached_passwords
from tests.api import ADA, BOB
from tests.command_line import Command
from tests.conftest import CHEAP, NEW_PASSWORD, PASSWORD, SECRET, Opener, settings_of
from tests.servers import free_port
from tests.test_fetching import certificate_for

BREACHED = "a sound password that was in a breach"
ISSUER = "https://auth.example.com"
PADDED = "a sound password that padding hits"
pytestmark = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)


def sha1(password: str) -> str:
    return hashlib.sha1(password.encode()).hexdigest().upper()


@dataclass
class Range:
    """The service."""

    port: int
    folder: Path
    heads: list[str] = field(default_factory=list)
    behaviour: str = "right"
    release: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "password_range_url": f"https://localhost:{self.port}/range/",
            "password_range_ca_file": self.folder / "ca.pem",
            "password_range_private": "true",
        }

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        status, body = "200 OK", self._lines(head.split()[1].rpartition("/")[2])
        match self.behaviour:
            case "down":
                status = "503 Service Unavailable"  # its body is as always, so that the status alone says so
            case "moved":
                status, body = "302 Found", ""
            case "page":
                body = "<html>Please sign in to this network</html>"
            case "huge":
                body = "x" * (MOST_BYTES + 1)
            case "hangs":
                await self.release.wait()
        if self.behaviour != "breaks off":
            writer.write(
                f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()
            )
        writer.close()

    def _lines(self, prefix: str) -> str:
        known = [f"{digest[5:]}:3" for digest in (sha1(BREACHED),) if digest.startswith(prefix)]
        padding = [f"{sha1(PADDED)[5:]}:0"] + [f"{sha1(str(n))[5:]}:{n % 2}" for n in range(800)]
        return "\r\n".join([*padding[:400], *known, *padding[400:]])


@asynccontextmanager
async def a_range(folder: Path) -> AsyncIterator[Range]:
    certificate_for(folder, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    service = Range(free_port(), folder)
    server = await asyncio.start_server(service.answer, "127.0.0.1", service.port, ssl=context)
    try:
        yield service
    finally:
        service.release.set()
        server.close()
        await server.wait_closed()


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Range]:
    async with a_range(tmp_path) as service:
        yield service


async def test_a_breached_password_is_refused_and_the_service_learns_20_bits_of_its_digest(
    open_keyturn: Opener, service: Range
) -> None:
    async with open_keyturn(**service.settings) as keyturn:
        with pytest.raises(InvalidRequest, match="breached") as caught:
            await keyturn.users.create(ADA, BREACHED, by=SERVICE)
        assert caught.value.description.startswith("password: is known from a breach")
        assert BREACHED not in caught.value.description
        await keyturn.users.create(ADA, PASSWORD, by=SERVICE)
    asked = [head.splitlines()[0] for head in service.heads]
    assert asked == [f"GET /range/{sha1(password)[:5]} HTTP/1.1" for password in (BREACHED, PASSWORD)]
    for head in service.heads:
        assert "add-padding: true" in head.lower()
        assert not any(sha1(password)[5:11] in head for password in (BREACHED, PASSWORD))


async def test_padding_is_no_breach(open_keyturn: Opener, service: Range) -> None:
    async with open_keyturn(**service.settings) as keyturn:
        await keyturn.users.create(ADA, PADDED, by=SERVICE)
    assert len(service.heads) == 1


async def test_what_another_rule_refuses_is_not_sent_and_a_made_password_neither(
    open_keyturn: Opener, service: Range
) -> None:
    async with open_keyturn(**service.settings) as keyturn:
        for password in ("short", "passwordpassword", "aaaaaaaaaaaaaaaa"):
            with pytest.raises(InvalidRequest):
                await keyturn.users.create(ADA, password, by=SERVICE)
        user = await keyturn.users.create(ADA, "made by Keyturn", initial=True, by=SERVICE)
        await keyturn.users.reset_password(user.id, by=SERVICE)
        assert service.heads == []


async def test_a_change_asks_only_after_the_current_password_was_right(open_keyturn: Opener, service: Range) -> None:
    async with open_keyturn(**service.settings) as keyturn:
        user = await keyturn.users.create(ADA, PASSWORD, by=SERVICE)
        proof = await keyturn.sign_in.authenticate(ADA, PASSWORD)
        tokens = await keyturn.starting.start(proof, by=SERVICE)
        service.heads.clear()

        async def change(current: str, new: str) -> None:
            await keyturn.users.change_password(tokens.session_id, user.id, current, new, by=SERVICE)

        with pytest.raises(Exception, match="wrong password"):
            await change("not the current one", BREACHED)
        assert service.heads == []
        with pytest.raises(InvalidRequest, match="breached") as caught:
            await change(PASSWORD, BREACHED)
        assert caught.value.description.startswith("new_password: ")
        await change(PASSWORD, NEW_PASSWORD)
        with pytest.raises(InvalidRequest, match="breached"):
            await keyturn.users.set_password(user.id, BREACHED, by=SERVICE)


async def test_a_sign_in_asks_nobody(open_keyturn: Opener, service: Range) -> None:
    async with open_keyturn() as before:
        await before.users.create(ADA, BREACHED, by=SERVICE)
    async with open_keyturn(**service.settings) as keyturn:
        await keyturn.sign_in.authenticate(ADA, BREACHED)
    assert service.heads == []


@pytest.mark.parametrize("behaviour", ["down", "moved", "page", "huge", "breaks off", "hangs"])
async def test_a_service_that_is_away_slow_or_odd_refuses_nobody_and_is_left_alone_for_a_while(
    open_keyturn: Opener, service: Range, behaviour: str
) -> None:
    service.behaviour = behaviour
    async with open_keyturn(**service.settings) as keyturn:
        await keyturn.users.create(ADA, BREACHED, by=SERVICE)
        assert len(service.heads) == 1
        service.behaviour = "right"
        await keyturn.users.create(BOB, BREACHED, by=SERVICE)
        assert len(service.heads) == 1, "not asked again so soon"
        keyturn.password_rules.breached._again_at = float("-inf")  # the while is over
        with pytest.raises(InvalidRequest, match="breached"):
            await keyturn.users.create("carol@example.com", BREACHED, by=SERVICE)


async def test_more_than_eight_at_a_time_do_not_wait_for_the_service(open_keyturn: Opener, service: Range) -> None:
    service.behaviour = "hangs"
    async with open_keyturn(**service.settings) as keyturn:
        breached = keyturn.password_rules.breached
        asking = [asyncio.ensure_future(breached.has(BREACHED)) for _ in range(breached_passwords.MOST)]
        while len(service.heads) < breached_passwords.MOST:
            await asyncio.sleep(0.01)
        assert await breached.has(BREACHED) is False
        assert len(service.heads) == breached_passwords.MOST
        service.release.set()
        assert await asyncio.gather(*asking) == [True] * breached_passwords.MOST
        assert await breached.has(BREACHED) is True


async def test_nobody_is_asked_if_no_service_is_set(keyturn: Keyturn) -> None:
    assert not keyturn.password_rules.breached.are_asked_for
    assert await keyturn.password_rules.breached.has("password") is False


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"password_range_url": "http://localhost/range"}, "KEYTURN_PASSWORD_RANGE_URL must begin with https://"),
        (
            {"password_range_url": "https://user:secret@localhost/"},
            "KEYTURN_PASSWORD_RANGE_URL must begin with https://",
        ),
        (
            {"password_range_url": "https://localhost/?key=secret"},
            "KEYTURN_PASSWORD_RANGE_URL must begin with https://",
        ),
        ({"password_range_private": "true"}, "KEYTURN_PASSWORD_RANGE_PRIVATE need KEYTURN_PASSWORD_RANGE_URL"),
        ({"password_range_ca_file": "/ca.pem"}, "KEYTURN_PASSWORD_RANGE_PRIVATE need KEYTURN_PASSWORD_RANGE_URL"),
        ({"password_length": 7}, "KEYTURN_PASSWORD_LENGTH: must be 8 to 64"),
        ({"password_length": 65}, "KEYTURN_PASSWORD_LENGTH: must be 8 to 64"),
    ],
)
def test_settings_that_can_not_work_stop_the_start(settings: dict[str, Any], said: str, engine: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings_of("sqlite+aiosqlite:///x.db", None, **settings)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value).replace("KEYTURN_SECRET", "")


async def test_the_address_of_a_service_must_be_public_unless_the_operator_says_otherwise(
    open_keyturn: Opener, service: Range
) -> None:
    async with open_keyturn(**service.settings | {"password_range_private": "false"}) as keyturn:
        await keyturn.users.create(ADA, BREACHED, by=SERVICE)
    assert service.heads == []


@contextmanager
def a_range_in_a_thread(folder: Path) -> Iterator[Range]:
    """The service beside a command, which needs the main thread for itself."""
    began: Future[tuple[Range, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        async with a_range(folder) as service:
            over = asyncio.Event()
            began.set_result((service, asyncio.get_running_loop(), over))
            await over.wait()

    with ThreadPoolExecutor(1) as thread:
        served = thread.submit(asyncio.run, serve())
        service, loop, over = began.result(timeout=30)
        try:
            yield service
        finally:
            loop.call_soon_threadsafe(over.set)
            served.result()


def test_doctor_says_whether_the_service_answers(
    database_url: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    values = {"database_url": database_url, "redis_url": "none", "secret": SECRET, "issuer": ISSUER, **CHEAP}

    def line(more: dict[str, Any]) -> dict[str, Any]:
        environment = {f"KEYTURN_{name.upper()}": str(value) for name, value in {**values, **more}.items()}
        said = json.loads(Command(environment, capsys)("doctor", "--json").out)
        [found] = [each for each in said if each["check"].startswith("new passwords:")]
        assert isinstance(found, dict)
        return found

    with a_range_in_a_thread(tmp_path) as service:
        good = line(service.settings)
        assert good["ok"]
        assert good["check"].endswith("breached passwords is asked")
        service.behaviour = "down"
        assert line(service.settings)["advice"].startswith("away: the range API of breached passwords")
