"""Buffers for payloads: received into by a connection, lent to whoever writes them, and used again.

The pages of a new buffer cost more than what is written to it, so buffers are kept; but no more of them than are lent
at the moment, or ``KEEP_BYTES``. How many are lent at once is for the window to bound: one buffer per chunk in flight.
Each begins at a page, so it may be written with O_DIRECT.
"""

from __future__ import annotations

import mmap
import threading
from typing import Final

from farshore.units import CHUNK_SIZE, KIB, MIB

#: Free buffers that are kept even where nothing is lent.
KEEP_BYTES: Final = 8 * MIB
_SMALLEST: Final = 64 * KIB


class Lent:
    """A buffer on loan. :meth:`release` it once it is used, from any thread; ``view`` may not be touched afterwards."""

    __slots__ = ("_buffer", "_pool", "view")

    def __init__(self, pool: BufferPool | None, buffer: mmap.mmap | None, view: memoryview) -> None:
        self._pool = pool
        self._buffer = buffer
        self.view = view

    def release(self) -> None:
        """Give the buffer back. May be called again."""
        pool, self._pool = self._pool, None
        if pool is not None and self._buffer is not None:
            self.view.release()
            pool.give_back(self._buffer)


#: For a frame without payload.
NOTHING: Final = Lent(None, None, memoryview(b""))


class BufferPool:
    """The buffers of a process. Sizes are powers of two, so what is lent is at most twice what is used of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: dict[int, list[mmap.mmap]] = {}
        self.free_bytes = 0
        self.lent_bytes = 0
        self.peak_bytes = 0

    def take(self, size_bytes: int) -> Lent:
        """Lend a buffer whose view has ``size_bytes``, at most a chunk; what is in it is of no meaning."""
        if not 0 < size_bytes <= CHUNK_SIZE:
            raise ValueError(f"no chunk has {size_bytes} bytes")
        size = max(_SMALLEST, 1 << (size_bytes - 1).bit_length())
        with self._lock:
            self.lent_bytes += size
            self.peak_bytes = max(self.peak_bytes, self.lent_bytes)
            free = self._free.get(size)
            buffer = free.pop() if free else None
            if buffer is not None:
                self.free_bytes -= size
        if buffer is None:
            buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return Lent(self, buffer, memoryview(buffer)[:size_bytes])

    def give_back(self, buffer: mmap.mmap) -> None:
        """Take back what was lent; called by :class:`Lent`."""
        size = len(buffer)
        with self._lock:
            self.lent_bytes -= size
            self.free_bytes += size
            self._free.setdefault(size, []).append(buffer)
            while self.free_bytes > max(KEEP_BYTES, self.lent_bytes):
                # The largest class first: its buffers are soon there again.
                spare = max(size for size, free in self._free.items() if free)
                self._free[spare].pop(0)
                self.free_bytes -= spare
