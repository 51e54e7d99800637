"""Chunks at the sizes that are used, and extents that make no sense."""

from __future__ import annotations

import itertools
import tracemalloc

import pytest
from farshore.blocks.descriptors import MAX_DESCRIPTORS, Descriptor, describe, gather
from farshore.units import CHUNK_SIZE, KIB, MIB, TIB


@pytest.mark.parametrize(
    "extents",
    [
        [(0, 10, False), (5, 10, False)],
        [(10, 5, False), (0, 5, False)],
        [(0, 0, False)],
        [(0, -1, True)],
        [(90, 20, False)],
    ],
)
def test_extents_out_of_order_or_place_are_refused(extents: list[tuple[int, int, bool]]) -> None:
    with pytest.raises(ValueError, match="out of order or outside"):
        list(describe(extents, 100, 1))


def test_the_edges_of_a_zero_range_are_read_as_data() -> None:
    described = list(describe([(4096, MIB, True)], 2 * MIB, 4096))
    assert described == [
        Descriptor(4096, 60 * KIB, zero=False),
        Descriptor(64 * KIB, MIB - 64 * KIB, zero=True),
        Descriptor(MIB, 4096, zero=False),
    ]


def test_zeros_up_to_the_end_of_an_odd_disk_are_zeros() -> None:
    assert list(describe([(64 * KIB, 100, True)], 64 * KIB + 100, 4096)) == [Descriptor(64 * KIB, 100, zero=True)]


def test_a_long_extent_is_cut_on_the_grid_of_leaves() -> None:
    chunks = list(gather([Descriptor(32 * KIB, 3 * MIB, zero=False)]))
    assert [chunk.ranges for chunk in chunks[:2]] == [((32 * KIB, MIB - 32 * KIB),), ((MIB, MIB),)]
    assert sum(chunk.size_bytes for chunk in chunks) == 3 * MIB


def test_fragments_of_4_kib_fill_a_chunk_by_bytes_and_of_512_by_number() -> None:
    for size, count in ((4096, CHUNK_SIZE // 4096), (512, MAX_DESCRIPTORS)):
        fragments = (Descriptor(index * 128 * KIB, size, zero=False) for index in range(2000))
        first = next(gather(fragments))
        assert len(first.ranges) == count


def test_a_fragmented_disk_of_16_tib_is_described_in_little_memory() -> None:
    extents = ((index * 512 * KIB, 4096, False) for index in range(16 * TIB // (512 * KIB)))
    tracemalloc.start()
    chunks = gather(describe(extents, 16 * TIB, 4096))
    taken = sum(len(chunk.ranges) for chunk in itertools.islice(chunks, 200))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken == 200 * 256
    assert peak < MIB
