"""Runs Keyturn from a bare checkout, with only Python >= 3.11. The first call installs the hashed lock into `.venv`.

python3 dev.py serve             starts the service (all options of `keyturn serve`)
python3 dev.py demo              starts the service and two web applications that sign in with it (examples/web)
python3 dev.py issuer            starts a stand-in of Scalekit, and says how to exchange its tokens (tests/upstream)
python3 dev.py test [...]        runs the tests in several processes (all options of pytest; -n 0: one process)
python3 dev.py test --deep       runs the storms, outages and planted bugs, which the line above leaves out
python3 dev.py conformance [...] holds the stand-in of Scalekit against Scalekit's SDK, and Keyturn against node's
                                 oidc-provider; installs both (130 MB)
python3 dev.py tracing [...]     runs the tests of traces with OpenTelemetry's SDK, and installs it
python3 dev.py clients [...]     makes a client by each of eight generators, and tries them; installs the generators
                                 (250 MB; Node, Java, Maven and Go are used where they are)
python3 dev.py coverage [...]    runs the tests slowly, and reports the lines and branches of app/ that no test ran
python3 dev.py check             checks lint, format, types and imports
python3 dev.py bench [...]       measures Keyturn against its rivals (--quick: two minutes; see bench/)
python3 dev.py docs              makes a site from docs/ that works without a network, in build/docs; says its address
python3 dev.py package           makes the wheel, the source archive and the list of parts (SBOM) of HEAD, in dist/
python3 dev.py passwords [FOLDER] makes the list of common passwords anew, from its sources
python3 dev.py lock [--upgrade]  writes the lock files again from pyproject.toml
python3 dev.py keyturn [...]     runs any other command of the service, such as `keyturn users list`
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent
LOCK = ROOT / "requirements.lock"
BROWSER_LOCK = ROOT / "requirements.browser.lock"  # for the tests that drive Chromium, where there is one
SCALEKIT_LOCK = ROOT / "requirements.scalekit.lock"  # for the tests that hold the stand-in against Scalekit's SDK
TRACING_LOCK = ROOT / "requirements.tracing.lock"  # for the tests that read the spans of OpenTelemetry's SDK
CLIENTS_LOCK = ROOT / "requirements.clients.lock"  # for the generators of clients/
PACKAGE_LOCK = ROOT / "requirements.package.lock"  # for tools/package.py
DOCS_LOCK = ROOT / "requirements.docs.lock"  # for tools/site
VENV = ROOT / ".venv"
SCALEKIT_VENV = ROOT / ".venv-scalekit"
TRACING_VENV = ROOT / ".venv-tracing"
CLIENTS_VENV = ROOT / ".venv-clients"
DOCS_VENV = ROOT / ".venv-docs"
PACKAGE_VENV = ROOT / ".venv-package"
TEST = ("pytest", "-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder")  # tests/conftest.py says how many
CONFORMANCE = ("tests/test_scalekit_sdk.py", "tests/test_federation_end_to_end.py")
UNMEASURED = ("addresses", "browser", "dev", "package", "proxies", "references", "state_machine")
CHECKS = (
    ("-m", "ruff", "check"),
    ("-m", "ruff", "format", "--check"),
    ("-m", "mypy"),
    ("-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"),
)
COMPILE = [
    "pip",
    "compile",
    "--quiet",
    "--universal",
    "--generate-hashes",
    "--python-version",
    "3.11",
]
LOCKS = (
    ("pyproject.toml", "--group", "dev", "-o", "requirements.lock"),
    (
        "pyproject.toml",
        "-c",
        "requirements.lock",
        "-o",
        "requirements.runtime.lock",
    ),  # the lock that the image installs
    ("--group", "browser", "-c", "requirements.lock", "-o", "requirements.browser.lock"),
    ("--group", "scalekit", "-o", "requirements.scalekit.lock"),  # for an environment of its own
    ("--group", "tracing", "-c", "requirements.lock", "-o", "requirements.tracing.lock"),  # likewise, beside the first
    ("--group", "clients", "-c", "requirements.lock", "-o", "requirements.clients.lock"),  # as above
    ("--group", "docs", "-o", "requirements.docs.lock"),  # likewise
    ("--group", "package", "-o", "requirements.package.lock"),  # for an environment of its own
)


def _python(folder: Path) -> str:
    return str(folder / "bin" / "python")


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, check=False, stdin=subprocess.DEVNULL).returncode == 0


def _pip_install(folder: Path, *wanted: str) -> bool:
    venv.create(folder, clear=True, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", _python(folder)]
    # Debian's Python has pip but no ensurepip, others have only ensurepip. A pip before 22.3 does not know --python.
    if subprocess.run([*pip, "--version"], check=False, capture_output=True).returncode:
        pip = [_python(folder), "-m", "pip"]
        # ensurepip writes to stdout, which belongs to the command that runs afterwards.
        if subprocess.run([*pip[:2], "ensurepip"], check=False, stdout=sys.stderr).returncode:
            sys.exit("This Python has neither pip nor ensurepip: install one of them (Debian: python3-pip), or uv.")
    return _succeeds(*pip, "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:", *wanted)


def _uv_install(folder: Path, *wanted: str) -> bool:
    uv = shutil.which("uv")
    return (
        uv is not None
        and _succeeds(uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder))
        and _succeeds(uv, "pip", "install", "--quiet", "--python", _python(folder), "--only-binary=:all:", *wanted)
    )


def _locks() -> list[Path]:
    """The locks to install. Playwright is large and of no use without Chromium, so it comes only where that is."""
    return [LOCK, BROWSER_LOCK] if shutil.which("chromium") else [LOCK]


def _wanted(folder: Path, locks: list[Path]) -> str | None:
    """The stamp of a finished environment: a digest of locks and Python's version. None if that Python does not run."""
    asked = [_python(folder), "-c", "import sys; print(sys.version, end='')"]
    with contextlib.suppress(OSError):
        version = subprocess.run(asked, check=False, capture_output=True).stdout
        content = b"".join(lock.read_bytes() for lock in locks)
        return hashlib.sha256(content + version).hexdigest() if version else None
    return None


def _prepare(folder: Path, locks: list[Path]) -> None:
    if folder.is_symlink():
        sys.exit(f"{folder} is a link, and an installation would empty the folder that it leads to. Remove the link.")
    stamp = folder / "keyturn.stamp"
    with locks[0].open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second call waits here, and then finds the stamp
        # The version is that of the Python in the folder. So a call by another Python than the one that made the folder
        # keeps it.
        if stamp.exists() and stamp.read_text() == _wanted(folder, locks):
            return
        print(f"Installing the dependencies into {folder.name} (once; about a minute).", file=sys.stderr, flush=True)
        stamp.unlink(missing_ok=True)  # the stamp is written last, so that an installation that broke off is repeated
        requirements = ("--require-hashes", *(word for lock in locks for word in ("-r", str(lock))))
        # uv is only faster. If uv cannot reach the registry that pip is configured for, pip installs the packages.
        if not _uv_install(folder, *requirements) and not _pip_install(folder, *requirements):
            sys.exit("The dependencies could not be installed; the next call tries again.")
        stamp.write_text(_wanted(folder, locks) or "")


def _compile_lock(*options: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        uv = shutil.which("uv") or f"{folder}/bin/uv"
        ready = Path(uv).exists() or _pip_install(Path(folder), "uv")
        return ready and all(_succeeds(uv, *COMPILE, *lock, *options) for lock in LOCKS)


def _wrong(why: str) -> NoReturn:
    print(f"dev.py: {why}\n\n{__doc__}", file=sys.stderr)
    sys.exit(2)


def main(command: str = "--help", *options: str) -> None:
    """Run one command; all but `lock` run in `.venv`."""
    if sys.version_info < (3, 11):  # noqa: UP036 - an older Python must say why it stops
        sys.exit(f"Keyturn needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}.")
    if command in {"-h", "--help"}:
        sys.exit(print(__doc__))
    modules = {
        "serve": ("app", "serve"),
        "demo": ("examples.web",),
        "issuer": ("tests.upstream",),
        "test": TEST,
        "conformance": ("pytest", "-n", "0", "-rs", *CONFORMANCE),
        "tracing": ("pytest", "-n", "0", "-rs", "tests/test_tracing.py"),
        "clients": ("clients",),
        "bench": ("bench",),
        "docs": ("tools.site",),
        "package": ("tools.package",),
        "passwords": ("tools.common_passwords",),
        "keyturn": ("app",),
    }
    if command not in {"check", "lock", "coverage", *modules}:
        _wrong("there is no such command")
    takes = {
        "check": set(),
        "demo": set(),
        "issuer": set(),
        "docs": set(),
        "package": set(),
        "lock": {"--upgrade"},
    }.get(command)
    if takes is not None and {"-h", "--help"} & set(options):
        sys.exit(print(__doc__))
    if takes is not None and not set(options) <= takes:
        _wrong(f"{command} has no such option")
    os.chdir(ROOT)  # so that `python -m` finds the packages of this checkout from any directory
    if command == "lock":
        sys.exit(not _compile_lock(*options))
    own = {
        "tracing": (TRACING_VENV, [LOCK, TRACING_LOCK]),
        "clients": (CLIENTS_VENV, [LOCK, CLIENTS_LOCK]),
        "docs": (DOCS_VENV, [DOCS_LOCK]),
        "package": (PACKAGE_VENV, [PACKAGE_LOCK]),
    }
    folder, locks = own.get(command) or (VENV, _locks())
    _prepare(folder, locks)
    if command == "conformance":
        _prepare(SCALEKIT_VENV, [SCALEKIT_LOCK])
        os.environ["TEST_INSTALL"] = "1"  # lets tests/upstream/provider.py install node's oidc-provider
    if command == "check":
        sys.exit(not all(_succeeds(_python(VENV), *check) for check in CHECKS))
    if command == "coverage":
        coverage = (_python(VENV), "-m", "coverage")
        # These are slow. The share is that of all other tests.
        left_out = (f"--ignore-glob=tests/test_{name}*" for name in UNMEASURED)
        steps = (("erase",), ("run", "-m", *TEST, *left_out, *options), ("combine", "--quiet"), ("report",))
        # The share of branches decides, not the tests: the tracer slows a process until a time limit of it may fail.
        sys.exit(not [_succeeds(*coverage, *step) for step in steps][-1])
    os.execv(_python(folder), [_python(folder), "-m", *modules[command], *options])


if __name__ == "__main__":
    main(*sys.argv[1:])
