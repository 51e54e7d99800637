"""Window levels of a disk and the relations that hold between them."""

from __future__ import annotations

from collections.abc import Sequence

from farshore.units import CHUNK_SIZE, MIB, WINDOW_LEVELS

if list(WINDOW_LEVELS) != sorted(set(WINDOW_LEVELS)) or WINDOW_LEVELS[-1] > 64 * MIB:
    raise AssertionError("levels ascend, and no disk has more than 64 MiB in flight")


def fixed_level(per_disk_window: int) -> int:
    """Return the window of a disk in bytes: what the plan says, a chunk at least, the highest level at most.

    A plan may ask for less than the lowest level (a thin link shared with others); it is never raised.
    """
    return max(CHUNK_SIZE, min(per_disk_window, WINDOW_LEVELS[-1]))


def usable_levels(levels: Sequence[int], start: int) -> tuple[int, ...]:
    """Return the levels that the law may use, lowest first; a ``start`` that is none of them is the only one."""
    bounded = sorted({fixed_level(level) for level in levels})
    first = fixed_level(start)
    return tuple(bounded) if first in bounded else (first,)
