"""The attackers of a storm, in a process of their own.

    .venv/bin/python -m bench.attackers PORT STORM

Prints how often each status was answered, as JSON, when it is told to end (SIGTERM).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import signal
import sys
from collections import Counter
from typing import Any

CONNECTIONS = 80
ACCOUNTS = 40
"""How many accounts one network guesses on. Half of them exist."""
JUNK_EVERY = 0.002
"""Seconds between two junk tokens: ten times as many as the honest users send."""
ONE = "203.0.113.7"
STORMS = ("one network", "200 networks", "junk")


class Connection:
    """One HTTP connection that stays open."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(
        self, method: str, path: str, body: Any = None, address: str = "192.0.2.1", bearer: str = ""
    ) -> tuple[int, dict[str, str], Any]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        raw = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\nx-forwarded-for: {address}\r\ncontent-length: {len(raw)}\r\n"
        head += "content-type: application/json\r\n" if raw else ""
        head += f"authorization: Bearer {bearer}\r\n" if bearer else ""
        writer.write(head.encode() + b"\r\n" + raw)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
        answer = await reader.readexactly(int(fields.get("content-length", 0)))
        return int(lines[0].split()[1]), fields, json.loads(answer) if answer else None

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


async def guesses(port: int, storm: str, answers: Counter[int], numbers: random.Random) -> None:
    """Wrong passwords without a pause. One network guesses on anybody, and many networks guess on one honest user."""
    connection, one = Connection(port), storm == "one network"
    while True:
        account = f"user{numbers.randrange(ACCOUNTS) if one else 7}@example.com"
        body = {"email": account, "password": "a wrong password, long enough"}
        address = ONE if one else f"10.1.{numbers.randrange(200)}.7"
        status, _, _ = await connection.ask("POST", "/auth/login", body, address)
        answers[status] += 1


async def junk(port: int, answers: Counter[int]) -> None:
    """Tokens that nobody issued, at a steady pace, in turns at both endpoints."""
    connection, clock = Connection(port), asyncio.get_running_loop()
    due = clock.time()
    for number in itertools.count():
        if number % 2:
            body = {"refresh_token": f"ktr_{number:084}"}
            status, _, _ = await connection.ask("POST", "/auth/refresh", body, ONE)
        else:
            status, _, _ = await connection.ask("GET", "/auth/verify", None, ONE, f"{number}.junk.token")
        answers[status] += 1
        due += JUNK_EVERY
        await asyncio.sleep(max(0.0, due - clock.time()))


async def storm(port: int, name: str) -> Counter[int]:
    answers, numbers, told = Counter[int](), random.Random(1), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    if name == "junk":
        tasks = [asyncio.ensure_future(junk(port, answers))]
    else:
        tasks = [asyncio.ensure_future(guesses(port, name, answers, numbers)) for _ in range(CONNECTIONS)]
    await asyncio.wait([*tasks, asyncio.ensure_future(told.wait())], return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        if task.done():
            task.result()  # none ends by itself
        task.cancel()
    return answers


if __name__ == "__main__":
    print(json.dumps(asyncio.run(storm(int(sys.argv[1]), sys.argv[2]))))
