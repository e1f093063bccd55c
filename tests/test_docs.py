"""The pages of docs/: each is in the index, each link leads somewhere, and each sample is right in its language."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from app.commands.command import parser
from app.settings import Settings
from app.settings_sources import PREFIX
from tests.test_references import LINK, anchors

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted(DOCS.glob("*.md"))]
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


def lost(page: Path, text: str) -> Iterator[str]:
    """The links of a page that lead nowhere."""
    for link in LINK.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if re.match(r"[a-z]+:", link):
            continue  # outside: the tests have no network
        name, _, anchor = link.partition("#")
        to = (page.parent / name).resolve() if name else page
        if not to.exists():
            yield f"{link}: no such file"
        elif anchor and anchor not in anchors(to):
            yield f"{link}: no such heading"


def samples(text: str) -> Iterator[tuple[str, str]]:
    """The language and the text of each sample."""
    for indent, language, sample in FENCE.findall(text):
        yield language, re.sub(rf"^{indent}", "", sample, flags=re.MULTILINE)


def wrong(language: str, sample: str) -> str:
    """Why a sample is not of its language; empty if it is."""
    try:
        match language:
            case "python":
                compile(sample, "sample", "exec")
            case "json":
                json.loads(sample)
            case "yaml":
                list(yaml.safe_load_all(sample))
            case "toml":
                tomllib.loads(sample)
            case "bash" | "sh":
                read = ["bash", "-n", "-c", sample]
                return subprocess.run(read, check=False, capture_output=True, text=True).stderr
            case _:
                pass
    except (SyntaxError, ValueError, yaml.YAMLError) as e:
        return repr(e)
    return ""


def test_the_index_names_every_page_once() -> None:
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    named = [link for link in LINK.findall(text) if "/" not in link]
    assert sorted(named) == sorted(page.name for page in DOCS.glob("*.md") if page.name != "index.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page) -> None:
    assert list(lost(page, page.read_text(encoding="utf-8"))) == []


def test_a_link_to_a_missing_file_or_heading_is_found() -> None:
    text = "[a](nowhere.md), [b](index.md#nowhere), [c](index.md#start), [d](https://example.com)"
    assert list(lost(DOCS / "index.md", text)) == ["nowhere.md: no such file", "index.md#nowhere: no such heading"]


def unknown(sample: str) -> Iterator[str]:
    """The commands, options and settings of a sample that Keyturn does not have."""
    for line in re.sub(r"\\\n", " ", sample).splitlines():
        for called in re.findall(r"(?:^|[$(|] *|dev\.py )keyturn ((?:[^'\"|;)]|'[^']*'|\"[^\"]*\")+)", line):
            command: argparse.ArgumentParser = parser()
            for word in shlex.split(called, comments=True):
                words = next((a.choices for a in command._actions if isinstance(a, argparse._SubParsersAction)), None)
                if word.startswith("--"):
                    if word.partition("=")[0] not in command._option_string_actions:
                        yield f"{command.prog} {word}"
                elif words is not None:
                    if word not in words:
                        yield f"{command.prog} {word}"
                        break
                    command = words[word]
    for name in re.findall(rf"\b{PREFIX}([A-Z0-9_]+)", sample):
        if not {name.lower(), name.lower().removesuffix("_file")} & {*Settings.model_fields, "config"}:
            yield f"{PREFIX}{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_option_and_setting_of_a_sample_exists(page) -> None:
    text = page.read_text(encoding="utf-8")
    of = {"bash", "sh", "text"}
    assert [(sample, name) for language, sample in samples(text) if language in of for name in unknown(sample)] == []


def test_an_unknown_command_option_or_setting_is_found() -> None:
    sample = (
        "keyturn users show --wrong you\npython3 dev.py keyturn nothing\nexport KEYTURN_NOTHING=1 KEYTURN_SECRET_FILE=x"
    )
    assert list(unknown(sample)) == ["keyturn users show --wrong", "keyturn nothing", "KEYTURN_NOTHING"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_sample_is_right_in_its_language(page) -> None:
    text = page.read_text(encoding="utf-8")
    assert [(sample, why) for language, sample in samples(text) if (why := wrong(language, sample))] == []


def test_a_sample_that_is_not_of_its_language_is_found() -> None:
    for language, sample in (("python", "def"), ("json", "{"), ("yaml", "a: [b"), ("toml", "a"), ("bash", "if x")):
        assert wrong(language, sample), language
