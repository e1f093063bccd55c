"""`keyturn top` shows on a terminal what really happens, as the metrics doors of the instances tell it."""

from __future__ import annotations

import asyncio
import fcntl
import http.server
import json
import math
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Self

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import metrics
from app.metric_kinds import Metric
from app.top import view
from app.top.doors import Door, Reading, asking
from app.top.exposition import NotMetricsError, Samples, names_of, samples_in
from app.top.numbers import Numbers
from app.top.terminal import text_of
from tests.conftest import CHEAP, PASSWORD, SECRET
from tests.servers import free_port
from tests.service import ROOT, Service

TOKEN = "a-token-of-the-metrics-door"
PATIENCE = 30.0  # seconds, of a busy machine

# -- the text of a door


def exposed(value: Callable[[Metric, int], float]) -> str:
    """The text of a door, in which each series of each metric has a value. A histogram has it in each bucket."""
    lines = []
    for metric in metrics.METRICS:
        lines += [f"# HELP {metric.name} {metric.text}", f"# TYPE {metric.name} {metric.kind}"]
        for at, words in enumerate(metric.series):
            labels = [f'{name}="{word}"' for name, word in zip(metric.labels, words, strict=True)]
            if metric.kind != "histogram":
                lines.append(f"{metric.name}{{{','.join(labels)}}} {value(metric, at)}")
                continue
            for bound in (*metric.bounds, math.inf):  # type: ignore[attr-defined]  # a histogram's
                written = "+Inf" if math.isinf(bound) else str(bound)
                le = [*labels, f'le="{written}"']
                lines.append(f"{metric.name}_bucket{{{','.join(le)}}} {value(metric, at)}")
            for end in ("sum", "count"):
                lines.append(f"{metric.name}_{end}{{{','.join(labels)}}} {value(metric, at)}")
    return "\n".join(lines)


def test_every_series_of_every_metric_is_read_from_the_text_of_a_door() -> None:
    found = samples_in(exposed(lambda _, at: at + 0.5))
    for metric in metrics.METRICS:
        for name in names_of(metric):
            for at, words in enumerate(metric.series):
                bounds = ("+Inf",) if name.endswith("_bucket") else ()
                assert found[name, (*words, *bounds)] == at + 0.5, name


def test_comments_time_stamps_exemplars_and_unknown_metrics_are_passed_over() -> None:
    text = (
        '# EOF\n\nsomething_else{a="b"} 7\n'
        'keyturn_refreshes_total{outcome="rotated"} 3 1700000000\n'
        'keyturn_refreshes_total{outcome="junk"} 4 # {trace_id="ab"} 1.0\n'
    )
    assert samples_in(text) == {
        ("keyturn_refreshes_total", ("rotated",)): 3,
        ("keyturn_refreshes_total", ("junk",)): 4,
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html>",
        "something_else 7",
        "keyturn_refreshes_total 1",
        'keyturn_refreshes_total{outcome="rotated"} many',
        'keyturn_refreshes_total{outcome="rotated" 3',
        "{}",
        'keyturn_refreshes_total{outcome="rotated",words} 1',
        'keyturn_refreshes_total{words,outcome="rotated"} 1',
        *(
            f'keyturn_refreshes_total{{outcome="rotated"}} {value}'
            for value in ("NaN", "+Inf", "-Inf", "1e999", "1e18")
        ),
        *(
            f'keyturn_http_request_duration_seconds_bucket{{endpoint="login",status="2xx",le="{bound}"}} 1'
            for bound in ("low", "", "NaN", "-Inf", "1e999")
        ),
        f'keyturn_refreshes_total{{outcome="rotated",more="{"a" * 5000}"}} 3',  # one of 8 MiB would take hours
    ],
    ids=lambda text: text[:80],
)
def test_a_text_that_is_none_of_a_metrics_door_is_refused(text: str) -> None:
    with pytest.raises(NotMetricsError):
        samples_in(text)


@given(st.text())
def test_no_text_breaks_the_reader(text: str) -> None:
    with suppress(NotMetricsError):
        samples_in(text)


# -- numbers


def reading(url: str, at: float, **values: float) -> Reading:
    """A reading of one door, with refreshes by outcome."""
    samples: Samples = {("keyturn_refreshes_total", (outcome,)): value for outcome, value in values.items()}
    return Reading(url, at, samples)


def test_rates_of_instances_are_added_each_over_its_own_interval() -> None:
    before = {"a": reading("a", 0.0, rotated=10), "b": reading("b", 0.0, rotated=100)}
    after = {"a": reading("a", 4.0, rotated=30), "b": reading("b", 2.0, rotated=120)}
    assert Numbers.between(before, after).rate(metrics.REFRESHES, outcome="rotated") == 5 + 10


def test_an_instance_that_began_anew_counts_from_zero_and_never_below() -> None:
    before = {"a": reading("a", 0.0, rotated=1000), "b": reading("b", 0.0, rotated=10)}
    after = {"a": reading("a", 1.0, rotated=3), "b": reading("b", 1.0, rotated=20)}
    assert Numbers.between(before, after).rate(metrics.REFRESHES) == 13


def test_an_instance_without_an_earlier_answer_has_states_and_no_rates() -> None:
    away = Reading("a", 0.0, failure="connection refused")
    samples: Samples = {
        ("keyturn_refreshes_total", ("rotated",)): 5.0,
        ("keyturn_database_processes", ("answers",)): 2.0,
    }
    numbers = Numbers.between({"a": away}, {"a": Reading("a", 1.0, samples)})
    assert numbers.rate(metrics.REFRESHES) == 0
    assert numbers.state(metrics.DATABASE, state="answers") == 2


def test_states_of_instances_are_added_or_the_highest_counts_as_the_metric_says() -> None:
    def of(live: float, slots: float) -> Samples:
        return {("keyturn_sessions_live", ()): live, ("keyturn_hash_slots", ()): slots}

    after = {"a": Reading("a", 1.0, of(100, 2)), "b": Reading("b", 1.0, of(90, 4))}
    numbers = Numbers.between({}, after)
    assert (numbers.state(metrics.SESSIONS_LIVE), numbers.state(metrics.HASH_SLOTS)) == (100, 6)
    assert numbers.state(metrics.MEMORY) is None


def of_buckets(counts: Mapping[float, float]) -> Numbers:
    """The numbers of an interval in which these cumulative buckets of the loop's lag grew."""
    name = metrics.LOOP_LAG.name
    samples: Samples = {(f"{name}_bucket", ("+Inf" if math.isinf(b) else str(b),)): n for b, n in counts.items()}
    empty: Samples = dict.fromkeys(samples, 0.0)
    return Numbers.between({"a": Reading("a", 0.0, empty)}, {"a": Reading("a", 1.0, samples)})


@pytest.mark.parametrize(
    ("part", "expected"),
    # As Prometheus: linear within the bucket, from the bound below.
    [(0.25, 0.05), (0.5, 0.1), (0.75, 0.1 + 0.4 * 25 / 48), (0.9, 0.1 + 0.4 * 40 / 48), (0.99, math.inf)],
)
def test_a_quantile_is_estimated_as_prometheus_does(part: float, expected: float) -> None:
    numbers = of_buckets({0.1: 50, 0.5: 98, 1.0: 98, math.inf: 100})
    assert numbers.quantile(part, metrics.LOOP_LAG) == pytest.approx(expected)


@given(
    st.lists(st.floats(0, 20, allow_nan=False), min_size=1, max_size=200),
    st.sampled_from((0.01, 0.5, 0.9, 0.99, 1.0)),
)
def test_a_quantile_lies_in_the_bucket_of_the_exact_one(values: list[float], part: float) -> None:
    bounds = (*metrics.LOOP_LAG.bounds, math.inf)
    found = of_buckets({b: sum(value <= b for value in values) for b in bounds}).quantile(part, metrics.LOOP_LAG)
    exact = sorted(values)[math.ceil(part * len(values)) - 1]
    upper = next(bound for bound in bounds if exact <= bound)
    lower = max((bound for bound in bounds if bound < upper), default=0.0)
    assert found is not None
    assert lower <= found <= upper or found == pytest.approx(upper)  # a sum of parts, rounded


def test_a_label_or_word_that_no_metric_has_is_an_error_and_never_a_zero() -> None:
    numbers = Numbers.between({}, {"a": reading("a", 1.0)})
    with pytest.raises(ValueError, match="not in"):
        numbers.rate(metrics.REFRESHES, result="rotated")
    with pytest.raises(ValueError, match="not in"):
        numbers.rate(metrics.REFRESHES, outcome="no-such-outcome")


# -- the view


def full(scale: float) -> Mapping[str, Reading]:
    return {"http://a/metrics": Reading("http://a/metrics", scale, samples_in(exposed(lambda _, at: (at + 1) * scale)))}


def test_each_line_fits_into_any_width_with_and_without_colours() -> None:
    lines = [*view.lines(Numbers.between(full(1), full(3)), datetime.now(UTC))]
    for width in (1, 2, 20, 80, 200):
        for colours in (False, True):
            for line in text_of(lines, colours=colours, width=width):
                plain = re.sub(r"\x1b\[[0-9;]*m", "", line)
                assert len(plain) <= width
                assert plain.isprintable()
                assert line.count("\x1b[") % 2 == 0  # each colour is taken back
    assert not any("\x1b" in line for line in text_of(lines, colours=False))


def test_the_json_has_every_outcome_and_no_infinite_number() -> None:
    members = view.members(Numbers.between(full(1), full(3)), datetime.now(UTC))
    text = json.dumps(members, allow_nan=False)
    assert json.loads(text)["per_second"]["refreshes"].keys() == {*metrics.REFRESHES.labels["outcome"]}


# -- doors


def test_a_door_has_a_url_of_a_host_and_nothing_secret_in_it() -> None:
    assert Door.of("http://a.example:9100").url == "http://a.example:9100/metrics"
    assert Door.of("https://[::1]/keyturn/metrics").path == "/keyturn/metrics"
    for bad in ("a.example", "ftp://a/", "http://", "http://u:p@a/", "http://a/?t=1", "http://a:x/", "http://a/ b"):
        with pytest.raises(ValueError, match="URL") as refused:
            Door.of(bad)
        assert bad not in str(refused.value)
    assert TOKEN not in repr(Door.of("http://a/", TOKEN))


@contextmanager
def answering(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A server of HTTP that answers each request by a function. Its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_a_door_follows_no_redirect_so_its_token_goes_nowhere_else() -> None:
    asked = list[str | None]()

    def other(request: http.server.BaseHTTPRequestHandler) -> None:
        asked.append(request.headers["Authorization"])
        request.send_response(200)
        request.end_headers()

    with answering(other) as elsewhere:

        def moved(request: http.server.BaseHTTPRequestHandler) -> None:
            request.send_response(302)
            request.send_header("Location", elsewhere)
            request.end_headers()

        with answering(moved) as url:
            found = Door.of(url, TOKEN).read()
    assert (found.failure, asked) == ("answers 302", [])


def test_a_door_that_drips_or_never_ends_is_given_up() -> None:
    stop = threading.Event()

    def drips(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        while not stop.wait(0.05):
            try:
                request.wfile.write(b"# \n")
            except OSError:
                return

    def floods(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        try:
            for _ in range(20):
                request.wfile.write(b"#" * 1024 * 1024)
        except OSError:
            return

    def drips_its_head(request: http.server.BaseHTTPRequestHandler) -> None:
        while not stop.wait(0.05):
            try:
                request.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            except OSError:
                return

    with answering(drips) as dripping, answering(floods) as flooding, answering(drips_its_head) as slow:
        assert Door.of(dripping).read().failure == "no answer within 2 s"
        assert Door.of(flooding).read().failure in {"answers with more than 8 MiB", "no answer within 2 s"}
        assert Door.of(slow).read().failure == "no answer within 2 s"
        stop.set()


def test_an_answer_that_was_cut_off_gives_no_numbers() -> None:
    def cut(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        request.wfile.write(b'keyturn_refreshes_total{outcome="rotated"} 41')

    with answering(cut) as url:
        found = Door.of(url).read()
    assert (found.failure, found.samples) == ("no HTTP answer", {})


def test_a_door_that_is_shut_or_none_is_told_in_words() -> None:
    def page(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(int(request.path.removeprefix("/")))
        request.end_headers()
        request.wfile.write(b"<html>\x1b[31m")

    with answering(page) as url:
        assert Door.of(f"{url}/200").read().failure == "line 1 is no sample of a metric"
        assert "KEYTURN_METRICS_TOKEN" in str(Door.of(f"{url}/401").read().failure)
        assert "KEYTURN_METRICS_PORT" in str(Door.of(f"{url}/404").read().failure)
    assert Door.of(f"http://127.0.0.1:{free_port()}").read().failure == "connection refused"


# -- the command, on a real service


class Running:
    """A service with a metrics port, and one user who is signed in."""

    def __init__(self, service: Service, metrics_port: int, refresh_token: str, environment: dict[str, str]) -> None:
        self.service = service
        self.door = f"http://127.0.0.1:{metrics_port}"
        self.environment = environment
        self._refresh_token = refresh_token

    def refresh(self, times: int = 1) -> None:
        with httpx2.Client(base_url=self.service.url, timeout=20, trust_env=False) as client:
            for _ in range(times):
                body = {"refresh_token": self._refresh_token}
                self._refresh_token = client.post("/auth/refresh", json=body).json()["refresh_token"]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Iterator[Running]:
    folder, port = tmp_path_factory.mktemp("top"), free_port()
    values = {
        "data_dir": str(folder / "data"),
        "secret": SECRET,
        "issuer": "https://auth.example.com",
        "registration": "true",
        "metrics_port": str(port),
        "metrics_token": TOKEN,
        **CHEAP,
    }
    environment = {f"KEYTURN_{name.upper()}": value for name, value in values.items()}
    with Service.start(environment, logs=logs) as started:
        with httpx2.Client(base_url=started.url, timeout=20, trust_env=False) as client:
            account = {"email": "ada@example.com", "password": PASSWORD}
            client.post("/auth/register", json=account)
            tokens = client.post("/auth/login", json=account).json()
        yield Running(started, port, tokens["refresh_token"], environment)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n", encoding="ascii")
    return path


def command(*words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app", "top", *words],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE * 2,
        check=False,
    )


def test_the_door_of_the_settings_is_asked_with_their_token_and_the_rates_are_those_of_the_interval(
    service: Running, tmp_path: Path
) -> None:
    traffic = threading.Thread(target=service.refresh, args=(40,))
    traffic.start()
    done = command("--json", "--interval", "4", folder=tmp_path, **service.environment)
    traffic.join()
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["instances"] == [{"url": f"{service.door}/metrics", "failure": None}]
    assert told["seconds"] >= 4
    assert told["database"]["answers"] == 1
    assert told["redis"]["none"] == 1
    assert TOKEN not in done.stdout


def test_a_pipe_gets_one_interval_as_text_without_control_characters(
    service: Running, tmp_path: Path, token_file: Path
) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    words = (service.door, away, "--interval", "1", "--token-file", str(token_file))
    done = command(*words, folder=tmp_path, TERM="xterm")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 of 2 instances, 1 process," in done.stdout
    assert f"{away}/metrics  connection refused" in done.stdout
    assert all(line.isprintable() for line in done.stdout.splitlines())


def test_it_fails_with_words_where_no_door_answers_or_none_is_named(service: Running, tmp_path: Path) -> None:
    shut = command(service.door, "--once", "--interval", "1", folder=tmp_path)
    assert shut.returncode == 3
    assert "answers 401" in shut.stderr
    none = command("--once", folder=tmp_path)
    assert none.returncode == 1
    assert "KEYTURN_METRICS_PORT" in none.stderr
    secret = tmp_path / "secret"
    secret.write_text("two words\n", encoding="ascii")
    wrong = command(service.door, "--token-file", str(secret), folder=tmp_path)
    assert wrong.returncode == 2
    assert "two words" not in wrong.stderr
    assert command("http://user:hunter2@a/", folder=tmp_path).stderr.count("hunter2") == 0


class Terminal:
    """A pseudo-terminal on which `keyturn top` runs."""

    def __init__(
        self, *words: str, folder: Path, size: tuple[int, int] = (80, 30), shell: str = "", **environment: str
    ) -> None:
        """`shell`: lines of bash with job control, in which `TOP` stands for the command."""
        self.master, end = pty.openpty()
        self.resize(*size)
        self.before = termios.tcgetattr(self.master)
        command = [sys.executable, "-m", "app", "top", *words]
        self.process = subprocess.Popen(
            ["bash", "-mc", shell.replace("TOP", shlex.join(command))] if shell else command,
            cwd=folder,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TERM": "xterm", **environment},
            stdin=end,
            stdout=end,
            stderr=end,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(end, termios.TIOCSCTTY, 0),  # noqa: PLW1509  # so that keys become signals
        )
        self._end = end  # held, so that the state of the terminal can be read when the process is gone
        self.written = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                part = os.read(self.master, 65536)
            except OSError:
                return
            if not part:
                return
            self.written += part.decode("utf-8", errors="replace")

    def until(self, met: Callable[[str], object], what: str) -> str:
        """The text of the terminal since its beginning, as soon as it meets a condition."""
        end = monotonic() + PATIENCE
        while not met(self.written):
            assert monotonic() < end, f"{what} never came: {self.written[-2000:]!r}"
            sleep(0.02)
        return self.written

    def frames(self) -> list[list[str]]:
        """The complete frames, each as the lines that it shows."""
        _, *drawn = self.written.split("\x1b[H")
        complete = [frame.partition("\x1b[J")[0] for frame in drawn if "\x1b[J" in frame]
        # The terminal writes a line feed as carriage return and line feed, also where there is one already.
        return [frame.replace("\x1b[K", "").replace("\r", "").split("\n") for frame in complete]

    def has_drawn(self, number: int) -> None:
        """Waits until so many frames are complete."""
        self.until(lambda _: len(self.frames()) >= number, f"frame {number}")

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._end)
        os.close(self.master)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def plain(line: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", line)


@pytest.fixture
def terminal(service: Running, tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    opened = list[Terminal]()

    def start(**more: Any) -> Terminal:
        opened.append(Terminal("--interval", "1", folder=tmp_path, **{**service.environment, **more}))
        return opened[-1]

    yield start
    for each in opened:
        with closing(each):
            pass


def test_the_live_view_counts_what_happens_and_q_leaves_the_terminal_as_it_was(
    service: Running, terminal: Callable[..., Terminal]
) -> None:
    top = terminal()
    top.until(lambda written: "\x1b[?1049h" in written, "the other screen")
    seen = 0.0
    end = monotonic() + PATIENCE
    while not seen and monotonic() < end:
        service.refresh(5)
        for frame in top.frames():
            for line in map(plain, frame):
                if found := re.search(r"^refreshes .*rotated ([\d.]+)", line):
                    seen = max(seen, float(found[1]))
    assert seen > 0
    top.type(b"q")
    assert top.process.wait(PATIENCE) == 0
    written = top.until(lambda written: written.endswith("\x1b[?25h\x1b[?1049l"), "the first screen")
    assert written.count("\x1b[?1049h") == written.count("\x1b[?1049l") == 1
    assert termios.tcgetattr(top.master) == top.before
    assert "Traceback" not in written
    assert TOKEN not in written


def test_a_frame_follows_the_size_of_the_window_at_once(terminal: Callable[..., Terminal]) -> None:
    top = terminal(size=(100, 40))
    top.has_drawn(1)
    for width, height in ((40, 12), (20, 3), (120, 50)):
        drawn = len(top.frames())
        top.resize(width, height)
        top.has_drawn(drawn + 2)  # the first one may have been under way
        last = [plain(line) for line in top.frames()[-1]]
        assert len(last) <= height
        assert max(len(line) for line in last) <= width
        assert ("more lines" in last[-1]) == (height < 25)


def test_it_writes_no_colour_where_the_environment_wants_none(terminal: Callable[..., Terminal]) -> None:
    coloured, without = terminal(), terminal(NO_COLOR="1")
    for top in (coloured, without):
        top.has_drawn(2)
    assert re.search(r"\x1b\[\d+m", coloured.written)
    assert not re.search(r"\x1b\[[\d;]*m", without.written)


@pytest.mark.parametrize("how", ["CTRL+C", "CTRL+D", "SIGTERM"])
def test_every_way_out_leaves_the_terminal_as_it_was(terminal: Callable[..., Terminal], how: str) -> None:
    top = terminal()
    top.has_drawn(1)
    if how == "SIGTERM":
        top.process.terminate()
    else:
        top.type({"CTRL+C": b"\x03", "CTRL+D": b"\x04"}[how])
    code = top.process.wait(PATIENCE)
    assert code == 0 or how == "SIGTERM"
    top.until(lambda written: written.count("\x1b[?1049l") == 1, "the first screen")
    assert termios.tcgetattr(top.master) == top.before
    assert "Traceback" not in top.written


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash, whose job control stops and continues the view")
def test_a_view_that_is_suspended_gives_the_terminal_back_and_goes_on_later(terminal: Callable[..., Terminal]) -> None:
    # Only a process whose parent is in its session can be stopped: so a shell with job control is in between.
    top = terminal(shell="TOP; echo suspended; read; fg")
    top.has_drawn(1)
    top.type(b"\x1a")
    top.until(lambda written: "suspended" in written.rpartition("\x1b[?1049l")[2], "the first screen and the shell")
    assert termios.tcgetattr(top.master) == top.before
    drawn = len(top.frames())
    top.type(b"\n")
    top.has_drawn(drawn + 1)
    assert top.written.count("\x1b[?1049h") == 2
    top.type(b"q")
    assert top.process.wait(PATIENCE) == 0
    assert top.until(lambda written: written.count("\x1b[?1049l") == 2, "the first screen again")


def test_a_terminal_that_knows_no_sequences_gets_one_interval_as_text(terminal: Callable[..., Terminal]) -> None:
    top = terminal(TERM="dumb")
    assert top.process.wait(PATIENCE * 2) == 0
    written = top.until(lambda written: "event loop late" in written, "the text")
    assert "\x1b" not in written


def test_an_instance_that_goes_away_is_named_and_the_view_goes_on(
    service: Running, tmp_path: Path, token_file: Path, logs: Path
) -> None:
    port = free_port()
    other = {**service.environment, "KEYTURN_METRICS_PORT": str(port), "KEYTURN_DATA_DIR": str(tmp_path / "data")}
    second = Service.start(other, logs=logs)
    words = (service.door, f"http://127.0.0.1:{port}", "--interval", "1", "--token-file", str(token_file))
    with closing(second), closing(Terminal(*words, folder=tmp_path, size=(100, 40))) as top:
        top.until(lambda written: "2 of 2 instances" in written, "both instances")
        second.kill()
        top.until(lambda written: "1 of 2 instances" in written, "the loss of one")
        top.until(lambda written: "connection refused" in written, "why")
        top.type(b"q")
        assert top.process.wait(PATIENCE) == 0


async def test_asking_takes_as_long_as_the_slowest_door_and_not_as_all_together() -> None:
    # Counted, and not timed: all doors are asked before the first one answers.
    together = threading.Barrier(3, timeout=PATIENCE)

    def waits(request: http.server.BaseHTTPRequestHandler) -> None:
        together.wait()
        request.send_response(200)
        request.end_headers()
        request.wfile.write(b'keyturn_refreshes_total{outcome="rotated"} 1\n')

    with (
        answering(waits) as a,
        answering(waits) as b,
        answering(waits) as c,
        asking([Door.of(url) for url in (a, b, c)]) as ask,
    ):
        found = await asyncio.to_thread(ask.now)
    assert [each.failure for each in found.values()] == [None, None, None]
