"""Measures two checkouts of Keyturn against each other in one run, to see the cost or the gain of a change."""

from dataclasses import replace
from pathlib import Path

from bench.contenders import Contender, keyturn
from bench.driver import Load
from bench.report import Findings
from bench.scenarios import Asking, LoggingOut, measure, row
from bench.servers import Stage
from tests.service import ROOT

LEAST = 0.97
"""Share of the former rate that a change must at least keep."""


def commits(stage: Stage, before: Path) -> Findings:
    """Measures refresh, verify and logout of this checkout and of the one in the folder `before`, in turns."""
    found = Findings()
    sides = {"this checkout": ROOT, "the checkout before": before.resolve()}
    refresh = Load("/auth/refresh", seconds=stage.seconds, warm=stage.warm)
    logout = replace(refresh, path="/auth/logout")
    verify = replace(refresh, path="/auth/verify", method="GET", use="list", bearer=True)
    works: list[tuple[str, Load, list[Contender]]] = [
        ("refresh", refresh, [keyturn(stage, name=name, checkout=folder) for name, folder in sides.items()]),
        ("GET /auth/verify", verify, [_asking(stage, name, folder, verify) for name, folder in sides.items()]),
        ("logout", logout, [LoggingOut(stage, name=name, checkout=folder) for name, folder in sides.items()]),
    ]
    for work, load, contenders in works:
        title = f"{work}, 1 process, 32 connections"
        ours, theirs = measure(stage, found, [(contender, title, load) for contender in contenders])
        row(found, title, contenders[1].name, LEAST, 1.0, ours, theirs)
    return found


def _asking(stage: Stage, name: str, folder: Path, verify: Load) -> Contender:
    us = keyturn(stage, name=name, checkout=folder, sessions=10_000, access=True)
    return Asking(us, replace(verify, tokens=us.tokens))
