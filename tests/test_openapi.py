"""The OpenAPI document: what stands in the repository is what the service gives, and clients can be made from it."""

from __future__ import annotations

import json
import operator
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from openapi_spec_validator import validate
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from tests.conftest import CHEAP, PASSWORD, SECRET
from tests.service import ROOT, Service

Json = dict[str, Any]
ERROR = {"$ref": "#/components/schemas/Error"}
EDGE, EDGE_WITH_BODY = {"400", "414", "431", "500"}, {"408", "413", "415"}
REFUSALS = {
    "register": {"403", "409", "503"},
    "login": {"401", "503"},
    "refresh": {"401", "503"},
    "logout": {"401", "503"},
    "me": {"401", "503"},
    "password": {"401", "503"},
    "verify": {"401", "403", "503"},
    "jwks": set[str](),
    "healthz": set[str](),
    "readyz": {"503"},
}


@pytest.fixture(scope="module")
def document() -> Json:
    loaded: Json = json.loads((ROOT / "openapi" / "openapi.json").read_text())
    return loaded


def operations(document: Json) -> Iterator[tuple[str, Json]]:
    for path in document["paths"].values():
        for operation in path.values():
            yield operation["operationId"], operation


def test_the_document_in_the_repository_is_the_one_that_the_command_prints(tmp_path: Path) -> None:
    # Somewhere else, and with the settings of nobody: neither is in the document.
    printed = subprocess.run(
        [sys.executable, "-m", "app", "openapi"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
        timeout=30,
    ).stdout
    assert printed == (ROOT / "openapi" / "openapi.json").read_bytes(), (
        "python3 dev.py keyturn openapi > openapi/openapi.json"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_document_is_valid_openapi(document: Json) -> None:
    assert document["openapi"].startswith("3.1.")
    validate(document)


def test_each_operation_has_the_name_that_a_client_s_method_should_have(document: Json) -> None:
    names = [name for name, _ in operations(document)]
    assert sorted(names) == sorted(REFUSALS)
    assert all(operation["description"] for _, operation in operations(document))


def test_every_refusal_is_documented_in_the_one_shape(document: Json) -> None:
    for name, operation in operations(document):
        body = EDGE_WITH_BODY if "requestBody" in operation else set()
        responses = operation["responses"]
        refused = {status for status in responses if not status.startswith("2")}
        assert refused == REFUSALS[name] | EDGE | body, name
        for status in refused:
            # Readiness is an answer also where it says no.
            expected = {"$ref": "#/components/schemas/Readiness"} if (name, status) == ("readyz", "503") else ERROR
            assert responses[status]["content"] == {"application/json": {"schema": expected}}, (name, status)
        assert "WWW-Authenticate" in responses.get("401", {"headers": "WWW-Authenticate"})["headers"]
        assert "Retry-After" in responses.get("503", {"headers": "Retry-After"})["headers"]


def test_nothing_of_the_framework_s_own_errors_is_left(document: Json) -> None:
    text = json.dumps(document)
    assert '"422"' not in text
    assert "ValidationError" not in text
    assert '"default": {"description"' not in text
    error = document["components"]["schemas"]["Error"]
    assert error["required"] == ["error", "error_description"]
    assert error["properties"]["reason"]["type"] == "string"


def test_every_schema_is_used_and_every_reference_leads_somewhere(document: Json) -> None:
    text = json.dumps(document)
    for name in document["components"]["schemas"]:
        assert f'"#/components/schemas/{name}"' in text, name


def test_bodies_are_required_objects_by_name_that_take_no_unknown_field(document: Json) -> None:
    bodies = {name: o["requestBody"] for name, o in operations(document) if "requestBody" in o}
    assert bodies.keys() == {"register", "login", "refresh", "logout", "password"}
    for body in bodies.values():
        assert body["required"] is True
        assert body["content"].keys() == {"application/json"}
        schema = body["content"]["application/json"]["schema"]
        assert schema.keys() == {"$ref"}
        named = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        assert (named["type"], named["additionalProperties"]) == ("object", False)


def test_parameters_and_answers_have_types_that_are_never_null(document: Json) -> None:
    for name, operation in operations(document):
        for parameter in operation.get("parameters", []):
            assert "anyOf" not in parameter["schema"], (name, parameter["name"])
    for name, schema in document["components"]["schemas"].items():
        if name.endswith("Answer") or name in {"Error", "Health", "Readiness", "Claims"}:
            assert "null" not in json.dumps(schema), name
            if name != "Error":
                assert set(schema["required"]) == set(schema["properties"]), name


def test_the_bearer_token_is_asked_for_where_one_is_needed(document: Json) -> None:
    asked = {name: operation.get("security") for name, operation in operations(document)}
    needed: list[Json] = [{"bearer": []}]
    assert {name for name, security in asked.items() if security == needed} == {"me", "password", "verify"}
    assert asked.pop("logout") == [{"bearer": []}, {}]  # it may stand beside the refresh token, or not
    assert {name for name, security in asked.items() if security is None} == REFUSALS.keys() - {
        "me", "password", "verify", "logout"
    }  # fmt: skip
    scheme = document["components"]["securitySchemes"]["bearer"]
    assert (scheme["type"], scheme["scheme"], scheme["bearerFormat"]) == ("http", "bearer", "JWT")


def test_credentials_are_marked_so_that_clients_hide_them(document: Json) -> None:
    schemas = document["components"]["schemas"]
    for schema in ("Registration", "Login", "PasswordChange", "Refresh"):
        for name, field in schemas[schema]["properties"].items():
            if name != "email":
                assert field["format"] == "password", (schema, name)


# -- a random client


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Iterator[Service]:
    values = {
        "data_dir": tmp_path_factory.mktemp("openapi") / "data",
        "secret": SECRET,
        "registration": "true",
        "log_level": "info",
    }
    with Service.start({f"KEYTURN_{n.upper()}": str(v) for n, v in (values | CHEAP).items()}, logs=logs) as service:
        yield service


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


@pytest.fixture(scope="module")
def access_token(service: Service, session: requests.Session) -> str:
    account = {"email": "ada@example.com", "password": PASSWORD}
    assert session.post(f"{service.url}/auth/register", json=account, timeout=10).status_code == 201
    token: str = session.post(f"{service.url}/auth/login", json=account, timeout=10).json()["access_token"]
    return token


POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
TAKING = {"register", "login", "refresh", "logout", "password", "verify"}  # the others have no input to get wrong


@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, POSITIVE) for name in REFUSALS] + [(name, NEGATIVE) for name in REFUSALS if name in TAKING],
    ids=lambda value: value if isinstance(value, str) else value.value,
)
def test_a_random_client_gets_only_documented_answers(
    document: Json, service: Service, session: requests.Session, access_token: str, name: str, mode: GenerationMode
) -> None:
    schema = schemathesis.openapi.from_dict(document)
    operation = next(
        o
        for o in map(operator.methodcaller("ok"), schema.get_all_operations())
        if o.definition.raw["operationId"] == name
    )
    statuses: set[int] = set()
    # A schema can't say "8 to 1024 bytes" or "no NUL"; and verify passes over a query that a proxy appended.
    excluded: list[Any] = [positive_data_acceptance, *([negative_data_rejection] if name == "verify" else [])]

    @settings(max_examples=30, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def holds(case: Case[Any]) -> None:
        # A good token, but for logout, which would end the session of all the others.
        headers = {} if name == "logout" else {"Authorization": f"Bearer {access_token}"}
        answer = case.call_and_validate(service.url, session, headers=headers, excluded_checks=excluded, timeout=10)
        statuses.add(answer.status_code)

    holds()
    assert statuses
    assert max(statuses) < 500
