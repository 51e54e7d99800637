"""Each method's cases, drawn: ``#`` is in the set, ``.`` is not."""

from __future__ import annotations

import pytest
from farshore.blocks.rangeset import RangeSet, align_out


def drawn(text: str) -> RangeSet:
    return RangeSet((index, index + 1) for index, mark in enumerate(text) if mark == "#")


def span(text: str) -> tuple[int, int]:
    return text.index("#"), text.rindex("#") + 1


@pytest.mark.parametrize(
    ("before", "added", "after"),
    [
        ("##......", ".....##.", "##...##."),  # nothing there
        ("......##", ".##.....", ".##...##"),
        ("##...##.", "..###...", "#######."),  # touches on both sides
        (".##.##..", "..###...", ".#####.."),  # overlaps two
        ("########", "..###...", "########"),  # inside
        ("..###...", "########", "########"),  # around
    ],
)
def test_add(before: str, added: str, after: str) -> None:
    ranges = drawn(before)
    ranges.add(*span(added))
    assert ranges == drawn(after)


@pytest.mark.parametrize(
    ("before", "removed", "after"),
    [
        ("##....##", "..####..", "##....##"),  # nothing there
        ("########", "..###...", "##...###"),  # cuts in two
        ("###..###", "..####..", "##....##"),  # cuts on both sides
        ("..###...", ".#####..", "........"),  # all of it
    ],
)
def test_remove(before: str, removed: str, after: str) -> None:
    ranges = drawn(before)
    ranges.remove(*span(removed))
    assert ranges == drawn(after)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (3, 2)])
def test_what_is_no_range_is_refused(start: int, stop: int) -> None:
    for method in (RangeSet().add, RangeSet().remove):
        with pytest.raises(ValueError, match="no range"):
            method(start, stop)


def test_aligning_ends_at_the_limit_and_refuses_what_is_behind_it() -> None:
    assert align_out(5, 97, 10, 99) == (0, 99)
    assert align_out(10, 20, 10, 99) == (10, 20)
    with pytest.raises(ValueError, match="outside"):
        align_out(5, 100, 10, 99)
