"""The cost of metrics: `python -m bench.metrics`.

Times the calls that one refresh makes alone, in a batch of its own, and beside them the counters of prometheus-client:
within one process, and in its mode for several processes. Each figure is the least of many runs, in nanoseconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import timeit
from types import SimpleNamespace
from typing import Any, cast

from app import metrics
from app.http import counting
from app.http.request import Request
from app.metric_slots import Slots
from app.sessions.outcomes import Outcomes

TIMES, RUNS = 1000, 500

PEER = """
import timeit
from prometheus_client import Counter, Histogram
from bench.metrics import RUNS, TIMES, least
counter = Counter("c", "c", ["outcome"])
child, histogram = counter.labels("rotated"), Histogram("h", "h")
print(least(child.inc), least(lambda: counter.labels("rotated").inc()), least(lambda: histogram.observe(0.003)))
"""


def least(call: Any) -> int:
    """Nanoseconds of one call, without those of the loop and of an empty call."""
    empty = min(timeit.repeat(lambda: None, number=TIMES, repeat=RUNS))
    return round((min(timeit.repeat(call, number=TIMES, repeat=RUNS)) - empty) / TIMES * 1e9)


def of_one_refresh() -> int:
    """The calls of a refresh that rotates, alone in its batch."""
    outcomes, before = Outcomes(), Outcomes()
    size, wait = metrics.BATCH_SIZE.at("rotation"), metrics.BATCH_WAIT.at("rotation")
    request = cast("Request", SimpleNamespace(path="/auth/refresh", refusal=None))

    def refresh() -> None:
        size.observe(1)
        wait.observe(0.0001)
        outcomes.count_rotated()
        counting.count(request, 200, 0.0012)

    def without_metrics() -> None:
        before.rotated += 1  # for `keyturn stats`, which every refresh counts for in any case

    return least(refresh) - least(without_metrics)


def of_peer(folder: str | None) -> list[int]:
    """prometheus-client's counter with its child kept, the same with a look-up of the child, and its histogram."""
    environment = {**os.environ, **({"PROMETHEUS_MULTIPROC_DIR": folder} if folder else {})}
    done = subprocess.run([sys.executable, "-c", PEER], env=environment, check=True, capture_output=True, text=True)
    return [int(each) for each in done.stdout.split()]


def main() -> None:
    """Prints the figures."""
    count = lambda: metrics.REFRESHES.count("rotated")  # noqa: E731  # as the others
    print(f"one count: {least(count)} ns; the metrics of one refresh: {of_one_refresh()} ns")
    assert Slots(4).take()
    print(f"in a slot: one count: {least(count)} ns; the metrics of one refresh: {of_one_refresh()} ns")
    try:
        print("prometheus-client: count {} ns, with labels {} ns, observe {} ns".format(*of_peer(None)))
        with tempfile.TemporaryDirectory() as folder:
            print("for several processes: count {} ns, with labels {} ns, observe {} ns".format(*of_peer(folder)))
    except subprocess.CalledProcessError as e:
        print(e.stderr)


if __name__ == "__main__":
    main()
