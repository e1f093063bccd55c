"""Turns of password hashes: fair between networks, in one process and over HTTP."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Self

import pytest

from app.actors import SERVICE, Actor
from app.errors import SlowDown, TemporarilyUnavailable
from app.users.container import Container, Limit
from app.users.hashing import Asker, Hashing
from app.users.hashing_room import HashingRoom
from tests.conftest import CHEAP, NEW_PASSWORD, PASSWORD, SECRET, Opener, settings_of, sync
from tests.service import Service

GREEDY, HONEST, OTHER = Asker("198.51.100.7"), Asker("203.0.113.7"), Asker("2001:db8::7")
OFF = {f"limit_{name}": "off" for name in ("account", "account_network", "device", "network", "service", "register")}
OFF["limit_register_network"] = "off"
"""Without limits on failures, so that nothing but the queue is between a storm and the others."""


def hashing(slots: int = 1, queue: int = 8) -> Hashing:
    settings = settings_of("sqlite+aiosqlite:///none", None, hashing_slots=slots, hashing_queue=queue)
    container = Container(cores=Limit(8, "the test"), memory=None, address_space=None, threads=None)
    return Hashing(HashingRoom.of(settings, container), settings)


@asynccontextmanager
async def occupied(hashing: Hashing, slots: int = 1) -> AsyncIterator[None]:
    """Occupies all slots while the block runs."""
    done = threading.Event()
    taken = [asyncio.ensure_future(hashing.run(8, done.wait)) for _ in range(slots)]
    await asyncio.sleep(0)
    try:
        yield
    finally:
        done.set()
        await asyncio.gather(*taken)


def waiting(hashing: Hashing, seen: list[str], name: str, asker: Asker) -> asyncio.Future[None]:
    return asyncio.ensure_future(hashing.run(8, partial(seen.append, name), asker))


async def test_networks_take_turns_whatever_the_number_of_their_requests() -> None:
    queue, seen = hashing(), list[str]()
    async with occupied(queue):
        tasks = [waiting(queue, seen, f"greedy {n}", GREEDY) for n in range(5)]
        await asyncio.sleep(0)
        tasks += [waiting(queue, seen, "honest", HONEST), waiting(queue, seen, "other", OTHER)]
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert seen == ["greedy 0", "honest", "other", "greedy 1", "greedy 2", "greedy 3", "greedy 4"]


async def test_addresses_of_one_network_share_its_turns() -> None:
    queue, seen = hashing(), list[str]()
    async with occupied(queue):
        tasks = [waiting(queue, seen, f"greedy {n}", Asker(f"198.51.100.{n}")) for n in range(3)]
        tasks += [waiting(queue, seen, f"six {n}", Asker(f"2001:db8:0:{n:x}::1")) for n in range(3)]
        await asyncio.sleep(0)
        tasks.append(waiting(queue, seen, "honest", HONEST))
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert seen[:3] == ["greedy 0", "six 0", "honest"]


async def test_in_a_full_queue_the_newest_of_the_greediest_is_answered_429_at_once() -> None:
    queue, seen = hashing(), list[str]()
    async with occupied(queue):
        greedy = [waiting(queue, seen, f"greedy {n}", GREEDY) for n in range(8)]
        await asyncio.sleep(0)
        with pytest.raises(TemporarilyUnavailable):  # nobody else waits: the queue is full, and no share is
            await queue.run(8, int, GREEDY)
        honest = waiting(queue, seen, "honest", HONEST)
        with pytest.raises(SlowDown) as caught:
            await greedy.pop()
        share = {  # the seven places that its network has, beside the one of the other
            "cache-control": "no-store",
            "retry-after": "2",
            "ratelimit-policy": '"hash_share";q=7;qu="concurrent-requests"',
            "ratelimit": '"hash_share";r=0',
        }
        assert caught.value.headers() == share
        with pytest.raises(SlowDown) as caught:
            await queue.run(8, int, GREEDY)
        assert caught.value.headers() == share
        with pytest.raises(SlowDown) as caught:
            queue.admit(GREEDY)
        assert caught.value.headers() == share
        queue.admit(OTHER)
    await asyncio.gather(*greedy, honest)
    assert seen == ["greedy 0", "honest", *(f"greedy {n}" for n in range(1, 7))]
    assert queue.busy == 0


async def test_a_known_device_goes_before_strangers_and_every_fourth_turn_is_a_stranger_s() -> None:
    queue, seen = hashing(queue=16), list[str]()
    async with occupied(queue):
        tasks = [waiting(queue, seen, f"stranger {n}", Asker(f"198.51.{n}.1")) for n in range(4)]
        await asyncio.sleep(0)
        tasks += [waiting(queue, seen, f"known {n}", Asker(f"203.0.{n}.1", known=True)) for n in range(6)]
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    # The head was chosen while nobody else waited.
    assert [name.split()[0] for name in seen[:9]] == [
        "stranger",
        *["known"] * 3,
        "stranger",
        *["known"] * 3,
        "stranger",
    ]


async def test_whoever_loses_a_place_or_goes_away_leaves_no_slot_taken() -> None:
    queue, seen = hashing(slots=2, queue=4), list[str]()
    for _ in range(50):
        async with occupied(queue, 2):
            tasks = [waiting(queue, seen, "greedy", GREEDY) for _ in range(4)]
            await asyncio.sleep(0)
            tasks.append(waiting(queue, seen, "honest", HONEST))
            await asyncio.sleep(0)
            tasks[0].cancel()
        tasks[1].cancel()  # maybe in the moment in which its turn came
        await asyncio.gather(*tasks, return_exceptions=True)
    while queue.busy:
        await asyncio.sleep(0.01)
    assert queue._free == 2
    assert await queue.run(8, lambda: 5) == 5


@pytest.mark.parametrize("leaves_first", [True, False])
async def test_a_client_that_leaves_in_the_moment_of_its_turn_leaves_no_slot_taken(leaves_first: bool) -> None:
    queue, seen = hashing(), list[str]()
    await queue._take(1, GREEDY)
    task = waiting(queue, seen, "honest", HONEST)
    await asyncio.sleep(0)
    # Both happen in one turn of the event loop, so the hash that waits learns of both together.
    acts: list[Callable[[], object]] = [task.cancel, lambda: queue._give_back(1)]
    for act in acts if leaves_first else reversed(acts):
        act()
    await asyncio.gather(task, return_exceptions=True)
    assert (task.cancelled(), seen, queue._free, queue.busy) == (True, [], 1, 0)
    assert await queue.run(8, lambda: 5) == 5


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        (Actor("anonymous", None, "203.0.113.7"), Asker("203.0.113.7", known=False)),
        (Actor("user", "1", "203.0.113.7"), Asker("203.0.113.7", known=True)),
        (Actor("administrator", "1", "203.0.113.7"), Asker("203.0.113.7", known=True)),
        (SERVICE, Asker(None, known=True)),
    ],
)
def test_whoever_has_a_session_or_is_on_this_machine_is_known(by: Actor, expected: Asker) -> None:
    assert Asker.of(by) == expected


# -- over HTTP


@pytest.fixture
def service(database_url: str, open_keyturn: Opener, logs: Path) -> Iterator[Service]:
    async def prepare() -> None:
        async with open_keyturn() as keyturn:
            await keyturn.users.create("ada@example.com", PASSWORD, by=SERVICE)

    sync(prepare())
    values = {"database_url": database_url, "redis_url": "none", "secret": SECRET, "issuer": "https://auth.example.com"}
    values |= CHEAP | OFF | {"registration": "true", "trusted_proxies": "127.0.0.1"}
    values |= {"hashing_slots": "1", "hashing_queue": "8", "argon2_memory": "4096", "argon2_passes": "4"}
    environment = {f"KEYTURN_{name.upper()}": value for name, value in values.items()}
    with Service.start(environment, logs=logs) as service:
        yield service


NUMBERS = count()


class Client:
    """A connection of a client behind the trusted proxy."""

    def __init__(self, service: Service, address: str) -> None:
        self._service, self._address = service, address

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._service.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def post(self, path: str, body: dict[str, str], *fields: str) -> tuple[int, dict[str, str], bytes]:
        raw = json.dumps(body)
        lines = [f"POST /auth/{path} HTTP/1.1", "Host: x", f"X-Forwarded-For: {self._address}", *fields]
        lines += ["Content-Type: application/json", f"Content-Length: {len(raw)}", "", raw]
        self._writer.write("\r\n".join(lines).encode())
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        answered = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)
        }
        return int(head[0].split()[1]), answered, await self._reader.readexactly(int(answered.get("content-length", 0)))


async def rage(service: Service, address: str, path: str, seen: Counter[int]) -> None:
    """Sends wrong passwords, or registrations, each for another account. Only a refused one pauses for a moment.

    Hashes run while no other thread wants the core, and this process shares its cores with the service.
    """
    async with Client(service, address) as client:
        while True:
            account = {"email": f"storm{next(NUMBERS)}@example.com", "password": "not the right password"}
            status, fields, _ = await client.post(path, account)
            assert status in {201, 401, 429, 503}
            assert (status in {429, 503}) == ("retry-after" in fields)
            seen[status] += 1
            if status in {429, 503}:
                await asyncio.sleep(0.05)


FULL, SHARE = "the hashing queue is full", "the network's share of the hashing queue is full"


async def patient(client: Client, expected: int, path: str, body: dict[str, str], *fields: str) -> bytes:
    """The body of the good answer. On a slow machine, the hash is asked for again."""
    for _ in range(20):
        status, _, answer = await client.post(path, body, *fields)
        if status != 503:
            break
    assert status == expected, answer
    return answer


def requests_in(text: str) -> Iterator[dict[str, str]]:
    """The lines about requests in a log."""
    for line in text.splitlines():
        if '"event": "request"' in line and line.endswith("}"):
            yield json.loads(line)


@pytest.mark.parametrize(("engine", "path"), [("sqlite", "login"), ("postgres", "register")], indirect=["engine"])
async def test_one_network_with_40_connections_keeps_nobody_else_from_signing_in(service: Service, path: str) -> None:
    seen = Counter[int]()
    storm = [asyncio.create_task(rage(service, "198.51.100.7", path, seen)) for _ in range(40)]
    try:
        while seen[503] + seen[429] < 40:  # the queue is full of the storm's requests
            assert not any(task.done() for task in storm), "the storm goes on"
            await asyncio.sleep(0.01)
        for number in range(4):
            async with Client(service, f"203.0.{number}.9") as client:
                account = {"email": "ada@example.com", "password": PASSWORD}
                token = json.loads(await patient(client, 200, "login", account))["access_token"]
                for old, new in ((PASSWORD, NEW_PASSWORD), (NEW_PASSWORD, PASSWORD)):
                    change = {"current_password": old, "new_password": new}
                    await patient(client, 204, "password", change, f"Authorization: Bearer {token}")
                await patient(client, 201, "register", {"email": f"new{number}@example.com", "password": PASSWORD})
            assert not any(task.done() for task in storm), "the storm goes on"
    finally:
        for task in storm:
            task.cancel()
        outcomes = await asyncio.gather(*storm, return_exceptions=True)
    assert {type(each) for each in outcomes} == {asyncio.CancelledError}
    assert seen[429] > 0, "who has more than a share is told so"
    assert seen[401 if path == "login" else 201] > 0, "and its turns come too"
    # Hashes run on an idle core alone. So on a busy machine a turn may come too late, but no place is ever missing.
    causes = Counter((line["client"][:7], line["cause"]) for line in requests_in(service.text()) if "cause" in line)
    assert causes["198.51.", FULL] + causes["198.51.", SHARE] > 0
    assert not {cause for client, cause in causes if client.startswith("203.0.")} & {FULL, SHARE}
