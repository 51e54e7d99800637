"""Points of stopped machines: the images rest, a storage daemon shows them read-only, bitmaps are in the files.

The daemon takes no lock: reading a machine's disk for recovery must not keep anybody from starting the machine.
Instead the image's time of change is compared after each read. It moves before the first write of a guest, because QEMU
marks an image that has bitmaps when it opens it for writing: a reader never returns bytes of a disk that has begun to
live again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from farshore.errors import Conflict, Permanent, RestartFromCheckpoint, Retry
from farshore.model.machine import disk_key
from farshore.platforms.kvm import images, machines, tracking
from farshore.platforms.kvm.domain import Domain, DomainDisk
from farshore.platforms.kvm.points import DirtyBitmap, DiskRecord, FileIdentity, MachineRecord
from farshore.platforms.nbd.launcher import Export, Launcher


def take(handle: Any, found: Domain, checkpoint: str, bases: Mapping[str, tuple[str, str]]) -> list[DiskRecord]:
    """Begin tracking on all disks and return them, each with what can be said about changes since its base.

    Args:
        handle: the stopped domain.
        found: what it is.
        checkpoint: the new point's name.
        bases: per target, the base point's id and checkpoint.

    Raises:
        Retry: the machine started meanwhile.
        Permanent: a disk is not in a file or on a device (``disk-network``).
    """
    disks = [disk for disk in found.disks if not disk.read_only]
    for disk in disks:
        if disk.kind not in {"file", "block"}:
            raise Permanent(
                f"disk {disk.target} of {found.name} is of type {disk.kind} and cannot be read while it is stopped",
                code="disk-network",
                hint="Start the machine, or keep its disk in a file.",
            )
    tracked = [disk for disk in disks if disk.tracked]
    for disk in tracked:
        try:
            if not images.chain(Path(disk.path))[0].bitmap(checkpoint):
                images.add_bitmap(Path(disk.path), checkpoint)
        except Conflict as error:
            raise Retry(f"{found.name} started, or its disk is in use: {error.message}", code="machine-busy") from error
    if tracked:
        others = [disk.target for disk in found.disks if disk not in tracked]
        tracking.adopt(handle, checkpoint, [disk.target for disk in tracked], [*others, *found.other_targets])
    return [_record(handle, found, disk, bases.get(disk.target)) for disk in disks]


def _record(handle: Any, found: Domain, disk: DomainDisk, base: tuple[str, str] | None) -> DiskRecord:
    dirty: tuple[DirtyBitmap, ...] = ()
    reason = "no-base"
    if base and not disk.tracked:
        reason = f"no-bitmaps: {disk.format} images carry none"
    elif base:
        dirty, reason = _dirty(handle, disk, base[1])
    path = Path(disk.path)
    return DiskRecord(
        disk_key=disk_key(found.machine_id, disk.target),
        target=disk.target,
        path=disk.path,
        size_bytes=machines.size_bytes(handle, disk),
        base=base[0] if base else None,
        incremental=bool(dirty),
        reason=reason,
        dirty=dirty,
        identity=identity(path) if disk.kind == "file" else None,
    )


def _dirty(handle: Any, disk: DomainDisk, checkpoint: str) -> tuple[tuple[DirtyBitmap, ...], str]:
    """Return the bitmaps that together hold what changed since ``checkpoint``, or none and the reason.

    Where the disk got overlays since then (an external snapshot), every image from the current one down to the one that
    was written at the time must have the bitmap: a layer without it may hold changes that nobody noted.
    """
    then = tracking.disks_of(handle, checkpoint)
    if then is None:
        return (), f"base-unknown: no checkpoint {checkpoint}"
    if disk.target not in then:
        return (), f"disk-added: {disk.target} was no part of {checkpoint}"
    found: list[DirtyBitmap] = []
    for depth, layer in enumerate(images.chain(Path(disk.path))):
        bitmap = layer.bitmap(checkpoint)
        if bitmap is None or bitmap.in_use:
            what = "was not stored in order" if bitmap else "is missing"
            return (), f"bitmap-broken: {checkpoint} {what} in {layer.path.name}"
        found.append(DirtyBitmap(export=export_name(disk.target, depth), bitmap=checkpoint))
        if layer.path == then[disk.target]:
            return tuple(found), ""
    return (), f"chain-changed: {then[disk.target].name} is not below {disk.target} any more"


def export_name(target: str, depth: int) -> str:
    """Return the export of a disk (depth 0), or of one image of its chain alone."""
    return target if depth == 0 else f"{target}.{depth}"


def identity(path: Path) -> FileIdentity:
    """Return what tells whether somebody wrote to ``path``."""
    status = path.stat()
    return FileIdentity(inode=status.st_ino, size_bytes=status.st_size, mtime_ns=status.st_mtime_ns)


def serve(launcher: Launcher, key: str, found: Domain, disks: list[DiskRecord]) -> MachineRecord:
    """Start the daemon that shows the disks and return the machine's record."""
    nodes: list[dict[str, Any]] = []
    exports: list[Export] = []
    for disk in disks:
        known = found.disk(disk.target)
        image_format = known.format if known else "raw"
        device = bool(known and known.kind == "block")
        layers = images.chain(Path(disk.path), image_format) if len(disk.dirty) > 1 else []
        for depth, dirty in enumerate(disk.dirty or (None,)):
            node = export_name(disk.target, depth)
            bitmaps = (dirty.bitmap,) if dirty else ()
            if depth == 0:
                nodes.append(
                    images.node(node, Path(disk.path), image_format=image_format, device=device, locking=False)
                )
            else:
                nodes.append(images.node(node, layers[depth].path, locking=False, backing=None))
            exports.append(Export(node, node, bitmaps=bitmaps))
    daemon = launcher.start(key, nodes, exports)
    return MachineRecord(machine_id=found.machine_id, running=False, socket=str(daemon.nbd_path), disks=tuple(disks))


def still_rests(handle: Any, disk: DiskRecord) -> None:
    """Return if nobody wrote to the image since the point was taken.

    Raises:
        RestartFromCheckpoint: somebody did (``source-point-gone``).
    """
    if disk.identity is None:
        changed = machines.power(handle) != "off"
    else:
        try:
            changed = identity(Path(disk.path)) != disk.identity
        except FileNotFoundError:
            changed = True
    if changed:
        raise RestartFromCheckpoint(
            f"disk {disk.disk_key} is written again: its machine was started", code="source-point-gone"
        )
