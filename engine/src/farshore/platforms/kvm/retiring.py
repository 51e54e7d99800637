"""Machines that were the primary before: fenced and off, their disks kept and read, their names given up.

Until somebody says that they may go: then all that is theirs alone is deleted.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farshore.errors import NotFound, Permanent
from farshore.model.task import RetireResult
from farshore.platforms.existing import OLD_DISK, fenced_later, not_resting
from farshore.platforms.kvm import images, machines, tracking
from farshore.platforms.kvm.connection import Hypervisor, asking
from farshore.platforms.kvm.domain import Domain
from farshore.platforms.kvm.target import KvmTarget
from farshore.units import format_size

if TYPE_CHECKING:
    from farshore.platforms.kvm.compute import KvmCompute


def adopt(hypervisor: Hypervisor, target: KvmTarget, disk_key: str, size_bytes: int, image: str, key: str) -> str:
    """Make a point of an image in the pool, or of the disk of a machine that rests; see ``Platform``.

    Raises:
        NotFound: there is no such machine, or disk.
        Conflict: the machine is not fenced, or not off.
    """
    if not image.startswith(OLD_DISK):
        return target.adopt(disk_key, size_bytes, image, key)
    machine_id, _, disk_id = image.removeprefix(OLD_DISK).partition("/")
    found = _resting(hypervisor.domain(machine_id))
    disk = found.disk(disk_id)
    if disk is None:
        raise NotFound(f"machine {found.name} has no disk {disk_id}", code="disk-unknown", machine_id=machine_id)
    if disk.kind not in {"file", "block"}:
        raise Permanent(
            f"disk {disk_id} of {found.name} is of type {disk.kind} and cannot be read while it is stopped",
            code="disk-network",
        )
    return target.adopt(disk_key, size_bytes, Path(disk.path), key, disk.format)


def give_up_name(handle: Any, epoch: int) -> None:
    """Rename an old primary, so that its successor can have its name. Its disks stay; our tracking of them ends.

    Raises:
        Conflict: the machine is not fenced, or not off.
    """
    found = _resting(handle)
    tracking.forget(handle, tracking.checkpoints(handle))  # libvirt renames no machine that has checkpoints
    name = f"{found.name}-old-{epoch}"
    with asking(f"renaming machine {found.name} to {name}"):
        handle.rename(name, 0)


def _resting(handle: Any) -> Domain:
    found = machines.defined(handle)
    if found.fence is None or machines.power(handle) != "off":
        raise not_resting(found.name, found.machine_id, fenced=found.fence is not None)
    return found


def remove(hypervisor: Hypervisor, target: KvmTarget, compute: KvmCompute, machine_id: str, epoch: int) -> RetireResult:
    """Delete an old primary: its images first, its definition last, so that one cut short is found and gone on with.

    Kept are images that another machine uses or stands on, those that its own stand on, which may be anybody's, and
    what is no file. Points are not told of: they stay or go by other rules.

    Raises:
        NotFound: there is no such machine.
        Conflict: it is not off, not fenced, or in a later epoch: another order counts there.
    """
    handle = hypervisor.domain(machine_id)
    found = _resting(handle)
    fence = found.fence
    if fence is None or not fence.barred or fence.epoch > epoch:
        raise fenced_later(found.name, machine_id, fence.epoch if fence else 0, epoch)
    used = _used_by_others(hypervisor, machine_id)
    removed, kept = [], []
    for disk in found.disks:
        path = Path(disk.path)
        if disk.kind != "file" or disk.read_only:
            kept.append(f"disk {disk.target}: {disk.path or disk.kind} is no image that only this machine writes")
        elif (user := used.get(path.resolve())) is not None:
            kept.append(f"disk {disk.target}: {path} is used by machine {user}")
        else:
            foreign = [each for each in images.below(path) if not each.is_relative_to(target.layers.pool)]
            kept += [f"{below}, which {path} stands on" for below in foreign]
            size = path.stat().st_size if path.exists() else 0
            path.unlink(missing_ok=True)
            removed.append(f"disk {disk.target}: {path} ({format_size(size)})")
    compute.forget(handle)
    return RetireResult(machine_id=machine_id, removed=(*removed, f"machine {found.name}"), kept=tuple(kept))


def _used_by_others(hypervisor: Hypervisor, machine_id: str) -> dict[Path, str]:
    """Return the images that other machines have for disks, or that those stand on, with a machine's name."""
    used: dict[Path, str] = {}
    for other in hypervisor.domains():
        if other.UUIDString() == machine_id:
            continue
        with contextlib.suppress(NotFound):  # removed while we look
            for one in (machines.read(other), machines.defined(other)):
                for path in (Path(disk.path) for disk in one.disks if disk.kind == "file"):
                    used |= {each.resolve(): one.name for each in (path, *images.below(path))}
    return used
