"""Measures what the check of upstream sessions costs a refresh: those of the issuer that asks for it, and all others.

    .venv/bin/python -m bench.checks            prints the table of docs/upstream.md

One instance on Postgres trusts two stand-ins of Scalekit. Sessions of the first are checked, those of the second never
are. A few clients of each refresh all the time, at a pace that leaves the machine idle.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx2

from app.storage.migrating import migrate
from tests.conftest import settings_of
from tests.federated_app import federated, federation_file
from tests.servers import Postgres
from tests.upstream.keys import Keys
from tests.upstream.upstream import Upstream

SECONDS = 30.0
CLIENTS = 6
"""Of each of the two issuers."""
PAUSE = 0.05

Disturb = Callable[[Upstream], object]


async def _follow(client: httpx2.AsyncClient, token: str, until: float, took: list[float]) -> None:
    while time.monotonic() < until:
        began = time.monotonic()
        answer = await client.post("/auth/refresh", json={"refresh_token": token})
        took.append(time.monotonic() - began)
        assert answer.status_code == 200, answer.text
        token = answer.json()["refresh_token"]
        await asyncio.sleep(PAUSE)


async def _measured(url: str, issuers: list[Upstream], disturb: Disturb) -> list[list[float]]:
    """How long the refreshes of the sessions of each issuer took."""
    took: list[list[float]] = [[] for _ in issuers]
    async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=60) as client:
        tokens = []
        for issuer in issuers:
            for number in range(CLIENTS):
                login = await asyncio.to_thread(issuer.sign_in, f"user{number}@example.com")
                answer = await client.post("/auth/exchange", json={"subject_token": login.access_token})
                assert answer.status_code == 200, answer.text
                tokens.append(answer.json()["refresh_token"])
        await asyncio.to_thread(disturb, issuers[0])
        until = time.monotonic() + SECONDS
        await asyncio.gather(
            *(_follow(client, token, until, took[number // CLIENTS]) for number, token in enumerate(tokens))
        )
    await asyncio.to_thread(issuers[0].heal)
    return took


def _shown(took: list[float]) -> str:
    ordered = sorted(took)
    return f"{ordered[len(ordered) // 2] * 1000:.1f} / {ordered[int(len(ordered) * 0.99)] * 1000:.1f} ms"


async def main() -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        keys = Keys(folder)
        checked, other = (stack.enter_context(Upstream.start(keys)) for _ in range(2))
        postgres = stack.enter_context(Postgres.start())
        await postgres.create_database("checks")
        await asyncio.to_thread(migrate, settings_of(postgres.url("checks"), None))
        rows: list[tuple[str, str, int, str, Disturb]] = [
            ("off", "well", 60, "off", lambda _: None),
            ("open, each minute", "well", 60, "open", lambda _: None),
            ("open, each second", "well", 1, "open", lambda _: None),
            (
                "open, each second",
                "answers after 1 s",
                1,
                "open",
                lambda issuer: issuer.fault("/api", "slow", seconds=1),
            ),
            ("open, each second", "never answers", 1, "open", lambda issuer: issuer.fault("/", "hang")),
        ]
        print("| check | the issuer | its sessions | all others |\n|---|---|---|---|", flush=True)
        for check, issuer, every, words, disturb in rows:
            sections = (
                checked.toml("acme", check_sessions=words, check_every=every),
                other.toml("other", secrets=False),
            )
            with federated(
                federation_file(folder, *sections), folder, postgres.url("checks"), access_token_lifetime=300
            ) as service:
                its, others = await _measured(service.url, [checked, other], disturb)
            print(f"| {check} | {issuer} | {_shown(its)} | {_shown(others)} |", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
