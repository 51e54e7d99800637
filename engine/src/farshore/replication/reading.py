"""What the source does with a chunk: read it, digest its leaves, find its zeros. One instance per connection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from farshore.blocks.descriptors import leaf_runs
from farshore.blocks.digest import ZERO_LEAF, leaf_digest
from farshore.platforms.contract import Reader
from farshore.units import CHUNK_SIZE, LEAF_SIZE

_ZEROS: Final = bytes(CHUNK_SIZE)


def is_zero(view: memoryview) -> bool:
    """Say whether up to 1 MiB is all zeros.

    ``startswith`` is a memcmp that ends at the first difference and copies nothing; comparing a memoryview with bytes
    would go element by element.
    """
    return _ZEROS.startswith(view)


class ChunkReader:
    """Reads chunks into buffers that are taken once and reused."""

    def __init__(self) -> None:
        self._payload = memoryview(bytearray(CHUNK_SIZE))
        self._cover = memoryview(bytearray(CHUNK_SIZE))
        self._filled = 0
        self._pieces: list[tuple[int, int, bool]] = []
        self._range = -1

    def read(
        self, reader: Reader, size_bytes: int, ranges: Sequence[tuple[int, int]], zero_block: int
    ) -> tuple[list[tuple[int, int, bool]], bytes, memoryview]:
        """Return the pieces of ``ranges``, the digests of all leaves that they touch, and the data.

        A leaf that is asked for only in part is read whole, for its digest, and sent only in part. Pieces of zeros have
        no data. The view is valid until the next call.
        """
        self._filled = 0
        self._pieces = []
        self._range = -1
        digests: list[bytes] = []
        index = 0
        for first, stop in leaf_runs(ranges):
            for start, end in _steps(first * LEAF_SIZE, min(stop * LEAF_SIZE, size_bytes)):
                offset, length = ranges[index]
                whole = offset <= start and end <= offset + length
                # All of it is wanted: read it to where it will be sent from.
                origin = self._filled
                view = self._payload[origin : origin + end - start] if whole else self._cover[: end - start]
                reader.read_into(start, view)
                digests.extend(leaf_digests(view))
                while True:
                    low, high = max(offset, start), min(offset + length, end)
                    self._take(index, low, view[low - start : high - start], zero_block, origin if whole else None)
                    if offset + length > end:
                        break  # the rest of this range comes with the next step
                    index += 1
                    if index == len(ranges) or ranges[index][0] >= end:
                        break
                    offset, length = ranges[index]
        return self._pieces, b"".join(digests), self._payload[: self._filled]

    def _take(self, index: int, start: int, view: memoryview, zero_block: int, origin: int | None) -> None:
        """Append ``view``, the bytes at ``start`` in range ``index``, as pieces.

        ``origin`` is where in the payload they lie already; None where they have to be copied there.
        """
        for low, high, zero in zero_runs(view, start, zero_block):
            offset, length = start + low, high - low
            if self._range == index and self._pieces[-1][2] is zero:
                self._pieces[-1] = (self._pieces[-1][0], self._pieces[-1][1] + length, zero)
            else:
                self._pieces.append((offset, length, zero))
                self._range = index
            if not zero:
                if origin is None or origin + low != self._filled:  # else nothing was left out before it
                    self._payload[self._filled : self._filled + length] = view[low:high]
                self._filled += length


def _steps(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield ``[start, stop)`` in steps that fit a buffer."""
    for at in range(start, stop, CHUNK_SIZE):
        yield at, min(at + CHUNK_SIZE, stop)


def leaf_digests(view: memoryview) -> Iterator[bytes]:
    """Yield the digest of each leaf of ``view``, which begins at a leaf."""
    for at in range(0, len(view), LEAF_SIZE):
        leaf = view[at : at + LEAF_SIZE]
        yield ZERO_LEAF if is_zero(leaf) else leaf_digest(leaf)


def zero_runs(view: memoryview, start: int, block: int) -> Iterator[tuple[int, int, bool]]:
    """Yield ``(low, high, zero)`` that tile ``view``, whose first byte is at ``start`` of the disk.

    Only whole blocks on the disk's grid of ``block`` bytes, and the last one of the view, are told as zero; so a target
    that writes whole granules never gets a part of one as a hole.
    """
    size = len(view)
    low, state = 0, None
    at = 0
    while at < size:
        stop = min(at + block - (start + at) % block, size)
        # Most blocks differ from zero in their first byte.
        zero = view[at] == 0 and is_zero(view[at:stop])
        if state is None:
            state = zero
        elif zero is not state:
            yield low, at, state
            low, state = at, zero
        at = stop
    if state is not None:
        yield low, size, state
