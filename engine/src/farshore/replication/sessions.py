"""Sessions at the source: what one grant opened, and what it may ask."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from farshore.errors import FarshoreError, Forbidden, RestartFromCheckpoint
from farshore.model.checkpoint import SourceStats
from farshore.model.grant import Grant
from farshore.platforms.contract import Extent, Kind, Reader, Snapshot, Source
from farshore.replication.compression import CompressionLaw, WireRate
from farshore.replication.usage import peak_rss_bytes
from farshore.transport import frames
from farshore.transport.tls import Peer


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """An open session. ``sent_bytes`` is payload that was sent, as it was before compression."""

    session_id: str
    group_id: str
    point_ids: tuple[str, ...]
    target_node: str
    epoch: int
    term: int
    sent_bytes: int


#: A page of extents is gathered for no longer than this, in seconds.
PAGE_S = 1.0


class Listing:
    """The extents of one disk, given out page by page; a page may be asked for again."""

    def __init__(self, begin: Callable[[], Iterator[Extent]]) -> None:
        self._begin = begin
        self._lock = threading.Lock()
        self._iterator: Iterator[Extent] | None = None
        self._ahead: Extent | None = None
        self._at = 0

    def page(self, offset: int, limit: int) -> tuple[list[tuple[int, int, bool]], bool]:
        """Return up to ``limit`` extents from ``offset`` on, and whether more follow."""
        with self._lock:
            # A listing that fails must never pass for one that has ended: then the next page begins anew.
            iterator, ahead = (self._iterator, self._ahead) if self._at == offset else (None, None)
            self._iterator = None
            if iterator is None:
                iterator = self._begin()
                ahead = next(iterator, None)
                while ahead is not None and ahead.offset + ahead.length <= offset:
                    ahead = next(iterator, None)
            rows: list[tuple[int, int, bool]] = []
            at = offset
            until = time.monotonic() + PAGE_S  # a cloud's list may come slowly: what is known of it is told
            while ahead is not None and len(rows) < limit and (not rows or time.monotonic() < until):
                start = max(ahead.offset, offset)
                at = ahead.offset + ahead.length
                rows.append((start, at - start, ahead.kind is Kind.ZERO))
                ahead = next(iterator, None)
            self._iterator, self._ahead, self._at = iterator, ahead, at
            return rows, ahead is not None


#: After a read that memory did not have, so many of the disk go to its storage without asking.
NOT_HELD_QUESTIONS: Final = 32


class SourceSession:
    """What one grant opened."""

    def __init__(
        self, number: int, grant: Grant, peer: Peer, source: Source, points: dict[str, Snapshot], rate: WireRate
    ) -> None:
        self.number = number
        self.grant = grant
        self.peer = peer
        self.compress = False
        self.fenced: FarshoreError | None = None
        self.zero_block = frames.ZERO_BLOCK
        self.sent_bytes = 0
        self.read_bytes = 0
        self._cpu_before = time.process_time()
        self.used_at = time.monotonic()
        self._source = source
        self._points = points
        self._lock = threading.Lock()
        self._lent = 0
        self._closed = False
        self._readers: dict[int, Reader] = {}
        self._passed_over = [0 for _ in grant.disks]
        # A disk whose storage stalls while it is opened keeps only its own readers waiting.
        self._opening = tuple(threading.Lock() for _ in grant.disks)
        self._laws = tuple(CompressionLaw(rate, os.cpu_count() or 1) for _ in grant.disks)
        self._extents: dict[tuple[int, bool], Listing] = {}

    def size(self, disk: int) -> int:
        """Return a disk's size; refuse an index that the grant does not have."""
        if not 0 <= disk < len(self.grant.disks):
            raise Forbidden(f"the grant has no disk {disk}", code="disk-not-granted", disk=disk)
        return self.grant.disks[disk].size_bytes

    def snapshot(self, disk: int) -> Snapshot:
        """Return the point that a disk is read from."""
        return self._points[self.grant.disks[disk].source_point]

    def opened(self) -> frames.Opened:
        """Return the answer to OPEN."""
        disks = []
        for disk in self.grant.disks:
            facts = self._points[disk.source_point].disk(disk.disk_key)
            incremental = facts.incremental and disk.base is not None
            disks.append(frames.OpenedDisk(disk.disk_key, disk.size_bytes, incremental, facts.reason))
        return frames.Opened(self.number, self.grant.epoch, tuple(disks))

    def count(self, sent_bytes: int, read_bytes: int) -> None:
        """Add payload that is about to be sent, and what was read for it."""
        with self._lock:
            self.sent_bytes += sent_bytes
            self.read_bytes += read_bytes

    def stats(self) -> SourceStats:
        """Return what the session took until now."""
        return SourceStats(
            read_bytes=self.read_bytes,
            sent_bytes=self.sent_bytes,
            cpu_s=round(time.process_time() - self._cpu_before, 3),
            peak_rss_bytes=peak_rss_bytes(),
        )

    def law(self, disk: int) -> CompressionLaw | None:
        """Return what decides over the compression of a disk; None where the target wants none."""
        return self._laws[disk] if self.compress else None

    def may_be_held(self, disk: int) -> bool:
        """Say whether a read of the disk is worth trying without waiting: it is open, and none has failed lately."""
        if self._passed_over[disk]:
            self._passed_over[disk] -= 1
            return False
        return disk in self._readers

    def not_held(self, disk: int) -> None:
        """Note that such a read would have had to wait."""
        self._passed_over[disk] = NOT_HELD_QUESTIONS

    @contextlib.contextmanager
    def reading(self, disk: int) -> Iterator[Reader]:
        """Lend the disk's reader, opened at its first use. A session that is closed meanwhile closes it afterwards."""
        with self._lock:
            if self._closed:
                raise self.fenced or RestartFromCheckpoint("the session is not open here", code="session-unknown")
            self._lent += 1
        try:
            yield self._readers.get(disk) or self._open(disk)
        finally:
            with self._lock:
                self._lent -= 1
            self._close_unused()

    def _open(self, disk: int) -> Reader:
        with self._opening[disk]:
            reader = self._readers.get(disk)
            if reader is None:
                reader = self._readers[disk] = self._source.reader(self.snapshot(disk), self.grant.disks[disk].disk_key)
            return reader

    def extents(self, disk: int, *, since_base: bool) -> Listing:
        """Return the disk's extents since the grant's base, or all that is allocated."""
        granted = self.grant.disks[disk]
        if since_base and granted.base is None:
            raise Forbidden("the grant names no base for this disk", code="base-not-granted", disk=disk)
        snapshot, base = self.snapshot(disk), granted.base if since_base else None
        with self._lock:
            return self._extents.setdefault(
                (disk, since_base),
                Listing(lambda: self._source.changed(snapshot, granted.disk_key, base)),
            )

    def close(self) -> None:
        """Close the readers, now or when the last one is given back: never under a thread that reads."""
        with self._lock:
            self._closed = True
        self._close_unused()

    def _close_unused(self) -> None:
        with self._lock:
            if not self._closed or self._lent:
                return
            readers = list(self._readers.values())
            self._readers.clear()
            self._extents.clear()
        for reader in readers:
            reader.close()
