"""The two middlewares of docs/middleware.md, in real servers before a real Keyturn."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flask
import pytest
import starlette.requests
import starlette.responses
import uvicorn
import werkzeug.serving

from app.settings import LEEWAY
from tests.conftest import CHEAP, PASSWORD, SECRET
from tests.cookies import is_device
from tests.servers import free_port
from tests.service import ROOT, Service

LIFETIME = 15
"""Seconds that an access token lives in these tests. A third is the retry window: a busy machine needs some of it."""

ORIGIN = "https://app.example.com"
ADA, BOB = "ada@example.com", "bob@example.com"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Iterator[Service]:
    values = {
        "data_dir": tmp_path_factory.mktemp("middleware") / "data",
        "secret": SECRET,
        "registration": "true",
        "access_token_lifetime": LIFETIME,
        "retry_window": LIFETIME // 3,
        "allowed_origins": ORIGIN,
    }
    environment = {f"KEYTURN_{name.upper()}": str(value) for name, value in (values | CHEAP).items()}
    with Service.start(environment, logs=logs) as service:
        for email in (ADA, BOB):
            assert (
                ask(service.port, "POST", "/auth/register", body={"email": email, "password": PASSWORD}).status == 201
            )
        yield service


# -- a browser


@dataclass(frozen=True)
class Answer:
    status: int
    fields: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        return [value for each, value in self.fields if each.lower() == name]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    port: int,
    method: str,
    path: str,
    fields: list[tuple[str, str]] | None = None,
    body: dict[str, Any] | None = None,
    text: str = "",
) -> Answer:
    """One request with exactly these header fields, doubled ones too, and a JSON body or a text."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.putrequest(method, path, skip_accept_encoding=True)
        if body is not None:
            text = json.dumps(body)
            fields = [*(fields or []), ("Content-Type", "application/json"), ("Content-Length", str(len(text)))]
        for name, value in fields or []:
            connection.putheader(name, value)
        connection.endheaders(text.encode())
        answer = connection.getresponse()
        return Answer(answer.status, answer.getheaders(), answer.read())


@dataclass
class Browser:
    """The cookies of a visitor, kept as a browser keeps them: of several of one name the last counts.

    The device cookie is kept apart from those with tokens.
    """

    cookies: dict[str, str] = field(default_factory=dict)
    device: dict[str, str] = field(default_factory=dict)

    @property
    def sent(self) -> list[tuple[str, str]]:
        """The Cookie field, if there is a cookie."""
        pairs = [f"{name}={value}" for name, value in (self.device | self.cookies).items()]
        return [("Cookie", "; ".join(pairs))] if pairs else []

    def sign_in(self, service: Service, email: str = ADA) -> None:
        body = {"email": email, "password": PASSWORD, "mode": "cookie"}
        answer = ask(service.port, "POST", "/auth/login", [("Origin", ORIGIN)], body)
        assert answer.status == 200, answer.body
        self.keep(answer)

    def keep(self, answer: Answer) -> None:
        for value in answer.all("set-cookie"):
            name, _, text = value.partition(";")[0].partition("=")
            kept = self.device if is_device(name) else self.cookies
            if "Max-Age=0;" in value:
                kept.pop(name, None)
            else:
                kept[name] = text

    def get(self, port: int, path: str = "/hello", *fields: tuple[str, str]) -> Answer:
        answer = ask(port, "GET", path, [*self.sent, *fields])
        self.keep(answer)
        return answer


@pytest.fixture
def browser(service: Service) -> Browser:
    browser = Browser()
    browser.sign_in(service)
    return browser


@pytest.fixture(scope="module")
def waiting(service: Service) -> list[Browser]:
    """Browsers whose access tokens have expired. They wait together, because waiting takes time."""
    browsers = [Browser() for _ in range(8)]
    for browser in browsers:
        browser.sign_in(service)
    time.sleep(LIFETIME + LEEWAY.total_seconds() + 1)
    return browsers


@pytest.fixture
def expired(waiting: list[Browser]) -> Browser:
    return waiting.pop()


# -- the page's code in real servers


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "middleware.md").read_text(encoding="utf-8"), re.DOTALL)


def published(framework: str, url: str) -> dict[str, Any]:
    """The names of a middleware and its application, as published. Only Keyturn's URL and the time limit are ours."""
    first, second = {"FastAPI": (0, 1), "Flask": (2, 3)}[framework]
    code = (blocks()[first] + blocks()[second]).replace("http://127.0.0.1:8000", url)
    assert code.count("timeout=5") == 1
    names: dict[str, Any] = {"__name__": f"published_{framework}"}
    exec(compile(code.replace("timeout=5", "timeout=1"), "docs/middleware.md", "exec"), names)  # the page is our own
    return names


@contextmanager
def fastapi_server(names: dict[str, Any], service: Service) -> Iterator[int]:
    app = names["app"]

    @app.get("/seen")
    async def seen(request: starlette.requests.Request) -> Any:
        return [[name, value] for name, value in request.headers.items()]

    @app.get("/logout")
    async def logout(request: starlette.requests.Request) -> Any:
        response = starlette.responses.Response(status_code=204)
        for value in ended(service, request.headers["cookie"]).all("set-cookie"):
            response.headers.append("set-cookie", value)
        return response

    server = uvicorn.Server(uvicorn.Config(app, port=free_port(), log_config=None))

    async def serve() -> None:
        await server.serve()
        middleware = app.middleware_stack
        while not isinstance(middleware, names["RefreshOnTheWay"]):
            middleware = middleware.app
        await middleware.keyturn.aclose()  # so that no connection is left to the garbage collector

    with background(lambda: asyncio.run(serve()), lambda: setattr(server, "should_exit", True)):
        while not server.started:
            time.sleep(0.01)
        yield server.config.port


@contextmanager
def flask_server(names: dict[str, Any], service: Service) -> Iterator[int]:
    app = names["app"]

    @app.get("/seen")
    def seen() -> Any:
        return [[name.lower(), value] for name, value in flask.request.headers.items()]

    @app.get("/logout")
    def logout() -> Any:
        response = flask.Response(status=204)
        for value in ended(service, flask.request.headers["Cookie"]).all("set-cookie"):
            response.headers.add("Set-Cookie", value)
        return response

    server = werkzeug.serving.make_server("127.0.0.1", free_port(), app, threaded=True)
    with background(server.serve_forever, server.shutdown):
        yield server.port


def ended(service: Service, cookie: str) -> Answer:
    return ask(service.port, "POST", "/auth/logout", [("Cookie", cookie), ("Origin", ORIGIN)])


@contextmanager
def background(run: Callable[[], object], stop: Callable[[], object]) -> Iterator[None]:
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop()
        thread.join(20)
    assert not thread.is_alive()


SERVERS = {"FastAPI": fastapi_server, "Flask": flask_server}


@pytest.fixture(scope="module", params=SERVERS)
def port(request: pytest.FixtureRequest, service: Service) -> Iterator[int]:
    """The port of an application with the middleware."""
    with SERVERS[request.param](published(request.param, service.url), service) as port:
        yield port


# -- identity


def test_a_live_access_cookie_names_its_user_and_no_cookie_is_set(port: int, browser: Browser) -> None:
    answer = browser.get(port)
    assert answer.status == 200
    assert re.fullmatch("[0-9a-f-]{36}", answer.json["hello"])
    assert answer.all("set-cookie") == []


def test_a_visitor_without_cookies_is_nobody(port: int) -> None:
    assert Browser().get(port).status == 401


def test_identity_fields_from_outside_never_reach_the_application(port: int, browser: Browser) -> None:
    forged = [
        (name, "forged")
        for name in (
            "X-Auth-Subject",
            "x-auth-subject",
            "X-AUTH-ROLE",
            "X_Auth_Session",
            "x-auth_scope",
            "X-Auth-Other",
        )
    ]
    for visitor in (browser, Browser(), Browser({"keyturn-access": "junk", "keyturn-refresh": "junk"})):
        assert b"forged" not in visitor.get(port, "/seen", *forged).body
        assert visitor.get(port, "/hello", *forged).status == (200 if visitor is browser else 401)


# -- refresh on the way


def test_an_expired_access_cookie_is_refreshed_on_the_way_and_the_new_cookies_go_back(
    port: int, expired: Browser
) -> None:
    before = dict(expired.cookies)
    answer = expired.get(port)
    assert answer.status == 200
    assert len(answer.all("set-cookie")) == 2
    assert "no-store" in answer.all("cache-control")
    assert before.keys() == expired.cookies.keys()
    assert not before.items() & expired.cookies.items()
    again = expired.get(port)
    assert (again.json, again.all("set-cookie")) == (answer.json, [])


def test_a_browser_stays_signed_in_though_its_access_cookie_is_gone_again_and_again(
    port: int, browser: Browser
) -> None:
    for _ in range(20):
        del browser.cookies["keyturn-access"]
        assert browser.get(port).status == 200


def test_the_application_can_ask_keyturn_with_the_new_cookies_at_once(
    port: int, service: Service, expired: Browser
) -> None:
    [seen] = [value for name, value in expired.get(port, "/seen").json if name == "cookie"]
    assert ask(service.port, "GET", "/auth/me", [("Cookie", seen)]).json["user"]["email"] == ADA


def test_fifty_requests_at_once_with_an_expired_access_cookie_are_all_answered(port: int, expired: Browser) -> None:
    tabs = [Browser(dict(expired.cookies)) for _ in range(50)]
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda tab: tab.get(port), tabs))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1
    del tabs[-1].cookies["keyturn-access"]
    assert tabs[-1].get(port).status == 200


def test_the_cookies_of_one_visitor_never_go_along_with_another_request(
    port: int, service: Service, expired: Browser
) -> None:
    assert expired.get(port).all("set-cookie")
    for _ in range(20):
        assert Browser().get(port).status == 401
    bob = Browser()
    bob.sign_in(service, BOB)
    assert bob.get(port).json != expired.get(port).json


# -- the end of a session, and an outage


def test_a_session_that_is_over_is_cleared_from_the_browser(port: int, service: Service, browser: Browser) -> None:
    tab = Browser(dict(browser.cookies))
    assert ended(service, "; ".join(f"{name}={value}" for name, value in tab.cookies.items())).status == 204
    answer = browser.get(port)
    assert answer.status == 401
    assert browser.cookies == {}
    assert "no-store" in answer.all("cache-control")


def test_a_logout_that_was_refreshed_on_the_way_leaves_no_cookie(port: int, browser: Browser) -> None:
    del browser.cookies["keyturn-access"]
    answer = browser.get(port, "/logout")
    assert answer.status == 204
    assert len(answer.all("set-cookie")) == 4
    assert browser.cookies == {}


def test_while_keyturn_does_not_answer_everyone_gets_503_and_nobody_is_signed_out(
    port: int, service: Service, browser: Browser
) -> None:
    before = dict(browser.cookies)
    service.pause()
    try:
        for visitor in (browser, Browser()):
            started = time.monotonic()
            answer = visitor.get(port)
            assert (answer.status, answer.all("retry-after"), answer.all("set-cookie")) == (503, ["1"], [])
            assert time.monotonic() - started < 10
    finally:
        service.resume()
    assert browser.cookies == before
    assert browser.get(port).status == 200


@pytest.mark.parametrize("framework", ["FastAPI", "Flask"])
def test_while_keyturn_is_stopped_the_answer_is_503(framework: str, service: Service) -> None:
    with SERVERS[framework](published(framework, f"http://127.0.0.1:{free_port()}"), service) as port:
        answer = Browser({"keyturn-access": "any", "keyturn-refresh": "any"}).get(port)
    assert (answer.status, answer.all("retry-after"), answer.all("set-cookie")) == (503, ["1"], [])


def test_more_cookies_than_keyturn_looks_at_are_400_and_none_is_touched(port: int, browser: Browser) -> None:
    cookie = "; ".join(["keyturn-access=junk"] * 17)
    answer = Browser().get(port, "/hello", ("Cookie", cookie))
    assert (answer.status, answer.all("set-cookie")) == (400, [])


# -- the page and the example


def test_the_example_has_the_middleware_of_the_page() -> None:
    assert (ROOT / "examples" / "web" / "middleware.py").read_text(encoding="utf-8") == blocks()[0]


async def test_a_websocket_gets_no_identity_from_outside(service: Service, browser: Browser) -> None:
    seen: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["headers"])
        await send({"type": "websocket.accept"})

    async def send(message: Any) -> None:
        seen.append(message)

    del browser.cookies["keyturn-access"]
    cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items()).encode()
    middleware = published("FastAPI", service.url)["RefreshOnTheWay"](application, service.url)
    for given in (cookie, b"keyturn-refresh=junk"):
        scope = {"type": "websocket", "path": "/", "headers": [(b"x-auth-role", b"admin"), (b"cookie", given)]}
        await middleware(scope, None, send)
    await middleware.keyturn.aclose()
    named, accepted, nobody, cleared = seen
    assert [value for name, value in named if name == b"x-auth-role"] == [b"user"]
    assert [name for name, _ in accepted["headers"]] == [b"set-cookie", b"set-cookie", b"cache-control"]
    assert b"x-auth-role" not in dict(nobody)
    assert cleared["type"] == "websocket.accept"
