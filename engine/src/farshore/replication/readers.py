"""The threads that work on a source's questions, so that one disk's stalled storage stalls no other disk.

Work is queued in *lanes*, one per disk of a session. A lane has at most ``per_lane`` threads at once, and lanes take
turns. Threads for two lanes are enough while storage answers; where some have been at one piece of work for
:data:`STALL_S`, others are started in their place, up to :data:`THREADS_MAX`. They end when theirs come back.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from queue import SimpleQueue
from typing import Final

#: Threads in all. Each of them stands for one read of stalled storage.
THREADS_MAX: Final = 512
#: A piece of work that takes longer waits for its storage, and its thread is not counted as working.
STALL_S: Final = 0.2

Work = Callable[[], None]


class _Lane:
    """What waits for one disk. ``turns``: threads that are at it, and places in the queue for more."""

    __slots__ = ("key", "turns", "work")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.turns = 0
        self.work: deque[Work] = deque()


class _Thread(threading.Thread):
    """One thread. ``began``: when it took up its present work; 0 while it has none."""

    def __init__(self, readers: Readers) -> None:
        super().__init__(name="data-reader", daemon=True)
        self._readers = readers
        self.began = 0.0
        self.stalled = False

    def run(self) -> None:
        self._readers.serve(self)


class Readers:
    """A pool of threads over lanes of work. ``per_lane``: threads that one lane may take."""

    def __init__(self, per_lane: int) -> None:
        self._per_lane = per_lane
        self._working_max = 2 * per_lane
        self._lock = threading.Lock()
        self._lanes: dict[Hashable, _Lane] = {}
        # One entry per turn: whoever takes it does one piece of that lane's work. None ends a thread.
        self._turns: SimpleQueue[_Lane | None] = SimpleQueue()
        self._threads: set[_Thread] = set()
        self._stalled = 0
        self._looked_at = 0.0
        self._stopped = False

    def submit(self, key: Hashable, work: Work) -> None:
        """Have ``work`` done when it is the lane's turn. It must not raise."""
        with self._lock:
            if self._stopped:
                return
            lane = self._lanes.get(key)
            if lane is None:
                lane = self._lanes[key] = _Lane(key)
            lane.work.append(work)
            if lane.turns < self._per_lane:
                lane.turns += 1
                self._turns.put(lane)
                self._start_thread()

    def look(self) -> None:
        """Start threads in place of those that stall; to be called now and then by whoever waits for work."""
        now = time.monotonic()
        if now - self._looked_at < STALL_S / 2:
            return
        with self._lock:
            self._looked_at = now
            for thread in list(self._threads):
                if not thread.stalled and thread.began and now - thread.began > STALL_S:
                    thread.stalled = True
                    self._stalled += 1
                    self._start_thread()

    def stop(self) -> None:
        """End all threads when they have done what they are at; what waits is dropped."""
        with self._lock:
            self._stopped = True
            for lane in self._lanes.values():
                lane.work.clear()
            for _ in self._threads:
                self._turns.put(None)

    def _start_thread(self) -> None:
        """Start a thread if there is work for it; called with the lock held."""
        working = len(self._threads) - self._stalled
        if working < self._working_max and len(self._threads) < THREADS_MAX and not self._turns.empty():
            thread = _Thread(self)
            self._threads.add(thread)
            thread.start()

    def serve(self, thread: _Thread) -> None:
        """Take turns until there are enough others; the body of a thread."""
        while True:
            lane = self._turns.get()
            if lane is None:
                return
            with self._lock:
                work = lane.work.popleft() if lane.work else None
            if work is not None:
                thread.began = time.monotonic()
                work()
                thread.began = 0.0
            with self._lock:
                if lane.work:
                    self._turns.put(lane)  # behind the other lanes
                else:
                    lane.turns -= 1
                    if not lane.turns:
                        self._lanes.pop(lane.key, None)
                if thread.stalled:
                    thread.stalled = False
                    self._stalled -= 1
                    if len(self._threads) - self._stalled > self._working_max:
                        self._threads.discard(thread)
                        return
