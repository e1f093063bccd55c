"""The site of the docs in a real browser: people of all senses can use it, and it works without a network."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import axe
from tests.browser import MISSING, visitor

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PYTHON = ROOT / ".venv-docs" / "bin" / "python"
WHY = MISSING or ("" if PYTHON.exists() else "no .venv-docs (python3 dev.py docs)")

pytestmark = pytest.mark.skipif(bool(WHY), reason=WHY)

PAGES = "index", "clients", "api", "comparison", "revocation"
PHONE, DESKTOP = (390, 844), (1280, 860)
LOOKS = [(width, scheme) for width in (PHONE, DESKTOP) for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the pages of docs/, built anew."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [PYTHON, "-m", "tools.site", folder], check=False, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert built.returncode == 0, built.stderr
    return folder / "docs"


@asynccontextmanager
async def seen(browser: Browser, url: str, size: tuple[int, int], scheme: str) -> AsyncIterator[tuple[Page, list[str]]]:
    """A page as a visitor sees it, and what went wrong: lines on the console, and requests that leave the folder."""
    options = {"viewport": {"width": size[0], "height": size[1]}, "color_scheme": scheme}
    async with visitor(browser, **options) as context:
        page = await context.new_page()
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text))
        page.on("request", lambda asked: wrong.append(asked.url) if asked.url.startswith("http") else None)
        page.on("requestfailed", lambda asked: wrong.append(asked.url))
        await page.goto(url)
        yield page, wrong


@pytest.mark.skipif(bool(axe.MISSING), reason=axe.MISSING)
@pytest.mark.parametrize("name", PAGES)
async def test_axe_finds_nothing_on_the_site(browser: Browser, site: Path, name: str) -> None:
    for size, scheme in (LOOKS[0], LOOKS[-1]):  # each width and each scheme once
        async with seen(browser, (site / f"{name}.html").as_uri(), size, scheme) as (page, _):
            # The operations of the API are of one form, so a few are enough.
            await page.evaluate(
                "[...document.querySelectorAll('section section')].slice(15).forEach(one => one.remove())"
            )
            assert await axe.violations(page) == [], (size, scheme)


@pytest.mark.parametrize("name", PAGES)
async def test_the_site_fits_the_window_shows_its_style_and_asks_no_network(
    browser: Browser, site: Path, name: str
) -> None:
    grounds = set()
    for size, scheme in LOOKS:
        async with seen(browser, (site / f"{name}.html").as_uri(), size, scheme) as (page, wrong):
            assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (size, scheme)
            grounds.add(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert wrong == []
    assert len(grounds) == 2  # light and dark


async def test_the_search_finds_a_page_without_a_server(browser: Browser, site: Path) -> None:
    async with seen(browser, (site / "index.html").as_uri(), DESKTOP, "light") as (page, wrong):
        await page.get_by_role("textbox", name="Search").fill("simplejwt")
        await page.keyboard.press("Enter")
        await page.get_by_role("main").get_by_role("link", name="From Django simplejwt").first.wait_for()
        # Chromium keeps a script from reading files, so a hit is shown without its lines.
        assert [line for line in wrong if line.startswith("http")] == []


@pytest.mark.parametrize(
    ("word", "title"),
    [("429", "Clients and services"), ("CORS", "Web apps"), ("KEYTURN_ALLOWED_ORIGINS", "Web apps")],
)
async def test_the_search_finds_a_status_and_a_setting_by_its_name(
    browser: Browser, site: Path, word: str, title: str
) -> None:
    async with seen(browser, f"{(site.parent / 'search.html').as_uri()}?q={word}", DESKTOP, "light") as (page, _):
        await page.get_by_role("main").get_by_role("link", name=title).first.wait_for()


def test_every_drawing_is_drawn(site: Path) -> None:
    drawings = {page.stem: n for page in DOCS.glob("*.md") if (n := page.read_text("utf-8").count("```mermaid"))}
    assert drawings == {
        name: (site / f"{name}.html").read_text("utf-8").count('class="drawing" tabindex="0"><svg') for name in drawings
    }
