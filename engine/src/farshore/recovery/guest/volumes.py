"""What lies on a machine's disks: partitions, logical volumes, and what each holds, told by its first bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Literal

from dissect.volume.disk import Disk
from dissect.volume.lvm import LVM2

from farshore.recovery.guest.broken import BROKEN

Content = Literal["ext", "xfs", "btrfs", "fat", "ntfs", "swap", "lvm", "luks", "bitlocker", "raid", "empty", "unknown"]
#: As much of a volume as tells what it is: btrfs has its superblock at 64 KiB.
_HEAD_BYTES: Final = 0x10000 + 4096
#: (offset, bytes there, what it is); the first that fits.
_MAGIC: Final[tuple[tuple[int, bytes, Content], ...]] = (
    (0, b"LUKS\xba\xbe", "luks"),
    (3, b"-FVE-FS-", "bitlocker"),
    (3, b"NTFS    ", "ntfs"),
    (0, b"XFSB", "xfs"),
    (1080, b"\x53\xef", "ext"),
    (0x10040, b"_BHRfS_M", "btrfs"),
    (4086, b"SWAPSPACE2", "swap"),
    (4096, b"\xfc\x4e\x2b\xa9", "raid"),
    (54, b"FAT", "fat"),
    (82, b"FAT32", "fat"),
    *((512 * sector, b"LABELONE", "lvm") for sector in range(4)),
)
#: Segments of a logical volume that lie on a disk as they are read.
_LINEAR: Final = ("linear", "striped")


@dataclass(frozen=True, slots=True)
class RawDisk:
    """A disk as a file."""

    disk_id: str
    path: Path
    boot: bool = False


@dataclass(frozen=True, slots=True)
class Volume:
    """A partition, a logical volume or a whole disk.

    ``offset`` is where it lies on its disk, None where it lies in more than one piece. ``number`` counts partitions
    from 1; 0 is a whole disk.
    """

    name: str
    disk: RawDisk
    offset: int | None
    size: int
    content: Content
    handle: BinaryIO
    number: int = 0
    partition_id: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """All of a machine's volumes, and the disks without a partition table or anything else that is known."""

    volumes: tuple[Volume, ...]
    bare: tuple[RawDisk, ...]


def tell(handle: BinaryIO) -> Content:
    """Return what a volume holds."""
    handle.seek(0)
    head = handle.read(_HEAD_BYTES)
    for offset, magic, content in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return content
    return "unknown" if any(head) else "empty"


def look(disks: Sequence[RawDisk]) -> Layout:
    """Find the volumes of ``disks``."""
    found: list[Volume] = []
    bare: list[RawDisk] = []
    for disk in disks:
        handle: BinaryIO = disk.path.open("rb")
        size = handle.seek(0, io.SEEK_END)
        content = tell(handle)
        if content not in {"unknown", "empty"}:
            found.append(Volume(disk.disk_id, disk, 0, size, content, handle))
            continue
        partitions = _partitions(disk, handle)
        found += partitions
        if not partitions:
            bare.append(disk)
    return Layout((*found, *_logical([volume for volume in found if volume.content == "lvm"])), tuple(bare))


def _partitions(disk: RawDisk, handle: BinaryIO) -> list[Volume]:
    handle.seek(0)
    try:
        table = Disk(handle)
    except BROKEN:
        return []
    found = []
    for partition in table.partitions:
        try:
            opened: BinaryIO = partition.open()
            content = tell(opened)
        except BROKEN:
            continue
        identity = str(partition.guid or "").lower()
        if not identity and table.serial is not None:
            identity = f"{table.serial:08x}-{partition.number:02x}"
        name = f"{disk.disk_id}{partition.number}"
        place = (partition.offset, partition.size, content, opened, partition.number, identity)
        found.append(Volume(name, disk, *place))
    return found


def _logical(physical: Sequence[Volume]) -> list[Volume]:
    """Return the logical volumes on ``physical``; a group that lacks a disk has none."""
    groups: dict[str, list[Volume]] = {}
    for volume in physical:
        try:
            volume.handle.seek(0)
            groups.setdefault(str(LVM2(volume.handle).vg.name), []).append(volume)
        except BROKEN:
            continue
    found = []
    for name, members in groups.items():
        try:
            for volume in members:
                volume.handle.seek(0)
            group = LVM2([volume.handle for volume in members]).vg
            for logical in group.lv:
                if not logical.is_visible:
                    continue
                opened: BinaryIO = logical.open()
                size = opened.seek(0, io.SEEK_END)
                disk, offset = _one_piece(logical, members, int(group.extent_size) * 512)
                where = f"{name}/{logical.name}"
                found.append(Volume(where, disk, offset, size, tell(opened), opened))
        except BROKEN:
            continue
    return found


def _one_piece(logical: object, members: Sequence[Volume], extent_bytes: int) -> tuple[RawDisk, int | None]:
    """Return where a logical volume lies if it lies in one piece; the offset is None otherwise."""
    segments = list(getattr(logical, "segments", ()))
    nowhere = (members[0].disk, None)
    if len(segments) != 1 or segments[0].type not in _LINEAR or len(getattr(segments[0], "stripes", ())) != 1:
        return nowhere
    physical_name, first_extent = segments[0].stripes[0][:2]
    holders = [pv for pv in logical.volume_group.pv if pv.name == physical_name]  # type: ignore[attr-defined]
    if not holders or len(members) != 1 or members[0].offset is None:
        return nowhere
    start = int(holders[0].pe_start) * 512 + int(first_extent) * extent_bytes
    return members[0].disk, members[0].offset + start
