"""What a disk's window law is fed with: events of chunks in, one set of signals per interval out. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import Final

#: An interval is this long and has this many chunks, so that its median means something ...
INTERVAL_S: Final = 1.0
INTERVAL_CHUNKS: Final = 32
#: ... but a disk that is too slow for that many is judged nonetheless.
INTERVAL_MAX_S: Final = 4.0
#: Over how long the best latency counts as what the disk can do.
BASE_S: Final = 10.0
#: No chunk for longer than this, and than four answer times, is a stall.
GAP_S: Final = 0.25
#: Write latencies below this differ by what the threads do, not by what the disk does.
FLOOR_S: Final = 0.001
#: A window that was full once in so many chunks is what limits; it opens again for some of them at once.
LIMITED: Final = 8
_SAMPLES_MAX: Final = 1024


@dataclass(frozen=True, slots=True)
class Signals:
    """What one interval showed.

    Attributes:
        seconds: its length.
        chunks: how many ended.
        goodput: bytes written per second.
        slowness: median write latency over the best of the last 10 s of writes of that size; 1 is as fast as ever.
        queue: share of the window that was received and waited for its write, over the time.
        errors: tries that failed or were throttled, per chunk.
        stalled: nothing came for longer than the path explains; goodput means little.
        path_queue: share of an answer's time that it spent in queues of the path: 1 - best time / mean time.
        jitter: mean deviation of the answer times over their mean.
        limited: the window, not the source of chunks, held requests back.
        pressed: the node's write queue is too long.
    """

    seconds: float
    chunks: int
    goodput: float
    slowness: float = 1.0
    queue: float = 0.0
    errors: float = 0.0
    stalled: bool = False
    path_queue: float = 0.0
    jitter: float = 0.0
    limited: bool = True
    pressed: bool = False


class _Best:
    """The smallest value of the last 5 to 10 seconds, in two halves."""

    __slots__ = ("_new", "_old", "_since")

    def __init__(self, now: float) -> None:
        self._old = self._new = math.inf
        self._since = now

    def put(self, value: float, now: float) -> float:
        """Take in a value and return the smallest."""
        if now - self._since > BASE_S / 2:
            self._old = self._new if now - self._since <= BASE_S else math.inf
            self._new, self._since = math.inf, now
        self._new = min(self._new, value)
        return min(self._new, self._old)


class Meter:
    """Measures one disk. Times in seconds, ``now`` never goes back."""

    def __init__(self, now: float) -> None:
        self._writes: dict[int, _Best] = {}
        self._answers = _Best(now)
        self._base_answer = math.inf
        self._mean_answer = self._deviation = 0.0
        self._queued = 0
        self._begin(now)

    def _begin(self, now: float) -> None:
        self.began = self._counted = now
        self._heard: float | None = None
        self._gap = self._waited = 0.0
        self._chunks = self._bytes = self._errors = self._refused = self._arrived = 0
        self._ratios: list[float] = []

    def refused(self) -> None:
        """Note that a chunk had to wait because the window was full."""
        self._refused += 1

    def received(self, size_bytes: int, answer_s: float, now: float) -> None:
        """Note a chunk that came ``answer_s`` after its request; it waits for its write now."""
        self._count(now)
        self._queued += size_bytes
        self._arrived += 1
        if self._heard is not None:
            self._gap = max(self._gap, now - self._heard)
        self._heard = now
        self._base_answer = self._answers.put(answer_s, now)
        # As TCP keeps its round-trip time: mean and mean deviation, smoothed over about the last 16 chunks.
        if not self._mean_answer:
            self._mean_answer = answer_s
        error = answer_s - self._mean_answer
        self._mean_answer += error / 16
        self._deviation += (abs(error) - self._deviation) / 16

    def written(self, size_bytes: int, took_s: float, now: float) -> None:
        """Note a chunk whose write took ``took_s``."""
        self.dropped(size_bytes, now)
        self._chunks += 1
        self._bytes += size_bytes
        self._sample(size_bytes, took_s, now)

    def dropped(self, size_bytes: int, now: float) -> None:
        """Note that a chunk that was received waits no more."""
        self._count(now)
        self._queued -= size_bytes

    def failed(self) -> None:
        """Note a try that failed, or was throttled, and will be made again."""
        self._errors += 1

    def due(self, now: float, oldest_s: float | None = None) -> bool:
        """Say whether an interval ends: ``oldest_s`` is how long the oldest received chunk has waited for its write."""
        length = now - self.began
        if length < INTERVAL_S:
            return False
        if oldest_s is not None and oldest_s >= INTERVAL_S:
            return True
        return self._chunks >= INTERVAL_CHUNKS or length >= INTERVAL_MAX_S

    def end(
        self, window_bytes: int, now: float, *, pressed: bool = False, oldest: tuple[int, float] | None = None
    ) -> Signals:
        """Return what the interval showed and begin the next one.

        Args:
            window_bytes: the disk's level.
            now: the end.
            pressed: the node's write queue is too long.
            oldest: size and age (s) of the oldest chunk that waits for its write: a disk that hangs writes nothing
                that could be measured.
        """
        self._count(now)
        if oldest is not None and not self._chunks:
            self._sample(*oldest, now)
        seconds = now - self.began
        gap = max(self._gap, now - (self._heard if self._heard is not None else self.began))
        waits_for = max(GAP_S, 4 * self._base_answer if self._arrived else GAP_S)
        signals = Signals(
            seconds=seconds,
            chunks=self._chunks,
            goodput=self._bytes / seconds,
            slowness=median(self._ratios) if self._ratios else 1.0,
            queue=min(1.0, self._waited / (seconds * window_bytes)),
            errors=self._errors / max(self._chunks, 1),
            stalled=gap > waits_for,
            path_queue=max(0.0, 1 - self._base_answer / self._mean_answer) if self._mean_answer else 0.0,
            jitter=self._deviation / self._mean_answer if self._mean_answer else 0.0,
            limited=self._refused * LIMITED >= max(self._chunks, 1),
            pressed=pressed,
        )
        self._begin(now)
        return signals

    def _count(self, now: float) -> None:
        if now > self._counted:
            self._waited += self._queued * (now - self._counted)
            self._counted = now

    def _sample(self, size_bytes: int, took_s: float, now: float) -> None:
        best = self._writes.get(size_bytes.bit_length())
        if best is None:
            best = self._writes[size_bytes.bit_length()] = _Best(now)
        base = best.put(took_s, now)
        if len(self._ratios) < _SAMPLES_MAX:
            self._ratios.append(max(took_s, FLOOR_S) / max(base, FLOOR_S))
