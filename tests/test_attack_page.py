"""docs/attacks.md names a test for each attack, or says why there is none; and each test that it names exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "attacks.md"
GROUPS = {"D": 20, "H": 6, "I": 9, "J": 18, "K": 20}
"""The least number of rows of each group."""

_ROW = re.compile(r"\| ([A-Z])(\d+) \| (.+?) \| (.+?) \| (.*?) \|")
_NAMED = re.compile(r"tests/(test_\w+\.py)::(test_\w+)", re.ASCII)


@cache
def names_in(file: str) -> frozenset[str]:
    """The names of the tests in a file."""
    path = TESTS / file
    tree = ast.parse(path.read_text(encoding="utf-8")) if path.exists() else ast.parse("")
    found = (each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(each.name for each in found if each.name.startswith("test_"))


def faults(page: str) -> Iterator[str]:
    """Whatever is wrong with a page."""
    numbers: Mapping[str, list[int]] = {letter: [] for letter in GROUPS}
    for line in page.splitlines():
        if not re.match(r"\| [A-Z]\d+ ", line):
            continue
        row = _ROW.fullmatch(line)
        if row is None:
            yield f"not a row of four cells: {line[:60]}"
            continue
        letter, number, _, what_happens, held_by = row.groups()
        numbers.get(letter, []).append(int(number))
        named = _NAMED.findall(held_by)
        if not named and not what_happens.startswith("Not served: "):
            yield f"{letter}{number} names no test and no reason"
        if ", ".join(f"tests/{file}::{name}" for file, name in named) != held_by:
            yield f"{letter}{number} has something else than names of tests"
        yield from (
            f"{letter}{number}: there is no {name} in {file}" for file, name in named if name not in names_in(file)
        )
    for letter, found in numbers.items():
        if found != list(range(1, len(found) + 1)) or len(found) < GROUPS[letter]:
            yield f"the rows of {letter} are not numbered in order, or too few"


def test_each_attack_has_tests_that_exist_or_a_reason() -> None:
    assert list(faults(PAGE.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        (
            "test_unknown_wrong_and_disabled_cost",
            "test_unknown_and_disabled_cost",
            "there is no test_unknown_and_disabled",
        ),
        ("tests/test_passwords.py::", "tests/test_password.py::", "in test_password.py"),
        ("| D2 |", "| D3 |", "rows of D are not numbered"),
        ("Not served: ", "", "H6 names no test and no reason"),
        (" | tests/", " | see tests/", "something else than names"),
        ("| K1 | ", "| K1 ", "not a row of four cells"),
    ],
)
def test_a_page_that_is_wrong_would_be_found(before: str, after: str, found: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    if found.startswith("H6"):
        page = re.sub(r"(?m)^(\| H6 \|.*\|).*\|$", r"\1  |", page)
    assert before in page
    assert any(found in fault for fault in faults(page.replace(before, after)))
