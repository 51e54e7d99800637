"""Who may request how much: a byte window per disk, a byte budget per node, fair between disks.

A chunk is *requested* (its bytes are in flight), *received*, then *written* or *failed* (the credit comes back, in
:meth:`Scheduler._settle` and nowhere else), then *durable* (a mark covered it). The rules:

1. Bytes in flight of a disk never exceed its level at their request, those of the node never its budget. A level that
   falls below what is in flight only stops new requests.
2. Bytes of a disk that are requested or written but not durable never exceed ``level + mark``. So what a crash makes
   travel twice is bounded by construction.
3. A mark is due when the written, not yet durable bytes reach a quarter of ``mark`` and no mark is being made, so that
   chunks go on while one is. Rule 2 never waits for anything else: if it holds a chunk back, then something is in
   flight, or ``written > level + mark - chunk >= mark``, and a mark is being made or due.
4. Each disk with work has a guaranteed share; what is in the budget besides goes to those above it. Both in turns, by
   deficit round robin with a quantum of one chunk, so a disk with work gets a chunk in each round. Where the budget has
   no room for a chunk per disk the turns park disks.
   Of the budget no more is used than brings something: what one disk may have, a chunk for each disk, and four times
   what the path has been seen to hold. More would only wait in line, those in front longest.
5. When three quarters of the budget wait to be written, nobody gets more than the share until it is less than half.
6. A disk whose rate limit is used up waits in the order in which that happened.

Pure: ``now`` is an argument (seconds, any origin, never smaller than before), grants are return values.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final

from farshore.limits import Bucket, Unit
from farshore.units import CHUNK_SIZE
from farshore.window.budget import guaranteed_share, in_use
from farshore.window.law import Law, LevelChange
from farshore.window.meter import Meter

QUANTUM: Final = CHUNK_SIZE
#: Parts of a mark after which one begins.
MARK_PARTS: Final = 4
#: Parts of the budget that wait to be written: above the first only guaranteed shares, until below the second.
PRESSURE_ON: Final = 0.75
PRESSURE_OFF: Final = 0.5
#: Part of the window that has to come back before one that was full opens again.
REFILL_PART: Final = 16
#: A disk that wants nothing keeps its share for this long: its thread may only be between two chunks.
LINGER_S: Final = 0.25
#: One that has joined and wants nothing yet, for this long: it is finding out what has changed. Else those that are
#: ready first would take all that the paths hold, and of 80 disks two or three would be done before the last had begun.
JOIN_S: Final = 2.0


@dataclass(slots=True)
class _Chunk:
    size: int
    since: float
    received: float | None = None


@dataclass(slots=True)
class _Disk:
    number: int
    mark: int
    law: Law
    meter: Meter
    buckets: tuple[Bucket, ...]
    level: int
    waiting: deque[tuple[int, int, int]] = field(default_factory=deque)
    flying: dict[int, _Chunk] = field(default_factory=dict)
    in_flight: int = 0
    queued: int = 0
    written: int = 0
    marking: bool = False
    ring: _Ring | None = None
    turn: int = 0
    begun: bool = False
    deficit: int = 0
    reserved: int = 0
    refused: bool = False
    active: bool = False
    idle_since: float | None = None
    changes: list[LevelChange] = field(default_factory=list)

    def fits(self, size: int) -> bool:
        """Say whether the disk's own rules let it request ``size`` more.

        A window that was full opens again when there is room for a few chunks: asking for them one by one costs a
        change of threads for each.
        """
        room = self.level - self.level // REFILL_PART // CHUNK_SIZE * CHUNK_SIZE if self.refused else self.level
        return self.in_flight + size <= room and self.in_flight + self.written + size <= self.level + self.mark


_Ring = dict[int, _Disk]
_TURN: Final = attrgetter("turn")


class Scheduler:
    """Credit of all disks that a node works on. Disks and chunks are named by the caller's numbers."""

    def __init__(self, budget_bytes: int) -> None:
        if budget_bytes < CHUNK_SIZE:
            raise ValueError(f"a budget of {budget_bytes} bytes has no room for a chunk")
        self._most = budget_bytes
        self._need = 0
        self._budget = in_use(budget_bytes, 0, 0)
        self._in_flight = 0
        self._queued = 0
        self._pressed = False
        self._now = 0.0
        self._disks: dict[int, _Disk] = {}
        self._buckets: dict[str, Bucket] = {}
        # Disks whose first chunk could go: within the share, above it, and without tokens in the order of their need.
        self._within: _Ring = {}
        self._above: _Ring = {}
        self._paced: _Ring = {}
        self._turns = itertools.count(1)
        self._active = 0
        self._idle: _Ring = {}
        self._joining: _Ring = {}
        self._share = CHUNK_SIZE
        self._reserved = 0
        self.peak_bytes = 0
        self.written_bytes = 0

    # Disks and limits -----------------------------------------------------------------------------------------------

    def add_disk(
        self,
        disk: int,
        level: int,
        mark: int,
        *,
        levels: tuple[int, ...] = (),
        writers_max: int = 1,
        limits: Iterable[str] = (),
        now: float = 0.0,
    ) -> None:
        """Take up a disk.

        Args:
            disk: its number.
            level: its first window in bytes.
            mark: bytes that may be written and not durable besides.
            levels: the windows that it may move between, ``level`` among them; none: it stays.
            writers_max: writes that its platform bears at once.
            limits: names of the rates that it is held to.
            now: the time.
        """
        if disk in self._disks:
            raise ValueError(f"disk {disk} is scheduled already")
        if level < CHUNK_SIZE or mark < 1:
            raise ValueError(f"a level of {level} and a mark of {mark} bytes let nothing move")
        law = Law(levels or (level,), level, writers_max)
        buckets = tuple(self._buckets.setdefault(name, Bucket(now=now)) for name in limits)
        entry = self._disks[disk] = _Disk(disk, mark, law, Meter(now), buckets, level)
        self._activate(entry)
        entry.idle_since = now
        self._joining[disk] = entry

    def remove_disk(self, disk: int) -> None:
        """Forget a disk; the credit that its chunks hold comes back."""
        entry = self._disks[disk]
        entry.waiting.clear()
        self._place(entry)
        for chunk in list(entry.flying):
            self._settle(entry, chunk)
        self._deactivate(entry)
        del self._disks[disk]

    def limit(self, name: str, per_s: float | None, now: float, unit: Unit = "bytes") -> None:
        """Hold all disks of the limit ``name``, together, to a rate from ``now`` on; None is no limit."""
        bucket = self._buckets.setdefault(name, Bucket(None, now, unit))
        bucket.unit = unit
        bucket.change(per_s, now)

    def need(self, size_bytes: int) -> None:
        """Take the bytes that the paths have been seen to hold: their rate now by their round trip."""
        self._need = size_bytes
        self._share_out()

    def correct(self, disk: int, surplus_bytes: int) -> None:
        """Give the disk's limits back what was requested and did not cross the link (negative: what did besides)."""
        for bucket in self._disks[disk].buckets:
            if bucket.unit == "bytes":
                bucket.give_back(surplus_bytes)

    # Chunks ---------------------------------------------------------------------------------------------------------

    def want(self, disk: int, chunk: int, size_bytes: int, ops: int = 1) -> None:
        """Queue a chunk for its credit; ``ops`` is what it takes of limits that count operations."""
        if not 0 < size_bytes <= CHUNK_SIZE:
            raise ValueError(f"a chunk has 1 to {CHUNK_SIZE} bytes, not {size_bytes}")
        entry = self._disks[disk]
        entry.waiting.append((chunk, size_bytes, ops))
        if len(entry.waiting) == 1:
            self._activate(entry)
            entry.refused = False
            self._place(entry)

    def requested(self, now: float) -> list[tuple[int, int]]:
        """Give out credit; return the ``(disk, chunk)`` that go now, in the order of their turns."""
        self._now = now
        for ring, patience_s in ((self._idle, LINGER_S), (self._joining, JOIN_S)):
            while ring:
                entry = next(iter(ring.values()))
                if entry.idle_since is not None and now - entry.idle_since < patience_s:
                    break
                self._deactivate(entry)
        granted: list[tuple[int, int]] = []
        self._serve(now, granted)
        for number, entry in list(self._paced.items()):
            if _tokens_at(entry.buckets, now) <= now:
                del self._paced[number]
                entry.ring = None
                self._place(entry, admitted=True)
                self._serve(now, granted)
        return granted

    def received(self, disk: int, chunk: int, now: float) -> None:
        """Note that a chunk has come and waits for its write."""
        entry = self._disks[disk]
        flying = entry.flying[chunk]
        self._now = now
        if flying.received is None:
            flying.received = now
            entry.queued += flying.size
            self._queue(flying.size)
            entry.meter.received(flying.size, now - flying.since, now)

    def written(self, disk: int, chunk: int, now: float, took_s: float | None = None) -> None:
        """Note that a chunk is in the draft, not yet durable. ``took_s`` is how long its write took."""
        self.received(disk, chunk, now)
        entry = self._disks[disk]
        flying = entry.flying[chunk]
        entry.written += flying.size
        self.written_bytes += flying.size
        since = flying.received if flying.received is not None else now
        entry.meter.written(flying.size, now - since if took_s is None else took_s, now)
        flying.received = None  # the meter knows
        entry.queued -= flying.size
        self._queue(-flying.size)
        self._settle(entry, chunk)
        self._judge(entry, now)

    def retried(self, disk: int) -> None:
        """Note that a try failed or was throttled; its chunk keeps its credit and is tried again."""
        self._disks[disk].meter.failed()

    def failed(self, disk: int, chunk: int) -> None:
        """Note that a chunk will not be written by this request; a new :meth:`want` asks again."""
        self._settle(self._disks[disk], chunk)

    def rest(self, disk: int) -> None:
        """Note that a disk wants nothing more for now; where nothing of it is in flight, it needs no share."""
        entry = self._disks[disk]
        if not entry.flying and not entry.waiting:
            self._deactivate(entry)

    def tick(self, disk: int, now: float) -> None:
        """Let time pass for a disk of which nothing is heard."""
        self._judge(self._disks[disk], now)

    # Marks ----------------------------------------------------------------------------------------------------------

    def mark_due(self, disk: int) -> bool:
        """Say whether a mark should begin: the disk has written enough, and none is being made."""
        entry = self._disks[disk]
        return not entry.marking and entry.written * MARK_PARTS >= entry.mark

    def begin_mark(self, disk: int) -> int:
        """Return the written bytes that a flush beginning now covers, for :meth:`durable` when it has ended."""
        entry = self._disks[disk]
        entry.marking = True
        return entry.written

    def durable(self, disk: int, size_bytes: int) -> None:
        """Note that ``size_bytes`` of what was written are durable and recorded; a mark has ended."""
        entry = self._disks[disk]
        if not 0 <= size_bytes <= entry.written:
            raise ValueError(f"{size_bytes} bytes cannot be durable of {entry.written} written")
        entry.written -= size_bytes
        entry.marking = False
        self._place(entry)

    # What is --------------------------------------------------------------------------------------------------------

    def in_flight(self, disk: int | None = None) -> int:
        """Return the bytes in flight of one disk, or of the node."""
        return self._in_flight if disk is None else self._disks[disk].in_flight

    @property
    def usable_bytes(self) -> int:
        """What of the budget may be used now; see :func:`farshore.window.budget.in_use`."""
        return self._budget

    def exposed(self, disk: int) -> int:
        """Return the bytes that a crash now would make travel again."""
        entry = self._disks[disk]
        return entry.in_flight + entry.written

    def level(self, disk: int) -> int:
        """Return the disk's window in bytes."""
        return self._disks[disk].level

    def writers(self, disk: int) -> int:
        """Return how many writes of the disk may run at once."""
        return self._disks[disk].law.writers

    def changes(self, disk: int) -> list[LevelChange]:
        """Return the changes of the disk's level, oldest first."""
        return self._disks[disk].changes

    def wake_at(self, now: float) -> float | None:
        """Return when the first disk that waits for its limits may go on; None where none does."""
        return min(
            (_tokens_at(buckets, now) for buckets in {entry.buckets for entry in self._paced.values()}), default=None
        )

    def first_paced(self) -> int | None:
        """Return the disk that has waited longest for its limits."""
        return next(iter(self._paced), None)

    # Turns ----------------------------------------------------------------------------------------------------------

    def _place(self, entry: _Disk, *, admitted: bool = False) -> None:
        """Put a disk where its first chunk belongs now. Its turn goes with it, unless it can do nothing with it.

        ``admitted``: its limits let it go on, before others that wait for them.
        """
        where: _Ring | None = None
        if entry.waiting:
            size = entry.waiting[0][1]
            if entry.fits(size):
                where = self._within if entry.in_flight + size <= self._share else self._above
                if entry.ring is self._paced or (entry.ring is None and not admitted and self._overtakes(entry)):
                    where = self._paced
            elif not entry.refused:
                entry.refused = True
                entry.meter.refused()
        if where is entry.ring:
            return
        if entry.ring is not None:
            del entry.ring[entry.number]
        entry.ring = where
        if where is not None:
            where[entry.number] = entry
        else:
            entry.deficit = 0  # who is idle or at its own limit saves nothing up
            self._end_turn(entry)

    def _overtakes(self, entry: _Disk) -> bool:
        """Say whether others wait for one of a disk's limits."""
        return bool(entry.buckets and self._paced) and any(
            not set(entry.buckets).isdisjoint(other.buckets) for other in self._paced.values()
        )

    def _end_turn(self, entry: _Disk) -> None:
        entry.turn = next(self._turns)
        entry.begun = False

    def _serve(self, now: float, granted: list[tuple[int, int]]) -> None:
        # Who is within the share comes first, and nobody above it takes what the first of them waits for.
        self._serve_ring(self._within, now, granted)
        if not self._within and not self._pressed:
            self._serve_ring(self._above, now, granted)

    def _serve_ring(self, ring: _Ring, now: float, granted: list[tuple[int, int]]) -> None:
        while ring:
            entry = min(ring.values(), key=_TURN)
            if not entry.begun:
                entry.begun = True
                entry.deficit += QUANTUM
            chunk, size, ops = entry.waiting[0]
            if size > entry.deficit:  # what is left is kept for this larger chunk
                self._end_turn(entry)
                continue
            kept = 0 if ring is self._within else self._reserved - entry.reserved
            if self._in_flight + size + kept > self._budget:
                return  # the turn goes on when credit returns: small chunks of others never pass a large one
            if _tokens_at(entry.buckets, now) > now:
                del ring[entry.number]
                entry.ring = self._paced
                self._paced[entry.number] = entry
                continue
            entry.waiting.popleft()
            entry.deficit -= size
            entry.refused = False
            entry.flying[chunk] = _Chunk(size, now)
            for bucket in entry.buckets:
                bucket.take(size if bucket.unit == "bytes" else ops, now)
            self._fly(entry, size)
            granted.append((entry.number, chunk))
            self._place(entry)

    def _settle(self, entry: _Disk, chunk: int) -> None:
        """Take back the credit of one chunk: the only place where credit returns."""
        flying = entry.flying.pop(chunk)
        if flying.received is not None:
            entry.queued -= flying.size
            self._queue(-flying.size)
            entry.meter.dropped(flying.size, max(self._now, flying.received))
        self._fly(entry, -flying.size)
        self._place(entry)
        if not entry.flying and not entry.waiting:
            entry.idle_since = self._now
            self._idle[entry.number] = entry

    def _fly(self, entry: _Disk, size: int) -> None:
        entry.in_flight += size
        self._in_flight += size
        self.peak_bytes = max(self.peak_bytes, self._in_flight)
        self._reserve(entry)

    def _queue(self, size: int) -> None:
        self._queued += size
        if self._queued > PRESSURE_ON * self._budget:
            self._pressed = True
        elif self._queued < PRESSURE_OFF * self._budget:
            self._pressed = False

    # Shares ---------------------------------------------------------------------------------------------------------

    def _activate(self, entry: _Disk) -> None:
        self._idle.pop(entry.number, None)
        self._joining.pop(entry.number, None)
        entry.idle_since = None
        if not entry.active:
            entry.active = True
            self._active += 1
            self._share_out()

    def _deactivate(self, entry: _Disk) -> None:
        self._idle.pop(entry.number, None)
        self._joining.pop(entry.number, None)
        if entry.active:
            entry.active = False
            self._active -= 1
            self._share_out()

    def _share_out(self) -> None:
        """Find the guaranteed share anew; the number of disks with work has changed."""
        self._budget = in_use(self._most, self._active, self._need)
        self._share = guaranteed_share(self._budget, self._active)
        for entry in self._disks.values():
            self._reserve(entry)
            if entry.waiting:
                self._place(entry)

    def _reserve(self, entry: _Disk) -> None:
        """Keep the part of a disk's share that it does not use free for it."""
        goes_round = self._share * self._active <= self._budget
        reserved = max(0, min(self._share, entry.level) - entry.in_flight) if entry.active and goes_round else 0
        self._reserved += reserved - entry.reserved
        entry.reserved = reserved

    # Levels ---------------------------------------------------------------------------------------------------------

    def _judge(self, entry: _Disk, now: float) -> None:
        """Let the law decide when an interval has ended."""
        meter = entry.meter
        oldest = None
        if now - meter.began >= 1.0 and entry.queued:
            oldest = min(
                ((chunk.received, chunk.size) for chunk in entry.flying.values() if chunk.received is not None),
                default=None,
            )
        waits = (oldest[1], now - oldest[0]) if oldest is not None else None
        if not meter.due(now, waits[1] if waits else None):
            return
        change = entry.law.step(meter.end(entry.level, now, pressed=self._pressed, oldest=waits), now)
        if change is not None:
            entry.level = change.to_bytes
            entry.changes.append(change)
            self._reserve(entry)
            self._place(entry)


def _tokens_at(buckets: tuple[Bucket, ...], now: float) -> float:
    return max((bucket.ready_at(now) for bucket in buckets), default=now)
