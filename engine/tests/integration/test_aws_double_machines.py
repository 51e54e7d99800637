"""The double's EC2 against what its documentation says, where moto alone says something else. With boto3 as it is.

https://docs.aws.amazon.com/AWSEC2/latest/APIReference/ and its table of error codes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from doubles.aws import BLOCK, AwsDouble

_HERE = "eu-central-1a"


@pytest.fixture
def aws(double: AwsDouble) -> AwsDouble:
    double.clear()
    return double


def refused(code: str, status: int = 400) -> Any:
    """Expect a vendor's error."""

    def check(error: ClientError) -> bool:
        found = error.response
        return found["Error"]["Code"] == code and found["ResponseMetadata"]["HTTPStatusCode"] == status

    return pytest.RaisesExc(ClientError, check=check)


def completed(aws: AwsDouble, snapshot: str) -> str:
    for _ in range(10):
        [row] = aws.client("ec2").describe_snapshots(SnapshotIds=[snapshot])["Snapshots"]
        if row["State"] == "completed":
            return snapshot
    raise AssertionError(row)


def uploaded(aws: AwsDouble, blocks: dict[int, bytes], gib: int = 1, **more: Any) -> str:
    ebs = aws.client("ebs")
    snapshot: str = ebs.start_snapshot(VolumeSize=gib, **more)["SnapshotId"]
    for index, byte in blocks.items():
        data = byte * BLOCK
        checksum = base64.b64encode(hashlib.sha256(data).digest()).decode()
        ebs.put_snapshot_block(
            SnapshotId=snapshot,
            BlockIndex=index,
            BlockData=data,
            DataLength=BLOCK,
            Checksum=checksum,
            ChecksumAlgorithm="SHA256",
        )
    ebs.complete_snapshot(SnapshotId=snapshot, ChangedBlocksCount=len(blocks))
    return completed(aws, snapshot)


def image(aws: AwsDouble, snapshot: str, **more: Any) -> str:
    asked = {
        "Name": f"image of {snapshot}",
        "Architecture": "x86_64",
        "VirtualizationType": "hvm",
        "EnaSupport": True,
        "RootDeviceName": "/dev/sda1",
        "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"SnapshotId": snapshot, "VolumeType": "gp3"}}],
    }
    return str(aws.client("ec2").register_image(**(asked | more))["ImageId"])


def launch(aws: AwsDouble, image_id: str, **more: Any) -> str:
    asked = {"ImageId": image_id, "InstanceType": "t3.micro", "MinCount": 1, "MaxCount": 1} | more
    return str(aws.client("ec2").run_instances(**asked)["Instances"][0]["InstanceId"])


def instance(aws: AwsDouble, instance_id: str) -> dict[str, Any]:
    [reservation] = aws.client("ec2").describe_instances(InstanceIds=[instance_id])["Reservations"]
    found: dict[str, Any] = reservation["Instances"][0]
    return found


def states(aws: AwsDouble, instance_id: str, looks: int) -> list[str]:
    return [instance(aws, instance_id)["State"]["Name"] for _ in range(looks)]


def volume_of(aws: AwsDouble, instance_id: str, device: str = "/dev/sda1") -> str:
    rows = {row["DeviceName"]: row["Ebs"]["VolumeId"] for row in instance(aws, instance_id)["BlockDeviceMappings"]}
    return str(rows[device])


def write(aws: AwsDouble, volume: str, index: int, data: bytes) -> None:
    with aws.volume(volume).open("r+b") as disk:
        disk.seek(index * BLOCK)
        disk.write(data)


def first_bytes(path: Path, *indexes: int) -> dict[int, bytes]:
    with path.open("rb") as disk:
        return {index: (disk.seek(index * BLOCK), disk.read(1))[1] for index in indexes}


# --- bytes of volumes


def test_a_volume_of_a_snapshot_holds_its_bytes_and_grows(aws: AwsDouble) -> None:
    snapshot = uploaded(aws, {3: b"x"})
    made = aws.client("ec2").create_volume(SnapshotId=snapshot, Size=2, AvailabilityZone=_HERE, VolumeType="gp3")
    path = aws.volume(made["VolumeId"])
    assert path.stat().st_size == 2 << 30
    assert first_bytes(path, 0, 3, 4000) == {0: b"\0", 3: b"x", 4000: b"\0"}
    aws.client("ec2").modify_volume(VolumeId=made["VolumeId"], Size=3)
    assert path.stat().st_size == 3 << 30
    with refused("InvalidParameterValue"):
        aws.client("ec2").modify_volume(VolumeId=made["VolumeId"], Size=1)


def test_a_volume_can_be_filled_with_an_image(aws: AwsDouble, tmp_path: Path) -> None:
    volume = aws.client("ec2").create_volume(Size=1, AvailabilityZone=_HERE)["VolumeId"]
    (tmp_path / "disk").write_bytes(b"boot" + bytes(BLOCK) + b"end")
    aws.put_volume(volume, tmp_path / "disk")
    assert aws.volume(volume).stat().st_size == 1 << 30
    snapshot = completed(aws, aws.client("ec2").create_snapshot(VolumeId=volume)["SnapshotId"])
    rows = aws.client("ebs").list_snapshot_blocks(SnapshotId=snapshot)["Blocks"]
    assert [row["BlockIndex"] for row in rows] == [0, 1]
    assert first_bytes(aws.snapshot(snapshot), 0, 1) == {0: b"b", 1: b"\0"}


def test_snapshots_of_a_volume_are_of_one_lineage_with_what_it_was_made_of(aws: AwsDouble) -> None:
    ec2, ebs = aws.client("ec2"), aws.client("ebs")
    origin = uploaded(aws, {0: b"a", 1: b"b"})
    volume = ec2.create_volume(SnapshotId=origin, AvailabilityZone=_HERE)["VolumeId"]
    taken = []
    for index, data in ((1, b"B" * 10), (7, b"n" * 10), (0, bytes(BLOCK))):
        write(aws, volume, index, data)
        taken.append(completed(aws, ec2.create_snapshot(VolumeId=volume)["SnapshotId"]))

    def changed(first: str, second: str) -> list[int]:
        rows = ebs.list_changed_blocks(FirstSnapshotId=first, SecondSnapshotId=second)["ChangedBlocks"]
        return [row["BlockIndex"] for row in rows]

    assert changed(origin, taken[0]) == [1]
    assert changed(taken[0], taken[1]) == [7]
    assert changed(taken[1], taken[2]) == [0]
    assert changed(origin, taken[2]) == [0, 1, 7]
    assert first_bytes(aws.snapshot(taken[0]), 0, 1, 7) == {0: b"a", 1: b"B", 7: b"\0"}


def test_an_instance_s_volumes_are_taken_together(aws: AwsDouble) -> None:
    ec2 = aws.client("ec2")
    more = [{"DeviceName": name, "Ebs": {"VolumeSize": 1}} for name in ("/dev/sdb", "/dev/sdc")]
    running = launch(aws, image(aws, uploaded(aws, {0: b"r"})), BlockDeviceMappings=more)
    left_out = volume_of(aws, running, "/dev/sdc")
    ec2.create_tags(Resources=[volume_of(aws, running)], Tags=[{"Key": "disk", "Value": "root"}])
    made = ec2.create_snapshots(
        InstanceSpecification={"InstanceId": running, "ExcludeDataVolumeIds": [left_out]},
        CopyTagsFromSource="volume",
        TagSpecifications=[{"ResourceType": "snapshot", "Tags": [{"Key": "set", "Value": "1"}]}],
    )["Snapshots"]
    assert {row["VolumeId"] for row in made} == {volume_of(aws, running), volume_of(aws, running, "/dev/sdb")}
    assert {row["State"] for row in made} == {"pending"}
    rows = ec2.describe_snapshots(Filters=[{"Name": "tag:set", "Values": ["1"]}])["Snapshots"]
    tags = {row["VolumeId"]: {tag["Key"]: tag["Value"] for tag in row["Tags"]} for row in rows}
    assert tags[volume_of(aws, running)] == {"disk": "root", "set": "1"}
    assert len(tags) == 2


def test_a_copy_in_another_region_is_whole_and_of_its_own_lineage(aws: AwsDouble) -> None:
    snapshot, west = uploaded(aws, {5: b"w"}), aws.client("ec2", region="eu-west-1")
    copy = west.copy_snapshot(SourceSnapshotId=snapshot, SourceRegion="eu-central-1")["SnapshotId"]
    seen = [west.describe_snapshots(SnapshotIds=[copy])["Snapshots"][0]["State"] for _ in range(2)]
    assert seen == ["pending", "completed"]
    rows = aws.client("ebs", region="eu-west-1").list_snapshot_blocks(SnapshotId=copy)["Blocks"]
    assert [row["BlockIndex"] for row in rows] == [5]


def test_a_copy_in_another_region_has_a_key_of_that_region(aws: AwsDouble) -> None:
    key = aws.client("kms").create_key()["KeyMetadata"]["Arn"]
    snapshot = uploaded(aws, {5: b"w"}, Encrypted=True, KmsKeyArn=key)
    near, far = aws.client("ec2"), aws.client("ec2", region="eu-west-1")
    seen = []
    for client in (near, far):
        copy = client.copy_snapshot(SourceSnapshotId=snapshot, SourceRegion="eu-central-1")["SnapshotId"]
        seen.append(client.describe_snapshots(SnapshotIds=[copy])["Snapshots"][0]["KmsKeyId"])
    assert seen[0] == key
    assert ":eu-west-1:" in seen[1]


def test_each_region_has_quotas_of_its_own(aws: AwsDouble) -> None:
    near, far = aws.client("ec2"), aws.client("ec2", region="eu-west-1")
    aws.settings(volume_gib=3, regional={"eu-west-1": {"volume_gib": 1, "pending_snapshots": 0}})
    near.create_volume(Size=2, AvailabilityZone=_HERE)
    far.create_volume(Size=1, AvailabilityZone="eu-west-1a")
    with refused("VolumeLimitExceeded"):
        far.create_volume(Size=1, AvailabilityZone="eu-west-1a")
    near.create_volume(Size=1, AvailabilityZone=_HERE)
    aws.client("ebs").start_snapshot(VolumeSize=1)
    with refused("ServiceQuotaExceededException", 402):
        aws.client("ebs", region="eu-west-1").start_snapshot(VolumeSize=1)
    told = [
        aws.client("service-quotas", region=region).get_service_quota(ServiceCode="ebs", QuotaCode="L-94D7AB7D")
        for region in ("eu-central-1", "eu-west-1")
    ]
    assert [one["Quota"]["Value"] for one in told] == [100, 0]


def test_each_region_counts_its_own_calls(aws: AwsDouble) -> None:
    aws.settings(buckets={"DescribeVolumes": (1, 0.0)})
    for region in ("eu-central-1", "eu-west-1"):
        aws.client("ec2", region=region).describe_volumes()
        with refused("RequestLimitExceeded", 503):
            aws.client("ec2", region=region).describe_volumes()


def test_volumes_are_made_of_completed_snapshots_only_and_not_smaller(aws: AwsDouble) -> None:
    ec2 = aws.client("ec2")
    pending = aws.client("ebs").start_snapshot(VolumeSize=1)["SnapshotId"]
    with refused("IncorrectState"):
        ec2.create_volume(SnapshotId=pending, AvailabilityZone=_HERE)
    with refused("InvalidSnapshot.NotFound"):
        ec2.create_volume(SnapshotId="snap-00000000000000000", AvailabilityZone=_HERE)
    with refused("InvalidParameterValue"):
        ec2.create_volume(SnapshotId=uploaded(aws, {}, gib=2), Size=1, AvailabilityZone=_HERE)
    aws.settings(volume_gib=5)
    with refused("VolumeLimitExceeded"):
        ec2.create_volume(Size=6, AvailabilityZone=_HERE)


def test_a_volume_is_attached_once_in_its_own_zone(aws: AwsDouble) -> None:
    ec2 = aws.client("ec2")
    running = launch(aws, image(aws, uploaded(aws, {0: b"r"})), Placement={"AvailabilityZone": _HERE})
    here = ec2.create_volume(Size=1, AvailabilityZone=_HERE)["VolumeId"]
    there = ec2.create_volume(Size=1, AvailabilityZone="eu-central-1b")["VolumeId"]
    ec2.attach_volume(VolumeId=here, InstanceId=running, Device="/dev/sdf")
    with refused("VolumeInUse"):
        ec2.attach_volume(VolumeId=here, InstanceId=running, Device="/dev/sdg")
    with refused("InvalidVolume.ZoneMismatch"):
        ec2.attach_volume(VolumeId=there, InstanceId=running, Device="/dev/sdg")
    with refused("VolumeInUse"):
        ec2.delete_volume(VolumeId=here)
    with refused("OperationNotPermitted"):
        ec2.detach_volume(VolumeId=volume_of(aws, running))
    ec2.detach_volume(VolumeId=here)
    ec2.delete_volume(VolumeId=here)
    with refused("InvalidVolume.NotFound"):
        ec2.describe_volumes(VolumeIds=[here])


def test_an_instance_sees_a_volume_once_it_is_attached_and_no_longer(aws: AwsDouble) -> None:
    """https://docs.aws.amazon.com/ebs/latest/userguide/identify-nvme-ebs-device.html."""
    ec2 = aws.client("ec2")
    aws.settings(attach_looks=2)
    running = launch(aws, image(aws, uploaded(aws, {0: b"r"})), Placement={"AvailabilityZone": _HERE})
    made = ec2.create_volume(SnapshotId=uploaded(aws, {3: b"s"}), AvailabilityZone=_HERE)["VolumeId"]
    device = aws.devices(running) / f"nvme-Amazon_Elastic_Block_Store_{made.replace('-', '')}"
    assert ec2.attach_volume(VolumeId=made, InstanceId=running, Device="/dev/sdf")["State"] == "attaching"
    seen = []
    for _ in range(3):
        [held] = ec2.describe_volumes(VolumeIds=[made])["Volumes"][0]["Attachments"]
        seen.append((held["State"], device.exists()))
    assert seen == [("attaching", False), ("attached", True), ("attached", True)]
    assert first_bytes(device, 3) == {3: b"s"}
    with device.open("r+b") as disk:
        disk.write(b"written by the instance")
    taken = completed(aws, ec2.create_snapshot(VolumeId=made)["SnapshotId"])
    with device.open("r+b") as disk:
        disk.write(b"and again, after that")
    assert first_bytes(aws.snapshot(taken), 0, 3) == {0: b"w", 3: b"s"}
    ec2.detach_volume(VolumeId=made)
    assert not device.exists()


def test_an_instance_has_only_so_many_volumes(aws: AwsDouble) -> None:
    ec2 = aws.client("ec2")
    aws.settings(attachments=2)
    running = launch(aws, image(aws, uploaded(aws, {0: b"r"})), Placement={"AvailabilityZone": _HERE})
    first, second = (ec2.create_volume(Size=1, AvailabilityZone=_HERE)["VolumeId"] for _ in range(2))
    ec2.attach_volume(VolumeId=first, InstanceId=running, Device="/dev/sdf")
    with refused("AttachmentLimitExceeded"):
        ec2.attach_volume(VolumeId=second, InstanceId=running, Device="/dev/sdg")


def test_a_volume_of_a_key_that_is_disabled_comes_to_nothing(aws: AwsDouble) -> None:
    ec2, kms = aws.client("ec2"), aws.client("kms")
    key = kms.create_key()["KeyMetadata"]["Arn"]
    snapshot = uploaded(aws, {0: b"s"}, Encrypted=True, KmsKeyArn=key)
    made = ec2.create_volume(SnapshotId=snapshot, AvailabilityZone=_HERE)
    assert (made["Encrypted"], made["KmsKeyId"]) == (True, key)
    image_id = image(aws, snapshot)
    kms.disable_key(KeyId=key)
    broken = ec2.create_volume(SnapshotId=snapshot, AvailabilityZone=_HERE)["VolumeId"]
    assert ec2.describe_volumes(VolumeIds=[broken])["Volumes"][0]["State"] == "error"
    started = launch(aws, image_id)
    assert states(aws, started, 2) == ["pending", "terminated"]
    assert instance(aws, started)["StateReason"]["Code"] == "Client.InvalidKMSKey.InvalidState"


def test_an_instance_tells_its_newest_start(aws: AwsDouble) -> None:
    ec2 = aws.client("ec2")
    made = launch(aws, image(aws, uploaded(aws, {0: b"r"})))
    assert states(aws, made, 2)[-1] == "running"
    first = instance(aws, made)["LaunchTime"]
    ec2.start_instances(InstanceIds=[made])  # it runs
    assert instance(aws, made)["LaunchTime"] == first
    ec2.stop_instances(InstanceIds=[made])
    assert states(aws, made, 2)[-1] == "stopped"
    assert instance(aws, made)["LaunchTime"] == first
    attached = ec2.describe_volumes(VolumeIds=[volume_of(aws, made)])["Volumes"][0]["Attachments"][0]["AttachTime"]
    ec2.start_instances(InstanceIds=[made])
    assert instance(aws, made)["LaunchTime"] > max(first, attached)


# --- images


def test_an_image_is_what_it_was_registered_as(aws: AwsDouble) -> None:
    ec2, snapshot = aws.client("ec2"), uploaded(aws, {0: b"r"}, gib=2)
    made = image(aws, snapshot, BootMode="uefi", RootDeviceName="/dev/sda1", Description="d")
    [row] = ec2.describe_images(ImageIds=[made])["Images"]
    [mapping] = row["BlockDeviceMappings"]
    assert mapping["Ebs"]["SnapshotId"] == snapshot
    assert mapping["Ebs"]["VolumeSize"] == 2
    assert mapping["Ebs"]["VolumeType"] == "gp3"
    wanted = {
        "BootMode": "uefi",
        "Architecture": "x86_64",
        "RootDeviceType": "ebs",
        "EnaSupport": True,
        "PlatformDetails": "Linux/UNIX",
    }
    assert row | wanted == row
    assert [one["SnapshotId"] for one in ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]] == [snapshot]
    aws.billing(made, "Windows")
    assert ec2.describe_images(ImageIds=[made])["Images"][0]["PlatformDetails"] == "Windows"


def test_an_image_that_cannot_be_is_refused(aws: AwsDouble) -> None:
    snapshot = uploaded(aws, {}, gib=2)
    image(aws, snapshot, Name="taken")
    with refused("InvalidAMIName.Duplicate"):
        image(aws, snapshot, Name="taken")
    with refused("InvalidBlockDeviceMapping"):
        image(aws, snapshot, Name="no root", RootDeviceName="/dev/xvda")
    for ebs in ({"SnapshotId": snapshot, "Encrypted": True}, {"SnapshotId": snapshot, "VolumeSize": 1}):
        with refused("InvalidBlockDeviceMapping"):
            image(aws, snapshot, Name="other", BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": ebs}])


def test_a_snapshot_in_use_by_an_image_stays(aws: AwsDouble) -> None:
    ec2, snapshot = aws.client("ec2"), uploaded(aws, {0: b"r"})
    made = image(aws, snapshot)
    with refused("InvalidSnapshot.InUse"):
        ec2.delete_snapshot(SnapshotId=snapshot)
    ec2.deregister_image(ImageId=made)
    ec2.delete_snapshot(SnapshotId=snapshot)
    with refused("InvalidSnapshot.NotFound"):
        ec2.delete_snapshot(SnapshotId=snapshot)


# --- instances


def test_an_instance_has_the_disks_of_its_image_and_the_groups_of_its_interface(aws: AwsDouble) -> None:
    ec2 = aws.client("ec2")
    subnet = ec2.describe_subnets()["Subnets"][0]
    group = ec2.create_security_group(GroupName="deny", Description="d", VpcId=subnet["VpcId"])["GroupId"]
    interface = {"DeviceIndex": 0, "SubnetId": subnet["SubnetId"], "Groups": [group]}
    running = launch(aws, image(aws, uploaded(aws, {9: b"q"})), NetworkInterfaces=[interface])
    found = instance(aws, running)
    assert [one["GroupId"] for one in found["SecurityGroups"]] == [group]
    assert [one["GroupId"] for one in found["NetworkInterfaces"][0]["Groups"]] == [group]
    assert first_bytes(aws.volume(volume_of(aws, running)), 9) == {9: b"q"}
    ec2.terminate_instances(InstanceIds=[running])
    assert ec2.describe_volumes()["Volumes"] == []
    assert ec2.describe_network_interfaces()["NetworkInterfaces"] == []


def test_an_interface_of_its_own_outlives_the_instance(aws: AwsDouble) -> None:
    ec2 = aws.client("ec2")
    subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    made = ec2.create_network_interface(SubnetId=subnet)["NetworkInterface"]["NetworkInterfaceId"]
    taken = [{"DeviceIndex": 0, "NetworkInterfaceId": made}]
    image_id = image(aws, uploaded(aws, {0: b"r"}))
    running = launch(aws, image_id, NetworkInterfaces=taken)
    with refused("InvalidNetworkInterface.InUse"):
        launch(aws, image_id, NetworkInterfaces=taken)
    with refused("InvalidParameterValue"):
        ec2.delete_network_interface(NetworkInterfaceId=made)
    ec2.terminate_instances(InstanceIds=[running])
    [row] = ec2.describe_network_interfaces(NetworkInterfaceIds=[made])["NetworkInterfaces"]
    assert row["Status"] == "available"
    ec2.delete_network_interface(NetworkInterfaceId=made)


def test_states_and_checks_take_their_time(aws: AwsDouble) -> None:
    ec2 = aws.client("ec2")
    aws.settings(state_looks=2, status_looks=1)
    running = launch(aws, image(aws, uploaded(aws, {0: b"r"})))
    assert states(aws, running, 3) == ["pending", "pending", "running"]

    def status() -> str:
        return str(
            ec2.describe_instance_status(InstanceIds=[running])["InstanceStatuses"][0]["InstanceStatus"]["Status"]
        )

    assert [status() for _ in range(3)] == ["initializing", "ok", "ok"]
    aws.settings(impaired=[running])
    assert status() == "impaired"
    ec2.stop_instances(InstanceIds=[running])
    with refused("IncorrectInstanceState"):
        ec2.start_instances(InstanceIds=[running])
    assert states(aws, running, 3) == ["stopping", "stopping", "stopped"]
    assert ec2.describe_instance_status(InstanceIds=[running])["InstanceStatuses"] == []
    ec2.terminate_instances(InstanceIds=[running])
    assert states(aws, running, 3) == ["shutting-down", "shutting-down", "terminated"]


def test_a_client_token_finds_the_first_instance_and_no_other(aws: AwsDouble) -> None:
    image_id = image(aws, uploaded(aws, {0: b"r"}))
    first = launch(aws, image_id, ClientToken="t")
    assert launch(aws, image_id, ClientToken="t") == first
    assert launch(aws, image_id, ClientToken="u") != first
    with refused("IdempotentParameterMismatch"):
        launch(aws, image_id, ClientToken="t", InstanceType="t3.large")


@pytest.mark.parametrize(
    ("settings", "kind", "code", "status"),
    [
        ({"no_capacity": ["t3.micro"]}, "t3.micro", "InsufficientInstanceCapacity", 500),
        ({"not_offered": {_HERE: ["t3.micro"]}}, "t3.micro", "Unsupported", 400),
        ({"vcpus": 3}, "t3.xlarge", "VcpuLimitExceeded", 400),
        ({}, "nothing.huge", "InvalidParameterValue", 400),
        ({}, "t4g.micro", "InvalidParameterValue", 400),
    ],
    ids=["no capacity", "not offered", "quota", "unknown", "architecture"],
)
def test_a_launch_may_be_refused(aws: AwsDouble, settings: dict[str, Any], kind: str, code: str, status: int) -> None:
    image_id = image(aws, uploaded(aws, {0: b"r"}))
    aws.settings(**settings)
    with refused(code, status):
        launch(aws, image_id, InstanceType=kind, Placement={"AvailabilityZone": _HERE})
    assert aws.client("ec2").describe_volumes()["Volumes"] == []


def test_a_console_shows_what_the_guest_said(aws: AwsDouble) -> None:
    ec2 = aws.client("ec2")
    running = launch(aws, image(aws, uploaded(aws, {0: b"r"})))
    assert "Output" not in ec2.get_console_output(InstanceId=running)
    aws.console(running, "login:\n")
    assert ec2.get_console_output(InstanceId=running)["Output"] == "login:\n"
    assert states(aws, running, 2)[-1] == "running"
    picture = ec2.get_console_screenshot(InstanceId=running)["ImageData"]
    assert base64.b64decode(picture).startswith(b"\xff\xd8")


# --- what may go wrong


def test_a_describe_may_be_behind(aws: AwsDouble) -> None:
    ec2 = aws.client("ec2")
    old = ec2.create_volume(Size=1, AvailabilityZone=_HERE)["VolumeId"]
    new = ec2.create_volume(Size=1, AvailabilityZone=_HERE)["VolumeId"]
    aws.fault("DescribeVolumes", "stale", times=2)
    with refused("InvalidVolume.NotFound"):
        ec2.describe_volumes(VolumeIds=[new])
    assert [row["VolumeId"] for row in ec2.describe_volumes()["Volumes"]] == [old]
    assert {row["VolumeId"] for row in ec2.describe_volumes()["Volumes"]} == {old, new}
    running = launch(aws, image(aws, uploaded(aws, {0: b"r"})))
    assert states(aws, running, 2) == ["pending", "running"]
    ec2.terminate_instances(InstanceIds=[running])
    aws.fault("DescribeInstances", "stale")
    assert states(aws, running, 3) == ["running", "shutting-down", "terminated"]


def test_a_bucket_of_calls_runs_dry(aws: AwsDouble) -> None:
    aws.settings(buckets={"DescribeVolumes": (2, 0.0)})
    for _ in range(2):
        aws.client("ec2").describe_volumes()
    with refused("RequestLimitExceeded", 503):
        aws.client("ec2").describe_volumes()
    aws.client("ec2").describe_snapshots()


_CALLS: dict[str, tuple[Callable[[AwsDouble], Any], str, str]] = {
    "ec2": (lambda aws: aws.client("ec2").describe_volumes(), "UnauthorizedOperation", "ec2:DescribeVolumes"),
    "s3": (lambda aws: aws.client("s3").list_buckets(), "AccessDenied", "s3:ListAllMyBuckets"),
    "kms": (lambda aws: aws.client("kms").list_keys(), "AccessDeniedException", "kms:ListKeys"),
    "iam": (lambda aws: aws.client("iam").list_roles(), "AccessDenied", "iam:ListRoles"),
}


@pytest.mark.parametrize("service", _CALLS)
def test_what_no_policy_allows_is_denied_by_name(aws: AwsDouble, service: str) -> None:
    call, code, action = _CALLS[service]
    aws.policy({"Statement": [{"Effect": "Allow", "Action": "sts:*", "Resource": "*"}]})
    with refused(code, 403) as caught:
        call(aws)
    assert action in str(caught.value)
    aws.policy({"Statement": [{"Effect": "Allow", "Action": [action], "Resource": "*"}]})
    call(aws)
    everything = {"Effect": "Allow", "Action": "*", "Resource": "*"}
    aws.policy({"Statement": [everything, {"Effect": "Deny", "Action": action, "Resource": "*"}]})
    with refused(code, 403):
        call(aws)


def test_a_role_may_ask_for_an_external_id(aws: AwsDouble) -> None:
    role = "arn:aws:iam::123456789012:role/node"
    aws.settings(external_ids={role: "known-to-us"})
    sts = aws.client("sts")
    with refused("AccessDenied", 403):
        sts.assume_role(RoleArn=role, RoleSessionName="one")
    sts.assume_role(RoleArn=role, RoleSessionName="one", ExternalId="known-to-us")


def test_an_object_is_created_once(aws: AwsDouble) -> None:
    s3 = aws.client("s3")
    s3.create_bucket(Bucket="manifests", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    s3.put_object(Bucket="manifests", Key="a/b", Body=b"1", IfNoneMatch="*")
    with refused("PreconditionFailed", 412):
        s3.put_object(Bucket="manifests", Key="a/b", Body=b"2", IfNoneMatch="*")
    assert s3.get_object(Bucket="manifests", Key="a/b")["Body"].read() == b"1"
    assert [call.operation for call in aws.calls()] == ["CreateBucket", "PutObject", "PutObject", "GetObject"]


def test_quotas_can_be_asked_for(aws: AwsDouble) -> None:
    aws.settings(vcpus=12)
    quotas = aws.client("service-quotas")
    assert quotas.get_service_quota(ServiceCode="ec2", QuotaCode="L-1216C47A")["Quota"]["Value"] == 12
