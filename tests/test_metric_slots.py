"""Slots: several processes count in one piece of memory, and a process that dies loses nothing and doubles nothing."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
from math import inf
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from time import monotonic, sleep
from typing import Any, cast

import pytest

from app import metric_slots, metrics
from app.metric_kinds import Counter, CounterBy, Gauge, GaugeBy, HistogramBy
from app.metric_slots import Slots
from app.routes.exposition import exposed

SPAWN = multiprocessing.get_context("spawn")
COUNTS = 1000


def count_and_die(slots: Slots, how: int) -> None:
    assert slots.take()
    for _ in range(COUNTS):
        metrics.REFRESHES.count("rotated")
        metrics.DURATION.observe(("refresh", "2xx"), 0.003)
    metrics.HASHES_WAITING.set(7)
    metrics.PROCESSES.set(1)
    os.kill(os.getpid(), how)


def count_in_database(slots: Slots, orders: Connection) -> None:
    """Counts live sessions: as many as are sent. Sends the door's text whenever nothing but None is sent."""
    assert slots.take()
    while True:
        number = orders.recv()
        metric_slots.moved()
        if number is not None:
            metrics.SESSIONS_LIVE.set(number)
            metric_slots.counted()
        orders.send((exposed("")[1].decode(), metric_slots.counted_at()))


def stay(slots: Slots, answers: Connection) -> None:
    assert slots.take()
    metrics.REFRESHES.count("rotated")
    metrics.PROCESSES.set(1)
    answers.send("counted")
    while not answers.poll(0.02):
        metric_slots.moved()


def read(slots: Slots, still: float, answers: Connection) -> None:
    metric_slots.STILL = still
    assert slots.take()
    metrics.HASHES_WAITING.set(1)
    metrics.PROCESSES.set(1)
    sleep(2 * still)
    metric_slots.moved()
    parts = metric_slots.parts()
    rotated = sum(part.cells[0] for part in parts["keyturn_refreshes_total"])
    observed = sum(
        metrics.DURATION.read(part.cells, 0)[0][-1] for part in parts["keyturn_http_request_duration_seconds"]
    )
    waiting, running = (
        sum(part.cells[0] for part in parts[name] if part.runs)
        for name in ("keyturn_hash_waiting", "keyturn_processes")
    )
    answers.send((rotated, observed, waiting, running))


def sums(slots: Slots, *, still: float = 0.1) -> tuple[float, float, float, float]:
    """Counts, observations, the gauge and the number of processes, as a new process adds them up."""
    here, there = SPAWN.Pipe()
    reader = SPAWN.Process(target=read, args=(slots, still, there))
    reader.start()
    assert here.poll(30)
    found: tuple[float, float, float, float] = here.recv()
    reader.join()
    assert reader.exitcode == 0
    return found


@pytest.fixture
def slots() -> Slots:
    return Slots(2)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_processes_that_die_at_the_same_time_lose_no_count(slots: Slots, how: int) -> None:
    workers = [SPAWN.Process(target=count_and_die, args=(slots, how)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [-how] * 4
    assert sums(slots)[:2] == (4 * COUNTS, 4 * COUNTS)


def test_a_process_in_the_place_of_a_dead_one_counts_on_and_there_is_always_a_free_slot(slots: Slots) -> None:
    for number in range(1, slots.count + 4):  # more processes than slots
        worker = SPAWN.Process(target=count_and_die, args=(slots, signal.SIGKILL))
        worker.start()
        worker.join()
        if number in {1, slots.count + 3}:
            assert sums(slots)[0] == number * COUNTS


def test_processes_that_run_at_the_same_time_have_a_slot_each(slots: Slots) -> None:
    pipes = [SPAWN.Pipe() for _ in range(3)]
    workers = [SPAWN.Process(target=stay, args=(slots, there)) for _, there in pipes]
    for worker, (here, _) in zip(workers, pipes, strict=True):
        worker.start()
        assert here.poll(30)
    try:
        rotated, _, _, running = sums(slots)
        assert (rotated, running) == (3, 4)
    finally:
        for worker, (here, _) in zip(workers, pipes, strict=True):
            here.send("end")
            worker.join()


def test_a_gauge_counts_only_while_its_process_runs(slots: Slots) -> None:
    worker = SPAWN.Process(target=count_and_die, args=(slots, signal.SIGSTOP))
    worker.start()
    assert worker.pid is not None
    end = monotonic() + 30
    while os.waitid(os.P_PID, worker.pid, os.WSTOPPED | os.WNOWAIT | os.WNOHANG) is None and monotonic() < end:
        sleep(0.01)
    try:
        # The process stands still, and its counts count all the same.
        assert sums(slots) == (COUNTS, COUNTS, 1, 1)
    finally:
        worker.kill()
        worker.join()
    assert sums(slots)[2:] == (1, 1)


def test_what_was_counted_in_the_database_is_the_number_of_whoever_counted_last(slots: Slots) -> None:
    pipes: list[Connection] = []

    def started() -> BaseProcess:
        here, there = SPAWN.Pipe()
        process = SPAWN.Process(target=count_in_database, args=(slots, there))
        process.start()
        pipes.append(here)
        return process

    def shown(process: int, count: int | None = None) -> tuple[str | None, float]:
        pipes[process].send(count)
        assert pipes[process].poll(30)
        text, counted_at = pipes[process].recv()
        found = re.search(r"^keyturn_sessions_live (\S+)$", text, re.MULTILINE)
        return found and found[1], counted_at

    first = started()
    assert shown(0) == (None, -inf)
    second = started()
    try:
        assert shown(0, 9)[0] == "9.0"
        assert shown(1)[0] == "9.0"
        assert shown(1, 4)[0] == "4.0"  # many sessions ended; the first process does not count again
        assert shown(0)[0] == "4.0"
        second.kill()
        second.join()
        answer, counted_at = shown(0)
        assert (answer, counted_at > 0) == ("4.0", True)  # the sessions do not end with the process that counted them
        second = started()  # in the slot of the dead one
        assert shown(2)[0] == "9.0"
        assert shown(2)[1] < counted_at  # so the next scrape counts anew
        assert shown(2, 5)[0] == "5.0"
        assert shown(0)[0] == "5.0"
    finally:
        for process in (first, second):
            process.kill()
            process.join()


def test_a_reader_in_the_middle_of_a_write_finds_each_process_in_a_state() -> None:
    gauge = GaugeBy[str]("keyturn_y", "Y.", state=("a", "b", "c"))
    read = list[list[float]]()

    class Watched(list[float]):
        def __setitem__(self, position: Any, value: Any) -> None:
            super().__setitem__(position, value)
            read.append(self[:3])

    gauge.only("b")
    gauge.cells = cast("memoryview[float]", Watched(gauge.cells))
    gauge.only("b")
    assert all(cells == [0, 1, 0] for cells in read)
    gauge.only("c")
    assert all(sum(cells) >= 1 for cells in read)
    assert read[-1] == [0, 0, 1]


def test_a_word_that_is_on_no_list_fails_nothing_and_is_told() -> None:
    counter = CounterBy[str]("keyturn_x_total", "X.", way=("a", "b"))
    counter.count("a")
    counter.count("c", 2)
    assert list(counter.cells[:2]) == [1, 0]
    assert counter.unlisted(counter.cells) == 2
    histogram = HistogramBy[str]("keyturn_y", "Y.", (1, 2), way=("a", "b"))
    histogram.observe("c", 1.5)
    histogram.at("d").observe(1.5)
    assert histogram.unlisted(histogram.cells) == 2
    assert histogram.read(histogram.cells, 0) == ([0, 0, 0], 0)
    assert histogram.read(histogram.cells, 1) == ([0, 0, 0], 0)


def test_an_observation_at_a_bound_belongs_to_its_bucket() -> None:
    histogram = HistogramBy[str]("keyturn_y", "Y.", (1, 2), way=("a", "b"))
    for value in (0, 1, 1.5, 2, 3):
        histogram.observe("b", value)
    assert histogram.read(histogram.cells, 1) == ([2, 4, 5], 7.5)
    assert histogram.read(histogram.cells, 0) == ([0, 0, 0], 0)


def test_moved_numbers_add_to_counts_and_replace_gauges() -> None:
    counter, gauge = Counter("keyturn_x_total", "X."), Gauge("keyturn_y", "Y.")
    counter.count(3)
    gauge.set(5)
    for metric, there in ((counter, 10.0), (gauge, 10.0)):
        cells = memoryview(bytearray(8 * metric.size)).cast("d")
        cells[0] = there
        metric.place(cells)
    assert (counter.cells[0], gauge.cells[0]) == (13, 5)
    counter.count()
    assert counter.cells[0] == 14


def test_a_series_that_was_found_before_the_numbers_moved_counts_in_their_new_place() -> None:
    counter = CounterBy[str]("keyturn_x_total", "X.", way=("a", "b"))
    histogram = HistogramBy[str]("keyturn_y", "Y.", (1, 2), way=("a", "b"))
    of_counter, of_histogram = counter.at("b"), histogram.at("b")
    of_counter.count()
    of_histogram.observe(1.5)
    for metric in (counter, histogram):
        metric.place(memoryview(bytearray(8 * metric.size)).cast("d"))
    of_counter.count()
    of_histogram.observe(1.5)
    assert counter.at("b") is of_counter
    assert list(counter.cells[:2]) == [0, 2]
    assert histogram.read(histogram.cells, 1) == ([0, 2, 2], 3)
