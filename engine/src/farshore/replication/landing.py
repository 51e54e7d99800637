"""Where the chunks of one disk land: written by threads of their own, made durable by marks beside the stream.

A chunk that came is queued by the link's thread (:meth:`Landing.take`), written by a thread of the pool, noted, and its
credit returns. When enough is written a mark is made in the background: flush, then record. Chunks go on meanwhile, as
far as the scheduler's rule 2 lets them.
"""

from __future__ import annotations

import errno
import itertools
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final

from farshore.blocks.descriptors import Chunk, leaf_runs
from farshore.blocks.digest import DIGEST_SIZE, ZERO_LEAF
from farshore.blocks.entropy import Sampler
from farshore.blocks.rangeset import RangeSet
from farshore.errors import Corruption, FarshoreError, NoSpace, Permanent, Retry
from farshore.journal.state import Counters, DraftState
from farshore.platforms.contract import Caps, Draft
from farshore.replication.flow import DiskWindow
from farshore.replication.writers import WriterPool
from farshore.transport import frames
from farshore.transport.buffers import Lent
from farshore.units import CHUNK_SIZE, LEAF_SIZE

log = logging.getLogger(__name__)

#: A write that may pass later is tried this often, with pauses that grow and are jittered: about 20 s in all.
WRITE_TRIES: Final = 10
PAUSE_FIRST_S: Final = 0.1
PAUSE_MAX_S: Final = 5.0


class _Tools(threading.local):
    """What a thread needs to read back."""

    def __init__(self) -> None:
        self.scratch = bytearray(CHUNK_SIZE)


_tools = _Tools()


class Landing:
    """The writing half of a disk's cycle.

    Attributes:
        done_bytes: written so far, also by earlier attempts; may be read at any time, for progress.
        retries: writes that were tried again, by the code of the error.
        read_back_bytes: data that was read back by this attempt, and was what had come.
        sampler: what the data looks like that this attempt has written.
    """

    def __init__(
        self,
        disk_key: str,
        state: DraftState,
        window: DiskWindow,
        caps: Caps,
        pool: WriterPool,
        *,
        read_back: bool = False,
    ) -> None:
        """``read_back``: read again what was written, where drafts can be read, and compare it with what came."""
        self.done_bytes = state.durable.total()
        self.retries: Counter[str] = Counter()
        self.read_back_bytes = 0
        self.wire_bytes = 0  # of chunks as they crossed the link, in this process
        self.sampler = Sampler()
        self._sampling = threading.Lock()
        self._key = disk_key
        self._state = state
        self._window = window
        self._caps = caps
        self._reads_back = read_back and caps.reads_unsealed
        self._draft: Draft | None = None
        self._based = True
        self._writes = pool.lane(disk_key, window.writers)
        self._marks = pool.lane(f"{disk_key}-mark")
        self._lock = threading.Lock()  # what is written and not durable, and the counters
        self._written = RangeSet()
        self._mark_queued = False
        self._marking = threading.Lock()
        self._mark_error: FarshoreError | None = None
        self._take_over(state.counters)

    def _take_over(self, counters: Counters) -> None:
        self._moved, self._zero = counters.moved_bytes, counters.zero_bytes
        self._resent, self._changed = counters.resent_bytes, counters.changed_bytes

    def begin_again(self) -> None:
        """Count anew what the journal says is done: the draft is another one, or some of it was not right."""
        self.done_bytes = self._state.durable.total()
        with self._lock:
            self._take_over(self._state.counters)

    def into(self, draft: Draft, *, based: bool) -> None:
        """Write into ``draft`` from now on. ``based``: it grows on a point, so what is not written may not be zero."""
        self._draft = draft
        self._based = based

    @property
    def counters(self) -> Counters:
        """Bytes of the cycle so far, all attempts together."""
        with self._lock:
            return self._count()

    def _count(self) -> Counters:
        return Counters(self._moved, self._zero, self._changed, self._resent)

    def count_changed(self, size_bytes: int) -> None:
        """Note how much the source said has changed."""
        with self._lock:
            self._changed = size_bytes

    def count_resent(self, size_bytes: int) -> None:
        """Note that bytes are asked for again that came before, and were not durable when the process died."""
        with self._lock:
            self._resent += size_bytes

    # Chunks ---------------------------------------------------------------------------------------------------------

    def take(self, chunk: Chunk, credit: int, data: frames.Data, lent: Lent) -> None:
        """Queue a chunk that came, whole and checked; ``lent`` is given back when it is written."""
        self._window.received(credit, chunk.size_bytes - data.wire_bytes)
        self._writes.put(partial(self._land, chunk, credit, data, lent), lent.release)

    def refuse(self, credit: int, error: FarshoreError) -> None:
        """Return the credit of a chunk that will not be written; ``error`` ends the cycle."""
        # In this order: with its last credit back and no error yet, the disk would pass for copied.
        self._window.abort(error)
        self._window.failed(credit)

    def touch(self, chunk: Chunk) -> None:
        """Name in the journal what is about to be written."""
        try:
            self._state.touch((offset, offset + length) for offset, length in chunk.ranges)
        except OSError as error:
            raise journal_error(error) from error

    @property
    def fills(self) -> bool:
        """Whether zeros are written like data here, so that they take credit: the target makes no holes."""
        return not self._caps.zero_is_hole and (self._based or self._state.adopted)

    def zero(self, chunk: Chunk) -> None:
        """Write a zero range, which crosses no link and takes no credit; called in the disk's own thread."""
        self.touch(chunk)
        self._zero_range(chunk)
        with self._lock:
            self._note(chunk, moved=0)

    def fill(self, chunk: Chunk, credit: int) -> None:
        """Queue a zero range of no more than a chunk's size, which is written like one that came."""
        self.touch(chunk)
        self._window.received(credit, chunk.size_bytes)
        self._writes.put(partial(self._fill, chunk, credit), lambda: None)

    def _fill(self, chunk: Chunk, credit: int) -> None:
        try:
            took_s = self._zero_range(chunk)
        except FarshoreError as error:
            self.refuse(credit, error)
        except Exception as error:  # as below
            log.exception("zeros of %s could not be written", self._key)
            self.refuse(credit, FarshoreError(f"zeros could not be written: {error!r}", code="internal"))
        else:
            self._landed(chunk, credit, took_s, moved=0, wire=0)

    def _zero_range(self, chunk: Chunk) -> float:
        """Write zeros and their digests; return how long the writing took, in seconds."""
        (offset, length), *_ = chunk.ranges
        took_s = self._patiently(partial(self._write_zeroes, offset, length))
        first, stop = offset // LEAF_SIZE, -(-(offset + length) // LEAF_SIZE)
        try:
            self._state.leaves.put(first, ZERO_LEAF * (stop - first))
        except OSError as error:
            raise journal_error(error) from error
        return took_s

    def _land(self, chunk: Chunk, credit: int, data: frames.Data, lent: Lent) -> None:
        """Write a chunk. The one place where a chunk's credit returns once it has come, written or not."""
        try:
            try:
                moved = lent.view.nbytes
                took_s = self._patiently(partial(self._write, data, lent.view))
                if self._reads_back:
                    self._read_back(data, lent.view)
                self._sample(chunk, lent.view)
            finally:
                lent.release()
            self._keep_digests(chunk, data)
        except FarshoreError as error:
            self.refuse(credit, error)
        except Exception as error:  # a bug, or an OSError that nobody named: it ends the cycle and is shown
            log.exception("a chunk of %s could not be written", self._key)
            self.refuse(credit, FarshoreError(f"a chunk could not be written: {error!r}", code="internal"))
        else:
            self._landed(chunk, credit, took_s, moved, data.wire_bytes)

    def _landed(self, chunk: Chunk, credit: int, took_s: float, moved: int, wire: int) -> None:
        """Note what is written, give its credit back, and begin a mark where one is due."""
        with self._lock:
            self._note(chunk, moved)
            self.wire_bytes += wire
            self.read_back_bytes += moved if self._reads_back else 0
            self._window.written(credit, took_s)
            begin = not self._mark_queued and self._window.mark_due()
            self._mark_queued |= begin
        self._writes.parallel = self._window.writers
        if begin:
            self._marks.put(self._mark_in_background, lambda: None)

    def _sample(self, chunk: Chunk, payload: memoryview) -> None:
        """Look at a chunk's data; one that comes while another is looked at goes unseen, so that nobody waits."""
        if self._sampling.acquire(blocking=False):
            try:
                if self.sampler.wants():
                    self.sampler.look(payload, chunk.ranges[0][0])
            finally:
                self._sampling.release()

    def _patiently(self, write: Callable[[], None]) -> float:
        """Call ``write`` until it succeeds and return how long that took, in seconds.

        Raises:
            Retry: it did not in so many tries, or the cycle was ended meanwhile.
        """
        for attempt in itertools.count(1):
            began = time.monotonic()
            try:
                write()
                break
            except Retry as error:
                self._window.retried()
                with self._lock:
                    self.retries[error.code] += 1
                if attempt == WRITE_TRIES:
                    raise
                log.info("a write of %s is tried again after: %s", self._key, error)
                # Jitter: the writers of a target that throttles do not come back together.
                pause = random.uniform(0.5, 1.0) * min(PAUSE_FIRST_S * 2 ** (attempt - 1), PAUSE_MAX_S)  # noqa: S311
                if not self._writes.pause(pause):
                    raise
        return time.monotonic() - began

    def _write(self, data: frames.Data, payload: memoryview) -> None:
        """Write a chunk's pieces, neighbours joined."""
        if self._draft is None:
            raise AssertionError("a chunk came before there was a draft")
        at = 0
        for offset, length, zero in _joined(data.pieces, self._caps.max_io_bytes):
            if zero:
                self._write_zeroes(offset, length)
            else:
                self._draft.write(offset, payload[at : at + length])
                at += length

    def _read_back(self, data: frames.Data, payload: memoryview) -> None:
        """Read a chunk's data again and compare it with what came: at once, while both are near the processor.

        Raises:
            Corruption: it is not what was written.
        """
        if self._draft is None:
            raise AssertionError("a chunk is read back from a draft")
        scratch = _tools.scratch
        at = 0
        for offset, length, zero in _joined(data.pieces, CHUNK_SIZE):
            if zero:
                continue
            self._draft.read_into(offset, memoryview(scratch)[:length])
            if not scratch.startswith(payload[at : at + length]):  # a memcmp
                raise Corruption(
                    f"what was written to disk {self._key} at {offset} is not what is read there",
                    code="read-back",
                    hint="Check the target's storage; nothing of this cycle is published.",
                    disk=self._key,
                    offset=offset,
                )
            at += length

    def _write_zeroes(self, offset: int, length: int) -> None:
        if self._draft is None:
            raise AssertionError("a chunk came before there was a draft")
        # A draft without a base is all zero; only the copy of an earlier point writes anything else to these places.
        if self._based or self._state.adopted:
            self._draft.write_zeroes(offset, length)

    def _keep_digests(self, chunk: Chunk, data: frames.Data) -> None:
        """Put the digests of all leaves that the chunk touches into the leaf file."""
        runs = list(leaf_runs(chunk.ranges))
        if sum(stop - first for first, stop in runs) * DIGEST_SIZE != len(data.leaf_digests):
            raise Corruption("a chunk came with another number of leaf digests", code="leaf-digests", disk=data.disk)
        try:
            self._state.leaves.put_runs(runs, data.leaf_digests)
        except OSError as error:
            raise journal_error(error) from error

    def _note(self, chunk: Chunk, moved: int) -> None:
        """Add a chunk to what is written but not durable; the lock is held."""
        self._written.add_all(chunk.ranges)
        self.done_bytes += chunk.size_bytes
        self._moved += moved
        self._zero += chunk.size_bytes - moved

    # Marks ----------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Wait until all is written, and make it durable and recorded.

        Raises:
            FarshoreError: what ended the cycle.
        """
        self._window.drain()
        self._mark()

    def close(self) -> None:
        """Drop what waits, wait for what runs, and record all that was written, where that can be said."""
        for lane in (self._writes, self._marks):
            lane.close()
        if self._written:
            try:
                self._mark()
            except FarshoreError as error:
                log.info("what was written last to %s is not recorded: %s", self._key, error)

    def _mark_in_background(self) -> None:
        try:
            while True:
                with self._lock:
                    self._mark_queued = self._window.mark_due()
                    if not self._mark_queued:
                        return
                self._mark()
        except FarshoreError as error:
            self._window.abort(error)
        except Exception as error:  # as above
            log.exception("a mark of %s could not be made", self._key)
            self._window.abort(FarshoreError(f"a mark could not be made: {error!r}", code="internal"))

    def _mark(self) -> None:
        """Make what is written durable and record it. Only writes that had returned before the flush count.

        Raises:
            FarshoreError: it failed, or an earlier one did: what that took is in no list any more, and a flush after
                one that failed may succeed without having written anything.
        """
        with self._marking:
            if self._mark_error is not None:
                raise self._mark_error
            with self._lock:
                written, self._written = self._written, RangeSet()
                counters = self._count()
                covered = self._window.begin_mark()
            self._record(written, counters)
            self._window.durable(covered)

    def _record(self, written: RangeSet, counters: Counters) -> None:
        if not written or self._draft is None:
            return
        self._mark_error = FarshoreError("a mark did not come to its end", code="internal")
        try:
            self._draft.flush()
            self._state.mark(written, counters)
        except OSError as error:
            self._mark_error = journal_error(error)
            raise self._mark_error from error
        except FarshoreError as error:
            self._mark_error = error
            raise
        self._mark_error = None


def _joined(pieces: Iterable[tuple[int, int, bool]], limit: int) -> Iterator[tuple[int, int, bool]]:
    """Yield pieces with neighbours of one kind joined, and those with data cut, up to ``limit`` bytes."""
    start, length, kind = -1, 0, False
    for offset, size, zero in _cut(pieces, limit):
        if zero is kind and offset == start + length and (zero or length + size <= limit):
            length += size
            continue
        if length:
            yield start, length, kind
        start, length, kind = offset, size, zero
    if length:
        yield start, length, kind


def _cut(pieces: Iterable[tuple[int, int, bool]], limit: int) -> Iterator[tuple[int, int, bool]]:
    for offset, size, zero in pieces:
        for at in range(offset, offset + size, size if zero else limit):
            yield at, min(size if zero else limit, offset + size - at), zero


def journal_error(error: OSError) -> FarshoreError:
    """Return the error that a failed write of the node's own files means."""
    message = f"the journal could not be written: {error.strerror or error}"
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return NoSpace(message, code="journal-full", hint="Free space in the node's state directory.")
    return Permanent(message, code="journal-io")
