"""Files that survive a crash: written whole or not at all.

One order, everywhere: write a temporary name in the same directory, fsync it, give it its name, fsync the directory.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from pathlib import Path
from typing import Any, Final

#: What a directory says that keeps no names of ours: it may not be read, or it is a map of mounts.
_NOT_OURS: Final = frozenset({errno.EACCES, errno.EPERM, errno.EINVAL})


def fsync_dir(path: Path) -> None:
    """Make the names in the directory ``path`` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_dir(path: Path, mode: int = 0o700) -> None:
    """Create ``path`` and its parents, each name durable on return, whoever made it."""
    if path.is_dir():
        # Who made it may have died before it synced the name: a power cut would take that, and all below it.
        try:
            fsync_dir(path.parent)
        except OSError as error:
            if error.errno not in _NOT_OURS:
                raise
        return
    make_dir(path.parent, mode)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode)
    fsync_dir(path.parent)


def _write_temporary(path: Path, data: bytes, mode: int) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    return temporary


def write(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace the file ``path`` with ``data``, durable on return."""
    temporary = _write_temporary(path, data, mode)
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def write_json(path: Path, value: Any, mode: int = 0o600) -> None:
    """Replace the file ``path`` with ``value`` as JSON, durable on return."""
    write(path, json.dumps(value, indent=1, sort_keys=True).encode() + b"\n", mode)


def create(path: Path, data: bytes, mode: int = 0o600) -> bool:
    """Create ``path`` with ``data`` only if it does not exist; the name is durable on return, whoever made it.

    The link is the commit point: of several writers exactly one gets True, and a reader never sees a part.
    """
    created = not path.exists()
    if created:
        temporary = _write_temporary(path, data, mode)
        try:
            os.link(temporary, path)
        except FileExistsError:
            created = False
        finally:
            temporary.unlink(missing_ok=True)
    fsync_dir(path.parent)  # who created it may have died before this
    return created


def remove(path: Path) -> bool:
    """Remove the file ``path``, durable on return; False if it was not there."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    fsync_dir(path.parent)
    return True
