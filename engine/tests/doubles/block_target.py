"""A pool that keeps to the rules of a cloud's block service: whole blocks, no holes, drafts that cannot be read."""

from __future__ import annotations

import threading
from typing import Final

from farshore.errors import Permanent
from farshore.platforms.contract import Caps
from farshore.platforms.file.target import FileDraft, FileTarget
from farshore.units import KIB

BLOCK: Final = 512 * KIB


class BlockTarget(FileTarget):
    """Points of whole blocks of 512 KiB; whatever breaks a rule fails the test that does.

    Attributes:
        puts: blocks that were written, zeros too.
        cut_after: every write fails once so many have been made.
    """

    caps = Caps(
        granularity_bytes=BLOCK,
        max_io_bytes=BLOCK,
        max_parallel=4,
        needs_full_block=True,
        zero_is_hole=False,
        durable_on_write=True,
        reads_unsealed=False,
        fences_by="none",
    )
    puts = 0
    cut_after: int | None = None
    broken: str | None = None

    def open(self, disk_key: str, size_bytes: int, base: str | None, key: str) -> BlockDraft:  # type: ignore[override]
        """Open a draft that takes only what the service would take."""
        return BlockDraft(self, super().open(disk_key, size_bytes, base, key), size_bytes)


class BlockDraft:
    """A draft of whole blocks, around one that takes anything."""

    def __init__(self, target: BlockTarget, inner: FileDraft, size_bytes: int) -> None:
        self.draft_id = inner.draft_id
        self.flush, self.seal, self.abandon, self.close = inner.flush, inner.seal, inner.abandon, inner.close
        self._target = target
        self._inner = inner
        self._size = size_bytes
        self._counting = threading.Lock()

    def write(self, offset: int, buffer: memoryview) -> None:
        """Write blocks; only the disk's last may be shorter."""
        self._count(offset, len(buffer))
        if len(buffer) > BLOCK:
            self._refuse(f"a write of {len(buffer)} bytes")
        self._inner.write(offset, buffer)

    def write_zeroes(self, offset: int, length: int) -> None:
        """Write blocks of zeros."""
        self._count(offset, length)
        self._inner.write_zeroes(offset, length)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Refuse: a draft is not readable."""
        self._refuse(f"a draft was read at {offset}, {len(buffer)} bytes")

    def _count(self, offset: int, length: int) -> None:
        if offset % BLOCK or (length % BLOCK and offset + length != self._size) or not length:
            self._refuse(f"a write of {offset}+{length}")
        with self._counting:
            self._target.puts += -(-length // BLOCK)
            if self._target.cut_after is not None and self._target.puts > self._target.cut_after:
                raise Permanent("the service is gone", code="cut")

    def _refuse(self, what: str) -> None:
        self._target.broken = what
        raise AssertionError(what)
