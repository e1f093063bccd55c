"""Changes of keys with all their consequences, and how soon other processes go by them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest
from sqlalchemy import text

from app.actors import SERVICE
from app.errors import Conflict, InvalidGrant, InvalidRequest, NotFound
from app.sessions import key_changes
from app.sessions.key_changes import LAST_SIGN_IN, Retired
from app.storage.copies import READ_BY_ALL
from app.storage.tasks import TIME_LIMIT
from tests.conftest import CHEAP, PASSWORD, SECRET, Opener, a_user, sync
from tests.service import ROOT, Service
from tests.test_keys import nothing, published, until


@pytest.fixture
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_changes, "LAST_SIGN_IN", timedelta(0))


def test_the_second_ending_comes_when_no_sign_in_under_the_key_can_be_answered_any_more() -> None:
    assert LAST_SIGN_IN >= READ_BY_ALL + TIME_LIMIT


@pytest.mark.usefixtures("_at_once")
async def test_a_retired_refresh_key_has_no_live_session_on_return(open_keyturn: Opener) -> None:
    async with open_keyturn() as one:
        proof = await a_user(one)
        tokens = [await one.starting.start(proof, by=SERVICE) for _ in range(3)]
        new = await one.key_changes.generate("refresh", by=SERVICE)
        assert new.kid == "refresh-2"
        assert [key["status"] for key in new.keys] == ["signs", "published"]
        with pytest.raises(Conflict):
            await one.key_changes.retire("refresh-1", by=SERVICE)
        await published(one, new.kid)
        begun: list[Retired] = []
        done = await one.key_changes.retire("refresh-1", by=SERVICE, begun=begun.append)
        assert (done.use, done.retired_before, done.ended, done.ended_later) == ("refresh", None, 3, 0)
        assert {key["kid"]: key["status"] for key in done.keys} == {"refresh-1": "retired", "refresh-2": "signs"}
        assert [(early.kid, early.ended) for early in begun] == [("refresh-1", None)]
        for each in tokens:
            assert (await one.reading.find(each.session_id)).ended_at is not None


async def test_a_session_that_another_instance_began_under_the_key_meanwhile_is_ended_too(
    open_keyturn: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_changes, "LAST_SIGN_IN", timedelta(seconds=1.5))
    async with open_keyturn() as one, open_keyturn() as late:
        proof = await a_user(one)
        await one.starting.start(proof, by=SERVICE)
        await published(one, (await one.key_changes.generate("refresh", by=SERVICE)).kid)
        for reading in ("load", "catch_up"):  # as in a process that looked at the pulse just before
            monkeypatch.setattr(late.keys, reading, nothing)
        began: list[Any] = []

        async def sign_in() -> None:
            began.append(await late.starting.start(proof, by=SERVICE))

        real, times = one.sweeping.end_under, 0

        async def end_under(number: int, **more: Any) -> int:
            nonlocal times
            times += 1
            count = await real(number, **more)
            if times == 1:
                await sign_in()
            return count

        monkeypatch.setattr(one.sweeping, "end_under", end_under)
        done = await one.key_changes.retire("refresh-1", by=SERVICE)
        assert (done.ended, done.ended_later) == (1, 1)
        assert began[0].refresh_token[4:6] == "AQ"  # key number 1
        assert (await one.reading.find(began[0].session_id)).ended_at is not None


@pytest.mark.usefixtures("_at_once")
async def test_a_retirement_that_broke_off_goes_on_when_it_is_called_again(open_keyturn: Opener) -> None:
    async with open_keyturn() as one:
        tokens = await one.starting.start(await a_user(one), by=SERVICE)
        await published(one, (await one.key_changes.generate("refresh", by=SERVICE)).kid)
        await one.keys.retire("refresh-1", by=SERVICE)  # a first call breaks off after this step
        assert (await one.reading.find(tokens.session_id)).ended_at is None
        done = await one.key_changes.retire("refresh-1", by=SERVICE)
        assert done.retired_before is not None
        assert (done.signed, done.ended, done.ended_later) == (False, 1, 0)
        assert (await one.reading.find(tokens.session_id)).ended_at is not None


@pytest.mark.usefixtures("_at_once")
async def test_replacing_the_keys_ends_every_session(open_keyturn: Opener) -> None:
    async with open_keyturn() as one:
        proof = await a_user(one)
        tokens = [await one.starting.start(proof, by=SERVICE) for _ in range(2)]
        done = await one.key_changes.replace(by=SERVICE)
        assert (done.ended, done.refresh_kid) == (2, "refresh-2")
        signs = {key["kid"] for key in done.keys if key["status"] == "signs"}
        assert signs == {done.access_kid, done.refresh_kid, done.cookie_kid}
        await until(lambda: one.keys.retired(1) is not None, READ_BY_ALL.total_seconds())
        for each in tokens:
            with pytest.raises(InvalidGrant):
                await one.rotation.refresh(each.refresh_token, by=SERVICE)


async def test_retiring_an_access_key_does_not_wait_and_ends_no_session(open_keyturn: Opener) -> None:
    async with open_keyturn() as one:
        tokens = await one.starting.start(await a_user(one), by=SERVICE)
        old = one.keys.signing_access.kid
        await published(one, (await one.key_changes.generate("access", by=SERVICE)).kid)
        began = time.monotonic()
        done = await one.key_changes.retire(old, by=SERVICE)
        assert time.monotonic() - began < LAST_SIGN_IN.total_seconds() - 1
        assert (done.use, done.ended, done.ended_later) == ("access", None, None)
        assert (await one.reading.find(tokens.session_id)).over() is None


async def test_retiring_a_cookie_key_does_not_wait_and_ends_no_session(open_keyturn: Opener) -> None:
    async with open_keyturn() as one:
        tokens = await one.starting.start(await a_user(one), by=SERVICE)
        old = one.keys.signing_cookie.kid
        with pytest.raises(Conflict):
            await one.key_changes.retire(old, by=SERVICE)
        new = await one.key_changes.generate("cookie", by=SERVICE)
        assert {key["kid"]: key["status"] for key in new.keys} == {old: "signs", new.kid: "published"}
        assert {key["algorithm"] for key in new.keys} == {"A256GCM"}
        await published(one, new.kid)
        began = time.monotonic()
        done = await one.key_changes.retire(old, by=SERVICE)
        assert time.monotonic() - began < LAST_SIGN_IN.total_seconds() - 1
        assert (done.use, done.signed, done.ended, done.ended_later) == ("cookie", False, None, None)
        await one.keys.load()
        assert one.keys.signing_cookie.kid == new.kid
        assert (await one.reading.find(tokens.session_id)).over() is None
        await one.rotation.refresh(tokens.refresh_token, by=SERVICE)


async def test_what_does_not_go_together_is_refused(open_keyturn: Opener) -> None:
    async with open_keyturn() as one:
        before = len(await one.keys.list())
        for use, algorithm, bits in (
            ("refresh", "ES256", None), ("refresh", None, 2048), ("cookie", "ES256", None), ("cookie", None, 2048), ("access", None, 2048), ("access", "ES256", 3072),
        ):  # fmt: skip
            with pytest.raises(InvalidRequest):
                await one.key_changes.generate(use, algorithm, bits, by=SERVICE)  # type: ignore[arg-type]  # strings
        with pytest.raises(NotFound):
            await one.key_changes.retire("no-such-key", by=SERVICE)
        assert len(await one.keys.list()) == before


@pytest.mark.deep
def test_a_running_process_goes_by_a_change_of_the_command_line_within_two_seconds(
    database_url: str, tmp_path: Path, logs: Path
) -> None:
    values = {
        "database_url": database_url,
        "redis_url": "none",
        "secret": SECRET,
        "issuer": "https://auth.example.com",
        "registration": "true",
        "signing_algorithm": "ES256",
        **CHEAP,
    }
    environment = {f"KEYTURN_{name.upper()}": value for name, value in values.items()}

    def keyturn(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "app", *words],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout.splitlines()[0]

    async def a_minute_passes() -> None:
        from app.keyturn import opened
        from app.settings import read

        async with opened(read(environment)) as keyturn, keyturn.db.begin() as tx:
            await tx.execute(text("UPDATE keys SET signs_from = created_at"))
            await tx.execute(text("UPDATE pulse SET keys = keys + 1"))

    def within_two_seconds(seen: Callable[[], bool]) -> None:
        until = time.monotonic() + READ_BY_ALL.total_seconds()
        while not seen():
            assert time.monotonic() < until
            time.sleep(0.02)

    with (
        Service.start(environment, logs=logs) as service,
        httpx2.Client(base_url=service.url, trust_env=False) as client,
    ):

        def published_kids() -> set[str]:
            return {key["kid"] for key in client.get("/.well-known/jwks.json").json()["keys"]}

        def login() -> dict[str, Any]:
            tokens: dict[str, Any] = client.post("/auth/login", json=account).json()
            return tokens

        def status(tokens: dict[str, Any]) -> int:
            bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
            return client.get("/auth/verify", headers=bearer).status_code

        def kid(tokens: dict[str, Any]) -> str:
            return str(jwt.get_unverified_header(tokens["access_token"])["kid"])

        account = {"email": "ada@example.com", "password": PASSWORD}
        assert client.post("/auth/register", json=account).status_code == 201
        old = login()
        assert status(old) in {200, 204}
        new = keyturn("keys", "generate", "access")
        within_two_seconds(lambda: new in published_kids())
        assert kid(login()) == kid(old)  # published, but not signing yet
        sync(a_minute_passes())
        within_two_seconds(lambda: kid(login()) == new)
        later = login()
        assert status(later) in {200, 204}
        keyturn("keys", "retire", kid(old))
        within_two_seconds(lambda: status(old) == 401)
        assert published_kids() == {new}
        assert status(later) in {200, 204}
        assert "keys_not_read" not in service.text()
