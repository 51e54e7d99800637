"""Block nodes shown as files that read and write like raw disks: a storage daemon does it, by FUSE."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from farshore import durable
from farshore.errors import Permanent
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
def shown(
    launcher: Launcher, folder: Path, machine_id: str, nodes: Mapping[str, dict[str, Any]]
) -> Iterator[dict[str, Path]]:
    """Show a machine's disks as files until the end of the block, by their names.

    Args:
        launcher: starts the daemon.
        folder: where the files appear, in one folder for each machine.
        machine_id: the machine, which is off.
        nodes: ``blockdev-add`` arguments by the names of disks.

    Raises:
        Conflict: an image is in use.
        Permanent: the node cannot show disks as files.
    """
    if not FUSE.exists():
        raise Permanent(
            "this node has no /dev/fuse, so it cannot look into disks",
            code="fuse-missing",
            hint="Load the kernel's module fuse, and let the node's container have /dev/fuse.",
        )
    close(launcher, folder, machine_id)
    place = folder / machine_id
    durable.make_dir(place, 0o700)
    files = {disk: place / f"{disk}.raw" for disk in nodes}
    for path in files.values():
        path.touch()
    exports = [FuseExport(node["node-name"], files[disk]) for disk, node in nodes.items()]
    try:
        launcher.start(f"{KEY}{machine_id}", list(nodes.values()), exports)
        yield files
    finally:
        close(launcher, folder, machine_id)


def close(launcher: Launcher, folder: Path, machine_id: str) -> None:
    """Give a machine's disks back, also those that an earlier life of this node held."""
    launcher.stop(f"{KEY}{machine_id}")
    shutil.rmtree(folder / machine_id, ignore_errors=True)
