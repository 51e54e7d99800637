"""Snapshots and volumes as blocks in sparse files: which snapshot holds which block, and what descends from what."""

from __future__ import annotations

import os
import threading
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from doubles.aws.sparse import extents

BLOCK: Final = 512 * 1024
BLOCKS_PER_GIB: Final = 2048
ZERO: Final = bytes(BLOCK)


@dataclass(slots=True)
class Snapshot:
    """``index``: block -> the snapshot whose file holds it, inherited ones among them; whole once it is sealed."""

    snapshot_id: str
    region: str
    size_gib: int
    parent: str | None
    lineage: str
    started: float
    timeout_s: float
    kms_key: str | None = None
    state: Literal["pending", "completed", "error"] = "pending"
    message: str = ""
    sealed: bool = False
    seal: tuple[int, str | None] | None = None
    looks: int = 0
    hidden: int = 0
    active: float = 0.0
    own: dict[int, bytes] = field(default_factory=dict)
    index: dict[int, str] = field(default_factory=dict)
    writing: int = 0
    _order: list[int] | None = None

    def order(self) -> list[int]:
        """Return the blocks in order."""
        if self._order is None or len(self._order) != len(self.index):
            self._order = sorted(self.index)
        return self._order


class Blocks:
    """All snapshots and volumes of the account, in all regions. The caller holds the lock, but for a block's bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.snapshots: dict[str, Snapshot] = {}
        self.volumes: dict[str, str | None] = {}  # volume -> the snapshot that its next one descends from
        self._files: dict[str, int] = {}
        self._slots: dict[str, dict[int, int]] = {}  # where a file holds a block: files do not grow with volumes
        self._files_lock = threading.Lock()
        self._diff: tuple[tuple[str, str], list[int]] | None = None
        for name in ("snapshots", "volumes", "images", "devices"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def clear(self) -> None:
        """Forget everything."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()
        self._slots.clear()
        self.snapshots.clear()
        self.volumes.clear()
        self._diff = None
        for name in ("snapshots", "volumes", "images"):
            for path in (self.folder / name).iterdir():
                path.unlink()
        for link in (self.folder / "devices").glob("*/*"):
            link.unlink()

    # --- snapshots

    def put(self, snapshot: Snapshot, index: int, data: bytes | bytearray | memoryview) -> None:
        """Write one block of a pending snapshot. Needs no lock."""
        with self._files_lock:
            slots = self._slots.setdefault(snapshot.snapshot_id, {})
            slot = slots.setdefault(index, len(slots))
        os.pwrite(self._file(snapshot.snapshot_id), data, slot * BLOCK)

    def get(self, snapshot: Snapshot, index: int) -> bytes:
        """Read one block. Needs no lock."""
        holder = snapshot.index[index]
        return os.pread(self._file(holder), BLOCK, self._slots[holder][index] * BLOCK)

    def seal(self, snapshot: Snapshot) -> None:
        """Make its index whole: what it inherits and what it holds itself."""
        inherited = self.snapshots[snapshot.parent].index if snapshot.parent in self.snapshots else {}
        snapshot.index = dict(inherited) | dict.fromkeys(snapshot.own, snapshot.snapshot_id)

    def changed(self, first: Snapshot, second: Snapshot) -> list[int]:
        """Return the blocks that differ between two snapshots, in order."""
        pair = (first.snapshot_id, second.snapshot_id)
        if self._diff is None or self._diff[0] != pair:
            one, other = first.index, second.index
            self._diff = (
                pair,
                sorted(block for block in one.keys() | other.keys() if one.get(block) != other.get(block)),
            )
        return self._diff[1]

    def remove(self, snapshot_id: str) -> None:
        """Take a snapshot away; what others inherited from it stays."""
        gone = self.snapshots.pop(snapshot_id, None)
        if gone is not None:  # the lineage goes on over the gap
            for one in self.snapshots.values():
                if one.parent == snapshot_id and one.sealed:
                    one.parent = gone.parent
            for volume_id, descends_from in self.volumes.items():
                if descends_from == snapshot_id:
                    self.volumes[volume_id] = gone.parent
        if not any(snapshot_id in set(one.index.values()) for one in self.snapshots.values()):
            with self._files_lock:
                self._slots.pop(snapshot_id, None)
                descriptor = self._files.pop(snapshot_id, None)
                if descriptor is not None:
                    os.close(descriptor)
            (self.folder / "snapshots" / snapshot_id).unlink(missing_ok=True)

    def flatten(self, snapshot: Snapshot, path: Path) -> None:
        """Write what a snapshot holds to a raw sparse file."""
        with path.open("wb") as image:
            image.truncate(snapshot.size_gib << 30)
            for block in snapshot.order():
                data = self.get(snapshot, block)
                if data != ZERO:
                    os.pwrite(image.fileno(), data, block * BLOCK)

    def _file(self, snapshot_id: str) -> int:
        with self._files_lock:
            if snapshot_id not in self._files:
                path = self.folder / "snapshots" / snapshot_id
                self._files[snapshot_id] = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            return self._files[snapshot_id]

    # --- volumes

    def volume_path(self, volume_id: str) -> Path:
        """Return where a volume's bytes are."""
        return self.folder / "volumes" / f"{volume_id}.raw"

    def make_volume(self, volume_id: str, size_gib: int, snapshot: Snapshot | None) -> None:
        """Make a volume, empty or with what a snapshot holds."""
        path = self.volume_path(volume_id)
        if snapshot is not None:
            self.flatten(snapshot, path)
        with path.open("ab") as image:
            image.truncate(size_gib << 30)
        self.volumes[volume_id] = snapshot.snapshot_id if snapshot is not None else None

    def grow_volume(self, volume_id: str, size_gib: int) -> None:
        """Make a volume longer."""
        os.truncate(self.volume_path(volume_id), size_gib << 30)

    def drop_volume(self, volume_id: str) -> None:
        """Take a volume away."""
        self.volumes.pop(volume_id, None)
        self.show(volume_id, None)
        self.volume_path(volume_id).unlink(missing_ok=True)

    def devices(self, instance_id: str) -> Path:
        """Return the folder in which an instance sees its volumes: ``/dev/disk/by-id``, as udev fills it.

        https://docs.aws.amazon.com/ebs/latest/userguide/identify-nvme-ebs-device.html
        """
        path = self.folder / "devices" / instance_id
        path.mkdir(exist_ok=True)
        return path

    def show(self, volume_id: str, instance_id: str | None) -> None:
        """Let an instance see a volume; None: nobody sees it any more."""
        name = f"nvme-Amazon_Elastic_Block_Store_{volume_id.replace('-', '')}"
        for link in (self.folder / "devices").glob(f"*/{name}"):
            link.unlink()
        if instance_id is not None:
            (self.devices(instance_id) / name).symlink_to(self.volume_path(volume_id).resolve())

    def capture(self, volume_id: str, snapshot: Snapshot) -> None:
        """Copy what differs between a volume and the snapshot that it descends from, and seal."""
        parent = self.snapshots.get(snapshot.parent) if snapshot.parent else None
        with self.volume_path(volume_id).open("rb") as image:
            size = os.fstat(image.fileno()).st_size
            held = set(_blocks(image.fileno(), size))
            for block in sorted(held | set(parent.index if parent else ())):
                data = os.pread(image.fileno(), BLOCK, block * BLOCK).ljust(BLOCK, b"\0")
                if parent is not None and block in parent.index:
                    if data == self.get(parent, block):
                        continue
                elif data == ZERO:
                    continue
                self.put(snapshot, block, data)
                snapshot.own[block] = b""
        self.seal(snapshot)
        self.volumes[volume_id] = snapshot.snapshot_id


def _blocks(descriptor: int, size: int) -> Iterator[int]:
    for start, end in extents(descriptor, size):
        yield from range(start // BLOCK, -(-end // BLOCK))


def from_block(order: list[int], start: int) -> int:
    """Return the position of the first block at or after ``start``."""
    return bisect_left(order, start)
