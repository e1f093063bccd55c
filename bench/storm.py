"""A storm of wrong passwords, and what honest users notice of it.

    .venv/bin/python -m bench.storm                     this checkout
    .venv/bin/python -m bench.storm --before FOLDER     another checkout first, then this one

Eighty connections send wrong passwords without a pause: from one network, then from 200. In a last storm, one network
sends ten times as many junk tokens as the honest users send genuine ones. Beside them, honest users sign in from new
devices and from known ones, each from a network of its own, and others refresh and verify. A refused honest user comes
again when the answer says so. bench/attackers.py has the storms. Everything runs on one machine, so the rates compare,
and are no promise.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.actors import SERVICE
from app.keyturn import opened, running
from bench.attackers import STORMS, Connection
from bench.servers import Stage, family, resident_mib, stage
from tests.service import ROOT, Service

HONEST = 20
PASSWORD = "seven lamps under a quiet roof"
SESSIONS = 5 * HONEST
"""Sessions that refresh in turns, each slowly enough for the limit of one session."""
EVERY = 1.0
"""Seconds between two honest sign-ins of each kind: about a third of what two cores can hash."""
TOKENS_EVERY = 0.04
"""Seconds between two refreshes, and between two verifications."""
PATIENCE = 60.0


@dataclass
class Seen:
    """The marks that one storm left on honest users."""

    storm: Counter[int] = field(default_factory=Counter)
    at_once: Counter[str] = field(default_factory=Counter)
    tried: Counter[str] = field(default_factory=Counter)
    in_the_end: Counter[str] = field(default_factory=Counter)
    waits: dict[str, list[float]] = field(default_factory=lambda: {"new": [], "known": []})
    latencies: dict[str, list[float]] = field(default_factory=lambda: {"refresh": [], "verify": []})
    wrong: Counter[str] = field(default_factory=Counter)
    memory: float = 0.0


@dataclass
class Field:
    """A running service with its users, who have signed in once each."""

    service: Service
    emails: list[str]
    devices: dict[str, str | None]
    sessions: list[dict[str, Any]]


def member(email: str, device: str | None) -> dict[str, Any]:
    body = {"email": email, "password": PASSWORD, "device_id": f"of-{email.partition('@')[0]}"}
    return body | ({"device_token": device} if device else {})


def serve(where: Stage, checkout: Path) -> tuple[Service, list[str]]:
    """A service with users, which ends with the stage."""
    database, redis_url = where.database("storm"), where.redis_url()
    emails = [f"user{n}@example.com" for n in range(HONEST)]

    async def make() -> None:
        async with opened(where.settings(database)) as keyturn, running(keyturn):
            for email in emails:
                await keyturn.users.create(email, PASSWORD, by=SERVICE)

    asyncio.run(make())
    more = {"KEYTURN_TRUSTED_PROXIES": "127.0.0.1", "PYTHONPATH": str(checkout)}
    given = where.environment(database.url, redis_url)
    given = {name: value for name, value in given.items() if not name.startswith("KEYTURN_LIMIT")}  # as by default
    return where.serve(given | more), emails


async def signed_in(service: Service, emails: list[str]) -> Field:
    devices: dict[str, str | None] = {}
    sessions = []
    connection = Connection(service.port)
    for number, email in enumerate(emails):
        status, _, answer = await connection.ask("POST", "/auth/login", member(email, None), f"198.51.{number}.1")
        assert status == 200, answer
        devices[email] = answer.get("device_token")  # a checkout from before knows no devices
        for _ in range(SESSIONS // HONEST):
            _, _, other = await connection.ask("POST", "/auth/login", {"email": email, "password": PASSWORD})
            sessions.append(other)
    connection.close()
    return Field(service, emails, devices, sessions)


async def signs_in(on: Field, seen: Seen, email: str, kind: str, address: str) -> None:
    """One honest user, who comes again when the answer says so."""
    began, connection = time.monotonic(), Connection(on.service.port)
    body = member(email, on.devices[email]) if kind == "known" else {"email": email, "password": PASSWORD}
    seen.tried[kind] += 1
    with suppress(asyncio.CancelledError):
        for attempt in itertools.count():
            status, fields, _ = await connection.ask("POST", "/auth/login", body, address)
            if status == 200:
                seen.at_once[kind] += attempt == 0
                seen.in_the_end[kind] += 1
                seen.waits[kind].append(time.monotonic() - began)
                break
            if status not in {429, 503} or time.monotonic() - began > PATIENCE:
                seen.wrong[f"login {status}"] += 1
                break
            await asyncio.sleep(int(fields["retry-after"]))
    connection.close()


async def paced(every: float, act: Callable[[int], Awaitable[None]], *, abreast: bool = False) -> None:
    """Calls `act` at a steady pace; with `abreast`, without waiting for its end."""
    started: set[asyncio.Future[None]] = set()
    due = time.monotonic()
    try:
        for number in itertools.count():
            task = asyncio.ensure_future(act(number))
            if abreast:
                started.add(task)
            else:
                await task
            due += every
            await asyncio.sleep(max(0.0, due - time.monotonic()))
    finally:
        for each in started:
            each.cancel()
        await asyncio.gather(*started, return_exceptions=True)


async def begun(storm: str, port: int) -> asyncio.subprocess.Process:
    """Attackers in a process of their own, which stands back: those of a real storm take no core of the service."""
    command = ("nice", "-n", "10", sys.executable, "-m", "bench.attackers", str(port), storm)
    return await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, cwd=ROOT)


async def rage(on: Field, seconds: float, storm: str) -> Seen:
    seen, tokens = Seen(), Connection(on.service.port)
    verifying = Connection(on.service.port)

    async def refresh(number: int) -> None:
        session = on.sessions[number % len(on.sessions)]
        began = time.monotonic()
        body = {"refresh_token": session["refresh_token"]}
        status, _, answer = await tokens.ask("POST", "/auth/refresh", body)
        seen.latencies["refresh"].append(time.monotonic() - began)
        if status == 200:
            session |= answer
        else:
            seen.wrong[f"refresh {status}"] += 1

    async def verify(number: int) -> None:
        began = time.monotonic()
        token = on.sessions[number % len(on.sessions)]["access_token"]
        status, _, _ = await verifying.ask("GET", "/auth/verify", bearer=token)
        seen.latencies["verify"].append(time.monotonic() - began)
        if status != 200:
            seen.wrong[f"verify {status}"] += 1

    def new(number: int) -> Awaitable[None]:
        email = on.emails[number % len(on.emails)]
        return signs_in(on, seen, email, "new", f"100.{64 + number // 250 % 60}.{number % 250}.1")

    def known(number: int) -> Awaitable[None]:
        return signs_in(on, seen, on.emails[-1 - number % len(on.emails)], "known", f"198.51.{number % 250}.1")

    async def remember(_: int) -> None:
        seen.memory = max(seen.memory, resident_mib(family(on.service.pid)))

    works = [
        paced(TOKENS_EVERY, refresh),
        paced(TOKENS_EVERY, verify),
        paced(EVERY, new, abreast=True),
        paced(EVERY, known, abreast=True),
        paced(0.5, remember),
    ]
    attackers = None if storm == "none" else await begun(storm, on.service.port)
    tasks = [asyncio.ensure_future(work) for work in works]
    done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()  # none ends by itself
    if attackers is not None:
        attackers.terminate()
        answers, _ = await attackers.communicate()
        seen.storm.update({int(status): count for status, count in json.loads(answers).items()})
    tokens.close()
    verifying.close()
    return seen


def p99(values: list[float]) -> str:
    return f"{sorted(values)[int(len(values) * 0.99)] * 1000:.1f}" if values else "-"


def line(name: str, storm: str, seen: Seen, seconds: float) -> str:
    def share(kind: str) -> str:
        waits = sorted(seen.waits[kind])
        median = f", median {waits[len(waits) // 2]:.1f} s" if waits else ""
        return f"{seen.at_once[kind]} at once, {seen.in_the_end[kind]} in the end of {seen.tried[kind]}{median}"

    rates = ", ".join(f"{status}: {count / seconds:.0f}/s" for status, count in sorted(seen.storm.items())) or "-"
    wrong = ", ".join(f"{what}: {count}" for what, count in sorted(seen.wrong.items())) or "-"
    cells = (name, storm, rates, share("new"), share("known"), p99(seen.latencies["refresh"]))
    return f"| {' | '.join((*cells, p99(seen.latencies['verify']), f'{seen.memory:.0f}', wrong))} |"


async def measured(name: str, service: Service, emails: list[str], seconds: float) -> None:
    on = await signed_in(service, emails)
    for storm in ("none", *STORMS):
        seen = await rage(on, seconds, storm)
        print(line(name, storm, seen, seconds), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.storm", description="Honest users beside a storm of wrong passwords.")
    parser.add_argument("--before", type=Path, help="another checkout, measured first")
    parser.add_argument("--seconds", type=float, default=40.0, help="duration of each storm")
    given = parser.parse_args()
    print("| checkout | storm | guesses, by status | new devices | known devices | refresh p99 (ms) | verify p99 (ms) | memory (MiB) | otherwise refused |")  # fmt: skip  # noqa: E501
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    options: dict[str, Any] = {"rounds": 1, "seconds": given.seconds, "warm": 0, "small": 0, "sessions": 0}
    with ExitStack() as everything:
        where = stage(everything, quick=True, refreshes=0, **options)
        sides = [("before", given.before.resolve())] if given.before else []
        for name, checkout in [*sides, ("this", ROOT)]:
            with where.part() as part:
                asyncio.run(measured(name, *serve(part, checkout), given.seconds))


if __name__ == "__main__":
    main()
