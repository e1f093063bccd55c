"""The greeting of a start: lines to paste after the first, a command after any other, colours on a terminal alone."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from time import monotonic

import pytest

from app.commands.greeting import greeting
from app.settings import read
from tests.conftest import CHEAP
from tests.servers import free_port
from tests.service import Service

ROOT = Path(__file__).parent.parent


def said(folder: Path, **more: str | None) -> str:
    settings = read({"KEYTURN_DATA_DIR": str(folder)})
    given = {"made": None, "administrator": "ada@example.com", "advice": "", **more}
    return greeting(settings, "http://127.0.0.1:8000", **given)  # type: ignore[arg-type]  # by their names


def test_a_second_start_names_a_command_and_prints_no_line_to_fill_in(tmp_path: Path) -> None:
    text = said(tmp_path)
    assert "users reset-password ada@example.com\n" in text
    assert "curl" not in text
    assert not re.search(r"<\w+>", text)
    assert "Open http://127.0.0.1:8000/ in a browser" in text


def test_what_is_not_there_is_not_told(tmp_path: Path) -> None:
    assert "password" not in said(tmp_path, administrator=None)
    settings = read({"KEYTURN_DATA_DIR": str(tmp_path), "KEYTURN_PAGES": "false"})
    assert "browser" not in greeting(settings, "http://x", made=None, administrator=None, advice="")


def test_a_second_start_of_the_service_greets_so(tmp_path: Path, logs: Path) -> None:
    environment = {"KEYTURN_DATA_DIR": str(tmp_path / "data")}
    environment |= {f"KEYTURN_{name.upper()}": value for name, value in CHEAP.items()}
    for first in (True, False):
        with Service.start(environment, logs=logs) as service:
            text = service.text()
            assert ("Made an administrator" in text) == first
            assert ("users reset-password admin@localhost" in text) != first
            assert "\x1b" not in text
            assert "For production name a database: embedded SQLite in " in text
            assert service.terminate() == 0


def test_a_start_says_if_another_algorithm_signs_than_the_settings_name(tmp_path: Path, logs: Path) -> None:
    environment = {"KEYTURN_DATA_DIR": str(tmp_path / "data")}
    environment |= {f"KEYTURN_{name.upper()}": value for name, value in CHEAP.items()}
    said = []
    for named in ({}, {"KEYTURN_SIGNING_ALGORITHM": "ES256"}, {"KEYTURN_SIGNING_ALGORITHM": "HS256"}, {}):
        with Service.start(environment | named, logs=logs) as service:
            said.append(re.findall(r".*other_algorithm_signs.*", service.text()))
    assert [len(lines) for lines in said] == [0, 1, 0, 0]
    line = json.loads(said[1][0])
    assert line["level"] == "warning"
    assert "access tokens are signed with HS256: " in line["detail"]
    assert "keys rotate access --algorithm ES256" in line["detail"]


def on_a_terminal(folder: Path, environment: Mapping[str, str]) -> str:
    """What a start prints on a terminal, until it serves."""
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "serve", "--port", str(free_port())],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "KEYTURN_DATA_DIR": str(folder / "data"),
             **{f"KEYTURN_{name.upper()}": value for name, value in CHEAP.items()}, **environment},
        stdin=end, stdout=end, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    os.close(end)
    shown, until = b"", monotonic() + 30
    try:
        while b"logout   " not in shown and monotonic() < until:
            shown += os.read(terminal, 4096)
    except OSError:  # the process has closed its end
        pass
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        os.close(terminal)
    return shown.decode()


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_a_terminal_shows_colours_unless_it_or_the_operator_wants_none(
    tmp_path: Path, environment: dict[str, str], coloured: bool
) -> None:
    shown = on_a_terminal(tmp_path, environment)
    assert ("\x1b[1mhttp://127.0.0.1:" in shown) == coloured
    assert ("\x1b" in shown) == coloured
    assert "logout   %{http_code}" in shown
