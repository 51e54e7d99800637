"""The platform ``aws`` keeps the contract, before the double of AWS."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles.aws import AwsDouble
from farshore.platforms.aws import inventory
from farshore.platforms.aws.account import Account
from farshore.platforms.aws.manifests import S3Manifests
from farshore.platforms.aws.settings import AwsSettings
from farshore.platforms.aws.source import AwsSource
from farshore.platforms.aws.target import AwsTarget
from farshore.platforms.aws.types import Types
from farshore.testing.contracts import (
    ManifestStoreSuite,
    SourceStand,
    SourceSuite,
    TargetStand,
    TargetSuite,
    checks,
)
from farshore.units import GIB

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsDouble]:
    with pytest.MonkeyPatch.context() as patch, AwsDouble(tmp_path_factory.mktemp("aws")) as double:
        for name, value in double.environment().items():
            patch.setenv(name, value)
        double.client("s3").create_bucket(
            Bucket="farshore", CreateBucketConfiguration={"LocationConstraint": double.region}
        )
        yield double


@pytest.fixture(scope="module")
def shared(aws: AwsDouble) -> Account:
    """One account for all tests: its clients are slow to make."""
    return Account(_settings(aws, Path("/nowhere"), "shared"))


def _settings(aws: AwsDouble, scratch: Path, prefix: str) -> AwsSettings:
    return AwsSettings(
        region=aws.region,
        zone=f"{aws.region}a",
        bucket="farshore",
        prefix=prefix,
        scratch=str(scratch),
        endpoint=aws.url,
        poll_s=0.02,
    )


@pytest.fixture
def account(aws: AwsDouble, shared: Account, tmp_path: Path) -> Account:
    """An account whose site nobody else uses; the clients are shared."""
    own = Account(_settings(aws, tmp_path / "scratch", f"site-{next(_numbers)}"))
    own.client = shared.client  # type: ignore[method-assign]
    return own


class Pool(TargetStand):
    def __init__(self, account: Account) -> None:
        self._account = account

    def target(self) -> AwsTarget:
        return AwsTarget(self._account)


class Instance(SourceStand):
    """An instance with a root volume and another one, of the least size that there is."""

    size_bytes = GIB

    def __init__(self, aws: AwsDouble, account: Account) -> None:
        self._aws = aws
        self._account = account
        ec2 = aws.client("ec2")
        self._ec2 = ec2
        image = ec2.register_image(
            Name=f"empty-{next(_numbers)}",
            RootDeviceName="/dev/sda1",
            Architecture="x86_64",
            VirtualizationType="hvm",
            BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 1}}],
        )["ImageId"]
        made = ec2.run_instances(
            ImageId=image,
            InstanceType="t3.small",
            MinCount=1,
            MaxCount=1,
            BlockDeviceMappings=[
                {"DeviceName": device, "Ebs": {"VolumeSize": 1, "VolumeType": "gp3"}}
                for device in ("/dev/sda1", "/dev/sdf")
            ],
        )["Instances"][0]
        self.machine_id = made["InstanceId"]
        self.disk_keys = (f"{self.machine_id}/sda1", f"{self.machine_id}/sdf")
        self._volumes = {
            f"{self.machine_id}/{one['Attachments'][0]['Device'].removeprefix('/dev/')}": aws.volume(one["VolumeId"])
            for one in ec2.describe_volumes(Filters=[{"Name": "attachment.instance-id", "Values": [self.machine_id]}])[
                "Volumes"
            ]
        }

    def source(self) -> AwsSource:
        types = Types(self._account)
        return AwsSource(
            self._account,
            lambda machine_id: inventory.machine_facts(
                self._account, types, [inventory.instance(self._account, machine_id)]
            )[0],
        )

    def write(self, disk_key: str, offset: int, data: bytes) -> None:
        with self._volumes[disk_key].open("r+b") as volume:
            volume.seek(offset)
            volume.write(data)

    def forget_changes(self) -> None:
        for found in self._snapshots({"farshore:role": "base"}):
            self._ec2.delete_snapshot(SnapshotId=found)

    def destroy_point(self, point_id: str) -> None:
        for found in self._snapshots({"farshore:point": point_id}):
            self._ec2.delete_snapshot(SnapshotId=found)

    def _snapshots(self, named: dict[str, str]) -> list[str]:
        wanted = {**named, "farshore:machine": self.machine_id}
        filters = [{"Name": f"tag:{key}", "Values": [value]} for key, value in wanted.items()]
        return [found["SnapshotId"] for found in self._ec2.describe_snapshots(Filters=filters)["Snapshots"]]


@pytest.mark.parametrize("check", checks(ManifestStoreSuite))
def test_s3_manifests(check: str, account: Account) -> None:
    getattr(ManifestStoreSuite(lambda: S3Manifests(account)), check)()


@pytest.mark.parametrize("check", checks(TargetSuite))
def test_aws_target(check: str, account: Account) -> None:
    getattr(TargetSuite(Pool(account)), check)()


@pytest.mark.parametrize("check", checks(SourceSuite))
def test_aws_source(check: str, aws: AwsDouble, account: Account) -> None:
    getattr(SourceSuite(Instance(aws, account)), check)()
