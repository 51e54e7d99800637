"""Ranges of several bitmaps become one list of extents."""

from __future__ import annotations

import itertools
import random

from farshore.platforms.nbd import extents
from farshore.platforms.nbd.client import Status


def test_union_joins_what_touches() -> None:
    assert list(extents.union([(0, 10), (20, 30)], [(5, 12), (30, 31), (40, 41)])) == [(0, 12), (20, 31), (40, 41)]
    assert list(extents.union()) == []
    assert list(extents.union([], [(3, 4)])) == [(3, 4)]


def test_union_is_the_union_of_sets() -> None:
    rng = random.Random(3)
    for _ in range(100):
        lists = []
        for _ in range(rng.randrange(1, 4)):
            cuts = sorted(rng.sample(range(60), 2 * rng.randrange(1, 6)))
            lists.append(list(zip(cuts[::2], cuts[1::2], strict=True)))
        found = list(extents.union(*lists))
        wanted = {n for one in lists for start, end in one for n in range(start, end)}
        assert {n for start, end in found for n in range(start, end)} == wanted
        assert all(before[1] < after[0] for before, after in itertools.pairwise(found))


def test_dirty_ranges_end_with_the_disk() -> None:
    parts = [Status(0, 10, 0), Status(10, 10, 1), Status(20, 10, 1), Status(30, 10, 1)]
    assert list(extents.dirty(parts, 25)) == [(10, 20), (20, 25)]
