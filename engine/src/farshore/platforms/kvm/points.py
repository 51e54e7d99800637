"""Records of source points: what a later life of the node has to know to find a point again, or to clear it away."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from farshore import durable
from farshore.errors import NotFound
from farshore.model.base import Report
from farshore.model.checkpoint import Level
from farshore.model.machine import MachineFacts
from farshore.platforms.contract import Snapshot, SnapshotDisk


class DirtyBitmap(Report):
    """Where a bitmap of the base can be asked for: an export and the name in its meta context."""

    export: str
    bitmap: str


class FileIdentity(Report):
    """What changes when somebody writes an image that should rest."""

    inode: int
    size_bytes: int
    mtime_ns: int


class DiskRecord(Report):
    """One disk of a point. ``dirty``: all bitmaps whose union is what changed since ``base``."""

    disk_key: str
    target: str
    path: str
    size_bytes: int
    base: str | None = None
    incremental: bool = False
    reason: str = ""
    dirty: tuple[DirtyBitmap, ...] = ()
    identity: FileIdentity | None = None


class MachineRecord(Report):
    """One machine of a point. ``socket`` serves its disks, one export per target."""

    machine_id: str
    running: bool
    socket: str
    disks: tuple[DiskRecord, ...] = ()
    facts: MachineFacts | None = None


class PointRecord(Report):
    """A point: ``beginning`` until it is whole, then ``open`` until it is released.

    ``paused`` and ``frozen`` name the machines that are about to be, so that a later life lets them go.
    """

    point_id: str
    group_id: str
    state: Literal["beginning", "open"] = "beginning"
    taken_at: float = 0.0
    level: Level = "machine"
    evidence: dict[str, Any] = {}
    machines: tuple[MachineRecord, ...] = ()
    paused: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()

    def snapshot(self) -> Snapshot:
        """Return the point as the contract names it."""
        return Snapshot(
            point_id=self.point_id,
            group_id=self.group_id,
            taken_at=self.taken_at,
            level=self.level,
            machines=tuple(machine.facts for machine in self.machines if machine.facts),
            disks=tuple(
                SnapshotDisk(disk.disk_key, disk.size_bytes, disk.incremental, disk.reason)
                for machine in self.machines
                for disk in machine.disks
            ),
            evidence=self.evidence,
        )

    def disk(self, disk_key: str) -> tuple[MachineRecord, DiskRecord]:
        """Return a disk and its machine; NotFound."""
        for machine in self.machines:
            for disk in machine.disks:
                if disk.disk_key == disk_key:
                    return machine, disk
        raise NotFound(f"point {self.point_id} has no disk {disk_key}", point=self.point_id, disk_key=disk_key)


def short(text: str) -> str:
    """Return a short file name for any text: socket names have little room."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Points:
    """The records below one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        durable.make_dir(folder)

    def _path(self, point_id: str) -> Path:
        return self._folder / f"{short(point_id)}.json"

    def load(self, point_id: str) -> PointRecord | None:
        """Return a record."""
        with contextlib.suppress(FileNotFoundError):
            return PointRecord.model_validate_json(self._path(point_id).read_bytes())
        return None

    def save(self, record: PointRecord) -> None:
        """Write a record, durable on return."""
        durable.write(self._path(record.point_id), record.model_dump_json(indent=1).encode())

    def remove(self, point_id: str) -> None:
        """Remove a record."""
        durable.remove(self._path(point_id))

    def all(self) -> Iterator[PointRecord]:
        """Yield all records."""
        for path in sorted(self._folder.glob("*.json")):
            with contextlib.suppress(FileNotFoundError):
                yield PointRecord.model_validate_json(path.read_bytes())
