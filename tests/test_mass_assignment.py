"""No request sets a member that its endpoint does not document: it is refused whole, and nothing changes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, get_args
from uuid import UUID

import pytest
from pydantic import BaseModel

from app.routes.models import RequestBody
from app.storage.tables import Base
from tests.authorisation import ENDPOINTS, SAMPLES, World, a_world, new_database
from tests.conftest import PASSWORD
from tests.test_authorisation import about

WITH_BODY = {
    name: endpoint.body
    for name, endpoint in ENDPOINTS.items()
    # What an issuer sends has members of its own. Each is ignored but the few that are read.
    if endpoint.body is not None and not endpoint.path.startswith("/federation/")
}
VALUES: dict[str, Any] = {
    "role": "admin",
    "claims": {"org": "planted"},
    "scope": "planted",
    "scopes": "planted",
    "id": str(UUID(int=7)),
    "user_id": str(UUID(int=7)),
    "session_id": str(UUID(int=7)),
    "ended_at": None,
    "disabled_at": None,
    "password_expires_at": None,
    "generation": 0,
    "remember": True,
    "preview": False,
}
"""What an attacker would write. Any other member is sent with a text."""
OTHERS = (
    "is_admin",
    "admin",
    "roles",
    "user",
    "session",
    "__proto__",
    "constructor",
    "_method",
    "by",
    "actor",
    "initial",
)
"""Members that no model has, and that attackers try elsewhere."""


@pytest.fixture(scope="module", params=["postgres", "sqlite"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return new_database(request.param, request, tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
async def world(database: str, logs: Path) -> AsyncIterator[World]:
    async with a_world(database, logs) as world:
        yield world


def models(of: Any) -> Iterator[type[BaseModel]]:
    """A model, and the models of its members."""
    if isinstance(of, type) and issubclass(of, BaseModel):
        yield of
        for field in of.model_fields.values():
            yield from models(field.annotation)
    for argument in get_args(of):
        yield from models(argument)


def every_name() -> set[str]:
    """The members of all bodies and answers, and the columns of all tables."""
    found = {
        name
        for each in ENDPOINTS.values()
        for part in (each.body, each.model)
        for m in models(part)
        for name in m.model_fields
    }
    columns = {column.name for table in Base.metadata.tables.values() for column in table.columns}
    return found | columns | set(OTHERS)


def test_every_body_refuses_members_that_it_does_not_have() -> None:
    assert len(WITH_BODY) >= 6
    for name, body in WITH_BODY.items():
        for model in models(body):
            assert issubclass(model, RequestBody), (name, model)
            assert model.model_config["extra"] == "forbid", (name, model)
            assert model.model_config["strict"] is True, (name, model)


def test_the_names_that_are_tried_are_those_of_all_models_and_tables() -> None:
    names = every_name()
    assert names >= {"role", "claims", "user_id", "id", "ended_at", "password_hash", "token_digest", "amr", "enabled"}
    assert len(names) > 60


@pytest.mark.parametrize("name", WITH_BODY)
async def test_a_body_with_one_more_member_is_refused_and_changes_nothing(world: World, name: str) -> None:
    caller = await world.caller("admin")
    path, good = await SAMPLES[name](world, caller)
    good = good or {}
    method, ids = name.partition(" ")[0], about(caller, path)
    before = await world.state(*ids)
    model = WITH_BODY[name]
    for extra in sorted(every_name() - model.model_fields.keys()):
        body = {**good, extra: VALUES.get(extra, "planted")}
        answer = await world.client.request(method, path, json=body, headers=caller.headers)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request"), (extra, answer.text)
        assert "planted" not in answer.text, extra
    wrapped: Any
    for wrapped in ([good], {"data": good}, {"body": good}, {**good, "user": {"role": "admin"}}, {**good, "": 1}):
        answer = await world.client.request(method, path, json=wrapped, headers=caller.headers)
        assert answer.status_code == 400, wrapped
    assert await world.state(*ids) == before
    # The request is good without the member, so the member was the reason.
    answer = await world.client.request(method, path, json=good, headers=caller.headers)
    assert answer.status_code == ENDPOINTS[name].status, answer.text


async def test_a_query_or_a_header_field_gives_an_account_nothing(world: World) -> None:
    email = "mallory@example.com"
    answer = await world.client.post(
        "/auth/register?role=admin&claims%5Borg%5D=x",
        json={"email": email, "password": PASSWORD},
        headers={"X-Role": "admin", "X-Auth-Role": "admin", "X-HTTP-Method-Override": "PUT"},
    )
    assert (answer.status_code, answer.json()["role"]) == (201, "user")
    tokens = (await world.signed_in(email)).json()
    headers = {"Authorization": f"Bearer {tokens['access_token']}", "X-Auth-Role": "admin"}
    claims = (await world.client.get("/auth/verify", headers=headers)).json()
    assert claims["role"] == "user"
    assert (await world.client.get("/admin/events", headers=headers)).status_code == 403
