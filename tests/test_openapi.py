"""The OpenAPI document in the repository is the one that the service gives, and clients can be made from it."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import requests
from fastapi import FastAPI
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from pydantic import BaseModel

from app.errors import Reason
from app.federation.issuer import Issuer
from app.http.answers import NO_CONTENT, Answer
from app.http.bodies import FORM, JSON
from app.http.doors import Doors
from app.http.endpoints import Endpoint
from app.http.request import Request
from app.main import _ENDPOINTS as ENDPOINTS
from app.main import create_app
from app.settings import read
from tests.conftest import CHEAP, PASSWORD, SECRET
from tests.service import ROOT, Service

Json = dict[str, Any]
ERROR = {"$ref": "#/components/schemas/ErrorAnswer"}
EDGE, EDGE_WITH_BODY = {"400", "414", "431", "500"}, {"408", "413", "415"}
REFUSALS = {
    "register": {"403", "409", "429", "503"},
    "login": {"401", "403", "429", "503"},
    "reauthenticate": {"401", "403", "429", "503"},
    "refresh": {"401", "403", "429", "503"},
    "logout": {"401", "403", "503"},
    "me": {"401", "503"},
    "list_sessions": {"401", "503"},
    "get_session": {"401", "404", "503"},
    "rename_session": {"401", "403", "404", "503"},
    "end_session": {"401", "403", "404", "503"},
    "list_session_events": {"401", "404", "503"},
    "list_all_sessions": {"401", "403", "503"},
    "get_any_session": {"401", "403", "404", "503"},
    "end_any_session": {"401", "403", "404", "503"},
    "end_sessions": {"401", "403", "503"},
    "password": {"401", "403", "429", "503"},
    "verify": {"401", "403", "429", "503"},
    "list_keys": {"401", "403", "503"},
    "generate_key": {"401", "403", "409", "503"},
    "rotate_keys": {"401", "403", "409", "503"},
    "retire_key": {"401", "403", "404", "409", "503"},
    "sign_everyone_out": {"401", "403", "409", "503"},
    "list_policies": {"401", "403", "503"},
    "set_policy": {"401", "403", "404", "503"},
    "exchange": {"401", "403", "429", "503"},
    "list_identities": {"401", "503"},
    "link_identity": {"401", "403", "409", "429", "503"},
    "unlink_identity": {"401", "403", "404", "409", "503"},
    "set_user_email_verified": {"401", "403", "404", "409", "503"},
    "list_user_identities": {"401", "403", "404", "503"},
    "unlink_user_identity": {"401", "403", "404", "409", "503"},
    "check_issuer": {"401", "403", "404", "503"},
    "list_issuers": {"401", "403", "503"},
    "find_issuer": {"401", "403", "404", "503"},
    "put_issuer": {"401", "403", "409", "503"},
    "remove_issuer": {"401", "403", "404", "409", "503"},
    "list_upstream_sessions": {"401", "403", "404", "503"},
    "get_upstream_session": {"401", "403", "404", "503"},
    "revoke_upstream_session": {"401", "403", "404", "503"},
    "revoke_upstream_sessions": {"401", "403", "404", "503"},
    "list_upstream_revocations": {"401", "403", "503"},
    "replay_upstream_revocation": {"401", "403", "404", "503"},
    "list_events": {"401", "403", "503"},
    "stats": {"401", "403", "503"},
    "why_user": {"401", "403", "404", "503"},
    "why_session": {"401", "403", "404", "503"},
    "list_users": {"401", "403", "503"},
    "create_user": {"401", "403", "409", "429", "503"},
    "get_user": {"401", "403", "404", "503"},
    "erase_user": {"401", "403", "404", "409", "503"},
    "disable_user": {"401", "403", "404", "409", "503"},
    "enable_user": {"401", "403", "404", "503"},
    "reset_user_password": {"401", "403", "404", "409", "429", "503"},
    "set_user_role": {"401", "403", "404", "409", "503"},
    "set_user_claims": {"401", "403", "404", "503"},
    "upstream_logout": {"404", "503"},
    "upstream_webhook": {"404", "503"},
    "jwks": set[str](),
    "healthz": set[str](),
    "readyz": {"503"},
    "metrics": {"401", "404"},
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
    # The command runs in another folder and without settings. Neither may change the document.
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
            # A 503 of /readyz has the same body as a 200, and not the body of an error.
            expected = {"$ref": "#/components/schemas/Readiness"} if (name, status) == ("readyz", "503") else ERROR
            assert responses[status]["content"].keys() == {"application/json"}, (name, status)
            assert responses[status]["content"]["application/json"]["schema"] == expected, (name, status)
        for answer in responses.values():
            assert answer["headers"]["X-Request-Id"] == {"$ref": "#/components/headers/RequestId"}
            assert answer["description"] != "Successful Response" or "content" in answer
        assert "WWW-Authenticate" in responses.get("401", {"headers": "WWW-Authenticate"})["headers"]
        for status in ("429", "503"):
            assert "Retry-After" in responses.get(status, {"headers": "Retry-After"})["headers"]
        assert ("WWW-Authenticate" in responses.get("403", {"headers": ""})["headers"]) == (name == "verify")


def test_each_answer_that_may_set_or_delete_cookies_says_so(document: Json) -> None:
    found = {
        (name, status)
        for name, operation in operations(document)
        for status, answer in operation["responses"].items()
        if "Set-Cookie" in answer["headers"]
    }
    assert found == {
        ("login", "200"),
        ("exchange", "200"),
        ("reauthenticate", "200"),
        ("reauthenticate", "401"),
        ("refresh", "200"),
        ("refresh", "401"),
        ("end_session", "204"),
        ("end_any_session", "204"),
        ("logout", "200"),
        ("logout", "204"),
        ("logout", "401"),
        ("verify", "200"),
        ("verify", "401"),
        ("verify", "403"),
    }


def test_nothing_of_the_framework_s_own_errors_is_left(document: Json) -> None:
    text = json.dumps(document)
    assert '"422"' not in text
    assert "ValidationError" not in text
    assert '"default": {"description"' not in text
    error = document["components"]["schemas"]["ErrorAnswer"]
    assert error["required"] == ["error", "error_description"]
    assert error["properties"]["reason"]["type"] == "string"


def test_every_schema_is_used_and_every_reference_leads_somewhere(document: Json) -> None:
    text = json.dumps(document)
    for name in document["components"]["schemas"]:
        assert f'"#/components/schemas/{name}"' in text, name


def test_bodies_are_objects_by_name_that_take_no_unknown_field(document: Json) -> None:
    bodies = {name: o["requestBody"] for name, o in operations(document) if "requestBody" in o}
    assert bodies.keys() >= {"register", "login", "refresh", "logout", "password", "reauthenticate"}
    assert bodies.pop("upstream_logout")["content"].keys() == {FORM}
    assert bodies.pop("upstream_webhook")["content"].keys() == {JSON}
    for name, body in bodies.items():
        assert body["content"].keys() == {"application/json"}
        schema = body["content"]["application/json"]["schema"]
        if name in {"logout", "refresh"}:
            # A client may leave the body out. The service also takes `null`, which the schema does not have: with it,
            # openapi-python-client would demand a body.
            assert "required" not in body
        else:
            assert body["required"] is True
        assert schema.keys() == {"$ref"}
        named = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        assert (named["type"], named["additionalProperties"]) == ("object", False)


def nameless(schema: object) -> Iterator[Json]:
    """The schemas of objects in a schema that are no components."""
    if isinstance(schema, dict):
        if schema.get("type") == "object" or "properties" in schema:
            yield schema
        for name, part in schema.items():
            if name not in {"example", "examples"}:
                yield from nameless(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from nameless(part)


def test_every_object_has_a_name_that_no_generator_has_to_invent(document: Json) -> None:
    assert list(nameless(document["paths"])) == []
    for name, schema in document["components"]["schemas"].items():
        for word, part in schema.items():
            # What members a map has is no schema of an object.
            assert list(nameless(list(part.values()) if word == "properties" else part)) == [], (name, word)


def test_a_field_that_may_be_left_out_has_no_default_that_typescript_would_ask_for(document: Json) -> None:
    logout = document["components"]["schemas"]["Logout"]
    assert logout["properties"].keys() == {"refresh_token", "scope", "mode", "post_logout_redirect_uri"}
    assert "required" not in logout
    assert '"default"' not in json.dumps(document["components"]["schemas"])


def test_no_format_makes_a_client_hide_or_refuse_what_it_has_to_send(document: Json) -> None:
    formats = set(re.findall(r'"format": "([^"]+)"', json.dumps(document)))
    assert formats == {"uuid", "date-time", "int64"}  # the answers alone have formats
    for name in ("Registration", "Login", "Refresh", "Logout", "PasswordChange"):
        assert "format" not in json.dumps(document["components"]["schemas"][name])


OPTIONAL = {
    "LineAnswer": {"id", "session_id", "actor", "actor_id", "address", "request_id", "reason"},
    "VerdictAnswer": {"reason"},
    "WhyAnswer": {"user_id", "email", "next_cursor"},
    "AdminSessionAnswer": {
        "ended_at",
        "end_reason",
        "address",
        "authenticated_at",
        "scope",
        "email",
        "device_id",
        "upstream",
    },
    "AdminSessionsAnswer": {"next_cursor"},
    "AuditEventAnswer": {"actor_id", "user_id", "session_id", "client_id", "address", "request_id", "reason", "detail"},
    "AuditEventsAnswer": {"next_cursor"},
    "Claims": {"auth_time", "scope"},
    "DeviceAnswer": {"name", "browser", "system", "kind"},
    "EndedAnswer": {"ended", "count", "next_cursor"},
    "AllRevokedAnswer": {"revoked"},
    "ErrorAnswer": {"reason"},
    "RevocationAnswer": {"due_at", "given_up_at", "failure"},
    "RevocationsAnswer": {"next_cursor"},
    "UpstreamSessionAnswer": {
        *("user", "organization", "created_at", "last_active_at", "idle_expires_at", "absolute_expires_at"),
        *("ended_at", "device", "address", "region"),
    },
    "UpstreamSessionsAnswer": {"next_page", "total"},
    # Nothing of a row that this release can't read is known but its name.
    "IssuerAnswer": {"changed_at", "warning", *Issuer.model_fields},
    "IssuerCheckAnswer": {"failure", "api_failure", "token"},
    "KeyAnswer": {"retired_at", "retires_at", "sealed_under"},
    "PolicyAnswer": {"changed_at"},
    "PublicKey": {"crv", "x", "y", "n", "e"},
    "SessionAnswer": {"ended_at", "end_reason", "address", "authenticated_at", "scope", "upstream"},
    "SessionEventAnswer": {"address", "reason", "detail"},
    "SessionEventsAnswer": {"next_cursor"},
    "SessionsAnswer": {"next_cursor"},
    # The tokens may be in cookies.
    "TokenAnswer": {"access_token", "refresh_token", "scope", "password_change_required", "device_token"},
    # A user of an issuer may have no address.
    "AdminUserAnswer": {"disabled_at", "password_expires_at", "email", "email_verified_at"},
    "MadeUserAnswer": {"disabled_at", "password_expires_at", "password", "email", "email_verified_at"},
    "UpstreamAnswer": {"session_id", "organization"},
    "UserAnswer": {"email"},
    "IdentityAnswer": {"email"},
    "UserPageAnswer": {"next_cursor"},
}
"""The members that an answer may leave out."""


def test_parameters_and_answers_have_types_that_are_never_null(document: Json) -> None:
    for name, operation in operations(document):
        for parameter in operation.get("parameters", []):
            assert "anyOf" not in parameter["schema"], (name, parameter["name"])
    for name, schema in document["components"]["schemas"].items():
        if name.endswith("Answer") or name in {"Health", "Readiness", "Claims", "PublicKey"}:
            assert "null" not in json.dumps(schema), name
            assert "anyOf" not in json.dumps(schema), name
            absent = set(schema["properties"]) - set(schema.get("required", ()))
            assert absent == OPTIONAL.get(name, set()), name


def test_a_token_names_one_audience_and_moments_that_32_bits_do_not_hold(document: Json) -> None:
    claims = document["components"]["schemas"]["Claims"]["properties"]
    assert claims["aud"]["type"] == "string"
    assert {name for name, claim in claims.items() if claim.get("format") == "int64"} == {"auth_time", "exp", "iat"}


BODIES = {
    *("EndSessions", "Exchange", "IssuerChange", "KeyRotation", "Link", "Login", "Logout", "NewKey", "PasswordAgain"),
    *("PolicyChange", "Refresh"),
}
"""The bodies of requests that have a word out of a list."""


def test_no_answer_holds_an_enum_that_a_later_word_would_break(document: Json) -> None:
    for name, schema in document["components"]["schemas"].items():
        if name not in BODIES:
            assert not re.search(r'"(enum|const)"', json.dumps(schema)), name
            assert "additionalProperties" not in schema or not name.endswith("Answer"), name
    answer = document["components"]["schemas"]["ErrorAnswer"]["properties"]
    for word in ("invalid_grant", "temporarily_unavailable"):
        assert f"`{word}`" in answer["error"]["description"]
    for reason in get_args(Reason):
        assert f"`{reason}`" in answer["reason"]["description"]


def test_a_response_describes_each_refusal_of_its_status(document: Json) -> None:
    compared = 0
    for endpoint in ENDPOINTS:
        responses = document["paths"][endpoint.path][endpoint.method.lower()]["responses"]
        for refusal in endpoint.refusals:
            assert refusal.sentence in responses[str(refusal.status)]["description"], (endpoint.path, refusal)
            compared += 1
    assert compared > 100


def test_every_example_is_valid(document: Json) -> None:
    checked = 0
    for name, schema in document["components"]["schemas"].items():
        for field, described in schema.get("properties", {}).items():
            for example in described.get("examples", []):
                found = Draft202012Validator(described | {"components": document["components"]})
                assert found.is_valid(example), (name, field)
                checked += 1
    assert checked > 10


def test_every_refusal_has_an_example_that_is_valid(document: Json) -> None:
    schema = {"$ref": "#/components/schemas/ErrorAnswer", "components": document["components"]}
    examples = [
        example["value"]
        for _, operation in operations(document)
        for answer in operation["responses"].values()
        for content in answer.get("content", {}).values()
        if content["schema"] == ERROR
        for example in content["examples"].values()
    ]
    assert len(examples) > 500
    for example in examples:
        Draft202012Validator(schema).validate(example)


def test_no_schema_has_the_name_of_a_class_that_languages_have(document: Json) -> None:
    taken = {
        "Error",
        "Exception",
        "Object",
        "String",
        "Map",
        "Set",
        "Date",
        "Response",
        "Request",
        "Function",
        "Symbol",
    }
    assert not taken & document["components"]["schemas"].keys()


def test_the_document_says_where_the_service_is_and_whom_each_part_is_for(document: Json) -> None:
    assert [server["url"] for server in document["servers"]] == ["http://127.0.0.1:8000"]
    assert document["info"].keys() >= {"title", "summary", "description", "version", "contact", "license"}
    tags = {tag["name"]: tag["description"] for tag in document["tags"]}
    assert all(tags.values())
    used = {tag for _, operation in operations(document) for tag in operation["tags"]}
    assert used == tags.keys()


def test_the_public_url_is_the_server_where_one_is_set() -> None:
    app = create_app(read({"KEYTURN_ISSUER": "https://auth.example.com/keyturn"}))
    assert app.openapi()["servers"][0]["url"] == "https://auth.example.com/keyturn"


def test_the_bearer_token_is_asked_for_where_one_is_needed(document: Json) -> None:
    asked = {name: operation.get("security") for name, operation in operations(document)}
    needed: list[Json] = [{"bearer": []}, {"cookie": []}]
    bearer = {name for name, security in asked.items() if security == needed}
    admin = {
        o["operationId"]
        for path, each in document["paths"].items()
        if path.startswith("/admin/")
        for o in each.values()
    }
    assert bearer >= {"me", "password", "verify"} | admin
    # Optional, because a refresh token in the body is enough, or in a cookie.
    assert asked.pop("logout") == [*needed, {"refresh_cookie": []}, {}]
    # The others say explicitly that they need no token. Without that, a reader takes a missing field for a mistake or
    # for the document's default.
    assert {name for name, security in asked.items() if security == []} == asked.keys() - bearer
    scheme = document["components"]["securitySchemes"]["bearer"]
    assert (scheme["type"], scheme["scheme"], scheme["bearerFormat"]) == ("http", "bearer", "JWT")


# -- a running service


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


ACCOUNT = {"email": "ada@localhost", "password": PASSWORD}


@pytest.fixture(scope="module")
def registered(service: Service, session: requests.Session) -> None:
    answer = session.post(f"{service.url}/auth/register", json=ACCOUNT, timeout=10)
    assert answer.status_code == 201


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("post", "/auth/login", ACCOUNT | {"password": "another lamp under another roof"}, 401),
        ("post", "/auth/login", {}, 400),
        ("post", "/auth/refresh", {"refresh_token": "ktr_" + "x" * 84}, 401),
        ("post", "/auth/register", ACCOUNT, 409),
        ("get", "/auth/me", None, 401),
        ("get", "/auth/verify", None, 401),
        ("get", "/admin/users", None, 401),
    ],
)
def test_a_refusal_of_the_service_is_one_of_the_examples(
    service: Service,
    session: requests.Session,
    registered: None,
    document: Json,
    method: str,
    path: str,
    body: Json,
    status: int,
) -> None:
    answer = session.request(method, service.url + path, json=body, timeout=10)
    assert answer.status_code == status
    content = document["paths"][path][method]["responses"][str(status)]["content"]["application/json"]
    # The sentence may say more, as which field is wrong.
    examples = {(example["value"]["error"], *example["value"]) for example in content["examples"].values()}
    assert (answer.json()["error"], *answer.json()) in examples


@pytest.fixture
def access_token(service: Service, session: requests.Session, registered: None) -> str:
    token: str = session.post(f"{service.url}/auth/login", json=ACCOUNT, timeout=10).json()["access_token"]
    return token


@pytest.mark.parametrize("body", [b"", b"null", b"{}", b'{"scope": null, "refresh_token": null}', b'{"scope":"this"}'])
def test_a_logout_that_has_nothing_to_add_to_its_bearer_token_may_say_so_in_any_way(
    service: Service, session: requests.Session, access_token: str, body: bytes
) -> None:
    headers = {"Authorization": f"Bearer {access_token}", "Content-Type": "application/json"}
    assert session.post(f"{service.url}/auth/logout", data=body, headers=headers, timeout=10).status_code == 204
    answer = session.get(f"{service.url}/auth/verify", headers=headers, timeout=10)
    assert (answer.status_code, answer.json()["reason"]) == (401, "logout")


@pytest.mark.parametrize(
    "body", [b"[]", b"0", b"false", b'""', b'{"scope": "x"}', b'{"scope": []}', b'{"scope": false}']
)
def test_a_logout_that_says_something_else_is_refused_and_ends_nothing(
    service: Service, session: requests.Session, access_token: str, body: bytes
) -> None:
    headers = {"Authorization": f"Bearer {access_token}", "Content-Type": "application/json"}
    assert session.post(f"{service.url}/auth/logout", data=body, headers=headers, timeout=10).status_code == 400
    assert session.get(f"{service.url}/auth/verify", headers=headers, timeout=10).status_code == 200


def test_the_document_says_form_for_each_path_under_which_the_edge_reads_forms() -> None:
    class Content(BaseModel):
        grant_type: str

    async def token(_: None, _request: Request) -> Answer:
        return NO_CONTENT

    async def other(_: None, _request: Request) -> Answer:
        return NO_CONTENT

    app = FastAPI()
    endpoints = [
        Endpoint("POST", "/oauth/token", token, tag="auth", body=Content),
        Endpoint("POST", "/auth/oauth/token", other, tag="auth", body=Content),
    ]
    Doors[None](endpoints).describe_to(app.router)
    paths = app.openapi()["paths"]
    types = {path: list(paths[path]["post"]["requestBody"]["content"]) for path in paths}
    assert types == {"/oauth/token": [FORM], "/auth/oauth/token": [JSON]}


@pytest.mark.parametrize("documented", [False, True])
def test_an_application_that_nobody_uses_any_more_is_freed(tmp_path: Path, *, documented: bool) -> None:
    """FastAPI remembers thousands of the functions that it documents, so none of these may hold an application."""
    app: Any = create_app(read({"KEYTURN_DATA_DIR": str(tmp_path)}))
    if documented:
        app.openapi()
    doors = weakref.ref(app.doors)
    del app
    gc.collect()
    assert doors() is None
