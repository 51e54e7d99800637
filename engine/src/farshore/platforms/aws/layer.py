"""A writable layer over a snapshot that is only read: blocks are fetched as they are touched, changed ones are kept.

    a file of slots, one block each        what was fetched (as many as the limit says) and what was changed

A block that was fetched and not changed gives its slot to another one when the limit is reached. A changed block stays
until it is asked for by :meth:`Layer.changed`. Nothing is ever written to the snapshot.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Final, Protocol

from farshore.errors import NoSpace, Permanent
from farshore.platforms.aws.ebs import BLOCK, ZERO_BLOCK

#: Blocks that were fetched and are kept, 256 MiB: metadata, the initial file systems and the registry of a guest, which
#: are read several times by one tool after another, are a tenth of that.
FETCHED_MAX: Final = 512


class Blocks(Protocol):
    """What lies below."""

    def block(self, index: int) -> bytes | None:
        """Return one block whole; None where nothing was ever written."""


class Layer:
    """A disk of ``size_bytes`` that reads as ``below`` but for what was written. Safe from several threads."""

    def __init__(self, below: Blocks, size_bytes: int, path: Path, fetched_max: int = FETCHED_MAX) -> None:
        self.size_bytes = size_bytes
        self.fetched = 0
        self._below = below
        self._max = fetched_max
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._lock = threading.Lock()
        self._slots: OrderedDict[int, int] = OrderedDict()  # of blocks that were not changed, the oldest use first
        self._changed: dict[int, tuple[int, bytes]] = {}  # slot, and the digest of what was there before
        self._free: list[int] = []
        self._end = 0

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the bytes at ``offset``."""
        with self._lock:
            for index, skip, part in _parts(offset, buffer):
                slot = self._slot(index)
                part[:] = self._read(slot, skip, len(part))

    def write(self, offset: int, buffer: memoryview) -> None:
        """Write ``buffer`` at ``offset``.

        Raises:
            NoSpace: the scratch folder is full.
        """
        with self._lock:
            for index, skip, part in _parts(offset, buffer):
                slot = self._slot(index)
                if index not in self._changed:
                    self._changed[index] = (slot, sha256(self._read(slot, 0, BLOCK)).digest())
                    del self._slots[index]
                self._put(slot, skip, part)

    def changed(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Yield ``(index, data, SHA-256)`` of the blocks that differ from what is below, ascending."""
        for index, (slot, before) in sorted(self._changed.items()):
            data = self._read(slot, 0, BLOCK)
            digest = sha256(data).digest()
            if digest != before:
                yield index, data, digest

    def close(self) -> None:
        """Give the file back."""
        os.close(self._fd)

    def _slot(self, index: int) -> int:
        """Return where a block is kept, fetched if it has to be; the lock is held."""
        if index in self._changed:
            return self._changed[index][0]
        if index in self._slots:
            self._slots.move_to_end(index)
            return self._slots[index]
        data = self._below.block(index)
        self.fetched += data is not None
        slot = self._room()
        try:
            self._put(slot, 0, memoryview(data or ZERO_BLOCK))
        except BaseException:
            self._free.append(slot)
            raise
        self._slots[index] = slot
        return slot

    def _room(self) -> int:
        if self._free:
            return self._free.pop()
        if len(self._slots) >= self._max:
            return self._slots.popitem(last=False)[1]
        self._end += 1
        return self._end - 1

    def _read(self, slot: int, skip: int, length: int) -> bytes:
        data = os.pread(self._fd, length, slot * BLOCK + skip)
        if len(data) < length:
            raise Permanent("the file of a layer is shorter than what was written", code="layer-io")
        return data

    def _put(self, slot: int, skip: int, data: memoryview) -> None:
        try:
            while data:
                count = os.pwrite(self._fd, data, slot * BLOCK + skip)
                skip, data = skip + count, data[count:]
        except OSError as error:
            message = f"what was read of a guest could not be kept: {error.strerror or error}"
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise NoSpace(message, code="layer-full", hint="Free space in platform.scratch.") from error
            raise Permanent(message, code="layer-io") from error


def _parts(offset: int, buffer: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """Yield the blocks of a range: (index, where in the block, that part of the buffer)."""
    at = 0
    while at < len(buffer):
        index, skip = divmod(offset + at, BLOCK)
        length = min(BLOCK - skip, len(buffer) - at)
        yield index, skip, buffer[at : at + length]
        at += length
