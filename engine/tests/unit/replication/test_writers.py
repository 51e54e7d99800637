"""Lanes of a writer pool: first in, first out, a limit each, and none waits for another."""

from __future__ import annotations

import threading

import pytest
from farshore.replication.writers import Lane, WriterPool

DEADLINE_S = 30


def nothing() -> None:
    """Drop a job."""


def fill(lane: Lane, jobs: int, gate: threading.Event, begun: threading.Semaphore) -> None:
    def job() -> None:
        begun.release()
        assert gate.wait(DEADLINE_S)

    for _ in range(jobs):
        lane.put(job, nothing)


def test_a_lane_does_its_jobs_in_order() -> None:
    lane = WriterPool().lane("disk")
    done: list[int] = []
    for number in range(100):
        lane.put(lambda number=number: done.append(number), nothing)  # type: ignore[misc]
    lane.drain()
    assert done == list(range(100))


def test_a_lane_that_hangs_keeps_as_many_threads_as_it_may_and_no_other_lane() -> None:
    pool = WriterPool()
    stuck, other = pool.lane("stuck", 2), pool.lane("other", 2)
    gate, begun = threading.Event(), threading.Semaphore(0)
    fill(stuck, 5, gate, begun)
    for _ in range(2):
        assert begun.acquire(timeout=DEADLINE_S)
    done = threading.Event()
    other.put(done.set, nothing)
    assert done.wait(DEADLINE_S)
    assert not begun.acquire(blocking=False), "a third job began"
    stuck.parallel = 3
    fill(stuck, 1, gate, begun)
    assert begun.acquire(timeout=DEADLINE_S)
    gate.set()
    stuck.drain()
    other.drain()
    assert pool.threads <= 4


def test_a_thread_that_has_nothing_to_do_takes_the_next_job() -> None:
    pool = WriterPool()
    lane = pool.lane("disk")
    for _ in range(200):
        lane.put(nothing, nothing)
        lane.drain()
    assert pool.threads <= 3


def test_a_job_that_fails_unheard_costs_no_thread() -> None:
    lane = WriterPool().lane("disk")
    done = threading.Event()

    def job() -> None:
        raise ZeroDivisionError

    lane.put(job, nothing)
    lane.put(done.set, nothing)
    assert done.wait(DEADLINE_S)


def test_where_no_thread_can_be_had_the_jobs_are_done_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    pool = WriterPool()
    lane = pool.lane("disk")
    done: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        lane.put(lambda: done.append(1), nothing)
    assert done == [1]
    lane.put(lambda: done.append(2), nothing)
    lane.drain()
    assert done == [1, 2]
    assert pool.threads == 1


def test_closing_drops_what_waits_and_waits_for_what_runs() -> None:
    lane = WriterPool().lane("disk")
    gate, begun = threading.Event(), threading.Semaphore(0)
    paused: list[bool] = []
    dropped: list[int] = []

    def job() -> None:
        begun.release()
        paused.append(lane.pause(DEADLINE_S))

    lane.put(job, nothing)
    assert begun.acquire(timeout=DEADLINE_S)
    lane.put(gate.set, lambda: dropped.append(1))
    lane.close()
    assert dropped == [1]
    assert paused == [False], "closing ends a pause"
    lane.put(gate.set, lambda: dropped.append(2))
    assert dropped == [1, 2]
    assert not gate.is_set()
    lane.close()
