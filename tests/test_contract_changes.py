"""No change of the contract breaks a client of the last release, and each kind of break is found."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.contract_changes import breaks
from tests.service import ROOT
from tests.toolchains import installed

Json = dict[str, Any]
LAST, NEW = ROOT / "openapi/last.json", ROOT / "openapi/openapi.json"
CONTRACT: Json = json.loads(NEW.read_text(encoding="utf-8"))
OASDIFF = "github.com/oasdiff/oasdiff@v1.37.0"


def test_a_client_of_the_last_release_works_with_this_one() -> None:
    assert breaks(json.loads(LAST.read_text(encoding="utf-8")), CONTRACT) == []


def operation(document: Json, path: str = "/auth/login", method: str = "post") -> Json:
    found: Json = document["paths"][path][method]
    return found


def schema(document: Json, name: str) -> Json:
    found: Json = document["components"]["schemas"][name]
    return found


def member(document: Json, name: str, of: str) -> Json:
    found: Json = schema(document, of)["properties"][name]
    return found


BREAKS: dict[str, Callable[[Json], object]] = {
    "POST /auth/login: the operation is gone": lambda d: d["paths"].pop("/auth/login"),
    "PUT /admin/policies/{scope}: the operation is gone": lambda d: d["paths"]["/admin/policies/{scope}"].pop("put"),
    "POST /auth/login: its operationId was login": lambda d: operation(d).update(operationId="sign_in"),
    "POST /auth/login: its first tag was auth": lambda d: operation(d).update(tags=["sessions"]),
    "POST /auth/login: it asks for credentials": lambda d: operation(d).update(security=[{"bearer": []}]),
    "GET /auth/me: credentials are refused: cookie": lambda d: operation(d, "/auth/me", "get")["security"].pop(),
    "POST /auth/login: status 429 is gone": lambda d: operation(d)["responses"].pop("429"),
    "POST /auth/login: 429: header field Retry-After is gone": lambda d: operation(d)["responses"]["429"][
        "headers"
    ].pop("Retry-After"),
    "POST /auth/login: media type application/json is gone": lambda d: operation(d)["requestBody"].update(
        content={"application/x-www-form-urlencoded": operation(d)["requestBody"]["content"]["application/json"]}
    ),
    "POST /auth/logout: a body is required": lambda d: operation(d, "/auth/logout")["requestBody"].update(
        required=True
    ),
    "GET /auth/sessions: parameter limit is gone": lambda d: operation(d, "/auth/sessions", "get").update(
        parameters=[]
    ),
    "GET /auth/sessions: parameter limit is required": lambda d: [
        each.update(required=True) for each in operation(d, "/auth/sessions", "get")["parameters"]
    ],
    "schema Login: its name is gone": lambda d: (
        d["components"]["schemas"].update(SignIn=d["components"]["schemas"].pop("Login"))
        or operation(d)["requestBody"]["content"]["application/json"].update(
            schema={"$ref": "#/components/schemas/SignIn"}
        )
    ),
    "POST /auth/login: body.email is gone": lambda d: schema(d, "Login")["properties"].pop("email"),
    "POST /auth/login: body.device_id is required": lambda d: schema(d, "Login")["required"].append("device_id"),
    "POST /auth/login: body.email: its type was string, and is integer": lambda d: member(d, "email", "Login").update(
        type="integer"
    ),
    "POST /auth/login: body.email: maxLength 5 is too low": lambda d: member(d, "email", "Login").update(maxLength=5),
    "POST /auth/login: body.email: minLength 5 is too high": lambda d: member(d, "email", "Login").update(minLength=5),
    "POST /auth/login: body.email: pattern @ does not take all": lambda d: member(d, "email", "Login").update(
        pattern="@"
    ),
    "POST /auth/login: body.email: format email does not take all": lambda d: member(d, "email", "Login").update(
        format="email"
    ),
    "POST /admin/keys/rotate: body.algorithm: a reader of the enum does not take": lambda d: member(
        d, "algorithm", "KeyRotation"
    )["anyOf"][0]["enum"].pop(),
    "PUT /admin/users/{user_id}/claims: body: other members are refused": lambda d: schema(d, "ClaimsChange").update(
        additionalProperties=False
    ),
    "POST /auth/refresh: 200: body.expires_in is gone": lambda d: schema(d, "TokenAnswer")["properties"].pop(
        "expires_in"
    ),
    "POST /auth/refresh: 200: body.expires_in may be absent": lambda d: schema(d, "TokenAnswer")["required"].remove(
        "expires_in"
    ),
    "POST /auth/refresh: 200: body.expires_in: its type was integer, and is number": lambda d: member(
        d, "expires_in", "TokenAnswer"
    ).update(type="number"),
    "GET /auth/sessions: 200: body.items[].ended_at: format date-time does not take all": lambda d: member(
        d, "ended_at", "SessionAnswer"
    ).pop("format"),
}


@pytest.mark.parametrize("said", BREAKS)
def test_a_break_is_found(said: str) -> None:
    old, new = copy.deepcopy(CONTRACT), copy.deepcopy(CONTRACT)
    if "other members" in said:
        schema(old, "ClaimsChange").pop("additionalProperties")
    BREAKS[said](new)
    found = breaks(old, new)
    assert any(each.startswith(said) for each in found), found


def test_what_is_added_breaks_nobody() -> None:
    new = copy.deepcopy(CONTRACT)
    schema(new, "TokenAnswer")["properties"]["more"] = {"type": "string"}
    schema(new, "TokenAnswer")["required"].append("more")
    schema(new, "Login")["properties"]["more"] = {"type": "string"}
    member(new, "email", "Login")["maxLength"] = 2000
    operation(new)["responses"]["418"] = {"description": "A teapot."}
    new["paths"]["/auth/more"] = {"post": {**operation(new), "operationId": "more"}}
    assert breaks(CONTRACT, new) == []


def test_what_is_deprecated_may_go() -> None:
    old, new = copy.deepcopy(CONTRACT), copy.deepcopy(CONTRACT)
    operation(old, "/auth/me", "get")["deprecated"] = True
    del new["paths"]["/auth/me"]
    member(old, "expires_in", "TokenAnswer")["deprecated"] = True
    del schema(new, "TokenAnswer")["properties"]["expires_in"]
    schema(new, "TokenAnswer")["required"].remove("expires_in")
    assert breaks(old, new) == []


@pytest.fixture(scope="module")
def oasdiff() -> Path:
    if shutil.which("go") is None:
        pytest.skip("Go is not installed")
    script = 'GOBIN="$PWD" exec go install "$0"'
    return installed("oasdiff", (), "sh", "-c", script, OASDIFF) / "oasdiff"


def test_oasdiff_finds_no_break_since_the_last_release_and_one_that_is_planted(oasdiff: Path, tmp_path: Path) -> None:
    def found(new: Path) -> list[Json]:
        command = [str(each) for each in (oasdiff, "breaking", "--format", "json", LAST, new)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        faults: list[Json] = json.loads(done.stdout or "null") or []
        return [each for each in faults if each["level"] > 1]

    assert found(NEW) == []
    planted = copy.deepcopy(CONTRACT)
    schema(planted, "Login")["required"].append("device_id")
    (tmp_path / "new.json").write_text(json.dumps(planted), encoding="utf-8")
    assert [each["id"] for each in found(tmp_path / "new.json")]
