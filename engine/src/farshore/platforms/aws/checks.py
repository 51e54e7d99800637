"""What a site in AWS has to offer, tried one by one; each missing permission is named with the line that allows it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from farshore.errors import FarshoreError, Forbidden, NotFound
from farshore.model.machine import Finding
from farshore.platforms.aws import helper
from farshore.platforms.aws.account import Account
from farshore.platforms.aws.types import Types
from farshore.platforms.aws.volumes import volumes_of

_NOBODY: Final = "0" * 17
#: Calls that only look, made for real.
_LOOKS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("describe_egress_only_internet_gateways", {}),
    ("describe_images", {"Owners": ["self"]}),
    ("describe_instance_status", {}),
    ("describe_instances", {}),
    ("describe_internet_gateways", {}),
    ("describe_nat_gateways", {}),
    ("describe_network_interfaces", {}),
    ("describe_route_tables", {}),
    ("describe_security_groups", {}),
    ("describe_snapshots", {"OwnerIds": ["self"]}),
    ("describe_subnets", {}),
    ("describe_transit_gateway_vpc_attachments", {}),
    ("describe_volumes", {}),
    ("describe_vpc_endpoints", {}),
    ("describe_vpc_peering_connections", {}),
    ("describe_vpcs", {}),
    ("describe_vpn_gateways", {}),
)
#: Calls that change something, made with DryRun on what there is not: EC2 looks at permissions first. Those that are
#: allowed for what is ours only cannot be tried so.
_TRIES: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("attach_volume", {"VolumeId": f"vol-{_NOBODY}", "InstanceId": f"i-{_NOBODY}", "Device": "/dev/sdf"}),
    ("create_network_interface", {"SubnetId": f"subnet-{_NOBODY}"}),
    ("create_security_group", {"GroupName": "farshore-check", "Description": "check", "VpcId": f"vpc-{_NOBODY}"}),
    ("create_snapshot", {"VolumeId": f"vol-{_NOBODY}"}),
    ("create_snapshots", {"InstanceSpecification": {"InstanceId": f"i-{_NOBODY}"}}),
    ("create_subnet", {"VpcId": f"vpc-{_NOBODY}", "CidrBlock": "10.0.0.0/24"}),
    ("create_tags", {"Resources": [f"i-{_NOBODY}"], "Tags": [{"Key": "farshore:check", "Value": "x"}]}),
    ("create_volume", {"SnapshotId": f"snap-{_NOBODY}"}),
    ("create_vpc", {"CidrBlock": "10.0.0.0/24"}),
    ("delete_tags", {"Resources": [f"i-{_NOBODY}"], "Tags": [{"Key": "farshore:check"}]}),
    ("describe_instance_attribute", {"InstanceId": f"i-{_NOBODY}", "Attribute": "disableApiTermination"}),
    ("detach_volume", {"VolumeId": f"vol-{_NOBODY}", "InstanceId": f"i-{_NOBODY}"}),
    ("get_console_output", {"InstanceId": f"i-{_NOBODY}"}),
    ("get_console_screenshot", {"InstanceId": f"i-{_NOBODY}"}),
    ("modify_instance_attribute", {"InstanceId": f"i-{_NOBODY}", "EbsOptimized": {"Value": True}}),
    ("run_instances", {"ImageId": f"ami-{_NOBODY}", "MinCount": 1, "MaxCount": 1}),
    ("start_instances", {"InstanceIds": [f"i-{_NOBODY}"]}),
    ("stop_instances", {"InstanceIds": [f"i-{_NOBODY}"]}),
)


def run(account: Account, types: Types) -> list[Finding]:
    """Try all of it; a node without credentials, or in the wrong region, is told that and nothing else."""
    settings = account.settings
    try:
        who = account.patiently("sts", "get_caller_identity")
    except FarshoreError as error:
        return [_of(error)]
    said = f"account {who['Account']} in {settings.region} as {who['Arn']}"
    found = [Finding(code="aws", severity="info", subject=settings.region, message=said)]
    found += [*_zone(account, types), *_node(account, types), *_bucket(account), *_key(account)]
    for operation, params in _LOOKS:
        more = {"MaxResults": 5} if operation in {"describe_instances", "describe_volumes"} else {}
        found += _tried(account, operation, params | more)
    for operation, params in _TRIES:
        zone = {"AvailabilityZone": settings.zone} if operation == "create_volume" else {}
        found += _tried(account, operation, params | zone | {"DryRun": True})
    if settings.security_groups:
        found += _tried(account, "describe_security_groups", {"GroupIds": list(settings.security_groups)}, own=True)
    return [*found, *helper.tried(account)]


def _zone(account: Account, types: Types) -> Iterator[Finding]:
    """Look whether the zone exists and offers something of the families."""
    settings = account.settings
    try:
        offered = types.offered()
    except FarshoreError as error:
        yield _of(error)
        return
    missing = [name for name in settings.instance_families if not any(one.startswith(f"{name}.") for one in offered)]
    if not offered:
        yield Finding(
            code="zone-unknown",
            severity="error",
            subject=settings.zone,
            message=f"the zone {settings.zone} offers no instance types to this account",
            remedy="Correct platform.zone.",
        )
    elif missing:
        yield Finding(
            code="family-not-offered",
            severity="warning" if len(missing) < len(settings.instance_families) else "error",
            subject=settings.zone,
            message=f"the zone {settings.zone} offers none of {', '.join(missing)}",
            remedy="Correct platform.instance_families.",
        )


def _node(account: Account, types: Types) -> Iterator[Finding]:
    """Look whether this node runs on an instance of the region, where it has to, and how many volumes fit there."""
    if account.settings.target != "attached":
        return
    volumes = volumes_of(account)
    try:
        room = volumes.room(types)
    except FarshoreError as error:
        yield _of(error)
        return
    yield Finding(
        code="node-volumes" if room else "node-volumes-full",
        severity="info" if room else "error",
        subject=volumes.node,
        message=f"machine {volumes.node} has places for {room} volumes: so many disks can be replicated to it at once",
        remedy=""
        if room
        else "Detach volumes or interfaces, run the node on a larger instance, or set platform.target: ebs-direct.",
    )


def _bucket(account: Account) -> Iterator[Finding]:
    """Look whether the manifests' bucket is there, in this region, and may be listed."""
    settings = account.settings
    try:
        account.patiently("s3", "list_objects_v2", Bucket=settings.bucket, Prefix=f"{settings.prefix}/", MaxKeys=1)
        where = account.patiently("s3", "head_bucket", Bucket=settings.bucket).get("BucketRegion", "")
    except FarshoreError as error:
        yield _of(error)
        return
    if where and where != settings.region:  # the SDK follows it there
        yield Finding(
            code="wrong-region",
            severity="error",
            subject=settings.bucket,
            message=f"the bucket {settings.bucket} is in {where}, not in {settings.region}",
            remedy="platform.region has to be the bucket's and the machines' region.",
        )


def _key(account: Account) -> Iterator[Finding]:
    """Look whether the key of new snapshots, where the settings name one, is there and can be used."""
    key = account.settings.kms_key
    if key is None:
        return
    try:
        state = str(account.patiently("kms", "describe_key", KeyId=key)["KeyMetadata"]["KeyState"])
    except NotFound:
        state = "not there"
    except FarshoreError as error:
        yield _of(error)
        return
    if state != "Enabled":
        yield Finding(
            code="kms-key",
            severity="error",
            subject=key,
            message=f"the KMS key {key} is {state}: no snapshot can be made with it",
            remedy=f"Enable it, or name another one of {account.settings.region} as platform.kms_key.",
        )


def _tried(account: Account, operation: str, params: dict[str, Any], *, own: bool = False) -> Iterator[Finding]:
    """Make one call; only that it is not allowed, or that it is asked of nobody, is a finding."""
    try:
        account.call("ec2", operation, **params)
    except Forbidden as error:
        yield _of(error)
    except FarshoreError as error:
        # What does not exist, or would have been done (DryRunOperation), is what was to be seen.
        if own:
            yield _of(error)


def _of(error: FarshoreError) -> Finding:
    """Return an error as a finding."""
    subject = str(error.evidence.get("action", ""))
    return Finding(code=error.code, severity="error", subject=subject, message=error.message, remedy=error.hint)
