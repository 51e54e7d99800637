"""Leaf digests of a draft's changed leaves, in a flat sparse file: 32 bytes at 32 times the leaf's index.

A place of 32 zero bytes holds no digest (BLAKE3 gives that for no content anybody will find). The file is read in pages
of one tree node, so a disk of any size costs little memory.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from farshore import durable
from farshore.blocks.digest import DIGEST_SIZE
from farshore.blocks.tree import FANOUT, NODE_SIZE

_NONE: Final = bytes(DIGEST_SIZE)
_EMPTY: Final = bytes(NODE_SIZE)


class Leaves:
    """The file ``path``. Safe from several threads: each leaf is written whole by one ``pwrite``."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # Always: a process that died between making the file and this would leave it to a power cut.
        durable.fsync_dir(path.parent)

    def put(self, first: int, digests: bytes) -> None:
        """Keep the digests of consecutive leaves from ``first``."""
        at = 0
        while at < len(digests):
            at += os.pwrite(self._fd, digests[at:] if at else digests, first * DIGEST_SIZE + at)

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

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """Yield ``(leaf index, digest)``, ascending, of all leaves that have one."""
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
            if page and page != _EMPTY:
                first = at // DIGEST_SIZE
                for place in range(0, len(page) // DIGEST_SIZE * DIGEST_SIZE, DIGEST_SIZE):
                    digest = page[place : place + DIGEST_SIZE]
                    if digest != _NONE:
                        yield first + place // DIGEST_SIZE, digest
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
