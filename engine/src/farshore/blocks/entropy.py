"""How much what is written looks like noise: samples of chunks as they pass. Pure.

The entropy of the bytes of 4 KiB tells text, programs, databases and images of memory (1 to 7 bits) from what was
encrypted or compressed (above 7.9; random bytes give 7.955 ± 0.004 at that size, for 4,096 draws do not fill 256 bins
evenly). Chi-squared over many such samples together tells the two apart: a cipher's bytes are spread evenly, about 1
per degree of freedom; those of deflate, JPEG and most other compressed formats are not, which shows from some 100 KiB.

A sample costs about 0.15 ms. The first chunks of a cycle are all looked at, for a small cycle has no others, then one
of sixteen: a hundredth of one core at 1 GiB/s.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Final

SAMPLE_BYTES: Final = 4096
#: Less than this says nothing.
LEAST_BYTES: Final = 2048
#: Chunks of which each is looked at, before it is one of :data:`EVERY`.
ALL_FIRST: Final = 32
EVERY: Final = 16
#: Above this many bits a sample of 4 KiB is taken for noise.
NOISY_BITS: Final = 7.9
#: Noisy samples below which nothing is said of their uniformity: 64 KiB.
UNIFORMITY_LEAST: Final = 16


def entropy_bits(data: bytes) -> float:
    """Return the Shannon entropy of the bytes of ``data``, 0 to 8."""
    return _entropy(Counter(data), len(data))


def _entropy(counts: Counter[int], size: int) -> float:
    if not size:
        return 0.0
    # Sums of n·log2(n) round: what is all alike must not come out below 0.
    return max(0.0, math.log2(size) - sum(n * math.log2(n) for n in counts.values()) / size)


def noisy_above(size: int) -> float:
    """Return the entropy above which a sample of ``size`` bytes is taken for noise: small ones cannot reach 8 bits."""
    return NOISY_BITS + 255 / (2 * math.log(2)) * (1 / SAMPLE_BYTES - 1 / size)


class Sampler:
    """Looks at the chunks of one disk. Not for several threads at once.

    Attributes:
        samples: how many were looked at.
        noisy: how many of them look like noise.
    """

    def __init__(self) -> None:
        self.samples = 0
        self.noisy = 0
        self._seen = 0
        self._bits = 0.0
        self._spread: Counter[int] = Counter()

    def wants(self) -> bool:
        """Say whether to look at the next chunk; asked once for each."""
        self._seen += 1
        return self._seen <= ALL_FIRST or self._seen % EVERY == 0

    def look(self, payload: memoryview, place: int) -> None:
        """Take a sample of a chunk's data; ``place`` is its offset on the disk, which says where in it to look."""
        size = len(payload)
        if size < LEAST_BYTES:
            return
        blocks = max(1, size // SAMPLE_BYTES)
        # Spread over the chunk, and the same for the same place: Knuth's multiplicative hash.
        at = (place // SAMPLE_BYTES * 2654435761 >> 12) % blocks * SAMPLE_BYTES
        sample = bytes(payload[at : at + SAMPLE_BYTES])
        counts = Counter(sample)
        bits = _entropy(counts, len(sample))
        self.samples += 1
        self._bits += bits
        if bits >= noisy_above(len(sample)):
            self.noisy += 1
            self._spread.update(counts)

    @property
    def entropy_bits(self) -> float:
        """Mean entropy of a byte over the samples."""
        return self._bits / self.samples if self.samples else 0.0

    @property
    def uniformity(self) -> float:
        """Chi-squared per degree of freedom of the noisy samples' bytes together; 0 where there are too few."""
        if self.noisy < UNIFORMITY_LEAST:
            return 0.0
        total = self._spread.total()
        expected = total / 256
        return sum((self._spread[byte] - expected) ** 2 for byte in range(256)) / expected / 255
