"""The window scheduler for threads: a disk's thread waits here for credit, the link's threads bring it back."""

from __future__ import annotations

import itertools
import threading
import time

from farshore.errors import FarshoreError
from farshore.window.scheduler import Scheduler


class NodeWindow:
    """The byte budget of a node; one per process, shared by all groups that it replicates."""

    def __init__(self, budget_bytes: int) -> None:
        self.changed = threading.Condition()
        self.scheduler = Scheduler(budget_bytes)
        self.granted: set[tuple[int, int]] = set()
        self._numbers = itertools.count(1)

    def disk(self, level: int, mark: int) -> DiskWindow:
        """Take up a disk; both in bytes. Close the window that is returned."""
        return DiskWindow(self, next(self._numbers), level, mark)

    def in_flight(self) -> int:
        """Return the bytes in flight of all disks."""
        with self.changed:
            return self.scheduler.in_flight()


class DiskWindow:
    """The window of one disk. ``acquire`` is for the disk's own thread, the rest for any."""

    def __init__(self, node: NodeWindow, number: int, level: int, mark: int) -> None:
        self._node = node
        self._number = number
        self._chunks = itertools.count(1)
        self._queued: int | None = None
        self._error: FarshoreError | None = None
        self.peak_bytes = 0
        with node.changed:
            node.scheduler.add_disk(number, level, mark)

    def acquire(self, size_bytes: int) -> int | None:
        """Wait for the credit of a chunk and return its number; None where a mark has to be made first.

        After None call again with the same size: the place in the queue is kept.

        Raises:
            FarshoreError: what :meth:`abort` was called with.
        """
        node, me = self._node, self._number
        with node.changed:
            if self._queued is None:
                self._queued = next(self._chunks)
                node.scheduler.want(me, self._queued, size_bytes)
            while True:
                if self._error is not None:
                    raise self._error
                if node.scheduler.mark_due(me):
                    return None
                for grant in node.scheduler.requested(time.monotonic()):
                    node.granted.add(grant)
                    if grant[0] != me:
                        node.changed.notify_all()
                if (me, self._queued) in node.granted:
                    node.granted.discard((me, self._queued))
                    chunk, self._queued = self._queued, None
                    self.peak_bytes = max(self.peak_bytes, node.scheduler.in_flight(me))
                    return chunk
                node.changed.wait()

    def written(self, chunk: int) -> None:
        """Return a chunk's credit: it is in the draft."""
        with self._node.changed:
            self._node.scheduler.written(self._number, chunk, time.monotonic())
            self._node.changed.notify_all()

    def failed(self, chunk: int) -> None:
        """Return a chunk's credit: it will not be written."""
        with self._node.changed:
            self._node.scheduler.failed(self._number, chunk)
            self._node.changed.notify_all()

    def drain(self) -> None:
        """Wait until nothing is in flight.

        Raises:
            FarshoreError: what :meth:`abort` was called with.
        """
        with self._node.changed:
            while True:
                if self._error is not None:
                    raise self._error
                if self._node.scheduler.in_flight(self._number) == 0:
                    return
                self._node.changed.wait()

    def begin_mark(self) -> int:
        """Return the written bytes that a flush beginning now covers."""
        with self._node.changed:
            return self._node.scheduler.begin_mark(self._number)

    def durable(self, size_bytes: int) -> None:
        """Note what a mark covered."""
        with self._node.changed:
            self._node.scheduler.durable(self._number, size_bytes)
            self._node.changed.notify_all()

    def abort(self, error: FarshoreError) -> None:
        """Wake whoever waits, with ``error``."""
        with self._node.changed:
            self._error = self._error or error
            self._node.changed.notify_all()

    def close(self) -> None:
        """Give everything back."""
        with self._node.changed:
            self._node.granted = {grant for grant in self._node.granted if grant[0] != self._number}
            self._node.scheduler.remove_disk(self._number)
            self._node.changed.notify_all()
