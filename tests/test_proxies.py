"""The recipes of deploy/proxies/ in real proxies: which requests reach the application, as which user, with which fields.

Each recipe is used as published. The tests replace only hosts and ports.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import jwt
import pytest

from app.actors import SERVICE
from app.storage.migrating import migrate
from app.tokens.access_tokens import MEDIA_TYPE
from tests.conftest import PASSWORD, a_user, settings_of, sync
from tests.proxies import RECIPES, Answer, Application, Proxy, program, recipe_of, running, served
from tests.servers import Postgres, Redis, free_port
from tests.service import Service
from tests.test_races import at, serve

IDENTITY = ("x-auth-subject", "x-auth-role", "x-auth-scope", "x-auth-session")
MIB = 1024 * 1024
PROXIES = "127.0.0.1, 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16"
"""The addresses of this machine, which all proxies have here. Envoy names itself by one that is not on loopback."""


# -- the parts: Keyturn, and a link between it and a proxy


class Link:
    """A TCP relay between a proxy and Keyturn that counts its connections.

    The relay can lead to one Keyturn or to another, accept and stay silent, or listen to nobody.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.to: int | None = None  # None: accepts connections and never answers
        self.connections = 0
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def lead(self, to: int | None) -> None:
        """Leads new connections to that port, and breaks the open ones."""
        self.cut()
        self.to = to
        self._run(self._listen())

    def cut(self) -> None:
        """Stops listening, as after the end of a process."""
        self._run(self._close())

    def close(self) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in tuple(self._writers):
            writer.transport.abort()
        while len(asyncio.all_tasks()) > 1:  # the tasks that served the connections
            await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writers = [writer]
        self._writers.add(writer)
        try:
            if self.to is None:
                while await reader.read(65536):
                    pass
            else:
                there, back = await asyncio.open_connection("127.0.0.1", self.to)
                writers.append(back)
                self._writers.add(back)
                await asyncio.gather(self._copy(reader, back), self._copy(there, writer))
        except OSError:
            pass
        finally:
            for each in writers:
                each.transport.abort()
                self._writers.discard(each)

    @staticmethod
    async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()


@dataclass
class Stage:
    """Keyturn, a second one whose stores are away, a third one with narrow limits, an application, and tokens."""

    keyturn: Service
    outage: Service
    limited: Service
    app: int
    access_token: str
    outage_token: str
    expired_token: str
    ended_token: str
    editor_token: str
    claims: dict[str, str]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres, template: str) -> Iterator[Stage]:
    if not any(program(name) for name in RECIPES):
        pytest.skip("no nginx, caddy, envoy or haproxy")
    folder = tmp_path_factory.mktemp("proxies")
    with ExitStack() as stack:
        database = f"proxies_{secrets.token_hex(6)}"
        sync(postgres.create_database(database, template=template))
        stack.callback(lambda: sync(postgres.drop_database(database)))
        keyturn = stack.enter_context(serve(postgres.url(database), folder, trusted_proxies=PROXIES))

        # The second Keyturn's stores are stopped for good once it runs.
        own_postgres, own_redis = Postgres.start(), Redis.start()
        stack.callback(own_postgres.close)
        stack.callback(own_redis.close)
        sync(own_postgres.create_database("outage"))
        migrate(settings_of(own_postgres.url("outage"), None))
        outage = stack.enter_context(
            serve(own_postgres.url("outage"), folder, redis_url=own_redis.url(), verify_without_database=0)
        )
        tokens: dict[str, Any] = {}

        async def prepare() -> None:
            async with at(own_postgres.url("outage")) as parts:
                tokens["outage_token"] = (await parts.starting.start(await a_user(parts), by=SERVICE)).access_token
            async with at(postgres.url(database)) as parts:
                proof = await a_user(parts)
                editor = await a_user(parts, "ed@example.com", "editor")
                live, ended = [await parts.starting.start(proof, by=SERVICE) for _ in range(2)]
                await parts.ending.logout((), [ended.refresh_token], "this", by=SERVICE)
                claims = (await parts.reading.verify(live.access_token)).claims
                tokens["access_token"], tokens["ended_token"] = live.access_token, ended.access_token
                tokens["editor_token"] = (await parts.starting.start(editor, by=SERVICE)).access_token
                tokens["claims"] = {
                    "x-auth-subject": claims["sub"],
                    "x-auth-role": "user",
                    "x-auth-session": claims["sid"],
                }
                past = {"iat": claims["iat"] - 7200, "exp": claims["iat"] - 3600}
                key = parts.keys.signing_access
                headers = {"typ": MEDIA_TYPE, "kid": key.kid}
                tokens["expired_token"] = jwt.encode(claims | past, key.signing, key.algorithm, headers)

        sync(prepare())
        own_postgres.kill()
        own_redis.kill()
        limited = stack.enter_context(serve(postgres.url(database), folder, trusted_proxies=PROXIES, limit_junk="1/60"))
        yield Stage(keyturn, outage, limited, stack.enter_context(served(Application)), **tokens)


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    with closing(Link()) as link:
        yield link


@pytest.fixture(scope="module", params=RECIPES)
def proxy(
    request: pytest.FixtureRequest, stage: Stage, link: Link, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    link.lead(stage.keyturn.port)
    name, folder = request.param, tmp_path_factory.mktemp("proxy")
    with running(name, recipe_of(name), folder / name, keyturn=link.port, app=stage.app) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def back(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test, lets the link lead to the working Keyturn again."""
    yield
    if "proxy" in request.fixturenames:
        link, stage = request.getfixturevalue("link"), request.getfixturevalue("stage")
        if link.to != stage.keyturn.port or link._server is None:
            link.lead(stage.keyturn.port)


# -- requests that pass


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_a_request_with_a_good_token_reaches_the_application_as_it_was_sent(
    proxy: Proxy, stage: Stage, method: str
) -> None:
    bodies: list[bytes | list[bytes]] = [b""]
    if method in {"POST", "PUT", "PATCH", "DELETE"}:
        bodies += [b"{}", b"x" * 65_537, secrets.token_bytes(MIB), [b"a", b"bc" * 10_000], [b"x" * 65_536] * 8]
    for body in bodies:
        target = "/orders?role=editor&scope=everything&role=admin"
        answer = proxy.ask(method, target, [("Content-Type", "text/html")], body, token=stage.access_token)
        whole = body if isinstance(body, bytes) else b"".join(body)
        if method == "HEAD":
            assert answer.status == HTTPStatus.OK
            continue
        asked = answer.asked
        assert (asked["method"], asked["target"], asked["length"]) == (method, target, len(whole))
        assert asked["digest"] == hashlib.sha256(whole).hexdigest()
        assert answer.identity == stage.claims


def test_expect_100_continue_and_other_fields_of_the_body_are_no_matter_of_keyturns(proxy: Proxy, stage: Stage) -> None:
    for fields in (
        [("Expect", "100-continue")],
        [("Content-Encoding", "gzip"), ("Content-Type", "image/png")],
        [("Content-Type", "application/json; charset=latin-1; x=y")],
        [("If-None-Match", "*"), ("Range", "bytes=0-1")],
        [("Cookie", "x=" + "y" * 4000)],
    ):
        for size in (3, 100_000):
            answer = proxy.ask("POST", "/orders", fields, b"x" * size, token=stage.access_token)
            assert answer.asked["length"] == size, fields


FORGED = [
    (spelling.format(name), "forged")
    for name in ("Subject", "Role", "Scope", "Session")
    for spelling in ("X-Auth-{}", "X-Auth-{}", "x-auth-{}", "X_Auth_{}", "X-Auth_{}", "X_AUTH-{}", "x_auth_{}")
]


def test_a_client_s_own_identity_is_never_passed_on(proxy: Proxy, stage: Stage) -> None:
    preflight = [("Origin", "https://elsewhere.example"), ("Access-Control-Request-Method", "PUT")]
    for forged in ([field] for field in FORGED):
        answer = proxy.ask(fields=forged, token=stage.access_token)
        assert answer.identity == stage.claims, forged
        assert proxy.ask("OPTIONS", fields=[*preflight, *forged]).identity == {}, forged
        assert proxy.ask(fields=forged).status == HTTPStatus.UNAUTHORIZED, forged
    assert proxy.ask("POST", fields=FORGED, body=b"x", token=stage.access_token).identity == stage.claims
    assert proxy.ask("OPTIONS", fields=[*FORGED, *preflight]).identity == {}


def test_the_client_s_address_is_the_one_from_which_the_proxy_was_reached(proxy: Proxy, stage: Stage) -> None:
    named = [("X-Forwarded-For", "203.0.113.9"), ("Forwarded", "for=203.0.113.9"), ("X-Real-IP", "203.0.113.9")]
    named += [("X-Forwarded-For", "203.0.113.8")]
    for target, token in (("/orders", stage.access_token), ("/auth/me", stage.access_token)):
        for fields in ([], named):
            before = len(stage.keyturn.text_with('"event": "request"'))
            proxy.ask(target=target, fields=fields, token=token, source="127.0.0.2")
            end = monotonic() + 10
            while not (clients := clients_in(stage.keyturn.text()[before:])) and monotonic() < end:
                sleep(0.02)
            assert clients == ["127.0.0.2"], (target, fields)


def clients_in(text: str) -> list[str]:
    """The addresses in the lines about requests, without 127.0.0.1: the line of an earlier request may come late."""
    lines = [json.loads(line) for line in text.splitlines() if '"event": "request"' in line and line.endswith("}")]
    return [line["client"] for line in lines if line["client"] != "127.0.0.1"]


def test_path_and_query_of_a_client_decide_nothing_however_odd_and_long(proxy: Proxy, stage: Stage) -> None:
    # Bytes that the proxy accepts without further settings.
    longest = {"nginx": 7_000, "caddy": 15_000, "haproxy": 14_000}.get(proxy.name, 50_000)
    for target in (
        "/?role=editor",
        "/;role=editor/x?role=editor&role=admin&scope=a&max_age=0&refresh=true",
        "/orders?role=%",
        "/orders?%zz=%ff&%00=%c0%af",
        "/orders?role=%0d%0aX-Auth-Role:%20admin",
        "/caf%C3%A9/%E9?x=%E9",
        "/orders?" + "x=%25&" * (longest // 6),
        "/" + "x" * longest,
    ):
        assert proxy.ask("GET", target, token=stage.access_token).identity == stage.claims, target[:80]
        assert proxy.ask("GET", target).status == HTTPStatus.UNAUTHORIZED, target[:80]
    for target in ("/%00", "/%zz", "/%", "/a%0ab", "/../..", "/%2e%2e/x", "/x\\y", '/"<>^`{|}'):
        # The proxy may refuse these targets itself. If it passes one on, the identity must be right.
        answer = proxy.ask("GET", target, token=stage.access_token)
        assert answer.status == HTTPStatus.BAD_REQUEST or answer.identity == stage.claims, target
        assert proxy.ask("GET", target).status in {HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED}, target


def test_a_refused_token_is_401_with_a_challenge_and_never_reaches_the_application(proxy: Proxy, stage: Stage) -> None:
    for method in ("GET", "POST", "PUT", "DELETE"):
        for token in (None, "junk", stage.expired_token, stage.ended_token):
            answer = proxy.ask(method, body=b"x" * 100_000 if method == "POST" else b"", token=token)
            assert answer.status == HTTPStatus.UNAUTHORIZED
            assert answer.fields["www-authenticate"] == ("Bearer" if token is None else 'Bearer error="invalid_token"')
            assert "retry-after" not in answer.fields


DEMANDS = {
    "nginx": ('set $demand "";', 'set $demand "&role=editor";'),
    "caddy": ("rewrite /auth/verify?refresh=true", "rewrite /auth/verify?refresh=true&role=editor"),
    "envoy": ("path_prefix: /auth/verify;refresh=true\n", "path_prefix: /auth/verify;refresh=true;role=editor\n"),
    "haproxy": ("lua.keyturn /auth/verify?refresh=true\n", "lua.keyturn /auth/verify?refresh=true&role=editor\n"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_demand_of_the_proxys_is_403_for_the_others_and_no_client_can_change_it(
    stage: Stage, link: Link, tmp_path: Path, name: str
) -> None:
    link.lead(stage.keyturn.port)
    recipe = recipe_of(name)
    assert DEMANDS[name][0] in recipe
    with running(name, recipe.replace(*DEMANDS[name]), tmp_path / name, keyturn=link.port, app=stage.app) as proxy:
        for target in (
            "/orders",
            "/orders?role=user",
            "/orders?x=%",
            "/;role=user/x?role=user",
            "/?role=editor&role=user",
        ):
            assert proxy.ask(target=target, token=stage.editor_token).identity["x-auth-role"] == "editor"
            answer = proxy.ask("POST", target, body=b"x", token=stage.access_token)
            assert answer.status == HTTPStatus.FORBIDDEN
            assert answer.fields["www-authenticate"] == 'Bearer error="insufficient_scope"'


# -- parts that are away


def unavailable(answer: Answer) -> None:
    assert answer.status == HTTPStatus.SERVICE_UNAVAILABLE, answer
    assert 1 <= int(answer.fields["retry-after"]) <= 5
    assert "www-authenticate" not in answer.fields


def test_a_429_is_no_verdict_and_the_client_may_come_again(proxy: Proxy, stage: Stage, link: Link) -> None:
    link.lead(stage.limited.port)
    answers = [proxy.ask(token=f"junk{number}") for number in range(3)]
    assert {answer.status for answer in answers} <= {401, 429, 503}
    assert answers[-1].status in {429, 503}
    assert "retry-after" in answers[-1].fields
    assert "set-cookie" not in answers[-1].fields
    assert proxy.ask(token=stage.access_token).status == HTTPStatus.OK


def test_while_both_stores_are_away_the_client_gets_503_and_is_not_signed_out(
    proxy: Proxy, stage: Stage, link: Link
) -> None:
    link.lead(stage.outage.port)
    for method in ("GET", "POST", "DELETE"):
        unavailable(proxy.ask(method, body=b"x" * 70_000 if method == "POST" else b"", token=stage.outage_token))
    assert proxy.ask(token="junk").status == HTTPStatus.UNAUTHORIZED
    link.lead(stage.keyturn.port)
    assert proxy.ask(token=stage.access_token).identity == stage.claims


@pytest.mark.parametrize("how", ["dead", "silent"])
def test_while_keyturn_does_not_answer_the_client_gets_503_and_is_not_signed_out(
    proxy: Proxy, stage: Stage, link: Link, how: str
) -> None:
    assert proxy.ask(token=stage.access_token).identity == stage.claims
    if how == "dead":
        link.cut()
    else:
        link.lead(None)
    for method in ("GET", "POST") if how == "dead" else ("GET",):
        unavailable(proxy.ask(method, body=b"x" * 70_000 if method == "POST" else b"", token=stage.access_token))
    if how == "dead":
        unavailable(
            proxy.ask("POST", "/auth/refresh", [("Content-Type", "application/json")], b'{"refresh_token": "x"}')
        )
    link.lead(stage.keyturn.port)
    assert proxy.ask(token=stage.access_token).identity == stage.claims


# -- other requests and fields


def test_a_preflight_is_the_applications_and_no_other_request_without_a_token_is(proxy: Proxy, stage: Stage) -> None:
    origin, wanted = ("Origin", "https://elsewhere.example"), ("Access-Control-Request-Method", "DELETE")
    answer = proxy.ask("OPTIONS", "/orders?x=1", [origin, wanted])
    assert (answer.asked["method"], answer.asked["target"], answer.identity) == ("OPTIONS", "/orders?x=1", {})
    for method, fields in (
        ("OPTIONS", []),
        ("OPTIONS", [origin]),
        ("OPTIONS", [wanted]),
        ("GET", [origin, wanted]),
        ("POST", [origin, wanted]),
        ("HEAD", [origin, wanted]),
        ("GET", [origin, wanted, ("X-HTTP-Method-Override", "OPTIONS")]),
    ):
        assert proxy.ask(method, fields=fields).status == HTTPStatus.UNAUTHORIZED, (method, fields)


def test_signing_in_and_refreshing_pass_through_to_keyturn(proxy: Proxy, stage: Stage) -> None:
    content = [("Content-Type", "application/json")]
    body = json.dumps({"email": "ada@example.com", "password": PASSWORD}).encode()
    tokens = json.loads(proxy.ask("POST", "/auth/login", content, body).text)
    assert proxy.ask(token=tokens["access_token"]).identity["x-auth-subject"] == stage.claims["x-auth-subject"]
    again = json.dumps({"refresh_token": tokens["refresh_token"]}).encode()
    assert json.loads(proxy.ask("POST", "/auth/refresh", content, again).text)["session_id"] == tokens["session_id"]
    refused = proxy.ask("POST", "/auth/refresh", content, b'{"refresh_token": "x"}')
    assert (refused.status, json.loads(refused.text)["error"]) == (HTTPStatus.UNAUTHORIZED, "invalid_grant")


def test_what_an_issuer_says_passes_through_to_keyturn_and_needs_no_session(proxy: Proxy) -> None:
    for path, media_type, body in (
        ("/federation/acme/logout", "application/x-www-form-urlencoded", b"logout_token=a.b.c"),
        ("/federation/acme/webhook", "application/json", b'{"type": "user.logout", "data": {}}'),
    ):
        signed = [(name, "1") for name in ("webhook-id", "webhook-timestamp", "webhook-signature")]
        answer = proxy.ask("POST", path, [("Content-Type", media_type), *signed], body)
        assert (answer.status, json.loads(answer.text)["error"]) == (HTTPStatus.NOT_FOUND, "not_found"), path


def test_connections_to_keyturn_are_kept_open(proxy: Proxy, stage: Stage, link: Link) -> None:
    proxy.ask(token=stage.access_token)
    before = link.connections
    for token, status in ((stage.access_token, HTTPStatus.OK), ("junk", HTTPStatus.UNAUTHORIZED)):
        for method in ("GET", "POST", "PUT", "HEAD"):
            for _ in range(10):
                body = b"x" * 1000 if method in {"POST", "PUT"} else b""
                assert proxy.ask(method, body=body, token=token).status == status
    assert link.connections - before <= 4


# -- without a recipe


PLAIN_NGINX = """
server {
    listen 8080;
    location / {
        auth_request /verify;
        auth_request_set $role $upstream_http_x_auth_role;
        proxy_set_header X-Auth-Role $role;
        proxy_pass http://app:3000;
    }
    location = /verify {
        internal;
        proxy_pass http://keyturn:8000/auth/verify;
    }
}
"""


def test_nginx_with_nothing_but_auth_request_lets_bodies_of_any_kind_pass(
    stage: Stage, link: Link, tmp_path: Path
) -> None:
    link.lead(stage.keyturn.port)
    with running("nginx", PLAIN_NGINX, tmp_path / "nginx", keyturn=link.port, app=stage.app) as proxy:
        for body in (b"{}", b"x" * 70_000, secrets.token_bytes(MIB), [b"abc"] * 3, [b"x" * 65_536] * 4):
            for method in ("POST", "PUT"):
                fields = [
                    ("Content-Type", "application/json"),
                    ("Content-Encoding", "gzip"),
                    ("Expect", "100-continue"),
                ]
                began = monotonic()
                answer = proxy.ask(method, "/orders?role=editor", fields, body, token=stage.access_token)
                assert answer.asked["length"] == sum(map(len, body) if isinstance(body, list) else [len(body)])
                assert answer.identity == {"x-auth-role": "user"}
                assert proxy.ask(method, "/orders", fields, body).status == HTTPStatus.UNAUTHORIZED
                assert monotonic() - began < 5
