"""The verify pass: a whole disk against the source, where no change tracking can say what differs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Final

from farshore.blocks.digest import DIGEST_SIZE, ZERO_LEAF
from farshore.transport.frames import MAX_DIGESTS
from farshore.transport.session import Session
from farshore.units import LEAF_SIZE

#: Questions on their way at once; each has the source read up to 64 MiB.
_AHEAD: Final = 4


def differing(
    session: Session, disk: int, size_bytes: int, base_leaves: Callable[[int, int], bytes]
) -> Iterator[tuple[int, int, bool]]:
    """Yield, as extents, the leaves of the source's point whose digests are not the base's.

    Only leaves that are allocated at the source are read there; the others are zero. ``base_leaves(first, stop)``
    returns the base's digests.
    """
    waiting: deque[tuple[int, int, int, Future[bytes] | None]] = deque()
    for first, stop, low, high in _pages(session.extents(disk, since_base=False), size_bytes):
        future = session.digests(disk, low, high - low) if low < high else None
        waiting.append((first, stop, low, future))
        if len(waiting) > _AHEAD:
            yield from _compare(*waiting.popleft(), size_bytes, base_leaves)
    while waiting:
        yield from _compare(*waiting.popleft(), size_bytes, base_leaves)


def _pages(extents: Iterable[tuple[int, int, bool]], size_bytes: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield ``(first, stop, low, high)``: a page of leaves, and the span in it that holds allocated ones."""
    leaves = -(-size_bytes // LEAF_SIZE)
    stream = (row for row in extents if not row[2])
    ahead = next(stream, None)
    for first in range(0, leaves, MAX_DIGESTS):
        stop = min(first + MAX_DIGESTS, leaves)
        low, high = stop, first
        while ahead is not None and ahead[0] < stop * LEAF_SIZE:
            low = min(low, max(ahead[0] // LEAF_SIZE, first))
            high = min(-(-(ahead[0] + ahead[1]) // LEAF_SIZE), stop)
            if ahead[0] + ahead[1] > stop * LEAF_SIZE:
                break  # it goes on in the next page
            ahead = next(stream, None)
        yield first, stop, low, high


def _compare(
    first: int,
    stop: int,
    low: int,
    future: Future[bytes] | None,
    size_bytes: int,
    base_leaves: Callable[[int, int], bytes],
) -> Iterator[tuple[int, int, bool]]:
    """Yield the runs of leaves of one page that differ; runs of zeros come as ZERO."""
    found = future.result() if future is not None else b""
    before = ZERO_LEAF * (low - first)
    source = before + found + ZERO_LEAF * (stop - first - (len(before) + len(found)) // DIGEST_SIZE)
    base = base_leaves(first, stop)
    if source == base:
        return
    run: tuple[int, int, bool] | None = None
    for index in range(stop - first):
        place = slice(index * DIGEST_SIZE, (index + 1) * DIGEST_SIZE)
        if source[place] == base[place]:
            continue
        start = (first + index) * LEAF_SIZE
        end = min(start + LEAF_SIZE, size_bytes)
        zero = source[place] == ZERO_LEAF
        if run is not None and run[0] + run[1] == start and run[2] is zero:
            run = (run[0], end - run[0], zero)
            continue
        if run is not None:
            yield run
        run = (start, end - start, zero)
    if run is not None:
        yield run
