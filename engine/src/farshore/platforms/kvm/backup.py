"""Pull-mode backup jobs of running domains (https://libvirt.org/kbase/backup-restore): the way to read a point.

One QMP transaction begins the job and the checkpoint over all disks of a domain. The export shows the whole disk as it
was; its bitmap says what changed since the base.
"""

from __future__ import annotations

import contextlib
import re
import time
import xml.etree.ElementTree as ET
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from farshore.errors import NotFound, Retry
from farshore.model.machine import disk_key
from farshore.platforms.kvm import machines, tracking
from farshore.platforms.kvm.connection import CHECKPOINT_INCONSISTENT, asking, code_of, libvirt, translate
from farshore.platforms.kvm.domain import Domain, DomainDisk, element, text
from farshore.platforms.kvm.points import DirtyBitmap, DiskRecord, MachineRecord

#: How long a job may take to go away; its block jobs conclude in milliseconds.
END_S: Final = 60.0
_POLL_S: Final = 0.005
_PATIENCE_S: Final = 0.3
#: libvirt 9.0: missing or broken bitmap '%s' for disk '%s'
_BROKEN: Final = re.compile(r"bitmap '([^']*)' for disk '([^']*)'")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a job of one domain will be, settled before anything is paused for it.

    ``bases`` maps a target to the checkpoint since which changes are wanted; ``reasons`` says why one is missing there.
    """

    handle: Any
    found: Domain
    checkpoint: str
    socket: Path
    scratch: dict[str, Path]
    asked: dict[str, str]
    bases: dict[str, str]
    reasons: dict[str, str]


def plan(handle: Any, point_id: str, bases: Mapping[str, str | None], socket: Path) -> Plan:
    """Settle which disks can tell what changed since their bases (point ids by disk key)."""
    found = machines.read(handle)
    asked: dict[str, str] = {}
    usable: dict[str, str] = {}
    reasons: dict[str, str] = {}
    disks = _disks(found)
    for disk in disks:
        base = bases.get(disk_key(found.machine_id, disk.target))
        if base is None:
            reasons[disk.target] = "no-base"
            continue
        asked[disk.target] = base
        checkpoint = tracking.name(base)
        if not disk.tracked:
            reasons[disk.target] = f"no-bitmaps: {disk.format} images carry none"
        elif (then := tracking.disks_of(handle, checkpoint)) is None:
            reasons[disk.target] = f"base-unknown: no checkpoint {checkpoint}"
        elif disk.target not in then:
            reasons[disk.target] = f"disk-added: {disk.target} was no part of {checkpoint}"
        else:
            usable[disk.target] = checkpoint
    scratch = {disk.target: socket.with_name(f"{socket.stem}-{disk.target}.qcow2") for disk in disks}
    return Plan(handle, found, tracking.name(point_id), socket, scratch, asked, usable, reasons)


def record(made: Plan) -> MachineRecord:
    """Return the record of a machine whose job has begun."""
    disks = []
    for disk in _disks(made.found):
        known = disk.target not in made.reasons
        dirty = (DirtyBitmap(export=disk.target, bitmap=bitmap(disk.target)),) if known else ()
        disks.append(
            DiskRecord(
                disk_key=disk_key(made.found.machine_id, disk.target),
                target=disk.target,
                path=disk.path,
                size_bytes=machines.size_bytes(made.handle, disk),
                base=made.asked.get(disk.target),
                incremental=known,
                reason=made.reasons.get(disk.target, ""),
                dirty=dirty,
            )
        )
    return MachineRecord(machine_id=made.found.machine_id, running=True, socket=str(made.socket), disks=tuple(disks))


def _disks(found: Domain) -> list[DomainDisk]:
    return [disk for disk in found.disks if not disk.read_only]


def bitmap(target: str) -> str:
    """Return the name under which a disk's export tells what changed."""
    return f"{tracking.PREFIX}{target}"


def begin(planned: Plan) -> Plan:
    """Begin a job and a checkpoint over all disks; return the plan as it came true.

    A disk whose bitmap turns out to be broken is read whole, for its reason is known only now.
    """
    found = planned.found
    disks = _disks(found)
    tracked = [disk.target for disk in disks if disk.tracked]
    untracked = [disk.target for disk in found.disks if disk.target not in tracked]
    point = text(tracking.checkpoint_xml(planned.checkpoint, tracked, [*untracked, *found.other_targets]))
    bases, reasons = dict(planned.bases), dict(planned.reasons)
    while True:
        for path in (planned.socket, *planned.scratch.values()):
            path.unlink(missing_ok=True)
        job = text(_job_xml(disks, bases, planned.socket, planned.scratch))
        try:
            # libvirt refuses a checkpoint over no disk.
            planned.handle.backupBegin(job, point if tracked else None, 0)
        except libvirt.libvirtError as error:
            if code_of(error) != CHECKPOINT_INCONSISTENT or not bases:
                raise translate(error, f"beginning a backup of {found.name}") from error
            said = _BROKEN.search(str(error))
            broken = {said[2]} & bases.keys() if said else set()
            for target in broken or set(bases):
                reasons[target] = f"bitmap-broken: {bases.pop(target)} is missing or was not stored in order"
        else:
            return replace(planned, bases=bases, reasons=reasons)


def _job_xml(
    disks: Collection[DomainDisk], bases: Mapping[str, str], socket: Path, scratch: Mapping[str, Path]
) -> ET.Element:
    root = ET.Element("domainbackup", {"mode": "pull"})
    ET.SubElement(root, "server", {"transport": "unix", "socket": str(socket)})
    items = ET.SubElement(root, "disks")
    for disk in disks:
        item = ET.SubElement(
            items, "disk", {"name": disk.target, "backup": "yes", "type": "file", "exportname": disk.target}
        )
        base = bases.get(disk.target)
        if base:
            item.attrib |= {"backupmode": "incremental", "incremental": base, "exportbitmap": bitmap(disk.target)}
        else:
            item.set("backupmode", "full")
        ET.SubElement(item, "driver", {"type": "qcow2"})
        ET.SubElement(item, "scratch", {"file": str(scratch[disk.target])})
    return root


def socket_of(handle: Any) -> Path | None:
    """Return the socket of the domain's backup job; None if there is no job.

    Raises:
        Retry: another job keeps the domain busy (``machine-busy``).
    """
    with asking("reading a machine's job"):
        if not handle.isActive():
            return None
        kind = handle.jobInfo()[0]
        if kind == libvirt.VIR_DOMAIN_JOB_NONE:
            return None
        operation = handle.jobStats().get("operation")
    if operation == libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP:
        with contextlib.suppress(libvirt.libvirtError):  # it ended in between
            server = element(handle.backupGetXMLDesc(0)).find("server")
            return Path(server.get("socket", "") if server is not None else "")
        return None
    raise Retry(f"machine {handle.name()} is busy with another job", code="machine-busy", operation=operation)


def end(handle: Any) -> None:
    """End the domain's backup job and wait until it is gone: the next one is refused while block jobs conclude.

    One thread of libvirtd handles what QEMU reports, of all domains in turn. Where a guest's agent comes or goes during
    a backup, that thread waits for the backup's end (``processSerialChangedEvent``: 30 s a report), which it would have
    to learn by itself (seen with libvirt 9.0). A call that ends a disk's job learns of it in a thread of its own.

    Raises:
        Retry: it does not end (``machine-busy``).
    """
    with contextlib.suppress(libvirt.libvirtError):  # it may end by itself
        handle.abortJob()
    deadline = time.monotonic() + END_S
    wait_s = _POLL_S
    while _is_busy(handle):
        if time.monotonic() > deadline:
            raise Retry(f"the backup job of {handle.name()} does not end", code="machine-busy")
        time.sleep(wait_s)
        if wait_s >= _PATIENCE_S:
            _take_in_ends(handle)
        wait_s = min(2 * wait_s, _PATIENCE_S)


def _is_busy(handle: Any) -> bool:
    with asking("reading a machine's job"):
        return bool(handle.isActive()) and handle.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE


def _take_in_ends(handle: Any) -> None:
    """Make libvirt look at what QEMU reported of the disks' jobs."""
    with contextlib.suppress(NotFound):  # a domain without a definition, switched off in between
        for disk in _disks(machines.read(handle)):
            with contextlib.suppress(libvirt.libvirtError):  # always said: it "is still being ended"
                handle.blockJobAbort(disk.target, 0)
