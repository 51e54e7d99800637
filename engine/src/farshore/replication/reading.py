"""What the source does with a chunk: read it, digest its leaves, find its zeros. One instance per thread.

A chunk passes through here for every MiB that is sent, so what is done in Python is done per chunk or per fragment,
never per page: whole chunks go through calls that look at all of a buffer at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from farshore.blocks.descriptors import leaf_runs
from farshore.blocks.digest import is_zero, leaf_digests
from farshore.units import CHUNK_SIZE, LEAF_SIZE

#: ``(offset, length, zero)``: a part of the answer to READ.
Piece = tuple[int, int, bool]
#: ``(low, high, zero)``: a part of a buffer.
Run = tuple[int, int, bool]


class ChunkReader:
    """Reads chunks into buffers of the caller. A leaf of which only a part is sent passes through one of its own."""

    def __init__(self) -> None:
        self._cover = memoryview(bytearray(CHUNK_SIZE))

    def read(
        self,
        read_into: Callable[[int, memoryview], None],
        size_bytes: int,
        ranges: Sequence[tuple[int, int]],
        zero_block: int,
        payload: memoryview,
    ) -> tuple[list[Piece], bytes, int]:
        """Return the pieces of ``ranges``, the digests of all leaves that they touch, and how much data there is.

        The data of the pieces lies at the beginning of ``payload``, which has to have room for all of ``ranges``.
        Pieces of zeros have none. A leaf that is asked for only in part is read whole, for its digest, and sent only in
        part.
        """
        pieces: list[Piece] = []
        digests: list[bytes] = []
        filled = index = 0
        offset, length = ranges[0]
        joined = False  # whether the last piece is the beginning of what is left of this range
        for first, stop in leaf_runs(ranges):
            for start, end in _steps(first * LEAF_SIZE, min(stop * LEAF_SIZE, size_bytes)):
                whole = offset <= start and end <= offset + length
                # All of it is wanted: read it to where it will be sent from.
                view = payload[filled : filled + end - start] if whole else self._cover[: end - start]
                read_into(start, view)
                digests += leaf_digests(view)
                while True:
                    low, high = max(offset, start), min(offset + length, end)
                    base = filled
                    for at, until, zero in zero_runs(view[low - start : high - start], low, zero_block):
                        size = until - at
                        if joined and pieces[-1][2] is zero:
                            pieces[-1] = (pieces[-1][0], pieces[-1][1] + size, zero)
                        else:
                            pieces.append((low + at, size, zero))
                            joined = True
                        if not zero:
                            if not whole or base + at != filled:  # else it lies there, nothing was left out before it
                                payload[filled : filled + size] = view[low - start + at : low - start + until]
                            filled += size
                    if offset + length > end:
                        break  # the rest of this range comes with the next step
                    index += 1
                    joined = False
                    if index == len(ranges):
                        break
                    offset, length = ranges[index]
                    if offset >= end:
                        break
        return pieces, b"".join(digests), filled


def _steps(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield ``[start, stop)`` in steps that fit a buffer."""
    for at in range(start, stop, CHUNK_SIZE):
        yield at, min(at + CHUNK_SIZE, stop)


def zero_runs(view: memoryview, start: int, block: int) -> Iterable[Run]:
    """Return ``(low, high, zero)`` that tile ``view``, which is not empty and whose first byte is at ``start``.

    Zeros are found by blocks on the disk's grid of ``block`` bytes; only the first and the last of the view may be
    parts of one. So a target that asks for whole granules never gets a part of one as a hole.
    """
    size, shift = len(view), start % block
    if size <= block - shift:  # a fragment, of which there may be hundreds
        return ((0, size, view[0] == 0 and is_zero(view)),)
    return _zero_runs(view, size, shift, block)


def _zero_runs(view: memoryview, size: int, shift: int, block: int) -> Iterator[Run]:
    # The first bytes of all blocks at once: most blocks differ from zero there.
    heads = bytes(view[:1]) + bytes(view[block - shift :: block])
    low, index = 0, heads.find(0)
    if index == 0 and is_zero(view):
        yield 0, size, True
        return
    while index >= 0:
        at = begin = max(index * block - shift, 0)
        while at < size and heads[index] == 0:
            stop = min((index + 1) * block - shift, size)
            if not is_zero(view[at:stop]):
                break
            index, at = index + 1, stop
        if at > begin:
            if low < begin:
                yield low, begin, False
            yield begin, at, True
            low = at
        index = heads.find(0, index + 1)  # the block at ``index`` is data
    if low < size:
        yield low, size, False
