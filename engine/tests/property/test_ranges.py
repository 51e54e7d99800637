"""A range set does what a set of integers does."""

from __future__ import annotations

from itertools import pairwise

from farshore.blocks.rangeset import RangeSet, align_in
from hypothesis import given, settings
from hypothesis import strategies as st

LIMIT = 60
spans = st.tuples(st.integers(0, LIMIT), st.integers(0, LIMIT)).map(sorted).map(tuple)
steps = st.lists(st.tuples(st.sampled_from(["add", "remove"]), spans), max_size=25)


def both(operations: list[tuple[str, tuple[int, int]]]) -> tuple[RangeSet, set[int]]:
    ranges, model = RangeSet(), set[int]()
    for operation, (start, stop) in operations:
        if operation == "add":
            ranges.add(start, stop)
            model |= set(range(start, stop))
        else:
            ranges.remove(start, stop)
            model -= set(range(start, stop))
    return ranges, model


def members(pairs: object) -> set[int]:
    return {offset for start, stop in pairs for offset in range(start, stop)}  # type: ignore[attr-defined]


@settings(max_examples=400)
@given(steps)
def test_it_holds_what_a_set_holds(operations: list[tuple[str, tuple[int, int]]]) -> None:
    ranges, model = both(operations)
    assert members(ranges) == model
    assert ranges.total() == len(model)
    assert bool(ranges) == bool(model)
    assert all((offset in ranges) == (offset in model) for offset in range(LIMIT + 2))


@settings(max_examples=400)
@given(st.lists(st.lists(st.integers(0, LIMIT), unique=True, max_size=20).map(sorted), max_size=6))
def test_a_batch_does_what_its_ranges_do_one_by_one(batches: list[list[int]]) -> None:
    together, single = RangeSet(), RangeSet()
    for bounds in batches:
        # Touching ranges too: every bound ends one and begins the next where the number of bounds is odd.
        step = 1 if len(bounds) % 2 else 2
        pairs = [(start, stop - start) for start, stop in pairwise(bounds)][::step]
        together.add_all(pairs)
        for start, length in pairs:
            single.add(start, start + length)
    assert together == single


@settings(max_examples=400)
@given(steps)
def test_ranges_are_sorted_disjoint_and_do_not_touch(operations: list[tuple[str, tuple[int, int]]]) -> None:
    ranges, _ = both(operations)
    flat = [bound for pair in ranges for bound in pair]
    assert flat == sorted(set(flat))
    assert len(ranges) == len(flat) // 2


@settings(max_examples=400)
@given(steps, spans)
def test_intersection_and_gaps_tile_a_span(
    operations: list[tuple[str, tuple[int, int]]], span: tuple[int, int]
) -> None:
    ranges, model = both(operations)
    inside, outside = list(ranges.intersect(*span)), list(ranges.gaps(*span))
    assert members(inside) == model & set(range(*span))
    assert members(outside) == set(range(*span)) - model
    assert ranges.covers(*span) == (not outside)
    assert sorted([*inside, *outside]) == sorted({*inside, *outside})


@settings(max_examples=200)
@given(steps, spans)
def test_adding_twice_equals_once_and_removing_undoes_nothing_else(
    operations: list[tuple[str, tuple[int, int]]], span: tuple[int, int]
) -> None:
    ranges, _ = both(operations)
    once = ranges.copy()
    once.add(*span)
    twice = once.copy()
    twice.add(*span)
    assert once == twice
    twice.remove(*span)
    assert members(twice) == members(ranges) - set(range(*span))


@given(st.integers(1, 9), st.integers(0, 60), st.integers(0, 60), st.integers(0, 5))
def test_what_is_aligned_in_is_all_whole_granules_of_a_range(granule: int, start: int, length: int, more: int) -> None:
    stop, limit = start + length, start + length + more
    low, high = align_in(start, stop, granule, limit)
    inside = {
        at
        for first in range(0, limit, granule)
        for at in range(first, min(first + granule, limit))
        if start <= first and min(first + granule, limit) <= stop
    }
    assert set(range(low, high)) == inside
