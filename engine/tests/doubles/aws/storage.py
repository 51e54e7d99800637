"""EC2's volumes and snapshots as moto keeps them, with what it lacks: their bytes, states that take their time, keys.

Sources: the EC2 API reference (CreateVolume, CreateSnapshots, CopySnapshot, DeleteSnapshot, AttachVolume, error codes).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from doubles.aws.blocks import Snapshot
from doubles.aws.world import World
from moto.core import DEFAULT_ACCOUNT_ID
from moto.core.responses import ActionResult
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models import ec2_backends
from moto.ec2.models.elastic_block_store import EBSBackend, Volume
from moto.ec2.models.elastic_block_store import Snapshot as Ec2Snapshot
from moto.ec2.responses.elastic_block_store import ElasticBlockStore
from moto.kms import kms_backends
from moto.kms.models import KmsBackend


def install(world: World) -> None:
    """Put our methods into moto's classes. Once per process."""
    world.register = _register
    world.key_usable = key_usable
    world.default_key = lambda region: ec2_backends[DEFAULT_ACCOUNT_ID][region]._create_default_encryption_key()
    _keys()
    _volumes(world)
    _snapshots(world)
    _attachments(world)


def key_usable(region: str, key: str) -> bool:
    """Say whether a key is there and enabled; ``key``: its ARN, id or alias."""
    backend = kms_backends[DEFAULT_ACCOUNT_ID][region]
    known = backend.keys.get(backend.any_id_to_key_id(key.rpartition(":key/")[2] or key))
    return known is not None and known.enabled


def _keys() -> None:
    """Let keys be disabled and enabled by their ARN too."""
    for name in ("disable_key", "enable_key"):
        method = getattr(KmsBackend, name)

        def switched(self: Any, key_id: str, method: Any = method) -> None:
            method(self, self.any_id_to_key_id(key_id))

        setattr(KmsBackend, name, switched)


def usable_snapshot(world: World, region: str, snapshot_id: str) -> Snapshot:
    """Return a snapshot that volumes may be made of."""
    snapshot = world.blocks.snapshots.get(snapshot_id)
    if snapshot is None or snapshot.region != region:
        raise EC2ClientError("InvalidSnapshot.NotFound", f"The snapshot '{snapshot_id}' does not exist.")
    world.settle(snapshot)
    if snapshot.state != "completed":
        raise EC2ClientError("IncorrectState", f"Snapshot is in invalid state - {snapshot.state}")
    return snapshot


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


def _volumes(world: World) -> None:
    blocks = world.blocks
    create, delete, modify = EBSBackend.create_volume, EBSBackend.delete_volume, EBSBackend.modify_volume

    def made(self: Any, size: int | None, zone_name: str, snapshot_id: str | None = None, **others: Any) -> Any:
        snapshot = usable_snapshot(world, self.region_name, snapshot_id) if snapshot_id else None
        if snapshot is not None:
            size = int(size or snapshot.size_gib)
            if size < snapshot.size_gib:
                wanted = f"expect size >= {snapshot.size_gib}GB"
                raise EC2ClientError(
                    "InvalidParameterValue", f"Volume of {size}GB is smaller than snapshot '{snapshot_id}', {wanted}"
                )
        if size is not None and not 1 <= int(size) <= 65_536:
            raise EC2ClientError("InvalidParameterValue", f"Volume of {size}GiB is of an invalid size")
        if sum(one.size for one in self.volumes.values()) + int(size or 0) > world.behaviour.quota(
            "volume_gib", self.region_name
        ):
            raise EC2ClientError("VolumeLimitExceeded", "You have exceeded your maximum storage limit in this region")
        key = others.get("kms_key_id") or (snapshot.kms_key if snapshot is not None else None)
        if key:
            others |= {"encrypted": True, "kms_key_id": key}
        volume = create(self, size, zone_name, snapshot_id, **others)
        # The documentation: "If you specify a key that is not valid, the action can appear to complete, but fails".
        volume.broken = volume.kms_key_id is not None and not key_usable(self.region_name, volume.kms_key_id)
        blocks.make_volume(volume.id, volume.size, None if volume.broken else snapshot)
        return volume

    def dropped(self: Any, volume_id: str) -> Any:
        volume = delete(self, volume_id)
        blocks.drop_volume(volume_id)
        return volume

    def modified(self: Any, volume_id: str, target_size: int | None = None, *others: Any, **named: Any) -> Any:
        if target_size and int(target_size) < self.get_volume(volume_id).size:
            raise EC2ClientError("InvalidParameterValue", "New size cannot be smaller than existing size")
        volume = modify(self, volume_id, target_size, *others, **named)
        blocks.grow_volume(volume_id, volume.size)
        return volume

    def status(self: Any) -> str:
        if getattr(self, "broken", False):
            return "error"
        return "in-use" if self.attachment else "available"

    EBSBackend.create_volume = made
    EBSBackend.delete_volume = dropped
    EBSBackend.modify_volume = modified
    Volume.status = property(status)


def _snapshots(world: World) -> None:
    blocks = world.blocks
    create, describe = EBSBackend.create_snapshot, EBSBackend.describe_snapshots
    copy, delete = EBSBackend.copy_snapshot, EBSBackend.delete_snapshot

    def keep(known: Any, region: str, parent: Snapshot | None) -> Snapshot:
        snapshot = Snapshot(
            known.id,
            region,
            known.volume.size,
            parent.snapshot_id if parent else None,
            parent.lineage if parent else known.id,
            world.clock.now(),
            0.0,
            known.kms_key_id,
        )
        snapshot.sealed, snapshot.looks = True, world.behaviour.completion_looks
        blocks.snapshots[known.id] = snapshot
        known.status = "pending"
        return snapshot

    def room(backend: Any) -> None:
        if len(backend.snapshots) >= world.behaviour.quota("snapshots", backend.region_name):
            raise EC2ClientError("SnapshotLimitExceeded", "Maximum allowed snapshot limit exceeded")

    def captured(
        self: Any, volume_id: str, description: str, owner_id: str | None = None, from_ami: str | None = None
    ) -> Any:
        room(self)
        known = create(self, volume_id, description, owner_id, from_ami)
        known.kms_key_id = known.volume.kms_key_id
        parent_id = blocks.volumes.get(volume_id)
        made = keep(known, self.region_name, blocks.snapshots.get(parent_id) if parent_id else None)
        blocks.capture(volume_id, made)
        if volume_id in world.behaviour.failing:
            made.state, made.message = "error", "The snapshot could not be made"
        return known

    def captured_all(self: Any) -> ActionResult:
        """Answer CreateSnapshots: one instant for all volumes of an instance, those left out that were named."""
        wanted = self._get_param("InstanceSpecification", {})
        instance = self.ec2_backend.get_instance(wanted["InstanceId"])
        without = set(wanted.get("ExcludeDataVolumeIds", []))
        no_root = str(wanted.get("ExcludeBootVolume", "")).lower() == "true"
        self.error_on_dryrun()
        made = []
        for device, mapping in instance.get_block_device_mapping:
            if mapping.volume_id in without or (no_root and device == instance.root_device_name):
                continue
            known = self.ec2_backend.create_snapshot(mapping.volume_id, self._get_param("Description", ""))
            if self._get_param("CopyTagsFromSource") == "volume":
                known.add_tags({tag["key"]: tag["value"] for tag in known.volume.tag_set})
            known.add_tags(self._parse_tag_specification().get("snapshot", {}))
            made.append(known)
        if not made:
            raise EC2ClientError("InvalidParameterCombination", "There are no volumes to make snapshots of")
        return ActionResult({"Snapshots": made})

    def described(self: Any, snapshot_ids: list[str] | None = None, filters: Any = None) -> Any:
        for known in self.snapshots.values():
            snapshot = blocks.snapshots.get(known.id)
            if snapshot is not None and (not snapshot_ids or known.id in snapshot_ids):
                world.settle(snapshot, look=True)
                known.status, known.state_message = snapshot.state, snapshot.message or None
        return describe(self, snapshot_ids, filters)

    def copied(self: Any, source_snapshot_id: str, source_region: str, description: str, kms_key_id: str | None) -> Any:
        room(self)
        source = usable_snapshot(world, source_region, source_snapshot_id)
        if source.kms_key is not None and kms_key_id is None and source_region != self.region_name:
            kms_key_id = world.default_key(self.region_name)  # a key is of one region
        known = copy(self, source_snapshot_id, source_region, description, kms_key_id or source.kms_key)
        snapshot = keep(known, self.region_name, None)
        for block in source.order():
            blocks.put(snapshot, block, blocks.get(source, block))
            snapshot.own[block] = b""
        blocks.seal(snapshot)
        return known

    def dropped(self: Any, snapshot_id: str) -> Any:
        for image in self.amis.values():
            for mapping in getattr(image, "mappings", ()):
                if mapping.get("Ebs", {}).get("SnapshotId") == snapshot_id:
                    text = f"The snapshot {snapshot_id} is currently in use by {image.id}"
                    raise EC2ClientError("InvalidSnapshot.InUse", text)
        known = delete(self, snapshot_id)
        blocks.remove(snapshot_id)
        return known

    EBSBackend.create_snapshot = captured
    EBSBackend.describe_snapshots = described
    EBSBackend.copy_snapshot = copied
    EBSBackend.delete_snapshot = dropped
    ElasticBlockStore.create_snapshots = captured_all
    Ec2Snapshot.state = property(lambda self: self.status)
    Ec2Snapshot.progress = property(lambda self: "100%" if self.status == "completed" else "50%")


def _attachments(world: World) -> None:
    attach, detach, describe = EBSBackend.attach_volume, EBSBackend.detach_volume, EBSBackend.describe_volumes

    def attached(self: Any, volume_id: str, instance_id: str, device_path: str, *others: Any) -> Any:
        volume, instance = self.get_volume(volume_id), self.get_instance(instance_id)
        if volume.attachment is not None:
            raise EC2ClientError("VolumeInUse", f"{volume_id} is already attached to an instance")
        launching = bool(others)  # only a launch says what becomes of the volume with the instance
        if volume.status != "available" and not launching:
            raise EC2ClientError("IncorrectState", f"Volume '{volume_id}' is not 'available'")
        if device_path in instance.block_device_mapping:
            raise EC2ClientError("InvalidParameterValue", f"Invalid value '{device_path}' for unixDevice: in use")
        if volume.availability_zone != instance.availability_zone:
            text = f"The volume '{volume_id}' is not in the same availability zone as instance '{instance_id}'"
            raise EC2ClientError("InvalidVolume.ZoneMismatch", text)
        if len(instance.block_device_mapping) >= world.behaviour.attachments and not launching:
            text = f"Volume '{volume_id}': the instance '{instance_id}' has as many volumes as it can have"
            raise EC2ClientError("AttachmentLimitExceeded", text)
        attachment = attach(self, volume_id, instance_id, device_path, *others)
        if not launching:
            attachment.status, attachment.looks = "attaching", world.behaviour.attach_looks
            look(volume)
        return attachment

    def look(volume: Any) -> None:
        held = volume.attachment
        if held is not None and held.status == "attaching":
            held.looks -= 1
            if held.looks < 0:
                held.status = "attached"
                world.blocks.show(volume.id, held.instance.id)

    def described(self: Any, volume_ids: list[str] | None = None, filters: Any = None) -> Any:
        found = describe(self, volume_ids, filters)
        for volume in found:
            look(volume)
        return found

    def detached(self: Any, volume_id: str, instance_id: str | None, device_path: str | None) -> Any:
        volume = self.get_volume(volume_id)
        if volume.attachment is None:
            raise EC2ClientError("IncorrectState", f"Volume '{volume_id}' is in the 'available' state.")
        instance = volume.attachment.instance
        world.blocks.show(volume_id, None)
        return detach(self, volume_id, instance_id or instance.id, device_path)

    asked = ElasticBlockStore.detach_volume

    def refused(self: Any) -> ActionResult:
        volume = self.ec2_backend.get_volume(self._get_param("VolumeId"))
        held = volume.attachment
        on = held is not None and held.instance.state in {"running", "pending"}
        if on and held.device == held.instance.root_device_name:
            text = f"Unable to detach root volume '{held.device}' from instance '{held.instance.id}'"
            raise EC2ClientError("OperationNotPermitted", text)
        return asked(self)

    ElasticBlockStore.detach_volume = refused
    EBSBackend.attach_volume = attached
    EBSBackend.describe_volumes = described
    EBSBackend.detach_volume = detached
