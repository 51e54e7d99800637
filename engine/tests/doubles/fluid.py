"""A link and a disk as two queues in virtual time, and the window between them: for tests of the window's law."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from functools import partial

from farshore.units import CHUNK_SIZE, MIB, WINDOW_LEVELS
from farshore.window.law import LevelChange
from farshore.window.scheduler import Scheduler


class Fluid:
    """One disk that always has work. Rates in MiB/s, times in seconds; all may be changed between two runs.

    Attributes:
        rtt: of the link; ``jitter`` adds up to that share of it to each answer.
        link: what the link carries.
        disk: what one write at a time brings; ``parallel`` writes at once bring that much more.
        errors: share of the writes that have to be tried again.
    """

    def __init__(self, seed: int, *, rtt: float, link: float, disk: float, parallel: int = 1, writers: int = 1) -> None:
        self.rng = random.Random(seed)
        self.rtt, self.link, self.disk, self.parallel = rtt, link, disk, parallel
        self.jitter = self.errors = 0.0
        self.scheduler = Scheduler(512 * MIB)
        self.scheduler.add_disk(1, 32 * MIB, 10**15, levels=WINDOW_LEVELS, writers_max=writers)
        self.now = 0.0
        self.moved = 0
        self.levels: list[int] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count(1)
        self._link_free = 0.0
        self._writing = 0
        self._queue: list[int] = []
        self._waits = False
        self._ask()

    @property
    def level(self) -> int:
        return self.scheduler.level(1) // MIB

    @property
    def changes(self) -> list[LevelChange]:
        return self.scheduler.changes(1)

    def run(self, seconds: float) -> float:
        """Let time pass; return the goodput in MiB/s."""
        end, before = self.now + seconds, self.moved
        while self._events and self._events[0][0] <= end:
            self.now, _, action = heapq.heappop(self._events)
            action()
            self.levels.append(self.level)
        self.now = end
        return (self.moved - before) * CHUNK_SIZE / MIB / seconds

    def _at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), action))

    def _ask(self) -> None:
        """Ask for as much as the window lets; one chunk always waits for more credit."""
        while True:
            if not self._waits:
                self.scheduler.want(1, next(self._numbers), CHUNK_SIZE)
                self._waits = True
            granted = self.scheduler.requested(self.now)
            if not granted:
                return
            self._waits = False
            for _, chunk in granted:
                self._link_free = max(self._link_free, self.now + self.rtt / 2) + 1 / self.link
                late = self.rtt * self.jitter * self.rng.random()
                self._at(self._link_free + self.rtt / 2 + late, partial(self._come, chunk))

    def _come(self, chunk: int) -> None:
        self.scheduler.received(1, chunk, self.now)
        self._queue.append(chunk)
        self._write()

    def _write(self) -> None:
        while self._queue and self._writing < self.scheduler.writers(1):
            chunk = self._queue.pop(0)
            self._writing += 1
            crowd = max(1.0, self._writing / self.parallel)
            took = crowd / self.disk * self.rng.uniform(0.9, 1.1)
            if self.rng.random() < self.errors:
                self.scheduler.retried(1)
                took *= 2
            self._at(self.now + took, partial(self._wrote, chunk, took))

    def _wrote(self, chunk: int, took: float) -> None:
        self._writing -= 1
        self.moved += 1
        self.scheduler.written(1, chunk, self.now, took)
        self._ask()
        self._write()
