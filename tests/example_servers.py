"""Starts the examples as their readers do: each in a process of its own, before a real Keyturn."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx2

from tests.conftest import CHEAP, PASSWORD, SECRET
from tests.service import ROOT, Service

EXAMPLES = ROOT / "examples"
ACCOUNT = {"email": "ada@example.com", "password": PASSWORD}
START = 20.0


@contextmanager
def keyturn(folder: Path, logs: Path, *, port: int | None = None, **settings: Any) -> Iterator[Service]:
    """A Keyturn on SQLite with one account."""
    values = {"data_dir": folder / "data", "secret": SECRET, "registration": "true", **CHEAP, **settings}
    environment = {f"KEYTURN_{name.upper()}": str(value) for name, value in values.items()}
    with Service.start(environment, logs=logs, port=port) as service:
        answer = httpx2.post(f"{service.url}/auth/register", json=ACCOUNT, trust_env=False)
        assert answer.status_code in {201, 409}, answer.text  # 409: it was there before
        yield service


@contextmanager
def running(command: Sequence[str], port: int, *, folder: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """A command that listens on `port`, until the block ends. Gives the address. Its words stand in the errors."""
    basis = {name: os.environ[name] for name in ("PATH", "HOME", "COVERAGE_PROCESS_CONFIG") if name in os.environ}
    with subprocess.Popen(
        command, cwd=folder, env={**basis, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            end = time.monotonic() + START
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > end:
                    process.kill()
                    raise AssertionError(process.communicate()[0])
                time.sleep(0.02)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()


def uvicorn(example: str, app: str, port: int, **environment: str) -> Any:
    """An example of Python, as its README starts it."""
    command = [sys.executable, "-m", "uvicorn", "--app-dir", f"examples/{example}", app, "--port", str(port)]
    return running(command, port, folder=ROOT, environment=environment)


def _listens(port: int) -> bool:
    with closing(socket.socket()) as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0
