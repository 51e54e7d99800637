"""What the scheduler refuses, a node's budget and shares, and disks that are held to a rate."""

from __future__ import annotations

import pytest
from farshore.units import CHUNK_SIZE, GIB, MIB, WINDOW_LEVELS
from farshore.window.budget import NODE_BUDGET_MAX, NODE_BUDGET_MIN, guaranteed_share, in_use, node_budget
from farshore.window.levels import first_level, fixed_level, usable_levels
from farshore.window.scheduler import JOIN_S, LINGER_S, Scheduler


def test_a_budget_is_a_quarter_of_the_memory_within_bounds() -> None:
    assert node_budget(1 * GIB) == 256 * MIB
    assert node_budget(64 * GIB) == NODE_BUDGET_MAX
    assert node_budget(8 * MIB) == NODE_BUDGET_MIN


def test_a_budget_that_is_set_holds_but_for_one_chunk() -> None:
    assert node_budget(64 * GIB, 600 * MIB) == 600 * MIB
    assert node_budget(64 * GIB, 1) == CHUNK_SIZE


def test_a_share_is_whole_chunks_within_bounds() -> None:
    assert guaranteed_share(512 * MIB, 1) == 16 * MIB
    assert guaranteed_share(512 * MIB, 80) == 6 * MIB
    assert guaranteed_share(64 * MIB, 80) == CHUNK_SIZE


def test_no_more_of_the_budget_is_in_use_than_brings_something() -> None:
    assert in_use(512 * MIB, 1, 0) == 64 * MIB
    assert in_use(512 * MIB, 80, 0) == 80 * MIB
    assert in_use(512 * MIB, 80, 50 * MIB) == 200 * MIB
    assert in_use(512 * MIB, 2, 500 * MIB) == 512 * MIB
    assert in_use(16 * MIB, 80, 0) == 16 * MIB


def test_what_the_paths_hold_opens_more_of_the_budget() -> None:
    node = Scheduler(512 * MIB)
    for disk in range(4):
        node.add_disk(disk, 64 * MIB, 500 * MIB)
    chunks = iter(range(10_000))
    held = []
    for need in (0, 40 * MIB, 0):
        node.need(need)
        for disk in range(4):
            for _ in range(256):
                node.want(disk, next(chunks), CHUNK_SIZE)
        held.append(sum(CHUNK_SIZE for _ in node.requested(0.0)))
    assert held == [64 * MIB, 96 * MIB, 0]  # 160 MiB in all, and nothing more once they are too much


def test_a_level_is_what_the_plan_says_within_bounds() -> None:
    assert fixed_level(32 * MIB) == 32 * MIB
    assert fixed_level(1) == CHUNK_SIZE
    assert fixed_level(GIB) == 64 * MIB


def test_a_start_that_is_no_level_is_the_only_one() -> None:
    assert usable_levels(WINDOW_LEVELS, 32 * MIB) == WINDOW_LEVELS
    assert usable_levels((64 * MIB, 16 * MIB), 16 * MIB) == (16 * MIB, 64 * MIB)
    assert usable_levels(WINDOW_LEVELS, 8 * MIB) == (8 * MIB,)
    assert usable_levels((8 * MIB,), 8 * MIB) == (8 * MIB,)


def test_a_long_path_begins_with_the_window_that_it_needs() -> None:
    begins = [first_level(WINDOW_LEVELS, 32 * MIB, rtt_s) for rtt_s in (None, 0.0001, 0.08, 0.125, 0.13, 0.2, 2.0)]
    assert begins == [32 * MIB] * 4 + [48 * MIB, 64 * MIB, 64 * MIB]
    assert first_level(WINDOW_LEVELS, 64 * MIB, 0.08) == 64 * MIB
    assert first_level((8 * MIB,), 8 * MIB, 0.2) == 8 * MIB


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
    scheduler.add_disk(1, 2 * CHUNK_SIZE, CHUNK_SIZE)
    for chunk in (1, 2, 3):
        scheduler.want(1, chunk, CHUNK_SIZE)
    assert scheduler.requested(0.0) == [(1, 1), (1, 2)]
    scheduler.add_disk(2, 2 * CHUNK_SIZE, CHUNK_SIZE)
    scheduler.want(2, 1, CHUNK_SIZE)
    assert scheduler.requested(0.0) == []
    scheduler.remove_disk(1)
    assert scheduler.requested(0.0) == [(2, 1)]
    scheduler.written(2, 1, 2.5)
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


def test_a_share_is_kept_free_for_a_disk_with_work_and_lent_out_when_it_has_none() -> None:
    scheduler = Scheduler(8 * CHUNK_SIZE)
    for disk in (1, 2):
        scheduler.add_disk(disk, 8 * CHUNK_SIZE, 10**9)
    scheduler.want(2, 1, CHUNK_SIZE)
    assert scheduler.requested(0.0) == [(2, 1)]
    scheduler.written(2, 1, 0.0)
    for chunk in range(1, 9):
        scheduler.want(1, chunk, CHUNK_SIZE)
    assert len(scheduler.requested(LINGER_S / 2)) == 4, "the other half is the other disk's, which works still"
    assert len(scheduler.requested(LINGER_S)) == 4


def test_a_disk_that_joins_has_its_share_kept_until_it_wants_nothing_or_has_taken_too_long() -> None:
    scheduler = Scheduler(8 * CHUNK_SIZE)
    for disk in (1, 2):
        scheduler.add_disk(disk, 8 * CHUNK_SIZE, 10**9)
    for chunk in range(1, 20):
        scheduler.want(1, chunk, CHUNK_SIZE)
    assert len(scheduler.requested(0.0)) == 4, "the other half is for the disk that is finding out what has changed"
    assert len(scheduler.requested(JOIN_S / 2)) == 0
    assert len(scheduler.requested(JOIN_S)) == 4

    scheduler.add_disk(3, 8 * CHUNK_SIZE, 10**9, now=JOIN_S)
    for chunk in range(1, 5):
        scheduler.written(1, chunk, JOIN_S)
    assert len(scheduler.requested(JOIN_S)) == 0
    scheduler.rest(3)
    assert len(scheduler.requested(JOIN_S)) == 4


def test_a_full_write_queue_leaves_everybody_the_share_until_half_of_it_is_written() -> None:
    scheduler = Scheduler(8 * CHUNK_SIZE)
    for disk in (1, 2):
        scheduler.add_disk(disk, 8 * CHUNK_SIZE, 10**9)
    scheduler.rest(2)
    for chunk in range(1, 20):
        scheduler.want(1, chunk, CHUNK_SIZE)
    assert len(scheduler.requested(0.0)) == 8
    for chunk in range(1, 8):
        scheduler.received(1, chunk, 0.0)
    scheduler.want(2, 1, CHUNK_SIZE)
    for chunk in range(1, 5):
        scheduler.written(1, chunk, 0.1)
    # Three wait to be written and one is on its way: that is the share of each, and half of the queue is gone.
    scheduler.received(1, 8, 0.1)
    assert [disk for disk, _ in scheduler.requested(0.1)] == [2]
    scheduler.written(1, 5, 0.2)
    assert [disk for disk, _ in scheduler.requested(0.2)] == [1]


def test_disks_that_share_a_rate_take_turns_and_keep_to_it() -> None:
    scheduler = Scheduler(64 * CHUNK_SIZE)
    scheduler.limit("plan:a", 8 * CHUNK_SIZE, 0.0)
    moved = dict.fromkeys((1, 2, 3), 0)
    for disk in moved:
        scheduler.add_disk(disk, 16 * CHUNK_SIZE, 10**12, limits=("plan:a",))
        scheduler.want(disk, 1, CHUNK_SIZE)
    now, number = 0.0, 1
    while now < 10:
        for disk, chunk in scheduler.requested(now):
            scheduler.written(disk, chunk, now)
            moved[disk] += 1
            number += 1
            scheduler.want(disk, number, CHUNK_SIZE)
        at = scheduler.wake_at(now)
        assert at is not None
        now = at
    assert 76 <= sum(moved.values()) <= 84, "within 5 % of 8 chunks per second over 10 s"
    assert max(moved.values()) - min(moved.values()) <= 1


def test_a_rate_of_operations_counts_pieces() -> None:
    scheduler = Scheduler(64 * CHUNK_SIZE)
    scheduler.limit("target:ops", 100, 0.0, "ops")
    scheduler.add_disk(1, 16 * CHUNK_SIZE, 10**12, limits=("target:ops",))
    for chunk in (1, 2):
        scheduler.want(1, chunk, CHUNK_SIZE, ops=50)
    assert scheduler.requested(0.0) == [(1, 1)]
    assert scheduler.wake_at(0.0) == pytest.approx(0.5)
    assert scheduler.requested(0.49) == []
    assert scheduler.requested(0.51) == [(1, 2)]


def test_a_rate_that_changes_holds_from_then_on() -> None:
    scheduler = Scheduler(64 * CHUNK_SIZE)
    scheduler.limit("link:a", 0, 0.0)
    scheduler.add_disk(1, 16 * CHUNK_SIZE, 10**12, limits=("link:a",))
    scheduler.want(1, 1, CHUNK_SIZE)
    assert scheduler.requested(100.0) == []
    scheduler.limit("link:a", None, 100.0)
    assert scheduler.requested(100.0) == [(1, 1)]
