"""Starts one real server of each kind for a whole process of tests, and makes a database for each test.

`python3 dev.py test` spreads the files over several processes (pytest-xdist). Each process has its own servers, folders
and ports.
"""

from __future__ import annotations

import asyncio
import functools
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from sqlalchemy import text

from app.actors import SERVICE
from app.keyturn import Keyturn, opened, running
from app.sessions.start import Authenticated
from app.settings import Settings, read
from app.storage.migrating import migrate
from tests.servers import Postgres, Redis

if TYPE_CHECKING:
    from playwright.async_api import Browser, Playwright

pytest_plugins = ("tests.upstream.fixtures",)
pytest.register_assert_rewrite(  # their failed assertions say what differs, as those of test files do
    "tests.api", "tests.command_line", "tests.edge_server", "tests.instances", "tests.raw_http"
)

SECRET = "x3pQkq0q4v0Tn5oHn1o9R2m8mWb7s3eJf6dKz1uYc5g="
"""The master secret of all tests. Its bytes are random, so that the settings accept them. Nothing else uses it."""

CHEAP = {
    "argon2_memory": "8",
    "argon2_passes": "1",
    "argon2_lanes": "1",
    # Many tests refresh one session in a loop, or send thousands of junk tokens. Tests of these limits set them.
    "limit_session": "off",
    "limit_junk": "off",
}
PASSWORD = "seven lamps under a quiet roof"
NEW_PASSWORD = "an entirely new password"

LONGEST = (
    "test_redis_faults",
    "test_state_machine",
    "test_planted_bugs",
    "test_races",
    "test_command_words",
    "test_killed_logout",
    "test_revocation_model",
)
"""These files begin first, so that no process is still busy with a long file while all others have ended."""

DEEP = {
    "test_browser_demo",
    "test_contract",
    "test_crashes",
    "test_federation_storm",
    "test_key_storms",
    "test_planted_bugs",
    "test_policy_storm",
    "test_redis_faults",
    "test_revocation_model",
    "test_sign_in_storm",
}
"""These files repeat for long what others run once: storms, outages, planted bugs. Only `--deep`, or their names, runs
them, and the single tests that `pytest.mark.deep` marks."""


# No deadline, because the processes of tests share the cores: a slow example shows no fault of the tested code.
hypothesis.settings.register_profile(
    "keyturn", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("keyturn")


def pytest_configure() -> None:
    # The settings of the environment must not reach the tests, which make settings of their own.
    for name in [n for n in os.environ if n.startswith("KEYTURN_")]:
        del os.environ[name]
    # A shell starts commands in its background with SIGINT ignored, and the programs that tests interrupt inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if _COVERAGE in os.environ:
        _measure_children()


_COVERAGE = "COVERAGE_PROCESS_CONFIG"
"""The variable that `coverage run` sets. Coverage measures each Python process that has it."""


def _measure_children() -> None:
    """Hand the variable on to each process that a test starts with an environment of its own.

    An environment without PATH is left as it is: such a process becomes a user who may not write the measured data.
    """
    popen = subprocess.Popen.__init__

    @functools.wraps(popen)
    def measured(self: Any, *arguments: Any, **options: Any) -> None:
        if "PATH" in (options.get("env") or {}):
            options["env"] = {_COVERAGE: os.environ[_COVERAGE], **options["env"]}
        popen(self, *arguments, **options)

    subprocess.Popen.__init__ = measured  # type: ignore[method-assign]  # only while coverage is measured


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many processes `-n auto` means: more than there are cores, because many tests only wait for time to pass."""
    one_file = len(config.args) == 1 and ".py" in config.args[0]
    if one_file or os.environ.keys() & {"TEST_DATABASE_URL", "TEST_REDIS_URL"}:
        return 0  # no further process: tests on a server that the environment names run one after the other
    cores = os.cpu_count() or 1
    return cores if config.getoption("deep") else min(2 * cores, 8)  # a storm keeps a core busy by itself


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--deep", action="store_true", help="run only the storms, outages and planted bugs")


def _names_files(config: pytest.Config) -> bool:
    return any(".py" in argument for argument in config.args)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    order = {f"{name}.py": n for n, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
    if _names_files(config):
        return
    deep = {item for item in items if item.path.stem in DEEP or item.get_closest_marker("deep")}
    left_out = [item for item in items if (item in deep) != config.getoption("deep")]
    config.hook.pytest_deselected(items=left_out)
    kept = {*items} - {*left_out}
    items[:] = [item for item in items if item in kept]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not config.getoption("deep") and not _names_files(config):
        terminalreporter.write_line("Left out: what repeats for long. python3 dev.py test --deep runs it.")


@pytest.fixture(scope="session", autouse=True)
def no_log_of_the_run_has_a_secret(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[None]:
    """Searches the logs of all services that this process of tests started, and all refusals that its clients got.

    Pytest makes this fixture first and so takes it down last, after all services have ended.
    """
    from tests.leaks import leaks, service_logs
    from tests.refusals import recorded

    with recorded(tmp_path_factory.mktemp("refusals")):
        yield
    logs = service_logs(tmp_path_factory.getbasetemp())
    found = list(leaks(tmp_path_factory.getbasetemp()))
    print(f"{len(logs)} logs of services searched for secrets")
    if found:  # the failure is the run's, and not that of its last test: `.ci/run` gives that one no second chance
        (pytestconfig.rootpath / ".pytest_cache").mkdir(exist_ok=True)
        (pytestconfig.rootpath / ".pytest_cache" / "leaks").touch()
    assert not found, "; ".join(found[:20])


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    server = Postgres.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def redis() -> Iterator[Redis]:
    server = Redis.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for the logs of services."""
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
async def playwright() -> AsyncIterator[Playwright]:
    from tests.browser import driver

    async with driver() as playwright:
        yield playwright


@pytest.fixture(scope="module")
async def browser(playwright: Playwright) -> AsyncIterator[Browser]:
    """A Chromium without a window. Its tests are skipped where `tests.browser.MISSING` says why it can't run."""
    from tests.browser import chromium

    async with chromium(playwright) as browser:
        yield browser


def sync(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Runs a coroutine on an event loop of its own, for fixtures that do not run on the loop of the tests."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, coroutine).result()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database at the newest schema, which the tests copy."""
    path = tmp_path_factory.mktemp("template") / "keyturn.db"
    migrate(settings_of(f"sqlite+aiosqlite:///{path}", None))
    return path


@pytest.fixture(scope="session")
def template(postgres: Postgres) -> str:
    """A Postgres database at the newest schema, which the tests copy."""
    name = f"template_{secrets.token_hex(4)}"
    sync(postgres.create_database(name))
    migrate(settings_of(postgres.url(name), None))
    return name


def settings_of(database_url: str, redis_url: str | None, **more: Any) -> Settings:
    """Settings for tests, checked as the service checks its own. `more` overrides them by name."""
    values = {
        "database_url": database_url,
        "redis_url": redis_url or "none",
        "secret": SECRET,
        "issuer": "https://auth.example.com",
        **CHEAP,
        **more,
    }
    return read({f"KEYTURN_{name.upper()}": str(value) for name, value in values.items()})


@pytest.fixture(params=["postgres", "sqlite"])
def engine(request: pytest.FixtureRequest) -> str:
    """The kind of database. A test that uses this fixture runs on both kinds."""
    return str(request.param)


@pytest.fixture
def database_url(engine: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a new database at the newest schema."""
    if engine == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "keyturn.db")
        yield f"sqlite+aiosqlite:///{tmp_path / 'keyturn.db'}"
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    name = f"test_{secrets.token_hex(6)}"
    sync(postgres.create_database(name, template=request.getfixturevalue("template")))
    yield postgres.url(name)
    sync(postgres.drop_database(name))


Opener = Callable[..., AbstractAsyncContextManager[Keyturn]]


@pytest.fixture
def open_keyturn(database_url: str) -> Opener:
    """Opens a Keyturn on the test's database. Each call makes a further instance."""

    @asynccontextmanager
    async def opener(*, redis_url: str | None = None, **settings: Any) -> AsyncIterator[Keyturn]:
        async with opened(settings_of(database_url, redis_url, **settings)) as keyturn, running(keyturn):
            yield keyturn

    return opener


@pytest.fixture
async def keyturn(open_keyturn: Opener) -> AsyncIterator[Keyturn]:
    """One instance of Keyturn, without Redis."""
    async with open_keyturn() as keyturn:
        yield keyturn


async def a_user(keyturn: Keyturn, email: str = "ada@example.com", role: str = "user") -> Authenticated:
    """A new user who has just proved the password."""
    await keyturn.users.create(email, PASSWORD, role, by=SERVICE)
    return await keyturn.sign_in.authenticate(email, PASSWORD)


async def time_passes(keyturn: Keyturn, how_much: timedelta) -> None:
    """Makes all sessions and keys older. Keyturn reads the database's clock, which stays, so the rows' moments move.

    `how_much` must be whole seconds. Then a value derived from the seconds of a moment shifts by the same amount.
    """
    columns = [
        "created_at",
        "rotated_at",
        "idle_expires_at",
        "absolute_expires_at",
        "ended_at",
        "auth_time",
        "moved_at",
    ]
    shift: Any = how_much
    if not keyturn.db.is_postgres:
        shift = int(how_much.total_seconds()) * 1_000_000
    moves = ", ".join(
        f"{c} = {c} - " + ("CAST(:shift AS interval)" if keyturn.db.is_postgres else ":shift") for c in columns
    )
    async with keyturn.db.begin() as tx:
        await tx.execute(text(f"UPDATE sessions SET {moves}"), {"shift": shift})
        # The keys' `created_at` moves as well, so that the keys stay older than their sessions.
        await tx.execute(text(f"UPDATE keys SET {moves.partition(',')[0]}"), {"shift": shift})
