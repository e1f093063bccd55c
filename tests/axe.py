"""axe-core, which finds what keeps people with other senses and tools from using a page."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.async_api import Page


def _script() -> Path | None:
    """axe's script: the file that TEST_AXE names, or the one inside of the package axe-playwright-python."""
    named = os.environ.get("TEST_AXE")
    package = find_spec("axe_playwright_python")
    if named is None and (package is None or package.origin is None):
        return None
    return Path(named) if named else Path(str(package and package.origin)).parent / "axe.min.js"


SCRIPT = _script()
MISSING = "" if SCRIPT else "no axe-core (pip install axe-playwright-python, or TEST_AXE=path of axe.min.js)"
"""Why axe can't run here; empty if it can."""


async def violations(page: Page) -> list[str]:
    """What axe finds wrong with the page as it stands: its rule, and the elements. Needs that `MISSING` is empty.

    The page must come from a context with `bypass_csp`, because its policy keeps out all scripts.
    """
    assert SCRIPT is not None
    await page.add_script_tag(path=SCRIPT)
    found = await page.evaluate("axe.run({ resultTypes: ['violations'] })")
    assert len(found["passes"]) > 5, "axe did not look at the page"
    return [f"{one['id']}: {node['html'][:200]}" for one in found["violations"] for node in one["nodes"]]
