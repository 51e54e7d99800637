"""What this process has taken of the machine."""

from __future__ import annotations

from pathlib import Path


def peak_rss_bytes() -> int:
    """Return the most memory that the process ever had resident.

    ``VmHWM`` of proc(5), for ``ru_maxrss`` is inherited over fork and exec.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
