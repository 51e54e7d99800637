"""Time and threads that are neither: work that waits in a made-up time, one piece at once, in an order by a seed.

Blocking code runs as it is: ``time`` is replaced while :func:`instead` is open, and whoever sleeps lets others go on.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from unittest import mock

import greenlet  # type: ignore[import-untyped]

#: Where time begins.
BEGIN: Final = 1_800_000_000.0


class Hub:
    """A queue of what happens when. Runs in the greenlet that calls :meth:`run`."""

    def __init__(self) -> None:
        self.now = BEGIN
        self._numbers = itertools.count()
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._waiting: dict[int, tuple[str, greenlet.greenlet]] = {}
        self._main = greenlet.getcurrent()
        self.failure: BaseException | None = None

    def at(self, moment: float, act: Callable[[], None]) -> None:
        """Do something at a time."""
        heapq.heappush(self._queue, (max(moment, self.now), next(self._numbers), act))

    def spawn(self, work: Callable[[], None]) -> greenlet.greenlet:
        """Begin a piece of work."""

        def guarded() -> None:
            try:
                work()
            except greenlet.GreenletExit:
                raise
            except BaseException as error:  # noqa: BLE001 - raised again by run
                self.failure = self.failure or error

        piece = greenlet.greenlet(guarded, self._main)
        self.at(self.now, lambda: self._go(piece))
        return piece

    def sleep(self, seconds: float) -> None:
        """Let others go on for so long."""
        me = greenlet.getcurrent()
        if me is self._main:
            raise RuntimeError("the hub itself never sleeps")
        self.at(self.now + max(seconds, 0.0), lambda: self._go(me))
        self._main.switch()

    def await_change(self, topic: str, seconds: float) -> None:
        """Wait for :meth:`changed`, but no longer than so."""
        me = greenlet.getcurrent()
        number = next(self._numbers)  # a later wait of the same piece is another one
        self._waiting[number] = (topic, me)

        def wake() -> None:
            if self._waiting.pop(number, None):
                self._go(me)

        self.at(self.now + seconds, wake)
        self._main.switch()

    def changed(self, topic: str) -> None:
        """Wake whoever waits for a change of ``topic``, a moment from now."""
        waiting = [piece for about, piece in self._waiting.values() if about == topic]
        self._waiting = {number: pair for number, pair in self._waiting.items() if pair[0] != topic}
        for piece in waiting:
            self.at(self.now + 0.01, lambda piece=piece: self._go(piece))  # type: ignore[misc]

    def kill(self, piece: greenlet.greenlet) -> None:
        """End a piece of work where it waits."""
        self._waiting = {number: pair for number, pair in self._waiting.items() if pair[1] is not piece}
        if not piece.dead and piece:
            piece.throw()

    def run(self, until: Callable[[], bool], limit_s: float) -> bool:
        """Let time go on until ``until`` is true; False if that is not within ``limit_s``."""
        deadline = self.now + limit_s
        while not until():
            if self.failure is not None:
                raise self.failure
            if not self._queue or self._queue[0][0] > deadline:
                return False
            self.now, _, act = heapq.heappop(self._queue)
            act()
        return True

    @staticmethod
    def _go(piece: greenlet.greenlet) -> None:
        if not piece.dead:
            piece.switch()


class Event:
    """A ``threading.Event`` in a hub's time."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._set = False

    def is_set(self) -> bool:
        """Say whether it was set."""
        return self._set

    def set(self) -> None:
        """Set it."""
        self._set = True

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for it, in steps."""
        deadline = self._hub.now + (timeout if timeout is not None else 1e9)
        while not self._set and self._hub.now < deadline:
            self._hub.sleep(min(0.5, deadline - self._hub.now))
        return self._set


@contextmanager
def instead(hub: Hub) -> Iterator[None]:
    """Let the hub's time be everybody's."""

    def now() -> float:
        return hub.now

    def clock_gettime(_clock: Any) -> float:
        return hub.now - BEGIN + 1000.0

    with (
        mock.patch.object(time, "time", now),
        mock.patch.object(time, "monotonic", now),
        mock.patch.object(time, "sleep", hub.sleep),
        mock.patch.object(time, "clock_gettime", clock_gettime),
    ):
        yield
