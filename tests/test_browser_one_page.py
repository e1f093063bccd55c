"""The example one-page application (examples/web) in a real browser, in mode "split", on an origin of its own.

The page is at https://app.a.test and Keyturn at https://a.test: another origin of the same site, so that the browser
asks Keyturn first (CORS) and still sends a cookie that is SameSite=Strict.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser import MISSING, call, cookie_rows, cookie_store, visitor
from tests.conftest import PASSWORD
from tests.front import Front, certificate
from tests.processes import EMAIL, keyturn_for_browsers, keyturn_settings, rotations, web_example
from tests.servers import free_port

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

SPLIT = "__Secure-Http-keyturn-refresh"
LIFETIME = 6


@dataclass
class OnePage:
    """The application, Keyturn, and the front of both."""

    browser: Browser
    front: Front
    folder: Path

    @property
    def origin(self) -> str:
        return self.front.origin("app.a.test")

    @property
    def keyturn(self) -> str:
        return self.front.origin("a.test")

    @asynccontextmanager
    async def visited(self) -> AsyncIterator[tuple[Page, dict[str, Any]]]:
        """A tab of a new visitor who has just signed in, and the body of Keyturn's answer to the sign-in."""
        async with visitor(self.browser) as context:
            page = await context.new_page()
            await page.goto(self.origin)
            await page.get_by_label("E-mail address").fill(EMAIL)
            await page.get_by_label("Password").fill(PASSWORD)
            async with page.expect_response(f"{self.keyturn}/auth/login") as answer:
                await page.get_by_role("button", name="Sign in").click()
            await signed_in(page)
            yield page, await (await answer.value).json()

    async def another_tab(self, page: Page) -> Page:
        tab = await page.context.new_page()
        await tab.goto(self.origin)
        await signed_in(tab)
        return tab

    def rotations(self) -> int:
        return rotations(self.folder)


async def signed_in(page: Page) -> None:
    await page.get_by_role("heading", name="Signed in").wait_for()


async def session_of(page: Page) -> str:
    return await page.locator("#session").inner_text()


@pytest.fixture(scope="module")
async def app(browser: Browser, tmp_path_factory: pytest.TempPathFactory, logs: Path) -> AsyncIterator[OnePage]:
    folder = tmp_path_factory.mktemp("one-page")
    async with Front({}, certificate(folder, "a.test", "*.a.test")) as front:
        await front.start(free_port())
        page, keyturn = front.origin("app.a.test"), front.origin("a.test")
        async with (
            keyturn_for_browsers(keyturn_settings(folder, keyturn, LIFETIME, allowed_origins=page), logs) as service,
            web_example("one_page", keyturn, page, logs) as port,
        ):
            front.routes.update({"app.a.test/": port, "a.test/auth/": service.port})
            yield OnePage(browser, front, folder)


async def test_the_browser_asks_before_it_signs_in_and_keeps_the_refresh_token_in_a_cookie(app: OnePage) -> None:
    async with app.visited() as (page, body):
        asked, signed = app.front.to("/auth/login")[-2:]
        assert (asked.method, asked.status, signed.method, signed.status) == ("OPTIONS", 204, "POST", 200)
        for exchange in (asked, signed):
            fields = dict(exchange.answer)
            assert fields["access-control-allow-origin"] == app.origin
            assert fields["access-control-allow-credentials"] == "true"
            assert "Origin" in fields["vary"]
        assert signed.set_cookies == (f"+{SPLIT}",)
        assert body.keys() >= {"access_token", "expires_in", "session_id"}
        assert "refresh_token" not in body
        assert set(await cookie_store(page)) == {SPLIT}
        assert await session_of(page) == body["session_id"]
        # Keyturn alone gets the cookie, and only where it refreshes or ends a session, or says who the user is.
        await page.reload()
        await signed_in(page)
        brought = {(e.host, e.path) for e in app.front.seen if SPLIT in e.cookies}
        assert {host for host, _ in brought} == {"a.test"}
        assert await session_of(page) == body["session_id"]
        assert app.rotations() >= 1


async def test_no_token_is_in_any_storage_of_the_page(app: OnePage) -> None:
    async with app.visited() as (page, body):
        await page.reload()  # whatever the page keeps, it has now
        await signed_in(page)
        kept = await page.evaluate(
            """async () => ({
                cookie: document.cookie, name: window.name, history: history.state, address: location.href,
                local: { ...localStorage }, session: { ...sessionStorage },
                databases: await indexedDB.databases(), caches: await caches.keys(),
                workers: (await navigator.serviceWorker.getRegistrations()).length,
                markup: document.documentElement.outerHTML.includes("eyJ"),
            })"""
        )
        assert kept.pop("address") == f"{app.origin}/"
        assert not any(kept.values()), kept
        assert body["access_token"] not in json.dumps(await page.context.storage_state())


async def test_an_open_tab_stays_signed_in_by_refreshing_before_its_access_token_expires(app: OnePage) -> None:
    async with app.visited() as (page, body):
        await page.get_by_text("once", exact=True).wait_for()
        assert app.rotations() == 1
        assert [e.status for e in app.front.to("/auth/refresh") if e.method == "POST"][-1] == 200
        assert await session_of(page) == body["session_id"]


async def test_two_tabs_that_refresh_at_once_keep_one_session(app: OnePage) -> None:
    """First by themselves, past the lock by which the application lets one tab at a time refresh. Then by it."""
    async with app.visited() as (page, body):
        other, session_id = await app.another_tab(page), body["session_id"]
        for _ in range(5):
            before = app.rotations()
            ask = [
                call(tab, f"{app.keyturn}/auth/refresh", body={"mode": "split"}, credentials="include")
                for tab in (page, other)
            ]
            (first, one), (second, two) = await asyncio.gather(*ask)
            assert (first, second, one["session_id"], two["session_id"]) == (200, 200, session_id, session_id)
            assert app.rotations() > before
        await asyncio.gather(page.reload(), other.reload())
        for tab in (page, other):
            await signed_in(tab)
            assert await session_of(tab) == session_id
        print(f"12 refreshes of two tabs, {app.rotations()} rotations, one session")


async def test_a_logout_in_one_tab_signs_the_other_tab_out_and_deletes_the_cookie(app: OnePage) -> None:
    async with app.visited() as (page, _):
        other = await app.another_tab(page)
        await page.get_by_role("button", name="Log out").click()
        await other.get_by_text("You logged out in another tab.").wait_for()
        await page.get_by_role("heading", name="Sign in").wait_for()
        assert await cookie_rows(page) == []
        await other.reload()
        await other.get_by_role("heading", name="Sign in").wait_for()


async def test_an_outage_is_shown_and_signs_no_open_tab_out(app: OnePage) -> None:
    async with app.visited() as (page, body):
        port = app.front.routes["a.test/auth/"]
        app.front.routes["a.test/auth/"] = free_port()  # nobody listens there
        await page.get_by_text("You are still signed in, and the page goes on trying.").wait_for()
        app.front.routes["a.test/auth/"] = port
        await page.locator("#away").wait_for(state="hidden")
        assert await session_of(page) == body["session_id"]
        assert set(await cookie_store(page)) == {SPLIT}


async def test_a_page_of_an_origin_that_is_not_listed_reads_no_answer_and_changes_nothing(app: OnePage) -> None:
    async with app.visited() as (page, body):
        app.front.routes["other.a.test/"] = "<!doctype html><title>other</title>"
        foreign = await page.context.new_page()
        await foreign.goto(app.front.origin("other.a.test"))
        for path in ("/auth/refresh", "/auth/logout", "/auth/me"):
            status, said = await call(foreign, f"{app.keyturn}{path}", body={}, credentials="include")
            assert (status, said) == (0, "TypeError: Failed to fetch")
            refused = app.front.to(path)[-1]
            assert (refused.method, refused.status) == ("OPTIONS", 403)
            assert "access-control-allow-origin" not in dict(refused.answer)
        status, _ = await call(page, f"{app.keyturn}/auth/refresh", body={"mode": "split"}, credentials="include")
        assert status == 200
        assert await session_of(page) == body["session_id"]
