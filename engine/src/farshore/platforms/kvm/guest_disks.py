"""The disks of a machine that is off, as files that read and write like raw disks: its own layers, held by us alone.

A storage daemon holds the images (QEMU's own lock keeps everybody else out, the machine too) and shows each as a file
by FUSE. The checkpoint below is open for reading only.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from farshore import durable
from farshore.errors import Conflict, Permanent
from farshore.platforms.contract import OpenDisk
from farshore.platforms.kvm import images
from farshore.platforms.kvm.domain import DomainDisk
from farshore.platforms.nbd.launcher import Launcher

KEY: Final = "guest:"
FUSE: Final = Path("/dev/fuse")


@dataclass(frozen=True, slots=True)
class FuseExport:
    """A block node that is shown as the file ``path``, which has to exist."""

    node: str
    path: Path

    def options(self) -> dict[str, Any]:
        """Return the argument of ``--export`` (QEMU, qapi/block-export.json)."""
        return {
            "type": "fuse",
            "id": f"export-{self.node}",
            "node-name": self.node,
            "mountpoint": str(self.path),
            "writable": True,
            "growable": False,
        }


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
    if not FUSE.exists():
        raise Permanent(
            "this node has no /dev/fuse, so it cannot look into disks",
            code="fuse-missing",
            hint="Load the kernel's module fuse, and let the node's container have /dev/fuse.",
        )
    key = f"{KEY}{machine_id}"
    close(launcher, folder, machine_id)
    place = folder / machine_id
    durable.make_dir(place, 0o700)
    files = {disk.target: place / f"{disk.target}.raw" for disk in disks}
    for path in files.values():
        path.touch()
    nodes = [images.node(f"disk{index}", Path(disk.path), writable=True) for index, disk in enumerate(disks)]
    exports = [FuseExport(f"disk{index}", files[disk.target]) for index, disk in enumerate(disks)]
    try:
        launcher.start(key, nodes, exports)
        yield tuple(
            OpenDisk(disk.target, files[disk.target], files[disk.target].stat().st_size, disk.bus, boot=disk.boot)
            for disk in disks
        )
    finally:
        close(launcher, folder, machine_id)


def close(launcher: Launcher, folder: Path, machine_id: str) -> None:
    """Give a machine's disks back, also those that an earlier life of this node held."""
    launcher.stop(f"{KEY}{machine_id}")
    shutil.rmtree(folder / machine_id, ignore_errors=True)
