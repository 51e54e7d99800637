"""How fast a connection answers, so that a request goes where it is answered first.

Connections of one path share it unevenly, and for long. By bytes outstanding alone, whoever is answered on a fast one
asks there again, and whoever waits on a slow one stays there: of 80 disks with a chunk in flight each, some took twice
the time of others. Pure: ``now`` is an argument, in seconds of any clock that does not go back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol, TypeVar

#: The past counts for about this long.
MEMORY_S: Final = 2.0
#: No connection is taken to be slower than this part of the mean: it would never be asked again to show otherwise.
SLOWEST_PART: Final = 1 / 8


class Pace:
    """The pace of one connection, in the bytes that its answers were expected to bring."""

    def __init__(self) -> None:
        self._bytes = 0.0
        self._seconds = 0.0
        self._since = 0.0

    def asked(self, now: float) -> None:
        """Note a request on a connection that owed nothing."""
        self._since = now

    def answered(self, size_bytes: int, now: float) -> None:
        """Note an answer."""
        took = max(now - self._since, 0.0)
        self._since = now
        kept = MEMORY_S / (MEMORY_S + took)
        self._bytes = self._bytes * kept + size_bytes
        self._seconds = self._seconds * kept + took

    @property
    def bytes_per_s(self) -> float | None:
        """What it answered lately while it owed something; None before it has."""
        return self._bytes / self._seconds if self._seconds > 0 and self._bytes else None


class Loaded(Protocol):
    """What a choice is between: bytes outstanding, and the pace at which they come."""

    load: int
    pace: Pace


C = TypeVar("C", bound=Loaded)


def soonest(connections: Sequence[C], size_bytes: int) -> C:
    """Return the connection on which an answer of ``size_bytes`` would be complete first, by what they showed lately.

    One that has shown nothing yet is taken for average.
    """
    known = [rate for one in connections if (rate := one.pace.bytes_per_s) is not None]
    mean = sum(known) / len(known) if known else 1.0
    return min(
        connections,
        key=lambda one: (one.load + size_bytes) / max(one.pace.bytes_per_s or mean, mean * SLOWEST_PART),
    )
