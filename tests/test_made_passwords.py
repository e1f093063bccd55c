"""Passwords that Keyturn makes: good for a day or until changed, and refused as a wrong one afterwards."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from app.actors import SERVICE
from app.commands.greeting import greeting
from app.commands.users import ran_out
from app.errors import InvalidGrant, NotFound
from app.keyturn import Keyturn, opened, running
from app.settings import read
from app.storage.tables import User, uuid7
from app.users.administrators import administrators
from app.users.hashing import Asker
from app.users.made_passwords import LIFETIME, Reset
from tests.api import BARE, Api, refused, serving
from tests.command_line import Command, findings
from tests.command_line import keyturn as command
from tests.conftest import CHEAP, NEW_PASSWORD, PASSWORD, Opener, a_user
from tests.service import Service

__all__ = ["command"]

ADA, BOB = "ada@example.com", "bob@example.com"


async def age(keyturn: Keyturn, how_much: timedelta) -> None:
    """Moves the moments at which passwords run out, because the database's clock stays."""
    users = [user for user in await keyturn.users.list(limit=9) if user.password_expires_at is not None]
    async with keyturn.db.begin() as tx:
        for user in users:
            assert user.password_expires_at is not None
            moved = user.password_expires_at - how_much
            await tx.execute(update(User).where(User.id == user.id).values(password_expires_at=moved))


async def reset(keyturn: Keyturn, email: str = ADA) -> Reset:
    return await keyturn.users.reset_password((await keyturn.users.find(email)).id, by=SERVICE)


async def test_a_reset_ends_all_sessions_and_the_password_signs_in_as_often_as_it_is_used(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    sessions = {(await keyturn.starting.start(proof, by=SERVICE)).session_id for _ in range(3)}
    made = await reset(keyturn)
    assert made.ended == 3
    assert {(await keyturn.reading.find(each)).end_reason for each in sessions} == {"password_changed"}
    assert re.fullmatch(r"[A-Za-z0-9_-]{20}", made.password)
    assert made.password not in repr(made)
    for _ in range(3):
        again = await keyturn.sign_in.authenticate(ADA, made.password)
        assert again.password_change_required
        assert await keyturn.starting.start(again, by=SERVICE)
    with pytest.raises(InvalidGrant):
        await keyturn.sign_in.authenticate(ADA, PASSWORD)
    with pytest.raises(InvalidGrant):
        await keyturn.starting.start(proof, by=SERVICE)
    assert not proof.password_change_required
    kinds = [event["event"] for event in await keyturn.events.list(limit=99, user_id=proof.user_id)]
    assert kinds.count("password_reset") == 1
    assert "password_changed" not in kinds


async def test_a_reset_of_nobody_is_refused(keyturn: Keyturn) -> None:
    with pytest.raises(NotFound):
        await keyturn.users.reset_password(uuid7(), by=SERVICE)


async def test_a_reset_lets_no_disabled_user_in(keyturn: Keyturn) -> None:
    proof = await a_user(keyturn)
    await keyturn.users.disable(proof.user_id, by=SERVICE)
    made = await reset(keyturn)
    with pytest.raises(InvalidGrant):
        await keyturn.sign_in.authenticate(ADA, made.password)


async def test_a_password_that_keyturn_made_is_good_for_a_day_and_not_a_moment_longer(keyturn: Keyturn) -> None:
    await a_user(keyturn)
    made = await reset(keyturn)
    await age(keyturn, LIFETIME - timedelta(minutes=1))
    assert await keyturn.sign_in.authenticate(ADA, made.password)
    await age(keyturn, timedelta(minutes=1))
    with pytest.raises(InvalidGrant):
        await keyturn.sign_in.authenticate(ADA, made.password)


async def test_a_password_that_was_changed_never_runs_out(keyturn: Keyturn) -> None:
    await a_user(keyturn)
    made = await reset(keyturn)
    proof = await keyturn.sign_in.authenticate(ADA, made.password)
    tokens = await keyturn.starting.start(proof, by=SERVICE)
    await keyturn.users.change_password(tokens.session_id, proof.user_id, made.password, NEW_PASSWORD, by=SERVICE)
    assert (await keyturn.users.find(ADA)).password_expires_at is None
    assert not (await keyturn.sign_in.authenticate(ADA, NEW_PASSWORD)).password_change_required
    assert (await keyturn.users.find(ADA)).password_expires_at is None


async def test_a_password_that_has_run_out_changes_nothing_either(keyturn: Keyturn) -> None:
    await a_user(keyturn)
    made = await reset(keyturn)
    proof = await keyturn.sign_in.authenticate(ADA, made.password)
    tokens = await keyturn.starting.start(proof, by=SERVICE)
    await age(keyturn, LIFETIME)
    with pytest.raises(InvalidGrant, match="wrong password"):
        await keyturn.users.change_password(tokens.session_id, proof.user_id, made.password, NEW_PASSWORD, by=SERVICE)


async def test_a_hash_that_is_renewed_keeps_the_moment_when_its_password_runs_out(
    open_keyturn: Opener,
) -> None:
    async with open_keyturn() as before:
        await a_user(before)
        made = await reset(before)
        runs_out = (await before.users.find(ADA)).password_expires_at
    async with open_keyturn(argon2_passes="2") as after:
        assert (await after.sign_in.authenticate(ADA, made.password)).password_change_required
        user = await after.users.find(ADA)
        assert "t=2" in (user.password_hash or "")
        assert user.password_expires_at == runs_out


async def test_one_that_has_run_out_costs_what_a_wrong_one_costs(
    open_keyturn: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_keyturn() as keyturn:
        await a_user(keyturn)
        made = await reset(keyturn)
        await age(keyturn, LIFETIME)
    async with open_keyturn(argon2_passes="2") as keyturn:  # the stored hash is outdated: to renew it would tell
        computed: list[str] = []
        verify = keyturn.passwords.verify

        async def counted(stored: str | None, password: bytes, *asker: Asker) -> bool:
            computed.append("verify")
            return await verify(stored, password, *asker)

        hashed = keyturn.passwords.hash

        async def hashing(password: bytes, *asker: Asker) -> str:
            computed.append("hash")
            return await hashed(password, *asker)

        monkeypatch.setattr(keyturn.passwords, "verify", counted)
        monkeypatch.setattr(keyturn.passwords, "hash", hashing)
        work = []
        for password in (made.password, "a wrong password"):
            computed.clear()
            with pytest.raises(InvalidGrant) as refusal:
                await keyturn.sign_in.authenticate(ADA, password)
            work.append((list(computed), refusal.value.body(), refusal.value.headers(), refusal.value.cause))
        assert work[0] == work[1]


@pytest.fixture
async def api(database_url: str) -> Any:
    async with serving(database_url, login_mode="bearer") as api:
        await api.keyturn.users.create(ADA, PASSWORD, by=SERVICE)
        yield api


@pytest.mark.parametrize("mode", ["bearer", "cookie", "split"])
async def test_each_sign_in_says_that_the_password_must_be_changed_in_every_mode(api: Api, mode: str) -> None:
    made = await reset(api.keyturn)
    site = {"Origin": "https://auth.example.com"}
    body = {"email": ADA, "password": made.password, "mode": mode}
    for _ in range(2):
        answer = await api.client.post("/auth/login", json=body, headers=site)
        assert answer.status_code == 200
        assert answer.json()["password_change_required"] is True
        assert answer.headers["cache-control"] == "no-store"
    api.client.cookies.clear()
    tokens = await api.login(ADA, made.password)
    change = {"current_password": made.password, "new_password": NEW_PASSWORD}
    assert (await api.post("/auth/password", change, tokens["access_token"])).status_code == 204
    body["password"] = NEW_PASSWORD
    assert "password_change_required" not in (await api.client.post("/auth/login", json=body, headers=site)).json()


async def test_a_refresh_does_not_say_so(api: Api) -> None:
    made = await reset(api.keyturn)
    tokens = await api.login(ADA, made.password)
    refreshed = (await api.post("/auth/refresh", {"refresh_token": tokens["refresh_token"]})).json()
    assert "password_change_required" not in refreshed


async def test_the_answer_to_one_that_has_run_out_is_that_to_a_wrong_one(api: Api) -> None:
    made = await reset(api.keyturn)
    await age(api.keyturn, LIFETIME)
    answers = []
    for password in (made.password, "a wrong password"):
        answer = await api.post("/auth/login", {"email": ADA, "password": password})
        refused(answer, 401, "invalid_grant", challenge=BARE)
        names = [name for name in answer.headers if name != "x-request-id"]
        answers.append((answer.text, names, answer.headers["content-length"]))
    assert answers[0] == answers[1]


def test_the_command_resets_a_password_and_says_how_long_it_is_good(command: Command) -> None:
    command.ok("users", "create", ADA, stdin=PASSWORD.encode())
    command.login(ADA)
    done = command.ok("users", "reset-password", ADA)
    line, password = done.out.splitlines()
    assert line == f"{ADA} has a new password; 1 session ended"
    assert "24 hours" in done.err
    assert password not in done.err
    assert command.login(ADA, password)
    shown = command.ok("users", "show", ADA, "--json").json
    left = datetime.fromisoformat(shown["password_expires_at"]) - datetime.now(UTC)
    assert timedelta(hours=23) < left <= LIFETIME


@pytest.mark.parametrize("words", [("users", "create", BOB), ("users", "set-password", ADA)])
def test_a_password_that_a_command_generates_is_good_for_a_day_too(command: Command, words: tuple[str, ...]) -> None:
    command.ok("users", "create", ADA, stdin=PASSWORD.encode())
    command.ok(*words, "--generate")
    assert command.ok("users", "show", words[2], "--json").json["password_expires_at"] is not None
    command.ok("users", "set-password", words[2], stdin=PASSWORD.encode())
    assert command.ok("users", "show", words[2], "--json").json["password_expires_at"] is None


def test_the_doctor_says_what_to_type_for_passwords_that_have_run_out(command: Command) -> None:
    check = "passwords that Keyturn made"
    command.ok("users", "create", ADA, "--role", "admin", stdin=PASSWORD.encode())
    command.ok("users", "create", BOB, "--generate")
    before = findings(command("doctor", "--json"))
    assert (before["initial password"], before[check]) == ("", "")  # a user's own affair, and nothing amiss
    command.inside(lambda keyturn: age(keyturn, LIFETIME))
    assert f"users reset-password {BOB}" in findings(command("doctor", "--json"))[check]
    command.ok("users", "reset-password", ADA)
    command.inside(lambda keyturn: age(keyturn, LIFETIME))
    advice = findings(command("doctor", "--json"))[check]  # the administrator comes first
    assert advice.endswith(f"users reset-password {ADA}")
    assert "1 more" in advice
    for email in (ADA, BOB):
        command.ok("users", "set-password", email, stdin=PASSWORD.encode())
    assert set(findings(command.ok("doctor", "--json")).values()) == {""}


async def test_the_next_greeting_says_what_to_type(open_keyturn: Opener, tmp_path: Path) -> None:
    settings = read({"KEYTURN_DATA_DIR": str(tmp_path), **{f"KEYTURN_{n.upper()}": v for n, v in CHEAP.items()}})
    async with open_keyturn() as keyturn:
        await keyturn.users.create("admin@localhost", PASSWORD, "admin", initial=True, by=SERVICE)
        assert ran_out(await administrators(keyturn.db)) == ""
        await age(keyturn, LIFETIME)
        advice = ran_out(await administrators(keyturn.db))
    said = greeting(settings, "http://x", made=None, administrator="admin@localhost", advice=advice)
    assert "users reset-password admin@localhost\n" in said


def test_the_lines_of_the_first_start_work_all_day_and_afterwards_log_and_greeting_say_what_to_type(
    tmp_path: Path, logs: Path
) -> None:
    folder = tmp_path / "data"
    environment = {"KEYTURN_DATA_DIR": str(folder), **{f"KEYTURN_{n.upper()}": v for n, v in CHEAP.items()}}
    with Service.start(environment, logs=logs) as service:
        text = service.text_with("/logout")
        shell = text.partition("in a second terminal:\n\n")[2].partition("\n\n")[0]
        assert max(map(len, shell.splitlines())) <= 120
        assert "It is good for 24 hours." in text
        for _ in range(2):
            login, refresh, logout = pasted(shell)
            assert json.loads(login.removeprefix("login    "))["refresh_token"].startswith("ktr_")
            assert json.loads(refresh.removeprefix("refresh  "))["refresh_token"].startswith("ktr_")
            assert logout == "logout   204"
        _move(environment)
        assert json.loads(pasted(shell)[0].removeprefix("login    "))["error"] == "invalid_grant"
        said = service.text_with("made_password_ran_out")
        [line] = [line for line in said.splitlines() if "made_password_ran_out" in line]
        assert "users reset-password" in json.loads(line)["detail"]
        assert service.terminate() == 0
    with Service.start(environment, logs=logs) as service:
        assert "users reset-password admin@localhost" in service.text_with("users reset-password")


def pasted(shell: str) -> list[str]:
    import subprocess

    done = subprocess.run(
        ["bash", "-c", shell], capture_output=True, text=True, timeout=60, check=False,
        env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.splitlines()


def _move(environment: dict[str, str]) -> None:
    from tests.conftest import sync

    async def run() -> None:
        async with opened(read(environment)) as keyturn, running(keyturn):
            await age(keyturn, LIFETIME)

    sync(run())
