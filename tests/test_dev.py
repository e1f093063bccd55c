"""`dev.py` in a small checkout, whose lock names one small package, so that no test needs a network."""

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.service import ROOT

HOST = os.path.realpath(sys.executable)  # the system's Python, which runs dev.py first
APP = "import sys, thing; print(sys.argv[1:], sys.prefix)"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose path has a space. Its lock names the wheel `thing`, which is not installed yet."""
    if all(subprocess.run([HOST, "-c", f"import {m}"], check=False).returncode for m in ("pip", "ensurepip")):
        pytest.skip("this Python has neither pip nor ensurepip, so that only uv can install")
    folder = tmp_path / "a checkout"
    (folder / "app").mkdir(parents=True)
    (folder / "dev.py").write_text((ROOT / "dev.py").read_text())
    (folder / "app" / "__main__.py").write_text(APP)
    (folder / "pytest").mkdir()
    (folder / "pytest" / "__main__.py").write_text(APP)
    wheel = thing(tmp_path / "thing-1.0-py3-none-any.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (folder / "requirements.lock").write_text(f"thing==1.0 --hash=sha256:{digest}\n")
    return folder


def thing(path: Path, text: str = "") -> Path:
    name = path.name.partition("-")[0]
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", text)
        wheel.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{name}-1.0.dist-info/WHEEL", tag)
        wheel.writestr(f"{name}-1.0.dist-info/RECORD", f"{name}.py,,\n")
    return path


def dev(
    checkout: Path, *arguments: str, links: Path | None = None, path: str = "/nowhere"
) -> subprocess.CompletedProcess[str]:
    """Runs dev.py with the host's Python, without uv, from another directory. Packages come from the folder `links`."""
    environment = {
        "PATH": path,
        "HOME": str(checkout),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": (links or checkout / "no packages").as_uri(),
    }
    command = [HOST, str(checkout / "dev.py"), *arguments]
    return subprocess.run(command, check=False, cwd="/", env=environment, capture_output=True, text=True)


def test_dev_py_installs_what_the_lock_names_and_runs_in_it_from_any_directory(checkout: Path) -> None:
    first = dev(checkout, "keyturn", "users", "list", links=checkout.parent)
    assert first.stdout.strip() == f"['users', 'list'] {checkout / '.venv'}", first.stderr
    assert "Installing" in first.stderr
    second = dev(checkout, "serve", "--port", "1")
    assert second.stdout.strip() == f"['serve', '--port', '1'] {checkout / '.venv'}"
    assert "Installing" not in second.stderr
    tested = dev(checkout, "test", "-n", "0")  # pytest goes by the last `-n`
    assert tested.stdout.startswith("['-n', 'auto', ")
    assert tested.stdout.strip().endswith(f", '-n', '0'] {checkout / '.venv'}")


@pytest.mark.parametrize(("failing", "code"), [("none", 0), ("run", 0), ("report", 1)])
def test_the_coverage_is_reported_even_if_a_test_failed_and_its_share_alone_decides(
    checkout: Path, failing: str, code: int
) -> None:
    (checkout / "coverage").mkdir()
    steps = f"import sys; print(sys.argv[1], sys.argv[-1]); sys.exit(sys.argv[1] == {failing!r})"
    (checkout / "coverage" / "__main__.py").write_text(steps)
    done = dev(checkout, "coverage", "-x", links=checkout.parent)
    assert done.stdout.split("\n")[:-1] == ["erase erase", "run -x", "combine --quiet", "report report"], done.stderr
    assert done.returncode == code


def test_an_installation_that_broke_off_is_repeated(checkout: Path) -> None:
    failed = dev(checkout, "serve")
    assert failed.returncode != 0
    assert "the next call tries again" in failed.stderr
    assert not failed.stdout
    repeated = dev(checkout, "serve", links=checkout.parent)
    assert repeated.returncode == 0, repeated.stderr


def test_an_environment_made_by_another_python_is_kept_and_one_that_changed_its_python_is_not(checkout: Path) -> None:
    dev(checkout, "keyturn", links=checkout.parent)
    python = checkout / ".venv" / "bin" / "python"
    real = os.path.realpath(python)
    for version, installs in (("3.99 of the next year", True), ("", True)):
        # The interpreter of .venv was replaced by another version, which does not look into the folder of the packages.
        python.unlink()
        python.write_text(f'#!/bin/sh\ncase "$2" in *version*) printf "{version}";; *) exec {real} "$@";; esac\n')
        python.chmod(0o755)
        assert ("Installing" in dev(checkout, "keyturn", links=checkout.parent).stderr) is installs
    # The version in the stamp is that of the Python in .venv, not of the Python that runs dev.py.
    script = f"import sys; sys.version = 'another'; sys.argv = ['dev.py', 'keyturn']; __file__ = {str(checkout / 'dev.py')!r}; exec(open(__file__).read())"
    # PATH is that of `dev`, so that this call finds a Chromium just as little.
    nowhere = {"PATH": "/nowhere"}
    called = subprocess.run([HOST, "-c", script], check=False, capture_output=True, text=True, env=nowhere)
    assert called.stdout.startswith("[]"), called.stderr
    assert "Installing" not in called.stderr


def test_another_lock_means_another_installation(checkout: Path) -> None:
    assert dev(checkout, "serve", links=checkout.parent).returncode == 0
    (checkout / ".venv" / "left-over").touch()
    with (checkout / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    assert "Installing" in dev(checkout, "serve", links=checkout.parent).stderr
    assert not (checkout / ".venv" / "left-over").exists()


def test_what_drives_a_browser_is_installed_where_there_is_chromium_and_nowhere_else(checkout: Path) -> None:
    wheel = thing(checkout.parent / "driver-1.0-py3-none-any.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (checkout / "requirements.browser.lock").write_text(f"driver==1.0 --hash=sha256:{digest}\n")
    programs = checkout.parent / "programs"
    programs.mkdir()
    (programs / "chromium").write_text("#!/bin/sh\n")
    (programs / "chromium").chmod(0o755)

    def installed(path: str) -> tuple[bool, bool]:
        called = dev(checkout, "serve", links=checkout.parent, path=path)
        assert called.returncode == 0, called.stderr
        return "Installing" in called.stderr, any((checkout / ".venv").rglob("driver.py"))

    assert installed("/nowhere") == (True, False)
    assert installed(str(programs)) == (True, True)
    assert installed(str(programs)) == (False, True)


def test_the_sdk_of_scalekit_is_installed_by_its_own_command_alone_and_beside_the_environment(checkout: Path) -> None:
    sdk = thing(checkout.parent / "sdk-1.0-py3-none-any.whl")
    digest = hashlib.sha256(sdk.read_bytes()).hexdigest()
    (checkout / "requirements.scalekit.lock").write_text(f"sdk==1.0 --hash=sha256:{digest}\n")
    dev(checkout, "test", links=checkout.parent)
    assert not (checkout / ".venv-scalekit").exists()
    done = dev(checkout, "conformance", "-x", links=checkout.parent)
    assert "tests/test_scalekit_sdk.py" in done.stdout, done.stderr
    assert done.stdout.strip().endswith(f"'-x'] {checkout / '.venv'}")
    assert [*(checkout / ".venv-scalekit").rglob("sdk.py")]
    assert not [*(checkout / ".venv").rglob("sdk.py")]
    assert "Installing" not in dev(checkout, "conformance").stderr


def test_the_sdk_of_opentelemetry_comes_into_an_environment_of_its_own_in_which_its_tests_run(checkout: Path) -> None:
    sdk = thing(checkout.parent / "sdk-1.0-py3-none-any.whl")
    digest = hashlib.sha256(sdk.read_bytes()).hexdigest()
    (checkout / "requirements.tracing.lock").write_text(f"sdk==1.0 --hash=sha256:{digest}\n")
    done = dev(checkout, "tracing", "-x", links=checkout.parent)
    assert "tests/test_tracing.py" in done.stdout, done.stderr
    assert done.stdout.strip().endswith(f"'-x'] {checkout / '.venv-tracing'}")
    assert {path.name for path in (checkout / ".venv-tracing").rglob("*.py")} >= {"sdk.py", "thing.py"}
    assert not (checkout / ".venv").exists()


def test_a_package_whose_digest_is_not_the_locks_is_refused(checkout: Path) -> None:
    thing(checkout.parent / "thing-1.0-py3-none-any.whl", "print('not what was locked')")
    refused = dev(checkout, "serve", links=checkout.parent)
    assert refused.returncode != 0
    assert "HASH" in refused.stderr.upper()
    assert "not what was locked" not in refused.stdout


def test_without_a_command_dev_py_says_what_it_can_do_and_installs_nothing(checkout: Path) -> None:
    shown = dev(checkout)
    assert "dev.py test" in shown.stdout
    assert not (checkout / ".venv").exists()


def test_a_command_that_is_asked_for_help_or_that_there_is_not_runs_nothing_and_installs_nothing(
    checkout: Path,
) -> None:
    for words in (
        ("check", "--help"),
        ("check", "-h"),
        ("demo", "-h"),
        ("lock", "--help"),
        ("lock", "--upgrade", "-h"),
    ):
        shown = dev(checkout, *words)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert "dev.py check" in shown.stdout
    for unknown in (("fly",), ("--serve",), ("check", "--fix"), ("demo", "--port"), ("lock", "--upgrades")):
        wrong = dev(checkout, *unknown)
        assert (wrong.returncode, wrong.stdout) == (2, "")
        assert "no such" in wrong.stderr
        assert "dev.py check" in wrong.stderr
    assert not (checkout / ".venv").exists()
