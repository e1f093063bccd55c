"""Chromium without a window, driven by playwright, for the tests of cookies, pages and scripts."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.cookies import is_device

if TYPE_CHECKING:
    from playwright.async_api import Browser, BrowserContext, Page, Playwright

CHROMIUM = shutil.which("chromium")

MISSING = (
    "no chromium on PATH (Debian: apt-get install chromium)"
    if CHROMIUM is None
    else "no playwright (requirements.browser.lock)"
    if find_spec("playwright") is None
    else ""
)
"""Why no browser can be driven here; empty if one can."""

FLAGS = (
    "--no-sandbox",  # the sandbox refuses to run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Names below .test are sites of their own for the browser: no public suffix list has them (RFC 2606 section 2).
    "--host-resolver-rules=MAP *.test 127.0.0.1",
)


@asynccontextmanager
async def driver() -> AsyncIterator[Playwright]:
    """The process that drives browsers. Needs that `MISSING` is empty."""
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        yield playwright


@asynccontextmanager
async def chromium(playwright: Playwright) -> AsyncIterator[Browser]:
    """A running browser. Each `new_context` of it is a visitor with a cookie store of its own."""
    browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
    try:
        yield browser
    finally:
        await browser.close()


@asynccontextmanager
async def visitor(browser: Browser, **options: Any) -> AsyncIterator[BrowserContext]:
    """A visitor with an empty cookie store, who takes certificates that nobody vouches for."""
    context = await browser.new_context(ignore_https_errors=True, **options)
    context.set_default_timeout(15_000)
    try:
        yield context
    finally:
        await context.close()


@asynccontextmanager
async def profile(playwright: Playwright, folder: Path) -> AsyncIterator[BrowserContext]:
    """A browser whose profile is kept in a folder. The next start with the folder is a restart of this browser."""
    context = await playwright.chromium.launch_persistent_context(
        folder, executable_path=CHROMIUM, args=FLAGS, ignore_https_errors=True
    )
    context.set_default_timeout(15_000)
    try:
        yield context
    finally:
        await context.close()


async def cookie_store(page: Page, *names: str) -> dict[str, dict[str, Any]]:
    """The cookies that the browser keeps of all sites, by name, read through its debugging protocol.

    With `names`, only those. No test keeps two cookies of one name without asking for all rows: see `cookie_rows`.
    """
    return {row["name"]: row for row in await cookie_rows(page) if not names or row["name"] in names}


async def cookie_rows(page: Page, *, device: bool = False) -> list[dict[str, Any]]:
    """Every cookie that the browser keeps, of all sites, also those that no script may read.

    The two about the device are left out, or stand alone if `device` is true.
    """
    session = await page.context.new_cdp_session(page)
    try:
        rows: list[dict[str, Any]] = (await session.send("Network.getAllCookies"))["cookies"]
        return [row for row in rows if is_device(row["name"]) == device]
    finally:
        await session.detach()


async def forget(page: Page, names: Iterable[str]) -> None:
    """Delete cookies from the browser's store, as if their Max-Age had passed."""
    for name in names:
        await page.context.clear_cookies(name=name)


async def call(page: Page, url: str, method: str = "POST", body: Any = None, **options: Any) -> tuple[int, Any]:
    """A `fetch` by a script of the page: status and JSON of the answer. Status 0: the browser refused the script.

    Options are those of `fetch` (`credentials`, `mode`, `headers`).
    """
    script = """async ([url, method, body, options]) => {
        const init = { method, ...options };
        if (body !== null) {
            init.body = JSON.stringify(body);
            init.headers = { "Content-Type": "application/json", ...options.headers };
        }
        try {
            const answer = await fetch(url, init);
            const text = await answer.text();
            try { return [answer.status, JSON.parse(text)]; } catch { return [answer.status, text]; }
        } catch (error) { return [0, String(error)]; }
    }"""
    status, content = await page.evaluate(script, [url, method, body, options])
    return status, content
