"""Lanes of work: each has its bound, they take turns, and stalled ones keep nobody from working."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from farshore.replication import readers
from farshore.replication.readers import Readers

PATIENCE_S = 30.0


@pytest.fixture
def pool() -> Iterator[Readers]:
    one = Readers(2)
    yield one
    one.stop()


def eventually(pool: Readers, condition: Callable[[], bool]) -> None:
    """Wait for ``condition`` as a connection would: looking after the readers now and then."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        pool.look()
        time.sleep(0.005)


def test_all_work_is_done_once(pool: Readers) -> None:
    done: list[int] = []
    for index in range(1000):
        pool.submit(index % 7, lambda index=index: done.append(index))  # type: ignore[misc]
    eventually(pool, lambda: len(done) == 1000 and not pool._lanes)  # nothing is kept of a lane that is empty
    assert sorted(done) == list(range(1000))


def test_a_lane_has_its_bound(pool: Readers) -> None:
    lock, at_once, most, done = threading.Lock(), [0], [0], [0]

    def work() -> None:
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        time.sleep(0.001)
        with lock:
            at_once[0] -= 1
            done[0] += 1

    for _ in range(50):
        pool.submit("one", work)
    eventually(pool, lambda: done[0] == 50)
    assert most[0] == 2


def test_lanes_take_turns() -> None:
    pool = Readers(1)
    order: list[str] = []
    gate = threading.Event()
    held = threading.Event()
    for _ in range(2):  # both threads are held, then all work is queued
        pool.submit(object(), lambda: (held.set(), gate.wait(PATIENCE_S)))
    assert held.wait(PATIENCE_S)
    for _ in range(20):
        pool.submit("long", lambda: order.append("long"))
    pool.submit("short", lambda: order.append("short"))
    gate.set()
    eventually(pool, lambda: len(order) == 21)
    assert order.index("short") < 6
    pool.stop()


def test_stalled_lanes_keep_nobody_from_working(pool: Readers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "STALL_S", 0.01)
    gate, done = threading.Event(), list[int]()
    for lane in range(20):  # many more than there are threads
        for _ in range(3):
            pool.submit(("stalled", lane), lambda: gate.wait(PATIENCE_S))
    for index in range(50):
        pool.submit("quick", lambda index=index: done.append(index))  # type: ignore[misc]
    eventually(pool, lambda: len(done) == 50)
    assert pool._stalled >= 36
    gate.set()
    eventually(pool, lambda: not pool._lanes)
    eventually(pool, lambda: pool._stalled == 0 and len(pool._threads) <= 4)


def test_stopped_it_drops_what_waits_and_ends_its_threads(pool: Readers) -> None:
    gate, late = threading.Event(), list[int]()
    for _ in range(4):
        pool.submit("one", lambda: gate.wait(PATIENCE_S))
    pool.submit("one", lambda: late.append(1))
    threads = list(pool._threads)
    pool.stop()
    pool.submit("one", lambda: late.append(2))
    gate.set()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert late == []
