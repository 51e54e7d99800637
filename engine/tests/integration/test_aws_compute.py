"""Machines of an AWS account: made of points without running, fenced, isolated, swept, within the policy we tell of."""

from __future__ import annotations

from typing import Any

import pytest
from doubles import aws_site
from doubles.aws import AwsDouble
from farshore.errors import Conflict, Fenced, Forbidden, Invalid, NoSpace, NotFound, Permanent, Retry
from farshore.model.machine import DiskFacts, MachineFacts, NicFacts, PoolFacts
from farshore.model.task import DiskSpec, MachineCreateParams, NetworkCreateParams, NicSpec
from farshore.platforms.aws import policy, settings
from farshore.platforms.aws.account import Account
from farshore.platforms.aws.compute import AwsCompute
from farshore.platforms.aws.prices import LIST
from farshore.platforms.aws.types import Types
from farshore.units import GIB, MIB

ZONE = "eu-central-1a"
TAG = "run-drill-7"
DRILL = "fs-lan-7"


@pytest.fixture(scope="module")
def shared(double: AwsDouble) -> Account:
    """An account whose clients are made once."""
    return account_of(double)


def account_of(double: AwsDouble, **more: Any) -> Account:
    return Account(
        settings.read(
            {
                "type": "aws",
                "region": double.region,
                "zone": ZONE,
                "bucket": "acme-dr",
                "scratch": "/nowhere",
                "endpoint": double.url,
                "poll_s": "10ms",
                "power_s": "60s",
                **more,
            }
        )
    )


@pytest.fixture
def aws(double: AwsDouble) -> AwsDouble:
    """The double with an empty bucket."""
    double.clear()
    place = {"LocationConstraint": double.region}
    double.client("s3").create_bucket(Bucket="acme-dr", CreateBucketConfiguration=place)
    return double


@pytest.fixture(scope="module")
def machines(shared: Account) -> AwsCompute:
    """What asks for instance types once."""
    return compute_of(shared)


@pytest.fixture
def compute(aws: AwsDouble, machines: AwsCompute) -> AwsCompute:  # noqa: ARG001 - the account is emptied first
    return machines


def compute_of(account: Account) -> AwsCompute:
    return AwsCompute(
        account, Types(account), lambda: PoolFacts(path="s3://acme-dr", capacity_bytes=GIB, free_bytes=GIB)
    )


@pytest.fixture
def ec2(aws: AwsDouble) -> Any:
    """EC2 as an administrator calls it."""
    return aws.client("ec2")


def point(aws: AwsDouble, text: bytes) -> str:
    """Return a snapshot of a volume that begins with ``text``."""
    ec2 = aws.client("ec2")
    volume = ec2.create_volume(Size=1, AvailabilityZone=ZONE)["VolumeId"]
    with aws.volume(volume).open("r+b") as disk:
        disk.write(text)
    snapshot = str(ec2.create_snapshot(VolumeId=volume)["SnapshotId"])
    ec2.get_waiter("snapshot_completed").wait(SnapshotIds=[snapshot], WaiterConfig={"Delay": 0, "MaxAttempts": 50})
    ec2.delete_volume(VolumeId=volume)
    return snapshot


def order(points: dict[str, str], network: str = DRILL, **more: Any) -> MachineCreateParams:
    facts = MachineFacts(
        machine_id="6a1b2c3d-0000-4000-8000-000000000001",
        name="db",
        cpus=2,
        memory_bytes=900 * MIB,
        disks=tuple(DiskFacts(disk_id=disk, size_bytes=GIB, boot=number == 0) for number, disk in enumerate(points)),
        nics=(NicFacts(mac="52:54:00:00:00:01", network="lan"),),
    )
    return MachineCreateParams.model_validate(
        {
            "tag": TAG,
            "purpose": "drill",
            "name": "fs-db-7",
            "facts": facts,
            "cpus": 2,
            "memory_bytes": 900 * MIB,
            "disks": [DiskSpec(disk_id=disk, point=at, size_bytes=GIB) for disk, at in points.items()],
            "nics": [NicSpec(mac="52:54:00:00:00:01", network=network, address="10.77.0.20")],
            "epoch": 3,
            **more,
        }
    )


def network(name: str = DRILL, subnet: str = "10.77.0.0/24") -> NetworkCreateParams:
    return NetworkCreateParams(tag=TAG, name=name, subnet=subnet)


def home_subnet(ec2: Any) -> str:
    found = ec2.describe_subnets(Filters=[{"Name": "availability-zone", "Values": [ZONE]}])["Subnets"]
    return str(found[0]["SubnetId"])


def raw(ec2: Any, machine_id: str) -> dict[str, Any]:
    found: dict[str, Any] = ec2.describe_instances(InstanceIds=[machine_id])["Reservations"][0]["Instances"][0]
    return found


def content(aws: AwsDouble, compute: AwsCompute, machine_id: str) -> dict[str, bytes]:
    """Return how each disk of a machine begins."""
    return {disk.disk_id: aws.volume(disk.path).open("rb").read(4) for disk in compute.facts(machine_id).disks}


def test_a_rehearsal_leaves_nothing_and_needs_no_more_than_the_policy_says(
    aws: AwsDouble, compute: AwsCompute, ec2: Any
) -> None:
    points = {"vda": point(aws, b"boot"), "vdb": point(aws, b"data")}
    before = footprint(ec2)
    aws.forget_calls()
    aws.policy(policy.document(policy.Scope(region=aws.region, bucket="acme-dr")))
    compute.isolated_network(network())
    compute.isolated_network(network())
    machine_id = compute.create(order(points))
    assert compute.power(machine_id) == "off"
    assert compute.create(order(points)) == machine_id
    facts = compute.facts(machine_id)
    assert [(disk.disk_id, disk.boot, disk.size_bytes) for disk in facts.disks] == [
        ("vda", True, GIB),
        ("vdb", False, GIB),
    ]
    assert content(aws, compute, machine_id) == {"vda": b"boot", "vdb": b"data"}
    assert (facts.cpus, facts.firmware, facts.tags["instance_type"]) == (2, "bios", "t3.micro")
    assert facts.nics[0].addresses == ("10.77.0.20",)
    assert compute.isolation(TAG, [DRILL], canaries=True).proven
    compute.start(machine_id)
    assert compute.power(machine_id) == "on"
    looks = [compute.booted(machine_id) for _ in range(4)]
    assert (looks[0], looks[-1]) == (False, True)  # the checks begin some time after the machine runs
    assert compute.addresses(machine_id) == ["10.77.0.20"]
    assert isinstance(compute.console(machine_id), str)
    assert compute.screen(machine_id)
    found = compute.inventory()
    assert [one.name for one in found.machines] == ["fs-db-7"]
    assert found.prices == LIST
    assert [(one.name, one.subnet) for one in found.networks if one.isolated] == [(DRILL, "10.77.0.0/24")]
    assert compute.stop(machine_id, 60)
    compute.start(machine_id)
    compute.power_off(machine_id)
    removed, left = compute.sweep(TAG)
    assert not left, left
    assert "machine fs-db-7" in removed
    assert compute.sweep(TAG) == ([], [])
    refused = {call.outcome for call in aws.calls()} & {"UnauthorizedOperation", "AccessDeniedException"}
    aws.policy(None)
    assert not refused
    assert footprint(ec2) == before


def footprint(ec2: Any) -> dict[str, set[str]]:
    """Return all that there is in the account."""
    alive = [{"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}]
    return {
        "instances": {
            one["InstanceId"]
            for item in ec2.describe_instances(Filters=alive)["Reservations"]
            for one in item["Instances"]
        },
        "volumes": {one["VolumeId"] for one in ec2.describe_volumes()["Volumes"]},
        "interfaces": {one["NetworkInterfaceId"] for one in ec2.describe_network_interfaces()["NetworkInterfaces"]},
        "images": {one["ImageId"] for one in ec2.describe_images(Owners=["self"])["Images"]},
        "snapshots": {one["SnapshotId"] for one in ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]},
        "groups": {one["GroupId"] for one in ec2.describe_security_groups()["SecurityGroups"]},
        "subnets": {one["SubnetId"] for one in ec2.describe_subnets()["Subnets"]},
        "vpcs": {one["VpcId"] for one in ec2.describe_vpcs()["Vpcs"]},
    }


def made(aws: AwsDouble, compute: AwsCompute, ec2: Any, **more: Any) -> str:
    """Return a machine as a failover makes it."""
    params = {"purpose": "failover", "name": "db", "network": home_subnet(ec2)} | more
    points = params.pop("points", None) or {"vda": point(aws, b"boot")}
    return compute.create(order(points, nics=[NicSpec(mac="52:54:00:00:00:01", network=params["network"])], **params))


def test_a_fenced_machine_is_refused_by_ec2_itself_until_the_fence_is_lifted(
    aws: AwsDouble, compute: AwsCompute, ec2: Any
) -> None:
    machine_id = made(aws, compute, ec2, points={"vda": point(aws, b"boot"), "vdb": point(aws, b"data")})
    disks = compute.facts(machine_id).disks
    assert compute.fence(machine_id, 4)
    assert compute.fence(machine_id, 3)
    with pytest.raises(Fenced) as caught:
        compute.start(machine_id)
    assert caught.value.evidence["epoch"] == 4
    # By whatever hand: there is nothing to boot from.
    assert [item["DeviceName"] for item in raw(ec2, machine_id)["BlockDeviceMappings"]] == ["/dev/sdf"]
    assert compute.facts(machine_id).disks == disks
    compute.unfence(machine_id)
    compute.unfence(machine_id)
    assert compute.facts(machine_id).disks == disks
    compute.start(machine_id)
    assert compute.power(machine_id) == "on"


def test_a_machine_that_runs_is_barred_as_soon_as_it_is_off(aws: AwsDouble, compute: AwsCompute, ec2: Any) -> None:
    machine_id = made(aws, compute, ec2)
    compute.start(machine_id)
    assert compute.fence(machine_id, 5)
    assert compute.power(machine_id) == "on"
    compute.power_off(machine_id)
    assert raw(ec2, machine_id)["BlockDeviceMappings"] == []
    compute.unfence(machine_id)
    compute.start(machine_id)
    assert compute.fence(machine_id, 6)
    assert compute.stop(machine_id, 60)
    assert raw(ec2, machine_id)["BlockDeviceMappings"] == []


def test_a_lost_root_volume_is_told_when_the_fence_is_lifted(aws: AwsDouble, compute: AwsCompute, ec2: Any) -> None:
    machine_id = made(aws, compute, ec2)
    root = compute.facts(machine_id).disks[0].path
    assert compute.fence(machine_id, 5)
    ec2.delete_volume(VolumeId=root)
    with pytest.raises(Conflict) as caught:
        compute.unfence(machine_id)
    assert caught.value.code == "fence-volume-gone"


STEPS = (
    "StartSnapshot",
    "CompleteSnapshot",
    "RegisterImage",
    "CreateNetworkInterface",
    "CreateVolume",
    "RunInstances",
    "StopInstances",
    "DetachVolume",
    "DeleteVolume",
    "AttachVolume",
    "CreateTags",
)


@pytest.mark.parametrize("kind", ["lost", "5xx"])
def test_whatever_goes_wrong_once_a_machine_is_made_once(
    aws: AwsDouble, compute: AwsCompute, ec2: Any, kind: str
) -> None:
    points = {"vda": point(aws, b"boot"), "vdb": point(aws, b"data")}
    for step in STEPS:
        aws.fault(step, kind)
    machine_id = made(aws, compute, ec2, points=points)
    assert not aws.pending_faults()
    assert content(aws, compute, machine_id) == {"vda": b"boot", "vdb": b"data"}
    found = footprint(ec2)
    assert (found["instances"], len(found["volumes"]), len(found["interfaces"])) == ({machine_id}, 2, 1)
    assert compute.detach(machine_id).state == "done"
    assert not footprint(ec2)["images"]
    assert footprint(ec2)["snapshots"] == set(points.values())
    assert compute.sweep(TAG)[1] == []
    assert not footprint(ec2)["volumes"]


@pytest.mark.parametrize("step", ["RunInstances", "StopInstances", "AttachVolume", "CreateTags"])
def test_a_step_that_was_cut_short_goes_on_where_it_was(
    aws: AwsDouble, compute: AwsCompute, ec2: Any, step: str
) -> None:
    points = {"vda": point(aws, b"boot")}
    subnet = home_subnet(ec2)
    aws.fault(step, "error", code="UnauthorizedOperation")
    with pytest.raises(Forbidden):
        made(aws, compute, ec2, points=points, network=subnet)
    machine_id = made(aws, compute, ec2, points=points, network=subnet)
    found = footprint(ec2)
    assert (found["instances"], len(found["volumes"]), len(found["interfaces"])) == ({machine_id}, 1, 1)
    compute.start(machine_id)


@pytest.mark.parametrize("action", ["ec2:RegisterImage", "ebs:CompleteSnapshot"])
def test_what_is_not_allowed_is_named_and_not_waited_for(
    aws: AwsDouble, compute: AwsCompute, ec2: Any, action: str
) -> None:
    points = {"vda": point(aws, b"boot")}
    aws.policy(
        {
            "Version": "2012-10-17",
            "Statement": [
                {"Effect": "Allow", "Action": "*", "Resource": "*"},
                {"Effect": "Deny", "Action": action, "Resource": "*"},
            ],
        }
    )
    with pytest.raises(Forbidden) as caught:
        made(aws, compute, ec2, points=points)
    aws.policy(None)
    assert caught.value.evidence["action"] == action


def test_a_machine_that_is_not_made_to_the_end_does_not_start(aws: AwsDouble, compute: AwsCompute, ec2: Any) -> None:
    aws.fault("AttachVolume", "error", code="UnauthorizedOperation")
    with pytest.raises(Forbidden):
        made(aws, compute, ec2)
    shell = next(iter(footprint(ec2)["instances"]))
    with pytest.raises(Conflict) as caught:
        compute.start(shell)
    assert caught.value.code == "machine-unfinished"


def test_a_name_is_given_up_only_by_an_old_primary_that_rests(aws: AwsDouble, compute: AwsCompute, ec2: Any) -> None:
    old = made(aws, compute, ec2)
    with pytest.raises(Conflict) as caught:
        made(aws, compute, ec2, tag="run-8")
    assert caught.value.code == "machine-exists"
    with pytest.raises(Conflict) as caught:
        made(aws, compute, ec2, tag="run-8", replaces=old)
    assert caught.value.code == "old-primary-not-fenced"
    assert compute.fence(old, 3)
    new = made(aws, compute, ec2, tag="run-8", replaces=old, epoch=4)
    assert [compute.facts(one).name for one in (old, new)] == ["db-old-4", "db"]


def test_a_zone_without_room_says_so_at_once(aws: AwsDouble, compute: AwsCompute, ec2: Any) -> None:
    aws.settings(no_capacity=["t3.micro"])
    with pytest.raises(Retry) as caught:
        made(aws, compute, ec2)
    assert caught.value.code == "no-capacity"


def test_a_quota_that_is_reached_says_which(aws: AwsDouble, compute: AwsCompute, ec2: Any) -> None:
    aws.settings(vcpus=1)
    with pytest.raises(NoSpace) as caught:
        made(aws, compute, ec2)
    assert "VcpuLimitExceeded" in caught.value.hint


def test_a_quota_that_is_reached_while_disks_are_made_leaves_nothing_half_done(
    aws: AwsDouble, compute: AwsCompute, ec2: Any
) -> None:
    points = {"vda": point(aws, b"boot"), "vdb": point(aws, b"data")}
    before = footprint(ec2)
    aws.settings(volume_gib=1)
    with pytest.raises(NoSpace) as caught:
        made(aws, compute, ec2, points=points)
    assert caught.value.code == "quota"
    assert "VolumeLimitExceeded" in caught.value.hint
    assert compute.sweep(TAG)[1] == []
    assert footprint(ec2) == before
    with pytest.raises(NoSpace):
        made(aws, compute, ec2, points=points, tag="run-8")
    aws.settings(volume_gib=100)
    machine_id = made(aws, compute, ec2, points=points, tag="run-8")  # the same step goes on where it was
    assert content(aws, compute, machine_id) == {"vda": b"boot", "vdb": b"data"}
    assert len(footprint(ec2)["volumes"]) == 2
    aws.fault("StartInstances", "error", code="VcpuLimitExceeded")
    with pytest.raises(NoSpace) as caught:
        compute.start(machine_id)
    assert "VcpuLimitExceeded" in caught.value.hint
    compute.start(machine_id)


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"instance_type": "u-24tb1.metal"}, "instance-type-not-offered"),
        ({"instance_type": "t4g.small"}, "instance-type-unfit"),
        ({"memory_bytes": 4096 * GIB}, "no-instance-type"),
        ({"network": "subnet-0123456789abcdef0"}, "network-not-found"),
    ],
)
def test_what_cannot_be_made_says_what_to_change(
    aws: AwsDouble, compute: AwsCompute, ec2: Any, more: dict[str, Any], code: str
) -> None:
    with pytest.raises(Permanent) as caught:
        made(aws, compute, ec2, **more)
    assert caught.value.code == code
    assert caught.value.hint
    assert not footprint(ec2)["instances"]


def test_an_isolated_network_that_got_a_way_out_is_not_proven(compute: AwsCompute, ec2: Any) -> None:
    compute.isolated_network(network())
    assert compute.isolation(TAG, [DRILL], canaries=False).proven
    vpc = next(one["VpcId"] for one in ec2.describe_subnets()["Subnets"] if one["CidrBlock"] == "10.77.0.0/24")
    gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
    table = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["RouteTables"][0]
    ec2.create_route(RouteTableId=table["RouteTableId"], DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)
    ec2.modify_vpc_attribute(VpcId=vpc, EnableDnsSupport={"Value": True})
    group = ec2.describe_security_groups(
        Filters=[{"Name": "vpc-id", "Values": [vpc]}, {"Name": "tag-key", "Values": ["farshore:tag"]}]
    )
    anywhere = [{"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]
    ec2.authorize_security_group_egress(GroupId=group["SecurityGroups"][0]["GroupId"], IpPermissions=anywhere)
    found = compute.isolation(TAG, [DRILL], canaries=False)
    assert not found.proven
    for why in ("internet gateway", "a route leads to 0.0.0.0/0", "resolver", "admits others"):
        assert why in found.reason
    # A repeated step closes again what it can.
    compute.isolated_network(network())
    assert "resolver" not in compute.isolation(TAG, [DRILL], canaries=False).reason


def test_what_cannot_be_removed_is_named(aws: AwsDouble, compute: AwsCompute) -> None:
    compute.isolated_network(network())
    aws.fault("DeleteSubnet", "error", code="DependencyViolation")
    _removed, left = compute.sweep(TAG)
    assert [name.partition(" ")[0] for name in left] == ["subnet", "VPC"]
    assert compute.sweep(TAG)[1] == []


def test_a_drill_subnet_that_a_vpc_cannot_have_is_refused(compute: AwsCompute) -> None:
    for subnet in ("10.0.0.0/8", "10.77.0.0/29"):
        with pytest.raises(Invalid) as caught:
            compute.isolated_network(network(subnet=subnet))
        assert caught.value.field == "networks.drill.subnet"


def test_each_missing_permission_is_named_with_its_statement(aws: AwsDouble, shared: Account, ec2: Any) -> None:
    before = footprint(ec2)
    compute = compute_of(shared)  # what it has asked before it need not ask again
    full = policy.document(policy.Scope(region=aws.region, bucket="acme-dr"))
    aws.policy(full)
    assert [one.code for one in compute.check() if one.severity == "error"] == []
    tried = {call.operation for call in aws.calls()}
    lacking = [one for one in checked() if one.partition(":")[2] in tried]
    for statement in full["Statement"]:
        actions = statement["Action"]
        statement["Action"] = [one for one in actions if one not in lacking]
    aws.policy(full)
    found = {one.subject: one.remedy for one in compute_of(shared).check() if one.code == "permission"}
    aws.policy(None)
    assert set(found) == set(lacking)
    assert "FarshoreMake" in found["ec2:CreateVpc"]
    assert footprint(ec2) == before


def errors(double: AwsDouble, **more: Any) -> dict[str, str]:
    """Return the codes of what stands in the way of a site, with what to do about it."""
    found = compute_of(account_of(double, **more)).check()
    return {one.code: one.remedy for one in found if one.severity == "error"}


def test_a_bucket_that_is_not_there_or_elsewhere_is_found_before_it_is_needed(aws: AwsDouble) -> None:
    assert errors(aws) == {}
    assert list(errors(aws, bucket="nobodys-bucket")) == ["provider-not-found"]
    aws.client("s3", region="us-west-2").create_bucket(
        Bucket="acme-west", CreateBucketConfiguration={"LocationConstraint": "us-west-2"}
    )
    found = errors(aws, bucket="acme-west")
    assert list(found) == ["wrong-region"]
    assert "platform.region" in found["wrong-region"]
    aws.policy(
        {
            "Version": "2012-10-17",
            "Statement": [
                {"Effect": "Allow", "Action": "*", "Resource": "*"},
                {"Effect": "Deny", "Action": "s3:ListBucket", "Resource": "*"},
            ],
        }
    )
    found = errors(aws)
    aws.policy(None)
    assert list(found) == ["permission"]
    assert '"s3:ListBucket"' in found["permission"]
    assert "FarshoreListManifests" in found["permission"]


def test_a_key_that_cannot_be_used_is_found_before_it_is_needed(aws: AwsDouble) -> None:
    kms = aws.client("kms")
    key = kms.create_key()["KeyMetadata"]["Arn"]
    assert errors(aws, kms_key=key) == {}
    kms.disable_key(KeyId=key)
    assert list(errors(aws, kms_key=key)) == ["kms-key"]
    nobodys = key.rpartition("/")[0] + "/6b0d6c0e-5a1f-4f6e-9d43-0f0f53a7c2d1"
    assert list(errors(aws, kms_key=nobodys)) == ["kms-key"]


def test_a_zone_that_does_not_offer_the_families_is_found(aws: AwsDouble) -> None:
    found = errors(aws, instance_families=["nope"])
    assert list(found) == ["family-not-offered"]


def test_a_node_that_writes_to_volumes_tells_how_many_fit(aws: AwsDouble, ec2: Any) -> None:
    """Of a t3.small 27 volumes; its root and what others attached take places, and a second interface does."""
    node = aws_site.node_machine(aws)
    attached = {"target": "attached", "instance": node["instance"]}

    def told() -> tuple[int | None, list[str]]:
        compute = compute_of(account_of(aws, **attached))
        return compute.inventory().limits.drafts, [one.code for one in compute.check() if "volumes" in one.code]

    assert told() == (26, ["node-volumes"])
    for number in range(25):
        volume = ec2.create_volume(Size=1, AvailabilityZone=ZONE)["VolumeId"]
        place = "bc"[number // 20] + "abcdefghijklmnopqrst"[number % 20]
        ec2.attach_volume(VolumeId=volume, InstanceId=node["instance"], Device=f"/dev/xvd{place}")
    assert told() == (1, ["node-volumes"])
    nic = ec2.create_network_interface(SubnetId=home_subnet(ec2))["NetworkInterface"]["NetworkInterfaceId"]
    ec2.attach_network_interface(NetworkInterfaceId=nic, InstanceId=node["instance"], DeviceIndex=1)
    assert told() == (0, ["node-volumes-full"])
    assert compute_of(account_of(aws)).inventory().limits.drafts == 80


def checked() -> list[str]:
    """Return the actions that a check can try: all that are not limited to what is ours, or about bytes."""
    return [
        action
        for statement in (policy.LOOK, policy.READ, policy.MARK, policy.MAKE, policy.POWER)
        for action in statement.actions
    ]


def test_an_unknown_machine_is_named(compute: AwsCompute) -> None:
    for machine_id in ("i-0123456789abcdef0", "6a1b2c3d-0000-4000-8000-000000000001"):
        with pytest.raises(NotFound) as caught:
            compute.power(machine_id)
        assert machine_id in str(caught.value)


def test_the_inventory_says_what_cannot_be_protected(aws: AwsDouble, compute: AwsCompute, ec2: Any) -> None:
    machine_id = made(aws, compute, ec2)
    ec2.create_tags(Resources=[machine_id], Tags=[{"Key": "team", "Value": "shop"}])
    aws.command("billing", resource_id=machine_id, details="Windows")
    found = compute.facts(machine_id)
    assert [one.code for one in found.findings] == ["licence-billing"]
    assert found.tags["team"] == "shop"
    assert found.tags["platform_details"] == "Windows"
