"""Whether a chunk is compressed before it is sent: where the link is what holds a disk up, and its data shrinks.

Three questions, cheapest first:

1. Does the data shrink? A chunk that stays above :data:`RATIO_MAX` goes as it is. Finding that out is cheap for noise
   (0.12 ms for a MiB, against 3.4 ms for what is halved) and dear for what nearly shrinks; where it takes more than
   :data:`MISS_SHARE` of what the link takes, the next chunks go as they are too: as many as doubles with every further
   miss, up to :data:`SKIP_MAX`, and one hit ends that.
2. Does it pay? Packing one byte takes ``cost_s``; it spares ``1 - ratio`` bytes that would each have waited ``wait_s``
   for room in the socket. Where nothing waits (the link is quicker than we are, or the target asks too slowly), it
   does not.
3. Can this machine keep up? Above the rate at which packing alone would take half of its cores, the link outruns it.

Pure: times come as arguments. One instance per disk of a session. Threads share it without a lock: a lost update costs
one sample of many.
"""

from __future__ import annotations

from typing import Final

#: What does not get below this is not worth the work of the other side.
RATIO_MAX: Final = 0.9
#: What is hoped for while nothing of the disk has shrunk yet.
RATIO_HOPED: Final = 0.5
#: Fewer bytes than this gain less than their frame costs.
SIZE_MIN: Final = 4096
#: A miss that takes less of the time in which the link takes a chunk is not worth avoiding.
MISS_SHARE: Final = 0.05
#: Chunks that go unpacked, at most, after a miss.
SKIP_MAX: Final = 16
#: While packing does not pay, one chunk of so many is packed all the same, to know what it would bring.
TRIAL_EVERY: Final = 256
#: Packing has to bring clearly more than it takes, or noise would switch it on and off.
MARGIN: Final = 0.8
#: Weight of a new sample.
SMOOTHING: Final = 1 / 8


class WireRate:
    """What all connections of the node send, in bytes per second; ``now`` in seconds of a monotonic clock."""

    WINDOW_S: Final = 0.5

    def __init__(self) -> None:
        self._began = 0.0
        self._bytes = 0
        self._before = 0.0

    def add(self, size_bytes: int, now: float) -> None:
        """Count bytes that were sent."""
        elapsed = now - self._began
        if elapsed > self.WINDOW_S:
            # After a pause the first window is not full of it.
            self._before = self._bytes / elapsed if elapsed < 2 * self.WINDOW_S else 0.0
            self._began, self._bytes = now, 0
        self._bytes += size_bytes

    def per_second(self, now: float) -> float:
        """Return the rate of the last second or less."""
        elapsed = now - self._began
        if elapsed > 2 * self.WINDOW_S:
            return 0.0
        return max(self._before, self._bytes / max(elapsed, self.WINDOW_S / 5))


class CompressionLaw:
    """Decides for the chunks of one disk.

    Args:
        rate: what the node sends.
        cores: how many the machine has.
    """

    def __init__(self, rate: WireRate, cores: int) -> None:
        self._rate = rate
        self._share = cores / 2
        self._ratio: float | None = None
        self._cost_s: float | None = None
        self._wait_s: float | None = None
        self._skip = 0
        self._misses = 0
        self._idle = 0

    def wants(self, size_bytes: int, now: float) -> bool:
        """Say whether the next chunk, of ``size_bytes``, is to be packed; asked once for each."""
        if size_bytes < SIZE_MIN:
            return False
        if self._skip:
            self._skip -= 1
            return False
        if self.pays(now):
            return True
        self._idle += 1
        if self._cost_s is None or self._idle >= TRIAL_EVERY:
            self._idle = 0
            return True
        return False

    def packed(self, raw_bytes: int, packed_bytes: int, seconds: float) -> bool:
        """Learn from a chunk that was packed in ``seconds`` of processor time; say whether it is to be sent so."""
        ratio, cost_s = packed_bytes / raw_bytes, seconds / raw_bytes
        if ratio > RATIO_MAX:
            if self._wait_s is None or cost_s > MISS_SHARE * self._wait_s:
                self._misses = min(max(2 * self._misses, 1), SKIP_MAX)
                self._skip = self._misses
            if self._cost_s is None:
                self._cost_s = cost_s
            return False
        self._misses = 0
        # What shrinks is what question 2 is about: a miss is cheaper, and no sign for the chunks that will shrink.
        if self._ratio is None or self._cost_s is None:
            self._ratio, self._cost_s = ratio, cost_s
        else:
            self._ratio += (ratio - self._ratio) * SMOOTHING
            self._cost_s += (cost_s - self._cost_s) * SMOOTHING
        return True

    def sent(self, wire_bytes: int, blocked_s: float) -> None:
        """Learn that ``wire_bytes`` of the disk waited for ``blocked_s`` until the socket had taken them."""
        wait_s = blocked_s / wire_bytes
        self._wait_s = wait_s if self._wait_s is None else self._wait_s + (wait_s - self._wait_s) * SMOOTHING

    def pays(self, now: float) -> bool:
        """Say whether packing brings more than it takes, by what is known so far."""
        if self._cost_s is None or self._wait_s is None:
            return False
        ratio = RATIO_HOPED if self._ratio is None else self._ratio
        if self._cost_s > MARGIN * (1 - ratio) * self._wait_s:
            return False
        return self._rate.per_second(now) * self._cost_s < self._share
