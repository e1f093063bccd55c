"""Without KEYTURN_ISSUER: the pages and the cookies go by the address on which the service listens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.main import create_app
from app.settings import DEFAULT_ISSUER, read
from tests.conftest import CHEAP
from tests.service import Service


@pytest.fixture
def service(tmp_path: Path, logs: Path) -> Iterator[Service]:
    """The embedded default on another port than the issuer's."""
    environment = {"KEYTURN_DATA_DIR": str(tmp_path / "data")}
    environment |= {f"KEYTURN_{name.upper()}": value for name, value in CHEAP.items()}
    with Service.start(environment, logs=logs) as service:
        yield service


def test_pages_and_cookies_go_by_the_port_and_never_by_the_host_field(service: Service) -> None:
    lies = {"Host": "evil.example", "X-Forwarded-Host": "evil.example"}
    start, docs = (httpx2.get(f"{service.url}{path}", headers=lies).text for path in ("/", "/docs"))
    assert f"curl {service.url}/auth/login" in start
    assert f"<code>{DEFAULT_ISSUER}</code>" in start  # tokens stay valid when the port changes
    assert service.url in docs
    for elsewhere in (DEFAULT_ISSUER, "evil.example"):
        assert elsewhere not in docs
    assert "<code>keyturn-access</code>" in docs
    assert "<code>keyturn-refresh</code>" in docs

    body = {"email": "admin@localhost", "password": "wrong in every way", "mode": "cookie"}
    for origin, status in ((service.url, 401), (DEFAULT_ISSUER, 403), ("http://evil.example", 403)):
        answer = httpx2.post(f"{service.url}/auth/login", json=body, headers={"Origin": origin})
        assert answer.status_code == status, origin


@pytest.mark.parametrize(
    ("given", "address", "own"),
    [
        ({}, DEFAULT_ISSUER, DEFAULT_ISSUER),
        ({"PORT": "0"}, DEFAULT_ISSUER, DEFAULT_ISSUER),
        ({"PORT": "18410"}, "http://127.0.0.1:18410", "http://127.0.0.1:18410"),
        ({"HOST": "0.0.0.0", "PORT": "18410"}, "http://127.0.0.1:18410", "http://127.0.0.1:18410"),
        ({"HOST": "::1", "PORT": "18410"}, "http://[::1]:18410", "http://[::1]:18410"),
        ({"HOST": "localhost", "ROOT_PATH": "/keyturn"}, "http://localhost:8000/keyturn", "http://localhost:8000"),
        ({"HOST": "192.0.2.1"}, "http://192.0.2.1:8000", DEFAULT_ISSUER),  # plain http beyond this machine
        ({"PORT": "18410", "ISSUER": "https://auth.example"}, "https://auth.example", "https://auth.example"),
    ],
)
def test_the_address_is_the_issuer_or_else_where_the_service_listens(
    tmp_path: Path, given: dict[str, str], address: str, own: str
) -> None:
    settings = read({"KEYTURN_DATA_DIR": str(tmp_path), **{f"KEYTURN_{name}": value for name, value in given.items()}})
    app: Any = create_app(settings)
    assert settings.address == address
    assert app.openapi()["servers"][-1]["url"] == address
    for origin in {address, own, DEFAULT_ISSUER}:
        assert app.origins.is_own([(b"origin", origin.encode())]) == (origin == own), origin
