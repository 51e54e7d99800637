"""Credit between threads: who waits is woken, by credit, by a mark that is due, or by an end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from farshore.errors import FarshoreError, Retry
from farshore.replication import flow
from farshore.replication.flow import DiskWindow, NodeWindow
from farshore.units import MIB


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


def fixed(node: NodeWindow, level: int, mark: int) -> DiskWindow:
    """Take up a disk whose window does not change."""
    return node.disk((level,), level, mark)


def waits(future: Future[int], node: NodeWindow) -> bool:
    """Say whether a call is blocked: it is queued, and not granted by a fresh round."""
    with node.lock:
        pass
    return not future.done()


def test_credit_that_returns_wakes_who_waits(pool: ThreadPoolExecutor) -> None:
    node = NodeWindow(4 * MIB)
    disk = fixed(node, MIB, 100 * MIB)
    first = disk.acquire(MIB)
    second = pool.submit(disk.acquire, MIB)
    assert waits(second, node)
    disk.written(first)
    assert second.result(30)
    assert node.in_flight() == disk.peak_bytes == MIB


def test_a_failed_chunk_gives_its_credit_back_to_others(pool: ThreadPoolExecutor) -> None:
    node = NodeWindow(MIB)
    one, other = fixed(node, MIB, MIB), fixed(node, MIB, MIB)
    chunk = one.acquire(MIB)
    waiting = pool.submit(other.acquire, MIB)
    assert waits(waiting, node)
    one.failed(chunk)
    assert waiting.result(30)
    one.drain()


def test_chunks_go_on_while_a_mark_is_made_and_wait_when_too_much_is_at_stake(pool: ThreadPoolExecutor) -> None:
    node = NodeWindow(16 * MIB)
    disk = fixed(node, 2 * MIB, 4 * MIB)
    disk.written(disk.acquire(MIB))
    assert disk.mark_due(), "a quarter of the mark is written"
    covered = disk.begin_mark()
    assert covered == MIB
    for _ in range(5):
        disk.written(disk.acquire(MIB))
        assert not disk.mark_due(), "one is being made"
    waiting = pool.submit(disk.acquire, MIB)
    assert waits(waiting, node)
    disk.durable(covered)
    assert waiting.result(30)
    assert disk.mark_due()


def test_a_rate_that_is_lifted_wakes_who_waits_for_it(pool: ThreadPoolExecutor) -> None:
    node = NodeWindow(16 * MIB)
    node.limit("plan:a", 0)
    disk = node.disk((2 * MIB,), 2 * MIB, 4 * MIB, limits=("plan:a",))
    waiting = pool.submit(disk.acquire, MIB)
    assert waits(waiting, node)
    node.limit("plan:a", None)
    assert waiting.result(30)


def test_a_chunk_that_came_counts_what_crossed_the_link(pool: ThreadPoolExecutor) -> None:
    node = NodeWindow(16 * MIB)
    node.limit("plan:a", 1e-6 * MIB)
    disk = node.disk((2 * MIB,), 2 * MIB, 4 * MIB, limits=("plan:a",))
    chunk = disk.acquire(MIB)
    waiting = pool.submit(disk.acquire, MIB)
    assert waits(waiting, node)
    disk.received(chunk, surplus_bytes=MIB)
    assert waiting.result(30), "it was all zero, and cost nothing"


def test_what_is_known_of_a_disk_may_be_read_while_it_works() -> None:
    node = NodeWindow(64 * MIB)
    disk = node.disk((16 * MIB, 32 * MIB), 32 * MIB, 100 * MIB, writers_max=4)
    chunk = disk.acquire(MIB)
    disk.retried()
    disk.received(chunk)
    disk.written(chunk, 0.01)
    assert (disk.level, disk.writers, disk.changes) == (32 * MIB, 1, ())
    assert node.peak_bytes == disk.peak_bytes == MIB
    disk.close()
    disk.close()


def test_an_end_wakes_everybody_with_its_error(pool: ThreadPoolExecutor) -> None:
    node = NodeWindow(MIB)
    disk = fixed(node, MIB, 100 * MIB)
    disk.acquire(MIB)
    calls = [pool.submit(disk.acquire, MIB), pool.submit(disk.drain)]
    disk.abort(Retry("enough", code="first"))
    disk.abort(Retry("more", code="second"))
    for call in calls:
        error = call.exception(30)
        assert isinstance(error, FarshoreError)
        assert error.code == "first"


def test_a_window_that_is_closed_gives_all_of_its_credit_back(pool: ThreadPoolExecutor) -> None:
    node = NodeWindow(2 * MIB)
    one, other = fixed(node, 2 * MIB, 100 * MIB), fixed(node, 2 * MIB, 100 * MIB)
    for _ in range(2):
        one.acquire(MIB)
    waiting = pool.submit(other.acquire, MIB)
    assert waits(waiting, node)
    one.close()
    assert waiting.result(30)
    assert node.in_flight() == MIB


def test_what_a_path_has_been_seen_to_hold_opens_more_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(flow.time, "monotonic", lambda: clock[0])
    node = NodeWindow(512 * MIB)
    disk = fixed(node, 64 * MIB, 500 * MIB)
    assert node.scheduler.usable_bytes == 64 * MIB
    for chunk in [disk.acquire(MIB) for _ in range(64)]:
        disk.written(chunk)
    clock[0] += 1.0
    node.seen(0.95)  # 64 MiB in a second, on a way of a second: it holds 64 MiB
    assert node.scheduler.usable_bytes == 256 * MIB
    clock[0] += 1.0
    node.seen(0.95)  # and nothing since
    assert node.scheduler.usable_bytes == 64 * MIB


def test_many_disks_stay_within_the_budget_and_all_end() -> None:
    node = NodeWindow(3 * MIB)
    over: list[int] = []

    def work(disk: DiskWindow) -> None:
        for _ in range(60):
            chunk = disk.acquire(MIB)
            if node.in_flight() > 3 * MIB:
                over.append(node.in_flight())
            disk.written(chunk)
            if disk.mark_due():
                disk.durable(disk.begin_mark())
        disk.drain()
        disk.close()

    threads = [threading.Thread(target=work, args=(fixed(node, 2 * MIB, 5 * MIB),)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not over
    assert node.in_flight() == 0
