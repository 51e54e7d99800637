"""Instances with what moto lacks: states that take some looks, refusals, what an image brings along, what they say.

Sources: the EC2 API reference (RunInstances, DescribeInstanceStatus, GetConsoleOutput and the table of error codes).
"""

from __future__ import annotations

import base64
from datetime import timedelta
from typing import Any, Final

from doubles.aws.storage import key_usable, usable_snapshot
from doubles.aws.world import World
from moto.core.responses import ActionResult
from moto.core.utils import utcnow
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models.instance_types import INSTANCE_TYPES
from moto.ec2.models.instances import Instance, InstanceBackend, InstanceState, StateReason
from moto.ec2.responses.elastic_network_interfaces import ElasticNetworkInterfaces
from moto.ec2.responses.general import General
from moto.ec2.utils import Base64EncodedString

_PASSING: Final = {"running": ("pending", 0), "stopped": ("stopping", 64), "terminated": ("shutting-down", 32)}
#: A picture of one pixel, as GetConsoleScreenshot gives pictures: JPEG.
_SCREEN: Final = base64.b64encode(
    base64.b64decode(
        "/9j/4AAQSkZJRgABAQEASABIAAD/2wBDAAMCAgICAgMCAgIDAwMDBAYEBAQEBAgGBgUGCQgKCgkICQkKDA8MCgsOCwkJDRENDg8QEBEQCgwSExI"
        "QEw8QEBD/yQALCAABAAEBAREA/8wABgAQEAX/2gAIAQEAAD8A0s8g/9k="
    )
).decode()


def install(world: World, consoles: dict[str, str]) -> None:
    """Put our methods into moto's classes. Once per process."""
    _states(world)
    _running(world)
    _saying(world, consoles)
    _interfaces()


def _settle(instance: Any) -> None:
    """Count one look at an instance."""
    looks = getattr(instance, "looks", 0)
    instance.looks = max(looks - 1, -1)
    if instance.looks < 0 and getattr(instance, "doomed", None) and instance._state.name == "running":
        instance.terminate()
        instance.looks, instance.state_reason = (
            -1,
            StateReason(instance.doomed, instance.doomed.split(":", maxsplit=1)[0]),
        )


def _begin(world: World, instance: Any) -> None:
    """Let a new state take its looks."""
    instance.looks, instance.status_looks = world.behaviour.state_looks or -1, world.behaviour.status_looks


def _states(world: World) -> None:
    def state(self: Any) -> InstanceState:
        if getattr(self, "looks", -1) >= 0 and self._state.name in _PASSING:
            return InstanceState(*_PASSING[self._state.name])
        return self._state

    Instance.instance_state = property(state)
    Instance.state = property(lambda self: state(self).name)
    Instance.state_code = property(lambda self: state(self).code)
    Instance.is_running = lambda self: state(self).name == "running"

    describe, by_id = InstanceBackend.describe_instances, InstanceBackend.get_reservations_by_instance_ids

    def described(self: Any, filters: Any = None) -> Any:
        for instance in self.all_instances():
            if instance.id not in world.held:
                _settle(instance)
        return describe(self, filters)

    def described_by_id(self: Any, instance_ids: list[str], filters: Any = None) -> Any:
        for instance in self.all_instances():
            if instance.id in instance_ids and instance.id not in world.held:
                _settle(instance)
        return by_id(self, instance_ids, filters)

    InstanceBackend.describe_instances = described
    InstanceBackend.get_reservations_by_instance_ids = described_by_id

    def changing(name: str, allowed: frozenset[str], text: str) -> None:
        method = getattr(InstanceBackend, name)

        def changed(self: Any, instance_ids: list[str]) -> Any:
            for instance in self.get_multi_instances_by_id(instance_ids):
                if instance.state not in allowed:
                    raise EC2ClientError("IncorrectInstanceState", f"The instance '{instance.id}' {text}")
            result = method(self, instance_ids)
            for instance, previous in result:
                if previous.name != instance._state.name:
                    _begin(world, instance)
                    if name == "start_instances":
                        # Times are told in seconds, and nothing starts within the second in which it got a volume.
                        instance.launch_time = utcnow() + timedelta(seconds=1)
                    for held in instance.block_device_mapping.values():
                        _check_key(self, instance, held.volume_id)
            return result

        setattr(InstanceBackend, name, changed)

    on = frozenset({"running", "pending"})
    changing("start_instances", on | {"stopped"}, "is not in a state from which it can be started.")
    changing("stop_instances", on | {"stopping", "stopped"}, "is not in a state from which it can be stopped.")
    changing("terminate_instances", on | {"stopping", "stopped", "shutting-down", "terminated"}, "cannot be terminated")


def _check_key(backend: Any, instance: Any, volume_id: str) -> None:
    """An instance whose volume cannot be decrypted is terminated a while after it was launched or stays stopped."""
    key = backend.get_volume(volume_id).kms_key_id
    if key and not key_usable(backend.region_name, key) and instance._state.name == "running":
        instance.doomed = "Client.InvalidKMSKey.InvalidState: The KMS key provided is in an incorrect state"


def _running(world: World) -> None:
    run = InstanceBackend.run_instances

    def started(self: Any, image_id: str, count: int, user_data: Any, groups: list[str], **others: Any) -> Any:
        type_name, zone = others["instance_type"], others.get("placement")
        image = self.amis.get(image_id)
        if image is None:
            raise EC2ClientError("InvalidAMIID.NotFound", f"The image id '[{image_id}]' does not exist")
        nics = others.get("nics") or []
        subnet_id = others.get("subnet_id") or next((nic["SubnetId"] for nic in nics if nic.get("SubnetId")), None)
        held = next((nic["NetworkInterfaceId"] for nic in nics if nic.get("NetworkInterfaceId")), None)
        if held is not None:
            interface = self.get_network_interface(held)
            if interface.status == "in-use":
                raise EC2ClientError("InvalidNetworkInterface.InUse", f"Interface: [{held}] in use.")
            subnet_id = subnet_id or interface.subnet.id
        if subnet_id:
            zone = self.get_subnet(subnet_id).availability_zone
        _check_type(world, self, type_name, zone, image, count)
        if "block_device_mappings" in others:
            others["block_device_mappings"] = _merged(image, others["block_device_mappings"])
        elif getattr(image, "mappings", None):
            others["block_device_mappings"] = _merged(image, [])
        for mapping in others.get("block_device_mappings", []):
            if snapshot_id := mapping["Ebs"].get("SnapshotId"):
                usable_snapshot(world, self.region_name, snapshot_id)
        for nic in nics:
            if not nic.get("NetworkInterfaceId") and nic.get("DeleteOnTermination") is None:
                nic["DeleteOnTermination"] = True  # the documented default of interfaces that a launch makes
        reservation = run(self, image_id, count, user_data, groups, **others)
        for instance in reservation.instances:
            _begin(world, instance)
            if not instance.security_groups and 0 in instance.nics:
                instance.security_groups = list(instance.nics[0]._group_set)
            if not nics and 0 in instance.nics:
                instance.nics[0].delete_on_termination = True
            details = getattr(image, "platform_details", None)
            instance.platform_details, instance.usage_operation = details, getattr(image, "usage_operation", None)
            instance.boot_mode, instance.ena_support = image.boot_mode, getattr(image, "ena_support", True)
            for _, block in instance.get_block_device_mapping:
                _check_key(self, instance, block.volume_id)
        return reservation

    InstanceBackend.run_instances = started


def _check_type(world: World, backend: Any, type_name: str, zone: str | None, image: Any, count: int) -> None:
    facts = INSTANCE_TYPES.get(type_name)
    if facts is None:
        raise EC2ClientError("InvalidParameterValue", f"Invalid value '{type_name}' for InstanceType.")
    if type_name in world.behaviour.not_offered.get(zone or "", []):
        text = f"The instance type ({type_name}) is not supported in your requested Availability Zone ({zone})."
        raise EC2ClientError("Unsupported", text)
    if type_name in world.behaviour.no_capacity:
        text = f"We do not have sufficient {type_name} capacity in the Availability Zone you requested ({zone})."
        raise EC2ClientError("InsufficientInstanceCapacity", text)
    used = sum(
        INSTANCE_TYPES[one.instance_type]["VCpuInfo"]["DefaultVCpus"]
        for one in backend.all_instances()
        if one._state.name == "running"
    )
    most = world.behaviour.quota("vcpus", backend.region_name)
    if used + count * facts["VCpuInfo"]["DefaultVCpus"] > most:
        text = f"You have requested more vCPU capacity than your current vCPU limit of {most} allows."
        raise EC2ClientError("VcpuLimitExceeded", text)
    offered = facts["ProcessorInfo"]["SupportedArchitectures"]
    if image.architecture not in offered:
        text = f"The architecture '{offered[0]}' of the specified instance type does not match '{image.architecture}'"
        raise EC2ClientError("InvalidParameterValue", f"{text}, the architecture of the specified AMI.")
    modes = facts.get("SupportedBootModes", ["legacy-bios", "uefi"])
    if image.boot_mode in {"uefi", "legacy-bios"} and getattr(image, "mappings", None) and image.boot_mode not in modes:
        text = f"The instance type '{type_name}' does not support the boot mode '{image.boot_mode}' of the AMI."
        raise EC2ClientError("InvalidParameterCombination", text)


def _merged(image: Any, wanted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return an image's mappings with those of a launch on top, as a launch does it."""
    merged: dict[str, dict[str, Any]] = {}
    for mapping in getattr(image, "mappings", ()):
        merged[mapping["DeviceName"]] = {"DeviceName": mapping["DeviceName"], "Ebs": dict(mapping["Ebs"])}
    for mapping in wanted:
        name = mapping["DeviceName"]
        if mapping.get("NoDevice") == "":
            merged.pop(name, None)
            continue
        known = merged.setdefault(name, {"DeviceName": name, "Ebs": {}})["Ebs"]
        known |= {key: value for key, value in mapping["Ebs"].items() if value is not None}
    for mapping in merged.values():
        # Encryption of a volume that a snapshot is restored to is the snapshot's.
        if mapping["Ebs"].get("SnapshotId") and not mapping["Ebs"].get("KmsKeyId"):
            mapping["Ebs"].pop("Encrypted", None)
    return list(merged.values())


def _saying(world: World, consoles: dict[str, str]) -> None:
    def console(self: Any) -> ActionResult:
        instance = self.ec2_backend.get_instance(self._get_param("InstanceId"))
        text = consoles.get(instance.id, world.behaviour.console)
        output = Base64EncodedString.from_raw_string(text) if text else None
        return ActionResult({"InstanceId": instance.id, "Timestamp": utcnow(), "Output": output})

    def screen(self: Any) -> ActionResult:
        instance = self.ec2_backend.get_instance(self._get_param("InstanceId"))
        if instance.state != "running":
            raise EC2ClientError("IncorrectInstanceState", f"The instance '{instance.id}' is not running")
        return ActionResult({"InstanceId": instance.id, "ImageData": _SCREEN})

    statuses = InstanceBackend.describe_instance_status

    def described(self: Any, instance_ids: list[str], include_all_instances: bool, filters: Any) -> Any:
        for instance in self.all_instances():
            if not instance_ids or instance.id in instance_ids:
                _settle(instance)
                if instance.state == "running":
                    instance.status_looks = getattr(instance, "status_looks", 0) - 1
        return statuses(self, instance_ids, include_all_instances, filters)

    def status(self: Any) -> dict[str, Any]:
        if self.state != "running":
            return {"Status": "not-applicable"}
        if self.id in world.behaviour.impaired:
            return {"Status": "impaired", "Details": [{"Name": "reachability", "Status": "failed"}]}
        if getattr(self, "status_looks", 0) >= 0:
            return {"Status": "initializing", "Details": [{"Name": "reachability", "Status": "initializing"}]}
        return {"Status": "ok", "Details": [{"Name": "reachability", "Status": "passed"}]}

    General.get_console_output = console
    General.get_console_screenshot = screen
    InstanceBackend.describe_instance_status = described
    Instance.instance_status = property(status)
    Instance.system_status = property(status)


def _interfaces() -> None:
    delete = ElasticNetworkInterfaces.delete_network_interface

    def deleted(self: Any) -> ActionResult:
        interface = self.ec2_backend.get_network_interface(self._get_param("NetworkInterfaceId"))
        if interface.instance is not None and interface.instance._state.name != "terminated":
            raise EC2ClientError("InvalidParameterValue", f"Network interface '{interface.id}' is currently in use.")
        return delete(self)

    ElasticNetworkInterfaces.delete_network_interface = deleted

    terminate = Instance.terminate

    def terminated(self: Any) -> Any:
        kept = [nic for nic in self.nics.values() if not nic.delete_on_termination]
        previous = terminate(self)
        for nic in kept:
            self.detach_eni(nic)
        return previous

    Instance.terminate = terminated
    # Interfaces that were not made by the launch leave an instance that ends; it has no addresses then.
    for name in ("private_ip", "private_ip_address", "private_dns_name", "public_ip", "public_ip_address"):
        setattr(Instance, name, property(_unless_bare(getattr(Instance, name).fget)))


def _unless_bare(method: Any) -> Any:
    return lambda self: method(self) if self.nics else None
