"""The README's table of settings is made from the settings."""

from __future__ import annotations

import re
import sys
from datetime import timedelta
from pathlib import Path

from app.errors import Refusal
from app.settings import Settings, accepts
from app.settings_sources import PREFIX

README = Path(__file__).parent.parent / "README.md"
PLACE = re.compile(r"(?<=<!-- settings -->\n).*(?=<!-- /settings -->)", re.DOTALL)


def table() -> str:
    lines = ["| setting | default | values | |\n|---|---|---|---|\n"]
    for name, field in Settings.model_fields.items():
        value = field.default
        if isinstance(value, timedelta):
            value = value // timedelta(seconds=1)
        shown = "" if value in {None, ""} else f"`{str(value).lower() if isinstance(value, bool) else value}`"
        lines.append(f"| `{PREFIX}{name.upper()}` | {shown} | {accepts(name)} | {field.description} |\n")
    return "".join(lines)


def test_the_readme_lists_every_setting_as_it_is() -> None:
    found = PLACE.search(README.read_text(encoding="utf-8"))
    assert found is not None
    assert found.group() == table(), "python -m tests.test_readme writes it anew"


def test_the_readme_lists_every_status_and_error_that_a_refusal_may_have() -> None:
    text = README.read_text(encoding="utf-8")
    listed = {
        status: line
        for line in text.splitlines()
        for status in re.findall(r"\b[45]\d\d\b", line.split("|")[1] if line.startswith("| ") else "")
    }
    kinds = list(Refusal.__subclasses__())
    for kind in kinds:
        kinds += kind.__subclasses__()
        assert f"`{kind.error}`" in listed[str(kind.status)], kind


if __name__ == "__main__":
    README.write_text(PLACE.sub(lambda _: table(), README.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(0)
