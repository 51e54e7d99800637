"""On what kind of file system a folder lies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_MOUNTS: Final = Path("/proc/self/mountinfo")


def filesystem_of(path: Path, mounts: Path = _MOUNTS) -> str:
    """Return the type of the file system that holds ``path`` (``ext4``, ``nfs4``); empty if it cannot be found out."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    real = os.path.realpath(path)
    found, longest = "", -1
    for line in lines:
        fields, dash, rest = line.partition(" - ")
        parts = fields.split()
        if not dash or len(parts) < 5 or not rest.split():
            continue
        # proc(5): space, tab, line feed and backslash are written in octal.
        point = parts[4].encode().decode("unicode_escape")
        # Of two mounts at one place the later one is seen.
        if _holds(point, real) and len(point) >= longest:
            found, longest = rest.split()[0], len(point)
    return found


def _holds(point: str, path: str) -> bool:
    return point in {"/", path} or path.startswith(point.rstrip("/") + "/")
