"""The commands of docs/quickstart.md, as they stand, against a real Keyturn, the page's own service and a real nginx."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import proxies
from tests.example_servers import ACCOUNT, EXAMPLES, keyturn, running, uvicorn
from tests.servers import free_port
from tests.service import ROOT, Service

PAGE = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")


def part(title: str, language: str) -> str:
    """The blocks of one language below a heading."""
    text = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return "".join(re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Iterator[Service]:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    with keyturn(tmp_path_factory.mktemp("quickstart"), logs) as service:
        yield service


def typed(lines: str, folder: Path, addresses: dict[str, str]) -> list[str]:
    """The lines that a shell prints."""
    lines = lines.replace("admin@localhost", ACCOUNT["email"]).replace('"…"', f'"{ACCOUNT["password"]}"')
    for published, here in addresses.items():
        lines = lines.replace(published, here)
    done = subprocess.run(
        ["sh", "-eu", "-c", lines],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "NO_PROXY": "*"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_first_tokens_and_the_protected_route_are_as_the_page_says(service: Service, tmp_path: Path) -> None:
    with uvicorn("fastapi-api", "main:app", free_port(), KEYTURN=service.url) as api:
        lines = part("First tokens", "sh") + part("A protected route in your own service", "sh")
        seen = typed(lines, tmp_path, {"http://127.0.0.1:8000": service.url, "http://127.0.0.1:9000": api})
    *answers, greeting, without, out, after = seen
    signed_in, refreshed, me = (json.loads(answer) for answer in answers)
    assert signed_in["refresh_token"] != refreshed["refresh_token"]
    assert json.loads(greeting) == {"hello": me["user"]["id"]}
    assert [without, out, after] == ["401", "204", "401"]


def test_the_page_s_service_is_that_of_the_examples() -> None:
    assert part("A protected route in your own service", "python").strip() in (
        EXAMPLES / "fastapi-api" / "main.py"
    ).read_text(encoding="utf-8")


def test_forward_auth_behind_nginx_is_as_the_page_says(service: Service, tmp_path: Path) -> None:
    title = "Forward auth behind nginx"
    [sed] = re.findall(r"^sed '.*?' \S+", part(title, ""), re.MULTILINE)
    made = subprocess.run(["sh", "-c", sed], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    app = free_port()
    assert made == proxies.with_ports(proxies.recipe_of("nginx"), listen=8080, keyturn=8000, app=3000)
    server = [sys.executable, "-m", "http.server", str(app), "--bind", "127.0.0.1", "--directory", "docs"]
    recipe = proxies.recipe_of("nginx")
    with (
        running(server, app, folder=ROOT, environment={}),
        proxies.running("nginx", recipe, tmp_path / "nginx", keyturn=service.port, app=app) as nginx,
    ):
        site = f"http://127.0.0.1:{nginx.port}"
        lines = f"JSON='Content-Type: application/json'\n{part(title, 'sh')}"
        seen = typed(lines, tmp_path, {"http://127.0.0.1:8080": site})
    assert seen[1:] == ["200", "401", f"302 {site}/login?return_to=/quickstart.md"]
