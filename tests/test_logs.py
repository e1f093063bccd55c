"""docs/logs.md lists every event of the log. A terminal gets lines to read, and probes have no lines."""

from __future__ import annotations

import ast
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import log, log_console
from app.errors import RateLimit, SlowDown
from app.http.edge import Edge
from app.log_console import LogFormat
from app.routes.health import PROBES
from tests.conftest import CHEAP, SECRET
from tests.service import ROOT, Service

PAGE = ROOT / "docs" / "logs.md"
LEVELS = {"debug", "info", "warning", "error"}
OF_EVERY_REQUEST = {"method", "path", "status", "duration_ms", "client", "request_id"}


# -- the list


@dataclass(frozen=True)
class Told:
    """An event: its levels, and the members that it may have beside those of every line."""

    levels: frozenset[str]
    members: frozenset[str]


def in_the_docs(page: str) -> dict[str, Told]:
    found = {}
    for line in page.splitlines():
        if row := re.match(r"\| `(\w+)` \| ([^|]+) \|([^|]*)\| (.+) \|$", line):
            name, levels, members, act = row.groups()
            assert name not in found, name
            assert act.strip().endswith("."), name
            found[name] = Told(
                frozenset(LEVELS & set(re.findall(r"\w+", levels))), frozenset(re.findall(r"`(\w+)`", members))
            )
    return found


def in_the_source(sources: Mapping[str, str]) -> dict[str, Told]:
    """The events of the source: calls of a logger, of `report` and `_note`, and the names that copies are given."""
    found: dict[str, Told] = {}

    def add(name: str, level: str, members: set[str]) -> None:
        before = found.get(name, Told(frozenset(), frozenset()))
        found[name] = Told(before.levels | {level}, before.members | members)

    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.Call):
                continue
            texts = [one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            more = {one.arg for one in node.keywords if one.arg} - {"exc_info"}
            match node.func:
                case ast.Attribute(attr=level, value=logger) if level in LEVELS and is_logger(logger):
                    if texts:
                        add(texts[0], level, more)
                    else:
                        # Text that is not a name (the line of a start), or a name that the owner was given (`Copy`).
                        assert path in {"commands/serve.py", "storage/copies.py"}, (path, node.lineno)
                case ast.Attribute(attr="_report") if path.startswith("revocation/"):
                    (how,) = [one.value for one in node.keywords if one.arg == "level"]
                    if isinstance(how, ast.Constant):
                        add(texts[0], str(how.value), more - {"level"})
                case ast.Attribute(attr="_note") if path == "revocation/rebuild.py":
                    add(texts[1], "info" if texts[0] == "complete" else "warning", {"detail"})
                case ast.Name(id="Copy"):
                    add(texts[0], "warning", {"cause"})
    return found


def is_logger(node: ast.expr) -> bool:
    match node:
        case ast.Name(id="_log"):
            return True
        case ast.Call(func=ast.Name(id="get_logger") | ast.Attribute(attr="get_logger")):
            return True
    return False


def the_source() -> dict[str, str]:
    app = ROOT / "app"
    return {path.relative_to(app).as_posix(): path.read_text(encoding="utf-8") for path in app.rglob("*.py")}


def test_the_page_lists_each_event_with_its_level_and_members() -> None:
    listed, told = in_the_docs(PAGE.read_text(encoding="utf-8")), in_the_source(the_source())
    request = listed.pop("request")  # its line is written by hand: see the next test
    assert request.levels == {"info"}
    assert listed.pop("exception") == Told(frozenset({"error"}), frozenset({"exception"}))
    assert told.pop("exception") == Told(frozenset({"error"}), frozenset())
    assert len(told) > 25
    assert listed == told


def test_an_event_that_the_page_does_not_list_would_be_found() -> None:
    listed = in_the_docs(PAGE.read_text(encoding="utf-8"))
    planted = {
        "users/x.py": "def f(self):\n    _log.warning('planted', user_id=1)\n    log.get_logger().info('too')\n",
        "revocation/x.py": "def f(self):\n    self._report('away_again', level='info', detail='x')\n",
        "policies/x.py": "def f(self):\n    self._copy = Copy(self.load, 'x_not_read')\n",
    }
    found = in_the_source(planted)
    assert found.keys() == {"planted", "too", "away_again", "x_not_read"}
    assert not found.keys() & listed.keys()
    assert found["planted"] == Told(frozenset({"warning"}), frozenset({"user_id"}))


def test_the_page_lists_each_member_of_a_request_s_line() -> None:
    listed = in_the_docs(PAGE.read_text(encoding="utf-8"))["request"]
    written = set(re.findall(r'"(\w+)": ', the_source()["http/access_line.py"])) - {"event"}
    assert written >= OF_EVERY_REQUEST
    assert listed.members - {"trace_id"} == written


# -- lines for people


def lines_of(members: Mapping[str, Any], paint: Callable[[str, str], str] = log_console._unpainted) -> list[str]:
    return log_console.shown(json.dumps(members), paint).split("\n")


BASIS = {"event": "x", "level": "info", "timestamp": "2026-11-27T14:02:26.123456Z"}


def test_the_line_of_a_request_begins_with_what_a_reader_looks_for() -> None:
    members = {"method": "POST", "path": "/auth/login", "status": 401, "duration_ms": 41.2, "client": "127.0.0.1"}
    (line,) = lines_of({**members, "cause": "wrong password", **BASIS, "event": "request"})
    assert re.fullmatch(
        r'\d\d:\d\d:26\.123 info     POST /auth/login 401 41.2 ms client=127.0.0.1 cause="wrong password"', line
    )
    (line,) = lines_of({**members, "status": None, **BASIS, "event": "request"})
    assert " no answer " in line


def test_a_traceback_stands_on_lines_of_its_own() -> None:
    first, *trace = lines_of({**BASIS, "exception": 'Traceback:\n  File "x"\nValueError: \x1b[2J'})
    assert first.endswith(" x")
    assert trace == ["    Traceback:", '      File "x"', "    ValueError: \\x1b[2J"]


NASTY = [
    "\x1b[31mred", "\x1b]0;title\x07", "a\nb level=error", "\r\x1b[2K", "\x9b31m", "\u202eabc", "\u2028", "\x00", "\x7f",
    "\ud800", "x y=z", 'a"b', "a\\nb", "", "=", "\u00a0", "\u200b",
]  # fmt: skip


def unsafe(line: str) -> bool:
    return not line.isprintable()


@pytest.mark.parametrize("text", NASTY)
def test_no_character_that_a_terminal_obeys_reaches_it(text: str) -> None:
    request = {"method": text, "path": f"/{text}", "status": 200, "duration_ms": 1.0, **BASIS, "event": "request"}
    for members in (
        {**BASIS, "path": text},
        {**BASIS, text or "name": 1},
        {**BASIS, "event": text},
        {**BASIS, "level": text},
        {**BASIS, "timestamp": text},
        {**BASIS, "deep": [{text: (text,)}]},
        request,
    ):
        (line,) = lines_of(members)
        assert not unsafe(line), line


def test_the_check_above_finds_each_character_if_nothing_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_console, "printable", str)
    told = [lines_of({**BASIS, "path": text}) for text in NASTY if not text.isprintable()]
    assert all(len(lines) > 1 or unsafe(lines[0]) for lines in told)
    assert len(told) > 10


@given(st.text(), st.text())
def test_a_value_can_not_be_taken_for_several_members(text: str, other: str) -> None:
    (line,) = lines_of({**BASIS, "a": text, "b": other})
    plain, quoted = r'[^\s"=]+', r'"(?:[^"\\]|\\.)*"'
    value = f"(?:{plain}|{quoted})"
    assert re.fullmatch(rf"\S+ info     x a={value} b={value}", line), line


def test_a_line_that_is_no_json_is_shown_escaped() -> None:
    assert log_console.shown("no JSON\x1b[31m", log_console._painted) == "no JSON\\x1b[31m"
    assert log_console.shown("[1]", log_console._painted) == "[1]"


def test_the_colours_depend_on_the_terminal_and_on_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    line = json.dumps(BASIS)

    class Stream:
        def __init__(self, terminal: bool) -> None:
            self.isatty = lambda: terminal

    def form(terminal: bool, form: LogFormat, **environment: str) -> str:
        for name in ("NO_COLOR", "TERM"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        show = log_console.shown_on(Stream(terminal), form)  # type: ignore[arg-type]  # nothing is written
        if show is None:
            return "json"
        return "colours" if "\x1b[" in show(line) else "plain"

    assert form(True, "auto", TERM="xterm") == "colours"
    assert form(True, "auto", TERM="xterm", NO_COLOR="") == "colours"  # no-color.org: an empty value is none
    assert form(True, "auto", TERM="xterm", NO_COLOR="1") == "plain"
    assert form(True, "auto", TERM="dumb") == "plain"
    assert form(True, "console") == "colours"
    assert form(True, "json") == "json"
    assert form(False, "auto") == "json"
    assert form(False, "console") == "plain"


# -- a service on a terminal


@dataclass
class Terminal:
    """A service whose stdout and stderr are a terminal, and all that it wrote there."""

    process: subprocess.Popen[bytes]
    written: bytearray = field(default_factory=bytearray)

    def text(self) -> str:
        return self.written.decode(errors="replace")

    def text_with(self, pattern: str) -> str:
        give_up = monotonic() + 30
        while not re.search(pattern, self.text()):
            assert monotonic() < give_up, self.text()
            assert self.process.poll() is None, self.text()
            sleep(0.02)
        return self.text()


@contextmanager
def on_a_terminal(folder: Path, **settings: str) -> Iterator[Terminal]:
    terminal, end = pty.openpty()
    values = {"data_dir": str(folder), "secret": SECRET, "port": "0"} | CHEAP
    environment = {f"KEYTURN_{name.upper()}": value for name, value in values.items()}
    environment |= {"PATH": os.environ["PATH"], "TERM": "xterm", **settings}
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "serve"], cwd=ROOT, env=environment, stdin=end, stdout=end, stderr=end,
        start_new_session=True,
    )  # fmt: skip
    os.close(end)
    shown = Terminal(process)

    def read() -> None:
        with suppress(OSError):  # the service has closed its end
            while part := os.read(terminal, 65536):
                shown.written += part

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield shown
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        finally:
            process.kill()
        reader.join(5)
        os.close(terminal)


COLOURS = re.compile(r"\x1b\[\d{1,2}m")


@pytest.mark.parametrize(
    ("settings", "form"),
    [({}, "colours"), ({"NO_COLOR": "1"}, "plain"), ({"KEYTURN_LOG_FORMAT": "json"}, "json")],
    ids=["colours", "plain", "json"],
)
def test_a_service_on_a_terminal_writes_lines_to_read(tmp_path: Path, settings: dict[str, str], form: str) -> None:
    with on_a_terminal(tmp_path / "data", **settings) as terminal:
        url = re.findall(r"Uvicorn running on (http://[\w.:]+)", terminal.text_with(r"startup complete"))[0]
        with httpx2.Client(base_url=url, trust_env=False) as client:
            answer = client.get("/%1b%5b31m%0aevil%e2%80%ae")
            assert answer.status_code == 404
            terminal.text_with(answer.headers["x-request-id"])
    raw = terminal.text().replace("\r\n", "\n")
    (coloured,) = [one for one in raw.split("\n") if answer.headers["x-request-id"] in one]
    assert ("\x1b" in coloured) == (form == "colours")
    assert ("\x1b" in raw) == (form != "plain")  # the greeting is for people, whatever the form of the log
    text = COLOURS.sub("", raw)
    assert not [line for line in text.split("\n") if unsafe(line)]
    (line,) = [one for one in text.split("\n") if answer.headers["x-request-id"] in one]
    if form == "json":
        assert json.loads(line)["path"] == "/\x1b[31m\nevil\u202e"
    else:
        shown = r'\d\d:\d\d:\d\d\.\d{3} info     GET "/\\x1b\[31m\\nevil\\u202e" 404 [\d.]+ ms client='
        assert re.match(shown, line)


# -- probes and limits


async def in_process(path: str, status: int, method: str = "GET") -> None:
    async def application(_scope: Any, _receive: Any, send: Any) -> None:
        if status == 429:
            limit = RateLimit("account", 5, timedelta(minutes=1))
            raise SlowDown("too many failures", retry_after=timedelta(seconds=3), limit=limit)
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_message: Any) -> None:
        pass

    scope: dict[str, Any] = {"type": "http", "http_version": "1.1", "method": method, "path": path}
    await Edge(application, quiet=PROBES)(scope | {"query_string": b"", "headers": [(b"host", b"a")]}, receive, send)
    log.flush()


@pytest.mark.parametrize("path", sorted(PROBES))
async def test_a_good_answer_to_a_probe_has_no_line_and_any_other_has_one(
    path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for method in ("GET", "HEAD"):
        await in_process(path, 200, method)
    assert capsys.readouterr().err == ""
    for status in (404, 500, 503):
        await in_process(path, status)
        assert json.loads(capsys.readouterr().err)["status"] == status
    await in_process(path + "/x", 200)
    assert json.loads(capsys.readouterr().err)["path"] == path + "/x"


@pytest.mark.parametrize("probes", [False, True])
def test_the_setting_says_whether_probes_have_lines(tmp_path: Path, logs: Path, probes: bool) -> None:
    values = {"data_dir": str(tmp_path / "data"), "secret": SECRET, "log_probes": str(probes).lower()} | CHEAP
    environment = {f"KEYTURN_{name.upper()}": value for name, value in values.items()}
    with (
        Service.start(environment, logs=logs) as service,
        httpx2.Client(base_url=service.url, trust_env=False) as client,
    ):
        asked = [client.get(path) for path in ("/healthz", "/readyz")]
        last = client.get("/nowhere")
        text = service.text_with(last.headers["x-request-id"])
    assert [answer.status_code for answer in asked] == [200, 200]
    assert [answer.headers["x-request-id"] in text for answer in asked] == [probes, probes]


async def test_the_line_of_a_429_has_the_name_of_the_limit(capsys: pytest.CaptureFixture[str]) -> None:
    await in_process("/auth/login", 429)
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["level"], line["status"], line["limit"]) == ("request", "info", 429, "account")
