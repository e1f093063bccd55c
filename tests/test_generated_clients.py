"""The page about generated clients says what `python3 dev.py clients` does. That command needs the generators, this file none."""

import re
import textwrap

import pytest

from clients.__main__ import PASSWORD
from clients.generators import LEFT_OUT, TRIALS
from clients.trial import Trial
from clients.workshop import HERE, version_of
from tests.service import ROOT

PAGE = (ROOT / "docs" / "generated-clients.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
CODE = [text for language, text in BLOCKS if language != "sh"]


def driver(trial: Trial) -> str:
    """The code of a driver, without indentation."""
    files = [
        path for path in (HERE / trial.name).rglob("*") if path.stem.lower() in {"driver", "main"} and path.is_file()
    ]
    assert len(files) == 1, f"{trial.name} has no driver"
    return flat(files[0].read_text(encoding="utf-8"))


def flat(code: str) -> str:
    return "\n".join(line.strip() for line in code.splitlines())


def test_the_page_has_the_commands_that_are_tried() -> None:
    shown = [text.splitlines() for language, text in BLOCKS if language == "sh"]
    assert shown == [list(trial.makes) for trial in TRIALS]


@pytest.mark.parametrize(("trial", "code"), list(zip(TRIALS, CODE, strict=True)), ids=[trial.name for trial in TRIALS])
def test_the_code_of_the_page_is_that_of_the_driver(trial: Trial, code: str) -> None:
    assert flat(textwrap.dedent(code)) in driver(trial)


def test_each_folder_with_a_driver_is_tried() -> None:
    assert {path.name for path in HERE.iterdir() if path.is_dir() and path.name != "__pycache__"} == {
        t.name for t in TRIALS
    }


def test_each_generator_of_npm_has_one_version() -> None:
    of_npm = [trial for trial in TRIALS if any("driver.ts" in command for command in trial.checks)]
    assert len(of_npm) == 4
    for trial in of_npm:
        if "openapi-generator" not in trial.name:
            assert re.fullmatch(r"\d+\.\d+\.\d+", version_of(trial.package)), trial.name


def test_the_page_names_what_is_left_out() -> None:
    section = PAGE.partition("## Left out")[2]
    assert all(name in section for name in LEFT_OUT)


def test_the_password_is_found_in_the_greeting() -> None:
    found = PASSWORD.search("shown this once:\n\n    admin@localhost   x6uZQUleD4A2fewAeTBc\n\nChange it")
    assert found is not None
    assert found[1] == "x6uZQUleD4A2fewAeTBc"
