"""Browsers behind each proxy of deploy/proxies/: refresh on the way, final refusals, outages, forged fields.

Keyturn and the proxies are real. Each recipe is used as published: see tests/proxies.py.
"""

from __future__ import annotations

import base64
import http.server
import re
import secrets
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from uuid import UUID

import jwt
import pytest

from app.actors import SERVICE
from app.storage.migrating import migrate
from app.tokens.access_tokens import MEDIA_TYPE
from tests.conftest import PASSWORD, a_user, settings_of, sync
from tests.cookies import is_device
from tests.proxies import (
    APPLICATIONS_CACHING,
    APPLICATIONS_COOKIES,
    RECIPES,
    Answer,
    Application,
    Proxy,
    program,
    recipe_of,
    running,
    served,
)
from tests.service import Service
from tests.test_races import at, serve

ACCESS, REFRESH = "__Host-Http-keyturn-access", "__Host-Http-keyturn-refresh"
OWN_PAGE = (("Origin", "https://auth.example.com"), ("Sec-Fetch-Site", "same-origin"))
OTHER_SITE = (("Origin", "https://elsewhere.example"), ("Sec-Fetch-Site", "cross-site"))
PAGE = ("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")


@dataclass
class Stage:
    """A Keyturn, its database, and an application."""

    database_url: str
    keyturn: Service
    app: int
    folder: Path


@dataclass(frozen=True)
class Session:
    """A session and its cookies, each as `name=value`."""

    id: UUID
    identity: dict[str, str]
    access: str
    expired: str
    refresh: str


def pair(field: bytes) -> str:
    return field.decode().partition(";")[0]


async def a_session(stage: Stage) -> Session:
    """A new session of a new user, as after a sign-in in mode "cookie"."""
    hour = timedelta(hours=1)
    async with at(stage.database_url) as parts:
        proof = await a_user(parts, f"{secrets.token_hex(8)}@example.com")
        tokens = await parts.starting.start(proof, by=SERVICE)
        claims = (await parts.reading.verify(tokens.access_token)).claims
        key = parts.keys.signing_access
        past = {"iat": claims["iat"] - 7200, "exp": claims["iat"] - 3600}
        expired = jwt.encode(claims | past, key.signing, key.algorithm, {"typ": MEDIA_TYPE, "kid": key.kid})
        access, over, refresh = (
            pair(parts.cookies.set(name, tokens.session_id, token, hour, remembered=True))
            for name, token in ((ACCESS, tokens.access_token), (ACCESS, expired), (REFRESH, tokens.refresh_token))
        )
        identity = {"x-auth-subject": claims["sub"], "x-auth-role": "user", "x-auth-session": claims["sid"]}
        return Session(tokens.session_id, identity, access, over, refresh)


async def end(stage: Stage, session: Session) -> None:
    async with at(stage.database_url) as parts:
        await parts.ending.logout((), [await token_in(stage, session.refresh)], "this", by=SERVICE)


async def token_in(stage: Stage, cookie: str) -> str:
    """The token that a cookie holds."""
    async with at(stage.database_url) as parts:
        opened = parts.cookies.open(*cookie.split("=", 1))
        assert opened is not None
        return opened.token


async def row_of(stage: Stage, session: Session) -> Any:
    async with at(stage.database_url) as parts:
        return await parts.reading.find(session.id)


def with_cookies(*cookies: str) -> tuple[str, str]:
    return "Cookie", "; ".join(("theme=dark", *cookies, "lang=de"))


def set_by(answer: Answer) -> dict[str, str]:
    """Keyturn's cookies with tokens that an answer sets: their names, and their values with all attributes."""
    fields = [field.split("=", 1) for field in answer.all("set-cookie")]
    found = [(name, rest) for name, rest in fields if "keyturn" in name and not is_device(name)]
    assert len(found) == len(dict(found)), found
    assert not any("keyturn" in rest for _, rest in found), found  # two in one field, joined with a comma
    return dict(found)


def refreshed(answer: Answer) -> list[str]:
    """The two cookies of a refresh on the way, each as `name=value`. No cache may keep their answer."""
    cookies = set_by(answer)
    assert list(cookies) == [ACCESS, REFRESH], (answer.status, answer.pairs)
    for each in cookies.values():
        value, *attributes = each.split("; ")
        assert len(value) > 100
        assert {"Path=/", "Secure", "HttpOnly", "SameSite=Strict"} < set(attributes), attributes
        assert any(re.fullmatch(r"Max-Age=\d{2,}", attribute) for attribute in attributes), attributes
    assert "no-store" in answer.fields["cache-control"]
    return [f"{name}={each.partition(';')[0]}" for name, each in cookies.items()]


def cleared(answer: Answer) -> bool:
    """Whether an answer deletes both cookies, under the path and the prefix that they were set with."""
    cookies = set_by(answer)
    assert all("; Max-Age=0;" in f"{each};" and "Path=/" in each and "Secure" in each for each in cookies.values())
    assert not cookies or "no-store" in answer.fields["cache-control"]
    return list(cookies) == [ACCESS, REFRESH]


def unavailable(answer: Answer) -> None:
    """Asserts that there is no verdict: the client may try again, and keeps all that it has."""
    assert answer.status == HTTPStatus.SERVICE_UNAVAILABLE, answer
    assert 1 <= int(answer.fields["retry-after"]) <= 5
    assert set_by(answer) == {}
    assert answer.fields.keys().isdisjoint({"www-authenticate", "location"})


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("proxy-cookies")
    url = f"sqlite+aiosqlite:///{folder / 'keyturn.db'}"
    migrate(settings_of(url, None))
    with ExitStack() as stack:
        stage = Stage(url, serve(url, folder), stack.enter_context(served(Application)), folder)
        stack.callback(lambda: stage.keyturn.close())  # noqa: PLW0108  # the one that runs then

        async def prepare() -> None:
            async with at(url) as parts:
                await a_user(parts)

        sync(prepare())
        yield stage


@pytest.fixture(scope="module")
def proxies(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Proxy]]:
    """All proxies whose programs are on this machine, in front of the one Keyturn."""
    folder = tmp_path_factory.mktemp("proxies")
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(
                running(name, recipe_of(name), folder / name, keyturn=stage.keyturn.port, app=stage.app)
            )
            for name in RECIPES
            if program(name)
        }


@pytest.fixture(params=RECIPES)
def proxy(request: pytest.FixtureRequest, proxies: dict[str, Proxy]) -> Proxy:
    if request.param not in proxies:
        pytest.skip(f"no {request.param} on PATH ({RECIPES[request.param][2]})")
    return proxies[request.param]


# -- refresh on the way


async def test_a_refresh_on_the_way_sets_both_cookies_beside_the_applications_own(proxy: Proxy, stage: Stage) -> None:
    session = await a_session(stage)
    for presented in ([session.refresh], [session.expired, session.refresh], [session.refresh, "x=y"]):
        answer = proxy.ask(fields=[with_cookies(*presented)])
        assert answer.identity == session.identity
        refreshed(answer)
    for status in (200, 204, 302, 304, 404, 500, 503):
        answer = proxy.ask("GET", f"/status/{status}", [with_cookies(session.refresh)])
        assert answer.status == status
        access, refresh = refreshed(answer)
        assert set(APPLICATIONS_COOKIES) < set(answer.all("set-cookie"))
    for method, body in (("HEAD", b""), ("POST", b"x" * 70_000), ("PUT", [b"abc"] * 3), ("DELETE", b"")):
        answer = proxy.ask(method, fields=[with_cookies(session.refresh)], body=body)
        assert answer.status == HTTPStatus.OK
        refreshed(answer)
        assert not body or answer.asked["length"] == sum(map(len, body) if isinstance(body, list) else [len(body)])

    # The browser now has a fresh access cookie. Nothing more is set, and the application decides about caches.
    for presented in ([access, refresh], [access]):
        answer = proxy.ask("GET", "/status/200", [with_cookies(*presented)])
        assert answer.identity == session.identity
        assert set_by(answer) == {}
        assert answer.fields["cache-control"] == APPLICATIONS_CACHING
        assert tuple(answer.all("set-cookie")) == APPLICATIONS_COOKIES
    assert (await row_of(stage, session)).generation == 1


async def test_a_refresh_on_the_way_reaches_the_browser_also_while_the_application_is_away(
    proxy: Proxy, stage: Stage
) -> None:
    session = await a_session(stage)
    answer = proxy.ask("GET", "/breaks", [with_cookies(session.refresh)])
    assert answer.status in {HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE}
    access, refresh = refreshed(answer)
    assert proxy.ask(fields=[with_cookies(access, refresh)]).identity == session.identity


async def test_fifty_parallel_requests_with_an_expired_access_cookie_are_fifty_answers_and_one_rotation(
    proxy: Proxy, stage: Stage
) -> None:
    session = await a_session(stage)
    with ThreadPoolExecutor(50) as threads:
        answers = list(
            threads.map(lambda _: proxy.ask(fields=[with_cookies(session.expired, session.refresh)]), range(50))
        )
    assert all(answer.identity == session.identity for answer in answers)
    pairs = [refreshed(answer) for answer in answers]
    assert len({each for pair in pairs for each in pair}) == 100  # equal tokens give different values
    async with at(stage.database_url) as parts:
        for of_one_name in zip(*pairs, strict=True):
            opened = [parts.cookies.open(*cookie.split("=", 1)) for cookie in of_one_name]
            assert len({each.token for each in opened if each is not None}) == 1
            assert None not in opened
    row = await row_of(stage, session)
    assert (row.generation, row.ended_at) == (1, None)


async def test_a_bearer_token_goes_before_the_cookies_and_nothing_is_set(proxy: Proxy, stage: Stage) -> None:
    one, other = await a_session(stage), await a_session(stage)
    token = await token_in(stage, one.access)
    answer = proxy.ask(fields=[with_cookies(other.refresh)], token=token)
    assert (answer.identity, set_by(answer)) == (one.identity, {})
    answer = proxy.ask(fields=[PAGE, with_cookies(other.access, other.refresh)], token="junk")
    assert (answer.status, set_by(answer)) == (HTTPStatus.FOUND, {})
    assert proxy.ask(fields=[with_cookies(other.access, other.refresh)]).identity == other.identity


# -- final refusals


async def test_a_final_refusal_clears_the_cookies_and_never_reaches_the_application(proxy: Proxy, stage: Stage) -> None:
    session, other = await a_session(stage), await a_session(stage)
    await end(stage, session)
    junk = [f"{ACCESS}=junk", f"{REFRESH}=junk"]
    for presented in (
        [session.refresh],
        [session.access, session.refresh],
        [session.expired, session.refresh],
        [other.access, session.refresh],
        junk,
        [other.access.replace(ACCESS, REFRESH)],
    ):
        for method in ("GET", "POST", "DELETE"):
            answer = proxy.ask(method, fields=[with_cookies(*presented)], body=b"x" if method == "POST" else b"")
            assert answer.status == HTTPStatus.UNAUTHORIZED
            assert answer.all("www-authenticate") in (["Bearer"], ['Bearer error="invalid_token"'])
            assert cleared(answer), presented
        page = proxy.ask(fields=[PAGE, with_cookies(*presented)])
        assert page.status == HTTPStatus.FOUND
        assert cleared(page), presented
    nothing = proxy.ask(fields=[with_cookies()])
    assert (nothing.status, set_by(nothing)) == (HTTPStatus.UNAUTHORIZED, {})
    assert proxy.ask(fields=[with_cookies(other.access, other.refresh)]).identity == other.identity


TARGETS = (
    "/",
    "/orders",
    "/orders?year=2026&status=open&note=a%26b%3Dc+d",
    "/caf%C3%A9?q=%E2%82%AC",
    "/orders?x=%0d%0aSet-Cookie:%20a=b",
    "/orders?return_to=//elsewhere.example",
    "/elsewhere.example/%2e%2e/?a='b'",
)


def test_a_browser_without_a_session_is_led_to_the_login_page_and_back(proxy: Proxy) -> None:
    for target in TARGETS:
        answer = proxy.ask("GET", target, [PAGE])
        assert answer.status == HTTPStatus.FOUND
        assert "no-store" in answer.fields["cache-control"] or "no-cache" in answer.fields["cache-control"]
        page, _, back = answer.fields["location"].partition("?return_to=")
        assert page == "/login"
        if proxy.name == "nginx":
            assert back == target  # as the browser sent it
        elif proxy.name != "envoy" or "%2e" not in target:  # Envoy has removed dots from the path
            assert "&" not in back
            assert unquote(back) == target
    for method, fields in (
        ("GET", []),
        ("GET", [("Accept", "*/*")]),
        ("GET", [("Accept", "application/json, text/plain")]),
        ("POST", [PAGE]),
        ("DELETE", [PAGE]),
        ("HEAD", [PAGE]),
        ("OPTIONS", [PAGE]),
    ):
        answer = proxy.ask(method, fields=fields)
        assert (answer.status, "location" in answer.fields) == (HTTPStatus.UNAUTHORIZED, False), (method, fields)


OTHER_PAGES = (
    "/login/",
    "/loginx",
    "/login;x",
    "/login%2f",
    "/login/../orders",
    "/logout/x",
    "/static",
    "/static/",
    "/static/../orders",
    "/static/a/../../orders",
    "/static//../orders",
    "/static/./../orders",
    "/static/%2e%2e/orders",
    "/static/.%2e/orders",
    "/static/..%2forders",
    "/static%2f..%2forders",
    "/static/..;/orders",
    "/static/..;a=b/orders",
    "/static/..\\orders",
    "/static/..%5corders",
    "/static/%252e%252e/orders",
    "/static/..%00/orders",
)
"""Applications may take some of them for a page that is not open."""


async def test_the_pages_for_login_and_logout_are_open_to_everyone_and_nobody_is_known_there(
    proxy: Proxy, stage: Stage
) -> None:
    session = await a_session(stage)
    for target in ("/login", "/logout", "/login?return_to=/orders", "/static/style.css", "/static/a-b/c_1.js?v=2"):
        for fields in ([], [PAGE], [with_cookies(session.refresh)], [("X-Auth-Subject", "forged")]):
            answer = proxy.ask("GET", target, fields)
            assert (answer.identity, set_by(answer)) == ({}, {})
    for target in OTHER_PAGES:
        answer = proxy.ask("GET", target)
        if answer.status == HTTPStatus.OK:  # Envoy passes the path on without dot segments
            assert re.fullmatch(r"/static/[a-z]+", answer.asked["target"]), target
            assert answer.identity == {}
        else:
            assert answer.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.BAD_REQUEST}, target


# -- outages


@dataclass
class Outage:
    """The answers of a proxy: while Keyturn was stopped, after it went on, while it was killed, and in the end."""

    session: Session
    stopped: list[Answer]
    resumed: Answer
    killed: list[Answer]
    restarted: Answer


@pytest.fixture(scope="module")
def outages(stage: Stage, proxies: dict[str, Proxy]) -> dict[str, Outage]:
    """One outage for all proxies, which are asked at the same time."""
    sessions: dict[str, Session] = {}
    ended: list[Session] = []

    async def prepare() -> None:
        sessions.update({name: await a_session(stage) for name in proxies})
        ended.append(await a_session(stage))
        await end(stage, ended[0])

    def asked(name: str) -> list[tuple[str, list[tuple[str, str]]]]:
        session = sessions[name]
        return [
            ("GET", [with_cookies(session.access, session.refresh)]),
            ("GET", [with_cookies(session.refresh)]),
            ("POST", [with_cookies(session.expired, session.refresh)]),
            ("GET", [PAGE, with_cookies(ended[0].refresh)]),
            ("GET", [PAGE]),
        ]

    def answers() -> dict[str, list[Answer]]:
        return {
            name: [future.result() for future in futures]
            for name, futures in {
                name: [threads.submit(proxy.ask, method, "/orders", fields) for method, fields in asked(name)]
                for name, proxy in proxies.items()
            }.items()
        }

    def signed_in(*cookies: str) -> dict[str, Answer]:
        return {
            name: proxy.ask(fields=[with_cookies(*(getattr(sessions[name], cookie) for cookie in cookies))])
            for name, proxy in proxies.items()
        }

    sync(prepare())
    with ThreadPoolExecutor(5 * len(proxies)) as threads:
        stage.keyturn.pause()
        try:
            stopped = answers()
        finally:
            stage.keyturn.resume()
        resumed = signed_in("refresh")
        stage.keyturn.kill()
        try:
            killed = answers()
            for target in ("/auth/refresh", "/auth/logout"):
                for name, proxy in proxies.items():
                    fields = [*OWN_PAGE, with_cookies(sessions[name].refresh)]
                    killed[name].append(proxy.ask("POST", target, fields))
        finally:
            stage.keyturn.close()
            stage.keyturn = serve(stage.database_url, stage.folder, port=stage.keyturn.port)
        restarted = signed_in("expired", "refresh")
    return {
        name: Outage(sessions[name], stopped[name], resumed[name], killed[name], restarted[name]) for name in proxies
    }


async def test_while_keyturn_is_stopped_or_killed_nobody_is_signed_out(
    proxy: Proxy, stage: Stage, outages: dict[str, Outage]
) -> None:
    outage = outages[proxy.name]
    for answer in (*outage.stopped, *outage.killed):
        unavailable(answer)
    # Keyturn may have rotated the token for a request whose answer was lost. Then this is a retry.
    for answer in (outage.resumed, outage.restarted):
        assert answer.identity == outage.session.identity
        refreshed(answer)
    row = await row_of(stage, outage.session)
    assert (row.generation, row.ended_at) == (1, None)


# -- verdicts


class Verdict(http.server.BaseHTTPRequestHandler):
    """Answers with the status that a cookie names, with all fields that Keyturn's answers can have."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = re.search(r"status=(\d+)", self.headers["Cookie"])
        assert found
        self.send_response(int(found[1]))
        for name in ("Subject", "Role", "Scope", "Session"):
            self.send_header(f"X-Auth-{name}", "someone")
        self.send_header("Location", "/orders")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = answer  # noqa: N815  # names of the standard library

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("name", RECIPES)
def test_a_verdict_of_200_alone_opens(stage: Stage, tmp_path: Path, name: str) -> None:
    statuses = [200, 301, 302, 303, 307, 308, 400, 401, 403, 404, 405, 408, 413, 414, 415, 417, 429, 431]
    statuses += [500, 501, 502, 503, 504, 505, 599]
    if name != "nginx":  # `auth_request` opens on every 2xx. Keyturn gives no other than 200.
        statuses += [201, 202, 204, 206]
    with (
        served(Verdict) as verdicts,
        running(name, recipe_of(name), tmp_path / name, keyturn=verdicts, app=stage.app) as proxy,
    ):
        for status in statuses:
            answer = proxy.ask("GET", "/orders", [with_cookies(f"status={status}")])
            assert (answer.status == HTTPStatus.OK) == (status == HTTPStatus.OK), (status, answer)
            assert b'"target"' not in answer.text or status == HTTPStatus.OK
            if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                assert answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR, status
                assert set_by(answer) == {}


NAMES = ("Subject", "Role", "Scope", "Session", "Set-Cookie-Access", "Set-Cookie-Refresh")
SPELLINGS = ("X-Auth-{}", "x-auth-{}", "X-AUTH-{}", "X_Auth_{}", "X-Auth_{}", "X_AUTH-{}", "x_auth_{}")


async def test_identity_fields_of_a_browsers_never_reach_the_application_nor_come_back(
    proxy: Proxy, stage: Stage
) -> None:
    session = await a_session(stage)
    forged = [
        (form.format(written), f"{ACCESS}=forged; Path=/")
        for name in NAMES
        for written in (name, name.replace("-", "_"))
        for form in SPELLINGS
    ]
    assert proxy.ask("GET", "/login", forged).identity == {}
    for cookie, sets in ((session.access, False), (session.refresh, True)):
        for fields in (*([field] * 2 for field in forged), forged):
            answer = proxy.ask("POST", fields=[with_cookies(cookie), *fields], body=b"x")
            assert answer.identity == session.identity, fields
            assert bool(set_by(answer)) == sets
            assert not any("forged" in value for _, value in answer.pairs), fields
    answer = proxy.ask(fields=[with_cookies(), *forged])
    assert (answer.status, set_by(answer)) == (HTTPStatus.UNAUTHORIZED, {})


async def test_verdicts_are_for_the_proxy_alone(proxy: Proxy, stage: Stage) -> None:
    session = await a_session(stage)
    for path in (
        "/auth/verify",
        "/auth/verify?refresh=true",
        "/auth/verify;refresh=true",
        "/auth/verify/x?refresh=true",
        "/auth/%76erify?refresh=true",
        "/auth/v%65rif%79?refresh=true",
        "/auth/./verify?refresh=true",
        "/auth//verify?refresh=true",
        "/auth/x/../verify?refresh=true",
        "/auth/%2e/verify?refresh=true",
        "/auth/verify%2f?refresh=true",
        "/auth/verify%3brefresh=true",
        "/_keyturn",
    ):
        for method in ("GET", "POST", "HEAD"):
            answer = proxy.ask(method, path, [*OWN_PAGE, with_cookies(session.access, session.refresh)])
            if answer.status == HTTPStatus.OK and method != "HEAD":
                assert answer.asked["target"].startswith(path[:5])  # the application's
            assert set_by(answer) == {}, path
            assert not any(name.startswith("x-auth") for name, _ in answer.pairs), path
    assert (await row_of(stage, session)).generation == 0


CACHE = """
proxy_cache_path {folder}/cache keys_zone=all:1m;
proxy_cache all;
proxy_cache_valid any 1h;
"""


@pytest.mark.parametrize("name", RECIPES)
async def test_no_verdict_is_kept_for_the_next_request(stage: Stage, tmp_path: Path, name: str) -> None:
    recipe = recipe_of(name)
    if name == "nginx":  # the others have no cache of their own that a set-up could turn on for everything
        recipe = CACHE.format(folder=tmp_path) + recipe.replace("proxy_cache off;", "")
    one, other = await a_session(stage), await a_session(stage)
    with running(name, recipe, tmp_path / name, keyturn=stage.keyturn.port, app=stage.app) as proxy:
        for session in (one, other, one):
            for cookie in (session.refresh, session.access):
                assert proxy.ask(fields=[with_cookies(cookie)]).identity == session.identity
            assert proxy.ask(fields=[with_cookies()]).status == HTTPStatus.UNAUTHORIZED
        await end(stage, one)
        assert proxy.ask(fields=[with_cookies(one.access)]).status == HTTPStatus.UNAUTHORIZED
        assert proxy.ask(fields=[with_cookies(other.access)]).identity == other.identity


# -- Keyturn's own endpoints, and other protocols


def test_sign_in_refresh_and_logout_with_cookies_pass_through_to_keyturn(proxy: Proxy) -> None:
    content = ("Content-Type", "application/json")
    body = f'{{"email": "ada@example.com", "password": "{PASSWORD}", "mode": "cookie"}}'.encode()
    assert proxy.ask("POST", "/auth/login", [content], body).status == HTTPStatus.FORBIDDEN
    answer = proxy.ask("POST", "/auth/login", [content, *OWN_PAGE], body)
    assert sum("keyturn-device=" in field for field in answer.all("set-cookie")) == 1
    access, refresh = refreshed(answer)
    assert proxy.ask("GET", "/auth/me", [with_cookies(access, refresh)]).status == HTTPStatus.OK
    answer = proxy.ask("POST", "/auth/refresh", [*OWN_PAGE, with_cookies(access, refresh)])
    access, refresh = refreshed(answer)
    assert proxy.ask(fields=[with_cookies(access, refresh)]).identity["x-auth-role"] == "user"
    for fields in ((), OTHER_SITE):
        answer = proxy.ask("POST", "/auth/logout", [*fields, with_cookies(access, refresh)])
        assert (answer.status, set_by(answer)) == (HTTPStatus.FORBIDDEN, {})
    answer = proxy.ask("POST", "/auth/logout", [*OWN_PAGE, with_cookies(access, refresh)])
    assert answer.status == HTTPStatus.NO_CONTENT
    assert cleared(answer)
    assert proxy.ask(fields=[with_cookies(access, refresh)]).status == HTTPStatus.UNAUTHORIZED


def handshake(proxy: Proxy, fields: Sequence[tuple[str, str]]) -> tuple[Answer, bytes]:
    """The answer to a WebSocket handshake, and the bytes that follow it."""
    own = [
        ("Host", "app.example.com"),
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", base64.b64encode(secrets.token_bytes(16)).decode()),
    ]
    head = "".join(f"{name}: {value}\r\n" for name, value in (*own, *fields))
    with (
        closing(socket.create_connection(("127.0.0.1", proxy.port), 10)) as connection,
        connection.makefile("rb") as got,
    ):
        connection.sendall(f"GET /socket HTTP/1.1\r\n{head}\r\n".encode())
        status = int(got.readline().split()[1])
        pairs = []
        while line := got.readline().strip().decode():
            name, _, value = line.partition(":")
            pairs.append((name.lower(), value.strip()))
        rest = b""
        if status == HTTPStatus.SWITCHING_PROTOCOLS:
            connection.sendall(b"ping ")
            rest = got.read(5 + 36)
        return Answer(status, pairs, b""), rest


async def test_a_websocket_opens_for_a_session_and_its_handshake_sets_the_cookies_of_a_refresh(
    proxy: Proxy, stage: Stage
) -> None:
    session = await a_session(stage)
    subject = session.identity["x-auth-subject"].encode()
    forged = ("X-Auth-Subject", "forged")
    answer, rest = handshake(proxy, [with_cookies(session.access), forged])
    assert (answer.status, rest, set_by(answer)) == (HTTPStatus.SWITCHING_PROTOCOLS, b"ping " + subject, {})
    answer, rest = handshake(proxy, [with_cookies(session.refresh), forged])
    assert (answer.status, rest) == (HTTPStatus.SWITCHING_PROTOCOLS, b"ping " + subject)
    refreshed(answer)
    answer, _ = handshake(proxy, [with_cookies(), forged])
    assert answer.status == HTTPStatus.UNAUTHORIZED


async def test_no_client_changes_to_a_protocol_in_which_nobody_would_be_asked(proxy: Proxy, stage: Stage) -> None:
    session = await a_session(stage)
    for target, protocol in (("/orders", "h2c"), ("/login", "h2c"), ("/orders", "H2C"), ("/orders", "h2c, websocket")):
        fields = [
            ("Connection", "Upgrade, HTTP2-Settings"),
            ("Upgrade", protocol),
            ("HTTP2-Settings", "AAMAAABkAAQAAP__"),
        ]
        answer = proxy.ask("GET", target, [with_cookies(session.access), *fields])
        if answer.status == HTTPStatus.OK:
            assert not any(name == "upgrade" for name, _ in answer.asked["fields"]), (target, protocol)
        else:
            assert answer.status in {HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN}, (target, protocol)


def test_at_least_one_proxy_was_run() -> None:
    found = [name for name in RECIPES if program(name)]
    print("proxies on this machine:", *found)
    assert found or pytest.skip("no nginx, caddy, envoy or haproxy")
