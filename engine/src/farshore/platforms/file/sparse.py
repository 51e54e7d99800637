"""Sparse files: what of them is allocated, copies that stay sparse, holes; and images on their way to the disk."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from farshore.errors import FarshoreError, NoSpace, Permanent

#: linux/fs.h: _IOW(0x94, 9, int)
_FICLONE: Final = 0x40049409
#: linux/falloc.h
_KEEP_SIZE: Final = 0x01
_PUNCH_HOLE: Final = 0x02
_COPY_STEP: Final = 64 << 20

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield ``(start, stop)`` of what is allocated; file systems without holes answer with one range."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole behind ``at``
                return
            raise
        at = os.lseek(fd, start, os.SEEK_HOLE)
        if start < size:
            yield start, min(at, size)


def clone(source: Path, target: Path, size: int) -> None:
    """Make the new file ``target`` of ``size`` bytes with the content of ``source``; shared or sparse where possible.

    The caller makes it durable. A target that is longer than the source reads as zero behind it.
    """
    with source.open("rb") as reading, target.open("xb") as writing:
        from_fd, to_fd = reading.fileno(), writing.fileno()
        length = min(os.fstat(from_fd).st_size, size)
        try:
            fcntl.ioctl(to_fd, _FICLONE, from_fd)
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS}:
                raise
            for start, stop in data_ranges(from_fd, length):
                copy_range(from_fd, to_fd, start, stop)
        os.ftruncate(to_fd, size)


def copy_range(from_fd: int, to_fd: int, start: int, stop: int) -> None:
    """Copy ``[start, stop)`` between two files, in the kernel."""
    at = start
    while at < stop:
        count = os.copy_file_range(from_fd, to_fd, min(stop - at, _COPY_STEP), at, at)
        if count == 0:
            raise OSError(errno.EIO, "the file ended while it was copied")
        at += count


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Make a range read as zero and give its blocks back.

    ``FALLOC_FL_ZERO_RANGE`` would allocate; ``PUNCH_HOLE`` works on ext4, xfs, btrfs and tmpfs.
    """
    while _LIBC.fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length):
        number = ctypes.get_errno()
        if number == errno.EINTR:
            continue
        if number not in {errno.EOPNOTSUPP, errno.ENOSYS}:
            raise OSError(number, os.strerror(number))
        zeros = bytes(min(length, 1 << 20))
        while length:
            count = os.pwrite(fd, zeros[:length], offset)
            offset += count
            length -= count
        return


def flush(fd: int) -> None:
    """Return when every write that had returned before the call is durable; its pages leave the memory.

    Nobody reads them again soon, so they would push out what others need. The next writes get the same pages of the
    machine: where a host has to find new ones for its guest, that costs more than the copy into them. And an audit
    reads what the disk has.
    """
    os.fdatasync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def named(error: OSError, what: str, path: Path) -> FarshoreError:
    """Return the error that a platform raises for ``error``."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return NoSpace(
            f"{what}: {path} has no space left",
            code="pool-full",
            hint="Free space in the pool, lower the retention, or give the site a larger pool.",
            path=str(path),
        )
    return Permanent(f"{what}: {error.strerror or error}", code="file-io", path=str(path), errno=error.errno)
