"""The pages of the docs that the source makes: settings, commands, the API."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.settings import Settings
from app.settings_sources import PREFIX
from tools.site.api import api
from tools.site.command_line import command_line
from tools.site.configuration import configuration

DOCS = Path(__file__).parent.parent / "docs"
PAGES: dict[str, Callable[[], str]] = {
    "api.md": api,
    "command-line.md": command_line,
    "configuration.md": configuration,
}


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_what_the_source_says(name) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name](), "python -m tests.test_generated_pages"


def test_every_setting_is_on_the_page_of_settings_once() -> None:
    page = configuration()
    for name in Settings.model_fields:
        assert page.count(f"| `{PREFIX}{name.upper()}` |") == 1


if __name__ == "__main__":
    for name, made in PAGES.items():
        (DOCS / name).write_text(made(), encoding="utf-8")
    sys.exit(0)
