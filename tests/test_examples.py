"""The examples against a real service: those of the docs, and the client in JavaScript."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
import requests

from app.keyturn import opened
from app.settings import DEFAULT_ISSUER, read
from app.tokens.key_set import AccessKey
from tests.conftest import CHEAP, PASSWORD, SECRET
from tests.service import ROOT, Service

ACCOUNT = {"email": "ada@example.com", "password": PASSWORD}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    values = {
        "data_dir": tmp_path_factory.mktemp("examples") / "data",
        "secret": SECRET,
        "registration": "true",
        "signing_algorithm": "ES256",
        "retry_window": "0",
    }
    return {f"KEYTURN_{name.upper()}": str(value) for name, value in (values | CHEAP).items()}


@pytest.fixture(scope="module")
def service(environment: dict[str, str], logs: Path) -> Iterator[Service]:
    with Service.start(environment, logs=logs) as service:
        yield service


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


Login = Callable[[], dict[str, Any]]


@pytest.fixture(scope="module")
def login(service: Service, session: requests.Session) -> Login:
    assert session.post(f"{service.url}/auth/register", json=ACCOUNT, timeout=10).status_code == 201

    def tokens() -> dict[str, Any]:
        answer: dict[str, Any] = session.post(f"{service.url}/auth/login", json=ACCOUNT, timeout=10).json()
        return answer

    return tokens


# -- the browser's way by curl


def test_the_lines_for_web_apps_sign_in_ask_and_sign_out(service: Service, login: Login, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    login()  # makes the account
    text = (ROOT / "docs/web.md").read_text(encoding="utf-8").partition("\n## A look by curl\n")[2]
    found = re.search(r"```\n(KEYTURN=.*?)```", text, re.DOTALL)
    assert found is not None
    lines = (
        found.group(1).partition("\n")[2].replace("admin@localhost", ACCOUNT["email"]).replace('"…"', f'"{PASSWORD}"')
    )
    done = subprocess.run(
        ["sh", "-eu", "-c", lines],
        env={"KEYTURN": service.url, "PATH": os.environ["PATH"], "NO_PROXY": "*"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    signed_in, rest = done.stdout.split("}", 1)
    session = json.loads(signed_in + "}")["session_id"]
    assert "access_token" not in signed_in
    assert rest.count(session) == 2 + 1  # the user and session; the claims `sid` and `jti`
    assert "204 No Content" in rest
    assert rest.count("Max-Age=0; Path=/; HttpOnly; SameSite=Strict") == 2


# -- the client in JavaScript


def run(service: Service, tokens: dict[str, Any], script: str) -> dict[str, Any]:
    """Runs a script with Node and returns its result, with the calls of `api` and the changes of the tokens.

    The script has a `client` with these tokens and the URL of an `api`. Unless the script changes `accepts`, the `api`
    refuses the access token that `client` begins with.
    """
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    prologue = f"""
        import http from "node:http";
        import {{ Client }} from {json.dumps((ROOT / "examples" / "client.mjs").as_uri())};
        const url = {json.dumps(service.url)}, tokens = {json.dumps(tokens)};
        const changes = [];
        const seen = {{ api: 0, refresh: 0 }};
        const builtIn = globalThis.fetch;
        globalThis.fetch = (resource, init) => {{
            if (String(resource).endsWith("/auth/refresh")) seen.refresh += 1;
            return builtIn(resource, init);
        }};
        let accepts = (token) => token !== tokens.access_token;
        const server = http.createServer((request, response) => {{
            seen.api += 1;
            response.writeHead(accepts(request.headers.authorization.slice(7)) ? 200 : 401).end();
        }});
        await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
        const api = `http://127.0.0.1:${{server.address().port}}/`;
        const client = new Client(url, tokens, (now) => changes.push(now));
        const statuses = async (n) =>
            (await Promise.all(Array.from({{ length: n }}, () => client.fetch(api)))).map((answer) => answer.status);
        const result = await (async () => {{ {script} }})();
        console.log(JSON.stringify({{ ...result, seen, changes: changes.map((now) => now && now.session_id) }}));
        process.exit();
    """
    done = subprocess.run(
        ["node", "--input-type=module", "-e", prologue], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_calls_that_meet_a_401_share_one_refresh_and_are_sent_again(service: Service, login: Login) -> None:
    tokens = login()
    result = run(service, tokens, "return { statuses: await statuses(20) };")
    assert result["statuses"] == [200] * 20
    assert result["seen"] == {"api": 40, "refresh": 1}
    assert result["changes"] == [tokens["session_id"]] * 2  # before the request with its key, and after the answer


LOSES_ANSWERS = """
    const through = globalThis.fetch;
    const keys = [];
    let losing = true;
    globalThis.fetch = async (resource, init) => {
        const answer = await through(resource, init);
        if (!String(resource).endsWith("/auth/refresh")) return answer;
        keys.push(init.headers["Idempotency-Key"]);
        if (losing) throw new TypeError("the answer was lost");
        return answer;
    };
    const failed = await client.fetch(api).then(() => false, () => true);
"""


def test_a_client_whose_answer_was_lost_retries_with_the_key_that_it_stored_also_after_a_restart(
    service: Service, login: Login
) -> None:
    result = run(
        service,
        login(),
        LOSES_ANSWERS
        + """
        losing = false;
        const stored = JSON.parse(JSON.stringify(changes.at(-1)));
        const restarted = new Client(url, stored, (now) => changes.push(now));
        const status = (await restarted.fetch(api)).status;
        return { failed, status, keys, left: changes.at(-1).retry_key ?? null };
        """,
    )
    assert (result["failed"], result["status"]) == (True, 200)  # the service has no retry window
    assert len(result["keys"]) == 2
    assert len(set(result["keys"])) == 1
    assert result["left"] is None


def test_a_client_without_its_key_is_taken_for_a_thief(service: Service, login: Login) -> None:
    result = run(
        service,
        login(),
        LOSES_ANSWERS
        + """
        losing = false;
        const { retry_key, ...stored } = changes.at(-1);
        const restarted = new Client(url, stored, (now) => changes.push(now));
        return { status: (await restarted.fetch(api)).status };
        """,
    )
    assert result["status"] == 401
    assert result["changes"][-1] is None


def test_an_answer_whose_access_token_is_over_is_followed_by_one_more_refresh(service: Service, login: Login) -> None:
    result = run(
        service,
        login(),
        """
        const through = globalThis.fetch;
        const keys = [];
        globalThis.fetch = async (resource, init) => {
            const answer = await through(resource, init);
            if (!String(resource).endsWith("/auth/refresh") || keys.push(init.headers["Idempotency-Key"]) > 1) return answer;
            return new Response(JSON.stringify({ ...(await answer.json()), expires_in: 0 }));
        };
        return { statuses: await statuses(5), different: new Set(keys).size };
        """,
    )
    assert result["statuses"] == [200] * 5
    assert result["different"] == 2
    assert result["seen"] == {"api": 10, "refresh": 2}


def test_an_api_that_refuses_whatever_it_is_sent_is_asked_twice_and_no_more(service: Service, login: Login) -> None:
    result = run(service, login(), "accepts = () => false; return { statuses: await statuses(1) };")
    assert result["statuses"] == [401]
    assert result["seen"] == {"api": 2, "refresh": 1}


def test_a_refused_refresh_is_the_last_one(service: Service, session: requests.Session, login: Login) -> None:
    tokens = login()
    session.post(f"{service.url}/auth/logout", json={"refresh_token": tokens["refresh_token"]}, timeout=10)
    result = run(
        service,
        tokens,
        """
        const first = await statuses(20);
        accepts = () => false;
        const me = await client.fetch(`${url}/auth/me`);
        return { statuses: first, me: me.status };
        """,
    )
    assert result["statuses"] == [401] * 20
    assert result["me"] == 401
    assert result["seen"] == {"api": 20, "refresh": 1}
    assert result["changes"] == [tokens["session_id"], None]


def test_while_keyturn_is_away_the_tokens_are_kept(service: Service, login: Login) -> None:
    tokens = login()
    result = run(
        service,
        tokens,
        """
        const through = globalThis.fetch;
        globalThis.fetch = (resource, init) =>
            String(resource).startsWith(url) ? Promise.resolve(new Response("", { status: 503 })) : through(resource, init);
        const failed = await client.fetch(api).then(() => false, () => true);
        globalThis.fetch = through;
        return { failed, statuses: await statuses(1) };
        """,
    )
    assert result["failed"] is True
    assert result["statuses"] == [200]
    assert result["changes"] == [tokens["session_id"]] * 2  # the second try has the key of the first


# -- the recipe for services that verify by themselves


@pytest.fixture
def verified(service: Service, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """The function of the example, which docs/verify.md shows, with the issuer and the address of this service."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("KEYTURN", service.url)
    monkeypatch.setenv("ISSUER", DEFAULT_ISSUER)
    function: Callable[[str], dict[str, Any]] = runpy.run_path(str(ROOT / "examples/fastapi-api/local.py"))["verified"]
    return function


@pytest.mark.parametrize("seconds", [-4, -1, 0, 1])
def test_the_recipe_accepts_a_fresh_token_though_the_clocks_differ(
    verified: Callable[[str], dict[str, Any]], login: Login, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(seconds=seconds)

    tokens = login()
    monkeypatch.setattr("jwt.api_jwt.datetime", Clock)
    assert verified(tokens["access_token"])["sid"] == tokens["session_id"]


@asynccontextmanager
async def signing_key(environment: dict[str, str]) -> AsyncIterator[AccessKey]:
    """The service's own signing key, for tokens that the service would never make."""
    async with opened(read(environment)) as keyturn:
        await keyturn.keys.load()
        yield keyturn.keys.signing_access


async def test_the_recipe_refuses_what_is_signed_by_the_right_key_and_no_access_token(
    verified: Callable[[str], dict[str, Any]], login: Login, environment: dict[str, str]
) -> None:
    token = login()["access_token"]
    good = verified(token)
    now = int(datetime.now(UTC).timestamp())
    async with signing_key(environment) as key:

        def signed(claims: dict[str, Any], typ: str | None = "at+jwt") -> str:
            headers = {"kid": key.kid} | ({"typ": typ} if typ else {})
            return jwt.encode(claims, key.signing, "ES256", headers=headers)

        assert verified(signed(good)) == good
        for typ in ("JWT", "dpop+jwt", "logout+jwt"):
            with pytest.raises(jwt.InvalidTokenError, match="not an access token"):
                verified(signed(good, typ))
        for name in good.keys() - {"auth_time"}:  # the recipe does not ask for it
            with pytest.raises(jwt.MissingRequiredClaimError):
                verified(signed({claim: value for claim, value in good.items() if claim != name}))
        for wrong in (
            {"iss": "https://evil.example.com"},
            {"aud": "https://other.example.com"},
            {"exp": now - 6},
            {"iat": now + 60},
        ):
            with pytest.raises(jwt.InvalidTokenError):
                verified(signed(good | wrong))
    with pytest.raises(jwt.PyJWTError):
        verified(token[:-5] + "AAAAA")
