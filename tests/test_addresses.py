"""The addresses that the service listens on: the same for one worker and several, and printed as a URL that works."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from app.commands.addresses import listen
from app.errors import ConfigurationError
from app.settings_values import url
from tests.conftest import CHEAP
from tests.servers import free_port

ROOT = Path(__file__).parent.parent


def _has_ipv6() -> bool:
    with suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


with_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6 loopback address")


@contextmanager
def serving(folder: Path, host: str, port: int, workers: int) -> Iterator[str]:
    """Runs the service, and gives its greeting."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "KEYTURN_DATA_DIR": str(folder / "data")}
    environment |= {f"KEYTURN_{name.upper()}": value for name, value in CHEAP.items()}
    environment |= {"KEYTURN_HOST": host, "KEYTURN_PORT": str(port), "KEYTURN_WORKERS": str(workers)}
    log = folder / "service.log"
    with (
        log.open("wb") as out,
        subprocess.Popen(
            [sys.executable, "-m", "app", "serve"], cwd=folder, env=environment, stdout=out, stderr=out
        ) as p,
    ):
        try:
            until = time.monotonic() + 30
            while log.read_text().count("Application startup complete") < workers:
                assert p.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.05)
            yield log.read_text()
        finally:
            p.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                p.wait(15)
            p.kill()
    assert p.returncode == 0, log.read_text()


def answers(host: str, port: int) -> bool:
    with closing(http.client.HTTPConnection(host, port, timeout=5)) as connection, suppress(OSError):
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    return False


@with_ipv6
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("host", "where", "shown"),
    [
        ("::", {"127.0.0.1", "::1"}, "127.0.0.1"),
        ("0.0.0.0", {"127.0.0.1"}, "127.0.0.1"),
        ("::1", {"::1"}, "[::1]"),
        ("127.0.0.1", {"127.0.0.1"}, "127.0.0.1"),
    ],
)
def test_one_worker_and_two_listen_on_the_same_addresses_and_the_greeting_names_one(
    tmp_path: Path, host: str, where: set[str], shown: str, workers: int
) -> None:
    port = free_port()
    with serving(tmp_path, host, port, workers) as greeting:
        assert {each for each in ("127.0.0.1", "::1") if answers(each, port)} == where
        assert greeting.startswith(f"Keyturn on http://{shown}:{port}, data in ")
        assert f"\n    KEYTURN=http://{shown}:{port} " in greeting
        assert "Access tokens name http://127.0.0.1:8000 as issuer; KEYTURN_ISSUER changes it." in greeting


def test_a_port_that_the_system_chooses_is_in_the_greeting(tmp_path: Path) -> None:
    with serving(tmp_path, "localhost", 0, 2) as greeting:
        found = re.search(r"^Keyturn on (\S+), ", greeting)
        assert found
        parts = urlsplit(found[1])
        assert answers(str(parts.hostname), int(parts.port or 0))


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("0.0.0.0", "127.0.0.1"),
        ("::", "127.0.0.1"),
        ("::1", "[::1]"),
        ("2001:db8::1", "[2001:db8::1]"),
        ("fe80::1%eth0", "[fe80::1%25eth0]"),
        ("keyturn.internal", "keyturn.internal"),
    ],
)
def test_an_address_is_written_as_a_url_has_it(host: str, shown: str) -> None:
    assert url(host, 8000) == f"http://{shown}:8000"


@with_ipv6
def test_a_name_stands_for_all_its_addresses_at_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0)),  # an address of no machine (RFC 5737)
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    sockets = listen("keyturn.internal", 0)
    assert [each.getsockname()[0] for each in sockets] == ["::1", "127.0.0.1"]
    assert len({each.getsockname()[1] for each in sockets}) == 1
    for each in sockets:
        each.close()


@pytest.mark.parametrize(
    "host", ["192.0.2.1", "2001:db8::1", "fe80::1%no_such", "no.such.invalid", "a" * 300, "..", "1.2.3"]
)
def test_a_host_that_is_not_this_machine_is_refused_in_one_line(host: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        listen(host, 0)
    assert re.fullmatch(r"can't listen on \S+:0 \([^\n]+\); choose another --host", str(caught.value))


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", pytest.param("::", marks=with_ipv6)])
def test_a_port_that_is_taken_is_refused_in_one_line(host: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigurationError, match=r"\(Address already in use\); choose another --port"):
            listen(host, taken.getsockname()[1])
