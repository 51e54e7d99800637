"""A site of ours in the double of AWS: settings, and instances that a test writes to as their guests would."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from doubles.aws import AwsDouble
from farshore.platforms.aws import inventory
from farshore.platforms.aws.account import Account
from farshore.platforms.aws.settings import read
from farshore.platforms.aws.source import AwsSource
from farshore.platforms.aws.types import Types

BUCKET: Final = "farshore"
_numbers = itertools.count(1)


def make_bucket(aws: AwsDouble, name: str = BUCKET, region: str | None = None) -> None:
    """Make a bucket; without a name that of all sites."""
    where = region or aws.region
    aws.client("s3", region=where).create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": where})


def config(aws: AwsDouble, scratch: Path, **changes: Any) -> dict[str, Any]:
    """Return the settings of a site that nobody else uses, as a node's file has them."""
    return {
        "type": "aws",
        "region": aws.region,
        "zone": f"{aws.region}a",
        "bucket": BUCKET,
        "prefix": f"site-{next(_numbers)}",
        "scratch": str(scratch),
        "endpoint": aws.url,
        "poll_s": 0.02,
        **changes,
    }


def node_machine(aws: AwsDouble) -> dict[str, str]:
    """Return the settings of a node that runs on an instance, and writes drafts to volumes of it."""
    machine_id = Instance(aws, ["sda1"]).machine_id
    return {"target": "attached", "instance": machine_id, "devices": str(aws.devices(machine_id))}


def account(settings: Mapping[str, Any], like: Account | None = None) -> Account:
    """Return an account; with the clients of another one, which are slow to make."""
    made = Account(read(settings))
    if like is not None:
        made.client = like.client  # type: ignore[method-assign]
    return made


def source(of: Account) -> AwsSource:
    """Return the source of an account."""
    types = Types(of)
    return AwsSource(of, lambda machine_id: inventory.machine_facts(of, types, [inventory.instance(of, machine_id)])[0])


class Instance:
    """An instance with a root volume and others, of 1 GiB each, encrypted where there is a key."""

    def __init__(self, aws: AwsDouble, devices: Sequence[str] = ("sda1", "sdf"), kms_key: str | None = None) -> None:
        self.ec2 = aws.client("ec2")
        disk = {"VolumeSize": 1, "VolumeType": "gp3", **({"Encrypted": True, "KmsKeyId": kms_key} if kms_key else {})}
        image = self.ec2.register_image(
            Name=f"empty-{next(_numbers)}",
            RootDeviceName="/dev/sda1",
            Architecture="x86_64",
            VirtualizationType="hvm",
            BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 1}}],
        )["ImageId"]
        made = self.ec2.run_instances(
            ImageId=image,
            InstanceType="t3.small",
            MinCount=1,
            MaxCount=1,
            BlockDeviceMappings=[{"DeviceName": f"/dev/{device}", "Ebs": disk} for device in devices],
        )["Instances"][0]
        self.machine_id = str(made["InstanceId"])
        attached = [{"Name": "attachment.instance-id", "Values": [self.machine_id]}]
        self.volumes = {
            self.key(one["Attachments"][0]["Device"].removeprefix("/dev/")): one["VolumeId"]
            for one in self.ec2.describe_volumes(Filters=attached)["Volumes"]
        }
        self._images = {key: aws.volume(volume) for key, volume in self.volumes.items()}

    def key(self, device: str) -> str:
        """Return a disk's key."""
        return f"{self.machine_id}/{device}"

    def write(self, disk_key: str, offset: int, data: bytes) -> None:
        """Write as the guest would."""
        with self._images[disk_key].open("r+b") as volume:
            volume.seek(offset)
            volume.write(data)

    def snapshots(self, **tags: str) -> list[str]:
        """Return the machine's snapshots that carry ``farshore:<tag>``."""
        wanted = {**tags, "machine": self.machine_id}
        filters = [{"Name": f"tag:farshore:{key}", "Values": [value]} for key, value in wanted.items()]
        return [found["SnapshotId"] for found in self.ec2.describe_snapshots(Filters=filters)["Snapshots"]]
