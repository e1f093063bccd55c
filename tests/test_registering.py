"""Registration, which need not tell whether an address is taken. On both databases."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import event

from app.actors import SERVICE
from app.keyturn import Keyturn
from app.users.hashing import Asker
from tests.api import ADA, BOB, Api, Serve, api, dump, refused, serve
from tests.conftest import NEW_PASSWORD, PASSWORD

__all__ = ["api", "serve"]  # fixtures

SILENT = {"registration": "true", "registration_tells": "false"}


def watched(keyturn: Keyturn, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hashes and statements of the process from now on, in their order."""
    work: list[str] = []
    hashed = keyturn.passwords.hash

    async def counted(password: bytes, *asker: Asker) -> str:
        work.append("hash")
        return await hashed(password, *asker)

    monkeypatch.setattr(keyturn.passwords, "hash", counted)

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if re.match(r"INSERT|UPDATE|DELETE|SELECT .* FROM (users|events)", statement.strip(), re.DOTALL):
            work.append(statement)

    event.listen(keyturn.db._engine.sync_engine, "before_cursor_execute", note)
    return work


async def test_a_taken_address_and_a_free_one_get_the_same_answer_after_the_same_work(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve(**SILENT) as api:
        await api.keyturn.users.create(ADA, PASSWORD, by=SERVICE)
        await api.post("/auth/register", {"email": "first@example.com", "password": PASSWORD})
        work, seen = watched(api.keyturn, monkeypatch), []
        for email in (ADA, BOB, ADA, BOB):
            work.clear()
            answer = await api.post("/auth/register", {"email": email, "password": NEW_PASSWORD})
            fields = [(name, value) for name, value in answer.headers.multi_items() if name != "x-request-id"]
            seen.append((answer.status_code, answer.text, fields, list(work)))
        assert seen[0] == seen[1] == seen[2] == seen[3]
        assert seen[0][:2] == (202, "{}")
        assert seen[0][3].count("hash") == 1
        assert sum(statement.startswith("INSERT INTO users") for statement in seen[0][3]) == 1


async def test_a_taken_address_keeps_its_user_whom_an_event_names(serve: Serve) -> None:
    async with serve(**SILENT) as api:
        ada = await api.keyturn.users.create(ADA, PASSWORD, "editor", by=SERVICE)
        await api.keyturn.users.set_claims(ada.id, {"org": "acme"}, by=SERVICE)
        before = vars(await api.keyturn.users.find(ADA)).copy()
        assert (await api.post("/auth/register", {"email": ADA, "password": NEW_PASSWORD})).status_code == 202
        after = vars(await api.keyturn.users.find(ADA)).copy()
        before.pop("_sa_instance_state")
        after.pop("_sa_instance_state")
        assert after == before
        refused(await api.post("/auth/login", {"email": ADA, "password": NEW_PASSWORD}), 401, "invalid_grant", challenge="Bearer")  # fmt: skip
        assert await api.login(ADA, PASSWORD)
        kinds = [(each["event"], each["actor"]) for each in await api.keyturn.events.list(limit=9, user_id=ada.id)]
        assert ("registration_repeated", "anonymous") in kinds


async def test_a_free_address_gets_a_user_as_ever(serve: Serve) -> None:
    async with serve(**SILENT) as api:
        assert (await api.post("/auth/register", {"email": BOB, "password": PASSWORD})).status_code == 202
        bob = await api.keyturn.users.find(BOB)
        assert (bob.role, bob.claims, bob.disabled_at, bob.password_expires_at) == ("user", None, None, None)
        assert await api.login(BOB)
        [made] = [e for e in await api.keyturn.events.list(limit=9, user_id=bob.id) if e["event"].startswith("user")]
        assert (made["event"], made["actor"]) == ("user_created", "anonymous")


@pytest.mark.parametrize("body", [{"email": "no address", "password": PASSWORD}, {"email": ADA, "password": "short"}])
async def test_what_can_not_be_registered_is_refused_alike_for_both(serve: Serve, body: Any) -> None:
    async with serve(**SILENT) as api:
        first = await api.post("/auth/register", body)
        await api.keyturn.users.create(ADA, PASSWORD, by=SERVICE)
        second = await api.post("/auth/register", body)
        refused(second, 400, "invalid_request")
        assert first.text == second.text


async def test_registration_is_off_unless_it_is_switched_on(api: Api) -> None:
    before = await dump(api.keyturn)
    refused(await api.post("/auth/register", {"email": BOB, "password": PASSWORD}), 403, "access_denied")
    assert await dump(api.keyturn) == before


async def test_registration_makes_a_user_and_gives_no_tokens(serve: Serve) -> None:
    async with serve(registration="true") as api:
        answer = await api.post("/auth/register", {"email": "Ada@Example.COM", "password": PASSWORD})
        assert answer.status_code == 201
        body = answer.json()
        assert body.keys() == {"id", "email", "role", "created_at"}
        assert (body["email"], body["role"]) == (ADA, "user")
        assert UUID(body["id"]).version == 7
        moment = datetime.fromisoformat(body["created_at"])
        assert moment.utcoffset() == timedelta(0)
        assert abs(moment - datetime.now(UTC)) < timedelta(minutes=1)
        # The letter case of an e-mail address makes no difference.
        refused(await api.post("/auth/register", {"email": "ADA@example.com", "password": PASSWORD}), 409, "conflict")
        await api.login("aDa@EXAMPLE.com")


async def test_nobody_registers_as_administrator(serve: Serve) -> None:
    async with serve(registration="true") as api:
        for field in (
            {"role": "admin"},
            {"enabled": True},
            {"created_at": "2020-01-01T00:00:00Z"},
            {"disabled_at": None},
        ):
            answer = await api.post("/auth/register", {"email": ADA, "password": PASSWORD} | field)
            refused(answer, 400, "invalid_request")
            said = answer.json()["error_description"]
            assert said == f"{next(iter(field))}: is a field that this endpoint does not have. It has: email, password."
        assert await api.keyturn.users.list(limit=10) == []
