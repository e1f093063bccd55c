"""The start page and the reference in a real browser: people of all senses can use them, and they ask no other host."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import axe
from tests.browser import MISSING, visitor
from tests.conftest import SECRET
from tests.service import Service

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

PHONE, DESKTOP = (390, 844), (1280, 860)
LOOKS = [(width, scheme) for width in (PHONE, DESKTOP) for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def service(sqlite_template: Path, logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    database = tmp_path_factory.mktemp("pages") / "keyturn.db"
    database.write_bytes(sqlite_template.read_bytes())
    environment = {
        "KEYTURN_DATABASE_URL": f"sqlite+aiosqlite:///{database}",
        "KEYTURN_SECRET": SECRET,
        "KEYTURN_ISSUER": "http://127.0.0.1:8000",
        "KEYTURN_REDIS_URL": "none",
    }
    with Service.start(environment, logs=logs) as service:
        yield service


@asynccontextmanager
async def seen(
    browser: Browser, url: str, size: tuple[int, int], scheme: str, *, bypass_csp: bool = False
) -> AsyncIterator[tuple[Page, list[str]]]:
    """A page as a visitor sees it, and what went wrong: lines on the console, and requests to other hosts."""
    options = {"viewport": {"width": size[0], "height": size[1]}, "color_scheme": scheme, "bypass_csp": bypass_csp}
    async with visitor(browser, **options) as context:
        page = await context.new_page()
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text))
        page.on("request", lambda request: wrong.append(request.url) if not _own(request.url, url) else None)
        page.on("requestfailed", lambda request: wrong.append(request.url))
        await page.goto(url)
        yield page, wrong


def _own(asked: str, url: str) -> bool:
    return asked.startswith(("data:", url.split("/", 3)[0] + "//" + url.split("/", 3)[2] + "/"))


@pytest.mark.skipif(bool(axe.MISSING), reason=axe.MISSING)
@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_axe_finds_nothing_on_the_pages(browser: Browser, service: Service, path: str) -> None:
    for size, scheme in LOOKS:
        async with seen(browser, service.url + path, size, scheme, bypass_csp=True) as (page, _):
            if (size, scheme) != LOOKS[0]:  # one look at the whole page is enough: the operations are all of one form
                await page.evaluate("[...document.querySelectorAll('article')].slice(8).forEach(one => one.remove())")
                await page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
            assert await axe.violations(page) == [], (size, scheme)


@pytest.mark.parametrize("path", ["/", "/docs", "/docs#refresh"])
async def test_the_pages_fit_the_window_show_their_style_and_ask_no_other_host(
    browser: Browser, service: Service, path: str
) -> None:
    grounds = set()
    for size, scheme in LOOKS:
        async with seen(browser, service.url + path, size, scheme) as (page, wrong):
            assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (size, scheme)
            grounds.add(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert wrong == []
    assert len(grounds) == 2  # light and dark, so the policy let the style in


async def test_the_policy_keeps_a_script_out(browser: Browser, service: Service) -> None:
    async with seen(browser, service.url + "/docs", DESKTOP, "light") as (page, wrong):
        await page.evaluate(
            "document.body.append(Object.assign(document.createElement('script'), { textContent: 'window.ran = 1' }))"
        )
        assert await page.evaluate("window.ran") is None
        assert any("Content Security Policy" in line for line in wrong)


async def test_a_link_of_the_reference_leads_to_its_operation(browser: Browser, service: Service) -> None:
    async with seen(browser, service.url + "/", DESKTOP, "light") as (page, _):
        await page.get_by_role("link", name="API reference").click()
        await page.get_by_role("navigation").get_by_role("link", name="Refresh", exact=True).click()
        heading = page.get_by_role("heading", name="Refresh", exact=True)
        assert page.url.endswith("/docs#refresh")
        assert await heading.evaluate("one => { const y = one.getBoundingClientRect().top; return y >= 0 && y < 120 }")


async def test_on_a_phone_the_list_of_operations_comes_first_and_every_part_has_a_link_back_to_it(
    browser: Browser, service: Service
) -> None:
    async with seen(browser, service.url + "/docs", PHONE, "light") as (page, _):
        operations = page.get_by_role("navigation").get_by_role("link", name="Refresh", exact=True)
        assert await operations.evaluate("one => one.getBoundingClientRect().top < innerHeight")
        await operations.click()
        heading = page.get_by_role("heading", name="Refresh", exact=True)
        assert await heading.evaluate("one => { const y = one.getBoundingClientRect().top; return y > 55 && y < 160 }")
        await page.get_by_role("link", name="All operations").click()
        assert await operations.evaluate("one => one.getBoundingClientRect().top > 0")
        assert await operations.evaluate("one => one.getBoundingClientRect().top < innerHeight")
