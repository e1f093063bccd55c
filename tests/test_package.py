"""The wheel that `pip install .` installs holds all of the service, and works without the checkout."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import CHEAP, SECRET, sync
from tests.servers import Postgres

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and, through a path, the packages that it depends on. No network is needed."""
    folder = tmp_path_factory.mktemp("package")
    source, environment = folder / "source", folder / "environment"
    source.mkdir()
    for name in ("app", "migrations"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = "from setuptools.build_meta import build_wheel; build_wheel('..')"
    built = subprocess.run([_with_setuptools(), "-c", build], cwd=source, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    venv.create(environment, symlinks=True)
    [packages] = environment.glob("lib/python*/site-packages")
    # Unpack the wheel as an installer does: a zip file of the contents of site-packages, and the scripts.
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    assert "keyturn = keyturn.__main__:main" in (packages / "keyturn-0.1.0.dist-info" / "entry_points.txt").read_text()
    script = environment / "bin" / "keyturn"
    script.write_text(
        f"#!{environment}/bin/python\nimport sys\nfrom keyturn.__main__ import main\n"
        "if __name__ == '__main__':\n    sys.exit(main())\n"
    )
    script.chmod(0o755)
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return environment


def _with_setuptools() -> str:
    """A Python that has the build backend: the running one, or the one that TEST_BUILD_PYTHON names."""
    for python in filter(None, (os.environ.get("TEST_BUILD_PYTHON"), sys.executable)):
        found = "import setuptools; raise SystemExit(int(setuptools.__version__.split('.')[0]) < 80)"
        if subprocess.run([python, "-c", found], check=False, capture_output=True).returncode == 0:
            return python
    pytest.skip("setuptools 80 is not installed (TEST_BUILD_PYTHON names a Python that has it)")


def keyturn(installed: Path, folder: Path, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [installed / "bin" / "keyturn", *words],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", **{f"KEYTURN_{name}": value for name, value in settings.items()}},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_only_keyturn_is_added_to_an_environment(installed: Path) -> None:
    [packages] = installed.glob("lib/python*/site-packages")
    added = {path.name for path in packages.iterdir()} - {"dependencies.pth", "pip", "setuptools"}
    assert {name for name in added if not name.endswith(".dist-info")} == {"keyturn"}
    assert (packages / "keyturn" / "migrations" / "env.py").exists()
    assert {path.name for path in (packages / "keyturn" / "users").glob("common_passwords.*")} == {
        "common_passwords.bin", "common_passwords.md", "common_passwords.py"
    }  # fmt: skip


def test_the_installed_command_migrates_a_postgres_and_its_advice_works_there(
    installed: Path, tmp_path: Path, postgres: Postgres
) -> None:
    name = f"package_{secrets.token_hex(6)}"
    sync(postgres.create_database(name))
    settings = {
        "DATABASE_URL": postgres.url(name),
        "REDIS_URL": "none",
        "SECRET": SECRET,
        "ISSUER": "https://auth.example.com",
    }
    try:
        before = keyturn(installed, tmp_path, "doctor", **settings)
        assert before.returncode == 1
        [advice] = [line for line in before.stdout.splitlines() if line.startswith("!!")]
        assert advice.endswith(f"run {installed}/bin/keyturn migrate")
        for _ in range(2):
            done = keyturn(installed, tmp_path, "migrate", DATABASE_URL=settings["DATABASE_URL"])
            assert (done.returncode, done.stdout) == (0, ""), done
            assert done.stderr.startswith("keyturn: migrating postgresql")
            assert done.stderr.count("\n") == 1
        assert "ok  database and schema" in keyturn(installed, tmp_path, "doctor", **settings).stdout
    finally:
        sync(postgres.drop_database(name))
    assert not list(tmp_path.iterdir())


def test_alembic_finds_the_installed_migrations_by_the_packages_name(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "my.ini").write_text("[alembic]\nscript_location = keyturn:migrations\n")
    done = subprocess.run(
        [installed / "bin" / "python", "-m", "alembic.config", "-c", "my.ini", "upgrade", "head"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done
    assert (tmp_path / "keyturn-data" / "keyturn.db").exists()


@pytest.mark.parametrize("module", [True, False])
def test_the_installed_command_serves_the_embedded_default_from_an_empty_folder(
    installed: Path, tmp_path: Path, module: bool
) -> None:
    start = [installed / "bin" / "python", "-m", "keyturn"] if module else [installed / "bin" / "keyturn"]
    log = tmp_path / "log"
    environment = {"PATH": "/usr/bin:/bin", "KEYTURN_PORT": "0", "KEYTURN_WORKERS": "2"}
    environment |= {f"KEYTURN_{name.upper()}": value for name, value in CHEAP.items()}
    with (
        log.open("wb") as out,
        subprocess.Popen([*start, "serve"], cwd=tmp_path, env=environment, stdout=out, stderr=out) as process,
    ):
        until = time.monotonic() + 40
        while log.read_text().count("Application startup complete") < 2 and time.monotonic() < until:
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0, log.read_text()
    said = log.read_text()
    assert said.count("Application startup complete") == 2
    command = "python -m keyturn" if module else f"{installed}/bin/keyturn"
    assert f"Change it: {command} users set-password admin@localhost" in said
    assert "Traceback" not in said
