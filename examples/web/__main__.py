"""Starts Keyturn and both applications on loopback, with a fresh database and a demo user. Ctrl-C ends all of it."""

from __future__ import annotations

import http.client
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from http import HTTPStatus
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent.parent
_READY = 30.0  # seconds within which each part must answer
_GRACE = 10.0  # seconds that each part has to end
_EMAIL = "demo@example.com"


def main() -> None:
    """Start everything, say where to look, and wait."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="keyturn-demo-")))
        keyturn, web, one_page = _free_ports(3)
        environment = _keyturn_settings(folder, keyturn, origins=[_url(web), _url(one_page)])
        processes = [stack.enter_context(_running(["-m", "app", "serve", "--port", str(keyturn)], environment, folder))]
        _wait_for(keyturn, "/readyz", processes, folder)
        password = secrets.token_urlsafe(15)
        _make_user(_EMAIL, password, environment, folder)
        for module, port in (("application", web), ("one_page", one_page)):
            place = {"WEB_KEYTURN_URL": _url(keyturn), "WEB_ORIGIN": _url(port)}
            processes.append(stack.enter_context(_running(_uvicorn(module, port), place, folder)))
            _wait_for(port, "/static/style.css", processes, folder)
        addresses = f"Web app: {_url(web)}   One-page app: {_url(one_page)}   Keyturn: {_url(keyturn)}"
        print(f"{addresses} (process {processes[0].pid})")
        print(f"Sign in as {_EMAIL} with the password {password} (Ctrl-C ends the demo)", flush=True)
        _until_one_ends(processes)
        raise SystemExit(f"A part of the demo has ended.\n{_logs(folder)}")


def _keyturn_settings(folder: Path, port: int, origins: Sequence[str]) -> dict[str, str]:
    """The settings of Keyturn: tokens that end soon, so that a refresh on the way is soon seen."""
    return {
        "KEYTURN_DATA_DIR": str(folder / "data"),
        "KEYTURN_ISSUER": _url(port),
        "KEYTURN_ALLOWED_ORIGINS": ",".join(origins),
        "KEYTURN_ACCESS_TOKEN_LIFETIME": "60",
        "KEYTURN_RETRY_WINDOW": "20",
        "KEYTURN_LOGIN_MODE": "cookie",
    }


def _uvicorn(module: str, port: int) -> list[str]:
    factory = f"examples.web.{module}:create"
    return ["-m", "uvicorn", "--factory", factory, "--port", str(port), "--no-access-log", "--no-server-header"]


@contextmanager
def _running(arguments: Sequence[str], settings: Mapping[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process with these settings alone, in a folder without a `.env`. The process ends with the context."""
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=_environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # so that Ctrl-C reaches this process alone, which ends the others in order
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _environment(settings: Mapping[str, str]) -> dict[str, str]:
    others = {name: value for name, value in os.environ.items() if not name.startswith(("KEYTURN_", "WEB_"))}
    return {**others, "PYTHONPATH": str(_ROOT), **settings}


def _make_user(email: str, password: str, settings: Mapping[str, str], folder: Path) -> None:
    command = [sys.executable, "-m", "app", "users", "create", email, "--password-stdin"]
    made = subprocess.run(
        command,
        cwd=folder,
        env=_environment(settings),
        input=password.encode(),
        capture_output=True,
        check=False,
    )
    if made.returncode:
        raise SystemExit(f"The demo user could not be made.\n{made.stderr.decode(errors='replace')}")


def _wait_for(port: int, path: str, processes: Sequence[subprocess.Popen[bytes]], folder: Path) -> None:
    """Wait until a part answers 200 at this path."""
    deadline = time.monotonic() + _READY
    while not _answers(port, path):
        if time.monotonic() > deadline or any(process.poll() is not None for process in processes):
            raise SystemExit(f"A part of the demo did not start.\n{_logs(folder)}")
        time.sleep(0.05)


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    with closing(connection), suppress(OSError, http.client.HTTPException):
        connection.request("GET", path)
        return connection.getresponse().status == HTTPStatus.OK
    return False


def _until_one_ends(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    while all(process.poll() is None for process in processes):
        time.sleep(0.5)


def _logs(folder: Path) -> str:
    return (folder / "log").read_text(errors="replace")[-4000:]


def _free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 on which nobody listens now, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


if __name__ == "__main__":
    main()
