"""The law of a disk's window: when it moves between its levels, and how many writes run at once.

Little's law says what a window is for: ``goodput x (round-trip time + write latency)``. More of it only waits, in the
path or in front of the disk. So a window grows by a probe that has to pay, and shrinks as soon as it only feeds the
write queue. See docs/internals/window.md for the reason of each number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from farshore.units import format_size
from farshore.window.meter import Signals

#: Tries that fail, per chunk: above the first a level down, above the second two.
ERRORS_HARD: Final = 0.02
ERRORS_WORSE: Final = 0.10
#: A write that takes this many times the best one of late, with a long queue, is a disk that cannot keep up.
SLOW: Final = 4.0
#: Shares of the window that wait for their write: below the first there is room to grow, above the second too much.
QUEUE_SHORT: Final = 0.25
QUEUE_LONG: Final = 0.6
#: Good intervals before a probe; twice as many where answer times jump about, three times where the path queues.
GOOD: Final = 3
JITTER: Final = 0.5
PATH_QUEUE: Final = 0.75
#: What a probe has to bring to be kept: this, or twice what goodput jumps by itself, as far as the second number.
GAIN: Final = 0.05
GAIN_MAX: Final = 0.15
#: Intervals of rest: after a hard and a soft step down, and after a probe that did not pay (doubled each time).
REST_HARD: Final = 5
REST_SOFT: Final = 3
REST_PROBE: Final = 20
REST_PROBE_MAX: Final = 160
#: Goodput over that of the last probe that did not pay, from which on the path counts as another one.
CHANGED: Final = 1.25
#: Writes at once to begin with: a file takes one at a time, and who waits for it spins. Measured: 8 % less processor.
WRITERS_START: Final = 1


@dataclass(frozen=True, slots=True)
class LevelChange:
    """A step of a disk's window; ``at`` is on the caller's clock, in seconds."""

    at: float
    from_bytes: int
    to_bytes: int
    reason: str

    def __str__(self) -> str:
        return f"{format_size(self.from_bytes)} -> {format_size(self.to_bytes)}: {self.reason}"


class Law:
    """Levels and writers of one disk. Feed :meth:`step` once per interval.

    Attributes:
        level: the window in bytes.
        writers: writes that may run at once.
    """

    def __init__(self, levels: tuple[int, ...], start: int, writers_max: int = 1) -> None:
        if list(levels) != sorted(set(levels)) or start not in levels:
            raise ValueError(f"{start} is none of the ascending levels {levels}")
        self._levels = levels
        self._index = levels.index(start)
        self._good = 0
        self._rest = 0
        self._patience = REST_PROBE
        self._noise = 0.0
        self._last_goodput: float | None = None
        self._ceiling = math.inf  # goodput at which a probe did not pay
        self._probe: float | None = None  # goodput before the step up that is on trial
        self._writers_max = max(1, writers_max)
        self._writers_probe: tuple[int, float] | None = None
        self._writers_rest = 0
        self.writers = min(WRITERS_START, self._writers_max)

    @property
    def level(self) -> int:
        """The window in bytes."""
        return self._levels[self._index]

    def step(self, signals: Signals, now: float) -> LevelChange | None:
        """Take in an interval; return the change of the level, where there is one."""
        self._rest = max(0, self._rest - 1)
        more_writers = self._adapt_writers(signals)
        self._measure_noise(signals)
        if signals.errors > ERRORS_HARD:
            steps = 2 if signals.errors > ERRORS_WORSE else 1
            return self._down(steps, REST_HARD, now, f"{signals.errors:.0%} of the tries failed")
        if signals.slowness > SLOW and signals.queue > QUEUE_LONG:
            reason = f"writes take {signals.slowness:.1f} times as long as they can, {signals.queue:.0%} wait"
            return self._down(1, REST_HARD, now, reason)
        if signals.queue > QUEUE_LONG:
            return self._soft_down(more_writers, now, f"{signals.queue:.0%} of the window waits to be written")
        if signals.pressed and signals.queue > QUEUE_SHORT:
            return self._soft_down(more_writers, now, f"the node is full, {signals.queue:.0%} of the window waits")
        if signals.goodput > self._ceiling * CHANGED:
            self._ceiling, self._rest, self._patience = math.inf, 0, REST_PROBE
        if self._probe is not None:
            return self._judge(self._probe, signals, now)
        good = (
            signals.limited
            and signals.queue < QUEUE_SHORT
            and not (signals.errors or signals.stalled or signals.pressed)
        )
        self._good = self._good + 1 if good else 0
        needed = GOOD * (2 if signals.jitter > JITTER else 1) * (3 if signals.path_queue > PATH_QUEUE else 1)
        if self._good >= needed and not self._rest and not more_writers and self._index + 1 < len(self._levels):
            self._probe, self._good = signals.goodput, 0
            return self._move(1, now, f"full for {needed} intervals and nothing waits: a probe")
        return None

    def _judge(self, before: float, signals: Signals, now: float) -> LevelChange | None:
        """Keep a probe that pays. An interval with a stall says nothing."""
        if signals.stalled and not signals.pressed:
            return None
        self._probe = None
        if signals.goodput >= before * (1 + max(GAIN, min(2 * self._noise, GAIN_MAX))):
            self._patience = REST_PROBE
            return None
        self._rest, self._ceiling = self._patience, before
        self._patience = min(2 * self._patience, REST_PROBE_MAX)
        gain = signals.goodput / before - 1 if before else 0.0
        return self._move(-1, now, f"the probe brought {gain:+.0%}")

    def _soft_down(self, more_writers: bool, now: float, reason: str) -> LevelChange | None:
        if more_writers or self._rest:  # the first remedy for a queue is to write faster
            self._good, self._probe = 0, None
            return None
        return self._down(1, REST_SOFT, now, reason)

    def _down(self, steps: int, rest: int, now: float, reason: str) -> LevelChange | None:
        self._good, self._probe, self._rest = 0, None, rest
        return self._move(-steps, now, reason)

    def _move(self, steps: int, now: float, reason: str) -> LevelChange | None:
        before = self.level
        self._index = max(0, min(self._index + steps, len(self._levels) - 1))
        return LevelChange(now, before, self.level, reason) if self.level != before else None

    def _measure_noise(self, signals: Signals) -> None:
        """Follow how much goodput jumps by itself; what a probe brings must stand out of that."""
        last, self._last_goodput = self._last_goodput, signals.goodput
        if last and self._probe is None and not signals.stalled:
            change = min(abs(signals.goodput / last - 1), 0.25)
            self._noise += (change - self._noise) / 8

    def _adapt_writers(self, signals: Signals) -> bool:
        """Adapt how many writes run at once; True while more of them are on trial."""
        self._writers_rest = max(0, self._writers_rest - 1)
        probe, self._writers_probe = self._writers_probe, None
        if signals.errors > ERRORS_HARD or (signals.slowness > SLOW and signals.queue > QUEUE_LONG):
            self.writers = max(1, self.writers // 2)
            self._writers_rest = REST_HARD
            return False
        if probe is not None:
            before, goodput = probe
            if signals.queue > QUEUE_SHORT and signals.goodput < goodput * (1 + GAIN):
                self.writers, self._writers_rest = before, REST_PROBE
                return False
        if signals.queue > QUEUE_SHORT and self.writers < self._writers_max and not self._writers_rest:
            self._writers_probe = self.writers, signals.goodput
            self.writers = min(2 * self.writers, self._writers_max)
            return True
        return False
