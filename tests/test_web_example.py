"""The applications of examples/web before a real Keyturn, and the command that starts all of them."""

from __future__ import annotations

import asyncio
import html
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
import uvicorn

from examples.web import application, one_page, pages
from examples.web.journal import Journal
from examples.web.return_address import safe
from examples.web.settings import Settings
from tests import proxies
from tests.conftest import CHEAP, PASSWORD, SECRET
from tests.servers import free_port
from tests.service import ROOT, Service
from tests.test_middleware import ADA, Answer, Browser, ask

FORM = ("Content-Type", "application/x-www-form-urlencoded")
OWN = ("Sec-Fetch-Site", "same-origin")


@contextmanager
def serving(app: Any, port: int) -> Iterator[None]:
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def origin() -> str:
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, logs: Path, origin: str) -> Iterator[Service]:
    values = {
        "data_dir": tmp_path_factory.mktemp("web") / "data",
        "secret": SECRET,
        "registration": "true",
        "allowed_origins": origin,
    }
    environment = {f"KEYTURN_{name.upper()}": str(value) for name, value in (values | CHEAP).items()}
    with Service.start(environment, logs=logs) as service:
        assert ask(service.port, "POST", "/auth/register", body={"email": ADA, "password": PASSWORD}).status == 201
        yield service


@pytest.fixture(scope="module")
def port(service: Service, origin: str) -> Iterator[int]:
    """The port of the web application."""
    port = int(origin.rpartition(":")[2])
    with serving(application.create(Settings(service.url, origin)), port):
        yield port


def post(
    browser: Browser, port: int, path: str, values: dict[str, str], *fields: tuple[str, str], own: bool = True
) -> Answer:
    """Sends a form, as a browser does that sends it from the application's own page (`own`)."""
    body = urlencode(values)
    sent = [*browser.sent, FORM, ("Content-Length", str(len(body))), *([OWN] if own else [])]
    answer = ask(port, "POST", path, [*sent, *fields], text=body)
    browser.keep(answer)
    return answer


def sign_in(port: int, path: str = "/login", **values: str) -> tuple[Browser, Answer]:
    browser = Browser()
    return browser, post(browser, port, path, {"email": ADA, "password": PASSWORD, "remember": "true"} | values)


def location(answer: Answer) -> str:
    assert answer.status == 303
    return answer.all("location")[0]


# -- the way of a visitor


def test_a_visitor_signs_in_on_the_way_to_a_page_sees_the_session_and_logs_out(port: int) -> None:
    asked = location(Browser().get(port, "/session?tab=2"))
    assert asked == "/login?return_to=%2Fsession%3Ftab%3D2"
    form = Browser().get(port, asked).body.decode()
    [action] = re.findall('action="([^"]+)"', form)
    browser, answer = sign_in(port, action)
    assert location(answer) == "/session?tab=2"
    assert browser.cookies.keys() == {"keyturn-access", "keyturn-refresh"}
    assert browser.device.keys() == {"keyturn-device", "keyturn-known"}
    del browser.cookies["keyturn-access"]
    page = browser.get(port, "/session").body.decode()
    for shown in (ADA, "Signed in at", "Ends in any case", "Refreshed on the way to /session"):
        assert shown in page
    assert location(browser.get(port, "/login?return_to=/protected")) == "/protected"
    assert location(post(browser, port, "/logout", {"reach": "this"})) == "/"
    assert browser.cookies == {}
    assert browser.get(port, "/protected").status == 303


@pytest.mark.parametrize(("email", "status"), [(ADA, 401), ('"><script>', 400)])
def test_a_refused_sign_in_shows_the_form_again_and_sets_no_cookie(port: int, email: str, status: int) -> None:
    browser, answer = sign_in(port, email=email, password="wrong password")
    assert (answer.status, browser.cookies) == (status, {})
    assert b'role="alert"' in answer.body
    assert f'value="{html.escape(email)}"' in answer.body.decode()
    assert b"wrong password" not in answer.body


@pytest.mark.parametrize(("remember", "kept"), [("true", True), ("", False)])
def test_a_sign_in_lasts_as_long_as_the_visitor_chose(port: int, remember: str, kept: bool) -> None:
    _, answer = sign_in(port, remember=remember)
    assert [("Max-Age" in value) for value in answer.all("set-cookie")] == [kept] * 4


def test_a_logout_everywhere_ends_the_sessions_of_other_browsers(port: int) -> None:
    (first, _), (second, _) = sign_in(port), sign_in(port)
    post(first, port, "/logout", {"reach": "all"})
    assert second.get(port, "/protected").status == 303
    assert second.cookies == {}


def test_a_cookie_of_another_application_that_is_not_ascii_keeps_nobody_out(port: int) -> None:
    browser = Browser()
    browser.cookies["theme"] = "gr\xfcn"
    assert location(post(browser, port, "/login", {"email": ADA, "password": PASSWORD})) == "/"
    assert browser.get(port, "/session").status == 200
    assert location(post(browser, port, "/logout", {"reach": "this"})) == "/"


def test_a_link_logs_nobody_out(port: int) -> None:
    browser, _ = sign_in(port)
    assert location(browser.get(port, "/logout")) == "/session"
    assert browser.get(port, "/session").status == 200


def test_a_logout_without_a_session_leads_to_the_start_page(port: int) -> None:
    assert location(post(Browser(), port, "/logout", {"reach": "this"})) == "/"


def test_while_keyturn_is_away_pages_are_503_and_the_visitor_stays_signed_in(port: int, service: Service) -> None:
    browser, _ = sign_in(port)
    before = dict(browser.cookies)
    service.pause()
    try:
        answer = browser.get(port, "/protected")
    finally:
        service.resume()
    assert (answer.status, answer.all("retry-after"), answer.all("refresh")) == (503, ["1"], ["3"])
    assert b"still signed in" in answer.body
    assert browser.cookies == before
    assert browser.get(port, "/protected").status == 200


# -- forms of other sites


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [("Origin", "https://evil.example")],
        [("Origin", "null")],
        [("Sec-Fetch-Site", "cross-site")],
        [("Sec-Fetch-Site", "same-site"), ("Origin", "http://127.0.0.1:1")],
        [("Sec-Fetch-Site", "none")],
        [("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Site", "cross-site")],
    ],
)
def test_a_form_that_may_come_from_another_site_changes_nothing(port: int, fields: list[tuple[str, str]]) -> None:
    browser, _ = sign_in(port)
    before = dict(browser.cookies)
    for path in ("/logout", "/login"):
        answer = post(browser, port, path, {"email": ADA, "password": PASSWORD}, *fields, own=False)
        assert (answer.status, answer.all("set-cookie")) == (403, [])
    assert browser.cookies == before
    assert browser.get(port, "/protected").status == 200


def test_a_browser_that_sends_the_origin_alone_may_sign_in_and_out(port: int, origin: str) -> None:
    browser = Browser()
    for path in ("/login", "/logout"):
        answer = post(browser, port, path, {"email": ADA, "password": PASSWORD}, ("Origin", origin), own=False)
        assert answer.status == 303
    assert browser.cookies == {}


@pytest.mark.parametrize("body", ["email=" + "a" * 20_000, "&".join(["a=b"] * 21), "email=%ff"])
def test_a_form_that_no_page_of_ours_sends_is_not_tried(port: int, body: str) -> None:
    answer = ask(port, "POST", "/login", [FORM, OWN, ("Content-Length", str(len(body)))], text=body)
    assert answer.status in {400, 401}
    assert answer.all("set-cookie") == []


# -- the way back after a login

OWN_PAGES = ("/", "/session", "/session?tab=2&x=a%20b", "/protected/", "/a/b-c/d.e")
OTHER_PLACES = (
    "",
    "https://evil.example/",
    "//evil.example",
    "///evil.example",
    "/\\evil.example",
    "\\\\evil.example",
    "/\t/evil.example",
    "\t//evil.example",
    " //evil.example",
    "/\n/evil.example",
    "/%2F/evil.example",
    "/%5Cevil.example",
    "%2F%2Fevil.example",
    "javascript:alert(1)",
    "JavaScript:alert(1)",
    "data:text/html,x",
    "evil.example",
    "@evil.example",
    "/@evil.example",
    "/.//evil.example",
    "/..//evil.example",
    "/session//evil.example",
    "/session\r\nSet-Cookie: a=b",
    "/session?next=//evil.example",
    "/session#//evil.example",
    "/\u017fession",
    "/" + "a" * 600,
)


@pytest.mark.parametrize("address", OWN_PAGES)
def test_a_login_leads_back_to_the_page_that_was_asked_for(port: int, address: str) -> None:
    assert location(sign_in(port, f"/login?return_to={quote(address, safe='')}")[1]) == address


@pytest.mark.parametrize("address", OTHER_PLACES)
def test_a_login_leads_nowhere_else(port: int, address: str) -> None:
    assert safe(address) == "/"
    once = quote(address, safe="")
    for asked in (once, quote(once, safe="")):
        form = Browser().get(port, f"/login?return_to={asked}").body.decode()
        assert 'action="/login?return_to=%2F"' in form
        assert location(sign_in(port, f"/login?return_to={asked}")[1]) == "/"


def test_a_proxy_may_leave_the_return_address_as_the_browser_sent_it(port: int) -> None:
    assert location(sign_in(port, "/login?return_to=/session?a=1&b=2%203")[1]) == "/session?a=1&b=2%203"
    assert location(sign_in(port, "/login?return_to=//evil.example?a=1&b=2")[1]) == "/"


# -- what every answer has


@pytest.mark.parametrize("path", ["/", "/login", "/protected", "/static/style.css", "/nothing"])
def test_no_page_can_be_framed_or_run_a_script(port: int, path: str) -> None:
    answer = Browser().get(port, path)
    [policy] = answer.all("content-security-policy")
    assert {"default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'"} <= {*policy.split("; ")}
    assert "script-src" not in policy
    assert answer.all("x-content-type-options") == ["nosniff"]
    assert b"<script" not in answer.body


def test_an_address_without_a_page_leads_back_to_the_start(port: int) -> None:
    answer = Browser().get(port, "/nothing")
    assert answer.status == 404
    assert b'<a href="/">' in answer.body


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(604799, "in 7 days"), (100, "in 2 minutes"), (-110, "1 minute ago")],
)
def test_a_deadline_is_rounded_and_the_past_is_not(seconds: int, words: str) -> None:
    now = datetime.now(UTC)
    facts = dict.fromkeys(("created_at", "rotated_at", "idle_expires_at"), now)
    facts["absolute_expires_at"] = now + timedelta(seconds=seconds)
    me = {"user": {"email": "ada@example.com"}, "session": facts}
    page = pages.session({"subject": "s", "role": "user", "session": "x"}, me, [])
    assert f"<small>{words}</small>" in page


def test_identity_fields_of_a_visitor_count_only_behind_a_proxy_that_sets_them(service: Service, port: int) -> None:
    forged = [("X-Auth-Subject", "someone"), ("X-Auth-Role", "admin"), ("X-Auth-Session", "none")]
    assert Browser().get(port, "/protected", *forged).status == 303
    proxied = free_port()
    with serving(
        application.create(Settings(service.url, "https://app.example.com", trust_proxy_identity=True)), proxied
    ):
        assert Browser().get(proxied, "/protected").status == 303
        page = Browser().get(proxied, "/protected", *forged)
    assert page.status == 200
    assert b"someone" in page.body


def test_behind_nginx_the_application_needs_no_middleware(service: Service, tmp_path: Path) -> None:
    recipe = proxies.recipe_of("nginx")
    port = free_port()
    app = application.create(Settings(service.url, "https://app.example.com", trust_proxy_identity=True))
    with (
        serving(app, port),
        proxies.running("nginx", recipe, tmp_path / "nginx", keyturn=service.port, app=port) as nginx,
    ):
        page = ("Accept", "text/html")
        asked = Browser().get(nginx.port, "/session?a=1&b=2", page).all("location")[0]
        [action] = re.findall('action="([^"]+)"', Browser().get(nginx.port, asked).body.decode())
        browser, answer = sign_in(nginx.port, action)
        assert location(answer) == "/session?a=1&b=2"
        assert ADA in browser.get(nginx.port, "/session", page).body.decode()
        del browser.cookies["keyturn-access"]
        renewed = browser.get(nginx.port, "/session", page)
        assert renewed.status == 200
        assert b"has just renewed" in renewed.body
        assert ADA in browser.get(nginx.port, "/session", page).body.decode()
        assert Browser().get(nginx.port, "/static/style.css").status == 200
        assert Browser().get(nginx.port, "/login", ("X-Auth-Subject", "someone")).status == 200  # and not led on
        assert location(post(browser, nginx.port, "/logout", {"reach": "this"})) == "/"
        assert browser.cookies == {}


def test_a_page_shows_text_as_text() -> None:
    page = pages.protected({"subject": "<b>", "role": "&", "session": '"'})
    assert "&lt;b&gt;" in page
    assert "<b>" not in page


def test_the_journal_forgets_the_sessions_that_were_not_seen_for_long() -> None:
    journal = Journal()
    for number in range(1100):
        journal.add(str(number), "seen")
    for _ in range(30):
        journal.add("1099", "again")
    assert journal.of("0") == []
    assert 0 < len(journal.of("1099")) < 30


# -- the one-page application


def test_the_one_page_application_may_call_keyturn_and_nobody_else(service: Service) -> None:
    port = free_port()
    with serving(one_page.create(Settings(service.url, f"http://127.0.0.1:{port}")), port):
        page = Browser().get(port, "/")
        assert Browser().get(port, "/config.json").json == {"keyturn": service.url}
        for path in ("/page.js", "/session.js", "/static/style.css"):
            assert Browser().get(port, path).status == 200
    [policy] = page.all("content-security-policy")
    assert f"connect-src 'self' {service.url};" in policy
    assert {"default-src 'none'", "frame-ancestors 'none'", "script-src 'self'"} <= {*policy.split("; ")}


def test_the_one_page_application_stores_no_token_and_writes_no_markup() -> None:
    code = "".join(path.read_text() for path in (ROOT / "examples" / "web" / "one_page").glob("*.js"))
    for name in ("localStorage", "sessionStorage", "indexedDB", "document.cookie", "innerHTML", "insertAdjacentHTML"):
        assert name not in code


# -- the command


def test_the_demo_says_where_to_look_and_ctrl_c_ends_all_of_it(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "examples.web"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as demo:
        try:
            assert demo.stdout is not None
            lines = [demo.stdout.readline() for _ in range(2)]
            ports = [int(port) for port in re.findall(r"http://127\.0\.0\.1:(\d+)", lines[0])]
            found = re.search(r"as (\S+) with the password (\S+)", lines[1])
            assert len(ports) == 3
            assert found is not None
            browser = Browser()
            assert post(browser, ports[0], "/login", {"email": found[1], "password": found[2]}).status == 303
            assert found[1] in browser.get(ports[0], "/session").body.decode()
        finally:
            demo.send_signal(signal.SIGINT)
            try:
                code = demo.wait(30)
            except subprocess.TimeoutExpired:
                demo.kill()  # otherwise the end of the block would wait for it for ever
                raise
    assert code == 0
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            ask(port, "GET", "/")
    assert list(tmp_path.glob("keyturn-demo-*")) == []
