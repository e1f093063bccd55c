"""Ends half of the sessions by a filter, over the API, while all of them refresh on two processes.

    .venv/bin/python -m bench.ending [sessions to end]

Prints the latency of refreshes with and without the ending, and fails if any other session ended, one stayed, a request
was answered with another status than it should be, or Postgres found a deadlock.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

import asyncpg  # type: ignore[import-untyped]  # asyncpg has no types
import httpx2

from app.actors import SERVICE
from app.keyturn import opened
from app.settings import read
from app.storage.migrating import migrate
from bench.driver import REFRESH, Driving, Load, Result
from bench.servers import Database
from bench.sessions import PASSWORD, seed
from tests.conftest import SECRET
from tests.servers import Postgres, Redis
from tests.service import Service

ADMIN = {"email": "root@example.com", "password": PASSWORD}
SECONDS, WARM, RATE = 40, 3, 75.0  # of each of the four drivers
_HALVE = """
UPDATE sessions SET client_id = 'shop' FROM (SELECT id, row_number() OVER (ORDER BY id) AS n FROM sessions) AS numbered
WHERE sessions.id = numbered.id AND n % 2 = 0
"""
_ENDED = """
SELECT client_id, count(*) FILTER (WHERE end_reason = 'revoked_by_admin') AS ended,
  count(*) FILTER (WHERE end_reason <> 'revoked_by_admin') AS otherwise, count(*) AS there
FROM sessions WHERE user_id <> (SELECT id FROM users WHERE email = 'root@example.com') GROUP BY client_id
"""


def main(doomed: int) -> None:
    """Runs the measurement.

    Raises:
        SystemExit: something was not as it must be.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        postgres = stack.enter_context(Postgres.start(durable=True))
        redis = stack.enter_context(Redis.start())
        database = Database(postgres, "ending")
        asyncio.run(postgres.create_database(database.name))
        environment = {
            "KEYTURN_DATABASE_URL": database.url,
            "KEYTURN_REDIS_URL": redis.url(),
            "KEYTURN_SECRET": SECRET,
            "KEYTURN_ISSUER": "https://auth.example.com",
        }
        migrate(read(environment))
        files = _seeded(environment, database, doomed, folder)
        services = [stack.enter_context(Service.start(environment, logs=folder)) for _ in range(2)]
        ports = [service.port for service in services]
        _show("without the ending", _driven(files, ports, SECONDS))
        token = httpx2.post(f"{services[0].url}/auth/login", json=ADMIN, timeout=60).json()["access_token"]
        drivers = _driving(files, ports, SECONDS)
        asyncio.run(_ended(services[0].url, token, doomed))
        _show("with it", [each.result() for each in drivers])
        found = {row["client_id"]: tuple(row)[1:] for row in database.use(lambda c: c.fetch(_ENDED))}
        deadlocks = database.row("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")[0]
        print(f"sessions (ended, ended otherwise, in all): {found}; deadlocks: {deadlocks}")
        if found != {"shop": (doomed, 0, doomed), "first-party": (0, 0, doomed)} or deadlocks:
            raise SystemExit("not exactly those")


def _seeded(environment: dict[str, str], database: Database, doomed: int, folder: Path) -> list[Path]:
    """Seeds twice as many sessions, and splits their tokens: two files of those that stay, and two of the others."""
    settings = read(environment)
    asyncio.run(_administrator(environment))
    seed(settings, 2 * doomed, folder / "tokens", database=database)

    async def halve(connection: asyncpg.Connection[Any]) -> None:
        await connection.execute(_HALVE)
        await connection.execute("VACUUM (ANALYZE) sessions")

    database.use(halve)
    tokens = (folder / "tokens").read_text(encoding="ascii").splitlines()
    files = []
    for n in range(4):
        files.append(folder / f"tokens-{n}")
        files[-1].write_text("\n".join(tokens[(0, 2, 1, 3)[n] :: 4]) + "\n", encoding="ascii")
    return files


async def _administrator(environment: dict[str, str]) -> None:
    async with opened(read(environment)) as keyturn:
        await keyturn.users.create(ADMIN["email"], PASSWORD, "admin", by=SERVICE)


def _driving(files: list[Path], ports: list[int], seconds: float) -> list[Driving]:
    load = Load("/auth/refresh", connections=16, seconds=seconds, warm=WARM, rate=RATE, body=REFRESH, use="cycle")
    out = [file.with_suffix(".out") for file in files]
    return [
        Driving(Load(**{**vars(load), "tokens": file, "out": rest}), ports[n % 2])
        for n, (file, rest) in enumerate(zip(files, out, strict=True))
    ]


def _driven(files: list[Path], ports: list[int], seconds: float) -> list[Result]:
    results = [each.result() for each in _driving(files, ports, seconds)]
    for file in files:
        file.write_bytes(file.with_suffix(".out").read_bytes())
    return results


def _show(title: str, results: list[Result]) -> None:
    for n, result in enumerate(results):
        stays = n < 2  # the first two files
        wrong = result.statuses.keys() - ({"200"} if stays else {"200", "401"})
        latency = {name: f"{value / 1000:.1f} ms" for name, value in result.latency.items()}
        kept = "stay" if stays else "may end"
        print(f"{title}, sessions that {kept}, process {n % 2}: {result.rate:.0f}/s {result.statuses} {latency}")
        if wrong or result.errors:
            raise SystemExit(f"answers {wrong}, errors {result.errors}")


async def _ended(url: str, token: str, doomed: int) -> None:
    await asyncio.sleep(WARM)
    async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=60) as client:
        headers, filtered = {"Authorization": f"Bearer {token}"}, {"client": "shop"}
        began = monotonic()
        preview = await client.post("/admin/sessions/end", json=filtered | {"preview": True}, headers=headers)
        print(f"preview: {preview.text} in {monotonic() - began:.2f} s")
        began, ended, longest = monotonic(), 0, 0.0
        more: dict[str, str] = {}
        while True:
            call = monotonic()
            answer = await client.post("/admin/sessions/end", json=filtered | more, headers=headers)
            longest = max(longest, monotonic() - call)
            if answer.status_code != 200:  # OK
                raise SystemExit(answer.text)
            ended += answer.json()["ended"]
            if "next_cursor" not in answer.json():
                break
            more = {"cursor": answer.json()["next_cursor"]}
        print(f"{ended} of {doomed} ended in {monotonic() - began:.1f} s, the longest call {longest:.1f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
