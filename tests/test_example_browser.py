"""examples/browser in a real Chromium, behind a real nginx with the published recipe."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import proxies
from tests.browser import MISSING, cookie_store, forget, visitor
from tests.example_servers import ACCOUNT, keyturn, uvicorn
from tests.servers import free_port
from tests.service import Service

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Iterator[Service]:
    with keyturn(tmp_path_factory.mktemp("browser"), logs) as service:
        yield service


@pytest.fixture(scope="module")
def site(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    app, folder = free_port(), tmp_path_factory.mktemp("nginx") / "run"
    with (
        uvicorn("browser", "app:app", app),
        proxies.running("nginx", proxies.recipe_of("nginx"), folder, keyturn=service.port, app=app) as nginx,
    ):
        yield f"http://127.0.0.1:{nginx.port}"


@pytest.fixture
async def page(site: str, browser: Browser) -> AsyncIterator[Page]:
    async with visitor(browser) as context:
        page = await context.new_page()
        await page.goto(f"{site}/")  # nginx leads to the login
        await said(page, "Ready.")
        yield page


async def said(page: Page, words: str) -> None:
    await page.get_by_role("status").filter(has_text=words).wait_for()


async def sign_in(page: Page, mode: str) -> None:
    await page.check(f"input[value={mode}]")
    await page.fill("#email", ACCOUNT["email"])
    await page.fill("#password", ACCOUNT["password"])
    await page.click("text=Sign in")
    await said(page, "Signed in.")


@pytest.mark.parametrize("mode", ["cookie", "split"])
async def test_a_visitor_signs_in_calls_the_service_and_logs_out(page: Page, mode: str) -> None:
    await page.check(f"input[value={mode}]")
    await page.click("#hello")
    await said(page, "You are not signed in.")
    await sign_in(page, mode)
    await page.click("#hello")
    await said(page, "hello ")
    await page.click("#logout")
    await said(page, "Logged out.")
    await page.click("#hello")
    await said(page, "You are not signed in.")


async def test_the_page_names_the_session_that_answered_and_a_logout_ends_those_of_both_modes(page: Page) -> None:
    await sign_in(page, "cookie")
    await page.check("input[value=split]")
    await page.click("#hello")
    await said(page, "(by the session of mode cookie)")
    await sign_in(page, "split")
    await page.click("#hello")
    await said(page, "(by the session of mode split)")
    await page.click("#logout")
    await said(page, "Logged out.")
    assert await cookie_store(page) == {}
    for mode in ("cookie", "split"):
        await page.check(f"input[value={mode}]")
        await page.click("#hello")
        await said(page, "You are not signed in.")


async def test_a_logout_that_keyturn_refuses_is_none(page: Page) -> None:
    await sign_in(page, "cookie")
    refusal = '{"error": "cross_site", "error_description": "Another page."}'
    await page.route("**/auth/logout", lambda route: route.fulfill(status=403, body=refusal))
    await page.click("#logout")
    await said(page, "Not logged out (403): Another page.")


async def test_with_cookies_no_script_sees_a_token_and_nginx_refreshes_on_the_way(page: Page) -> None:
    await sign_in(page, "cookie")
    assert await page.evaluate("document.cookie") == ""
    before = await cookie_store(page)
    assert len(before) == 2
    [access] = [name for name in before if name.endswith("access")]
    await forget(page, [access])
    await page.click("#hello")
    await said(page, "hello ")
    assert access in await cookie_store(page)


async def test_in_split_mode_a_page_that_loads_again_takes_up_its_session(page: Page) -> None:
    await sign_in(page, "split")
    [cookie] = (await cookie_store(page)).values()
    assert (cookie["path"], cookie["httpOnly"]) == ("/auth", True)
    await page.reload()
    await said(page, "Ready.")
    await page.check("input[value=split]")
    await page.click("#hello")
    await said(page, "hello ")


@pytest.mark.parametrize("mode", ["cookie", "split"])
async def test_an_outage_signs_nobody_out(page: Page, mode: str, service: Service, site: str) -> None:
    await sign_in(page, mode)
    service.pause()
    try:
        await page.click("#hello")
        await said(page, "No answer now (503). You are still signed in.")
    finally:
        service.resume()
    await page.click("#hello")
    await said(page, "hello ")
