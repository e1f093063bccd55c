"""docs/production.md as an operator works through it: each step as it stands there, on a real Postgres and Redis."""

from __future__ import annotations

import re
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import proxies
from tests.conftest import CHEAP, SECRET, sync
from tests.servers import Postgres, Redis
from tests.service import ROOT, Service
from tests.test_operations_page import understood
from tests.test_postgres import execute

PAGES = [ROOT / "docs" / name for name in ("production.md", "upgrade.md")]


def step(number: int, language: str = "") -> str:
    """The only block of a language in a step."""
    text = PAGES[0].read_text(encoding="utf-8").partition(f"\n## {number}. ")[2].partition("\n## ")[0]
    [block] = re.findall(rf"(?ms)^```{language}\n(.*?)^```$", text)
    return str(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_command_of_the_page_is_one_of_keyturn_s(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`(keyturn [^`\n]+)`", text) + re.findall(r"(?m)^(?:KEYTURN_\w+=\S+ )*(keyturn .*)$", text)
    assert len(named) >= 4
    assert [line for line in named if not understood(line.split()[1:])] == []


def test_the_steps_are_numbered_without_a_gap() -> None:
    numbers = re.findall(r"(?m)^## (\d+)\. ", PAGES[0].read_text(encoding="utf-8"))
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]


def test_the_steps_lead_from_an_empty_postgres_to_a_session_that_ends(
    tmp_path: Path, logs: Path, postgres: Postgres, redis: Redis
) -> None:
    name = f"keyturn_{secrets.token_hex(4)}"  # roles belong to the whole server, so the page's names get an ending

    def statements(block: str) -> list[str]:
        return [each for each in re.sub(r"\bkeyturn(?=\b|_owner)", name, block).split(";") if each.strip()]

    def url(user: str, password: str) -> str:
        return re.sub(r"//.*@", f"//{user}:{password}@", postgres.url(name))

    def keyturn(*words: str, environment: dict[str, str], typed: str = "") -> str:
        done = subprocess.run(
            [sys.executable, "-m", "app", *words],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **environment},
            input=typed,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    owner = url(f"{name}_owner", "OWNER-PASSWORD")
    try:
        for statement in statements(step(1, "sql")):  # each by itself: CREATE DATABASE takes no transaction
            sync(execute(postgres.url("postgres"), statement))
        keyturn("db", "upgrade", environment={"KEYTURN_DATABASE_URL": owner})
        sync(execute(owner, *statements(keyturn("db", "rights", name, environment={}))))
        settings = {line.partition("=")[0] for line in step(5).splitlines()}
        environment = {
            "KEYTURN_DATABASE_URL": url(name, "SERVICE-PASSWORD"),
            "KEYTURN_REDIS_URL": redis.url(9),
            "KEYTURN_SECRET_FILE": str(tmp_path / "secret"),
            "KEYTURN_ISSUER": "https://auth.example.com",
        }
        assert settings == environment.keys()
        if shutil.which("openssl"):
            subprocess.run(["sh", "-euc", step(4, "sh")], cwd=tmp_path, check=True)
        else:
            (tmp_path / "secret").write_text(SECRET)
        environment |= {f"KEYTURN_{key.upper()}": value for key, value in CHEAP.items()}
        with Service.start(environment, logs=logs) as service:
            password = secrets.token_urlsafe()
            keyturn(*step(10).split()[1:], "--password-stdin", environment=environment, typed=password)
            assert "!!" not in keyturn("doctor", environment=environment)
            for number in (9, 12):
                lines = re.sub(r"http://127.0.0.1:8000|https://auth.example.com", service.url, step(number, "sh"))
                done = subprocess.run(
                    ["bash", "-euo", "pipefail", "-c", lines],
                    cwd=tmp_path,
                    input=f"you@example.com\n{password}\n",
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert done.returncode == 0, done.stdout + done.stderr
            assert done.stdout.split("\n")[:-1] == ["me: 200", "logout: 204", "me: 401"]
        keyturn("gc", environment=environment)
        assert {path.name for path in tmp_path.iterdir()} <= {"secret"}
    finally:
        sync(postgres.drop_database(name))
        for role in (name, f"{name}_owner"):
            sync(execute(postgres.url("postgres"), f"DROP ROLE IF EXISTS {role}"))


def test_the_server_block_of_nginx_leads_to_keyturn_under_tls(tmp_path: Path, logs: Path) -> None:
    if proxies.program("nginx") is None or not shutil.which("openssl"):
        pytest.skip("no nginx or openssl on PATH")
    certificate, key = (tmp_path / f"auth.example.com.{ending}" for ending in ("pem", "key"))
    words = f"req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=auth.example.com -out {certificate} -keyout {key}"
    subprocess.run(["openssl", *words.split()], check=True, capture_output=True)
    block = step(6, "nginx").replace("listen 443 ssl", "listen 127.0.0.1:8080 ssl").replace("/etc/ssl", str(tmp_path))
    environment = {"KEYTURN_DATA_DIR": str(tmp_path / "data")}
    with Service.start(environment, logs=logs) as service:
        block = block.replace(":8000", f":{service.port}")
        with proxies.running("nginx", block, tmp_path / "nginx", keyturn=service.port, app=service.port) as nginx:
            words = f"curl -sk -w %{{http_code}} https://127.0.0.1:{nginx.port}/healthz -o {tmp_path / 'answer'}"
            done = subprocess.run(words.split(), capture_output=True, text=True, check=True)
            assert done.stdout == "200"
            words = words.replace("/healthz", "/auth/me")
            done = subprocess.run(words.split(), capture_output=True, text=True, check=True)
    assert done.stdout == "401"
