"""A random client, with the tokens of a user and of an administrator, gets only answers that the contract documents."""

from __future__ import annotations

import json
import operator
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from sqlalchemy import text

from tests.authorisation import ENDPOINTS, World, a_world, new_database
from tests.service import ROOT

DOCUMENT: dict[str, Any] = json.loads((ROOT / "openapi" / "openapi.json").read_text())
OPERATIONS = {
    operation["operationId"]: (path, operation)
    for path, methods in DOCUMENT["paths"].items()
    for operation in methods.values()
}
POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
EXAMPLES = 40 if "TEST_LONG" in os.environ else 4
"""Requests for each operation and mode."""
OPEN_LISTS = {"list_events", "stats", "list_policies", "list_sessions", "me", "list_users", "list_keys"}
"""Reading operations that give an administrator something, whatever the other requests did."""


def cases() -> list[tuple[str, str, GenerationMode]]:
    """Each operation, with requests that the contract allows, on both databases; and with others, on one."""
    found = []
    for kind in ("postgres", "sqlite"):
        for name, (_, operation) in OPERATIONS.items():
            takes = "requestBody" in operation or operation.get("parameters")
            modes = (POSITIVE, NEGATIVE) if takes and kind == "postgres" else (POSITIVE,)
            found += [(kind, name, mode) for mode in modes]
    return found


@pytest.fixture(scope="module")
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return new_database(request.param, request, tmp_path_factory.mktemp("contract"))


@pytest.fixture(scope="module")
async def world(database: str, logs: Path) -> AsyncIterator[World]:
    async with a_world(database, logs) as world:
        yield world


@pytest.fixture(scope="module")
def session() -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    return session


def test_every_endpoint_is_in_the_document_and_has_its_cases() -> None:
    assert {path for path, _ in OPERATIONS.values()} == {endpoint.path for endpoint in ENDPOINTS.values()}
    assert {name for _, name, _ in cases()} == OPERATIONS.keys()


@pytest.mark.parametrize(
    ("database", "name", "mode"),
    cases(),
    ids=lambda value: value if isinstance(value, str) else value.value,
    indirect=["database"],
    scope="module",
)
async def test_a_random_client_gets_only_documented_answers(
    world: World, session: requests.Session, name: str, mode: GenerationMode
) -> None:
    path = OPERATIONS[name][0]
    async with world.keyturn.db.begin() as tx:  # a random policy may have ended every session at once
        await tx.execute(text("DELETE FROM policies"))
        await tx.execute(text("UPDATE pulse SET policies = policies + 1"))
    caller = await world.caller("admin" if path.startswith("/admin/") else "user")
    url = str(world.client.base_url).rstrip("/")
    operation = next(
        o
        for o in map(operator.methodcaller("ok"), schemathesis.openapi.from_dict(DOCUMENT).get_all_operations())
        if o.definition.raw["operationId"] == name
    )
    statuses: list[int] = []
    # A schema can't say "no common password" or "no NUL". And verify ignores a query, because a proxy may append one.
    excluded: list[Any] = [positive_data_acceptance, *([negative_data_rejection] if name == "verify" else [])]

    @settings(
        max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def holds(case: Case[Any]) -> None:
        answer = case.call(url, session, headers=dict(caller.headers), timeout=30)
        # 413 refuses too, and the random client does not count it. The longest token is as long as the largest body.
        refuses = [negative_data_rejection] if answer.status_code == 413 else []
        case.validate_response(answer, excluded_checks=[*excluded, *refuses])
        statuses.append(answer.status_code)

    holds()
    print(sorted(set(statuses)))
    assert max(statuses) < 500
    if mode is POSITIVE and name in OPEN_LISTS:
        assert 200 in statuses
