"""The server at Redis's address is not the intended Redis, or refuses the commands that Keyturn sends.

The database answers in its place. The doctor and the log say what is wrong, and reveal no secret.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis as redis_sync
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from redis import asyncio as redis_asyncio

from app.actors import SERVICE
from app.commands import examinations
from app.errors import InvalidToken
from app.keyturn import Keyturn, opened
from app.storage.migrating import migrate
from tests.conftest import CHEAP, PASSWORD, SECRET, Opener, a_user, settings_of
from tests.instances import report_to
from tests.servers import Postgres, Redis, free_port
from tests.service import Service

PAGE = Path(__file__).parent.parent / "docs" / "redis.md"
PASSWORD_OF_REDIS = "the-password-of-redis"


@pytest.fixture
def engine() -> str:
    return "postgres"


@pytest.fixture(scope="module")
def guarded() -> Iterator[Redis]:
    """A Redis that demands a password."""
    with Redis.start() as server:
        with redis_sync.Redis.from_url(server.url()) as client:
            client.config_set("requirepass", PASSWORD_OF_REDIS)
        yield server


@pytest.mark.parametrize("wrong", ["password", "tls", "another service", "nobody"])
async def test_a_redis_that_is_none_costs_a_moment_and_decides_nothing(
    open_keyturn: Opener, guarded: Redis, redis: Redis, postgres: Postgres, wrong: str
) -> None:
    url = {
        "password": guarded.url().replace("redis://", "redis://:not-the-password@"),
        "tls": redis.url().replace("redis://", "rediss://"),
        "another service": f"redis://127.0.0.1:{postgres.port}",
        "nobody": "redis://127.0.0.1:1",
    }[wrong]
    async with open_keyturn(redis_url=url) as keyturn:
        noted: list[str] = []
        report_to(keyturn, lambda event, level, **_: noted.append(f"{level} {event}"))
        tokens = await keyturn.starting.start(await a_user(keyturn), by=SERVICE)
        await keyturn.reading.verify(tokens.access_token)
        newer = await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)
        await keyturn.ending.logout((), [newer.refresh_token], "this", by=SERVICE)
        for token in (tokens.access_token, newer.access_token):
            with pytest.raises(InvalidToken) as caught:
                await keyturn.reading.verify(token)
            assert caught.value.reason == "logout"
        await asyncio.sleep(1.2)  # enough for two more tries of the watch loop
        assert await keyturn.revocations.ping() == keyturn.revocations.rebuild.cache == "away"
        assert noted in ([], ["warning redis_away"])  # the process notes the outage once, after any number of tries


# -- messages to the operator


def self_signed(folder: Path) -> Path:
    """Writes a file with a self-signed certificate for localhost and its key."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    certificate = builder.add_extension(names, critical=True).sign(key, hashes.SHA256())
    encodings = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path = folder / "certificate.pem"
    path.write_bytes(key.private_bytes(*encodings) + certificate.public_bytes(serialization.Encoding.PEM))
    return path


class Wrong:
    """Servers that are wrong in one way each. Each method gives the URL of one."""

    def __init__(self, stack: ExitStack, loop: AsyncExitStack, postgres: Postgres, folder: Path) -> None:
        self._stack, self._loop, self._postgres, self._folder = stack, loop, postgres, folder

    async def _redis(self, *settings: str, commands: tuple[tuple[str, ...], ...] = ()) -> Redis:
        server = self._stack.enter_context(await asyncio.to_thread(Redis.start, settings=list(settings)))
        async with redis_asyncio.Redis.from_url(server.url()) as client:
            for command in commands:
                await client.execute_command(*command)
        return server

    async def _with_rights(self, *rights: str, database: int = 0) -> str:
        user = ("ACL", "SETUSER", "keyturn", "on", f">{PASSWORD_OF_REDIS}", *rights)
        server = await self._redis(commands=(user,))
        return server.url(database).replace("redis://", f"redis://keyturn:{PASSWORD_OF_REDIS}@")

    async def wrong_password(self) -> str:
        return (await self._with_rights("~*", "+@all")).replace(PASSWORD_OF_REDIS, "x" + PASSWORD_OF_REDIS)

    async def no_password(self) -> str:
        return (await self._redis(commands=(("CONFIG", "SET", "requirepass", PASSWORD_OF_REDIS),))).url()

    async def no_info(self) -> str:
        return await self._with_rights("~*", "+@all", "-info")

    async def no_select(self) -> str:
        return await self._with_rights("~*", "+@all", "-select", database=2)

    async def no_getex(self) -> str:
        return await self._with_rights("~*", "+@all", "-getex")

    async def no_mget(self) -> str:
        return await self._with_rights("~*", "+@all", "-mget")

    async def no_set(self) -> str:
        return await self._with_rights("~*", "+@all", "-set")

    async def no_scripts(self) -> str:
        return await self._with_rights("~*", "+@all", "-@scripting")

    async def no_keys(self) -> str:
        return await self._with_rights("~another:*", "+@all")

    async def only_the_keys_of_sessions(self) -> str:
        return await self._with_rights("~{keyturn}:revoked:*", "+@all")

    async def no_such_database(self) -> str:
        return (await self._redis("--databases", "4")).url(7)

    async def tls_to_a_plain_port(self) -> str:
        return (await self._redis()).url().replace("redis://", "rediss://")

    async def plain_to_a_tls_port(self) -> str:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self_signed(self._folder))
        server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
        self._loop.push_async_callback(server.wait_closed)
        self._loop.callback(server.close)
        return f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def a_certificate_of_nobody(self) -> str:
        return (await self.plain_to_a_tls_port()).replace("redis://", "rediss://")

    async def another_service(self) -> str:
        return f"redis://127.0.0.1:{self._postgres.port}"

    async def a_web_server(self) -> str:
        async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        self._loop.callback(server.close)
        return f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def nobody(self) -> str:
        return f"redis://127.0.0.1:{free_port()}"

    async def a_name_that_nobody_has(self) -> str:
        return "redis://no-such-host.invalid:6379"

    async def a_replica(self) -> str:
        master = await self._redis()
        return (await self._redis("--replicaof", "127.0.0.1", str(master.port))).url()

    async def a_replica_alone(self) -> str:
        return (await self._redis("--replicaof", "127.0.0.1", "1", "--replica-serve-stale-data", "no")).url()

    async def full(self) -> str:
        server = await self._redis(commands=(("SET", "x", "x" * 500_000), ("CONFIG", "SET", "maxmemory", "1000")))
        return server.url()

    async def can_not_persist(self) -> str:
        server = await self._redis("--save", "3600 1")
        server.snapshot_file.mkdir()
        async with redis_asyncio.Redis.from_url(server.url()) as client:
            await client.execute_command("SET", "x", "1")
            await client.execute_command("BGSAVE")
            async with asyncio.timeout(10):
                while (await client.info("persistence"))["rdb_last_bgsave_status"] == "ok":
                    await asyncio.sleep(0.05)
        return server.url()

    async def too_few_replicas(self) -> str:
        return (await self._redis("--min-replicas-to-write", "1")).url()

    async def loading(self) -> str:
        server = await self._redis("--rdbcompression", "no")
        async with redis_asyncio.Redis.from_url(server.url()) as client:
            await client.mset({f"x{n}": "x" * 500 for n in range(500)})
        server.snapshot()
        server.stop()
        slow = ["--key-load-delay", "20000", "--loading-process-events-interval-bytes", "1024"]
        server._command += slow
        server._ready = lambda: "Loading RDB" in server._log()  # type: ignore[method-assign]  # before it is ready
        await asyncio.to_thread(server.restart, keep_data=True)
        return server.url()

    async def a_command_of_another_name(self) -> str:
        return (await self._redis("--rename-command", "GETEX", "")).url()

    async def a_cluster(self) -> str:
        return (await self._redis("--cluster-enabled", "yes")).url()

    async def too_many_clients(self) -> str:
        server = await self._redis("--maxclients", "1")
        client = await self._loop.enter_async_context(redis_asyncio.Redis.from_url(server.url()))
        await client.ping()
        return server.url()

    async def one_that_evicts(self) -> str:
        return (await self._redis("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")).url()


SAID: dict[Any, str] = {
    Wrong.wrong_password: "refuses user or password",
    Wrong.no_password: "wants a password",
    Wrong.no_info: "no right to the command info",
    Wrong.no_select: "no right to the command select",
    Wrong.no_getex: "no right to the command getex",
    Wrong.no_mget: "no right to the command mget",
    Wrong.no_set: "no right to the command set",
    Wrong.no_scripts: "no right to the command eval",
    Wrong.no_keys: "no right to a key",
    Wrong.only_the_keys_of_sessions: "no right to a key",
    Wrong.no_such_database: "no database of this number",
    Wrong.tls_to_a_plain_port: "no TLS: is it a plain port (redis://)?",
    Wrong.plain_to_a_tls_port: "one that wants TLS (rediss://)",
    Wrong.a_certificate_of_nobody: "has a certificate that is not accepted",
    Wrong.another_service: "no Redis",
    Wrong.a_web_server: "no Redis",
    Wrong.nobody: "can't be reached (Connection refused)",
    Wrong.a_name_that_nobody_has: "can't be reached",
    Wrong.a_replica: "is a replica, which can't be written",
    Wrong.a_replica_alone: "is a replica that has lost its master",
    Wrong.full: "is full (maxmemory)",
    Wrong.can_not_persist: "can't persist",
    Wrong.too_few_replicas: "too few replicas",
    Wrong.loading: "is loading its data",
    Wrong.a_command_of_another_name: "does not know a command of Redis 6.2, or not under its name",
    Wrong.a_cluster: "is a cluster",
    Wrong.too_many_clients: "as many clients as it takes",
    Wrong.one_that_evicts: "noeviction",
}


@pytest.fixture
async def wrong(postgres: Postgres, tmp_path: Path) -> AsyncIterator[Wrong]:
    with ExitStack() as stack:
        async with AsyncExitStack() as loop:
            yield Wrong(stack, loop, postgres, tmp_path)


@pytest.mark.parametrize("which", SAID, ids=lambda which: which.__name__)
async def test_the_doctor_and_the_log_say_what_is_wrong_with_redis(
    open_keyturn: Opener, wrong: Wrong, which: Callable[[Wrong], Coroutine[Any, Any, str]]
) -> None:
    async with open_keyturn(redis_url=await which(wrong)) as keyturn:
        noted: list[str] = []
        report_to(keyturn, lambda event, detail, **_: noted.append(f"{event}: {detail}"))
        advice = await diagnosis(keyturn)
        async with asyncio.timeout(5):
            while not any(SAID[which] in line for line in noted):
                await asyncio.sleep(0.05)
        assert SAID[which] in advice
        assert "not filled" not in advice
        assert await keyturn.revocations.ping() != "complete"
        tokens = await keyturn.starting.start(await a_user(keyturn), by=SERVICE)
        await keyturn.reading.verify(tokens.access_token)
        assert PASSWORD_OF_REDIS not in f"{advice}{noted}"


async def diagnosis(keyturn: Keyturn) -> str:
    (finding,) = [finding async for finding in examinations._redis(keyturn)]
    return finding.advice


async def test_the_doctor_sees_that_redis_is_another_than_the_one_that_is_used(
    open_keyturn: Opener, redis: Redis
) -> None:
    async with open_keyturn(redis_url=redis.url(3)) as keyturn:
        async with asyncio.timeout(15):
            while await keyturn.revocations.ping() != "complete":
                await asyncio.sleep(0.05)
        assert await diagnosis(keyturn) == ""
        async with open_keyturn(redis_url=redis.url(4)) as apart:
            assert "another database of it" in await diagnosis(apart)


# -- the rights that suffice


def rights() -> list[str]:
    """The words of the ACL rule in docs/redis.md."""
    (line,) = [line for line in PAGE.read_text().splitlines() if line.startswith("ACL SETUSER keyturn ")]
    return line.replace("PASSWORD", PASSWORD_OF_REDIS).split()


async def test_a_user_with_the_rights_that_the_readme_names_suffices_for_the_whole_service(
    postgres: Postgres, logs: Path
) -> None:
    await postgres.create_database("rights")
    url = postgres.url("rights")
    await asyncio.to_thread(migrate, settings_of(url, None))
    async with opened(settings_of(url, None)) as keyturn:
        await keyturn.users.create("ada@example.com", PASSWORD, "user", by=SERVICE)
    with Redis.start() as server:
        async with redis_asyncio.Redis.from_url(server.url()) as admin:
            await admin.execute_command(*rights())
            await admin.execute_command("ACL", "LOG", "RESET")
            environment = {
                "KEYTURN_DATABASE_URL": url,
                "KEYTURN_REDIS_URL": server.url(2).replace("redis://", f"redis://keyturn:{PASSWORD_OF_REDIS}@"),
                "KEYTURN_SECRET": SECRET,
                "KEYTURN_ISSUER": "https://auth.example.com",
                **{f"KEYTURN_{name.upper()}": value for name, value in CHEAP.items()},
            }
            with await asyncio.to_thread(Service.start, environment, logs=logs) as service:
                async with httpx2.AsyncClient(base_url=service.url, trust_env=False, timeout=20) as client:
                    await through_its_life(client, admin)
                events = {json.loads(line)["event"] for line in service.text().splitlines() if line.startswith("{")}
                assert not {event for event in events if event.startswith("redis")} - {"redis_complete"}
            denied = [entry["object"] for entry in await admin.acl_log()]
            assert set(denied) <= {"client|setinfo"}, "the driver's own, which does without"


async def through_its_life(client: httpx2.AsyncClient, admin: redis_asyncio.Redis) -> None:
    async def complete() -> None:
        async with asyncio.timeout(20):
            while (await client.get("/readyz")).json()["cache"] != "complete":
                await asyncio.sleep(0.05)

    async def post(path: str, status: int, **body: str) -> Any:
        answer = await client.post(f"/auth/{path}", json=body)
        assert answer.status_code == status
        return answer.json() if answer.content else None

    async def verify(tokens: dict[str, str], status: int) -> None:
        bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
        assert (await client.get("/auth/verify", headers=bearer)).status_code == status

    await complete()
    for _ in range(2):
        first, second = [await post("login", 200, email="ada@example.com", password=PASSWORD) for _ in range(2)]
        await verify(await post("refresh", 200, refresh_token=second["refresh_token"]), 200)
        await post("logout", 204, refresh_token=first["refresh_token"])
        await verify(first, 401)
        await verify(second, 200)
        await admin.flushall()
        await complete()
        await verify(first, 401)
        await verify(second, 200)


@pytest.mark.parametrize("right", [word for word in rights() if word.startswith("+")])
async def test_without_one_of_these_rights_the_doctor_says_so(open_keyturn: Opener, right: str) -> None:
    with Redis.start() as server:
        async with redis_asyncio.Redis.from_url(server.url()) as admin:
            await admin.execute_command(*rights(), right.replace("+", "-"))
        url = server.url(2).replace("redis://", f"redis://keyturn:{PASSWORD_OF_REDIS}@")
        async with open_keyturn(redis_url=url) as keyturn:
            assert f"no right to the command {right[1:]} " in await diagnosis(keyturn)
