"""Runs scenarios, prints their findings and writes those of a full run.

A full run replaces its scenarios' part of results.json and writes RESULTS.md and the plots from that file. A quick
run is too short to be compared with another run: the benchmark prints its findings and writes nothing.
"""

import argparse
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from bench import report
from bench.commits import commits
from bench.programs import NoCompilerError, compiled
from bench.results import keep
from bench.scenarios import SCENARIOS
from bench.servers import stage


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description="Measures Keyturn against its rivals.")
    parser.add_argument("scenario", nargs="*", choices=[*SCENARIOS, []], metavar="scenario", help=", ".join(SCENARIOS))
    parser.add_argument("--quick", action="store_true", help="run all scenarios in under two minutes and write nothing")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="duration of each run after its warm-up")
    parser.add_argument("--sessions", type=int, help="in the large table (5,000,000)")
    parser.add_argument("--refreshes", type=int, help="of the scenario endurance (2,000,000)")
    parser.add_argument("--before", type=Path, help="another checkout: measure this one against it, and nothing else")
    given = parser.parse_args()
    quick, some = given.quick, bool(given.scenario)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # SystemExit, so that `with` ends the servers
    try:
        compiled("driver")
    except NoCompilerError as why:
        sys.exit(str(why))
    with ExitStack() as everything:
        where = stage(
            everything,
            quick=quick,
            rounds=given.rounds or (5 if not quick else 2 if some else 1),
            seconds=given.seconds or (8 if not quick else 2 if some else 1),
            warm=2 if not quick else 0.5 if some else 0.3,
            small=10_000 if quick else 50_000,
            sessions=given.sessions or (200_000 if quick else 5_000_000),
            refreshes=given.refreshes or (20_000 if quick else 2_000_000),
        )
        if given.before:
            with where.part() as part:
                print(report.text(commits(part, given.before)), flush=True)
            return
        for name in given.scenario or SCENARIOS:
            began = time.monotonic()
            with where.part() as part:
                found = SCENARIOS[name](part)
            took = time.monotonic() - began
            print(f"\n## {name} ({took:.0f} s)\n\n{report.text(found)}", flush=True)
            if not quick:
                keep(where, name, found, took)


if __name__ == "__main__":
    main()
