"""The disks of a machine that is off, as files that read and write like raw disks: its own layers, held by us alone.

A storage daemon holds the images (QEMU's own lock keeps everybody else out, the machine too) and shows each as a file
by FUSE. The checkpoint below is open for reading only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from farshore.errors import Conflict
from farshore.platforms.contract import OpenDisk
from farshore.platforms.kvm import images
from farshore.platforms.kvm.domain import DomainDisk
from farshore.platforms.nbd import files
from farshore.platforms.nbd.launcher import Launcher


@contextlib.contextmanager
def opened(
    launcher: Launcher, folder: Path, machine_id: str, disks: Sequence[DomainDisk], owned: Path
) -> Iterator[tuple[OpenDisk, ...]]:
    """Open a machine's disks for writing until the end of the block.

    Args:
        launcher: starts the daemon.
        folder: where the files appear.
        machine_id: the machine, which is off.
        disks: its disks.
        owned: the folder of the layers that we made; nothing else is opened.

    Raises:
        Conflict: a disk is not of ours, or is in use (``image-in-use``).
        Permanent: the node cannot show disks as files.
    """
    for disk in disks:
        if not Path(disk.path).resolve().is_relative_to(owned.resolve()) or disk.format != "qcow2":
            raise Conflict(
                f"disk {disk.target} of machine {machine_id} is no layer of a recovered machine",
                code="disk-not-ours",
                machine_id=machine_id,
                disk=disk.target,
            )
    nodes = {
        disk.target: images.node(f"disk{index}", Path(disk.path), writable=True) for index, disk in enumerate(disks)
    }
    with files.shown(launcher, folder, machine_id, nodes) as paths:
        yield tuple(
            OpenDisk(disk.target, paths[disk.target], paths[disk.target].stat().st_size, disk.bus, boot=disk.boot)
            for disk in disks
        )
