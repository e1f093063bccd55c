"""The first start and every later one: the things that are made, those that are found, and the errors that stop it."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest
from sqlalchemy import func, insert, select, text, update

from app.actors import SERVICE
from app.command_name import called
from app.commands.first_start import prepare
from app.errors import ConfigurationError, InvalidGrant, TemporarilyUnavailable
from app.keyturn import Keyturn, opened, running
from app.settings import Settings, read
from app.storage.migrating import migrate
from app.storage.schema import check_schema
from app.storage.tables import Key, User
from app.tokens.key_set import Use
from app.tokens.master_secret import make_secret, master_secret_of
from app.users.first_administrator import ADMINISTRATOR, first_administrator
from tests.conftest import CHEAP, SECRET, Opener, a_user, settings_of
from tests.servers import Postgres, free_port

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def embedded(folder: Path, **more: str) -> Settings:
    return read({f"KEYTURN_{n.upper()}": v for n, v in {"data_dir": str(folder), **CHEAP, **more}.items()})


async def prepared(settings: Settings) -> None:
    """Prepares the first start in a thread, because migrations run on an event loop of their own."""
    await asyncio.to_thread(prepare, settings)


@asynccontextmanager
async def started(settings: Settings) -> AsyncIterator[tuple[Keyturn, str | None]]:
    """Starts as `keyturn serve` does."""
    await prepared(settings)
    async with opened(settings) as keyturn, running(keyturn):
        yield keyturn, await first_administrator(keyturn.db, keyturn.users)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_a_first_start_makes_folder_secret_schema_keys_and_administrator(tmp_path: Path) -> None:
    settings = embedded(tmp_path / "a" / "data")
    before = os.umask(0)
    try:
        async with started(settings) as (keyturn, password):
            assert (mode(settings.data_dir), mode(settings.secret_path)) == (0o700, 0o600)
            assert sorted(p.name for p in settings.data_dir.iterdir() if not p.name.startswith("keyturn.db")) == [
                "secret"
            ]
            assert {key["use"] for key in await keyturn.keys.list() if key["status"] == "signs"} == {
                "access",
                "refresh",
                "cookie",
            }
            assert password is not None
            assert len(password) == 20
            user = await keyturn.users.find(ADMINISTRATOR)
            assert (user.role, user.password_expires_at is not None) == ("admin", True)
            assert (await keyturn.sign_in.authenticate(ADMINISTRATOR, password)).user_id == user.id
    finally:
        os.umask(before)


async def test_a_second_start_finds_everything_again(tmp_path: Path) -> None:
    settings = embedded(tmp_path / "data")
    async with started(settings) as (keyturn, password):
        assert password
        keys, secret = await keyturn.keys.list(), settings.secret_path.read_bytes()
    async with started(settings) as (keyturn, again):
        assert again is None
        assert settings.secret_path.read_bytes() == secret
        assert [key["kid"] for key in await keyturn.keys.list()] == [key["kid"] for key in keys]
        assert await keyturn.sign_in.authenticate(ADMINISTRATOR, password)
        assert len(await keyturn.users.list(limit=10)) == 1
    assert not make_secret(settings)


async def test_an_administrator_who_was_disabled_is_not_made_again(tmp_path: Path) -> None:
    settings = embedded(tmp_path / "data")
    async with started(settings) as (keyturn, password):
        assert password
        other = await keyturn.users.create("ada@example.com", "longer than eight", "admin", by=SERVICE)
        await keyturn.users.disable((await keyturn.users.find(ADMINISTRATOR)).id, by=SERVICE)
        assert await first_administrator(keyturn.db, keyturn.users) is None
        with pytest.raises(InvalidGrant):
            await keyturn.sign_in.authenticate(ADMINISTRATOR, password)
        assert other.role == "admin"


async def test_first_administrators_made_at_once_are_one(open_keyturn: Opener) -> None:
    async with open_keyturn() as one, open_keyturn() as two:
        made = await asyncio.gather(*(first_administrator(k.db, k.users) for k in (one, two, one, two)))
        [password] = [password for password in made if password is not None]
        assert await two.sign_in.authenticate(ADMINISTRATOR, password)
        assert len(await one.users.list(limit=10)) == 1


async def test_first_keys_made_at_once_are_one_of_each_use(open_keyturn: Opener) -> None:
    async with open_keyturn() as one, open_keyturn() as two:
        async with one.db.begin() as tx:
            await tx.execute(text("DELETE FROM keys"))
        made = await asyncio.gather(*(k.keys.make_first(by=SERVICE) for k in (one, two, one, two)))
        assert made.count(True) == 1
        assert sorted(key["use"] for key in await two.keys.list()) == ["access", "cookie", "refresh"]


async def test_a_database_without_a_cookie_key_gets_one_at_the_next_start_and_serves_tokens_until_then(
    open_keyturn: Opener,
) -> None:
    async with open_keyturn() as keyturn:
        tokens = await keyturn.starting.start(await a_user(keyturn), by=SERVICE)
        # The release before knows no cookie keys. Its `keys replace` retires them all and makes none.
        async with keyturn.db.begin() as tx:
            await tx.execute(update(Key).where(Key.use == "cookie").values(retired_at=keyturn.db.now()))
        await keyturn.keys.load()
        with pytest.raises(TemporarilyUnavailable):
            _ = keyturn.keys.signing_cookie
        tokens = await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)
        assert await keyturn.reading.verify(tokens.access_token)
        async with open_keyturn() as started_later:
            assert started_later.keys.signing_cookie.kid in {key["kid"] for key in await keyturn.keys.list()}
            assert started_later.keys.signing_access == keyturn.keys.signing_access
            await keyturn.keys.load()
            assert keyturn.keys.signing_cookie == started_later.keys.signing_cookie


@contextmanager
def serving(folder: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = {"PATH": os.environ["PATH"], "KEYTURN_DATA_DIR": str(folder), "KEYTURN_PORT": "0"}
    environment |= {f"KEYTURN_{name.upper()}": value for name, value in CHEAP.items()}
    with (
        log.open("wb") as out,
        subprocess.Popen(
            [sys.executable, "-m", "app", "serve"], cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            finally:
                process.kill()


def test_two_first_starts_at_once_make_one_of_everything(tmp_path: Path) -> None:
    folder, logs = tmp_path / "data", [tmp_path / "one.log", tmp_path / "two.log"]
    with serving(folder, logs[0]) as one, serving(folder, logs[1]) as two:
        until = time.monotonic() + 60  # two first starts share the machine's cores
        while not all("Uvicorn running" in log.read_text() for log in logs) and time.monotonic() < until:
            assert one.poll() is two.poll() is None, "".join(log.read_text() for log in logs)
            time.sleep(0.1)
    said = [log.read_text() for log in logs]
    assert all("Uvicorn running" in text and "Traceback" not in text for text in said), said
    passwords = [found for text in said for found in re.findall(rf"{ADMINISTRATOR}   (\S{{20}})", text)]
    assert len(passwords) == 1

    async def look() -> None:
        async with opened(embedded(folder)) as keyturn:
            await keyturn.keys.load()
            assert sorted(key["use"] for key in await keyturn.keys.list()) == ["access", "cookie", "refresh"]
            assert [user.email for user in await keyturn.users.list(limit=10)] == [ADMINISTRATOR]
            assert await keyturn.sign_in.authenticate(ADMINISTRATOR, passwords[0])
            async with keyturn.db.look() as connection:
                assert (await connection.execute(text("SELECT version_num FROM alembic_version"))).all() == [("0001",)]
                assert await connection.scalar(text("SELECT count(*) FROM cache_fence")) == 1
        assert sorted(p.name for p in folder.iterdir() if not p.name.startswith("keyturn.db")) == ["secret"]

    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, look()).result()


def refused(settings: Settings, saying: str) -> str:
    """Checks that a start fails with this error, in one line, and returns the text of the error."""

    def start() -> None:
        prepare(settings)
        master_secret_of(settings)

    with pytest.raises(ConfigurationError, match=saying) as caught:
        start()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("bits", [0o040, 0o004, 0o020, 0o002])
def test_a_secret_that_others_may_read_or_change_stops_the_start(tmp_path: Path, bits: int) -> None:
    settings = embedded(tmp_path / "data")
    prepare(settings)
    settings.secret_path.chmod(0o600 | bits)
    assert settings.secret_path.read_text().strip() not in refused(settings, "is open to others; chmod 600 it")


@pytest.mark.parametrize("bits", [0o050, 0o005, 0o001])
def test_a_folder_that_others_may_enter_stops_the_start(tmp_path: Path, bits: int) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o700 | bits)
    refused(embedded(tmp_path / "data"), r"KEYTURN_DATA_DIR: /\S+/data is open to others; chmod 700 it")
    assert not list((tmp_path / "data").iterdir())


as_root = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give a file away")
NOBODY = 65534


@as_root
@pytest.mark.parametrize("what", ["data", "data/secret", "data/keyturn.db"])
def test_root_does_not_use_what_another_user_owns(tmp_path: Path, what: str) -> None:
    settings = embedded(tmp_path / "data")
    prepare(settings)
    os.chown(tmp_path / what, NOBODY, -1)
    refused(
        settings, r"(KEYTURN_DATA_DIR: /\S+/data|the .* in \S+) belongs to another user; run as that user, or chown it"
    )


@as_root
def test_root_does_not_read_a_setting_from_a_file_that_another_user_owns(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(SECRET)
    (tmp_path / "key").chmod(0o600)
    os.chown(tmp_path / "key", NOBODY, -1)
    with pytest.raises(ConfigurationError, match=r"^KEYTURN_SECRET_FILE: belongs to another user;[^\n]+$"):
        embedded(tmp_path / "data", secret_file=str(tmp_path / "key"))


@pytest.mark.parametrize("by_url", [False, True])
async def test_the_files_of_sqlite_are_for_their_owner_alone_wherever_they_are(tmp_path: Path, by_url: bool) -> None:
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    url = {"database_url": f"sqlite+aiosqlite:///{folder / 'keyturn.db'}", "secret": SECRET} if by_url else {}
    before = os.umask(0)
    try:
        async with started(embedded(folder, **url)) as (keyturn, _):
            await keyturn.users.create("ada@example.com", "a good password", by=SERVICE)
            modes = {path.name: mode(path) for path in folder.glob("keyturn.db*")}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(["keyturn.db", "keyturn.db-wal", "keyturn.db-shm"], 0o600)


def test_a_folder_that_can_not_be_made_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    refused(embedded(tmp_path / "data"), r"KEYTURN_DATA_DIR: /\S+/data can't be made")


@pytest.mark.parametrize("content", [b"", b"hunter2\n", b"\xff\xfe", SECRET[:30].encode()])
def test_a_damaged_secret_file_stops_the_start_and_is_kept(tmp_path: Path, content: bytes) -> None:
    settings = embedded(tmp_path / "data")
    prepare(settings)
    settings.secret_path.write_bytes(content)
    assert "hunter2" not in refused(settings, "KEYTURN_SECRET: must be|can't be read")
    assert settings.secret_path.read_bytes() == content


def test_a_secret_file_that_is_a_folder_stops_the_start(tmp_path: Path) -> None:
    settings = embedded(tmp_path / "data")
    settings.secret_path.mkdir(parents=True)
    settings.data_dir.chmod(0o700)
    settings.secret_path.chmod(0o700)
    refused(settings, "can't be read")


def test_a_full_disk_stops_the_first_start_and_leaves_no_half_secret(tmp_path: Path) -> None:
    # With a file size limit of zero, a write fails as on a full disk.
    program = """
import resource, signal, sys
from app.errors import ConfigurationError
from app.settings import read
from app.commands.first_start import prepare
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
settings = read()
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    prepare(settings)
except ConfigurationError as e:
    print(e)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "KEYTURN_DATA_DIR": "data"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "the master secret in data/secret can't be written (File too large)" in done.stdout, done
    assert not list((tmp_path / "data").iterdir())


def test_a_file_that_is_no_database_stops_the_start(tmp_path: Path) -> None:
    settings = embedded(tmp_path / "data")
    prepare(settings)
    (settings.data_dir / "keyturn.db").write_bytes(b"not a database, whatever its name says. " * 100)
    refused(settings, rf"the database file {settings.data_dir}/keyturn\.db is no SQLite database")


@pytest.mark.parametrize("what", ["folder", "below a file", "in no folder"])
async def test_a_file_that_can_not_be_opened_is_named_in_one_line_by_each_command(tmp_path: Path, what: str) -> None:
    place = {"folder": tmp_path, "below a file": tmp_path / "x" / "db", "in no folder": tmp_path / "y" / "db"}[what]
    (tmp_path / "x").touch()
    settings = embedded(tmp_path / "data", database_url=f"sqlite+aiosqlite:///{place}", secret=SECRET)
    said = rf"^the database file {place} can't be opened: .* \(SQLITE_CANTOPEN\w*\)$"
    refused(settings, said)
    async with opened(settings) as keyturn:
        with pytest.raises(ConfigurationError, match=said):
            await check_schema(keyturn.db)


def test_a_sqlite_that_is_named_needs_a_secret_that_is_named(tmp_path: Path) -> None:
    settings = embedded(tmp_path / "data", database_url=f"sqlite+aiosqlite:///{tmp_path / 'other.db'}")
    assert "serve" not in refused(settings, r"there is no master secret in \S+: set KEYTURN_SECRET$")
    assert not (tmp_path / "data").exists()


def test_no_secret_is_made_beside_one_that_is_set(tmp_path: Path) -> None:
    settings = embedded(tmp_path / "data", secret=SECRET)
    prepare(settings)
    assert not settings.secret_path.exists()
    assert len(master_secret_of(settings)) == 32


def test_nothing_is_made_beside_a_postgres(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(settings_of("postgresql://nobody@localhost:1/none", None, data_dir=str(tmp_path / "data")))
    assert not (tmp_path / "data").exists()


async def stopped(settings: Settings, saying: str, error: type[Exception] = ConfigurationError) -> None:
    with pytest.raises(error, match=saying) as caught:
        async with opened(settings) as keyturn, running(keyturn):
            pytest.fail("it started")
    line = str(caught.value)
    assert "\n" not in line
    assert SECRET not in line


async def test_another_master_secret_stops_the_start(open_keyturn: Opener, database_url: str) -> None:
    async with open_keyturn():
        pass
    other = "b" + SECRET[1:]
    await stopped(settings_of(database_url, None, secret=other), "KEYTURN_SECRET is not the one it was sealed under")


@pytest.mark.parametrize("use", get_args(Use))
async def test_one_flipped_bit_of_a_sealed_key_stops_the_start(
    open_keyturn: Opener, database_url: str, use: str
) -> None:
    async with open_keyturn() as keyturn:
        async with keyturn.db.begin() as tx:
            kid, sealed = (await tx.execute(select(Key.kid, Key.sealed).where(Key.use == use))).one()
        for place in (0, 11, 12, len(sealed) // 2, len(sealed) - 1):
            flipped = bytearray(sealed)
            flipped[place] ^= 1 << (place % 8)
            async with keyturn.db.begin() as tx:
                await tx.execute(update(Key).where(Key.kid == kid).values(sealed=bytes(flipped)))
            await stopped(settings_of(database_url, None), f"key {kid} can't be unsealed")
        async with keyturn.db.begin() as tx:
            await tx.execute(update(Key).where(Key.kid == kid).values(sealed=sealed))
    async with open_keyturn():
        pass  # with the original bytes, the service starts


async def versioned(keyturn: Keyturn, version: str | None) -> None:
    async with keyturn.db.begin() as tx:
        await tx.execute(text("DELETE FROM alembic_version"))
        if version is not None:
            await tx.execute(text("INSERT INTO alembic_version VALUES (:v)"), {"v": version})


async def test_a_schema_that_is_behind_stops_the_start(open_keyturn: Opener, database_url: str) -> None:
    async with open_keyturn() as keyturn:
        await versioned(keyturn, None)
    await stopped(
        settings_of(database_url, None), rf"^the schema is at nothing, .* run {re.escape(called())} db upgrade$"
    )


async def test_a_database_without_a_schema_stops_the_start(engine: str, request: Any, tmp_path: Path) -> None:
    if engine == "sqlite":
        await stopped(
            settings_of(f"sqlite+aiosqlite:///{tmp_path / 'new.db'}", None), rf"run {re.escape(called())} db upgrade$"
        )
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    await postgres.create_database("test_without_schema")
    try:
        await stopped(settings_of(postgres.url("test_without_schema"), None), rf"run {re.escape(called())} db upgrade$")
    finally:
        await postgres.drop_database("test_without_schema")


async def test_a_schema_that_is_ahead_is_accepted(open_keyturn: Opener) -> None:
    async with open_keyturn() as keyturn:
        await versioned(keyturn, "9999")
    async with open_keyturn() as keyturn:
        await check_schema(keyturn.db)


async def test_an_unreachable_database_stops_the_start() -> None:
    url = f"postgresql://keyturn:hunter2@127.0.0.1:{free_port()}/keyturn"
    with pytest.raises(TemporarilyUnavailable, match=r"^the database can't be reached") as caught:
        async with opened(settings_of(url, None)) as keyturn, running(keyturn):
            pytest.fail("it started")
    assert "hunter2" not in str(caught.value)


async def test_a_database_that_does_not_let_us_in_is_not_called_empty(postgres: Postgres) -> None:
    await stopped(settings_of(postgres.url("no_such_database"), None), r"^there is no such database: ")
    url = postgres.url("postgres")
    named = url.replace("postgres@", "no_such_role@")
    if named != url:  # a server named by the environment may have another user in its URL
        await stopped(settings_of(named, None), r"^the database does not let us in \(SQLSTATE 28000\): ")


async def test_migrations_of_the_embedded_default_can_run_at_every_start(tmp_path: Path) -> None:
    settings = embedded(tmp_path / "data")
    await prepared(settings)
    async with opened(settings) as keyturn, keyturn.db.begin() as tx:
        await tx.execute(
            insert(User).values(email="a@b.c", password_hash="x", role="user", created_at=keyturn.db.now())
        )
    await asyncio.to_thread(migrate, settings)
    async with opened(settings) as keyturn, keyturn.db.look() as connection:
        assert await connection.scalar(select(func.count()).select_from(User)) == 1
        assert await connection.scalar(text("PRAGMA journal_mode")) == "wal"


@as_root
@pytest.mark.parametrize("words", [("serve",), ("doctor",), ("migrate",), ("users", "list")])
def test_a_user_id_without_a_name_starts_or_is_told_in_one_line(tmp_path: Path, words: tuple[str, ...]) -> None:
    # Only root may be able to read the interpreter's files. So the program imports everything before it drops its
    # rights.
    program = """
import os, sys
import app.commands.command, app.main, app.http.protocol, asyncpg, uvloop, httptools, uvicorn.loops.uvloop, encodings.idna, encodings.ascii
import sqlite3, sqlalchemy.dialects.sqlite.pysqlite, aiosqlite, getpass
import uvicorn.lifespan.on, uvicorn.supervisors
os.setgroups([]); os.setgid(0); os.setuid(54321)
sys.exit(app.commands.command.main(sys.argv[1:]))
"""

    def run(**settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program, *words],
            cwd=folder,
            env={"PYTHONPATH": str(ROOT), **{f"KEYTURN_{name}": value for name, value in settings.items()}},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # pytest's own folders are closed to other users
    try:
        folder.chmod(0o1777)
        production = {"REDIS_URL": "none", "SECRET": SECRET, "ISSUER": "https://auth.example.com"}
        named = run(DATABASE_URL=f"postgresql://u@127.0.0.1:{free_port()}/db", **production)
        assert named.returncode == 3, named
        nameless = run(DATABASE_URL=f"postgresql://127.0.0.1:{free_port()}/db", **production)
        assert nameless.returncode == (1 if words == ("doctor",) else 2)
        assert "KEYTURN_DATABASE_URL: must name a user; this process's has no name" in nameless.stdout + nameless.stderr
        done = run(DATA_DIR=str(folder / "data")) if words == ("migrate",) else None
        for each in filter(None, (named, nameless, done)):
            assert "Traceback" not in each.stderr
        if done:
            assert done.returncode == 0
            assert mode(folder / "data") == 0o700
    finally:
        shutil.rmtree(folder)
