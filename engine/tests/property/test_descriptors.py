"""Descriptors and chunks cover what changed, aligned, and never call a byte zero that may not be."""

from __future__ import annotations

from itertools import pairwise

from farshore.blocks.descriptors import describe, gather, leaf_runs, without
from farshore.blocks.rangeset import RangeSet
from hypothesis import given, settings
from hypothesis import strategies as st

UNIT = 16  # bytes of a leaf in these tests


@st.composite
def disks(draw: st.DrawFn) -> tuple[int, list[tuple[int, int, bool]]]:
    """A size and ascending extents in it."""
    size = draw(st.integers(1, 300))
    bounds = sorted(draw(st.sets(st.integers(0, size), max_size=24)))
    extents = [(start, stop - start, draw(st.booleans())) for start, stop in pairwise(bounds) if draw(st.booleans())]
    return size, extents


granularities = st.sampled_from([1, 2, 4, 16, 64])


@settings(max_examples=400)
@given(disks(), granularities)
def test_every_changed_byte_is_described_once(disk: tuple[int, list[tuple[int, int, bool]]], granularity: int) -> None:
    size, extents = disk
    seen: dict[int, bool] = {}
    at = 0
    for offset, length, zero in describe(extents, size, granularity, UNIT):
        assert at <= offset
        assert length > 0
        at = offset + length
        seen.update(dict.fromkeys(range(offset, at), zero))
    assert at <= size
    for offset, length, zero in extents:
        for byte in range(offset, offset + length):
            assert byte in seen
            assert zero or not seen[byte], "a byte that may hold data is called zero"


@settings(max_examples=400)
@given(disks(), granularities)
def test_descriptors_are_aligned_and_merged(disk: tuple[int, list[tuple[int, int, bool]]], granularity: int) -> None:
    size, extents = disk
    result = list(describe(extents, size, granularity, UNIT))
    for one in result:
        unit = max(UNIT, granularity) if one.zero else granularity
        assert one.offset % unit == 0
        assert one.stop % unit == 0 or one.stop == size
    for one, other in pairwise(result):
        assert one.stop < other.offset or one.zero is not other.zero


@settings(max_examples=400)
@given(disks(), granularities, st.integers(1, 6), st.sampled_from([16, 32, 48]))
def test_chunks_carry_exactly_the_descriptors(
    disk: tuple[int, list[tuple[int, int, bool]]], granularity: int, most: int, chunk: int
) -> None:
    size, extents = disk
    described = list(describe(extents, size, granularity, UNIT))
    chunks = list(gather(described, chunk_size=chunk, max_descriptors=most, unit=UNIT))
    for zero in (False, True):
        expected = RangeSet((one.offset, one.stop) for one in described if one.zero is zero)
        found = [span for one in chunks if one.zero is zero for span in one.ranges]
        assert RangeSet((offset, offset + length) for offset, length in found) == expected
        assert sum(length for _, length in found) == expected.total()
    for one in chunks:
        assert one.size_bytes == sum(length for _, length in one.ranges) > 0
        assert list(one.ranges) == sorted(one.ranges)
        assert one.zero or (one.size_bytes <= chunk and len(one.ranges) <= most)


@settings(max_examples=300)
@given(disks(), disks())
def test_what_is_durable_is_not_asked_for_again(
    disk: tuple[int, list[tuple[int, int, bool]]], done: tuple[int, list[tuple[int, int, bool]]]
) -> None:
    size, extents = disk
    durable = RangeSet((offset, offset + length) for offset, length, _ in done[1])
    described = list(describe(extents, size, 1, UNIT))
    left = list(without(described, durable))
    expected = RangeSet((one.offset, one.stop) for one in described)
    for start, stop in durable:
        expected.remove(start, stop)
    assert RangeSet((one.offset, one.stop) for one in left) == expected


@settings(max_examples=300)
@given(disks())
def test_leaf_runs_touch_what_the_ranges_touch(disk: tuple[int, list[tuple[int, int, bool]]]) -> None:
    ranges = [(offset, length) for offset, length, _ in disk[1]]
    runs = list(leaf_runs(ranges, UNIT))
    touched = {byte // UNIT for offset, length in ranges for byte in range(offset, offset + length)}
    assert {leaf for first, stop in runs for leaf in range(first, stop)} == touched
    flat = [bound for run in runs for bound in run]
    assert flat == sorted(set(flat)), "runs ascend and do not touch"
