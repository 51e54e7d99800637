"""From a source's extents to descriptors (the unit of state) and chunks (the unit of transfer).

Everything here is a generator: a disk of 16 TiB in 512 KiB descriptors has 33 million of them, and only those of the
chunk that is being gathered are ever in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from farshore.blocks.rangeset import RangeSet, align_out
from farshore.units import CHUNK_SIZE, LEAF_SIZE, MIB

#: Descriptors in one chunk. 512 fragments of 4 KiB would be 2 MiB, so a chunk of 4 KiB fragments fills up by bytes;
#: the limit keeps a request of 512-byte fragments below 8 KiB.
MAX_DESCRIPTORS: Final = 512
#: Zero ranges cross no link, so their pieces are larger; small enough to keep progress and marks moving.
ZERO_STEP: Final = 128 * MIB

if CHUNK_SIZE % LEAF_SIZE or ZERO_STEP % LEAF_SIZE:  # a chunk that ends inside of a leaf makes it be read twice
    raise AssertionError("chunks and zero steps are whole leaves")


class Descriptor(NamedTuple):
    """A changed range of a disk in bytes. ``zero``: it reads as zero and need not be asked for."""

    offset: int
    length: int
    zero: bool

    @property
    def stop(self) -> int:
        """The first offset behind it."""
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class Chunk:
    """Descriptors that are requested together: ascending, disjoint ``(offset, length)`` of ``size_bytes`` in all."""

    ranges: tuple[tuple[int, int], ...]
    size_bytes: int
    zero: bool = False


def describe(
    extents: Iterable[tuple[int, int, bool]], size_bytes: int, granularity: int, leaf_size: int = LEAF_SIZE
) -> Iterator[Descriptor]:
    """Yield the aligned, merged descriptors of ``extents``, which are ascending ``(offset, length, zero)``.

    Data is aligned *out* to ``granularity``: writing a little more of the point changes nothing. Zero is aligned *in*
    to whole leaves (and granules), for the bytes beside it are not known to be zero; its edges become data, which the
    source reads. Both end at ``size_bytes``, whatever the granularity.

    Raises:
        ValueError: extents out of order, overlapping, empty or outside of the disk.
    """
    unit = max(leaf_size, granularity)
    seen = 0
    pending: Descriptor | None = None
    for offset, length, zero in extents:
        stop = offset + length
        if offset < seen or length <= 0 or stop > size_bytes:
            raise ValueError(f"extent {offset}+{length} is out of order or outside of the disk of {size_bytes} bytes")
        seen = stop
        for start, end, is_zero in _segments(offset, stop, zero, size_bytes, granularity, unit):
            if pending is None:
                pending = Descriptor(start, end - start, is_zero)
            elif pending.zero == is_zero and start <= pending.stop:
                # Touching, or overlapping because both were aligned out.
                pending = Descriptor(pending.offset, max(end, pending.stop) - pending.offset, is_zero)
            else:
                yield pending
                pending = Descriptor(start, end - start, is_zero)
    if pending is not None:
        yield pending


def _segments(
    start: int, stop: int, zero: bool, size: int, granularity: int, unit: int
) -> Iterator[tuple[int, int, bool]]:
    """Yield one extent as ``(start, stop, zero)``: its left edge, its whole units, its right edge."""
    if zero:
        low = -(-start // unit) * unit
        high = stop if stop == size else stop // unit * unit
        if low < high:
            if start < low:
                yield *align_out(start, low, granularity, size), False
            yield low, high, True
            if high < stop:
                yield *align_out(high, stop, granularity, size), False
            return
    yield *align_out(start, stop, granularity, size), False


def united(
    extents: Iterable[tuple[int, int, bool]], ranges: RangeSet, size_bytes: int
) -> Iterator[tuple[int, int, bool]]:
    """Yield ascending ``extents``, and between them what of ``ranges`` they do not cover, as data."""
    at = 0
    for offset, length, zero in extents:
        if at < offset:
            yield from ((start, stop - start, False) for start, stop in ranges.intersect(at, offset))
        yield offset, length, zero
        at = offset + length
    if at < size_bytes:
        yield from ((start, stop - start, False) for start, stop in ranges.intersect(at, size_bytes))


def without(descriptors: Iterable[Descriptor], done: RangeSet) -> Iterator[Descriptor]:
    """Yield the parts of ``descriptors`` that are not in ``done``."""
    for descriptor in descriptors:
        for start, stop in done.gaps(descriptor.offset, descriptor.stop):
            yield Descriptor(start, stop - start, descriptor.zero)


def gather(
    descriptors: Iterable[Descriptor],
    *,
    chunk_size: int = CHUNK_SIZE,
    max_descriptors: int = MAX_DESCRIPTORS,
    unit: int = LEAF_SIZE,
) -> Iterator[Chunk]:
    """Yield chunks of at most ``chunk_size`` bytes and ``max_descriptors`` ranges.

    A range that does not fit is cut at a multiple of ``unit`` where it has one, so that no leaf is needed by two chunks
    without cause. Zero descriptors become chunks of their own, split at :data:`ZERO_STEP`.
    """
    ranges: list[tuple[int, int]] = []
    filled = 0
    for offset, length, zero in descriptors:
        start, stop = offset, offset + length
        while zero and start < stop:
            cut = min(stop, (start // ZERO_STEP + 1) * ZERO_STEP)
            yield Chunk(((start, cut - start),), cut - start, zero=True)
            start = cut
        while start < stop:
            room = chunk_size - filled
            cut = stop if stop - start <= room else (start + room) // unit * unit
            if cut <= start and filled == 0:
                cut = start + room  # one unit is larger than a chunk
            if cut > start:
                ranges.append((start, cut - start))
                filled += cut - start
                start = cut
            if start < stop or filled == chunk_size or len(ranges) == max_descriptors:
                yield Chunk(tuple(ranges), filled)
                ranges, filled = [], 0
    if ranges:
        yield Chunk(tuple(ranges), filled)


def pieces(chunk: Chunk, size_bytes: int = CHUNK_SIZE) -> Iterator[Chunk]:
    """Yield a chunk of one range in parts that end at multiples of ``size_bytes``."""
    ((offset, length),) = chunk.ranges
    at, stop = offset, offset + length
    while at < stop:
        end = min((at // size_bytes + 1) * size_bytes, stop)
        yield Chunk(((at, end - at),), end - at, chunk.zero)
        at = end


def leaf_runs(ranges: Iterable[tuple[int, int]], leaf_size: int = LEAF_SIZE) -> Iterator[tuple[int, int]]:
    """Yield, as ``(first, stop)``, the runs of leaves that ascending ``(offset, length)`` ranges touch."""
    first = stop = -1
    for offset, length in ranges:
        low, high = offset // leaf_size, -(-(offset + length) // leaf_size)
        if first < 0:
            first, stop = low, high
        elif low <= stop:
            stop = max(stop, high)
        else:
            yield first, stop
            first, stop = low, high
    if first >= 0:
        yield first, stop
