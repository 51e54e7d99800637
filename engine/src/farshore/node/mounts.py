"""On what kind of file system a folder lies, and whether its locks are seen by other hosts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from farshore.errors import Permanent

MOUNTS: Final = Path("/proc/self/mountinfo")
#: Mount options of shared file systems with which each host keeps its locks (``flock``) to itself: nfs(5), for versions
#: 2 and 3 only; mount.cifs(8); the kernel's gfs2 and ocfs2; Lustre's client.
_LOCAL_LOCKS: Final = frozenset({"nolock", "local_lock=all", "local_lock=flock", "nobrl", "localflocks", "localflock"})


def filesystem_of(path: Path) -> str:
    """Return the type of the file system that holds ``path`` (``ext4``, ``nfs4``); empty if it cannot be found out."""
    return _mount_of(path)[0]


def check_locks(path: Path, field: str) -> None:
    """Make sure that a lock on a file below ``path`` keeps other hosts out where they can have it mounted too.

    Raises:
        Permanent: it does not (``locks-local``); ``field`` names the setting.
    """
    kind, options = _mount_of(path)
    local = sorted(_LOCAL_LOCKS & set(options))
    if local:
        raise Permanent(
            f"{str(path)!r} lies on {kind}, mounted with {', '.join(local)}: other hosts do not see its locks",
            code="locks-local",
            field=field,
            hint="Mount it as NFS 4 (vers=4.2), or without these options.",
        )


def _mount_of(path: Path) -> tuple[str, list[str]]:
    """Return the type and the options of the file system that holds a path; nothing if it cannot be found out."""
    real = os.path.realpath(path)
    found: tuple[str, list[str]] = "", []
    longest = -1
    for point, kind, options in _mounted():
        # Of two mounts at one place the later one is seen.
        if _holds(point, real) and len(point) >= longest:
            found, longest = (kind, options), len(point)
    return found


def _mounted() -> Iterator[tuple[str, str, list[str]]]:
    """Yield where something is mounted, its type and the options of the file system."""
    try:
        lines = MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        fields, dash, rest = line.partition(" - ")
        parts, about = fields.split(), rest.split()
        if dash and len(parts) >= 5 and about:
            # proc(5): space, tab, line feed and backslash are written in octal.
            yield parts[4].encode().decode("unicode_escape"), about[0], about[-1].split(",")


def _holds(point: str, path: str) -> bool:
    return point in {"/", path} or path.startswith(point.rstrip("/") + "/")
