"""Machines that are folders: ``machine.json`` and one raw image per disk, with a log of what was written.

    machines/<machine>/machine.json            MachineFacts
    machines/<machine>/<disk>.img              the disk
    machines/<machine>/changes/<point>/<disk>  a bitmap: one bit per 64 KiB block written since the point

Whoever writes to a disk does it through :class:`FileMachine`, which sets the bits before the data is written. The same
lock is held while a point is taken, so a point is one instant over all disks of a machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from farshore import durable
from farshore.errors import Invalid, NotFound
from farshore.model.machine import DiskFacts, MachineFacts

#: Bytes of a disk per bit of a change bitmap.
BLOCK: Final = 64 * 1024


class FileMachine:
    """One machine in its folder."""

    def __init__(self, root: Path, machine_id: str) -> None:
        if not machine_id or machine_id.startswith(".") or "/" in machine_id:
            raise Invalid(f"{machine_id!r} is no machine's id", code="machine-id", field="machine_id")
        self.machine_id = machine_id
        self.path = root / "machines" / machine_id
        self.changes = self.path / "changes"
        if not (self.path / "machine.json").exists():
            raise NotFound(
                f"machine {machine_id} does not exist in {root}", code="machine-not-found", machine=machine_id
            )

    @classmethod
    def create(cls, root: Path, machine_id: str, disks: Mapping[str, int], *, name: str | None = None) -> FileMachine:
        """Make a machine with empty disks of the given sizes in bytes."""
        path = root / "machines" / machine_id
        durable.make_dir(path)
        for disk_id, size in disks.items():
            with (path / f"{disk_id}.img").open("xb") as image:
                image.truncate(size)
        facts = MachineFacts(
            machine_id=machine_id,
            name=name or machine_id,
            power="on",
            disks=tuple(
                DiskFacts(disk_id=disk_id, size_bytes=size, path=str(path / f"{disk_id}.img"), boot=index == 0)
                for index, (disk_id, size) in enumerate(disks.items())
            ),
        )
        durable.write(path / "machine.json", facts.model_dump_json(indent=1).encode())
        return cls(root, machine_id)

    @property
    def facts(self) -> MachineFacts:
        """What the machine is, its disks' sizes read from the images.

        Raises:
            Invalid: ``machine.json`` is not well-formed.
        """
        try:
            facts = MachineFacts.model_validate(json.loads((self.path / "machine.json").read_bytes()))
        except ValueError as error:
            raise Invalid(
                f"{self.path / 'machine.json'} is not well-formed: {error}", code="machine-json", field="machine.json"
            ) from error
        disks = tuple(
            disk.model_copy(update={"size_bytes": self.image(disk.disk_id).stat().st_size}) for disk in facts.disks
        )
        return facts.model_copy(update={"machine_id": self.machine_id, "disks": disks})

    def image(self, disk_id: str) -> Path:
        """Return the path of a disk's image."""
        path = self.path / f"{disk_id}.img"
        if not path.exists():
            raise NotFound(f"machine {self.machine_id} has no disk {disk_id}", code="disk-not-found", disk=disk_id)
        return path

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Hold all writers off."""
        fd = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def write(self, disk_id: str, offset: int, data: bytes) -> None:
        """Write to a disk as its guest would; every bitmap of the disk learns of it first."""
        with self.paused(), self.image(disk_id).open("r+b") as image:
            if offset + len(data) > os.fstat(image.fileno()).st_size:
                raise Invalid("the write reaches over the end of the disk", code="disk-size", field="offset")
            self._note(disk_id, offset, len(data))
            os.pwrite(image.fileno(), data, offset)

    def discard(self, disk_id: str, offset: int, length: int) -> None:
        """Trim a range of a disk: it reads as zero, and its blocks are given back."""
        from farshore.platforms.file.sparse import punch_hole

        with self.paused(), self.image(disk_id).open("r+b") as image:
            self._note(disk_id, offset, length)
            punch_hole(image.fileno(), offset, length)

    def track(self, point_id: str) -> None:
        """Begin a bitmap for every disk; called while the machine is paused."""
        folder = self.changes / point_id
        durable.make_dir(folder)
        for disk in self.facts.disks:
            durable.write(folder / disk.disk_id, bytes(-(-disk.size_bytes // (8 * BLOCK))))

    def changed_blocks(self, disk_id: str, point_id: str) -> bytes | None:
        """Return the bitmap of what was written since a point; None where there is none, or not of the disk's size."""
        try:
            bitmap = (self.changes / point_id / disk_id).read_bytes()
        except FileNotFoundError:
            return None
        return bitmap if len(bitmap) == -(-self.image(disk_id).stat().st_size // (8 * BLOCK)) else None

    def tracked_points(self) -> list[str]:
        """Return the points that a bitmap counts from."""
        return sorted(path.name for path in self.changes.iterdir()) if self.changes.is_dir() else []

    def untrack(self, point_id: str) -> None:
        """Remove the bitmaps of a point."""
        folder = self.changes / point_id
        if folder.is_dir():
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
            durable.fsync_dir(self.changes)

    def _note(self, disk_id: str, offset: int, length: int) -> None:
        if length <= 0:
            return
        first, last = offset // BLOCK, (offset + length - 1) // BLOCK
        for point_id in self.tracked_points():
            path = self.changes / point_id / disk_id
            if not path.exists():
                continue
            with path.open("r+b") as bitmap:
                size = last // 8 - first // 8 + 1
                bits = bytearray(os.pread(bitmap.fileno(), size, first // 8))
                for block in range(first, last + 1):
                    at = block // 8 - first // 8
                    if at < len(bits):
                        bits[at] |= 1 << (block % 8)
                os.pwrite(bitmap.fileno(), bits, first // 8)


def machines(root: Path) -> list[FileMachine]:
    """Return all machines below ``root``, by id."""
    folder = root / "machines"
    if not folder.is_dir():
        return []
    return [FileMachine(root, path.name) for path in sorted(folder.iterdir()) if (path / "machine.json").exists()]
