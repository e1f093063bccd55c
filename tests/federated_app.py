"""A Keyturn whose issuers stand in a file, in a process of its own, for the tests of both sides together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from tests.conftest import CHEAP, SECRET
from tests.service import Service

PATIENCE = 40.0
"""Seconds in which what goes on in the background has happened, also on a busy machine."""


def federation_file(folder: Path, *sections: str) -> Path:
    """A file of issuers, which their owner alone may read."""
    path = folder / "federation.toml"
    path.touch(mode=0o600)
    path.write_text("\n".join(sections))
    return path


@contextmanager
def federated(
    file: Path, logs: Path, database_url: str, *, redis_url: str = "none", port: int | None = None, **settings: Any
) -> Iterator[Service]:
    """A Keyturn with the issuers of the file. Several on one database are instances of one service."""
    values = {
        "database_url": database_url,
        "redis_url": redis_url,
        "secret": SECRET,
        "issuer": "https://auth.example.com",
        "federation_file": str(file),
        **CHEAP,
        **settings,
    }
    environment = {f"KEYTURN_{name.upper()}": str(value) for name, value in values.items()}
    with Service.start(environment, logs=logs, port=port) as service:
        yield service


class App:
    """An application that uses one Keyturn for one user."""

    def __init__(self, service: Service) -> None:
        self._url = service.url
        self.access_token = ""
        self.refresh_token = ""

    def exchange(self, subject_token: str, **members: Any) -> httpx2.Response:
        """Exchanges a token of an issuer, and keeps the answer's tokens."""
        return self._kept(self._ask("POST", "/auth/exchange", json={"subject_token": subject_token, **members}))

    def refresh(self) -> httpx2.Response:
        return self._kept(self._ask("POST", "/auth/refresh", json={"refresh_token": self.refresh_token}))

    def logout(self) -> httpx2.Response:
        return self._ask("POST", "/auth/logout", json={"refresh_token": self.refresh_token})

    def verify(self) -> httpx2.Response:
        return self._ask("GET", "/auth/verify", headers={"authorization": f"Bearer {self.access_token}"})

    def at(self, service: Service) -> App:
        """The same tokens at another instance."""
        other = App(service)
        other.access_token, other.refresh_token = self.access_token, self.refresh_token
        return other

    def _ask(self, method: str, path: str, **options: Any) -> httpx2.Response:
        # A client for each request keeps no cookies, so a request has exactly what a test names.
        with httpx2.Client(base_url=self._url, verify=False, trust_env=False, timeout=30) as client:
            return client.request(method, path, **options)

    def _kept(self, answer: httpx2.Response) -> httpx2.Response:
        if answer.status_code == 200:
            tokens = answer.json()
            self.access_token, self.refresh_token = tokens["access_token"], tokens["refresh_token"]
        return answer


def eventually(holds: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Whether something holds before the time is over."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if holds():
            return True
        time.sleep(0.05)
    return holds()
