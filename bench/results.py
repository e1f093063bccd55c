"""The files that full runs write: results.json, and RESULTS.md with its plots, which are made from results.json."""

import json
import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import redis

from bench.plots import file_name, svg
from bench.report import ROWS, Curve, Findings, table, text
from bench.servers import Database, Stage

HERE = Path(__file__).parent
KEPT = HERE / "results.json"
PACKAGES = ("fastapi", "uvicorn", "uvloop", "httptools", "sqlalchemy", "asyncpg", "redis", "pyjwt", "argon2-cffi")

INTRODUCTION = """\
Written by `python3 dev.py bench`. Every figure is the median of interleaved rounds (A B C, C B A) on one machine that
carries service, database, Redis and driver together, so the ratios say more than the rates. A run whose database does
not agree with its driver is void and says so. `others` is the share of the machine that went, at worst, to processes
that have no part in the run: above a few per cent the machine was shared and the run disturbed. CPU is microseconds a
request, by process."""


def keep(stage: Stage, name: str, findings: Findings, seconds: float) -> None:
    """Replaces a scenario's part of results.json, and writes RESULTS.md and the plots again.

    `seconds` is how long the scenario took.
    """
    kept: dict[str, Any] = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    kept[name] = {
        "measured_at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "took": f"{seconds:.0f} s",
        "commit": _said("git", "describe", "--always", "--dirty"),
        "rounds": stage.rounds,
        "seconds": stage.seconds,
        "machine": _machine(),
        "versions": _versions(stage),
        "findings": findings.as_json(),
    }
    KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    write(kept)


def write(kept: dict[str, Any]) -> None:
    """Writes RESULTS.md and the plots."""
    from bench.scenarios import SCENARIOS  # noqa: PLC0415  # at the top, the import would be a circle

    there = {name: Findings.from_json(kept[name]["findings"]) for name in SCENARIOS if name in kept}
    rows = [row.cells() for findings in there.values() for row in findings.rows]
    parts = [
        "# Results",
        INTRODUCTION,
        "## Where it must get to",
        table(ROWS, rows),
        "## Plots",
    ]
    plots = HERE / "plots"
    shutil.rmtree(plots, ignore_errors=True)
    plots.mkdir()
    curves = sorted((curve for findings in there.values() for curve in findings.curves), key=lambda curve: curve.plot)
    for plot, group in groupby(curves, key=_plot):
        (plots / file_name(plot)).write_text(svg(plot, list(group)), encoding="utf-8")
        parts.append(f"![{plot}](plots/{file_name(plot)})")
    for name, findings in there.items():
        about = kept[name]
        doc = (SCENARIOS[name].__doc__ or "").strip()
        rounds = max((len(figures.runs) for figures in findings.figures), default=0)
        how = "once" if rounds == 1 else f"{rounds or about['rounds']} rounds"
        if rounds > 1:
            how += f" of {about['seconds']:g} s"
        parts += [
            f"## {name}",
            f"{doc} Measured {about['measured_at']} at {about['commit']}, {how}, in {about['took']}.",
            text(findings),
        ]
    parts.append("## Machine and versions")
    for (machine, versions), names in groupby(there, key=lambda name: (kept[name]["machine"], kept[name]["versions"])):
        parts.append(f"{', '.join(names)}: {machine}; {versions}.")
    (HERE / "RESULTS.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _plot(curve: Curve) -> str:
    return curve.plot


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, {platform.system()} {platform.release()}"


def _versions(stage: Stage) -> str:
    postgres = Database(stage.postgres, "postgres").row("SHOW server_version")[0]
    with redis.Redis.from_url(stage.redis.url()) as client:
        info: Any = client.info("server")
    said = {
        "Python": platform.python_version(),
        "PostgreSQL": postgres,
        "Valkey": info.get("valkey_version", info["redis_version"]),
        **{package: version(package) for package in PACKAGES},
        "node": _said("node", "--version"),
        "cc": _said("cc", "-dumpfullversion"),
    }
    return ", ".join(f"{name} {number}" for name, number in said.items() if number)


def _said(*command: str) -> str:
    if not shutil.which(command[0]):
        return ""
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=HERE).stdout.strip()
