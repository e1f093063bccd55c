"""Cookies in a real browser, over https: which address gets which, and what deletes, keeps or protects them.

The pages are served by tests/front.py, at hosts that Chromium takes for sites of their own: `a.test` with Keyturn below
`/auth`, its neighbour `sub.a.test` of the same site, and `b.test`, another site.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser import MISSING, call, cookie_rows, cookie_store, profile, visitor
from tests.conftest import NEW_PASSWORD, PASSWORD
from tests.front import PAGE, Front, certificate
from tests.processes import ACCOUNT, keyturn_for_browsers, keyturn_settings
from tests.servers import free_port

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page, Playwright

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

ACCESS, REFRESH, SPLIT = "__Host-Http-keyturn-access", "__Host-Http-keyturn-refresh", "__Secure-Http-keyturn-refresh"
DEVICE, KNOWN = "__Host-Http-keyturn-device", "__Secure-Http-keyturn-known"
NAMES = {"cookie": {ACCESS, REFRESH}, "split": {SPLIT}}
WINDOW = 10


@dataclass
class Site:
    """Keyturn at https://a.test, and other hosts beside it."""

    front: Front
    browser: Browser

    def url(self, path: str = "/", host: str = "a.test") -> str:
        return self.front.origin(host) + path

    @asynccontextmanager
    async def visited(self, mode: str | None = None, **login: Any) -> AsyncIterator[Page]:
        """A page of a.test in a new visitor's browser, signed in if a mode is named."""
        async with visitor(self.browser) as context:
            page = await context.new_page()
            await page.goto(self.url())
            if mode is not None:
                await self.sign_in(page, mode, **login)
            yield page

    async def sign_in(self, page: Page, mode: str, **login: Any) -> dict[str, Any]:
        status, body = await call(page, self.url("/auth/login"), body={**ACCOUNT, "mode": mode, **login})
        assert status == 200, body
        content: dict[str, Any] = body
        return content

    async def refresh(self, page: Page) -> int:
        status, _ = await call(page, self.url("/auth/refresh"))
        return status

    async def lives(self, page: Page) -> bool:
        """Whether the cookies of mode "cookie" still prove a session."""
        status, _ = await call(page, self.url("/auth/me"), "GET")
        return status == 200


@asynccontextmanager
async def served(folder: Path, logs: Path, browser: Browser, **settings: str) -> AsyncIterator[Site]:
    """A new Keyturn with one user, and its front."""
    async with Front({}, certificate(folder, "a.test", "*.a.test", "b.test")) as front:
        await front.start(free_port())
        environment = keyturn_settings(folder, front.origin("a.test"), 3 * WINDOW, **settings)
        async with keyturn_for_browsers(environment, logs) as service:
            pages = {f"{host}/": PAGE for host in ("a.test", "sub.a.test", "b.test")}
            front.routes.update({**pages, "a.test/auth/": service.port})
            yield Site(front, browser)


@pytest.fixture(scope="module")
async def site(browser: Browser, tmp_path_factory: pytest.TempPathFactory, logs: Path) -> AsyncIterator[Site]:
    async with served(tmp_path_factory.mktemp("site"), logs, browser) as site:
        yield site


# -- which address gets which cookie

PATHS = ("/", "/orders/1", "/auth/refresh", "/auth/logout", "/auth/me", "/authentic")


async def sent(site: Site, page: Page, start: str, urls: list[str]) -> dict[str, set[str]]:
    """The cookies that a script of the page `start` sends to each URL, as the servers received them."""
    await page.goto(start)
    got = {}
    for url in urls:
        before = len(site.front.seen)
        await call(page, url, "GET", mode="no-cors", credentials="include")
        (exchange,) = (each for each in site.front.seen[before:] if each.path != "/favicon.ico")
        assert site.url(exchange.path, exchange.host) == url
        got[url] = set(exchange.cookies)
    return got


async def by_link(site: Site, page: Page) -> set[str]:
    """The cookies that a.test gets when the visitor follows a link on a page of b.test."""
    await page.goto(site.url(host="b.test"))
    async with page.expect_navigation():
        await page.evaluate("url => { location.href = url }", site.url("/auth/by-link"))
    return set(site.front.to("/auth/by-link")[-1].cookies)


@pytest.mark.parametrize("mode", ["cookie", "split"])
async def test_a_browser_sends_each_address_the_cookies_meant_for_it_and_no_other_address_any(
    site: Site, mode: str
) -> None:
    """Mode "cookie": the whole host. Mode "split": below /auth alone. Never another host, nor another site's page."""
    async with site.visited(mode) as page:
        own = [site.url(path) for path in PATHS]
        others = [site.url(path, host) for host in ("sub.a.test", "b.test") for path in ("/", "/auth/refresh")]
        got = await sent(site, page, site.url(), own + others)
        for url, cookies in got.items():
            expected = NAMES[mode] if url in own and (mode == "cookie" or "/auth/" in url) else set()
            assert cookies == expected, url
            print(f"{mode:6} {url:45} {' '.join(sorted(cookies)) or '-'}")
        assert not any((await sent(site, page, site.url(host="b.test"), own)).values())
        assert await by_link(site, page) == set()


@pytest.mark.parametrize("mode", ["cookie", "split"])
async def test_the_cookies_about_the_device_go_to_their_host_alone_and_outlive_a_logout_and_no_script_reads_them(
    site: Site, mode: str
) -> None:
    async with site.visited(mode) as page:
        rows = await cookie_rows(page, device=True)
        found = {row["name"]: (row["path"], row["httpOnly"], row["secure"]) for row in rows}
        assert found == {DEVICE: ("/", True, True), KNOWN: ("/auth", True, True)}
        for url, came in (
            (site.url("/orders"), (DEVICE,)),
            (site.url("/auth/logout"), (DEVICE, KNOWN)),
            (site.url("/", "sub.a.test"), ()),
            (site.url("/auth/logout", "sub.a.test"), ()),
            (site.url("/auth/logout", "b.test"), ()),
        ):
            await page.goto(site.url())
            before = len(site.front.seen)
            await call(page, url, "GET", mode="no-cors", credentials="include")
            assert {each.device for each in site.front.seen[before:] if each.path != "/favicon.ico"} == {came}, url
        assert await page.evaluate("document.cookie") == ""
        await site.sign_in(page, mode)
        status, _ = await call(page, site.url("/auth/logout"))
        assert status == 204
        assert await cookie_rows(page, device=True) == rows
        await site.sign_in(page, mode)
        assert await cookie_rows(page, device=True) == rows


async def test_with_a_domain_the_neighbours_of_the_host_get_the_cookies_too(
    browser: Browser, tmp_path: Path, logs: Path
) -> None:
    """And with SameSite=Lax, Keyturn's host gets them from a link of another site, but not from its scripts."""
    names = {"__Secure-keyturn-access", "__Secure-keyturn-refresh"}
    async with (
        served(tmp_path, logs, browser, cookie_domain="a.test", cookie_same_site="lax") as site,
        site.visited("cookie") as page,
    ):
        urls = [site.url(path, host) for host in ("a.test", "sub.a.test") for path in ("/", "/auth/refresh")]
        other = site.url(host="b.test")
        assert await sent(site, page, site.url(), [*urls, other]) == {**dict.fromkeys(urls, names), other: set()}
        assert not any((await sent(site, page, other, urls)).values())
        assert await by_link(site, page) == names
        await page.goto(site.url())
        status, _ = await call(page, site.url("/auth/logout"))
        assert (status, await cookie_rows(page)) == (204, [])


# -- scripts


@pytest.mark.parametrize("mode", ["cookie", "split"])
async def test_a_script_of_the_page_can_read_no_cookie(site: Site, mode: str) -> None:
    async with site.visited(mode) as page:
        await page.goto(site.url("/auth/"))
        store = await cookie_store(page)
        assert set(store) == NAMES[mode]
        for row in store.values():
            assert (row["httpOnly"], row["secure"], row["sameSite"]) == (True, True, "Strict")
            assert row["domain"] == "a.test"  # without a dot before it: no other host
            assert row["path"] == ("/" if mode == "cookie" else "/auth")
            assert row["size"] < 4096
        assert await page.evaluate("document.cookie") == ""
        assert await page.evaluate("cookieStore.getAll().then(all => all.length)") == 0


async def test_neither_a_script_nor_a_neighbour_can_put_its_own_cookie_in_the_place_of_ours(site: Site) -> None:
    """The browser refuses such cookies in mode "cookie", by the prefix of their names. Keyturn passes them over in
    mode "split", where the browser takes them."""
    toss = "([name, more]) => { document.cookie = `${name}=junk; Secure; ${more}` }"
    async with site.visited("cookie") as page:
        before = await cookie_store(page)
        for host, more in (("a.test", "Path=/"), ("sub.a.test", "Path=/; Domain=a.test")):
            await page.goto(site.url(host=host))
            for name in (ACCESS, REFRESH):
                await page.evaluate(toss, [name, more])
        assert await cookie_store(page) == before
    async with site.visited("split") as page:
        await page.goto(site.url(host="sub.a.test"))
        await page.evaluate(toss, [SPLIT, "Path=/auth; Domain=a.test"])
        await page.goto(site.url())
        await page.evaluate(toss, [SPLIT, "Path=/auth/refresh"])
        assert [row["name"] for row in await cookie_rows(page)] == [SPLIT] * 3
        assert await site.refresh(page) == 200


# -- other sites

FORM = """([url, text]) => {
    const form = document.createElement("form");
    Object.assign(form, { method: "POST", action: url });
    if (text !== null) {
        form.enctype = "text/plain";
        const field = document.createElement("input");
        Object.assign(field, { type: "hidden", name: text, value: "" });
        form.append(field);
    }
    document.body.append(form);
    form.submit();
}"""
"""Submits a form, as pages have always been able to send anywhere. Its body is empty, or the text and a `=`."""

FETCH = """([url, mode, body]) => fetch(url, { method: "POST", mode, body, credentials: "include" }).then(
    (answer) => [answer.status, answer.type], (error) => [0, String(error)]
)"""
"""Sends what a script may send anywhere without a preflight."""


@pytest.mark.parametrize(("host", "brings"), [("b.test", set()), ("sub.a.test", NAMES["cookie"])])
async def test_forms_and_scripts_of_other_sites_and_of_neighbours_are_refused_and_change_nothing(
    site: Site, host: str, brings: set[str]
) -> None:
    """A neighbour of the same site is the harder case: the browser sends it even cookies that are SameSite=Strict."""
    wanted = json.dumps({**ACCOUNT, "mode": "cookie", "current_password": PASSWORD, "new_password": NEW_PASSWORD})
    async with site.visited("cookie") as page:
        before = await cookie_store(page)
        for path in ("/auth/logout", "/auth/refresh", "/auth/password", "/auth/login"):
            start = len(site.front.seen)
            for body in (None, wanted):
                await page.goto(site.url(host=host))
                async with page.expect_navigation():
                    await page.evaluate(FORM, [site.url(path), body])
                await page.goto(site.url(host=host))
                for mode in ("cors", "no-cors"):
                    status, _ = await page.evaluate(FETCH, [site.url(path), mode, body])
                    assert status == 0  # the script reads nothing
            tried = [each for each in site.front.seen[start:] if each.path == path]
            print(f"{host:10} {path:15} {[(each.method, each.status) for each in tried]}")
            assert [each.method for each in tried] == ["POST"] * 6
            for each in tried:
                assert set(each.cookies) == brings
                assert each.status in {400, 401, 403, 415}
                assert each.set_cookies == ()
                assert "access-control-allow-origin" not in dict(each.answer)
            if brings and path != "/auth/login":
                assert [each.status for each in tried[:3]] == [403] * 3
            # A body of JSON needs a preflight first, which is refused.
            status, _ = await call(page, site.url(path), body={}, credentials="include")
            assert status == 0
            preflight = site.front.to(path)[-1]
            assert (preflight.method, "access-control-allow-origin" in dict(preflight.answer)) == ("OPTIONS", False)
        assert await cookie_store(page) == before
        await page.goto(site.url())
        assert await site.lives(page)
        assert await site.refresh(page) == 200


# -- deletion


@pytest.mark.parametrize("mode", ["cookie", "split"])
async def test_a_logout_with_nothing_but_the_cookies_deletes_them_from_the_browser(site: Site, mode: str) -> None:
    async with site.visited(mode) as page:
        assert set(await cookie_store(page)) == NAMES[mode]
        if mode == "cookie":
            await page.context.clear_cookies(name=ACCESS)  # it expires before its refresh cookie
        status, _ = await call(page, site.url("/auth/logout"))
        assert (status, await cookie_rows(page)) == (204, [])
        assert await site.refresh(page) == 400  # there is no cookie any more, so no refresh token
        assert set(site.front.to("/auth/logout")[-1].set_cookies) == {f"-{name}" for name in NAMES[mode]}


@pytest.mark.parametrize("mode", ["cookie", "split"])
async def test_a_refresh_that_is_refused_for_good_deletes_the_cookies_from_the_browser(site: Site, mode: str) -> None:
    async with site.visited(mode) as page, site.visited("cookie") as another:
        status, _ = await call(another, site.url("/auth/logout"), body={"scope": "all"})
        assert status == 204
        assert set(await cookie_store(page)) == NAMES[mode]
        assert await site.refresh(page) == 401
        assert await cookie_rows(page) == []


async def test_the_two_modes_live_side_by_side_and_each_logout_deletes_its_own_cookies(site: Site) -> None:
    async with site.visited("cookie") as page:
        await site.sign_in(page, "split")
        assert set(await cookie_store(page)) == NAMES["cookie"] | NAMES["split"]
        assert await site.refresh(page) == 400  # which of the two?
        for mode, left in (("split", NAMES["cookie"]), ("cookie", set())):
            status, _ = await call(page, site.url("/auth/refresh"), body={"mode": mode})
            assert status == 200
            status, _ = await call(page, site.url("/auth/logout"), body={"mode": mode})
            assert (status, set(await cookie_store(page))) == (204, left)


# -- the end of the browser


@pytest.mark.parametrize("remember", [True, False])
async def test_after_a_restart_of_the_browser_those_who_are_remembered_are_signed_in_and_no_others(
    site: Site, playwright: Playwright, tmp_path: Path, remember: bool
) -> None:
    async with profile(playwright, tmp_path) as context:
        page = await context.new_page()
        await page.goto(site.url())
        await site.sign_in(page, "cookie", remember=remember)
        assert await site.refresh(page) == 200  # a refresh remembers as the sign-in did
        before = await cookie_store(page)
        now = time.time()
        assert {name: row["session"] for name, row in before.items()} == {ACCESS: not remember, REFRESH: not remember}
        if remember:
            life = 3 * WINDOW * 1.1  # with the buffer for clocks that differ
            assert life - 5 < before[ACCESS]["expires"] - now <= life
            assert before[REFRESH]["expires"] - now == pytest.approx(7 * 86400 + 60, abs=5)
    async with profile(playwright, tmp_path) as context:
        page = await context.new_page()
        await page.goto(site.url())
        assert await cookie_store(page) == (before if remember else {})
        assert await site.lives(page) is remember


# -- answers that overtake each other


async def test_a_late_answer_of_an_older_refresh_signs_nobody_out(site: Site) -> None:
    """The browser is left with the older refresh token, which was rotated already. The next refresh is a retry."""
    async with site.visited("cookie") as page:
        held = site.front.hold("/auth/refresh")
        late = asyncio.create_task(site.refresh(page))
        await held.reached.wait()
        assert [await site.refresh(page) for _ in range(2)] == [200, 200]
        newest = await cookie_store(page)
        held.release()
        assert await late == 200
        stale = await cookie_store(page)
        assert stale[REFRESH]["value"] != newest[REFRESH]["value"]
        assert await site.refresh(page) == 200
        assert await site.lives(page)


async def test_a_late_answer_of_a_refresh_after_a_logout_brings_no_session_back_and_is_cleared_once(
    site: Site,
) -> None:
    async with site.visited("cookie") as page:
        held = site.front.hold("/auth/refresh")
        late = asyncio.create_task(site.refresh(page))
        await held.reached.wait()
        status, _ = await call(page, site.url("/auth/logout"))
        assert (status, await cookie_rows(page)) == (204, [])
        held.release()
        assert await late == 200
        assert set(await cookie_store(page)) == NAMES["cookie"]
        assert not await site.lives(page)
        assert await site.refresh(page) == 401
        assert await cookie_rows(page) == []
