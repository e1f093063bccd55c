"""The examples of the contract: each fits its schema, and a running service takes and gives what they show."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from app.http.bodies import FORM, JSON
from tests.authorisation import SAMPLES, World, a_world, new_database
from tests.service import ROOT

DOCUMENT: dict[str, Any] = json.loads((ROOT / "openapi" / "openapi.json").read_text(encoding="utf-8"))
OPERATIONS = {
    f"{method.upper()} {path}": operation
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}
FILLED_IN = {"current_password", "email", "issuer", "password", "refresh_token", "subject_token", "token", "user"}
"""The members of bodies that only a real account, token or server has a value for. All others are sent as they stand."""
BROWSER = "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:128.0) Gecko/20100101 Firefox/128.0"
EVENT = ("actor_id", "address", "client_id", "request_id", "session_id")
"""The members of an event that depend on its kind and its actor."""
BY_STATE = {
    "POST /auth/identities": {".email"},  # the token of the test has none
    "GET /auth/identities": {".items[].email"},
    "GET /admin/users/{user_id}/identities": {".items[].email"},
    "GET /auth/sessions": {".items[].device.name"},
    "GET /auth/sessions/{session_id}": {".device.name"},
    "GET /admin/sessions/{session_id}": {".device.name"},
    "GET /admin/users": {".next_cursor"},
    "GET /admin/sessions": {".next_cursor", ".items[].device.name"},
    "GET /admin/events": {".next_cursor", *(f".items[].{name}" for name in EVENT)},
    "GET /admin/keys": {".items[].retires_at"},
    "POST /admin/keys/rotate": {".items[].retires_at"},
    "POST /admin/keys/{kid}/retire": {".items[].retires_at"},
    "GET /admin/policies": {".items[].changed_at", ".items[].in_force.session_limit", ".items[].most.session_limit"},
    "PUT /admin/policies/{scope}": {".most.session_limit"},  # no number where the settings have none
    "GET /admin/federation": {".items[].changed_at", ".items[].ca_file"},  # that one is in a file
    "PUT /admin/federation/{name}": {".warning"},  # no server has the address
    "POST /admin/federation/{name}/check": {".token.word"},
    "GET /admin/users/{user_id}/why": {f".lines[].{name}" for name in EVENT},
    "GET /admin/sessions/{session_id}/why": {".email"},
}
"""The members of answers that are there or not, as the state of the service is."""
NOT_SENT = {
    "POST /federation/{name}/logout": "an issuer signs it: tests/test_upstream_logout.py",
    "POST /federation/{name}/webhook": "an issuer signs it: tests/test_upstream_logout.py",
    "GET /metrics": "its answer is no JSON",
}


def contents(described: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The contents of a body or an answer that are JSON or a form."""
    yield from (each for kind, each in described.get("content", {}).items() if kind in {FORM, JSON})


def good(operation: dict[str, Any]) -> dict[str, Any]:
    return {status: answer for status, answer in operation["responses"].items() if status.startswith("2")}


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_body_and_each_good_answer_has_an_example_that_fits_its_schema(name: str) -> None:
    operation = OPERATIONS[name]
    for described in (operation.get("requestBody", {}), *good(operation).values()):
        for content in contents(described):
            [(called, example)] = content["examples"].items()
            assert content["schema"] == {"$ref": f"#/components/schemas/{called}"}
            schema = content["schema"] | {"components": DOCUMENT["components"]}
            Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(example["value"])


@pytest.fixture(scope="module")
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return new_database("sqlite", request, tmp_path_factory.mktemp("examples"))


@pytest.fixture(scope="module")
async def world(database: str, logs: Path) -> AsyncIterator[World]:
    async with a_world(database, logs) as world:
        world.client.headers["User-Agent"] = BROWSER
        yield world


def differences(where: str, shown: Any, real: Any) -> Iterator[str]:
    """The members that only one of both has, or whose types differ. Of a list, its first item counts.

    Operators choose the members of `claims`, and the policy those of `values`.
    """
    if type(shown) is not type(real):
        yield where
    elif isinstance(shown, dict) and not where.endswith(("claims", "values")):
        yield from (f"{where}.{name}" for name in shown.keys() ^ real.keys())
        for name in shown.keys() & real.keys():
            yield from differences(f"{where}.{name}", shown[name], real[name])
    elif isinstance(shown, list) and shown and real:
        yield from differences(f"{where}[]", shown[0], real[0])


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in NOT_SENT], scope="module")
async def test_the_service_takes_the_body_of_the_example_and_answers_like_the_example(world: World, name: str) -> None:
    method, path = name.split(" ")
    caller = await world.caller("admin" if path.startswith("/admin/") else "user")
    target, sample = await SAMPLES[name](world, caller)
    body = None
    for content in contents(OPERATIONS[name].get("requestBody", {})):
        [example] = content["examples"].values()
        real = (sample or {}) | {"refresh_token": caller.refresh_token}
        body = {k: real[k] if k in FILLED_IN and k in real else value for k, value in example["value"].items()}
    answer = await world.client.request(method, target, json=body, headers=caller.headers)
    assert str(answer.status_code) in good(OPERATIONS[name]), answer.text
    for content in contents(OPERATIONS[name]["responses"][str(answer.status_code)]):
        [example] = content["examples"].values()
        found = set(differences("", example["value"], answer.json()))
        assert found <= BY_STATE.get(name, set()), (found, answer.text)
