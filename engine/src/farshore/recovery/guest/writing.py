"""Writing files of a guest that is off, by tools that know its file system.

* ext2 to ext4: ``debugfs``, in user space, after ``e2fsck`` has replayed the journal. What is written beside a journal
  that waits to be replayed would be undone by it.
* NTFS: ``ntfs-3g``, a file system in user space. It refuses one that sleeps (hibernation).
* FAT: ``mtools``, in user space.
* XFS, btrfs: the kernel's, mounted without devices, programs, links and set-uid bits. Nothing else writes them.

Mounts are made in the mount namespace of this process alone, and go with it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from farshore.errors import Permanent
from farshore.recovery.guest.tools import PACKAGES
from farshore.recovery.guest.trees import Tree, open_volume
from farshore.recovery.guest.volumes import Volume

_TIMEOUT_S: Final = 300.0
#: Bits of e2fsck's exit status (e2fsck(8)): 1 and 2 say that it has repaired, 4 and above that it could not.
_FSCK_FAILED: Final = ~3
_SUPERBLOCK: Final = 1024
_INCOMPAT: Final = 96
_NEEDS_RECOVERY: Final = 4
_KERNEL: Final = ("xfs", "btrfs")


@dataclass(frozen=True, slots=True)
class Write:
    """A file that is to have this content; None: that is to be gone. ``path`` is one of the volume."""

    volume: Volume
    path: str
    content: bytes | None
    mode: int = 0o644
    owner: int = 0
    group: int = 0


def settle(volume: Volume) -> None:
    """Replay what a volume's journal holds, so that it is read and written as the guest would find it.

    Raises:
        Permanent: it cannot be.
    """
    if volume.content == "ext" and needs_recovery(volume):
        # By a device of its own: e2fsck 1.47 opens a file system a second time after the replay, without its offset.
        with _looped(volume) as device:
            done = _run(["e2fsck", "-y", "-E", "journal_only", device])
        if done.returncode & _FSCK_FAILED:
            raise _failure("e2fsck", volume, done)


def needs_recovery(volume: Volume) -> bool:
    """Say whether an ext file system was not unmounted (Linux, Documentation/filesystems/ext4: s_feature_incompat)."""
    volume.handle.seek(_SUPERBLOCK + _INCOMPAT)
    return bool(int.from_bytes(volume.handle.read(4), "little") & _NEEDS_RECOVERY)


def write(volume: Volume, writes: Sequence[Write]) -> None:
    """Bring files of one volume to their content; what is there already stays, and folders are made.

    Raises:
        Permanent: the tool is missing or fails, with what to do.
    """
    if volume.content == "ext":
        _by_debugfs(volume, writes)
        return
    if volume.content == "fat":
        _by_mtools(volume, writes)
        return
    try:
        _by_mount(volume, writes)
    except OSError as error:
        raise Permanent(f"volume {volume.name}: {error.strerror}", code="volume-not-writable") from error


def _by_mount(volume: Volume, writes: Sequence[Write]) -> None:
    with mounted(volume) as root:
        for item in writes:
            path = root / item.path.lstrip("/")
            _stay_inside(root, path)
            if item.content is None:
                path.unlink(missing_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(item.content)
            if volume.content in _KERNEL:
                path.chmod(item.mode)
                os.chown(path, item.owner, item.group)


@contextlib.contextmanager
def mounted(volume: Volume) -> Iterator[Path]:
    """Mount an NTFS, XFS or btrfs volume for writing until the end of the block; paths must not follow its links."""
    with tempfile.TemporaryDirectory(prefix="farshore-guest-") as folder, _looped(volume) as device:
        if volume.content == "ntfs":
            argv = ["ntfs-3g", "-o", "rw,norecover,windows_names", device, folder]
        elif volume.content in _KERNEL:
            extra = ",nouuid" if volume.content == "xfs" else ""
            argv = ["mount", "-t", volume.content, "-o", f"rw,nosuid,nodev,noexec,nosymfollow{extra}", device, folder]
        else:
            raise Permanent(f"nothing here writes {volume.content} ({volume.name})", code="volume-not-writable")
        done = _run(argv)
        if done.returncode:
            raise _failure(argv[0], volume, done)
        try:
            yield Path(folder)
        finally:
            done = _run(["umount", folder])
            if done.returncode:
                raise _failure("umount", volume, done)


def _stay_inside(root: Path, path: Path) -> None:
    """Refuse a path that a link of the guest's would lead out of it, into this node."""
    at = root
    for part in path.relative_to(root).parts:
        at = at / part
        if part == ".." or at.is_symlink():
            raise Permanent(f"{at.relative_to(root)} is a link in the guest", code="volume-not-writable")


@contextlib.contextmanager
def _looped(volume: Volume) -> Iterator[str]:
    """Show a volume as a block device until the end of the block; what was written is on the disk then."""
    if volume.offset is None:
        raise _in_pieces(volume)
    place = ["--offset", str(volume.offset), "--sizelimit", str(volume.size)]
    done = _run(["losetup", "--find", "--show", *place, str(volume.disk.path)])
    if done.returncode:
        raise _failure("losetup", volume, done)
    device = done.stdout.strip()
    try:
        yield device
    finally:
        _run(["losetup", "-d", device])
        with volume.disk.path.open("rb") as disk:
            os.fsync(disk.fileno())


def _in_pieces(volume: Volume) -> Permanent:
    return Permanent(
        f"volume {volume.name} lies in several pieces, and such are only read",
        code="volume-not-writable",
        hint="Set guest.fix: false, and repair it by hand where needed.",
    )


def _device(volume: Volume) -> str:
    """Return how e2fsprogs name a file system inside a file (unix_io.c: ``?offset=``)."""
    if volume.offset is None:
        raise _in_pieces(volume)
    return f"{volume.disk.path}?offset={volume.offset}"


def _by_debugfs(volume: Volume, writes: Sequence[Write]) -> None:
    settle(volume)
    system = open_volume(volume)
    if system is None:
        raise Permanent(f"volume {volume.name} is not readable", code="volume-not-writable")
    there = Tree(volume, system)
    made: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="farshore-guest-") as folder:
        lines: list[str] = []
        for index, item in enumerate(writes):
            path = _quoted(item.path)
            # debugfs makes what exists already a second time, and leaves the first without a name: it is asked before.
            found = there.find(item.path, follow=False)
            if found is not None and found.system.kind(found.node) != "file":
                raise Permanent(f"{item.path} is no file on volume {volume.name}", code="volume-not-writable")
            if found is not None:
                lines.append(f"rm {path}")
            if item.content is None:
                continue
            source = Path(folder) / f"{index}"
            source.write_bytes(item.content)
            parts = item.path.strip("/").split("/")[:-1]
            for depth in range(1, len(parts) + 1):
                parent = "/" + "/".join(parts[:depth])
                if parent not in made and not there.exists(parent):
                    lines.append(f"mkdir {_quoted(parent)}")
                    made.add(parent)
            lines += [f"write {source} {path}", f"sif {path} mode 0{0o100000 | item.mode:o}"]
            lines += [f"sif {path} uid {item.owner}", f"sif {path} gid {item.group}"]
        script = Path(folder) / "script"
        script.write_text("\n".join(lines) + "\n")
        done = _run(["debugfs", "-w", "-f", str(script), _device(volume)])
        if done.returncode:
            raise _failure("debugfs", volume, done)
        # debugfs ends well whatever its commands did: what is there now decides.
        for item in writes:
            seen = _cat(volume, item.path, Path(folder) / "seen")
            if seen != item.content:
                raise _failure(f"debugfs did not write {item.path!r}:", volume, done)


def _by_mtools(volume: Volume, writes: Sequence[Write]) -> None:
    if volume.offset is None:
        raise _in_pieces(volume)
    image = f"{volume.disk.path}@@{volume.offset}"
    with tempfile.TemporaryDirectory(prefix="farshore-guest-") as folder:
        source = Path(folder) / "file"
        for item in writes:
            if item.content is None:
                _run(["mdel", "-i", image, f"::{item.path}"])
                continue
            source.write_bytes(item.content)
            parts = item.path.strip("/").split("/")[:-1]
            for depth in range(len(parts)):
                _run(["mmd", "-D", "s", "-i", image, "::/" + "/".join(parts[: depth + 1])])
            done = _run(["mcopy", "-D", "o", "-o", "-i", image, str(source), f"::{item.path}"])
            if done.returncode:
                raise _failure("mcopy", volume, done)


def _cat(volume: Volume, path: str, into: Path) -> bytes | None:
    into.unlink(missing_ok=True)
    _run(["debugfs", "-R", f"dump {_quoted(path)} {into}", _device(volume)])
    return into.read_bytes() if into.exists() else None


def _quoted(path: str) -> str:
    """Return a path as debugfs' command line takes it; one that it could misread is refused."""
    if any(ord(character) < 32 or character in '"\\' for character in path):
        raise Permanent(f"the name {path!r} cannot be written by debugfs", code="volume-not-writable")
    return f'"{path}"'


def _run(argv: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            argv,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=_TIMEOUT_S,
            check=False,
            env={**os.environ, "LC_ALL": "C", "MTOOLS_SKIP_CHECK": "1"},
        )
    except FileNotFoundError as error:
        package = PACKAGES.get(argv[0], "mount")
        raise Permanent(
            f"{argv[0]} is not installed on this node",
            code="missing-tool",
            hint=f"As root: apt-get install {package}",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise Permanent(f"{argv[0]} did not end in {_TIMEOUT_S:g} s", code="tool-hangs") from error


def _failure(tool: str, volume: Volume, done: subprocess.CompletedProcess[str]) -> Permanent:
    said = (done.stderr or done.stdout).strip()[-500:]
    return Permanent(f"{tool} {volume.name} ({volume.content}): {said}", code="volume-not-writable")
