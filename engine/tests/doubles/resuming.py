"""A filled group whose copy is broken off and gone on with: shared by the tests of resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from doubles.datapath import Child, Sites
from farshore.blocks.digest import leaf_digest
from farshore.checkpoints.trees import TreeStore
from farshore.model.checkpoint import CycleStats, Manifest
from farshore.model.plan import Transport
from farshore.platforms.contract import Snapshot
from farshore.units import LEAF_SIZE, MIB

MARK = 8 * MIB
LEVEL = 4 * MIB
DISK = 30 * MIB
TRANSPORT = Transport(connections=3, per_disk_window=LEVEL, intermediate_checkpoint_window=MARK, compression="off")


def filled(folder: Path) -> Sites:
    """Return sites with one machine of two disks, every byte of them data."""
    both = Sites(folder, {"db": {"vda": DISK, "vdb": DISK}}, TRANSPORT)
    for disk_id in ("vda", "vdb"):
        for at in range(0, DISK, MIB):
            block = (f"{disk_id} {at // MIB} ".encode() * MIB)[:MIB]
            both.machine("db").write(disk_id, at, block)
    return both


def whole(both: Sites, snapshot: Snapshot, reply: dict[str, Any]) -> CycleStats:
    """Return the stats of a reply whose checkpoint is the source's point, and that left nothing behind."""
    assert "result" in reply, reply
    manifest = Manifest.model_validate(reply["result"]["manifest"])
    content = both.published(manifest)
    assert content == both.frozen(snapshot)
    for disk in manifest.disks:
        store = TreeStore(both.beta.manifests, "reader")
        found = store.read(store.open(disk.point, disk.tree_root), 0, disk.size_bytes // LEAF_SIZE)
        data = content[disk.disk_key]
        assert found == b"".join(leaf_digest(data[at : at + LEAF_SIZE]) for at in range(0, len(data), LEAF_SIZE))
    assert {disk.point for disk in manifest.disks} <= set(both.beta.target.points())
    assert not [point for point in both.beta.target.points() if point.startswith("draft:")]
    assert list(both.journals.iterdir()) == []
    assert both.newest() == manifest
    return CycleStats.model_validate(reply["result"]["stats"])


def when(target: Child, moved_bytes: int) -> None:
    """Wait until a target has told that it moved so much."""
    while True:
        message = json.loads(target.line())
        assert "progress" in message, message
        if message["progress"]["detail"]["moved_bytes"] >= moved_bytes:
            return
