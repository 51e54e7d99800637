"""Threads that write, so that the threads of the link only receive.

A :class:`Lane` is the queue of one disk: first in, first out, with a limit of how many of its jobs run at once. Threads
belong to no disk; one is started when a lane may run a job and no thread is idle, and ends when it has been idle for a
while. So a disk that hangs holds as many threads as its lane allows, and costs no other disk anything.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

log = logging.getLogger(__name__)

IDLE_S: Final = 5.0

Job = Callable[[], None]


class WriterPool:
    """The writing threads of a process. Nothing runs until a lane has a job."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ready: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        # Threads that wait, less the lanes that are in ``_ready`` for them.
        self._idle = 0
        self.threads = 0

    def lane(self, name: str, parallel: int = 1) -> Lane:
        """Return the queue of one disk. Close it."""
        return Lane(self, self._lock, name, parallel)

    def start(self, lane: Lane) -> bool:
        """Find a thread for a lane; called with the lock held. True if a new one has to be started after it."""
        if self._idle:
            self._idle -= 1
            self._ready.put(lane)
            return False
        self.threads += 1
        return True

    def spawn(self, lane: Lane) -> None:
        """Start the thread that :meth:`start` asked for; where none can be had, do the lane's jobs here."""
        try:
            threading.Thread(target=self._work, args=(lane,), name=f"writer-{lane.name}", daemon=True).start()
        except RuntimeError as error:
            log.warning("no thread more can be had for %s: %s", lane.name, error)
            with self._lock:
                self.threads -= 1
            _serve(lane)

    def _work(self, first: Lane) -> None:
        lane: Lane | None = first
        while lane is not None:
            _serve(lane)
            lane = self._wait()

    def _wait(self) -> Lane | None:
        with self._lock:
            self._idle += 1
        while True:
            try:
                return self._ready.get(timeout=IDLE_S)
            except queue.Empty:
                with self._lock:
                    if self._ready.empty():
                        self._idle -= 1
                        self.threads -= 1
                        return None


class Lane:
    """The jobs of one disk. ``parallel`` may be changed at any time."""

    def __init__(self, pool: WriterPool, lock: threading.Lock, name: str, parallel: int) -> None:
        self.name = name
        self.parallel = parallel
        self._pool = pool
        self._lock = lock
        self._quiet = threading.Condition(lock)
        self._waiting: deque[tuple[Job, Job]] = deque()
        self._running = 0
        self._closed = threading.Event()

    def put(self, job: Job, drop: Job) -> None:
        """Queue ``job``. If the lane is closed before it has begun, ``drop`` is called instead."""
        with self._lock:
            closed = self._closed.is_set()
            if not closed:
                self._waiting.append((job, drop))
            # A second thread only where the first has more than the next job before it: they share the interpreter.
            begin = not closed and self._running < self.parallel and self._running < max(1, len(self._waiting))
            if begin:
                self._running += 1
                begin = self._pool.start(self)
        if begin:
            self._pool.spawn(self)
        elif closed:
            drop()

    def pause(self, seconds: float) -> bool:
        """Wait inside of a job; False once the lane is closed."""
        return not self._closed.wait(seconds)

    def next(self) -> Job | None:
        """Return the job that a thread of the pool does next; None where it has to leave the lane."""
        with self._lock:
            if self._waiting and self._running <= self.parallel:
                return self._waiting.popleft()[0]
            self._running -= 1
            if not self._running:
                self._quiet.notify_all()
            return None

    def drain(self) -> None:
        """Wait until all jobs have ended."""
        with self._quiet:
            self._quiet.wait_for(lambda: not self._waiting and not self._running)

    def close(self) -> None:
        """Drop what waits and wait for what runs. May be called again."""
        with self._lock:
            self._closed.set()
            dropped = [drop for _, drop in self._waiting]
            self._waiting.clear()
        for drop in dropped:
            drop()
        self.drain()


def _serve(lane: Lane) -> None:
    """Do the jobs of a lane until it has none for this thread."""
    while (job := lane.next()) is not None:
        try:
            job()
        except Exception:  # a job tells its own errors; one that does not must not cost the pool a thread
            log.exception("a job of %s failed unheard", lane.name)
        del job  # it may hold a buffer
