"""What guests need on a node beside Python: programs, a library and the kernel's user-space file systems."""

from __future__ import annotations

import ctypes
import shutil
from functools import cache
from pathlib import Path
from typing import Final

#: The Debian package of each program that is run, by this package or by a platform that shows disks as files;
#: ``losetup`` and ``umount`` come with ``mount``.
PACKAGES: Final = {
    "debugfs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "mcopy": "mtools",
    "mdel": "mtools",
    "mmd": "mtools",
    "losetup": "mount",
    "mount": "mount",
    "ntfs-3g": "ntfs-3g",
    "qemu-storage-daemon": "qemu-system-common",
    "umount": "mount",
    "unshare": "util-linux",
}
HIVEX: Final = "libhivex.so.0"
HIVEX_PACKAGE: Final = "libhivex0"
FUSE: Final = Path("/dev/fuse")


def missing(fuse: Path = FUSE) -> tuple[str, ...]:
    """Return what is not there, each as ``PROGRAM (package PACKAGE)``; nothing where guests can be looked into."""
    lacks = [f"{name} (package {package})" for name, package in PACKAGES.items() if shutil.which(name) is None]
    if not _has_hivex():
        lacks.append(f"{HIVEX} (package {HIVEX_PACKAGE})")
        _has_hivex.cache_clear()  # it may be installed while the node runs
    if not fuse.exists():
        lacks.append(f"{fuse} (kernel module fuse)")
    return tuple(lacks)


@cache
def _has_hivex() -> bool:
    try:
        ctypes.CDLL(HIVEX)
    except OSError:
        return False
    return True
