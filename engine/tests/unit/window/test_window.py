"""What the scheduler refuses, and a node's budget."""

from __future__ import annotations

import pytest
from farshore.units import CHUNK_SIZE, GIB, MIB
from farshore.window.budget import NODE_BUDGET_MAX, NODE_BUDGET_MIN, node_budget
from farshore.window.levels import fixed_level
from farshore.window.scheduler import Scheduler


def test_a_budget_is_a_quarter_of_the_memory_within_bounds() -> None:
    assert node_budget(1 * GIB) == 256 * MIB
    assert node_budget(64 * GIB) == NODE_BUDGET_MAX
    assert node_budget(8 * MIB) == NODE_BUDGET_MIN


def test_a_level_is_what_the_plan_says_within_bounds() -> None:
    assert fixed_level(32 * MIB) == 32 * MIB
    assert fixed_level(1) == CHUNK_SIZE
    assert fixed_level(GIB) == 64 * MIB


def test_what_could_never_move_is_refused() -> None:
    with pytest.raises(ValueError, match="no room"):
        Scheduler(CHUNK_SIZE - 1)
    scheduler = Scheduler(CHUNK_SIZE)
    with pytest.raises(ValueError, match="nothing move"):
        scheduler.add_disk(1, CHUNK_SIZE - 1, 1)
    scheduler.add_disk(1, CHUNK_SIZE, 1)
    with pytest.raises(ValueError, match="already"):
        scheduler.add_disk(1, CHUNK_SIZE, 1)
    for size in (0, CHUNK_SIZE + 1):
        with pytest.raises(ValueError, match="chunk has"):
            scheduler.want(1, 1, size)
    with pytest.raises(ValueError, match="cannot be durable"):
        scheduler.durable(1, 1)


def test_a_disk_that_goes_gives_its_credit_back() -> None:
    scheduler = Scheduler(2 * CHUNK_SIZE)
    for disk in (1, 2):
        scheduler.add_disk(disk, 2 * CHUNK_SIZE, CHUNK_SIZE)
    for chunk in (1, 2, 3):
        scheduler.want(1, chunk, CHUNK_SIZE)
    assert scheduler.requested(0.0) == [(1, 1), (1, 2)]
    scheduler.want(2, 1, CHUNK_SIZE)
    assert scheduler.requested(0.0) == []
    scheduler.remove_disk(1)
    assert scheduler.requested(0.0) == [(2, 1)]
    scheduler.written(2, 1, 2.5)
    assert scheduler.latency(2) == 2.5
    assert scheduler.in_flight() == 0


def test_small_chunks_of_others_do_not_pass_a_large_one_for_ever() -> None:
    scheduler = Scheduler(CHUNK_SIZE)
    scheduler.add_disk(1, CHUNK_SIZE, 10**9)
    scheduler.add_disk(2, CHUNK_SIZE, 10**9)
    scheduler.want(2, 1, 1)
    assert scheduler.requested(0.0) == [(2, 1)]
    scheduler.want(1, 1, CHUNK_SIZE)
    for chunk in range(2, 50):
        scheduler.want(2, chunk, 1)
    assert scheduler.requested(1.0) == []
    scheduler.written(2, 1, 2.0)
    assert scheduler.requested(2.0) == [(1, 1)]
