"""`keyturn doctor`: what it finds amiss, and what it advises."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from datetime import datetime, timedelta, tzinfo
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest
import redis
from sqlalchemy import text, update

from app.command_name import called
from app.keyturn import Keyturn
from app.storage.tables import User
from app.users.first_administrator import first_administrator
from tests.command_line import ROOT, Command, Done, findings, keyturn, on_sqlite, user
from tests.conftest import PASSWORD, SECRET
from tests.servers import Redis, free_port

__all__ = ["keyturn"]  # fixtures


def test_the_doctor_counts_the_stored_hashes_that_are_not_computed(keyturn: Command) -> None:
    made = [user(keyturn, f"user{i}@example.com", "--role", "admin") for i in range(4)]
    assert findings(keyturn("doctor", "--json"))["stored password hashes"] == ""
    for user_id, stored in zip(
        made[1:], ("", "$2b$12$x", f"$argon2id$v=19$m=4194304,t=1,p=1${'A' * 22}${'A' * 43}"), strict=True
    ):
        keyturn.inside(partial(store, user_id=user_id, stored=stored))
    found = keyturn("doctor", "--json")
    assert found.code == 1
    advice = findings(found)["stored password hashes"]
    assert advice.startswith("3 are not computed")
    assert f"users set-password {made[1]}" in advice
    keyturn.ok("users", "set-password", made[1], stdin=PASSWORD.encode())
    assert findings(keyturn("doctor", "--json"))["stored password hashes"].startswith("2 are not computed")


async def store(keyturn: Keyturn, user_id: str, stored: str) -> None:
    async with keyturn.db.begin() as tx:
        await tx.execute(update(User).where(User.id == UUID(user_id)).values(password_hash=stored))


@on_sqlite
def test_the_doctor_says_what_room_there_is_for_hashes(keyturn: Command) -> None:
    [words] = [check for check in findings(keyturn("doctor", "--json")) if check.startswith("password hashes: ")]
    assert "at a time in each process, 8 KiB each, 32 may wait" in words
    assert "cores: " in words


def test_the_doctor_finds_what_is_amiss_and_nothing_else(keyturn: Command) -> None:
    done = keyturn("doctor", "--json")
    assert done.code == 1
    found = findings(done)
    assert found["settings"] == found["master secret"] == found["database and schema"] == ""
    assert found["keys"] == f"run {called()} serve once to make them"
    assert found["administrator"] == f"make one: {called()} users create EMAIL --role admin"

    keyturn.inside(lambda k: first_administrator(k.db, k.users))
    done = keyturn("doctor", "--json")
    assert done.code == 1
    assert {check: advice for check, advice in findings(done).items() if advice} == {
        "initial password": f"change it: {called()} users set-password admin@localhost"
    }
    text = keyturn("doctor")
    assert text.code == 1
    assert f"!!  initial password: change it: {called()} users set-password admin@localhost\n" in text.out

    keyturn.ok("users", "set-password", "admin@localhost", "--password-stdin", stdin=b"a better password\n")
    assert set(findings(keyturn.ok("doctor", "--json")).values()) == {""}
    assert keyturn.ok("doctor").out.startswith("ok  settings\n")


@on_sqlite
@pytest.mark.parametrize(("files", "clients"), [(1024, 768), (128, 64)])
def test_the_doctor_says_that_few_files_may_be_open(keyturn: Command, files: int, clients: int) -> None:
    limited = f'ulimit -n {files} && exec "$@"'
    basis = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ("sh", "-c", limited, "sh", sys.executable, "-m", "app", "doctor", "--json"),
        env=basis | keyturn.environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    advice = findings(Done(done.returncode, done.stdout, done.stderr))[f"open files ({files})"]
    assert advice == f"raise the limit of open files (ulimit -n): each process serves {clients} connections at once"


@on_sqlite
def test_the_doctor_says_which_part_of_a_set_up_is_no_good(keyturn: Command) -> None:
    good = keyturn.environment
    for change, advice in (
        ({"KEYTURN_RETRY_WINDOWS": "hunter2"}, "KEYTURN_RETRY_WINDOWS: there is no such setting"),
        ({"KEYTURN_SECRET": "hunter2" * 8}, "KEYTURN_SECRET: "),
    ):
        keyturn.environment = good | change
        done = keyturn("doctor", "--json")
        assert done.code == 1
        assert advice in findings(done)["set-up"]
        assert "hunter2" not in done.out
    # The keys were sealed under another master secret than this one.
    keyturn.environment = good
    keyturn.inside(lambda k: k.keys.load())
    keyturn.environment = good | {"KEYTURN_SECRET": "b" + SECRET[1:]}
    assert "can't be unsealed" in findings(keyturn("doctor", "--json"))["set-up"]


@on_sqlite
def test_the_doctor_says_that_a_start_that_traces_lacks_the_sdk(
    keyturn: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert "set-up" not in findings(keyturn("doctor", "--json"))
    keyturn.environment = keyturn.environment | {"KEYTURN_TRACING": "true"}
    assert findings(keyturn("doctor", "--json"))["set-up"].startswith("KEYTURN_TRACING needs OpenTelemetry's SDK")


@on_sqlite
def test_the_doctor_says_by_which_proxies_clients_are_known(keyturn: Command) -> None:
    def said() -> list[str]:
        found = findings(keyturn("doctor", "--json"))
        return [f"{check}{advice}" for check, advice in found.items() if check.startswith("addresses of clients: ")]

    of_connections = "those of the connections, as KEYTURN_TRUSTED_PROXIES names no proxy"
    assert said() == [f"addresses of clients: {of_connections}"]
    keyturn.environment = keyturn.environment | {"KEYTURN_TRUSTED_PROXIES": "10.0.0.5"}
    assert said() == ["addresses of clients: by x-forwarded-for of the proxies 10.0.0.5"]


@on_sqlite
def test_the_doctor_sees_that_redis_is_away(keyturn: Command) -> None:
    keyturn.environment["KEYTURN_REDIS_URL"] = f"redis://127.0.0.1:{free_port()}"
    done = keyturn("doctor", "--json")
    assert done.code == 3
    assert findings(done)["cache (away)"] == (
        "away: Redis can't be reached (Connection refused); the database answers in its place: "
        "start Redis, or look at KEYTURN_REDIS_URL"
    )


@on_sqlite
def test_the_doctor_tells_a_redis_that_nobody_filled_from_one_that_may_evict(keyturn: Command) -> None:
    with (
        Redis.start(settings=["--maxmemory-policy", "noeviction"]) as server,
        closing(redis.Redis.from_url(server.url())) as client,
    ):
        keyturn.environment["KEYTURN_REDIS_URL"] = server.url()
        advice = findings(keyturn("doctor", "--json"))["cache (not filled)"]
        assert advice.startswith("Redis is not filled yet, and the database answers")
        assert advice.endswith(f"{called()} serve")
        client.config_set("maxmemory", "100mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        advice = findings(keyturn("doctor", "--json"))["cache (may evict)"]
        assert advice.endswith("set maxmemory-policy noeviction")


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_the_doctor_sees_that_postgres_does_not_enforce_foreign_keys(keyturn: Command) -> None:
    assert findings(keyturn("doctor", "--json"))["foreign keys are enforced"] == ""

    async def switched_off(keyturn: Keyturn) -> None:
        async with keyturn.db.begin() as tx:
            name = await tx.scalar(text("SELECT current_database()"))
            await tx.execute(text(f"ALTER DATABASE {name} SET session_replication_role = replica"))

    keyturn.inside(switched_off)
    found = keyturn("doctor", "--json")
    assert found.code == 1
    advice = "set session_replication_role = origin for this role and database"
    assert findings(found)["foreign keys are enforced"] == advice


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
@pytest.mark.parametrize(("seconds", "differs"), [(0, False), (30, True), (-30, True)])
def test_the_doctor_compares_this_machines_clock_with_the_databases(
    keyturn: Command, monkeypatch: pytest.MonkeyPatch, seconds: int, differs: bool
) -> None:
    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Shifted:
            return super().now(tz) + timedelta(seconds=seconds)

    monkeypatch.setattr("app.storage.condition.datetime", Shifted)
    advice = findings(keyturn("doctor", "--json"))["clock"]
    assert advice == ("it differs from the database's: let NTP set both" if differs else "")


def test_the_doctor_sees_that_tokens_are_still_signed_by_another_algorithm(keyturn: Command) -> None:
    keyturn.inside(lambda k: k.keys.load())
    keyturn.environment["KEYTURN_SIGNING_ALGORITHM"] = "EdDSA"
    old = next(key["kid"] for key in keyturn.ok("keys", "list", "--json").json if key["use"] == "access")
    advice = (
        "KEYTURN_SIGNING_ALGORITHM is EdDSA, and access tokens are signed with HS256: "
        f"{called()} keys rotate access --algorithm EdDSA, or change the setting"
    )
    assert findings(keyturn("doctor", "--json"))[f"access tokens signed with HS256 (key {old}) now"] == advice
    done = keyturn.ok("keys", "generate", "access")
    new = done.out.strip()
    assert done.err.startswith(f"{old} (HS256) signs access tokens now; {new} (EdDSA) is published and signs from ")
    both = f"access tokens signed with HS256 (key {old}) now, EdDSA (key {new}) from "
    assert [advice for check, advice in findings(keyturn("doctor", "--json")).items() if check.startswith(both)] == [""]

    async def a_minute_passes(keyturn: Keyturn) -> None:
        async with keyturn.db.begin() as tx:
            await tx.execute(text("UPDATE keys SET signs_from = created_at"))

    keyturn.inside(a_minute_passes)
    assert findings(keyturn("doctor", "--json"))[f"access tokens signed with EdDSA (key {new}) now"] == ""
    # The older key signs again, and the command says so.
    output = keyturn.ok("keys", "retire", new).out.splitlines()
    assert output[1] == f"{old} (HS256) signs access tokens now (until now: the retired key)"
    assert findings(keyturn("doctor", "--json"))[f"access tokens signed with HS256 (key {old}) now"] == advice


def test_the_doctor_says_where_the_database_is_if_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    said = Command({}, capsys)("doctor").out
    assert f"ok  embedded SQLite in {tmp_path / 'keyturn-data'}: KEYTURN_DATABASE_URL is not set\n" in said
