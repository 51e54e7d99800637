"""What an account holds: machines with their disks and interfaces, subnets, and what is left of its quota."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from farshore.errors import FarshoreError, NotFound
from farshore.model.machine import (
    DiskFacts,
    Finding,
    MachineFacts,
    NetworkFacts,
    NicFacts,
    Power,
    Quota,
)
from farshore.platforms.aws import tags
from farshore.platforms.aws.account import Account
from farshore.platforms.aws.types import ARCHITECTURES, InstanceType, Types
from farshore.platforms.existing import not_resting
from farshore.units import GIB

#: States of instances by what they mean here. One that is stopping may still write: it is not off.
POWER: Final[Mapping[str, Power]] = {"pending": "on", "running": "on", "stopping": "on", "stopped": "off"}
#: Instances in other states are gone, or on their way.
ALIVE: Final = tuple(POWER)
#: On a volume that a fence has taken from its machine: whose it is, and the name of its place there.
FENCED_FROM: Final = "farshore:fenced-from"
FENCED_DEVICE: Final = "farshore:fenced-device"
#: On the same: it went with its machine.
FENCED_DELETE: Final = "farshore:fenced-delete"
#: On a volume that we made: the name that the disk has in plans and checkpoints.
DISK_ID: Final = "farshore:disk-id"
#: On what we made: the name of the machine that it is part of.
NAME: Final = "farshore:name"
#: On an interface that we made: the hardware address that the guest had for it.
SOURCE_MAC: Final = "farshore:source-mac"
#: On a machine of ours whose disks are all in their places.
MADE: Final = "farshore:made"
#: The role of what only serves to launch a machine: an image of nothing, and the snapshot that it stands on.
SHELL: Final = "shell"
#: The role of a point with what was changed in a guest: a snapshot that grows on the point and serves one machine.
GUEST: Final = "guest"
#: On a machine whose volumes are being put in the places of others, and on those volumes: which exchange it is.
SWAP: Final = "farshore:swap"
#: On such a volume: the name of its place.
PLACE: Final = "farshore:place"
#: On a machine of ours that is here to stay: what only served to make it is gone.
SETTLED: Final = "farshore:settled"
#: On an isolated network's subnet: the name that a run knows it by.
NETWORK: Final = "farshore:network"
#: vCPUs of running on-demand instances of the standard families; https://docs.aws.amazon.com/ec2/latest/instancetypes/
_VCPU_QUOTA: Final = "L-1216C47A"
_STANDARD: Final = frozenset("acdhimrtz")
_IDS_AT_ONCE: Final = 200
_LINUX: Final = "Linux/UNIX"


def instances(account: Account, filters: Iterable[Mapping[str, Any]] = ()) -> Iterator[dict[str, Any]]:
    """Yield instances that are not terminated, as EC2 describes them."""
    wanted = [{"Name": "instance-state-name", "Values": list(ALIVE)}, *filters]
    for page in account.pages("ec2", "describe_instances", Filters=wanted):
        for reservation in page["Reservations"]:
            yield from reservation["Instances"]


def instance(account: Account, machine_id: str) -> dict[str, Any]:
    """Return one instance as EC2 describes it now.

    Raises:
        NotFound: there is none, or it is terminated.
    """
    try:
        reply = account.patiently("ec2", "describe_instances", InstanceIds=[machine_id])
    except FarshoreError as error:
        if str(error.evidence.get("aws_code", "")).startswith("InvalidInstanceID"):
            raise _unknown(machine_id) from error
        raise
    found = [item for reservation in reply["Reservations"] for item in reservation["Instances"]]
    if not found or found[0]["State"]["Name"] not in POWER:
        raise _unknown(machine_id)
    return dict(found[0])


def volumes(account: Account, filters: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield volumes as EC2 describes them."""
    for page in account.pages("ec2", "describe_volumes", Filters=list(filters)):
        yield from page["Volumes"]


def power(raw: Mapping[str, Any]) -> Power:
    """Return an instance's state."""
    return POWER.get(raw["State"]["Name"], "unknown")


def resting(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an old primary again.

    Raises:
        Conflict: it is not fenced, or not off.
    """
    known = tags.tag_map(raw)
    if not known.get(tags.FENCE, "").isdecimal() or power(raw) != "off":
        name = known.get(tags.NAME, raw["InstanceId"])
        raise not_resting(name, raw["InstanceId"], fenced=tags.FENCE in known)
    return raw


def machine_facts(account: Account, types: Types, found: Sequence[Mapping[str, Any]]) -> list[MachineFacts]:
    """Return instances as machines: one look at all their volumes, and at the types that are among them."""
    ids = [item["InstanceId"] for item in found]
    disks: dict[str, dict[str, dict[str, Any]]] = {machine_id: {} for machine_id in ids}
    for at in range(0, len(ids), _IDS_AT_ONCE):
        some = ids[at : at + _IDS_AT_ONCE]
        for volume in volumes(account, [{"Name": "attachment.instance-id", "Values": some}]):
            for attached in volume.get("Attachments") or ():
                if attached["InstanceId"] in disks:
                    disks[attached["InstanceId"]][attached["Device"]] = volume
        for volume in volumes(account, [{"Name": f"tag:{FENCED_FROM}", "Values": some}]):
            marks = tags.tag_map(volume)
            disks[marks[FENCED_FROM]].setdefault(marks.get(FENCED_DEVICE, ""), volume)
    for machine_id, swap in ((item["InstanceId"], tags.tag_map(item).get(SWAP)) for item in found):
        for volume in volumes(account, [{"Name": f"tag:{SWAP}", "Values": [swap]}]) if swap else ():
            disks[machine_id].setdefault(tags.tag_map(volume).get(PLACE, ""), volume)
    known = types.known({item["InstanceType"] for item in found})
    return [_facts(item, disks[item["InstanceId"]], known.get(item["InstanceType"])) for item in found]


def _facts(raw: Mapping[str, Any], volumes: Mapping[str, dict[str, Any]], kind: InstanceType | None) -> MachineFacts:
    marks = tags.tag_map(raw)
    cores = raw.get("CpuOptions") or {}
    cpus = int(cores.get("CoreCount", 0)) * int(cores.get("ThreadsPerCore", 1)) or (kind.cpus if kind else 1)
    architecture = next(
        (ours for ours, theirs in ARCHITECTURES.items() if theirs == raw.get("Architecture")),
        str(raw.get("Architecture") or "x86_64"),
    )
    told = {"instance_type": raw["InstanceType"], "zone": str(raw["Placement"].get("AvailabilityZone", ""))}
    if raw.get("PlatformDetails"):
        told["platform_details"] = str(raw["PlatformDetails"])
    mode = raw.get("CurrentInstanceBootMode") or raw.get("BootMode")
    return MachineFacts(
        machine_id=raw["InstanceId"],
        name=marks.get(tags.NAME) or raw["InstanceId"],
        power=power(raw),
        cpus=cpus,
        memory_bytes=kind.memory_bytes if kind else 0,
        firmware="uefi" if mode == "uefi" or (not mode and architecture == "aarch64") else "bios",
        architecture=architecture,
        disks=tuple(_disks(raw, volumes, "nvme" if kind is None or kind.nitro else "xen")),
        nics=tuple(_nics(raw)),
        tags={key: text for key, text in marks.items() if not key.startswith("farshore:")} | told,
        findings=tuple(_findings(raw, marks, volumes, kind)),
        on_points=MADE in marks and SETTLED not in marks,
    )


def disk_id(device: str, volume: Mapping[str, Any] | None = None) -> str:
    """Return the name of a disk: the one that we gave it where we made it, else that of its place (``sda1``)."""
    given = tags.tag_map(volume).get(DISK_ID) if volume is not None else None
    return given or device.removeprefix("/dev/")


def _disks(raw: Mapping[str, Any], volumes: Mapping[str, dict[str, Any]], bus: str) -> Iterator[DiskFacts]:
    """Yield the disks: the root first, then in the order of the block device mapping."""
    root = raw.get("RootDeviceName")
    order = [item["DeviceName"] for item in raw.get("BlockDeviceMappings") or ()]
    order += [device for device in sorted(volumes) if device not in order]
    for device in sorted(order, key=lambda name: name != root):
        volume = volumes.get(device)
        if volume is not None:
            yield DiskFacts(
                disk_id=disk_id(device, volume),
                size_bytes=int(volume["Size"]) * GIB,
                path=volume["VolumeId"],
                bus=bus,
                boot=device == root,
            )


def _nics(raw: Mapping[str, Any]) -> Iterator[NicFacts]:
    interfaces = raw.get("NetworkInterfaces") or ()
    for nic in sorted(interfaces, key=lambda item: int((item.get("Attachment") or {}).get("DeviceIndex", 0))):
        addresses = [item["PrivateIpAddress"] for item in nic.get("PrivateIpAddresses") or ()]
        addresses += [item["Ipv6Address"] for item in nic.get("Ipv6Addresses") or ()]
        yield NicFacts(
            mac=nic.get("MacAddress", ""), network=nic.get("SubnetId", ""), model="ena", addresses=tuple(addresses)
        )


def _findings(
    raw: Mapping[str, Any],
    marks: Mapping[str, str],
    volumes: Mapping[str, dict[str, Any]],
    kind: InstanceType | None,
) -> Iterator[Finding]:
    name = marks.get(tags.NAME) or raw["InstanceId"]

    def finding(code: str, severity: str, message: str, remedy: str = "") -> Finding:
        return Finding.model_validate(
            {"code": code, "severity": severity, "message": message, "remedy": remedy, "subject": name}
        )

    if raw.get("RootDeviceType") == "instance-store":
        yield finding(
            "instance-store-root",
            "error",
            f"{name} has its root disk in the instance store, which has no snapshots",
            "Move the machine to one with an EBS root volume; only volumes can be protected.",
        )
    elif kind is not None and kind.instance_store:
        yield finding(
            "instance-store",
            "warning",
            f"{name} is of type {kind.name} with disks in the instance store; these are not protected, and empty"
            " after a recovery",
            "Keep nothing there that is missed, or move it to a volume.",
        )
    details = raw.get("PlatformDetails") or _LINUX
    if details != _LINUX:
        yield finding(
            "licence-billing",
            "warning",
            f"{name} is billed as {details}; what is made of its snapshots is not, and may lack its licence",
            "Recover it with a licence of your own, or see docs/aws.md on machines that are billed with a licence.",
        )
    if raw.get("InstanceLifecycle"):
        yield finding(
            "spot-instance",
            "warning",
            f"{name} is a {raw['InstanceLifecycle']} instance: EC2 may end it, and no fence can hold it off",
            "Move what has to be protected to an on-demand instance.",
        )
    if group := marks.get("aws:autoscaling:groupName"):
        yield finding(
            "auto-scaling",
            "warning",
            f"{name} belongs to the Auto Scaling group {group}, which replaces it when it is stopped: no fence holds",
            "Take it out of the group, or suspend the group's processes before a failover.",
        )
    sealed = {disk_id(device, volume): volume for device, volume in volumes.items() if volume.get("Encrypted")}
    if sealed:
        keys = sorted({str(volume.get("KmsKeyId", "the default key")) for volume in sealed.values()})
        yield finding(
            "disks-encrypted",
            "info",
            f"{', '.join(sorted(sealed))} of {name} are encrypted with {', '.join(keys)}",
            "The node's role has to be allowed to use the key, at both sites.",
        )
    for device, volume in volumes.items():
        if volume.get("MultiAttachEnabled") and len(volume.get("Attachments") or ()) > 1:
            yield finding(
                "disk-shared",
                "error",
                f"{disk_id(device, volume)} of {name} is attached to several machines; no point of one is whole",
                "Protect shared volumes by other means.",
            )


def network_facts(account: Account) -> list[NetworkFacts]:
    """Return the subnets of the region, by their ids; those that we isolated by the names that runs gave them."""
    found = []
    for page in account.pages("ec2", "describe_subnets"):
        for subnet in page["Subnets"]:
            name = tags.tag_map(subnet).get(NETWORK)
            found.append(
                NetworkFacts(
                    name=name or subnet["SubnetId"],
                    subnet=subnet.get("CidrBlock", ""),
                    isolated=name is not None,
                    active=subnet.get("State", "available") == "available",
                )
            )
    return sorted(found, key=lambda network: network.name)


def quota(account: Account, types: Types, found: Iterable[Mapping[str, Any]]) -> tuple[Quota | None, list[Finding]]:
    """Return how many processors of standard families may run and do; or why that is not known."""
    try:
        reply = account.patiently("service-quotas", "get_service_quota", ServiceCode="ec2", QuotaCode=_VCPU_QUOTA)
    except FarshoreError as error:
        return None, [
            Finding(
                code="quota-unknown",
                severity="info",
                message=f"how many processors may run is not known: {error.message}",
                remedy="Allow the node's role servicequotas:GetServiceQuota to have plans checked against it.",
            )
        ]
    running = [item["InstanceType"] for item in found if item["State"]["Name"] in {"pending", "running"}]
    known = types.known(running)
    used = sum(known[name].cpus for name in running if name[:1] in _STANDARD and name in known)
    return Quota(cpus=int(reply["Quota"]["Value"]), cpus_used=used, machines_used=len(running)), []


def impaired(account: Account) -> list[Finding]:
    """Return the machines whose status checks fail."""
    found = []
    filters = [{"Name": "instance-status.status", "Values": ["impaired"]}]
    for page in account.pages("ec2", "describe_instance_status", Filters=filters):
        found += [
            Finding(
                code="status-check-failed",
                severity="warning",
                message=f"{item['InstanceId']} does not pass EC2's status checks",
                remedy="Look at its console output.",
                subject=item["InstanceId"],
            )
            for item in page["InstanceStatuses"]
        ]
    return found


def _unknown(machine_id: str) -> NotFound:
    return NotFound(
        f"there is no machine {machine_id!r} in this account and region",
        code="machine-not-found",
        hint="Refresh the inventory, and look at platform.region.",
        machine_id=machine_id,
    )
