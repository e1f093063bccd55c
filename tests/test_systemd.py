"""The units of deploy/systemd: systemd takes them, calls them safe, and Keyturn works within their limits."""

from __future__ import annotations

import ctypes.util
import re
import secrets
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from tests.conftest import CHEAP, SECRET, sync
from tests.servers import Postgres, Redis
from tests.service import ROOT, Service

UNITS = ROOT / "deploy" / "systemd"
SERVICES = ("keyturn", "keyturn-migrate", "keyturn-gc")


def analyze(*words: str | Path) -> subprocess.CompletedProcess[str]:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed (Debian: systemd)")
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False)


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with a program that is there on each machine: systemd looks whether the program exists."""
    for unit in UNITS.iterdir():
        (tmp_path / unit.name).write_text(re.sub(r"(?m)^ExecStart=/\S+", "ExecStart=/bin/true", unit.read_text()))
    return tmp_path


def test_systemd_takes_each_unit_without_a_warning(units: Path) -> None:
    done = analyze("verify", "--man=no", *sorted(units.iterdir()))
    ours = [line for line in done.stderr.splitlines() if "keyturn" in line]  # other units of the machine warn too
    assert (done.returncode, ours) == (0, []), done.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_systemd_calls_each_service_safe(units: Path, name: str) -> None:
    done = analyze("security", "--offline=true", "--threshold=15", units / f"{name}.service")
    assert done.returncode == 0, done.stdout


def values(name: str, key: str) -> list[str]:
    return re.findall(rf"(?m)^{key}=(.*)$", (UNITS / f"{name}.service").read_text())


@pytest.mark.parametrize("name", SERVICES[1:])
def test_the_other_services_are_bound_as_the_first_is(name: str) -> None:
    def bounds(unit: str) -> set[str]:
        _, _, text = (UNITS / f"{unit}.service").read_text().partition("\nDynamicUser=")
        return {line for line in text.partition("\n\n")[0].splitlines() if not line.startswith(("#", "StateDirectory"))}

    assert bounds(name) == bounds("keyturn") - {"SystemCallFilter=sched_setscheduler"}


def test_a_wrong_setting_is_not_tried_again_and_a_missing_database_is() -> None:
    assert values("keyturn", "Restart") == ["on-failure"]
    assert values("keyturn", "RestartPreventExitStatus") == ["2"]  # the exit codes of app/commands/command.py


def sets_of_calls() -> dict[str, list[str]]:
    sets: dict[str, list[str]] = {}
    done = analyze("syscall-filter")
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        if line.startswith("@"):
            members = sets[line.strip()] = []
        elif line.startswith("    ") and not line.strip().startswith("#"):
            members.append(line.strip())
    return sets


def allowed(lines: list[str]) -> set[str]:
    """The calls that the lines `SystemCallFilter=` allow together, read as systemd.exec(5) says."""
    sets = sets_of_calls()

    def members(word: str) -> set[str]:
        return set().union(*(members(each) for each in sets[word])) if word.startswith("@") else {word}

    calls = members("@default")
    for line in lines:
        named = set().union(*(members(word) for word in line.removeprefix("~").split()))
        calls = calls - named if line.startswith("~") else calls | named
    return calls


def test_the_service_works_within_the_system_calls_and_the_memory_that_its_unit_allows(
    tmp_path: Path, logs: Path, postgres: Postgres, redis: Redis
) -> None:
    """From the migration to SIGTERM, with two workers, their shared memory, and threads that hash passwords."""
    if sys.platform != "linux" or not ctypes.util.find_library("seccomp"):
        pytest.skip("libseccomp is not installed (Debian: libseccomp2)")
    calls = allowed(values("keyturn", "SystemCallFilter"))
    assert not calls & {"reboot", "setuid", "chown", "mount", "ptrace"}
    file = tmp_path / "calls"
    file.write_text("\n".join(sorted(calls)))
    database = f"units_{secrets.token_hex(6)}"
    sync(postgres.create_database(database))
    # Not SQLite: as root, and only then, SQLite gives its files to an owner. The unit's user is not root.
    settings = {
        "DATABASE_URL": postgres.url(database),
        "REDIS_URL": redis.url(9),
        "SECRET": SECRET,
        "ISSUER": "https://auth.example.com",
        "WORKERS": "2",
        "METRICS_TOKEN": "m" * 32,
        **{name.upper(): value for name, value in CHEAP.items()},
    }
    environment = {f"KEYTURN_{name}": value for name, value in settings.items()}
    command = (sys.executable, str(ROOT / "tests" / "syscall_filter.py"), str(file), sys.executable, "-m", "app")

    def keyturn(*words: str) -> str:
        where = {**environment, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([*command, *words], env=where, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done
        return done.stdout

    try:
        keyturn("db", "upgrade")
        made = keyturn("users", "create", "a@example.com", "--generate")
        [password] = [word for word in made.split() if len(word) == 20]
        with Service.start(environment, logs=logs, command=(*command, "serve")) as service:
            body = {"email": "a@example.com", "password": password}
            answer = httpx2.post(f"{service.url}/auth/login", json=body)
            assert answer.status_code == 200, answer.text
            again = httpx2.post(f"{service.url}/auth/refresh", json={"refresh_token": answer.json()["refresh_token"]})
            assert again.status_code == 200, again.text
            numbers = httpx2.get(f"{service.url}/metrics", headers={"Authorization": "Bearer " + "m" * 32})
            assert numbers.status_code == 200
            assert service.terminate() in {0, -signal.SIGTERM}
            assert service.text().count("Application startup complete") == 2, "a worker died and was started anew"
        keyturn("gc")
    finally:
        sync(postgres.drop_database(database))
