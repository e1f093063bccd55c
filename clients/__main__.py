"""Tries the generators that are named, else all, and prints what became of each. A failure is exit code 1."""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from clients.generators import LEFT_OUT, TRIALS
from clients.trial import Outcome, Trial
from clients.workshop import bench, environment, installed, version_of
from tests.service import Service

PASSWORD = re.compile(r"admin@localhost +(\S{12,})")  # the greeting of a first start names it


def main() -> int:
    """Try the generators one after the other, against one service."""
    parser = argparse.ArgumentParser(prog="clients", description="Tries the clients that generators make.")
    names = [trial.name for trial in TRIALS]
    parser.add_argument("name", nargs="*", choices=[*names, []], metavar="name", help=", ".join(names))
    wanted = parser.parse_args().name
    modules = _modules()
    given = environment(modules)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="keyturn-clients-") as logs, Service.start({}, logs=Path(logs)) as service:
        found = PASSWORD.search(service.text())
        if found is None:
            sys.exit(f"The greeting of the service names no password:\n{service.text()}")
        given["KEYTURN_URL"] = service.url
        for trial in TRIALS:
            if wanted and trial.name not in wanted:
                continue
            lacks = [program for program in _programs(trial) if not shutil.which(program, path=given["PATH"])]
            if lacks:
                outcome = Outcome(trial.name, version_of(trial.package), "", f"left out: no {', '.join(lacks)} here")
            else:
                folder = bench(trial.name, modules)
                outcome = trial.outcome(version_of(trial.package), folder, given, (service.url, found[1]))
            outcomes.append(outcome)
            _say(outcome)
    if not wanted:
        for name, why in LEFT_OUT.items():
            _say(Outcome(name, "", "", f"left out: {why}"))
    return any(outcome.why and not outcome.why.startswith("left out") for outcome in outcomes)


def _programs(trial: Trial) -> list[str]:
    """The programs without which a trial can't begin: its own, and those that it needs beside it."""
    return [trial.makes[0].split()[0], *trial.needs]


def _modules() -> Path | None:
    if shutil.which("npm") is None:
        return None
    try:
        return installed()
    except subprocess.CalledProcessError as failed:
        print(f"npm could not install the generators (exit code {failed.returncode}).", file=sys.stderr)
        return None


def _say(outcome: Outcome) -> None:
    print(f"{outcome.name:36}{outcome.version:10}{outcome.done or '-':28}{outcome.why}".rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
