"""The wheel that `pip install .` installs holds all of the service, and works without the checkout."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time
import venv
import zipfile
from pathlib import Path

import httpx2
import pytest

from tests.conftest import CHEAP, SECRET, sync
from tests.servers import Postgres
from tests.service import Service

ROOT = Path(__file__).parent.parent
SOURCE = ("app", "migrations", "alembic.ini", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "SECURITY.md")
PACKAGE_PYTHON = ROOT / ".venv-package" / "bin" / "python"


def _with_hatchling() -> str:
    """A Python that has the build backend: the running one, `dev.py package`'s, or TEST_BUILD_PYTHON's."""
    for python in (os.environ.get("TEST_BUILD_PYTHON"), sys.executable, str(PACKAGE_PYTHON)):
        if python and Path(python).exists():
            found = subprocess.run([python, "-c", "import hatchling"], check=False, capture_output=True)
            if found.returncode == 0:
                return python
    pytest.skip("hatchling is not installed (TEST_BUILD_PYTHON names a Python that has it)")


def source(folder: Path) -> Path:
    """The files of the package, as a clone of somebody else's has them: with other dates and modes."""
    for name in SOURCE:
        copy = folder / name
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o600)
            os.utime(path, (1_600_000_000, 1_600_000_000))
    return folder


def build(source: Path, kind: str) -> Path:
    """Builds a `wheel` or an `sdist` as pip does, without a network."""
    code = f"import sys; from hatchling.build import build_{kind}; build_{kind}(sys.argv[1])"
    environment = {"PATH": "/usr/bin:/bin", "SOURCE_DATE_EPOCH": "1700000000"}
    built = subprocess.run(
        [_with_hatchling(), "-c", code, str(source / "dist")],
        cwd=source,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    [file] = (source / "dist").glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return file


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is made from the source archive, as an index of packages would have both."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(build(source(folder / "clone"), "sdist")) as archive:
        archive.extractall(folder, filter="data")
    return build(folder / "keyturn-0.1.0", "wheel")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and, through a path, the packages that it depends on. No network is needed."""
    environment = tmp_path_factory.mktemp("package") / "environment"
    venv.create(environment, symlinks=True)
    [packages] = environment.glob("lib/python*/site-packages")
    # Unpack the wheel as an installer does: a zip file of the contents of site-packages, and the scripts.
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


def test_a_type_checker_of_somebody_else_s_sees_the_types_of_the_installed_package(
    installed: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text("from keyturn.printable import printable\n\nnumber: int = printable('x')\n")
    python, cache = installed / "bin" / "python", tmp_path / "cache"
    command = [sys.executable, "-m", "mypy", "--python-executable", str(python), "--cache-dir", str(cache), "mine.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert 'expression has type "str", variable has type "int"' in done.stdout, done.stdout + done.stderr
    [metadata] = installed.glob("lib/python*/site-packages/keyturn-0.1.0.dist-info/METADATA")
    assert "Classifier: Typing :: Typed" in metadata.read_text()


def test_two_copies_of_the_source_make_the_same_bytes(wheel: Path, tmp_path: Path) -> None:
    clone = source(tmp_path)
    (clone / "app" / "main.py").touch()
    (clone / "app" / "main.py").chmod(0o644)
    assert build(clone, "wheel").read_bytes() == wheel.read_bytes()


def test_the_wheel_holds_each_file_of_the_application_and_of_the_migrations(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if not name.startswith("keyturn-0.1.0.dist-info/")}
    expected = {
        prefix + str(path.relative_to(ROOT / folder))
        for folder, prefix in (("app", "keyturn/"), ("migrations", "keyturn/migrations/"))
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == expected


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
    assert (packages / "keyturn" / "pages" / "pages.css").read_bytes() == (ROOT / "app/pages/pages.css").read_bytes()
    assert {path.name for path in (packages / "keyturn" / "users").glob("common_passwords.*")} == {
        "common_passwords.bin", "common_passwords.md", "common_passwords.py"
    }  # fmt: skip


def test_an_app_of_the_project_s_own_is_never_taken_for_keyturn_s(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("raise SystemExit('the app of the project was imported')\n")
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path)}
    for words in (
        (installed / "bin" / "keyturn", "openapi"),
        (installed / "bin" / "python", "-m", "keyturn", "openapi"),
    ):
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["info"]["title"]


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
        assert advice.endswith(f"run {installed}/bin/keyturn db upgrade")
        for words in (("db", "upgrade"), ("db", "upgrade"), ("migrate",)):
            done = keyturn(installed, tmp_path, *words, DATABASE_URL=settings["DATABASE_URL"])
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


def test_beside_an_app_of_another_project_keyturn_migrates_serves_and_signs_in(
    installed: Path, tmp_path: Path, postgres: Postgres, logs: Path
) -> None:
    """Most FastAPI projects call their own package `app`."""
    (tmp_path / "app" / "storage").mkdir(parents=True)
    for file in ("__init__.py", "main.py", "errors.py", "storage/__init__.py"):
        (tmp_path / "app" / file).write_text("WHOSE = 'the other project'\n")
    name = f"beside_{secrets.token_hex(6)}"
    sync(postgres.create_database(name))
    settings = {
        "DATABASE_URL": postgres.url(name),
        "REDIS_URL": "none",
        "SECRET": SECRET,
        "ISSUER": "https://auth.example.com",
        **{name.upper(): value for name, value in CHEAP.items()},
    }
    try:
        assert keyturn(installed, tmp_path, "db", "upgrade", **settings).returncode == 0
        made = keyturn(installed, tmp_path, "users", "create", "a@example.com", "--generate", **settings)
        assert made.returncode == 0, made
        [password] = [word for word in made.stdout.split() if len(word) == 20]
        environment = {f"KEYTURN_{name}": value for name, value in settings.items()}
        environment["PYTHONPATH"] = str(tmp_path)  # as the other project starts its own processes
        command = (str(installed / "bin" / "python"), "-m", "keyturn", "serve")
        with Service.start(environment, logs=logs, command=command) as service:
            body = {"email": "a@example.com", "password": password}
            answer = httpx2.post(f"{service.url}/auth/login", json=body)
            assert answer.status_code == 200, answer.text
            headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}
            assert httpx2.get(f"{service.url}/auth/verify", headers=headers).status_code == 200
        code = "import app, app.main, keyturn.main; print(app.main.WHOSE, '|', keyturn.main.__file__)"
        both = subprocess.run(
            [installed / "bin" / "python", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert both.stdout.startswith(f"the other project | {installed}")
    finally:
        sync(postgres.drop_database(name))


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


def test_two_clones_make_the_same_release_and_its_list_of_parts_is_the_lock(tmp_path: Path) -> None:
    if not PACKAGE_PYTHON.exists():
        pytest.skip("the builder is not installed (python3 dev.py package)")
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone, and a release is made from a commit")
    sums = []
    for name in ("one", "another"):
        clone = tmp_path / name
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        # The program of this checkout, which may be newer than HEAD.
        shutil.copyfile(ROOT / "tools" / "package.py", clone / "tools" / "package.py")
        done = subprocess.run(
            [PACKAGE_PYTHON, "-m", "tools.package"], cwd=clone, capture_output=True, text=True, check=False, timeout=240
        )
        assert done.returncode == 0, done
        sums.append((clone / "dist" / "SHA256SUMS").read_text())
    assert sums[0] == sums[1]
    assert [line.split("  ")[1] for line in sums[0].splitlines()] == [
        "keyturn-0.1.0-py3-none-any.whl",
        "keyturn-0.1.0.tar.gz",
        "keyturn-0.1.0.cdx.json",
    ]
    parts = json.loads((tmp_path / "one" / "dist" / "keyturn-0.1.0.cdx.json").read_text())
    locked = re.findall(r"^([a-z0-9-]+)==([^ ]+)", (ROOT / "requirements.runtime.lock").read_text(), re.MULTILINE)
    assert {(part["name"], part["version"]) for part in parts["components"]} == set(locked)
    assert parts["metadata"]["component"]["name"] == "keyturn"
