"""Interfaces and security groups with what moto lacks: what an instance may have, what another rule names.

Sources: the EC2 API reference (AttachNetworkInterface, DetachNetworkInterface, DeleteSecurityGroup), the user guide on
network interfaces (same zone, any VPC of the account; as many as the instance type has), the table of error codes.
"""

from __future__ import annotations

from typing import Any

from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models import EC2Backend
from moto.ec2.models.elastic_network_interfaces import NetworkInterface
from moto.ec2.models.instance_types import INSTANCE_TYPES


def install() -> None:
    """Put our methods into moto's classes. Once per process."""
    attach, delete = EC2Backend.attach_network_interface, EC2Backend._delete_security_group

    def attached(self: Any, eni_id: str, instance_id: str, device_index: int) -> Any:
        interface, instance = self.get_network_interface(eni_id), self.get_instance(instance_id)
        if interface.instance is not None:
            raise EC2ClientError("InvalidNetworkInterface.InUse", f"Interface: [{eni_id}] in use.")
        if instance.state not in {"running", "stopped"}:
            raise EC2ClientError("IncorrectState", f"The instance '{instance_id}' is {instance.state}.")
        if interface.subnet.availability_zone != instance._placement.zone:
            text = f"Network interface '{eni_id}' and instance '{instance_id}' are in different zones."
            raise EC2ClientError("InvalidParameterCombination", text)
        if int(device_index) in instance.nics:
            text = f"Instance '{instance_id}' already has an interface attached at device index '{device_index}'."
            raise EC2ClientError("InvalidParameterValue", text)
        most = INSTANCE_TYPES[instance.instance_type]["NetworkInfo"]["MaximumNetworkInterfaces"]
        if len(instance.nics) >= most:
            text = f"Interface count {len(instance.nics) + 1} exceeds the limit for {instance.instance_type}"
            raise EC2ClientError("AttachmentLimitExceeded", text)
        return attach(self, eni_id, instance_id, device_index)

    def deleted(self: Any, vpc_id: str | None, group_id: str) -> None:
        others = self.groups.get(vpc_id or self.default_vpc.id, {}).values()
        for other in others:
            rules = [*other.ingress_rules, *other.egress_rules]
            named = {rule.source_group.get("GroupId") for rule in rules if rule.source_group}
            if other.id != group_id and group_id in named:
                raise EC2ClientError("DependencyViolation", f"resource {group_id} has a dependent object")
        delete(self, vpc_id, group_id)

    EC2Backend.attach_network_interface = attached
    EC2Backend._delete_security_group = deleted
    # An interface is in the groups that it was given; those of its instance are of its other interfaces.
    NetworkInterface.group_set = property(lambda self: self._group_set)
