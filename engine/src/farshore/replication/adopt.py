"""What a draft holds of an earlier source point, or by another node's word, held against the source's point.

Only digests cross the link: what is equal stays, the rest is copied. Nothing is written to the draft before all of it
is settled.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Final

from farshore.blocks.descriptors import leaf_runs
from farshore.blocks.digest import DIGEST_SIZE, leaf_digest
from farshore.blocks.rangeset import RangeSet, align_in
from farshore.journal.state import DraftState
from farshore.platforms.contract import Draft
from farshore.transport.frames import MAX_DIGESTS
from farshore.transport.session import Session
from farshore.units import LEAF_SIZE

log = logging.getLogger(__name__)

#: Leaves and questions that are asked for ahead of what is compared.
_LEAVES_AHEAD: Final = 4 * MAX_DIGESTS
_QUESTIONS_AHEAD: Final = 64


def prove(
    session: Session, disk: int, size_bytes: int, state: DraftState, draft: Draft | None, granularity: int
) -> None:
    """Settle what ``state`` holds: durable where the source's point has the same leaf, dirty elsewhere.

    ``draft`` is read where the leaf file has no digest; None where a draft cannot be read. Where the target writes
    granules that are larger than a leaf, all leaves of one have to be the same: else it is written again whole.
    """
    equal = RangeSet()
    read_back = False
    for first, stop, theirs in _asked(session, disk, _runs(state.held)):
        ours = state.leaves.get(first, stop)
        for index in range(first, stop):
            place = slice((index - first) * DIGEST_SIZE, (index - first + 1) * DIGEST_SIZE)
            found = ours[place]
            if draft is not None and not any(found):
                found = _read_back(draft, index, size_bytes)
                state.leaves.put(index, found)
                read_back = True
            if found == theirs[place]:
                for span in state.held.intersect(index * LEAF_SIZE, (index + 1) * LEAF_SIZE):
                    equal.add(*span)
    equal = RangeSet(
        (low, high)
        for low, high in (align_in(start, stop, granularity, size_bytes) for start, stop in equal)
        if low < high
    )
    if read_back and draft is not None:
        draft.flush()  # what is read may be in a cache only, where its writer was called durable too early
    log.info(
        "%d of %d bytes that an earlier copy left in %s are still right",
        equal.total(),
        state.held.total(),
        state.draft_key,
    )
    state.prove(equal)


def _runs(held: RangeSet) -> Iterator[tuple[int, int]]:
    """Yield the runs of leaves that ``held`` touches, each no longer than a question may be."""
    for first, stop in leaf_runs((start, stop - start) for start, stop in held):
        for low in range(first, stop, MAX_DIGESTS):
            yield low, min(low + MAX_DIGESTS, stop)


def _asked(session: Session, disk: int, runs: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int, bytes]]:
    """Yield ``(first, stop, digests)`` of the source's leaves, asked for ahead."""
    waiting: deque[tuple[int, int, Future[bytes]]] = deque()
    ahead = 0
    for first, stop in runs:
        waiting.append((first, stop, session.digests(disk, first, stop - first)))
        ahead += stop - first
        while ahead > _LEAVES_AHEAD or len(waiting) > _QUESTIONS_AHEAD:
            low, high, future = waiting.popleft()
            ahead -= high - low
            yield low, high, future.result()
    for low, high, future in waiting:
        yield low, high, future.result()


def _read_back(draft: Draft, index: int, size_bytes: int) -> bytes:
    """Return the digest of a leaf as the draft has it."""
    start = index * LEAF_SIZE
    buffer = memoryview(bytearray(min(LEAF_SIZE, size_bytes - start)))
    draft.read_into(start, buffer)
    return leaf_digest(buffer)
