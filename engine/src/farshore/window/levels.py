"""Window levels of a disk and the relations that hold between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from farshore.units import CHUNK_SIZE, LINK_RATE, MIB, WINDOW_LEVELS

#: A window is taken for wide enough that is so many times what the path holds: while its connections find their rates
#: some of them have been answered and wait for a question that is half a round trip away.
_WIDE: Final = 2

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


def first_level(levels: Sequence[int], start: int, rtt_s: float | None) -> int:
    """Return the window of ``levels`` (lowest first) that a disk begins with, in bytes.

    It is ``start``, or the one that a long path needs: probes take seconds to find that out, in which it is not full.
    """
    holds = LINK_RATE * (rtt_s or 0.0)
    wide = next((level for level in levels if level >= _WIDE * holds), levels[-1])
    return max(start if start in levels else levels[0], wide)
