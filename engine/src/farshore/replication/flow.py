"""The window scheduler for threads: a disk's thread waits here for credit, other threads bring it back."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Iterable
from typing import Final

from farshore.errors import FarshoreError
from farshore.limits import Unit
from farshore.replication.writers import WriterPool
from farshore.window.law import LevelChange
from farshore.window.levels import first_level, usable_levels
from farshore.window.scheduler import Scheduler

log = logging.getLogger(__name__)

#: A disk that waits for credit looks at its law this often, also when nothing is heard of its chunks.
TICK_S: Final = 1.0
#: How often it is found out what the paths hold.
SEEN_S: Final = 0.4
#: What a chunk takes besides the round trip: read, digested, written.
SERVICE_S: Final = 0.05


class NodeWindow:
    """The byte budget of a node; one per process, shared by all groups that it replicates.

    Attributes:
        budget_bytes: what may be in flight.
        writers: the threads that write what comes.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.writers = WriterPool()
        self.lock = threading.Lock()
        self.scheduler = Scheduler(budget_bytes)
        self._disks: dict[int, DiskWindow] = {}
        self._numbers = itertools.count(1)
        self._watcher: DiskWindow | None = None
        self._wake_at = 0.0
        self._seen = time.monotonic(), 0
        self._rtt_s = 0.0

    def disk(
        self,
        levels: tuple[int, ...],
        start: int,
        mark: int,
        *,
        writers_max: int = 1,
        limits: Iterable[str] = (),
        name: str = "",
        rtt_s: float | None = None,
    ) -> DiskWindow:
        """Take up a disk. Close the window that is returned.

        Args:
            levels: windows in bytes that it may move between.
            start: its first window in bytes; one that is none of the levels stays.
            mark: bytes that may be written and not durable.
            writers_max: writes that its platform bears at once.
            limits: the rates that it is held to, by the names that :meth:`limit` knows.
            name: what the log calls it.
            rtt_s: the round trip of its path, where that is known.
        """
        usable = usable_levels(levels, start)
        first = first_level(usable, start, rtt_s)
        number = next(self._numbers)
        with self.lock:
            self.scheduler.add_disk(
                number,
                first,
                mark,
                levels=usable,
                writers_max=writers_max,
                limits=limits,
                now=time.monotonic(),
            )
            window = self._disks[number] = DiskWindow(self, number, name or f"disk {number}")
        return window

    def limit(self, name: str, per_s: float | None, unit: Unit = "bytes") -> None:
        """Hold all disks that name this limit to a rate together, from now on; None is no limit."""
        with self.lock:
            self.scheduler.limit(name, per_s, time.monotonic(), unit)
            for window in self._disks.values():
                window.wake()

    def seen(self, rtt_s: float | None) -> None:
        """Take the round trip of a path that is used; called about twice a second, by each group."""
        now = time.monotonic()
        with self.lock:
            self._rtt_s = max(self._rtt_s, rtt_s or 0.0)
            since, before = self._seen
            if now - since < SEEN_S:
                return
            written = self.scheduler.written_bytes
            self.scheduler.need(int((written - before) / (now - since) * (self._rtt_s + SERVICE_S)))
            self._seen, self._rtt_s = (now, written), 0.0
            self.grant(now)

    def in_flight(self) -> int:
        """Return the bytes in flight of all disks."""
        with self.lock:
            return self.scheduler.in_flight()

    @property
    def peak_bytes(self) -> int:
        """The most bytes that were ever in flight."""
        return self.scheduler.peak_bytes

    def grant(self, now: float) -> None:
        """Give out credit and wake who got some; the lock is held."""
        for number, chunk in self.scheduler.requested(now):
            self._disks[number].granted(chunk)

    def watch(self, disk: DiskWindow, now: float) -> float:
        """Return how long a disk that waits may sleep, in seconds; the lock is held.

        One of all that wait for a limit watches the clock: eighty that woke at the same time would only find that one
        of them may go on.
        """
        wake_at = self.scheduler.wake_at(now)
        if wake_at is None or (self._watcher not in {None, disk} and self._wake_at <= wake_at):
            return TICK_S
        self._watcher, self._wake_at = disk, wake_at
        return min(TICK_S, max(wake_at - now, 0.0))

    def unwatch(self, disk: DiskWindow) -> None:
        """Let another disk watch the clock; the lock is held."""
        if self._watcher is disk:
            self._watcher = None
            following = self.scheduler.first_paced()
            if following is not None:
                self._disks[following].wake()

    def forget(self, number: int) -> None:
        """Take a disk out; the lock is held."""
        if self._disks.pop(number, None) is not None:
            self.scheduler.remove_disk(number)
            self.grant(time.monotonic())


class DiskWindow:
    """The window of one disk. ``acquire`` and ``drain`` are for the disk's own thread, the rest for any."""

    def __init__(self, node: NodeWindow, number: int, name: str) -> None:
        self.name = name
        self.peak_bytes = 0
        self._node = node
        self._number = number
        self._chunks = itertools.count(1)
        self._changed = threading.Condition(node.lock)
        self._granted: int | None = None
        self._error: FarshoreError | None = None
        self._logged = 0

    def acquire(self, size_bytes: int, ops: int = 1) -> int:
        """Wait for the credit of a chunk and return its number; ``ops`` counts for limits of operations.

        Raises:
            FarshoreError: what :meth:`abort` was called with.
        """
        node, me = self._node, self._number
        with node.lock:
            self._check()
            node.scheduler.want(me, next(self._chunks), size_bytes, ops)
            now = time.monotonic()
            node.grant(now)
            try:
                while self._granted is None:
                    self._changed.wait(node.watch(self, now))
                    self._check()
                    if self._granted is None:
                        now = time.monotonic()
                        node.scheduler.tick(me, now)
                        self._log_changes()
                        node.grant(now)
            finally:
                node.unwatch(self)
            chunk, self._granted = self._granted, None
            return chunk

    def received(self, chunk: int, surplus_bytes: int = 0) -> None:
        """Note that a chunk has come. ``surplus_bytes`` is what it was smaller on the wire than its request said."""
        with self._node.lock:
            self._node.scheduler.received(self._number, chunk, time.monotonic())
            if surplus_bytes:
                self._node.scheduler.correct(self._number, surplus_bytes)

    def retried(self) -> None:
        """Note that a write failed, or was throttled, and will be tried again; the chunk keeps its credit."""
        with self._node.lock:
            self._node.scheduler.retried(self._number)

    def written(self, chunk: int, took_s: float | None = None) -> None:
        """Return a chunk's credit: it is in the draft, its write took ``took_s``."""
        with self._node.lock:
            now = time.monotonic()
            self._node.scheduler.written(self._number, chunk, now, took_s)
            self._returned(now)

    def failed(self, chunk: int) -> None:
        """Return a chunk's credit: it will not be written."""
        with self._node.lock:
            self._node.scheduler.failed(self._number, chunk)
            self._returned(time.monotonic())

    def drain(self) -> None:
        """Wait until nothing is in flight.

        Raises:
            FarshoreError: what :meth:`abort` was called with.
        """
        with self._node.lock:
            while self._node.scheduler.in_flight(self._number):
                self._check()
                self._changed.wait(TICK_S)
                self._node.scheduler.tick(self._number, time.monotonic())
            self._check()
            self._node.scheduler.rest(self._number)
            self._node.grant(time.monotonic())

    def mark_due(self) -> bool:
        """Say whether a mark should begin."""
        with self._node.lock:
            return self._node.scheduler.mark_due(self._number)

    def begin_mark(self) -> int:
        """Return the written bytes that a flush beginning now covers."""
        with self._node.lock:
            return self._node.scheduler.begin_mark(self._number)

    def durable(self, size_bytes: int) -> None:
        """Note what a mark covered."""
        with self._node.lock:
            self._node.scheduler.durable(self._number, size_bytes)
            self._returned(time.monotonic())

    def abort(self, error: FarshoreError) -> None:
        """Wake whoever waits, with ``error``."""
        with self._node.lock:
            self._error = self._error or error
            self._changed.notify_all()

    def close(self) -> None:
        """Give everything back. May be called again."""
        with self._node.lock:
            self._node.forget(self._number)

    @property
    def level(self) -> int:
        """The window in bytes."""
        return self._node.scheduler.level(self._number)

    @property
    def writers(self) -> int:
        """How many writes may run at once."""
        return self._node.scheduler.writers(self._number)

    @property
    def changes(self) -> tuple[LevelChange, ...]:
        """The changes of the window, oldest first."""
        with self._node.lock:
            return tuple(self._node.scheduler.changes(self._number))

    # With the lock held ---------------------------------------------------------------------------------------------

    def granted(self, chunk: int) -> None:
        """Hand over the credit of the chunk that was asked for last."""
        self._granted = chunk
        self.peak_bytes = max(self.peak_bytes, self._node.scheduler.in_flight(self._number))
        self._changed.notify()

    def wake(self) -> None:
        """Make the disk's thread look again."""
        self._changed.notify()

    def _returned(self, now: float) -> None:
        self._node.grant(now)
        self._log_changes()
        if not self._node.scheduler.in_flight(self._number):
            self._changed.notify()

    def _log_changes(self) -> None:
        changes = self._node.scheduler.changes(self._number)
        for change in changes[self._logged :]:
            log.info("window of %s: %s", self.name, change)
        self._logged = len(changes)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
