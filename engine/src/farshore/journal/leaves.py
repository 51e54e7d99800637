"""Leaf digests of a draft's changed leaves, in a flat sparse file: 32 bytes at 32 times the leaf's index.

A place of 32 zero bytes holds no digest (BLAKE3 gives that for no content anybody will find). The file is read in pages
of one tree node, so a disk of any size costs little memory.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from farshore import durable
from farshore.blocks.digest import DIGEST_SIZE
from farshore.blocks.tree import FANOUT, NODE_SIZE

_NONE: Final = bytes(DIGEST_SIZE)
_EMPTY: Final = bytes(NODE_SIZE)
#: Runs with fewer leaves than this between them are written at once.
_NEAR: Final = NODE_SIZE // DIGEST_SIZE
_SPAN_MAX: Final = 16 * _NEAR


class Leaves:
    """The file ``path``. Safe from several threads."""

    def __init__(self, path: Path) -> None:
        # What lies between two runs is read and written again; nobody else may write to it meanwhile.
        self._lock = threading.Lock()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # Always: a process that died between making the file and this would leave it to a power cut.
        durable.fsync_dir(path.parent)

    def put(self, first: int, digests: bytes) -> None:
        """Keep the digests of consecutive leaves from ``first``."""
        with self._lock:
            self._write(first, digests)

    def _write(self, first: int, digests: bytes | bytearray) -> None:
        at = 0
        while at < len(digests):
            at += os.pwrite(self._fd, digests[at:] if at else digests, first * DIGEST_SIZE + at)

    def put_runs(self, runs: Iterable[tuple[int, int]], digests: bytes) -> None:
        """Keep the digests of ascending runs of leaves ``(first, stop)``, one behind the other in ``digests``.

        Runs that lie close together are written at once, with what is between them: a chunk of scattered fragments
        touches hundreds of leaves, and each call of the system costs more than the bytes.
        """
        at = 0
        for span in _spans(runs):
            low, high = span[0][0], span[-1][1]
            if len(span) == 1:
                self.put(low, digests[at : at + (high - low) * DIGEST_SIZE])
                at += (high - low) * DIGEST_SIZE
                continue
            with self._lock:
                page = bytearray(self.get(low, high))
                for first, stop in span:
                    size = (stop - first) * DIGEST_SIZE
                    place = (first - low) * DIGEST_SIZE
                    page[place : place + size] = digests[at : at + size]
                    at += size
                self._write(low, page)

    def get(self, first: int, stop: int) -> bytes:
        """Return the digests of the leaves ``[first, stop)``; 32 zero bytes for each that has none."""
        size = (stop - first) * DIGEST_SIZE
        return os.pread(self._fd, size, first * DIGEST_SIZE).ljust(size, b"\0")

    def has(self, first: int, stop: int) -> bool:
        """Say whether all leaves ``[first, stop)`` have a digest."""
        for low in range(first, stop, FANOUT):
            size = (min(low + FANOUT, stop) - low) * DIGEST_SIZE
            page = os.pread(self._fd, size, low * DIGEST_SIZE)
            if len(page) < size or any(page[at : at + DIGEST_SIZE] == _NONE for at in range(0, size, DIGEST_SIZE)):
                return False
        return True

    def sync(self) -> None:
        """Make everything that was put durable."""
        os.fdatasync(self._fd)

    def runs(self) -> Iterator[tuple[int, bytes]]:
        """Yield ``(first leaf, digests)``, ascending, of all leaves that have a digest; a run may end at the next."""
        size = os.fstat(self._fd).st_size
        at = 0
        while at < size:
            try:
                at = os.lseek(self._fd, at, os.SEEK_DATA) // NODE_SIZE * NODE_SIZE
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                raise
            page = os.pread(self._fd, NODE_SIZE, at)
            yield from _present(at // DIGEST_SIZE, page[: len(page) // DIGEST_SIZE * DIGEST_SIZE])
            at += NODE_SIZE

    def clear(self) -> None:
        """Forget all digests, durably: they are of a draft that is gone."""
        os.ftruncate(self._fd, 0)
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _present(first: int, page: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the runs of digests of a page that begins with the leaf ``first``."""
    if _NONE not in page:  # in one search, for most pages of a full copy are so
        if page:
            yield first, page
        return
    if page == _EMPTY:
        return
    begin = None
    for at in range(0, len(page), DIGEST_SIZE):
        if page[at : at + DIGEST_SIZE] != _NONE:
            begin = at if begin is None else begin
        elif begin is not None:
            yield first + begin // DIGEST_SIZE, page[begin:at]
            begin = None
    if begin is not None:
        yield first + begin // DIGEST_SIZE, page[begin:]


def _spans(runs: Iterable[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Yield runs in groups of such that lie close together."""
    span: list[tuple[int, int]] = []
    for run in runs:
        if span and (run[0] - span[-1][1] >= _NEAR or run[1] - span[0][0] > _SPAN_MAX):
            yield span
            span = []
        span.append(run)
    if span:
        yield span
