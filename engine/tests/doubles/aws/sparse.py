"""Files with holes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

_PIECE = 1024 * 1024


def extents(descriptor: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield where a file holds data, as (offset, end)."""
    offset = 0
    while offset < end:
        try:
            start = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        if start >= end:
            return
        offset = min(os.lseek(descriptor, start, os.SEEK_HOLE), end)
        yield start, offset


def copy(source: Path, target: Path) -> None:
    """Make ``target``, which stays as long as it is, hold what ``source`` does."""
    with source.open("rb") as reads, target.open("r+b") as writes:
        size, length = os.fstat(reads.fileno()).st_size, os.fstat(writes.fileno()).st_size
        assert size <= length, "the image is longer than the volume"
        writes.truncate(0)
        writes.truncate(length)
        for start, end in extents(reads.fileno(), size):
            for offset in range(start, end, _PIECE):
                piece = os.pread(reads.fileno(), min(_PIECE, end - offset), offset)
                os.pwrite(writes.fileno(), piece, offset)


def same(one: Path, other: Path) -> bool:
    """Say whether two files of one length hold the same."""
    with one.open("rb") as left, other.open("rb") as right:
        size = os.fstat(left.fileno()).st_size
        held = [*extents(left.fileno(), size), *extents(right.fileno(), size)]
        return os.fstat(right.fileno()).st_size == size and all(
            os.pread(left.fileno(), _PIECE, at) == os.pread(right.fileno(), _PIECE, at)
            for start, end in held
            for at in range(start, end, _PIECE)
        )
