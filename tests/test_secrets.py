"""No log of the service holds a secret. When a test run ends, conftest.py searches the logs of all its services."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
import pytest

from tests.conftest import CHEAP, PASSWORD, SECRET, settings_of
from tests.conftest import NEW_PASSWORD as NEW
from tests.leaks import SECRETS, leaks
from tests.service import ROOT, Service
from tests.upstream.shared_secrets import CLIENT_SECRET


def test_each_kind_of_secret_would_be_found(tmp_path: Path) -> None:
    planted = [
        "ktr_" + "aB3-_x" * 14,
        "ktd_" + "aB3-_x" * 8,
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJlLW9m",
        "__Host-Http-keyturn-refresh=" + "aB3-_x" * 14,
        PASSWORD,
        SECRET,
        "$argon2id$v=19$m=8,t=1,p=1$c2FsdA$aGFzaA",
        CLIENT_SECRET,
        "rt_" + "aB3-_x4" * 6 + "a",
        "-----BEGIN EC PRIVATE KEY-----",
    ]
    nested = tmp_path / "a" / "test0"
    nested.mkdir(parents=True)
    log = nested / "service-1-x.log"
    log.write_text("".join(f'{{"event": "request", "path": "{secret}"}}\n' for secret in planted))
    (tmp_path / "other.log").write_text(PASSWORD)  # the log of another program, which is not searched
    assert list(leaks(tmp_path)) == [
        f"{name} in a/test0/service-1-x.log, line {n}" for n, name in enumerate(SECRETS, 1)
    ]
    # Other text must not be taken for a secret. This also removes the planted secrets before the search at the end of
    # this run.
    log.write_text('{"event": "request", "path": "/auth/login", "request_id": "0123456789abcdef"}\n' * 3)
    assert list(leaks(tmp_path)) == []


def test_requests_full_of_secrets_leave_none_in_a_service_s_log(tmp_path: Path, logs: Path) -> None:
    values = {"data_dir": tmp_path / "data", "secret": SECRET, "registration": "true", "log_level": "debug"} | CHEAP
    environment = {f"KEYTURN_{name.upper()}": str(value) for name, value in values.items()}
    account = {"email": "ada@example.com", "password": PASSWORD}
    with (
        Service.start(environment, logs=logs) as service,
        httpx2.Client(base_url=service.url, trust_env=False) as client,
    ):
        assert client.post("/auth/register", json=account).status_code == 201
        tokens = client.post("/auth/login", json=account).json()
        access, refresh = tokens["access_token"], tokens["refresh_token"]
        for token in (access, refresh):
            client.get(f"/{token}/x", headers={"X-Request-Id": token})
        for secret in (access, refresh, PASSWORD, SECRET):
            client.get("/auth/me", params={"q": secret}, headers={"X-Request-Id": secret.replace(" ", "-")})
            client.post("/auth/login", json=account | {secret: secret})
            client.post("/auth/login", content=f'{{"password": "{secret}', headers={"Content-Type": "application/json"})
            client.post("/auth/refresh", json={"refresh_token": secret})
            client.get("/auth/me", headers={"Authorization": f"Basic {secret}", "Cookie": f"a={secret}"})
            client.post("/auth/logout", json={"refresh_token": secret, "scope": "others"})
        change = {"current_password": PASSWORD, "new_password": NEW}
        bearer = {"Authorization": f"Bearer {access}"}
        assert client.post("/auth/password", json=change, headers=bearer).status_code == 204
        assert client.post("/auth/refresh", json={"refresh_token": refresh}).status_code == 200
        service.terminate()
        written = service.text()
    assert written.count('"event": "request"') > 25
    assert not [name for name, pattern in SECRETS.items() if pattern.search(written)]


@pytest.mark.deep
def test_a_run_whose_services_logged_a_secret_fails_in_whichever_process_it_was() -> None:
    text = "def test_it(tmp_path):\n    (tmp_path / 'service-1-x.log').write_text({!r})\n"
    with TemporaryDirectory() as folder:  # a folder outside of this run's, because this run's is searched too
        (Path(folder) / "test_quiet.py").write_text(text.format('{"event": "request"}'))
        (Path(folder) / "test_leaky.py").write_text(text.format(PASSWORD))
        command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-n", "2", "--dist", "loadfile", "-rE"]
        run = subprocess.run(
            [*command, f"--basetemp={folder}/base", f"--rootdir={folder}", folder],
            check=False,
            cwd=ROOT,
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
        )
        marked = (Path(folder) / ".pytest_cache" / "leaks").exists()
    assert run.returncode == 1, run.stdout + run.stderr
    assert "2 passed, 1 error" in run.stdout
    assert "password in test_it0/service-1-x.log, line 1" in run.stdout
    assert marked


def test_settings_hide_what_they_hold() -> None:
    settings = settings_of(
        "postgresql://keyturn:hunter22@db.example.com/keyturn", "redis://:hunter22@cache.example.com"
    )
    for shown in (repr(settings), str(settings), f"{settings.model_dump()}"):
        assert SECRET not in shown
        assert "hunter22" not in shown
