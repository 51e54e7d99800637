"""Who may request how much: a byte window per disk, a byte budget per node, fair between disks.

A chunk is *requested* (its bytes are in flight), then *written* or *failed* (the credit comes back, in
:meth:`Scheduler._settle` and nowhere else), then *durable* (a mark covered it). The rules:

1. Bytes in flight of a disk never exceed its level, those of the node never its budget.
2. Bytes of a disk that are requested or written but not durable never exceed ``level + mark``. So what a crash makes
   travel twice is bounded by construction.
3. A mark is due when the written, not yet durable bytes reach ``mark``. Rule 2 never waits for anything else: if it
   holds a chunk back, then something is in flight, or ``written > level + mark - chunk >= mark`` and a mark is due.
4. Disks take turns by deficit round robin with a quantum of one chunk, so a disk with work gets a chunk in each round.

Pure: ``now`` is an argument (seconds, any origin, never smaller than before), grants are return values.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final

from farshore.units import CHUNK_SIZE

QUANTUM: Final = CHUNK_SIZE


@dataclass(slots=True)
class _Disk:
    level: int
    mark: int
    waiting: deque[tuple[int, int]] = field(default_factory=deque)
    flying: dict[int, tuple[int, float]] = field(default_factory=dict)
    in_flight: int = 0
    written: int = 0
    deficit: int = 0
    latency_s: float = 0.0


class Scheduler:
    """Credit of all disks that a node works on. Disks and chunks are named by the caller's numbers."""

    def __init__(self, budget_bytes: int) -> None:
        if budget_bytes < CHUNK_SIZE:
            raise ValueError(f"a budget of {budget_bytes} bytes has no room for a chunk")
        self._budget = budget_bytes
        self._in_flight = 0
        # In the order of their turns: the first is served next.
        self._disks: OrderedDict[int, _Disk] = OrderedDict()
        self._turn: int | None = None

    def add_disk(self, disk: int, level: int, mark: int) -> None:
        """Take up a disk with its window level and its mark distance, both in bytes."""
        if disk in self._disks:
            raise ValueError(f"disk {disk} is scheduled already")
        if level < CHUNK_SIZE or mark < 1:
            raise ValueError(f"a level of {level} and a mark of {mark} bytes let nothing move")
        self._disks[disk] = _Disk(level, mark)

    def remove_disk(self, disk: int) -> None:
        """Forget a disk; the credit that its chunks hold comes back."""
        entry = self._disks[disk]
        for chunk in list(entry.flying):
            self._settle(disk, chunk)
        del self._disks[disk]
        if self._turn == disk:
            self._turn = None

    def want(self, disk: int, chunk: int, size_bytes: int) -> None:
        """Queue a chunk for its credit."""
        if not 0 < size_bytes <= CHUNK_SIZE:
            raise ValueError(f"a chunk has 1 to {CHUNK_SIZE} bytes, not {size_bytes}")
        self._disks[disk].waiting.append((chunk, size_bytes))

    def requested(self, now: float) -> list[tuple[int, int]]:
        """Give out credit; return the ``(disk, chunk)`` that go now, in the order of their turns."""
        granted: list[tuple[int, int]] = []
        idle = 0
        while idle < len(self._disks):
            number, disk = next(iter(self._disks.items()))
            if self._turn != number:
                self._turn = number
                disk.deficit += QUANTUM
            before = len(granted)
            while disk.waiting and disk.waiting[0][1] <= disk.deficit:
                chunk, size = disk.waiting[0]
                if self._in_flight + size > self._budget:
                    # The node is full. The turn goes on, without a new quantum, when credit returns: small chunks of
                    # others never pass a large one.
                    return granted
                if disk.in_flight + size > disk.level or disk.in_flight + disk.written + size > disk.level + disk.mark:
                    break
                disk.waiting.popleft()
                disk.deficit -= size
                disk.flying[chunk] = (size, now)
                disk.in_flight += size
                self._in_flight += size
                granted.append((number, chunk))
            idle = 0 if len(granted) > before else idle + 1
            # What is left is kept for a chunk that is larger; who is idle or at its own limit saves nothing up.
            disk.deficit = min(disk.deficit, QUANTUM) if disk.waiting and disk.waiting[0][1] > disk.deficit else 0
            self._turn = None
            self._disks.move_to_end(number)
        return granted

    def written(self, disk: int, chunk: int, now: float) -> None:
        """Note that a chunk is in the draft, not yet durable."""
        size, since = self._settle(disk, chunk)
        entry = self._disks[disk]
        entry.written += size
        entry.latency_s = now - since

    def failed(self, disk: int, chunk: int) -> None:
        """Note that a chunk will not be written by this request; a new :meth:`want` asks again."""
        self._settle(disk, chunk)

    def mark_due(self, disk: int) -> bool:
        """Say whether the disk has written enough for a mark."""
        entry = self._disks[disk]
        return entry.written >= entry.mark

    def begin_mark(self, disk: int) -> int:
        """Return the written bytes that a flush beginning now covers, for :meth:`durable` when it has ended."""
        return self._disks[disk].written

    def durable(self, disk: int, size_bytes: int) -> None:
        """Note that ``size_bytes`` of what was written are durable and recorded."""
        entry = self._disks[disk]
        if not 0 <= size_bytes <= entry.written:
            raise ValueError(f"{size_bytes} bytes cannot be durable of {entry.written} written")
        entry.written -= size_bytes

    def in_flight(self, disk: int | None = None) -> int:
        """Return the bytes in flight of one disk, or of the node."""
        return self._in_flight if disk is None else self._disks[disk].in_flight

    def exposed(self, disk: int) -> int:
        """Return the bytes that a crash now would make travel again."""
        entry = self._disks[disk]
        return entry.in_flight + entry.written

    def latency(self, disk: int) -> float:
        """Return the seconds that the disk's last chunk took from its request to its write."""
        return self._disks[disk].latency_s

    def _settle(self, disk: int, chunk: int) -> tuple[int, float]:
        """Take back the credit of one chunk: the only place where credit returns."""
        entry = self._disks[disk]
        size, since = entry.flying.pop(chunk)
        entry.in_flight -= size
        self._in_flight -= size
        return size, since
