"""Machines that were the primary before: fenced and off, their disks kept and read, their names given up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from farshore.errors import Conflict, NotFound, Permanent
from farshore.platforms.existing import OLD_DISK
from farshore.platforms.kvm import machines, tracking
from farshore.platforms.kvm.connection import Hypervisor, asking
from farshore.platforms.kvm.domain import Domain
from farshore.platforms.kvm.target import KvmTarget


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
        raise Conflict(
            f"machine {found.name} is {'not fenced' if found.fence is None else 'not off'}: it may still be written",
            code="old-primary-not-fenced",
            hint="It is fenced at first contact. Wait for that, or look at its site.",
            machine_id=found.machine_id,
        )
    return found
