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
from tests.test_operations_page import PLACEHOLDERS, understood
from tests.test_references import LINK, anchors

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted(DOCS.glob("*.md"))]
WORDS = 15  # of a sentence, on average
LONG = {"decisions.md": "an argument needs its condition and its consequence in one sentence"}
NO_COMMANDS = {"keyturn sealed cookie v1": "a label", "keyturn federation add NAME --set MEMBER=VALUE": "a form"}
CONTRACT = ROOT / "openapi" / "openapi.json"
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
            case "http" if not re.match(r"HTTP/1\.1 \d{3} \w|[A-Z]+ /", sample):
                return "no first line, so that the builder of the site refuses it"
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
    for language, sample in (
        ("python", "def"),
        ("json", "{"),
        ("yaml", "a: [b"),
        ("toml", "a"),
        ("bash", "if x"),
        ("http", "A: b"),
    ):
        assert wrong(language, sample), language


def uncalled(sample: str) -> Iterator[str]:
    """The calls of curl with a path or a method that the contract does not have."""
    paths = json.loads(CONTRACT.read_text(encoding="utf-8"))["paths"]
    for call in re.findall(r"\bcurl [^\n]*", re.sub(r"\\\n", " ", sample)):
        address = re.search(r"(?:\$KEYTURN|https?://[\w.-]+:8000)(/[\w/.{}$-]*)", call)
        if address is None:
            continue  # an application of the reader's
        named = re.search(r"(?:-X|--request) ?(\w+)", call)
        method = named[1] if named else "POST" if re.search(r" (?:-d|--data[\w-]*|--json)\b", call) else "GET"
        forms = (re.sub(r"\{\w+\}", "[^/]+", path) for path, ways in paths.items() if method.lower() in ways)
        if not any(re.fullmatch(form, address[1]) for form in forms):
            yield f"{method} {address[1]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_call_of_a_sample_is_in_the_contract(page) -> None:
    text = page.read_text(encoding="utf-8")
    assert [call for _, sample in samples(text) for call in uncalled(sample)] == []


def test_a_call_that_is_not_in_the_contract_is_found() -> None:
    sample = (
        "curl $KEYTURN/auth/login -d @-\ncurl -X PUT $KEYTURN/auth/login\ncurl -sS \\\n  http://a.test:8000/auth/none"
    )
    assert list(uncalled(sample)) == ["PUT /auth/login", "GET /auth/none"]


SECRET_ARGUMENT = re.compile(
    r"""\bcurl\b[^\n|]*?\ (?:-d|--data[\w-]*|--json)\ ['"$][^\n]*?(?:password|refresh_token|subject_token|secret)"""
    r"""|--from-literal|\bpsql\ ["']?(?:\$|postgres)|\bcurl\b[^\n|]*?\ (?:-u|--user)\ """,
    re.VERBOSE,
)
"""A secret among the arguments of a program, which other users of the machine can see."""
TYPED = [
    page for page in PAGES if page.name not in {"api.md", "decisions.md"}
]  # api.md has the requests of the contract
TYPED += [ROOT / "compose.yaml", *(path for path in (ROOT / "deploy").rglob("*") if path.is_file())]
TYPED += sorted((ROOT / "examples").rglob("README.md"))


@pytest.mark.parametrize("page", TYPED, ids=lambda page: page.name)
def test_no_line_to_type_puts_a_secret_into_the_arguments_of_a_program(page) -> None:
    text = re.sub(r"\\\n", " ", page.read_text(encoding="utf-8", errors="replace"))
    assert SECRET_ARGUMENT.findall(text) == []


@pytest.mark.parametrize(
    "line",
    [
        """curl $KEYTURN/auth/login -H "$JSON" -d '{"email": "a@b.test", "password": "…"}'""",
        """curl $KEYTURN/auth/refresh --json "{\\"refresh_token\\": \\"$RT\\"}" -o tokens.json""",
        """kubectl create secret generic keyturn --from-literal=database-url="$DATABASE_URL\"""",
        """keyturn db rights keyturn | psql "$OWNER_DATABASE_URL\"""",
        """curl -u "$CLIENT:$SECRET" $KEYTURN/oauth/token""",
    ],
)
def test_a_secret_among_the_arguments_is_found(line: str) -> None:
    assert SECRET_ARGUMENT.search(line)


def misnamed(text: str, *, foreign: bool = False) -> Iterator[str]:
    """The settings, commands and endpoints in running text that Keyturn does not have."""
    forms = [
        f"{way.upper()} {re.sub(r'{[^}]+}', '[^/]+', path)}"
        for path, ways in json.loads(CONTRACT.read_text(encoding="utf-8"))["paths"].items()
        for way in ways
    ]
    for code in re.findall(r"`([^`]+)`", FENCE.sub("", text)):
        named = " ".join(code.split())
        yield from unknown(named) if re.search(rf"\b{PREFIX}[A-Z]", named) else ()
        if re.match(r"keyturn [a-z-]+( |$)", named) and named not in NO_COMMANDS and "…" not in named:
            words = [PLACEHOLDERS.get(word, word) for word in shlex.split(named)[1:]]
            if not understood(words) and not understood([*words, "--help"]):
                yield named
        endpoint = re.match(r"(?:GET|POST|PUT|PATCH|DELETE) /[^ ?;…]*", named)
        if endpoint and not foreign and not any(re.fullmatch(form, endpoint[0]) for form in forms):
            yield named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_command_and_endpoint_in_running_text_exists(page) -> None:
    assert list(misnamed(page.read_text(encoding="utf-8"), foreign=page.name.startswith("from-"))) == []


def test_a_wrong_setting_command_or_endpoint_in_running_text_is_found() -> None:
    text = "`KEYTURN_NOTHING=1`, `keyturn keys\nturn access`, `PUT /auth/me`, `keyturn keys rotate USE`, `GET /admin/users/{id}`"
    assert list(misnamed(text)) == ["KEYTURN_NOTHING", "keyturn keys turn access", "PUT /auth/me"]


def sentences(text: str) -> Iterator[str]:
    """The sentences of a page's paragraphs and lists. Headings, tables and samples are none."""
    text = re.sub(r"<!--.*?-->", "", FENCE.sub("", text), flags=re.DOTALL)
    text = re.sub(r"^ *(?:#|\||```).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^ *(?:[-*]|\d+\.) ", "\n", text, flags=re.MULTILINE)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"`[^`]*`", "code", text))
    for paragraph in re.split(r"\n\s*\n", text):
        yield from filter(str.split, re.split(r"(?<=[.!?])[\"')*]*\s+", paragraph))


def words_a_sentence(text: str) -> float:
    counts = [len(sentence.split()) for sentence in sentences(text)]
    return sum(counts) / len(counts)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in LONG], ids=lambda page: page.name)
def test_a_page_is_written_in_short_sentences(page) -> None:
    assert words_a_sentence(page.read_text(encoding="utf-8")) <= WORDS


def test_long_sentences_are_found_and_what_is_no_sentence_is_not_counted() -> None:
    no_sentence = "# A heading of some words\n\n| a | row | of | a | table |\n\n```bash\na sample of words\n```\n"
    assert words_a_sentence(f"{no_sentence}\nOne two. Three `four five`\nsix!\n\n- One\n- two three four\n") == 2.25


def outside() -> Iterator[tuple[str, str]]:
    """Each link that leaves the repository, with its page. `python -m tests.test_docs` prints them; no test asks them."""
    for page in PAGES:
        for link in LINK.findall(page.read_text(encoding="utf-8")):
            if re.match(r"[a-z]+:", link):
                yield link, page.name


def test_every_link_to_outside_is_https() -> None:
    assert [(link, page) for link, page in outside() if not link.startswith("https://")] == []


if __name__ == "__main__":
    for link, page in sorted(outside()):
        print(f"{page}: {link}")
