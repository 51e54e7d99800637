"""Making layers independent of the one below, so that it can be removed.

``qemu-img rebase`` would do the same, but changes the header while tables that it depends on may still be in memory: a
kill at the wrong moment would leave a layer that has lost clusters. Here the two halves are apart.

1. *Copy*: every cluster that the lower layer has and the upper one lacks is read through the upper one and written into
   it; flushed, closed. What the upper layer shows does not change; a second run finds less to do.
2. *Point*: the upper layer's header names the layer below the lower one; fsync. Commit point.
3. The caller unlinks the lower layer.

A crash before 2 leaves the upper layer larger than it has to be, after 2 a lower layer on which nothing stands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from farshore.errors import Conflict
from farshore.platforms.kvm import images
from farshore.platforms.kvm.layers import LayerFile, Layers
from farshore.platforms.nbd import protocol as p
from farshore.platforms.nbd.launcher import Export, Launcher
from farshore.units import MIB

KEY: Final = "thin:"
#: Guards against accidents only; that a sealed layer is not written is our doing and QEMU's image locks'.
SEALED_MODE: Final = 0o440
#: QEMU's allocation depth: 1 is the image itself, 2 its backing image (docs/interop/nbd.txt).
_OWN_BACKING: Final = 2


def detach_children(layers: Layers, layer: LayerFile, launcher: Launcher) -> None:
    """Make every layer that stands on ``layer`` stand on the one below it.

    Raises:
        Conflict: ``layer`` or one of its children is leased, or a child is open in another process; nothing changed
            as seen.
    """
    children, used = layers.children(layer)
    for point in (layer.point, *(child.point for child, _ in children)):
        holders = layers.holders(point)
        if holders:
            raise Conflict(
                f"point {point} is in use by {', '.join(holders)}",
                code="point-leased",
                hint="End what uses it, then drop the point again.",
                point=point,
                holders=holders,
            )
    if used:
        raise Conflict(
            f"point {layer.point} carries the disk {used[0]} of a recovered machine",
            code="point-leased",
            point=layer.point,
            holders=[path.parent.name for path in used],
        )
    below = images.header(layer.sealed).backing
    for child, path in children:
        path.chmod(0o640)
        _copy_up(child, path, launcher)
        images.set_backing(path, below)
        if path == child.sealed:
            path.chmod(SEALED_MODE)


def _copy_up(child: LayerFile, path: Path, launcher: Launcher) -> None:
    """Copy what ``path`` shows of its backing image, and of no deeper one, into ``path`` itself."""
    key = f"{KEY}{child.point}"
    node = images.node("disk", path, writable=True)
    daemon = launcher.start(key, [node], [Export("disk", "d", writable=True, depth=True)])
    try:
        depths = daemon.connect("d", [p.ALLOCATION_DEPTH])
        data = daemon.connect("d", [p.ALLOCATION])
        buffer = memoryview(bytearray(MIB))
        for depth in depths.block_status(p.ALLOCATION_DEPTH):
            if depth.flags != _OWN_BACKING:
                continue
            for part in data.block_status(p.ALLOCATION, depth.offset, depth.length):
                if part.flags & p.STATE_ZERO:
                    data.write_zeroes(part.offset, part.length)
                    continue
                for offset in range(part.offset, part.offset + part.length, MIB):
                    piece = buffer[: min(MIB, part.offset + part.length - offset)]
                    data.read_into(offset, piece)
                    data.write(offset, piece)
        data.flush()
        depths.close()
        data.close()
    finally:
        launcher.stop(key)
