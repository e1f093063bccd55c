"""The example web application (examples/web) in a real browser: as its visitors see it, and what their browsers keep.

Each visitor reaches the application through tests/front.py, which notes cookies and answers. Over http, all is at
127.0.0.1, as `python3 dev.py demo` starts it; over https, the application is at https://a.test.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tests.browser import MISSING, cookie_rows, cookie_store, forget, visitor
from tests.conftest import PASSWORD
from tests.front import PAGE, Front, certificate
from tests.processes import EMAIL, keyturn_for_browsers, keyturn_settings, rotations, web_example
from tests.servers import free_port
from tests.service import Service

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

PLAIN = ("keyturn-access", "keyturn-refresh")
PROTECTED = ("__Host-Http-keyturn-access", "__Host-Http-keyturn-refresh")
"""The names of access and refresh cookie: over http on loopback, and over https."""

LONG = "TEST_LONG" in os.environ
"""Whether minutes are waited for, where the tests wait seconds otherwise."""


@dataclass
class Demo:
    """Keyturn, the web application, and the front through which browsers reach it."""

    browser: Browser
    front: Front
    keyturn: Service
    environment: dict[str, str]
    folder: Path
    logs: Path
    host: str
    lifetime: int

    @property
    def names(self) -> tuple[str, str]:
        return PROTECTED if self.front.scheme == "https" else PLAIN

    async def expire(self, page: Page) -> None:
        """Delete the access cookie, as the browser itself does when Max-Age has passed."""
        await forget(page, self.names[:1])

    def url(self, path: str = "/") -> str:
        return self.front.origin(self.host) + path

    @asynccontextmanager
    async def visited(self) -> AsyncIterator[Page]:
        """A page in a new visitor's browser, who has just signed in."""
        async with visitor(self.browser) as context:
            page = await context.new_page()
            await self.sign_in(page)
            yield page

    async def sign_in(self, page: Page, return_to: str = "/protected") -> None:
        await page.goto(self.url(f"/login?return_to={quote(return_to, safe='')}"))
        await page.get_by_label("E-mail address").fill(EMAIL)
        await page.get_by_label("Password").fill(PASSWORD)
        async with page.expect_navigation():
            await page.get_by_role("button", name="Sign in").click()

    async def log_out(self, page: Page) -> None:
        await page.goto(self.url("/session"))
        async with page.expect_navigation(url=self.url("/")):
            await page.get_by_role("button", name="Log out", exact=True).click()

    async def shown(self, page: Page, path: str = "/protected") -> str:
        """Load a page, and return its heading."""
        await page.goto(self.url(path))
        return await heading(page)

    def rotations(self) -> int:
        return rotations(self.folder)

    async def start_again(self) -> None:
        """Start Keyturn again after its end, on the same port and database."""
        self.keyturn = await asyncio.to_thread(Service.start, self.environment, logs=self.logs, port=self.keyturn.port)


async def heading(page: Page) -> str:
    return await page.get_by_role("heading", level=1).inner_text()


@asynccontextmanager
async def demo(
    folder: Path,
    logs: Path,
    browser: Browser,
    lifetime: int,
    *,
    https: bool = False,
) -> AsyncIterator[Demo]:
    """A new Keyturn with one user, and the web application before it."""
    host = "a.test" if https else "127.0.0.1"
    async with Front({}, certificate(folder, host) if https else None) as front:
        await front.start(free_port())
        port = free_port()
        origin = front.origin(host)
        issuer = origin if https else f"http://127.0.0.1:{port}"
        environment = keyturn_settings(folder, issuer, lifetime, allowed_origins=origin)
        async with (
            keyturn_for_browsers(environment, logs, port) as keyturn,
            web_example("application", keyturn.url, origin, logs) as web,
        ):
            front.routes[f"{host}/"] = web
            made = Demo(browser, front, keyturn, environment, folder, logs, host, lifetime)
            yield made
            made.keyturn.close()  # a test may have started it anew


@pytest.fixture(scope="module")
async def calm(browser: Browser, tmp_path_factory: pytest.TempPathFactory, logs: Path) -> AsyncIterator[Demo]:
    """A demo over https, whose access tokens outlive a test. A test that needs an expired one deletes the cookie."""
    async with demo(tmp_path_factory.mktemp("calm"), logs, browser, 30, https=True) as made:
        yield made


@pytest.fixture(scope="module")
async def quick(browser: Browser, tmp_path_factory: pytest.TempPathFactory, logs: Path) -> AsyncIterator[Demo]:
    """A demo on loopback, as `python3 dev.py demo` starts it, but its access tokens live for three seconds."""
    async with demo(tmp_path_factory.mktemp("quick"), logs, browser, 3) as made:
        yield made


# -- staying signed in


async def test_a_visitor_stays_signed_in_while_access_tokens_expire_in_real_time(quick: Demo) -> None:
    """Four lifetimes of an access token; with TEST_LONG, fifty."""
    lifetimes = 50 if LONG else 4
    async with quick.visited() as page:
        began, loads = time.monotonic(), 0
        while time.monotonic() - began < lifetimes * quick.lifetime:
            await asyncio.sleep(quick.lifetime * (0.4, 1.0, 1.3)[loads % 3])  # before, at and after the cookie's end
            assert await quick.shown(page) == "Protected page"
            loads += 1
        print(f"{lifetimes} lifetimes of {quick.lifetime} s: {loads} page loads, {quick.rotations()} rotations")
        assert lifetimes / 2 <= quick.rotations() <= loads


async def test_a_visitor_stays_signed_in_over_fifty_access_cookies(calm: Demo) -> None:
    async with calm.visited() as page:
        for load in range(1, 51):
            await calm.expire(page)
            assert await calm.shown(page) == "Protected page"
            assert calm.rotations() == load
        print(f"50 page loads, {calm.rotations()} rotations")


async def test_many_tabs_at_once_with_an_expired_access_cookie_need_one_rotation(calm: Demo) -> None:
    async with calm.visited() as page:
        tabs = [page, *[await page.context.new_page() for _ in range(4)]]
        for loads in range(1, 6):
            await calm.expire(page)
            assert await asyncio.gather(*(calm.shown(tab) for tab in tabs)) == ["Protected page"] * len(tabs)
            assert calm.rotations() == loads
        print(f"{5 * len(tabs)} page loads in {len(tabs)} tabs, {calm.rotations()} rotations")


# -- what a visitor does


async def test_the_back_button_after_a_refresh_leads_to_a_page_that_is_still_signed_in(calm: Demo) -> None:
    async with calm.visited() as page:
        assert await calm.shown(page, "/session") == "My session"
        await calm.expire(page)
        assert await calm.shown(page, "/") == "Welcome"  # refreshes on the way
        for expected in ("My session", "Protected page"):
            await page.go_back()
            assert await heading(page) == expected
        await page.reload()
        assert await heading(page) == "Protected page"
        assert calm.rotations() == 1


async def test_the_back_button_after_a_logout_shows_no_page_of_the_session(quick: Demo) -> None:
    """Over http: Chromium puts no page into its cache whose certificate nobody vouches for."""
    async with quick.visited() as page:
        await quick.log_out(page)
        await page.go_back()
        assert await heading(page) == "Sign in"
        await page.go_back()
        assert await heading(page) == "Sign in"


async def test_a_logout_in_one_tab_is_seen_in_the_other(calm: Demo) -> None:
    async with calm.visited() as page:
        other = await page.context.new_page()
        assert await calm.shown(other, "/session") == "My session"
        await calm.log_out(page)
        assert await cookie_rows(page) == []
        await other.reload()
        assert await heading(other) == "Sign in"


async def test_a_logout_everywhere_is_seen_in_another_browser_and_deletes_its_cookies(calm: Demo) -> None:
    async with calm.visited() as page, calm.visited() as elsewhere:
        await calm.shown(page, "/session")
        async with page.expect_navigation(url=calm.url("/")):
            await page.get_by_role("button", name="Log out everywhere").click()
        assert set(await cookie_store(elsewhere)) == set(calm.names)
        assert await calm.shown(elsewhere) == "Sign in"
        assert await cookie_rows(elsewhere) == []


async def test_no_address_leads_a_login_to_another_place(calm: Demo) -> None:
    other = calm.front.origin("b.test")
    async with visitor(calm.browser) as context:
        page = await context.new_page()
        for address in (other, other.partition(":")[2], "/\\b.test", "/\t/b.test", "javascript:alert(1)", "/%2fb.test"):
            await calm.sign_in(page, address)
            assert (await heading(page), page.url) == ("Welcome", calm.url("/")), address
            await context.clear_cookies()


# -- scripts and other sites


async def test_a_script_in_a_page_of_the_application_reads_no_cookie(calm: Demo) -> None:
    async with calm.visited() as page:
        assert set(await cookie_store(page)) == set(calm.names)
        assert await page.evaluate("document.cookie") == ""
        rows = await cookie_rows(page)
        assert {(row["httpOnly"], row["sameSite"], row["path"]) for row in rows} == {(True, "Strict", "/")}


@pytest.mark.parametrize(("host", "brings"), [("b.test", ()), ("a.test", PROTECTED)])
async def test_a_form_of_another_site_or_of_another_port_signs_nobody_out(
    calm: Demo, tmp_path: Path, host: str, brings: tuple[str, ...]
) -> None:
    """Another port is another origin of the same site and host, so the form brings the cookies."""
    form = """url => {
        document.body.innerHTML = `<form method="post" action="${url}"><input name="reach" value="all"></form>`;
        document.forms[0].submit();
    }"""
    async with Front({f"{host}/": PAGE}, certificate(tmp_path, host)) as other, calm.visited() as page:
        await other.start(free_port())
        before = await cookie_store(page)
        await page.goto(other.origin(host))
        async with page.expect_navigation():
            await page.evaluate(form, calm.url("/logout"))
        assert await heading(page) == "Refused"
        exchange = calm.front.to("/logout")[-1]
        assert (exchange.status, exchange.cookies, exchange.set_cookies) == (403, brings, ())
        assert await cookie_store(page) == before
        assert await calm.shown(page) == "Protected page"


# -- outages


async def test_an_outage_signs_nobody_out(calm: Demo) -> None:
    """Keyturn stands still, and goes on; then it is killed, and started again. With TEST_LONG, for a minute each.

    One visitor watches the page of the outage, which loads itself again. The other one comes back afterwards.
    """
    seconds = 60 if LONG else 6
    async with calm.visited() as page, calm.visited() as idle:
        for outage in ("stands still", "is killed"):
            await calm.expire(page)  # so that each load needs a refresh
            before, start = await cookie_store(page), len(calm.front.seen)
            if outage == "stands still":
                calm.keyturn.pause()
            else:
                await asyncio.to_thread(calm.keyturn.kill)
            assert await calm.shown(page) == "One moment"
            await asyncio.sleep(seconds)
            assert await cookie_store(page) == before
            assert await heading(page) == "One moment"
            loads = [each for each in calm.front.seen[start:] if each.path == "/protected"]
            assert {(load.status, load.set_cookies) for load in loads} == {(503, ())}
            if outage == "stands still":
                calm.keyturn.resume()
            else:
                await calm.start_again()
            await page.get_by_role("heading", name="Protected page").wait_for()
            assert await calm.shown(idle) == "Protected page"
            print(f"Keyturn {outage} for {seconds} s: {len(loads)} page loads are answered 503, then both go on")
