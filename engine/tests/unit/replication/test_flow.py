"""Credit between threads: who waits is woken, by credit, by a mark that is due, or by an end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from farshore.errors import FarshoreError, Retry
from farshore.replication.flow import DiskWindow, NodeWindow
from farshore.units import MIB


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


def waits(future: Future[int | None], node: NodeWindow) -> bool:
    """Say whether a call is blocked: it is queued, and not granted by a fresh round."""
    with node.changed:
        pass
    return not future.done()


def test_credit_that_returns_wakes_who_waits(pool: ThreadPoolExecutor) -> None:
    node = NodeWindow(4 * MIB)
    disk = node.disk(MIB, 100 * MIB)
    first = disk.acquire(MIB)
    assert first is not None
    second = pool.submit(disk.acquire, MIB)
    assert waits(second, node)
    disk.written(first)
    assert second.result(30) is not None
    assert node.in_flight() == disk.peak_bytes == MIB


def test_a_failed_chunk_gives_its_credit_back_to_others(pool: ThreadPoolExecutor) -> None:
    node = NodeWindow(MIB)
    one, other = node.disk(MIB, MIB), node.disk(MIB, MIB)
    chunk = one.acquire(MIB)
    assert chunk is not None
    waiting = pool.submit(other.acquire, MIB)
    assert waits(waiting, node)
    one.failed(chunk)
    assert waiting.result(30) is not None
    one.drain()


def test_a_mark_comes_before_more_credit(pool: ThreadPoolExecutor) -> None:
    node = NodeWindow(8 * MIB)
    disk = node.disk(2 * MIB, 2 * MIB)
    for _ in range(2):
        chunk = disk.acquire(MIB)
        assert chunk is not None
        disk.written(chunk)
    assert disk.acquire(MIB) is None
    covered = disk.begin_mark()
    assert covered == 2 * MIB
    disk.durable(covered)
    assert pool.submit(disk.acquire, MIB).result(30) is not None


def test_who_waits_hears_of_a_mark_that_became_due(pool: ThreadPoolExecutor) -> None:
    node = NodeWindow(8 * MIB)
    disk = node.disk(MIB, MIB)
    chunk = disk.acquire(MIB)
    assert chunk is not None
    waiting = pool.submit(disk.acquire, MIB)
    assert waits(waiting, node)
    disk.written(chunk)
    assert waiting.result(30) is None


def test_an_end_wakes_everybody_with_its_error(pool: ThreadPoolExecutor) -> None:
    node = NodeWindow(MIB)
    disk = node.disk(MIB, 100 * MIB)
    assert disk.acquire(MIB) is not None
    calls = [pool.submit(disk.acquire, MIB), pool.submit(disk.drain)]
    disk.abort(Retry("enough", code="first"))
    disk.abort(Retry("more", code="second"))
    for call in calls:
        error = call.exception(30)
        assert isinstance(error, FarshoreError)
        assert error.code == "first"


def test_a_window_that_is_closed_gives_all_of_its_credit_back(pool: ThreadPoolExecutor) -> None:
    node = NodeWindow(2 * MIB)
    one, other = node.disk(2 * MIB, 100 * MIB), node.disk(2 * MIB, 100 * MIB)
    for _ in range(2):
        assert one.acquire(MIB) is not None
    waiting = pool.submit(other.acquire, MIB)
    assert waits(waiting, node)
    one.close()
    assert waiting.result(30) is not None
    assert node.in_flight() == MIB


def test_many_disks_stay_within_the_budget_and_all_end() -> None:
    node = NodeWindow(3 * MIB)
    over: list[int] = []

    def work(disk: DiskWindow) -> None:
        for _ in range(60):
            chunk = disk.acquire(MIB)
            while chunk is None:
                disk.durable(disk.begin_mark())
                chunk = disk.acquire(MIB)
            if node.in_flight() > 3 * MIB:
                over.append(node.in_flight())
            disk.written(chunk)
        disk.drain()
        disk.close()

    threads = [threading.Thread(target=work, args=(node.disk(2 * MIB, 5 * MIB),)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not over
    assert node.in_flight() == 0
