"""Images with what RegisterImage is told, which moto forgets."""

from __future__ import annotations

import base64
from typing import Any, Final

from doubles.aws.storage import usable_snapshot
from doubles.aws.world import World
from moto.core.responses import ActionResult
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models.amis import Ami
from moto.ec2.responses.amis import AmisResponse

_ARCHITECTURES: Final = frozenset({"i386", "x86_64", "arm64", "x86_64_mac", "arm64_mac"})
_BOOT_MODES: Final = frozenset({"legacy-bios", "uefi", "uefi-preferred"})


def install(world: World) -> None:
    """Put our methods into moto's classes. Once per process."""

    def register(self: Any) -> ActionResult:
        name, root = self._get_param("Name", ""), self._get_param("RootDeviceName", "/dev/sda1")
        architecture, boot_mode = self._get_param("Architecture", "i386"), self._get_param("BootMode")
        mappings = self._get_param("BlockDeviceMappings", [])
        backend = self.ec2_backend
        if not 3 <= len(name) <= 128:
            raise EC2ClientError("InvalidAMIName.Malformed", "AMI names must be between 3 and 128 characters long")
        if any(image.name == name and image.owner_id == backend.account_id for image in backend.amis.values()):
            raise EC2ClientError("InvalidAMIName.Duplicate", f"AMI name {name} is already in use")
        if architecture not in _ARCHITECTURES or (boot_mode is not None and boot_mode not in _BOOT_MODES):
            raise EC2ClientError("InvalidParameterValue", f"Invalid value: {architecture}, {boot_mode}")
        if boot_mode in {None, "legacy-bios"} and (self._get_param("TpmSupport") or self._get_param("UefiData")):
            raise EC2ClientError("InvalidParameterCombination", "TpmSupport and UefiData need a boot mode of uefi")
        if uefi := self._get_param("UefiData"):
            base64.b64decode(uefi, validate=True)
        if root not in {mapping["DeviceName"] for mapping in mappings}:
            raise EC2ClientError("InvalidBlockDeviceMapping", "The root device is not in the block device mappings")
        self.error_on_dryrun()
        kept = [_mapping(world, backend.region_name, mapping, root) for mapping in mappings]
        image = backend.register_image(name, self._get_param("Description", ""))
        # Moto makes a snapshot of 15 GiB for each image; nobody does.
        backend.snapshots.pop(image.ebs_snapshot.id)
        world.blocks.remove(image.ebs_snapshot.id)
        image.mappings = kept
        image.root_device_name, image.root_device_type = root, "ebs"
        image.architecture, image.boot_mode = architecture, boot_mode
        image.virtualization_type = self._get_param("VirtualizationType", "paravirtual")
        image.ena_support = bool(self._get_param("EnaSupport"))
        image.tpm_support = self._get_param("TpmSupport")
        image.imds_support = self._get_param("ImdsSupport")
        image.hypervisor, image.platform_details, image.usage_operation = "xen", "Linux/UNIX", "RunInstances"
        image.add_tags(self._parse_tag_specification().get("image", {}))
        return ActionResult({"ImageId": image.id})

    made_by_moto = Ami.block_device_mappings.fget

    def mappings(self: Any) -> list[dict[str, Any]]:
        return getattr(self, "mappings", None) or made_by_moto(self)

    AmisResponse.register_image = register
    Ami.block_device_mappings = property(mappings)


def _mapping(world: World, region: str, mapping: dict[str, Any], root: str) -> dict[str, Any]:
    ebs = dict(mapping.get("Ebs", {}))
    if snapshot_id := ebs.get("SnapshotId"):
        snapshot = usable_snapshot(world, region, snapshot_id)
        if ebs.get("Encrypted") is not None:
            text = "the encrypted flag cannot be specified since device has a snapshot specified."
            raise EC2ClientError("InvalidBlockDeviceMapping", text)
        ebs["Encrypted"] = snapshot.kms_key is not None
        ebs["VolumeSize"] = int(ebs.get("VolumeSize") or snapshot.size_gib)
        if ebs["VolumeSize"] < snapshot.size_gib:
            text = f"Volume of size {ebs['VolumeSize']}GB is smaller than snapshot '{snapshot_id}'"
            raise EC2ClientError("InvalidBlockDeviceMapping", text)
    elif not ebs.get("VolumeSize"):
        raise EC2ClientError("InvalidBlockDeviceMapping", "A size or a snapshot is needed")
    ebs.setdefault("VolumeType", "gp2")
    ebs.setdefault("DeleteOnTermination", mapping["DeviceName"] == root)
    return {"DeviceName": mapping["DeviceName"], "Ebs": ebs}
