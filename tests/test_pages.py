"""The start page and the reference of the API: content, policy, links, and what hostile input does to them."""

from __future__ import annotations

import asyncio
import http.client
import re
from base64 import b64encode
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urljoin, urlsplit

import httpx2
import pytest

from app.keyturn import Keyturn
from app.main import create_app, release
from app.pages.reference import reference
from app.pages.start import Facts, start
from app.revocation.rebuild import CacheState
from app.routes import documents
from tests.conftest import SECRET, settings_of
from tests.servers import free_port
from tests.service import Service

ISSUER = "https://auth.example.com"
PAGES = ("/", "/docs")
LOADS = {"src", "srcset", "data", "poster", "action", "formaction", "background", "ping", "manifest"}
"""The attributes, besides that of a link, whose addresses a browser asks by itself or sends something to."""

pytestmark = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)


class Parsed(HTMLParser):
    """Elements with their attributes, and text, of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.style = ""
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "style":
            self.style += data
        else:
            self.text += data

    def links(self) -> list[str]:
        return [str(attributes["href"]) for tag, attributes in self.elements if tag == "a"]

    def ids(self) -> list[str]:
        return [str(attributes["id"]) for _, attributes in self.elements if "id" in attributes]


@asynccontextmanager
async def serving(database_url: str, **settings: Any) -> AsyncIterator[tuple[Keyturn, httpx2.AsyncClient]]:
    """Runs an instance in this process: its parts, and a client of it."""
    redis_url = settings.pop("redis_url", None)
    app = create_app(settings_of(database_url, redis_url, **{"issuer": ISSUER, **settings}))
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=ISSUER) as client,
    ):
        async with asyncio.timeout(10):
            while (await client.get("/readyz")).status_code != httpx2.codes.OK:
                await asyncio.sleep(0.02)
        yield app.state.keyturn, client


@pytest.fixture
async def client(database_url: str) -> AsyncIterator[httpx2.AsyncClient]:
    async with serving(database_url) as (_, client):
        yield client


async def parsed(client: httpx2.AsyncClient, path: str) -> Parsed:
    answer = await client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    return Parsed(answer.text)


async def test_the_start_page_tells_the_state_and_public_facts(database_url: str) -> None:
    async with serving(database_url, signing_algorithm="ES256") as (keyturn, client):
        text = (await parsed(client, "/")).text
        for words in ("Ready.", ISSUER, release(), "ES256", "None is set. The database answers by itself."):
            assert words in text, words
        signing = keyturn.keys.signing_access
        assert signing.kid not in text
        assert SECRET not in text


@pytest.mark.parametrize("is_set", [True, False])
def test_the_start_page_says_whether_somebody_has_named_an_issuer(engine: str, is_set: bool) -> None:
    facts = Facts("ok", "none", "1", ISSUER, is_set, "http://127.0.0.1:8931", "HS256", {})
    text = Parsed(start(facts).decode()).text
    assert ISSUER in text
    assert (f"Unset. Access tokens name {ISSUER}; KEYTURN_ISSUER changes it." in text) == (not is_set)


async def test_the_start_page_says_that_redis_is_away(database_url: str) -> None:
    async with serving(database_url, redis_url=f"redis://127.0.0.1:{free_port()}") as (keyturn, client):
        async with asyncio.timeout(10):
            while keyturn.revocations.rebuild.cache != "away":
                await asyncio.sleep(0.02)
        assert "Ready, without Redis." in (await parsed(client, "/")).text


async def test_the_start_page_is_made_anew_only_if_what_it_tells_has_changed(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def counted(facts: Facts) -> bytes:
        made.append(facts.cache)
        return start(facts)

    monkeypatch.setattr(documents, "start", counted)
    async with serving(database_url) as (keyturn, client):
        pages = {(await client.get("/")).text for _ in range(5)}
        assert (len(pages), made) == (1, ["none"])
        keyturn.revocations.rebuild.cache = "away"
        assert "Ready, without Redis." in (await parsed(client, "/")).text
        assert made == ["none", "away"]


@pytest.mark.parametrize(
    ("database", "cache", "algorithm", "says"),
    [
        ("ok", "complete", "ES256", "Ready."),
        ("ok", "not filled", "ES256", "Ready. Redis is being filled."),
        *(("ok", cache, "ES256", "Ready") for cache in get_args(CacheState)),
        ("away", "complete", "ES256", "Not ready: the database is away."),
        ("ok", "complete", None, "Not ready: no key is in force."),
    ],
)
def test_the_start_page_never_calls_a_process_ready_that_is_not(
    engine: str, database: str, cache: str, algorithm: str | None, says: str
) -> None:
    text = Parsed(start(Facts(database, cache, "1", ISSUER, True, ISSUER, algorithm, {})).decode()).text
    assert says in text
    assert ("Ready" in text) == (not says.startswith("Not"))


async def test_every_link_of_the_pages_leads_somewhere(client: httpx2.AsyncClient) -> None:
    for path in PAGES:
        page = await parsed(client, path)
        ids = page.ids()
        assert [one for one, times in Counter(ids).items() if times > 1] == []
        links = set(page.links())
        assert {link[1:] for link in links if link.startswith("#")} <= {*ids}
        for at in {urlsplit(urljoin(f"{ISSUER}{path}", link)).path for link in links}:
            assert (await client.get(at)).status_code == 200, at


async def test_the_reference_has_each_operation_with_its_parameters_fields_and_answers(
    client: httpx2.AsyncClient,
) -> None:
    contract = (await client.get("/openapi.json")).json()
    page = await parsed(client, "/docs")
    for path, methods in contract["paths"].items():
        for method, operation in methods.items():
            assert operation["operationId"] in page.ids()
            _, _, after = page.text.partition(f"{method.upper()} {path}")
            assert after, path
            sentences = [
                operation["description"],
                *(each.get("description", "") for each in operation.get("parameters", ())),
            ]
            for sentence in sentences:
                first = sentence.split("\n\n")[0].replace("`", "")
                assert " ".join(first.split()) in after, (path, sentence)
            for content in operation.get("requestBody", {}).get("content", {}).values():
                name = content["schema"]["$ref"].rpartition("/")[2]
                for member in contract["components"]["schemas"][name].get("properties", {}):
                    assert member in after, (path, member)
            for status, answer in operation["responses"].items():
                assert status in page.text
                assert answer["description"].replace("`", "") in page.text or answer["description"].startswith(
                    "Success"
                )
    assert "curl -X DELETE https://auth.example.com/auth/sessions/$session_id" in page.text


async def test_the_pages_have_no_script_and_load_nothing(client: httpx2.AsyncClient) -> None:
    for path in PAGES:
        answer = await client.get(path)
        page = Parsed(answer.text)
        tags = {tag for tag, _ in page.elements}
        assert not tags & {"script", "img", "iframe", "object", "embed", "form", "base", "video", "audio"}
        for tag, attributes in page.elements:
            assert not [name for name in attributes if name.startswith("on") or name in LOADS | {"style"}], tag
            if tag == "link":
                assert str(attributes["href"]).startswith("data:image/svg+xml,")
            if tag == "a":
                assert not urlsplit(str(attributes["href"])).netloc
        assert not re.search(r"url\(|@import", page.style)
        digest = b64encode(sha256(page.style.encode()).digest()).decode()
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
        assert policy == {
            "default-src": "'none'",
            "style-src": f"'sha256-{digest}'",
            "img-src": "data:",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
        }
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"


async def test_one_setting_takes_the_pages_away_and_leaves_the_contract(database_url: str) -> None:
    async with serving(database_url, pages="false") as (_, client):
        unknown = await client.get("/nowhere")
        for path in PAGES:
            answer = await client.get(path)
            assert (answer.status_code, answer.content) == (404, unknown.content)
        assert (await client.get("/openapi.json")).status_code == 200


async def test_a_browser_at_an_unknown_path_still_gets_json(client: httpx2.AsyncClient) -> None:
    for path in ("/nowhere", "/docs/", "/docs/x", "/index.html"):
        answer = await client.get(path, headers={"Accept": "text/html"})
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/json"), path
    assert (await client.post("/docs")).status_code == 405


async def test_a_client_that_has_the_reference_gets_no_second_copy(client: httpx2.AsyncClient) -> None:
    for path in ("/docs", "/openapi.json"):
        first = await client.get(path)
        tag = first.headers["etag"]
        assert first.headers["cache-control"] == "no-cache"
        for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
            again = await client.get(path, headers={"If-None-Match": known})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag), known
        assert (await client.get(path, headers={"If-None-Match": '"other"'})).status_code == 200
    assert (await client.get("/")).headers["cache-control"] == "no-store"


@pytest.mark.parametrize("prefix", ["/keyturn", "/docs", "/auth"])
async def test_below_a_prefix_every_link_stays_below_it(database_url: str, prefix: str) -> None:
    async with serving(database_url, root_path=prefix, issuer=f"{ISSUER}{prefix}") as (_, client):
        for stripped in ("", prefix):  # the proxy strips the prefix, or it does not
            for path in PAGES:
                page = await parsed(client, stripped + path)
                for at in {urlsplit(urljoin(f"{ISSUER}{prefix}{path}", link)).path for link in page.links()}:
                    assert at.startswith(prefix + "/")
                    assert (await client.get(at)).status_code == 200, at


async def test_no_header_field_of_a_request_reaches_a_page(client: httpx2.AsyncClient) -> None:
    fields = ("Host", "X-Forwarded-Host", "X-Forwarded-Prefix", "Referer", "Accept", "User-Agent", "Accept-Language")
    for path in PAGES:
        plain = await client.get(path)
        hostile = await client.get(f"{path}?x=evil.example", headers=dict.fromkeys(fields, "evil.example"))
        assert (hostile.status_code, hostile.content) == (200, plain.content)


def test_text_in_facts_and_contract_stays_text(engine: str) -> None:
    evil = "<script>alert(1)</script>\"'&"
    page = Parsed(
        start(Facts("ok", "complete", evil, evil, True, evil, evil, {evil: "https://x.example/" + evil})).decode()
    )
    assert evil in page.text
    assert "script" not in {tag for tag, _ in page.elements}
    schema = {
        "type": "object",
        "description": evil,
        "properties": {evil: {"type": evil, "description": evil, "enum": [evil], "examples": [evil]}},
    }
    operation = {
        "operationId": evil,
        "summary": evil,
        "description": f"{evil} `{evil}`",
        "tags": [evil],
        "parameters": [{"name": evil, "in": "query", "description": evil, "schema": {"type": "string"}}],
        "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/E"}}}},
        "responses": {"200": {"description": evil, "content": {"application/json": {"schema": schema}}}},
    }
    contract = {
        "info": {"description": evil, "version": evil},
        "servers": [{"url": evil}],
        "tags": [{"name": evil, "description": evil}],
        "paths": {"/" + evil: {"post": operation}},
        "components": {"schemas": {"E": schema, "ErrorAnswer": schema}},
    }
    page = Parsed(reference(contract, {}).decode())
    assert page.text.count("<script>") > 10
    assert "script" not in {tag for tag, _ in page.elements}
    assert not [name for _, attributes in page.elements for name in attributes if not re.fullmatch(r"[a-zA-Z-]+", name)]


def test_the_real_server_answers_head_and_serves_no_page_on_the_port_of_the_metrics(
    database_url: str, logs: Path
) -> None:
    metrics = free_port()
    environment = {
        "KEYTURN_DATABASE_URL": database_url,
        "KEYTURN_SECRET": SECRET,
        "KEYTURN_ISSUER": ISSUER,
        "KEYTURN_REDIS_URL": "none",
        "KEYTURN_METRICS_PORT": str(metrics),
    }

    def ask(port: int, method: str, path: str) -> tuple[int, str | None, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.getheader("content-length"), answer.read()
        finally:
            connection.close()

    with Service.start(environment, logs=logs) as service:
        for path in (*PAGES, "/openapi.json"):
            status, length, body = ask(service.port, "GET", path)
            assert (status, length) == (200, str(len(body)))
            assert ask(service.port, "HEAD", path) == (200, length, b"")
            assert ask(metrics, "GET", path)[0] == 404
