"""examples/flask-web before a real Keyturn, on an origin of its own and behind a real nginx."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests import proxies
from tests.example_servers import ACCOUNT, EXAMPLES, keyturn, running
from tests.servers import free_port
from tests.service import ROOT, Service
from tests.test_middleware import Answer, Browser, ask, blocks

FORM = ("Content-Type", "application/x-www-form-urlencoded")
OWN = ("Sec-Fetch-Site", "same-origin")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Iterator[Service]:
    with keyturn(tmp_path_factory.mktemp("flask"), logs) as service:
        yield service


def serving(keyturn: str, **environment: str) -> AbstractContextManager[str]:
    port = free_port()
    command = [sys.executable, "-m", "flask", "--app", "examples/flask-web/web.py", "run", "--port", str(port)]
    return running(command, port, folder=ROOT, environment={"KEYTURN": keyturn, **environment})


@pytest.fixture(scope="module")
def port(service: Service) -> Iterator[int]:
    with serving(service.url) as web:
        yield int(web.rpartition(":")[2])


def post(port: int, path: str, browser: Browser, *fields: tuple[str, str], **form: str) -> Answer:
    text = urlencode(form)
    length = ("Content-Length", str(len(text)))
    answer = ask(port, "POST", path, [*browser.sent, FORM, length, *fields], text=text)
    browser.keep(answer)
    return answer


def signed_in(port: int) -> Browser:
    browser = Browser()
    answer = post(port, "/login", browser, OWN, **ACCOUNT)
    assert (answer.status, answer.all("location")) == (303, ["/"]), answer.body
    assert len(browser.cookies) == 2
    return browser


def test_a_visitor_signs_in_sees_the_page_and_logs_out(port: int) -> None:
    assert Browser().get(port, "/").all("location") == ["/login"]
    browser = signed_in(port)
    old = dict(browser.cookies)
    assert b"with the role user" in browser.get(port, "/").body
    assert post(port, "/logout", browser, OWN).all("location") == ["/login"]
    assert browser.cookies == {}
    assert Browser(old).get(port, "/").all("location") == ["/login"]


def test_a_session_without_its_access_cookie_is_refreshed_on_the_way(port: int) -> None:
    browser = signed_in(port)
    [access] = [name for name in browser.cookies if name.endswith("access")]
    del browser.cookies[access]
    assert browser.get(port, "/").status == 200
    assert access in browser.cookies


def test_a_wrong_password_is_told_on_the_form(port: int) -> None:
    browser = Browser()
    answer = post(port, "/login", browser, OWN, email=ACCOUNT["email"], password="wrong")
    assert answer.status == 401
    assert b'<p role="alert">E-mail or password is wrong' in answer.body
    assert browser.cookies == {}


def test_a_form_of_another_site_is_refused(port: int) -> None:
    browser = signed_in(port)
    assert (
        post(port, "/logout", browser, ("Sec-Fetch-Site", "cross-site"), ("Origin", "https://evil.test")).status == 403
    )
    assert browser.get(port, "/").status == 200


def test_identity_fields_from_outside_are_dropped(port: int) -> None:
    assert Browser().get(port, "/", ("X-Auth-Subject", "eve"), ("X-Auth-Role", "admin")).status == 303


def test_while_keyturn_is_away_the_page_says_503_and_touches_no_cookie() -> None:
    browser = Browser({"keyturn-access": "some", "keyturn-refresh": "thing"})
    with serving(f"http://127.0.0.1:{free_port()}") as web:
        answer = browser.get(int(web.rpartition(":")[2]), "/")
    assert (answer.status, answer.all("set-cookie")) == (503, [])


def test_behind_nginx_the_app_needs_no_middleware(service: Service, tmp_path: Path) -> None:
    with serving(service.url, BEHIND_NGINX="1") as web:
        app = int(web.rpartition(":")[2])
        recipe = proxies.recipe_of("nginx")
        with proxies.running("nginx", recipe, tmp_path / "nginx", keyturn=service.port, app=app) as nginx:
            browser = signed_in(nginx.port)
            assert b"with the role user" in browser.get(nginx.port, "/").body
            assert Browser().get(nginx.port, "/", ("X-Auth-Subject", "eve")).status == 401


def test_the_middleware_is_that_of_the_page() -> None:
    assert (EXAMPLES / "flask-web" / "refresh_on_the_way.py").read_text(encoding="utf-8") == blocks()[2]
