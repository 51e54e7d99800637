"""Reading what the kernel holds of a file in memory, and only that."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

_MOUNTS: Final = Path("/proc/self/mountinfo")
#: File systems that are memory. They do not know RWF_NOWAIT, and have nothing to wait for.
_MEMORY: Final = frozenset({"tmpfs", "ramfs"})


class Held:
    """The page cache of an open file."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._flags = 0 if _in_memory(fd) else os.RWF_NOWAIT

    def read(self, offset: int, buffer: memoryview) -> bool:
        """Fill ``buffer`` with the bytes at ``offset`` unless a disk has to be waited for.

        Raises:
            OSError: it cannot be read.
        """
        try:
            return os.preadv(self._fd, [buffer], offset, self._flags) == len(buffer)
        except OSError as error:
            if error.errno in {errno.EAGAIN, errno.EOPNOTSUPP}:
                return False
            raise


def _in_memory(fd: int) -> bool:
    device = os.fstat(fd).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # a container that hides it
        return False
    for line in lines:
        fields, _, rest = line.partition(" - ")
        if fields.split()[2:3] == [number]:
            return not _MEMORY.isdisjoint(rest.split()[:1])
    return False
