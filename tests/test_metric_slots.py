"""Slots: several processes count in one piece of memory, and a process that dies loses nothing and doubles nothing."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from time import monotonic, sleep

import pytest

from app import metric_slots, metrics
from app.metric_kinds import Counter, CounterBy, Gauge, HistogramBy
from app.metric_slots import Slots

SPAWN = multiprocessing.get_context("spawn")
COUNTS = 1000


def count_and_die(slots: Slots, how: int) -> None:
    assert slots.take()
    for _ in range(COUNTS):
        metrics.REFRESHES.count("rotated")
        metrics.DURATION.observe(("refresh", "2xx"), 0.003)
    metrics.HASHES_WAITING.set(7)
    os.kill(os.getpid(), how)


def stay(slots: Slots, answers: Connection) -> None:
    assert slots.take()
    metrics.REFRESHES.count("rotated")
    answers.send("counted")
    while not answers.poll(0.02):
        metric_slots.moved()


def read(slots: Slots, still: float, answers: Connection) -> None:
    metric_slots.STILL = still
    assert slots.take()
    metrics.HASHES_WAITING.set(1)
    sleep(2 * still)
    metric_slots.moved()
    parts = metric_slots.parts()
    rotated = sum(part.cells[0] for part in parts["keyturn_refreshes_total"])
    observed = sum(
        metrics.DURATION.read(part.cells, 0)[0][-1] for part in parts["keyturn_http_request_duration_seconds"]
    )
    waiting = sum(part.cells[0] for part in parts["keyturn_hash_waiting"] if part.runs)
    answers.send((rotated, observed, waiting, metric_slots.running()))


def sums(slots: Slots, *, still: float = 0.1) -> tuple[float, float, float, int]:
    """Counts, observations, the gauge and the number of processes, as a new process adds them up."""
    here, there = SPAWN.Pipe()
    reader = SPAWN.Process(target=read, args=(slots, still, there))
    reader.start()
    assert here.poll(30)
    found: tuple[float, float, float, int] = here.recv()
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
        # It stands still, and its counts count all the same.
        assert sums(slots) == (COUNTS, COUNTS, 1, 1)
    finally:
        worker.kill()
        worker.join()
    assert sums(slots)[2:] == (1, 1)


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
