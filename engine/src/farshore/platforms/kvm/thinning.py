"""Taking one layer out of a chain while what its neighbours show stays the same.

With ``below`` ← ``gone`` ← ``child`` there are two ways to make do without ``gone``:

*up*: every cluster that ``gone`` has and ``child`` lacks is written into ``child``; then ``child``'s header names
``below`` (commit point); then ``gone`` is unlinked. Works for any number of children.

*down*: every cluster of ``child`` is written into ``gone``; then ``gone`` is renamed over ``child`` (commit point).
``child`` hides those clusters all the while, so what it shows does not change. Only ``gone`` itself shows something
else from the first write on, and it is marked as going before that.

The cheaper one is taken: *down* for the oldest layer, which holds the whole disk, *up* for a small one below a large
one. Both can be cut short at any point and begun again, in either direction. ``qemu-img rebase`` is not used for *up*:
it changes the header while tables that the new header relies on may still be in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from farshore import durable
from farshore.errors import Conflict
from farshore.platforms.kvm import images
from farshore.platforms.kvm.layers import LayerFile, Layers
from farshore.platforms.nbd import protocol as p
from farshore.platforms.nbd.client import Connection, Status
from farshore.platforms.nbd.launcher import Export, Launcher
from farshore.units import MIB

KEY: Final = "thin:"
#: Guards against accidents only; that a sealed layer is not written is our doing and QEMU's image locks'.
SEALED_MODE: Final = 0o440
_WRITABLE_MODE: Final = 0o640
#: QEMU's allocation depth: 1 is the image itself, 2 its backing image (docs/interop/nbd.txt).
_OWN: Final = 1
_OWN_BACKING: Final = 2


def check(layers: Layers, layer: LayerFile, launcher: Launcher) -> None:
    """Raise what :func:`take_out` would raise now: the images that it would write are opened, and closed again."""
    children = _free(layers, layer)
    if len(children) == 1 and _down_is_better(layer.sealed, children[0][1]):
        _try_to_open(layer, _nodes_down(layer, children[0][1]), launcher)
        return
    for _, path in children:
        _try_to_open(layer, [images.node("disk", path, writable=True)], launcher)


def _try_to_open(layer: LayerFile, nodes: list[dict[str, Any]], launcher: Launcher) -> None:
    key = f"{KEY}{layer.point}"
    written = Path(nodes[0]["file"]["filename"])
    mode = written.stat().st_mode
    written.chmod(_WRITABLE_MODE)
    try:
        launcher.start(key, nodes, [])
    finally:
        launcher.stop(key)
        written.chmod(mode)


def take_out(layers: Layers, layer: LayerFile, launcher: Launcher) -> None:
    """Remove a sealed layer's image from its chain.

    Raises:
        Conflict: it or one of its children is leased or open elsewhere (``point-leased``, ``image-in-use``).
    """
    children = _free(layers, layer)
    if len(children) == 1 and _down_is_better(layer.sealed, children[0][1]):
        _down(layer, *children[0], launcher)
        return
    for child, path in children:
        _up(layer, child, path, launcher)
    durable.remove(layer.sealed)


def _free(layers: Layers, layer: LayerFile) -> list[tuple[LayerFile, Path]]:
    """Return the children of a layer that nobody needs as it is."""
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
    return children


def _down_is_better(gone: Path, child: Path) -> bool:
    if gone.parent != child.parent or images.header(gone).size_bytes != images.header(child).size_bytes:
        return False
    return child.stat().st_blocks <= gone.stat().st_blocks


def _up(gone: LayerFile, child: LayerFile, path: Path, launcher: Launcher) -> None:
    key = f"{KEY}{gone.point}"
    path.chmod(_WRITABLE_MODE)
    node = images.node("disk", path, writable=True)
    daemon = launcher.start(key, [node], [Export("disk", "d", writable=True, depth=True)])
    try:
        depths, data = daemon.connect("d", [p.ALLOCATION_DEPTH]), daemon.connect("d", [p.ALLOCATION])
        _copy(_at_depth(depths, _OWN_BACKING), data, data)
    finally:
        launcher.stop(key)
    images.set_backing(path, images.header(gone.sealed).backing)
    if path == child.sealed:
        path.chmod(SEALED_MODE)


def _down(gone: LayerFile, child: LayerFile, path: Path, launcher: Launcher) -> None:
    key = f"{KEY}{gone.point}"
    gone.sealed.chmod(_WRITABLE_MODE)
    nodes = _nodes_down(gone, path)
    exports = [Export("gone", "gone", writable=True), Export("child", "child", depth=True)]
    daemon = launcher.start(key, nodes, exports)
    try:
        gone.mark_dropping()  # the daemon has the image locks now: nobody else can refuse
        depths, data = daemon.connect("child", [p.ALLOCATION_DEPTH]), daemon.connect("child", [p.ALLOCATION])
        _copy(_at_depth(depths, _OWN), data, daemon.connect("gone"))
    finally:
        launcher.stop(key)
    if path == child.sealed:
        gone.sealed.chmod(SEALED_MODE)
    images.fsync(gone.sealed)
    gone.sealed.rename(path)
    durable.fsync_dir(path.parent)


def _nodes_down(gone: LayerFile, path: Path) -> list[dict[str, Any]]:
    return [images.node("gone", gone.sealed, writable=True), images.node("child", path, backing=None)]


def _at_depth(connection: Connection, depth: int) -> Iterator[Status]:
    return (part for part in connection.block_status(p.ALLOCATION_DEPTH) if part.flags == depth)


def _copy(parts: Iterator[Status], source: Connection, sink: Connection) -> None:
    """Copy ``parts``, zeroes as zeroes, durable on return."""
    buffer = memoryview(bytearray(MIB))
    for whole in parts:
        for part in source.block_status(p.ALLOCATION, whole.offset, whole.length):
            if part.flags & p.STATE_ZERO:
                sink.write_zeroes(part.offset, part.length)
                continue
            for offset in range(part.offset, part.offset + part.length, MIB):
                piece = buffer[: min(MIB, part.offset + part.length - offset)]
                source.read_into(offset, piece)
                sink.write(offset, piece)
    sink.flush()
