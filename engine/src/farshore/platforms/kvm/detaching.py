"""Machines that are here to stay leave the chain of checkpoints: what their disks have only from points is copied up.

QEMU does it while the machine runs (block-stream, libvirt's block pull): a cluster that the disk lacks is copied from
below, and once it has all of them its header names no backing image any more, which is the commit point. The job lives
in the hypervisor: it needs no node while it runs, and one that is cut short at any time keeps what it has copied, so
that the next one goes on from there. docs/internals/kvm.md, "Leaving the chain".
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

from farshore.errors import FarshoreError, NotFound, Retry
from farshore.model.task import DetachResult
from farshore.platforms.kvm import backup, images, machines
from farshore.platforms.kvm.connection import asking, libvirt
from farshore.platforms.kvm.domain import Domain, DomainDisk
from farshore.units import MIB, format_size

#: What a disk's copying takes of the storage where the settings say nothing else, in bytes per second.
RATE: Final = 64 * MIB
#: How long an interrupted job may take to go away.
END_S: Final = 60.0
_POLL_S: Final = 0.01


def standing(found: Domain, recovered: Path) -> list[DomainDisk]:
    """Return the disks of a machine that we made (images in ``recovered``) that need a point to be whole."""
    return [disk for disk in found.disks if Path(disk.path).parent.parent == recovered and _has_backing(disk.path)]


def on_points(folder: Path) -> bool:
    """Say whether an image in the folder of a tag needs a point."""
    return any(_has_backing(path) for path in folder.glob("*.qcow2"))


def _has_backing(path: str | Path) -> bool:
    try:
        return images.header(Path(path)).backing is not None
    except NotFound:
        return False


def advance(handle: Any, recovered: Path, rate: int) -> DetachResult:
    """Look at a machine's copying, and begin what can be begun: one disk at a time, at most ``rate`` bytes per second.

    To be called again until it says ``done``. A machine that is off, or whose point is being read, waits.
    """
    found = machines.read(handle)
    left = standing(found, recovered)
    if not left:
        return DetachResult(machine_id=found.machine_id, state="done", detail="its disks need no checkpoint")
    why = _why_not(handle)
    if why:
        return DetachResult(machine_id=found.machine_id, state="waiting", disks_left=len(left), detail=why)
    with asking(f"copying disks of machine {found.name}"):
        job = next((one for disk in left if (one := _job(handle, disk))), None)
        if job is None:
            flags = libvirt.VIR_DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES
            handle.blockPull(left[0].target, rate, flags)
            job = (left[0].target, rate, 0, 0)
        target, bandwidth, done, total = job
        if bandwidth != rate:
            handle.blockJobSetSpeed(target, rate, libvirt.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES)
    return DetachResult(
        machine_id=found.machine_id,
        state="copying",
        disks_left=len(left),
        done_bytes=done,
        total_bytes=total,
        detail=f"{target}: {format_size(done)} of {format_size(total)}, {len(left)} disks left",
    )


def interrupt(handle: Any) -> None:
    """End what is being copied for a machine that we made, so that a point of it can be taken.

    Raises:
        Retry: the job does not end (``machine-busy``).
    """
    found = machines.read(handle)
    if found.owner is None or not handle.isActive():
        return
    for disk in found.disks:
        deadline = time.monotonic() + END_S
        while (job := _running(handle, disk)) is not None:
            if time.monotonic() > deadline:
                raise Retry(f"the copying of {found.name}/{disk.target} does not end", code="machine-busy", job=job)
            try:
                handle.blockJobAbort(disk.target, 0)
            except libvirt.libvirtError:  # it ends by itself just now
                time.sleep(_POLL_S)


def _running(handle: Any, disk: DomainDisk) -> tuple[str, int, int, int] | None:
    with asking(f"reading the job of disk {disk.target}"):
        return _job(handle, disk)


def _job(handle: Any, disk: DomainDisk) -> tuple[str, int, int, int] | None:
    """Return (target, bytes per second, done, total) of a disk's copying, None if there is none."""
    said = handle.blockJobInfo(disk.target, libvirt.VIR_DOMAIN_BLOCK_JOB_INFO_BANDWIDTH_BYTES)
    if not said or said["type"] != libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_PULL:
        return None
    return disk.target, int(said["bandwidth"]), int(said["cur"]), int(said["end"])


def _why_not(handle: Any) -> str:
    try:
        if machines.power(handle) == "off":
            return "the machine is off; it is copied while it runs"
        if backup.socket_of(handle) is not None:
            return "a point of the machine is being read"
    except FarshoreError as error:
        return error.message
    return ""
