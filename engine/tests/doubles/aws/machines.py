"""EC2 as moto keeps it, with what it lacks: bytes of volumes and snapshots, states that take their time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from doubles.aws.blocks import Snapshot
from doubles.aws.world import World
from moto.core import DEFAULT_ACCOUNT_ID
from moto.ec2.models import ec2_backends
from moto.ec2.models.elastic_block_store import EBSBackend
from moto.ec2.models.elastic_block_store import Snapshot as Ec2Snapshot


def install(world: World) -> None:
    """Put our methods into moto's classes. Once per process."""
    _snapshots(world)


def _register(snapshot: Snapshot, tags: dict[str, str], description: str) -> None:
    """Make a snapshot of the block interfaces known to EC2; its volume has the id that the vendor gives all of them."""
    backend = ec2_backends[DEFAULT_ACCOUNT_ID][snapshot.region]
    volume = SimpleNamespace(id="vol-ffffffff", size=snapshot.size_gib)
    known = Ec2Snapshot(
        backend,
        snapshot.snapshot_id,
        volume=volume,
        description=description,
        encrypted=snapshot.kms_key is not None,
        kms_key_id=snapshot.kms_key,
    )
    known.status = "pending"
    backend.snapshots[snapshot.snapshot_id] = known
    known.add_tags(tags)


def _snapshots(world: World) -> None:
    blocks = world.blocks
    create_volume, delete_volume = EBSBackend.create_volume, EBSBackend.delete_volume
    create_snapshot, describe_snapshots = EBSBackend.create_snapshot, EBSBackend.describe_snapshots
    delete_snapshot = EBSBackend.delete_snapshot

    def made_volume(self: Any, size: int, zone_name: str, snapshot_id: str | None = None, **others: Any) -> Any:
        volume = create_volume(self, size, zone_name, snapshot_id, **others)
        blocks.make_volume(volume.id, volume.size, blocks.snapshots.get(snapshot_id) if snapshot_id else None)
        return volume

    def dropped_volume(self: Any, volume_id: str) -> Any:
        volume = delete_volume(self, volume_id)
        blocks.drop_volume(volume_id)
        return volume

    def captured(
        self: Any, volume_id: str, description: str, owner_id: str | None = None, from_ami: str | None = None
    ) -> Any:
        known = create_snapshot(self, volume_id, description, owner_id, from_ami)
        now, parent_id = world.clock.now(), blocks.volumes.get(volume_id)
        parent = blocks.snapshots.get(parent_id) if parent_id else None
        snapshot = Snapshot(
            known.id,
            self.region_name,
            known.volume.size,
            parent.snapshot_id if parent else None,
            parent.lineage if parent else known.id,
            now,
            0.0,
        )
        snapshot.sealed, snapshot.looks = True, world.behaviour.completion_looks
        blocks.snapshots[known.id] = snapshot
        blocks.capture(volume_id, snapshot)
        known.status = "pending"
        return known

    def described(self: Any, snapshot_ids: list[str] | None = None, filters: Any = None) -> Any:
        for known in self.snapshots.values():
            snapshot = blocks.snapshots.get(known.id)
            if snapshot is not None and (not snapshot_ids or known.id in snapshot_ids):
                world.settle(snapshot, look=True)
                known.status = snapshot.state
        return describe_snapshots(self, snapshot_ids, filters)

    def dropped_snapshot(self: Any, snapshot_id: str) -> Any:
        known = delete_snapshot(self, snapshot_id)
        blocks.remove(snapshot_id)
        return known

    EBSBackend.create_volume = made_volume
    EBSBackend.delete_volume = dropped_volume
    EBSBackend.create_snapshot = captured
    EBSBackend.describe_snapshots = described
    EBSBackend.delete_snapshot = dropped_snapshot
    world.register = _register
