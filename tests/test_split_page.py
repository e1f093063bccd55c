"""The samples for a page in mode `split`, as docs/web.md and docs/clients.md have them, in a real Chromium."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser import MISSING, visitor
from tests.example_servers import ACCOUNT, EXAMPLES, keyturn, running
from tests.servers import free_port
from tests.service import ROOT, Service

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)


def sample(page: str, language: str, words: str) -> str:
    """The only block of a page in this language with these words."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    [block] = [block for block in re.findall(rf"(?ms)^```{language}\n(.*?)^```$", text) if words in block]
    return str(block)


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def service(port: int, tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Iterator[Service]:
    origin = f"http://127.0.0.1:{port}"
    with keyturn(tmp_path_factory.mktemp("split"), logs, allowed_origins=origin) as service:
        yield service


@pytest.fixture(scope="module")
def site(port: int, service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The two pages, served as docs/web.md says."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "session.js").write_bytes((EXAMPLES / "web" / "one_page" / "session.js").read_bytes())
    page = sample("web.md", "html", "<title>Split</title>")
    assert page.count("http://127.0.0.1:8000") == 1
    (folder / "index.html").write_text(page.replace("http://127.0.0.1:8000", service.url))
    code = sample("clients.md", "js", "// As fetch, with the access token.")
    given, taken = (
        f"const KEYTURN = {json.dumps(service.url)};",
        """
        const spoil = () => (session = { ...session, access_token: session.access_token + "x" });
        globalThis.page = { login, logout, refresh, api, spoil, signedIn: () => session !== null };
        """,
    )
    (folder / "code.html").write_text(
        f"<!doctype html><title>The code</title><script type=module>{given}{code}{taken}</script>"
    )
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with running(command, port, folder=folder, environment={}) as site:
        yield site


@pytest.fixture
async def tab(browser: Browser) -> AsyncIterator[Page]:
    async with visitor(browser) as context:
        yield await context.new_page()


async def test_the_page_for_two_origins_signs_in_asks_takes_up_its_session_and_logs_out(tab: Page, site: str) -> None:
    async def said(words: str) -> None:
        await tab.get_by_role("status").filter(has_text=words).wait_for()

    await tab.goto(site)
    await said("signed out")
    await tab.get_by_label("E-mail").fill(ACCOUNT["email"])
    await tab.get_by_label("Password").fill("wrong")
    await tab.click("text=Sign in")
    await said("E-mail or password is wrong.")
    await tab.get_by_label("Password").fill(ACCOUNT["password"])
    await tab.click("text=Sign in")
    await said("signed in")
    await tab.click("#ask")
    await said(ACCOUNT["email"])
    await tab.reload()
    await said("resumed")
    await tab.click("#logout")
    await said("logged out")
    await tab.reload()
    await said("signed out")


@pytest.fixture
async def signed_in(tab: Page, site: str) -> Page:
    """A tab that has the code of docs/clients.md, signed in."""
    await tab.goto(f"{site}/code.html")
    await tab.evaluate("({ email, password }) => page.login(email, password)", ACCOUNT)
    return tab


async def test_a_page_with_the_code_refreshes_once_for_calls_at_the_same_time(
    signed_in: Page, service: Service
) -> None:
    paths: list[str] = []
    signed_in.on("requestfinished", lambda request: paths.append(f"{request.method} {request.url}"))
    calls = """async (url) => {
        page.spoil();
        const answers = await Promise.all([1, 2, 3].map(() => page.api(`${url}/auth/me`, { headers: new Headers() })));
        return answers.map((answer) => answer.status);
    }"""
    assert await signed_in.evaluate(calls, service.url) == [200, 200, 200]
    assert paths.count(f"POST {service.url}/auth/refresh") == 1


async def test_a_page_with_the_code_that_loads_again_takes_up_its_session_and_logs_out(signed_in: Page) -> None:
    await signed_in.reload()
    await signed_in.wait_for_function("page.signedIn()")
    await signed_in.evaluate("page.logout()")
    assert await signed_in.evaluate("page.signedIn()") is False
    assert await signed_in.evaluate("page.refresh().then(() => page.signedIn())") is False


async def test_a_page_with_the_code_sends_no_token_where_nobody_is_signed_in(
    tab: Page, site: str, service: Service
) -> None:
    await tab.goto(f"{site}/code.html")
    async with tab.expect_request(f"{service.url}/auth/me") as sent:
        assert (
            await tab.evaluate("(url) => page.api(`${url}/auth/me`).then(({ status }) => status)", service.url) == 401
        )
    assert "authorization" not in await (await sent.value).all_headers()


async def test_a_page_with_the_code_keeps_its_session_in_an_outage(signed_in: Page, service: Service) -> None:
    await signed_in.route("**/auth/refresh", lambda route: route.fulfill(status=503, headers=away(signed_in.url)))
    words = await signed_in.evaluate("page.refresh().then(() => 'a verdict', ({ message }) => message)")
    assert words == "try again in 7 s: 503"
    assert await signed_in.evaluate("page.signedIn()") is True


def away(url: str) -> dict[str, str]:
    """The fields of a 503 that a page of this address may read."""
    origin = "/".join(url.split("/")[:3])
    return {
        "Retry-After": "7",
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Credentials": "true",
        "Access-Control-Expose-Headers": "Retry-After",
    }


async def test_a_page_reads_why_a_call_was_refused(signed_in: Page, service: Service) -> None:
    asked = "(url) => fetch(`${url}/auth/me`).then(({ headers }) => headers.get('WWW-Authenticate'))"
    assert await signed_in.evaluate(asked, service.url) == "Bearer"


async def test_a_page_with_the_code_refreshes_not_where_the_password_is_asked_for(
    signed_in: Page, service: Service, site: str
) -> None:
    fields = away(signed_in.url) | {
        "WWW-Authenticate": 'Bearer error="insufficient_user_authentication", max_age="300"',
        "Access-Control-Expose-Headers": "WWW-Authenticate",
    }
    paths: list[str] = []
    signed_in.on("request", lambda request: paths.append(request.url))
    await signed_in.route("**/orders", lambda route: route.fulfill(status=401, headers=fields))
    assert await signed_in.evaluate("(url) => page.api(url).then(({ status }) => status)", f"{site}/orders") == 401
    assert f"{service.url}/auth/refresh" not in paths
