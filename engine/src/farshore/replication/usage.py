"""What this process takes of the machine."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Final

#: Objects with references that may come before the collector looks at the young ones; 700 is Python's default.
_YOUNG: Final = 20_000


def peak_rss_bytes() -> int:
    """Return the most memory that the process ever had resident.

    ``VmHWM`` of proc(5), for ``ru_maxrss`` is inherited over fork and exec.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def memory_bytes() -> int:
    """Return the machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def settle() -> None:
    """Tell the garbage collector that what was imported stays; called once, before a process begins to move data.

    What the data path makes is freed by reference counts; walking tens of thousands of lasting objects again and again
    was measured to take 4 % of a target's processor time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, 10, 10)
