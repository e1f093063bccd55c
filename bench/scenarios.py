"""The scenarios. Each measures one row of the table of targets, or two or three rows that share their runs."""

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from http.client import HTTPConnection, HTTPException
from itertools import islice
from math import ceil
from os import cpu_count
from pathlib import Path
from statistics import median

from bench.contenders import Contender, Keyturn, LeftOut, Pgbench, Run, keyturn, keyturn_on_sqlite, rival
from bench.driver import REFRESH, Driving, Load
from bench.report import Curve, Figures, Findings, Row, ratios
from bench.servers import ISSUER, Database, Stage, resident_mib
from bench.sessions import PASSWORD, Books, email
from tests.servers import free_port
from tests.service import ROOT

Entry = tuple[Contender, str, Load]
"""A contender, the title of its load, and the load."""


def _refresh(stage: Stage, **options: object) -> Load:
    return replace(Load("/auth/refresh", seconds=stage.seconds, warm=stage.warm), **options)  # type: ignore[arg-type]  # the fields of Load


def measure(stage: Stage, found: Findings, entries: Sequence[Entry], *, checkpoint: bool = True) -> list[list[Run]]:
    """Runs the entries in turns (A B C, C B A), so that a disturbance of the machine hits all of them.

    Each second round goes backwards: whoever always came first would be measured on a machine that had just rested.
    """
    figures = [Figures(contender.name, title, []) for contender, title, _ in entries]
    for number in range(stage.rounds):
        for (contender, _, load), mine in list(zip(entries, figures, strict=True))[:: -1 if number % 2 else 1]:
            if checkpoint:
                stage.checkpoint()
            mine.runs.append(contender.run(load))
    found.figures += figures
    return [mine.runs for mine in figures]


def row(
    found: Findings,
    work: str,
    against: str,
    least: float | None,
    stretch: float | None,
    ours: list[Run],
    theirs: list[Run],
) -> None:
    """Adds a row with the ratios of two rates."""
    void = [run.void for run in [*ours, *theirs] if run.void]
    rounds = ratios(ours, theirs) if theirs else []  # empty if the rival cannot run here
    found.rows.append(Row(work, against, least, stretch, rounds, void=void))


def _rivals(stage: Stage, found: Findings, names: dict[str, str], workers: int = 1) -> list[Contender]:
    """Starts the rivals that can run on this machine, and adds a note for each other rival."""
    there: list[Contender] = []
    for name, title in names.items():
        try:
            there.append(rival(stage, name, title, workers))
        except LeftOut as why:
            found.notes.append(str(why))
    return there


def refresh(stage: Stage) -> Findings:
    """Measures refresh with one process and 32 connections."""
    found = Findings()
    title = "refresh, 1 process, 32 connections"
    contenders: list[Contender] = [keyturn(stage), Pgbench(stage)]
    rivals = {"fastapi": "empty FastAPI", "asgi": "empty ASGI", "textbook": "textbook", "oidc": "oidc-provider"}
    contenders += _rivals(stage, found, rivals)
    runs = measure(stage, found, [(contender, title, _refresh(stage)) for contender in contenders])
    by_name = {contender.name: mine for contender, mine in zip(contenders, runs, strict=True)}
    targets = {"pgbench": (0.6, 0.9), "empty FastAPI": (1, 1.4), "textbook": (25, 40), "oidc-provider": (5, 8)}
    for name, (least, stretch) in targets.items():
        row(found, title, name, least, stretch, runs[0], by_name.get(name, []))
    return found


def workers(stage: Stage) -> Findings:
    """Measures refresh with two processes and 128 connections, against pgbench with 32 clients."""
    found = Findings()
    title = "refresh, 2 processes, 128 connections"
    ours, theirs = measure(
        stage,
        found,
        [
            (keyturn(stage, workers=2), title, _refresh(stage, connections=128)),
            (Pgbench(stage), "32 clients", _refresh(stage)),
        ],
    )
    row(found, title, "pgbench", 0.9, 1.3, ours, theirs)
    return found


def latency(stage: Stage) -> Findings:
    """Measures the p99 of refresh at half of the highest rate, in an open loop."""
    found = Findings()
    us, them = keyturn(stage), Pgbench(stage)
    peaks = measure(
        stage,
        found,
        [
            (us, "highest rate: 32 connections", _refresh(stage)),
            (us, "highest rate: 128 connections", _refresh(stage, connections=128)),
            (them, "highest rate: 32 clients", _refresh(stage)),
        ],
    )
    ours, theirs = (max(median(run.rate for run in runs) for runs in some) for some in (peaks[:2], peaks[2:]))
    a, b = measure(
        stage,
        found,
        [
            (us, "half of it, open loop", _refresh(stage, connections=128, rate=ours / 2)),
            (them, "half of it, open loop", _refresh(stage, rate=theirs / 2)),
        ],
    )
    rounds = [x.latency["p99"] / y.latency["p99"] for x, y in zip(a, b, strict=True) if not x.void and not y.void]
    row = Row("refresh, p99 at half of the highest rate", "pgbench's p99 at its own half", 3, 1.5, rounds, "lower")
    row.void = [run.void for run in a + b if run.void]
    found.rows.append(row)
    for name, runs in (("Keyturn", a), ("pgbench", b)):
        shares = {50: "p50", 90: "p90", 99: "p99", 99.9: "p99.9"}
        points = [
            (x, median([run.latency[p] / 1000 for run in runs if not run.void] or [0])) for x, p in shares.items()
        ]
        found.curves.append(Curve("Milliseconds at half of the highest rate, by percentile", name, points))
    return found


def verify(stage: Stage) -> Findings:
    """Measures GET /auth/verify, for which the service asks Redis."""
    found = Findings()
    title = "GET /auth/verify, 32 connections"
    us = keyturn(stage, access=True, sessions=10_000)
    load = Load("/auth/verify", method="GET", seconds=stage.seconds, warm=stage.warm)
    contenders: list[Contender] = [Asking(us, replace(load, tokens=us.tokens, use="list", bearer=True))]
    contenders += _rivals(stage, found, {"fastapi": "empty FastAPI", "asgi": "empty ASGI"})
    runs = measure(
        stage,
        found,
        [
            (contender, title, replace(load, path="/auth/verify" if contender.name == us.name else "/"))
            for contender in contenders
        ],
    )
    row(found, title, "empty FastAPI", 1.3, None, runs[0], runs[1])
    row(found, title, "empty ASGI", None, 0.5, runs[0], runs[2])
    return found


SLOW = "Prefer: a=b"
"""A header field that means nothing to the endpoints, but makes the fast door pass the request on to FastAPI's."""


def doors(stage: Stage) -> Findings:
    """Measures the same refresh and the same verify through the fast door and through FastAPI's door."""
    found = Findings()
    refreshing, verifying = keyturn(stage), keyturn(stage, access=True, sessions=10_000)
    load = Load("/auth/verify", method="GET", seconds=stage.seconds, warm=stage.warm)
    verify = replace(load, tokens=verifying.tokens, use="list", bearer=True)
    works: dict[str, tuple[Contender, Contender, Load]] = {
        "refresh": (refreshing, refreshing, _refresh(stage)),
        "GET /auth/verify": (Asking(verifying, verify), Asking(verifying, replace(verify, field=SLOW)), verify),
    }
    for work, (fast, slow, load) in works.items():
        titles = [f"{work}, 32 connections, {door} door" for door in ("fast", "FastAPI's")]
        entries: list[Entry] = [(fast, titles[0], load), (slow, titles[1], replace(load, field=SLOW))]
        ours, theirs = measure(stage, found, entries)
        row(found, titles[0], "FastAPI's door", None, 1.0, ours, theirs)
    return found


OWN_SITE = f"Origin: {ISSUER}"
"""The header field by which a browser says that the page of a request is one of the issuer's."""


def cookies(stage: Stage) -> Findings:
    """Measures refresh and verify by cookies, both of them in each request as a browser sends them, against tokens."""
    found = Findings()
    refreshing = {"a token": keyturn(stage), "cookies": keyturn(stage, cookies=True)}
    verifying = {
        "a token": keyturn(stage, access=True, sessions=10_000),
        "cookies": keyturn(stage, cookies=True, sessions=10_000),
    }
    verify = Load("/auth/verify", method="GET", seconds=stage.seconds, warm=stage.warm, use="list")
    by_token = replace(verify, tokens=verifying["a token"].tokens, bearer=True)
    by_cookies = replace(verify, tokens=verifying["cookies"].tokens, cookies=True, field=OWN_SITE)
    on_the_way = replace(by_cookies, path="/auth/verify?refresh=true")
    titles = ["refresh by cookies", "refresh by a token"]
    entries: list[Entry] = [
        (refreshing["cookies"], titles[0], _refresh(stage, cookies=True, field=OWN_SITE)),
        (refreshing["a token"], titles[1], _refresh(stage)),
    ]
    row(found, f"{titles[0]}, 32 connections", "by a token", COOKIES_LEAST, None, *measure(stage, found, entries))
    entries = [
        (Asking(verifying["cookies"], by_cookies), "GET /auth/verify by cookies", verify),
        (Asking(verifying["cookies"], on_the_way), "GET /auth/verify?refresh=true by cookies", verify),
        (Asking(verifying["a token"], by_token), "GET /auth/verify by a token", verify),
    ]
    *by, theirs = measure(stage, found, entries)
    for (_, title, _), ours in zip(entries, by, strict=False):
        row(found, f"{title}, 32 connections", "by a token", COOKIES_LEAST, None, ours, theirs)
    return found


COOKIES_LEAST = 0.8
"""Share of the rate by tokens that the rate by cookies must at least reach."""


class Asking:
    """Keyturn under one load of its own, which is no refresh."""

    def __init__(self, keyturn: Keyturn, load: Load) -> None:
        self.name = keyturn.name
        self._keyturn = keyturn
        self._load = load

    def run(self, load: Load) -> Run:  # noqa: ARG002  # it runs its own load
        return self._keyturn.ask(self._load)[1]


def logout(stage: Stage) -> Findings:
    """Measures logout against refresh. A logout is acknowledged by Redis and committed before its answer."""
    found = Findings()
    title = "logout, 1 process, 32 connections"
    ours, theirs = measure(
        stage,
        found,
        [
            (LoggingOut(stage), title, replace(_refresh(stage), path="/auth/logout")),
            (keyturn(stage), "refresh", _refresh(stage)),
        ],
    )
    row(found, title, "Keyturn's own refresh", 0.4, 0.8, ours, theirs)
    return found


class LoggingOut:
    """Keyturn under logouts. Each run takes sessions that no other run has, and ends each of them once."""

    def __init__(self, stage: Stage, *, checkout: Path = ROOT, name: str = "Keyturn") -> None:
        self.name = name
        self._stage = stage
        self._most = ceil(20_000 * (stage.seconds + stage.warm))  # more sessions than a run can end
        self._keyturn = keyturn(stage, sessions=self._most * stage.rounds, checkout=checkout)
        self._tokens = self._keyturn.tokens.open(encoding="ascii")
        stage.stack.callback(self._tokens.close)

    def run(self, load: Load) -> Run:
        tokens = self._stage.folder / "logout.tokens"
        tokens.write_text("".join(islice(self._tokens, self._most)), encoding="ascii")
        before = Books.read(self._keyturn.where)
        result, run = self._keyturn.ask(replace(load, body=REFRESH, tokens=tokens, use="once", expect=204))
        ended = Books.read(self._keyturn.where).ended - before.ended
        agrees = result.total <= ended <= result.total + result.unanswered
        return replace(run, void=run.void if agrees else f"acknowledged {result.total}, the table says {ended} ended")


def storm(stage: Stage) -> Findings:
    """Measures refresh while logins, with Argon2 at its production cost, fill all slots and the queue for them."""
    found = Findings()
    us = keyturn(stage)
    slots = max(1, (cpu_count() or 1) - 1)
    body = json.dumps({"email": email(1), "password": PASSWORD})
    logins = Load("/auth/login", connections=2 * slots + 2, body=body)
    calm, stormed = measure(
        stage,
        found,
        [
            (us, "refresh alone", _refresh(stage)),
            (_Beside(us, logins, "logins", found), "refresh in a login storm", _refresh(stage)),
        ],
    )
    row(found, "refresh in a login storm: rate", "without", 0.8, 0.95, stormed, calm)
    found.rows.append(_tail("refresh in a login storm: p99", "without", 3, stormed, calm))
    return found


def junk(stage: Stage) -> Findings:
    """Measures 500 refreshes a second while ten times as many forged refresh tokens arrive."""
    found = Findings()
    us = keyturn(stage)
    spoilt = stage.folder / "junk.tokens"
    with us.tokens.open(encoding="ascii") as genuine:
        spoilt.write_text("".join(_spoilt(token) for token in islice(genuine, 10_000)), encoding="ascii")
    title, rate = "500 refreshes a second, open loop", 500
    tokens = Load("/auth/refresh", rate=10 * rate, body=REFRESH, tokens=spoilt, use="list", expect=401)
    alone, beset = measure(
        stage,
        found,
        [
            (us, title, _refresh(stage, rate=rate)),
            (_Beside(us, tokens, "junk", found), f"{title}, and 5,000 spoilt tokens", _refresh(stage, rate=rate)),
        ],
    )
    found.rows.append(_tail("refresh beside ten times as much junk: p99", "without", 1.5, beset, alone))
    return found


def _spoilt(token: str) -> str:
    """Changes one character in the middle of a token, so that its form stays right and only its tag is wrong."""
    middle = len(token) // 2
    return f"{token[:middle]}{'A' if token[middle] != 'A' else 'B'}{token[middle + 1 :]}"


def _tail(work: str, against: str, most: float, ours: list[Run], theirs: list[Run]) -> Row:
    """A row with the ratios of two p99 latencies."""
    both = list(zip(ours, theirs, strict=True))
    rounds = [a.latency["p99"] / b.latency["p99"] for a, b in both if not a.void and not b.void]
    return Row(work, against, most, None, rounds, "lower", void=[run.void for pair in both for run in pair if run.void])


class _Beside:
    """Keyturn's refresh while another load runs."""

    def __init__(self, keyturn: Keyturn, other: Load, what: str, found: Findings) -> None:
        self.name = keyturn.name
        self._keyturn = keyturn
        self._other = other
        self._what = what
        self._found = found

    def run(self, load: Load) -> Run:
        other = replace(self._other, seconds=load.warm + load.seconds, warm=0.2)
        driving = Driving(other, self._keyturn.service.port)
        try:
            time.sleep(0.2)
            run = self._keyturn.run(load)
            result = driving.result()
        finally:
            driving.close()
        self._found.notes.append(f"{self._what} meanwhile: {result.rate:,.1f} a second, answers {result.statuses}")
        # A 503 is right for a login that finds the queue full.
        wrong = result.statuses.keys() - {str(other.expect), "503"} or not result.acknowledged
        return replace(run, void=run.void or (f"{self._what} answered {result.statuses}" if wrong else None))


def table(stage: Stage) -> Findings:
    """Measures refreshes of sessions that are drawn uniformly from a large table and from a small one."""
    found = Findings()
    sizes = [stage.small, *([stage.sessions // 10] if not stage.quick else []), stage.sessions]
    load = _refresh(stage, use="draw")
    entries: list[Entry] = []
    for size in sizes:
        contender = keyturn(stage, sessions=size)
        # After a checkpoint, the first change of a page makes Postgres write the whole page to its log. A table in use
        # spreads that cost over minutes. So these refreshes change each page before a run counts.
        if not stage.quick:
            contender.run(replace(load, connections=128, seconds=600, warm=0, count=size // 8))
        entries.append((contender, f"refresh, {size:,} sessions drawn uniformly", load))
    runs = measure(stage, found, entries, checkpoint=False)
    row(found, f"refresh, {sizes[-1]:,} sessions, drawn uniformly", f"{sizes[0]:,}", 0.85, 0.95, runs[-1], runs[0])
    points = [(float(size), median(run.rate for run in mine)) for size, mine in zip(sizes, runs, strict=True)]
    found.curves.append(Curve("Refreshes a second by sessions in the table", "Keyturn", points))
    return found


def delay(stage: Stage) -> Findings:
    """Measures refresh with milliseconds added to every round trip to PostgreSQL.

    Beside it, pgbench runs the same statement for one session at a time. pgbench has as many connections as
    Keyturn's hot path.
    """
    found = Findings()
    delays = (0, 1, 5, 20)
    load, one_by_one = _refresh(stage, connections=256), _refresh(stage, connections=4)
    entries: list[Entry] = []
    for ms in delays:
        entries.append((keyturn(stage, delay=ms), f"refresh, 256 connections, PostgreSQL {ms} ms farther", load))
        entries.append((Pgbench(stage, delay=ms), f"4 connections, PostgreSQL {ms} ms farther", one_by_one))
    runs = measure(stage, found, entries)
    batched, single = runs[::2], runs[1::2]
    row(found, "refresh, 5 ms to PostgreSQL, 256 connections", "0 ms, same proxy", 0.6, 0.8, batched[2], batched[0])
    for ms, ours, theirs in zip(delays, batched, single, strict=True):
        row(found, f"refresh in batches, {ms} ms to PostgreSQL", "one by one (pgbench)", 1, None, ours, theirs)
    for name, all_of_it in (("Keyturn", batched), ("one by one", single)):
        points = [(float(ms), median(run.rate for run in mine)) for ms, mine in zip(delays, all_of_it, strict=True)]
        found.curves.append(Curve("Refreshes a second by milliseconds to PostgreSQL", name, points))
    return found


def sqlite(stage: Stage) -> Findings:
    """Measures refresh on SQLite, the default (WAL, synchronous=FULL), against PostgreSQL."""
    found = Findings()
    title = "refresh, 1 process, 32 connections"
    ours, theirs = measure(
        stage,
        found,
        [(keyturn_on_sqlite(stage), title, _refresh(stage)), (keyturn(stage), title, _refresh(stage))],
    )
    row(found, "refresh on SQLite, durable, 1 process", "Keyturn on PostgreSQL", 0.5, 1.0, ours, theirs)
    return found


def endurance(stage: Stage) -> Findings:
    """Refreshes each session a hundred times (quick: ten), and measures the table and the memory of the process."""
    found = Findings()
    each = 10 if stage.quick else 100
    sessions = stage.refreshes // each
    us = keyturn(stage, sessions=sessions)
    assert isinstance(us.where, Database)
    # Sessions that were created together lie on one page. Their clients do not stay together in one batch for ever, so
    # the order is random.
    shuffled = us.tokens.read_text(encoding="ascii").splitlines(keepends=True)
    random.shuffle(shuffled)
    us.tokens.write_text("".join(shuffled), encoding="ascii")
    samples: list[tuple[float, float, float]] = []  # refreshes and bytes for each session, MiB of the process
    over = threading.Event()

    def sample(database: Database) -> None:
        while True:
            turned, size = database.row("SELECT sum(generation), pg_total_relation_size('sessions') FROM sessions")
            samples.append((float(turned) / sessions, size / sessions, resident_mib([us.service.pid])))
            if over.wait(0.2 if stage.quick else 2):
                return

    sampling = threading.Thread(target=sample, args=(us.where,))
    sampling.start()
    run = us.run(_refresh(stage, connections=128, seconds=3600, warm=0, count=sessions * each, use="cycle"))
    over.set()
    sampling.join()
    found.figures.append(Figures(us.name, f"refresh, {sessions * each:,} in all, 128 connections", [run]))
    hot = "SELECT n_tup_hot_upd, n_tup_upd FROM pg_stat_user_tables WHERE relname = 'sessions'"
    in_place, updates = us.where.row(hot)
    found.notes.append(f"{in_place:,} of {updates:,} updates were heap-only: no index was touched.")
    void = [run.void] if run.void else []
    warm = [s for s in samples if s[0] >= each / 10] or samples
    memory = [s[2] for s in warm]
    middle = median(memory)
    found.rows += [
        Row(f"bytes a session after {each} refreshes each", "", 400, 350, [samples[-1][1]], "lower", "B", void),
        Row(
            f"its growth since {each // 10} refreshes each",
            "",
            1.02,
            None,
            [samples[-1][1] / warm[0][1]],
            "lower",
            void=void,
        ),
        Row("memory of a process, at most", "", 150, None, [max(s[2] for s in samples)], "lower", "MiB", void),
        Row(
            f"memory over {sessions * each:,} refreshes, off its middle",
            "flat",
            5,
            None,
            [max(max(memory) - middle, middle - min(memory)) / middle * 100],
            "lower",
            "%",
            void,
        ),
    ]
    found.curves += [
        Curve("Bytes a session by refreshes of each", "table and indexes", [(s[0], s[1]) for s in samples]),
        Curve("Memory of the process (MiB) by refreshes of each session", "Keyturn", [(s[0], s[2]) for s in samples]),
    ]
    return found


def start(stage: Stage) -> Findings:
    """Measures how long the second `keyturn serve` takes until it is ready, against the imports of two libraries."""
    folder = stage.folder / "start"
    found = Findings()
    _until_ready(folder)
    rounds, ready, imported = [], [], []
    for _ in range(max(3, stage.rounds)):
        ready.append(_until_ready(folder))
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import fastapi, sqlalchemy.ext.asyncio"], check=True)
        imported.append(time.perf_counter() - began)
        rounds.append(ready[-1] / imported[-1])
    against = "import fastapi, sqlalchemy.ext.asyncio"
    found.rows.append(Row("second serve ready", against, 3, 2.2, rounds, "lower"))
    found.notes.append(f"ready after {median(ready):.2f} s, the imports alone {median(imported):.2f} s")
    return found


def _until_ready(folder: Path) -> float:
    """Seconds from the start of `keyturn serve` without settings to its first 200 of /readyz."""
    port = free_port()
    command = [sys.executable, "-m", "app", "serve", "--port", str(port)]
    environment = {"KEYTURN_DATA_DIR": str(folder), "PYTHONPATH": str(ROOT)}
    log = folder.with_name("start.log")
    with log.open("wb") as output:
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder.parent, env=environment, stdout=output, stderr=output)
    try:
        while process.poll() is None and time.perf_counter() - began < 60:
            with suppress(OSError, HTTPException), closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
                connection.request("GET", "/readyz")
                if connection.getresponse().status == 200:
                    return time.perf_counter() - began
            time.sleep(0.002)
    finally:
        process.terminate()
        process.wait()
    raise RuntimeError(f"keyturn serve did not get ready:\n{log.read_text(encoding='utf-8')}")


def connections(stage: Stage) -> Findings:
    """Measures the rate with 1 to 256 connections, each for half the duration of the other scenarios."""
    found = Findings()
    contenders: list[Contender] = [keyturn(stage), Pgbench(stage)]
    contenders += _rivals(stage, found, {"fastapi": "empty FastAPI", "textbook": "textbook"})
    steps = (1, 16, 256) if stage.quick else (1, 2, 4, 8, 16, 32, 64, 128, 256)
    loads = [_refresh(stage, connections=n, seconds=stage.seconds / 2, warm=stage.warm / 2) for n in steps]
    once = replace(stage, rounds=1)
    entries = [(c, f"refresh, 1 process, {load.connections} connections", load) for load in loads for c in contenders]
    runs = measure(once, found, entries)
    for i, contender in enumerate(contenders):
        mine = runs[i :: len(contenders)]
        points = [(float(n), run[0].rate) for n, run in zip(steps, mine, strict=True)]
        found.curves.append(Curve("Refreshes a second by connections", contender.name, points))
    return found


SCENARIOS: dict[str, Callable[[Stage], Findings]] = {
    scenario.__name__: scenario
    for scenario in (
        refresh,
        workers,
        latency,
        verify,
        doors,
        cookies,
        logout,
        storm,
        junk,
        table,
        delay,
        sqlite,
        endurance,
        start,
        connections,
    )
}
