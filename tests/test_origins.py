"""Origins: whose pages a browser lets read Keyturn's answers, and whose requests a cookie authenticates."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from app import metrics
from app.actors import SERVICE
from app.errors import ConfigurationError, CrossSite, SlowDown, TemporarilyUnavailable
from app.http.answers import Answer, of_json
from app.http.edge import Edge
from app.http.origins import NONE, Origins
from app.http.request import Request
from app.keyturn import Keyturn
from app.main import create_app
from app.settings import read
from app.settings_values import origins_in
from tests.conftest import CHEAP, NEW_PASSWORD, PASSWORD, SECRET, settings_of
from tests.service import Service
from tests.tally import Tally

ISSUER = "https://auth.example.com"
APP, OTHER, LOCAL = "https://app.example.net", "https://other.example.org:8443", "http://localhost:3000"
ALLOWED = (APP, OTHER, LOCAL)
EVIL = "https://evil.example"

Fields = list[tuple[str, str]]


def raw(*fields: tuple[str, str | bytes]) -> list[tuple[bytes, bytes]]:
    """Header fields as the edge gets them."""
    return [
        (name.lower().encode(), value if isinstance(value, bytes) else value.encode("latin-1"))
        for name, value in fields
    ]


def named(answer: httpx2.Response) -> dict[str, str]:
    """The fields of CORS in an answer. Asserts that none of them and no Vary stands twice."""
    pairs = [(name.lower(), value) for name, value in answer.headers.multi_items()]
    found = [(name, value) for name, value in pairs if name.startswith("access-control-")]
    assert len(dict(found)) == len(found), found
    assert [name for name, _ in pairs].count("vary") <= 1, pairs
    return dict(found)


# -- origins in the settings


@pytest.mark.parametrize(
    ("given", "read_as"),
    [
        ("", ()),
        (" ", ()),
        ("https://app.example.com", ("https://app.example.com",)),
        (" https://a.example ,  https://b.example:8443,", ("https://a.example", "https://b.example:8443")),
        ("https://a.example:80", ("https://a.example:80",)),
        ("https://a.example:65535", ("https://a.example:65535",)),
        ("https://intranet", ("https://intranet",)),
        ("https://my_app.example", ("https://my_app.example",)),
        ("https://xn--bcher-kva.example", ("https://xn--bcher-kva.example",)),
        ("https://192.0.2.7:8443", ("https://192.0.2.7:8443",)),
        ("https://[2001:db8::1]", ("https://[2001:db8::1]",)),
        ("http://localhost:3000", ("http://localhost:3000",)),
        ("http://app.localhost:5173", ("http://app.localhost:5173",)),
        ("http://127.0.0.1", ("http://127.0.0.1",)),
        ("http://127.1.2.3:8080", ("http://127.1.2.3:8080",)),
        ("http://[::1]:8080", ("http://[::1]:8080",)),
    ],
)
def test_the_setting_takes_origins_as_browsers_write_them(given: str, read_as: tuple[str, ...]) -> None:
    settings = read({"KEYTURN_ALLOWED_ORIGINS": given})
    assert origins_in(settings.allowed_origins) == read_as


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "null",
        "https://*.example.com",
        "https://web.example.com/",
        "https://web.example.com/path",
        "https://web.example.com?x",
        "https://web.example.com#x",
        "https://Web.example.com",
        "HTTPS://web.example.com",
        "https://web.example.com:443",
        "http://localhost:80",
        "https://web.example.com:",
        "https://web.example.com:0",
        "https://web.example.com:08443",
        "https://web.example.com:65536",
        "https://web.example.com:٨",
        "https://user@web.example.com",
        "https://user:secret@web.example.com",
        "https://bücher.example",
        "https://web.example.com.",
        "https://.example.com",
        "https://web..example.com",
        "https://web example.com",
        "https://web.example.com https://b.example",
        "https://web.example.com;https://b.example",
        "https://web.example.com,*",
        "https://a.example,http://b.example",
        "web.example.com",
        "//web.example.com",
        "https:web.example.com",
        "https://",
        "http://web.example.com",
        "http://192.0.2.7",
        "http://localhost.example.com",
        "http://notlocalhost",
        "http://128.0.0.1",
        "https://127.1",
        "https://2130706433",
        "https://0x7f.0.0.1",
        "https://0x7f000001",
        "https://127.0.0.01",
        "https://256.0.0.1",
        "https://a.1",
        "https://[::1",
        "https://[2001:DB8::1]",
        "https://[2001:db8:0:0:0:0:0:1]",
        "https://[::1%25lo]",
        "https://2001:db8::1",
        "ftp://web.example.com",
        "file://",
        "chrome-extension://abcdefghijklmnop",
        "https://web.example.com\\",
        "https://web%2eexample.com",
    ],
)
def test_the_setting_refuses_what_no_browser_sends_and_what_others_could_read(origin: str) -> None:
    with pytest.raises(ConfigurationError, match="KEYTURN_ALLOWED_ORIGINS: must be exact origins") as caught:
        read({"KEYTURN_ALLOWED_ORIGINS": origin})
    assert len(origin) < 9 or origin not in str(caught.value)


# -- the rule against CSRF


@pytest.mark.parametrize("origin", [ISSUER, *ALLOWED])
def test_a_page_of_the_issuer_s_origin_or_of_an_allowed_one_is_trusted(origin: str) -> None:
    assert Origins(ISSUER, ALLOWED).is_own(raw(("Origin", origin)))


ALMOST: list[str | bytes] = [
    "", " ", "null", "NULL", "*", "none", "undefined", "about:blank", "file://", "data:", "https://", "https:",
    # letter case
    "https://Auth.example.com", "HTTPS://auth.example.com", "https://auth.example.COM", "https://APP.example.net",
    # scheme and port
    "http://auth.example.com", "https://auth.example.com:443", "https://auth.example.com:80", "http://app.example.net",
    "https://auth.example.com:8443", "https://auth.example.com:", "https://other.example.org",
    "https://other.example.org:443", "https://other.example.org:08443", "https://localhost:3000", "http://localhost",
    "http://localhost:3001", "http://127.0.0.1:3000", "http://[::1]:3000", "wss://auth.example.com",
    "//auth.example.com", "auth.example.com", "app.example.net",
    # path, query, fragment
    "https://auth.example.com/", "https://app.example.net/", "https://auth.example.com/login",
    "https://auth.example.com?", "https://auth.example.com#", "https://auth.example.com\\",
    # prefixes and suffixes
    "https://auth.example.com.evil.example", "https://auth.example.comevil.example", "https://auth.example.co",
    "https://evil-auth.example.com", "https://evil.auth.example.com", "https://example.com", "https://xauth.example.com",
    "https://auth.example.com.", "https://auth-example.com", "https://authXexample.com",
    "https://evil.example?https://auth.example.com", "https://evil.example#https://auth.example.com",
    "https://evil.example/https://auth.example.com", "https://app.example.net.evil.example",
    # user and password
    "https://auth.example.com@evil.example", "https://user@auth.example.com", "https://auth.example.com:443@evil.example",
    "https://:@auth.example.com",
    # other spellings of a host
    "https://auth%2eexample.com", "https://auth.example.com%00", "https://auth。example.com".encode(),
    "https://\u0430uth.example.com".encode(), b"https://auth.example.com\xa0", b"https://auth.example.com\x00", b"\xff",
    "https://xn--uth-5cd.example.com",
    # several values, blanks
    f"{ISSUER}, {ISSUER}", f"{ISSUER},{EVIL}", f"{EVIL}, {ISSUER}", f"{ISSUER} {APP}", f"{ISSUER};", f" {ISSUER}",
    f"{ISSUER} ", f"{ISSUER}\t", f'"{ISSUER}"', f"<{ISSUER}>", f"{APP} null",
    EVIL,
]  # fmt: skip


@pytest.mark.parametrize("origin", ALMOST)
def test_an_origin_that_only_resembles_a_trusted_one_is_not_trusted(origin: str | bytes) -> None:
    origins = Origins(ISSUER, ALLOWED)
    assert not origins.is_own(raw(("Origin", origin)))
    for site in ("cross-site", "same-site", "none", ""):
        assert not origins.is_own(raw(("Origin", origin), ("Sec-Fetch-Site", site)))


@pytest.mark.parametrize(
    ("fields", "trusted"),
    [
        ([], False),
        ([("Sec-Fetch-Site", "same-origin")], True),
        ([("Sec-Fetch-Site", "same-site")], False),
        ([("Sec-Fetch-Site", "cross-site")], False),
        ([("Sec-Fetch-Site", "none")], False),
        ([("Sec-Fetch-Site", "")], False),
        ([("Sec-Fetch-Site", "Same-Origin")], False),
        ([("Sec-Fetch-Site", "same-origin ")], False),
        ([("Sec-Fetch-Site", "same-origin;x=1")], False),
        ([("Sec-Fetch-Site", "same-origin, cross-site")], False),
        ([("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Site", "same-origin")], False),
        ([("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Site", "cross-site")], False),
        ([("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Site", "same-origin")], False),
        # A form of our own page that hides its address (Referrer-Policy: no-referrer).
        ([("Origin", "null"), ("Sec-Fetch-Site", "same-origin")], True),
        ([("Origin", "null"), ("Sec-Fetch-Site", "cross-site")], False),
        # Keyturn under a further name, where the issuer is not the origin that the browser knows.
        ([("Origin", "http://localhost:8000"), ("Sec-Fetch-Site", "same-origin")], True),
        ([("Origin", APP), ("Sec-Fetch-Site", "cross-site")], True),
        ([("Origin", APP), ("Sec-Fetch-Site", "same-site")], True),
        ([("Origin", APP), ("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Site", "same-origin")], True),
        ([("Origin", ISSUER), ("Origin", ISSUER)], False),
        ([("Origin", ISSUER), ("Origin", EVIL)], False),
        ([("Origin", EVIL), ("Origin", ISSUER)], False),
        ([("Origin", ISSUER), ("Origin", ISSUER), ("Sec-Fetch-Site", "same-origin")], False),
        ([("Referer", f"{ISSUER}/login")], False),
        ([("Host", "auth.example.com"), ("X-Forwarded-Host", "auth.example.com")], False),
        ([("X-Requested-With", "XMLHttpRequest")], False),
        ([("X-Origin", ISSUER), ("Sec-Fetch-Mode", "same-origin")], False),
    ],
)
def test_origin_and_sec_fetch_site_together_tell_whose_page_it_is(fields: Fields, trusted: bool) -> None:
    assert Origins(ISSUER, ALLOWED).is_own(raw(*fields)) == trusted


@pytest.mark.parametrize(
    ("issuer", "own", "foreign"),
    [
        ("https://auth.example.com/keyturn", "https://auth.example.com", "https://auth.example.com/keyturn"),
        ("https://auth.example.com:443", "https://auth.example.com", "https://auth.example.com:443"),
        ("https://auth.example.com:8443/", "https://auth.example.com:8443", "https://auth.example.com"),
        ("https://Auth.Example.COM", "https://auth.example.com", "https://Auth.Example.COM"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000", "http://localhost:8000"),
        ("http://127.0.0.1:80", "http://127.0.0.1", "http://127.0.0.1:80"),
        ("http://[::1]:8000", "http://[::1]:8000", "http://::1:8000"),
        ("https://[2001:DB8:0:0::1]", "https://[2001:db8::1]", "https://[2001:DB8:0:0::1]"),
    ],
)
def test_the_issuer_s_own_origin_is_written_as_browsers_do(issuer: str, own: str, foreign: str) -> None:
    origins = Origins(issuer)
    assert origins.is_own(raw(("Origin", own)))
    assert not origins.is_own(raw(("Origin", foreign)))


@pytest.mark.parametrize("issuer", ["https://faß.example", "https://bücher.example", "https://[v7.a:b]"])
def test_no_origin_is_the_issuer_s_if_programs_spell_its_host_in_several_ways(issuer: str) -> None:
    origins = Origins(issuer)
    spellings = (
        issuer.encode(),
        b"https://fass.example",
        b"https://xn--fa-hia.example",
        b"https://xn--bcher-kva.example",
    )
    assert not any(origins.is_own(raw(("Origin", each))) for each in spellings)
    assert origins.is_own(raw(("Sec-Fetch-Site", "same-origin")))


def test_nothing_is_trusted_that_nobody_named() -> None:
    for origin in ("", "null", "https://", "http://", ISSUER):
        assert not NONE.is_own(raw(("Origin", origin)))


def test_a_request_of_another_site_is_refused_by_a_word_of_its_own() -> None:
    def of(*fields: tuple[str, str]) -> Request:
        request = Request()
        request.read_head({"method": "POST", "path": "/auth/logout", "query_string": b"", "headers": raw(*fields)})
        request.origins = Origins(ISSUER, ALLOWED)
        return request

    of(("Origin", ISSUER)).require_own_site()
    with pytest.raises(CrossSite) as caught:
        of(("Origin", EVIL)).require_own_site()
    refusal = caught.value
    assert (refusal.status, refusal.error, refusal.challenge) == (403, "cross_site", None)
    assert EVIL not in f"{refusal.cause}{refusal.body()}"


# -- the answers that pages of other origins may read


async def _application(scope: Any, _receive: Any, send: Any) -> None:
    match scope["path"]:
        case "/exception":
            raise ValueError("broken")
        case "/outage":
            raise TemporarilyUnavailable("away", retry_after=timedelta(seconds=2))
        case "/limited":
            raise SlowDown("too many", retry_after=timedelta(seconds=2))
        case "/silent":
            return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"{}"})


def behind_the_edge(origins: Origins) -> httpx2.AsyncClient:
    """A client of a small application behind an edge with these origins."""
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(Edge(_application, origins=origins)), base_url=ISSUER)


@asynccontextmanager
async def serving(database_url: str, **settings: Any) -> AsyncIterator[tuple[Keyturn, httpx2.AsyncClient]]:
    """Runs an instance with allowed origins in this process: its parts, and a client of it."""
    settings = {"issuer": ISSUER, "allowed_origins": ", ".join(ALLOWED), **settings}
    app = create_app(settings_of(database_url, None, **settings))
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=ISSUER) as client,
    ):
        yield app.state.keyturn, client


@pytest.fixture
async def client(database_url: str) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of an instance with allowed origins."""
    async with serving(database_url) as (_, client):
        yield client


def readable_by(origin: str) -> dict[str, str]:
    """The fields by which a browser shows an answer to a page of this origin."""
    return {
        "access-control-allow-origin": origin,
        "access-control-allow-credentials": "true",
        "access-control-expose-headers": "X-Request-Id, Retry-After, RateLimit, RateLimit-Policy, WWW-Authenticate",
    }


EVERY_KIND: list[tuple[str, str, dict[str, Any], int]] = [
    ("GET", "/healthz", {}, 200),
    ("GET", "/.well-known/jwks.json", {}, 200),
    ("GET", "/openapi.json", {}, 200),
    ("GET", "/auth/me", {}, 401),
    ("GET", "/auth/verify", {}, 401),
    ("OPTIONS", "/auth/verify", {}, 401),
    ("POST", "/auth/refresh", {"json": {"refresh_token": "junk"}}, 401),
    ("POST", "/auth/login", {"json": {}}, 400),
    ("POST", "/auth/login", {"content": b"{", "headers": {"Content-Type": "application/json"}}, 400),
    ("POST", "/auth/register", {"json": {"email": "a@b.example", "password": "long enough to be one"}}, 403),
    ("GET", "/nowhere", {}, 404),
    ("GET", "/auth/login", {}, 405),
    ("OPTIONS", "/auth/login", {}, 405),
    ("POST", "/auth/login", {"content": b"x" * 70_000}, 413),
    ("GET", "/" + "x" * 9000, {}, 414),
    ("POST", "/auth/login", {"content": b"x=1", "headers": {"Content-Type": "text/plain"}}, 415),
    ("GET", "/healthz", {"headers": {"X-Long": "x" * 70_000}}, 431),
    ("GET", "/healthz", {"headers": {"Host": "a b"}}, 400),
]


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_every_answer_can_be_read_by_pages_of_an_allowed_origin_and_by_no_others(
    client: httpx2.AsyncClient,
) -> None:
    for method, path, more, status in EVERY_KIND:
        headers = more.get("headers", {})
        for origin in ALLOWED:
            answer = await client.request(method, path, **{**more, "headers": headers | {"Origin": origin}})
            assert (answer.status_code, named(answer)) == (status, readable_by(origin)), (method, path)
            assert answer.headers["vary"] == "Origin"
        for stranger in (None, "null", EVIL, ISSUER, f"{APP}/", f"{APP}, {OTHER}", "*"):
            fields = headers | ({"Origin": stranger} if stranger is not None else {})
            answer = await client.request(method, path, **{**more, "headers": fields})
            assert (answer.status_code, named(answer)) == (status, {}), (method, path, stranger)
            assert answer.headers["vary"] == "Origin"


@pytest.mark.parametrize(
    ("path", "status"), [("/exception", 500), ("/silent", 500), ("/outage", 503), ("/limited", 429)]
)
async def test_a_page_of_an_allowed_origin_can_tell_an_outage_from_a_defect(path: str, status: int) -> None:
    async with behind_the_edge(Origins(ISSUER, ALLOWED)) as client:
        answer = await client.get(path, headers={"Origin": APP})
        assert (answer.status_code, named(answer)) == (status, readable_by(APP))
        assert {"x-request-id"} <= answer.headers.keys()
        assert ("retry-after" in answer.headers) == (status != 500)


async def test_an_answer_that_goes_out_in_parts_has_the_fields_too() -> None:
    async with behind_the_edge(Origins(ISSUER, ALLOWED)) as client:
        assert named(await client.get("/", headers={"Origin": OTHER})) == readable_by(OTHER)


async def test_two_allowed_origins_one_after_the_other_each_get_their_own_answer() -> None:
    async with behind_the_edge(Origins(ISSUER, ALLOWED)) as client:
        for origin in (APP, OTHER, APP, LOCAL, OTHER, EVIL, APP):
            answer = await client.get("/", headers={"Origin": origin})
            assert named(answer) == (readable_by(origin) if origin in ALLOWED else {})
            assert answer.headers["vary"] == "Origin"  # so that no cache gives one of them the other's answer


@pytest.mark.parametrize("origin", ALMOST)
async def test_no_answer_names_an_origin_that_only_resembles_an_allowed_one(origin: str | bytes) -> None:
    origins = Origins(ISSUER, ALLOWED)
    request = Request()
    request.read_head({"method": "GET", "path": "/", "query_string": b"", "headers": raw(("Origin", origin))})
    assert not [name for name, _ in origins.fields(request) if name.startswith(b"access-control-")]


async def test_without_allowed_origins_no_answer_names_one() -> None:
    async with behind_the_edge(Origins(ISSUER)) as client:
        for origin in (ISSUER, APP, EVIL, "null", "*"):
            for method in ("GET", "POST", "OPTIONS"):
                answer = await client.request(method, "/", headers={"Origin": origin})
                assert (answer.status_code, named(answer)) == (200, {})
                assert "vary" not in answer.headers


async def test_every_answer_stays_with_its_own_origin_and_tells_no_address() -> None:
    async with behind_the_edge(Origins(ISSUER)) as client:
        for path in ("/", "/exception", "/outage"):
            headers = (await client.get(path)).headers
            assert headers["cross-origin-resource-policy"] == "same-origin"
            assert headers["referrer-policy"] == "no-referrer"
            assert headers["x-content-type-options"] == "nosniff"
            assert "strict-transport-security" not in headers


@pytest.mark.parametrize(
    ("issuer", "hsts", "sent"),
    [
        ("https://auth.example.com", 31_536_000, "max-age=31536000"),
        ("https://auth.example.com", 1, "max-age=1"),
        ("https://auth.example.com", 0, None),
        ("http://127.0.0.1:8000", 31_536_000, None),
    ],
)
async def test_browsers_are_told_to_stay_with_https_where_the_operator_says_so(
    issuer: str, hsts: int, sent: str | None
) -> None:
    async with behind_the_edge(Origins(issuer, [], timedelta(seconds=hsts))) as client:
        for path in ("/", "/exception"):
            assert (await client.get(path)).headers.get("strict-transport-security") == sent


# -- preflights


ASK = "Access-Control-Request-Method"
ASK_FIELDS = "Access-Control-Request-Headers"
PERMISSION = {
    "access-control-allow-methods": "GET, HEAD, POST, PATCH, DELETE",
    "access-control-allow-headers": "authorization, content-type, idempotency-key, x-request-id",
    "access-control-allow-credentials": "true",
    "access-control-max-age": "600",
}
VARY = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    "asked",
    [
        [],
        [""],
        ["content-type"],
        ["authorization,content-type"],
        ["Authorization, Content-Type, Idempotency-Key, X-Request-Id"],
        ["AUTHORIZATION"],
        [" ,authorization ,\t,content-type, "],
        ["content-type,content-type"],
        ["authorization", "content-type"],
    ],
)
async def test_a_preflight_of_an_allowed_origin_is_permitted(
    client: httpx2.AsyncClient, method: str, asked: list[str]
) -> None:
    for path in ("/auth/login", "/auth/refresh", "/auth/me", "/healthz", "/nowhere", "/"):
        for origin in ALLOWED:
            fields = [("Origin", origin), (ASK, method), *((ASK_FIELDS, each) for each in asked)]
            answer = await client.options(path, headers=fields)
            assert (answer.status_code, answer.content) == (204, b"")
            assert named(answer) == PERMISSION | {"access-control-allow-origin": origin}
            assert answer.headers["vary"] == VARY
            assert "content-length" not in answer.headers  # RFC 9110 section 8.6


REFUSED_PREFLIGHTS: list[Fields] = [
    *([("Origin", APP), (ASK, method)] for method in (
        "PUT", "OPTIONS", "TRACE", "CONNECT", "post", "Post", "patch", "*", "", "POST, PUT", "GET,POST", "POST ", "FOO",
    )),
    [("Origin", APP), (ASK, "POST"), (ASK, "POST")],
    [("Origin", APP), (ASK, "PUT"), (ASK, "POST")],
    *([("Origin", APP), (ASK, "POST"), (ASK_FIELDS, asked)] for asked in (
        "*", "x-custom", "cookie", "authorization, x-custom", "origin", "authorization content-type", "authorization;",
        '"authorization"', "x-auth-subject", "content-type\x0b", "content_type", "x-request-id:", "dpop",
    )),
    [("Origin", APP), (ASK, "POST"), (ASK_FIELDS, "authorization"), (ASK_FIELDS, "x-custom")],
    [("Origin", APP), (ASK, "POST"), (ASK_FIELDS, "x-custom"), (ASK_FIELDS, "authorization")],
    *([("Origin", origin), (ASK, "POST")] for origin in (
        "", "null", "*", EVIL, ISSUER, f"{APP}/", f"{APP}:443", APP.upper(), f"{APP}.evil.example", f"{APP}, {OTHER}",
        "http://app.example.net", "https://example.net", "https://user@app.example.net",
    )),
    [("Origin", APP), ("Origin", APP), (ASK, "POST")],
    [("Origin", EVIL), ("Origin", APP), (ASK, "POST")],
    [("Origin", APP), ("Origin", EVIL), (ASK, "POST")],
]  # fmt: skip


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_a_preflight_for_anything_else_is_refused_without_a_word_about_cors(
    client: httpx2.AsyncClient,
) -> None:
    for fields in REFUSED_PREFLIGHTS:
        for path in ("/auth/login", "/nowhere"):
            answer = await client.options(path, headers=fields)
            assert (answer.status_code, answer.json()["error"]) == (403, "cross_site"), fields
            assert named(answer) == {}, fields
            assert answer.headers["vary"] == VARY
            assert "www-authenticate" not in answer.headers


async def test_without_allowed_origins_every_preflight_is_refused() -> None:
    async with behind_the_edge(Origins(ISSUER)) as client:
        for origin in (ISSUER, APP, EVIL, "null"):
            answer = await client.options("/", headers=[("Origin", origin), (ASK, "GET")])
            assert (answer.status_code, answer.json()["error"], named(answer)) == (403, "cross_site", {})


async def test_options_that_is_no_preflight_is_the_application_s() -> None:
    async with behind_the_edge(Origins(ISSUER, ALLOWED)) as client:
        for fields in ([], [("Origin", APP)], [(ASK, "POST")], [("Origin", EVIL)], [(ASK_FIELDS, "x")]):
            assert (await client.options("/", headers=fields)).status_code == 200
        for method in ("GET", "POST", "HEAD", "DELETE"):
            assert (await client.request(method, "/", headers=[("Origin", EVIL), (ASK, "PUT")])).status_code == 200


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "path",
    [
        "/auth/verify",
        "/auth/verify/orders",
        "/auth/verify;role=admin",
        "/auth/verify;role=admin/orders",
        "/auth/verify;rolle=admin",
        "/auth/verify;rolle=admin/orders",
        "/auth/verify?role=admin",
        "/auth/verifyorders",
        "/auth/%76erify",
    ],
)
async def test_no_preflight_lets_a_proxy_s_client_pass(client: httpx2.AsyncClient, path: str) -> None:
    for origin in (APP, EVIL):
        answer = await client.options(path, headers=[("Origin", origin), (ASK, "POST")])
        assert answer.status_code in {401, 404}, path
        assert "access-control-allow-methods" not in answer.headers


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_under_a_root_path_preflights_are_answered_and_those_at_verify_are_not(database_url: str) -> None:
    async with serving(database_url, issuer=f"{ISSUER}/keyturn", root_path="/keyturn") as (_, client):
        for prefix in ("", "/keyturn"):
            fields = [("Origin", APP), (ASK, "POST")]
            assert (await client.options(f"{prefix}/auth/login", headers=fields)).status_code == 204
            assert (await client.options(f"{prefix}/auth/verify", headers=fields)).status_code == 401
            assert (await client.options(f"{prefix}/auth/verify/x", headers=fields)).status_code == 401


async def test_a_permission_never_stands_beside_an_asterisk() -> None:
    origins = Origins(ISSUER, ALLOWED)
    async with behind_the_edge(origins) as client:
        for origin in (*ALLOWED, "*", "null"):
            for answer in (
                await client.get("/", headers={"Origin": origin}),
                await client.options("/", headers=[("Origin", origin), (ASK, "GET"), (ASK_FIELDS, "authorization")]),
            ):
                assert "*" not in "".join(named(answer).values())


async def test_the_endpoint_behind_a_preflight_is_not_asked() -> None:
    asked: list[str] = []

    async def answer(request: Request) -> Answer:
        asked.append(request.method)
        return of_json(b"{}")

    edge = Edge(_application, fast=answer, origins=Origins(ISSUER, ALLOWED))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(edge), base_url=ISSUER) as client:
        await client.options("/auth/logout", headers=[("Origin", APP), (ASK, "POST")])
        await client.options("/auth/logout", headers=[("Origin", EVIL), (ASK, "POST")])
        assert asked == []
        await client.options("/auth/logout", headers=[("Origin", APP)])
        assert asked == ["OPTIONS"]


async def test_a_preflight_counts_under_no_endpoint() -> None:
    edge, tally = Edge(_application, origins=Origins(ISSUER, ALLOWED)), Tally()
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(edge), base_url=ISSUER) as client:
        await client.options("/auth/refresh", headers=[("Origin", APP), (ASK, "POST")])
        await client.options("/auth/refresh", headers=[("Origin", EVIL), (ASK, "POST")])
        await client.options("/auth/verify", headers=[("Origin", APP), (ASK, "POST")])
    tally.exactly(metrics.DURATION, {("other", "2xx"): 1, ("other", "4xx"): 1, ("verify", "2xx"): 1})
    tally.exactly(metrics.REFUSALS, {("other", "denied"): 1})


# -- requests of another site's page, which the browser sends with the user's cookies


CREDENTIALS = {"email": "ada@example.com", "password": PASSWORD}
STRANGERS: list[Fields] = [
    [],
    [("Origin", EVIL)],
    [("Origin", EVIL), ("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "cors"), ("Sec-Fetch-Dest", "empty")],
    [("Origin", EVIL), ("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-User", "?1")],
    [("Origin", "https://evil.auth.example.com"), ("Sec-Fetch-Site", "same-site")],
    [("Origin", "https://example.com"), ("Sec-Fetch-Site", "same-site")],
    [("Origin", f"{ISSUER}.evil.example"), ("Sec-Fetch-Site", "cross-site")],
    [("Origin", "http://auth.example.com"), ("Sec-Fetch-Site", "cross-site")],
    [("Origin", f"{ISSUER}:8443"), ("Sec-Fetch-Site", "same-site")],
    [("Origin", "null")],
    [("Origin", "null"), ("Sec-Fetch-Site", "cross-site")],
    [("Origin", "")],
    [("Origin", f"{ISSUER}, {EVIL}")],
    [("Origin", ISSUER), ("Origin", EVIL)],
    [("Sec-Fetch-Site", "cross-site")],
    [("Sec-Fetch-Site", "same-site")],
    [("Sec-Fetch-Site", "none")],
    [("Sec-Fetch-Site", "same-origin, cross-site")],
    [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Site", "same-origin")],
    [("Referer", f"{ISSUER}/"), ("Host", "auth.example.com")],
    [("X-Requested-With", "XMLHttpRequest"), ("X-CSRF-Token", "x")],
]
TRUSTED: list[Fields] = [
    [("Origin", ISSUER)],
    [("Origin", ISSUER), ("Sec-Fetch-Site", "same-origin")],
    [("Origin", APP), ("Sec-Fetch-Site", "cross-site")],
    [("Origin", OTHER), ("Sec-Fetch-Site", "same-site")],
    [("Sec-Fetch-Site", "same-origin")],
    [("Origin", "null"), ("Sec-Fetch-Site", "same-origin")],
]
DOORS: list[Fields] = [[], [("Prefer", "x")]]
"""Nothing more for the fast door, and a field with which a request takes FastAPI's."""


class Browser:
    """A browser with one user's cookies, which sends whatever a page makes it send."""

    def __init__(self, client: httpx2.AsyncClient, keyturn: Keyturn) -> None:
        self._client = client
        self.keyturn = keyturn
        self.cookies: Fields = []

    async def post(self, path: str, fields: Fields, **more: Any) -> httpx2.Response:
        self._client.cookies.clear()
        return await self._client.post(path, headers=[*fields, *self.cookies], **more)

    async def sign_in(self, mode: str, fields: Fields) -> httpx2.Response:
        self.cookies = []
        answer = await self.post("/auth/login", fields, json={**CREDENTIALS, "mode": mode})
        pairs = [each.partition(";")[0] for each in answer.headers.get_list("set-cookie")]
        self.cookies = [("Cookie", "; ".join(pairs))] if pairs else []
        return answer

    async def state(self) -> list[Any]:
        """All that a request could have changed."""
        async with self.keyturn.db.begin() as tx:
            tables = ("sessions", "users", "events")
            return [(await tx.execute(text(f"SELECT * FROM {table} ORDER BY id"))).all() for table in tables]


@pytest.fixture
async def browser(database_url: str) -> AsyncIterator[Browser]:
    async with serving(database_url) as (keyturn, client):
        await keyturn.users.create("ada@example.com", PASSWORD, by=SERVICE)
        yield Browser(client, keyturn)


def cross_site(answer: httpx2.Response) -> None:
    """Asserts that the request was refused by the rule, and that the browser's cookies stay and no page reads more."""
    assert (answer.status_code, answer.json()["error"]) == (403, "cross_site"), answer.text
    assert "set-cookie" not in answer.headers
    assert not [name for name in answer.headers if "set-cookie" in name]


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_another_site_s_page_signs_nobody_in_and_tries_no_password(browser: Browser) -> None:
    before = await browser.state()
    for door in DOORS:
        for fields in STRANGERS:
            for mode in ("cookie", "split"):
                for password in (PASSWORD, "wrong", ""):
                    body = {"email": "ada@example.com", "password": password, "mode": mode}
                    answer = await browser.post("/auth/login", [*fields, *door], json=body)
                    if password:
                        cross_site(answer)
                    assert named(answer) == {}
                    assert "set-cookie" not in answer.headers
    assert await browser.state() == before
    for fields in STRANGERS:  # tokens in the body are for whoever has the password, and no cookie is set
        assert (await browser.sign_in("bearer", fields)).status_code == 200
        assert browser.cookies == []


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
@pytest.mark.parametrize("mode", ["cookie", "split"])
async def test_another_site_s_page_refreshes_ends_and_changes_nothing(browser: Browser, mode: str) -> None:
    assert (await browser.sign_in(mode, TRUSTED[0])).status_code == 200
    before = await browser.state()
    requests: list[tuple[str, dict[str, Any]]] = [
        ("/auth/refresh", {}),
        ("/auth/refresh", {"json": {}}),
        ("/auth/refresh", {"json": {"mode": mode}}),
        ("/auth/logout", {}),
        ("/auth/logout", {"json": {"scope": "all"}}),
        ("/auth/logout", {"json": {"scope": "others", "mode": mode}}),
    ]
    if mode == "cookie":
        requests += [
            ("/auth/password", {"json": {"current_password": PASSWORD, "new_password": NEW_PASSWORD}}),
            ("/auth/password", {"json": {"current_password": "wrong", "new_password": NEW_PASSWORD}}),
            ("/auth/password", {}),
        ]
    for path, more in requests:
        for fields in STRANGERS:
            for door in DOORS:
                answer = await browser.post(path, [*fields, *door], **more)
                cross_site(answer)
                assert named(answer) == {}
    assert await browser.state() == before


FORMS = (
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "text/plain",
    "text/plain;charset=UTF-8",
)


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_a_form_of_another_site_s_page_changes_nothing(browser: Browser) -> None:
    await browser.sign_in("cookie", TRUSTED[0])
    before = await browser.state()
    change = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    bodies = [
        b"",
        b"refresh_token=&scope=all",
        b'{"scope": "all"}=\r\n',
        json.dumps(change).encode(),
        json.dumps({**CREDENTIALS, "mode": "cookie"}).encode(),
        b'--x\r\nContent-Disposition: form-data; name="mode"\r\n\r\ncookie\r\n--x--\r\n',
    ]
    for path in ("/auth/login", "/auth/refresh", "/auth/logout", "/auth/password", "/auth/register"):
        for content_type in FORMS:
            for body in bodies:
                for fields in STRANGERS[1:5]:
                    sent = [*fields, ("Content-Type", content_type)]
                    answer = await browser.post(path, sent, content=body)
                    assert answer.status_code in {400, 403, 415}, (path, content_type, body)
                    assert (answer.status_code == 415) == bool(body)  # a page needs a preflight to send JSON
                    assert "set-cookie" not in answer.headers
                    assert named(answer) == {}
    assert await browser.state() == before


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
@pytest.mark.parametrize("door", DOORS, ids=["fast", "FastAPI's"])
@pytest.mark.parametrize("fields", TRUSTED)
async def test_a_page_of_a_trusted_origin_does_all_of_it(browser: Browser, fields: Fields, door: Fields) -> None:
    fields = [*fields, *door]
    for mode in ("split", "cookie"):
        assert (await browser.sign_in(mode, fields)).status_code == 200
        assert browser.cookies
        answer = await browser.post("/auth/refresh", fields)
        assert (answer.status_code, len(answer.headers.get_list("set-cookie"))) == (200, 2 if mode == "cookie" else 1)
        if mode == "cookie":
            change = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
            assert (await browser.post("/auth/password", fields, json=change)).status_code == 204
        answer = await browser.post("/auth/logout", fields)
        assert answer.status_code == 204
        assert answer.headers.get_list("set-cookie")


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_a_token_that_no_page_of_another_site_has_is_taken_from_everywhere(browser: Browser) -> None:
    for fields in STRANGERS:
        tokens = (await browser.sign_in("bearer", fields)).json()
        answer = await browser.post("/auth/refresh", fields, json={"refresh_token": tokens["refresh_token"]})
        assert (answer.status_code, named(answer)) == (200, {})
        bearer = ("Authorization", f"Bearer {answer.json()['access_token']}")
        assert (await browser.post("/auth/logout", [*fields, bearer])).status_code == 204


# -- over the wire


@pytest.fixture(scope="module")
def service(logs: Path) -> Iterator[Service]:
    more = {"secret": SECRET, "issuer": ISSUER, "allowed_origins": ",".join(ALLOWED), "hsts": "600", **CHEAP}
    with Service.start({f"KEYTURN_{name.upper()}": value for name, value in more.items()}, logs=logs) as service:
        yield service


def exchange(service: Service, wire: bytes) -> tuple[list[int], bytes]:
    """Sends bytes whose last request closes the connection. Returns the statuses and all bytes that came back."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
        connection.sendall(wire)
        back = b""
        while received := connection.recv(65536):
            back += received
    return [int(status) for status in re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", back)], back


def head(method: bytes, path: bytes, *lines: bytes, close: bool = True) -> bytes:
    ending = [b"Connection: close"] if close else []
    return b"\r\n".join([b"%s %s HTTP/1.1" % (method, path), b"Host: a", *lines, *ending, b"", b""])


A, E = APP.encode(), EVIL.encode()
METHOD = b"Access-Control-Request-Method: POST"


@pytest.mark.parametrize(
    "lines",
    [
        [b"Origin: " + E],
        [b"Origin: null"],
        [b"Origin:"],
        [b"Origin: " + A, b"Origin: " + A],
        [b"Origin: " + A, b"Origin: " + E],
        [b"Origin: " + E, b"Origin: " + A],
        [b"Origin: " + E, b"oRiGiN: " + A],
        [b"Origin: " + A + b", " + A],
        [b"Origin: " + A + b"\xa0"],
        [b"Origin: \xef\xbb\xbf" + A],
        [b"Origin: " + A + b"/"],
        [b"X-Origin: " + A],
    ],
)
def test_no_bytes_of_a_stranger_bring_a_field_of_cors(service: Service, lines: list[bytes]) -> None:
    for method in (b"GET", b"OPTIONS"):
        statuses, back = exchange(service, head(method, b"/healthz", *lines))
        assert statuses in ([200], [405]), back
        assert b"access-control" not in back.lower()
        assert back.lower().count(b"\r\nvary: ") == 1
    if lines[0].startswith(b"Origin"):
        statuses, back = exchange(service, head(b"OPTIONS", b"/auth/login", *lines, METHOD))
        assert statuses == [403], back
        assert b"\r\naccess-control-" not in back.lower()  # within Vary, these names stand after a blank
        assert b"cross_site" in back


@pytest.mark.parametrize(
    "line", [b"Origin : " + A, b"Origin: " + A + b"\r\n x", b"Origin: " + A + b"\x00", b"Origin\t: " + A]
)
def test_a_field_that_two_parsers_read_differently_is_refused_before_it_counts(service: Service, line: bytes) -> None:
    statuses, back = exchange(service, head(b"GET", b"/healthz", line))
    assert statuses == [400]
    assert b"access-control" not in back.lower()


@pytest.mark.parametrize("line", [b"Origin:" + A, b"ORIGIN:   " + A, b"origin:\t" + A])
def test_a_field_s_name_has_any_case_and_blanks_before_its_value(service: Service, line: bytes) -> None:
    _, back = exchange(service, head(b"GET", b"/healthz", line))
    assert back.count(b"access-control-allow-origin: " + A + b"\r\n") == 1
    assert back.count(b"access-control-") == 3
    assert b"strict-transport-security: max-age=600\r\n" in back


def test_a_preflight_on_the_wire_is_answered_whole_and_the_connection_goes_on(service: Service) -> None:
    preflight = head(b"OPTIONS", b"/auth/login", b"Origin: " + A, METHOD, close=False)
    with_body = head(b"OPTIONS", b"/auth/login", b"Origin: " + A, METHOD, b"Content-Length: 3", close=False) + b"abc"
    chunked = head(b"OPTIONS", b"/a", b"Origin: " + A, METHOD, b"Transfer-Encoding: chunked", close=False)
    refused = head(b"OPTIONS", b"/auth/login", b"Origin: " + E, METHOD, close=False)
    last = head(b"GET", b"/healthz", b"Origin: " + A)
    wire = preflight + with_body + chunked + b"1\r\nx\r\n0\r\n\r\n" + refused + preflight + last
    statuses, back = exchange(service, wire)
    assert statuses == [204, 204, 204, 403, 204, 200]
    assert back.count(b"access-control-allow-origin: " + A + b"\r\n") == 5
    assert b"evil" not in back


def test_a_refused_preflight_is_in_the_log_by_its_word_and_without_the_origin(service: Service) -> None:
    exchange(service, head(b"OPTIONS", b"/auth/password", b"Origin: https://nobody.example", METHOD))
    exchange(service, head(b"OPTIONS", b"/auth/password", b"Origin: " + A, METHOD))
    log = service.text_with('"/auth/password"', 2)
    lines = [json.loads(line) for line in log.splitlines() if '"/auth/password"' in line]
    assert [(line["status"], line.get("error")) for line in lines] == [(403, "cross_site"), (204, None)]
    assert "nobody.example" not in log
