"""The platform ``aws`` keeps the contract, before the double of AWS."""

from __future__ import annotations

from pathlib import Path

import pytest
from doubles import aws_site
from doubles.aws import AwsDouble
from farshore.platforms.aws import open_aws
from farshore.platforms.aws.account import Account
from farshore.platforms.aws.attached import AttachedTarget
from farshore.platforms.aws.manifests import S3Manifests
from farshore.platforms.aws.source import AwsSource
from farshore.platforms.aws.target import AwsTarget
from farshore.testing.contracts import (
    ManifestStoreSuite,
    SeedStand,
    SeedSuite,
    SourceStand,
    SourceSuite,
    TargetStand,
    TargetSuite,
    checks,
)
from farshore.units import GIB


@pytest.fixture(scope="module")
def aws(double: AwsDouble) -> AwsDouble:
    aws_site.make_bucket(double)
    return double


@pytest.fixture(scope="module")
def shared(aws: AwsDouble) -> Account:
    return aws_site.account(aws_site.config(aws, Path("/nowhere")))


@pytest.fixture
def account(aws: AwsDouble, shared: Account, tmp_path: Path) -> Account:
    """An account whose site nobody else uses."""
    return aws_site.account(aws_site.config(aws, tmp_path / "scratch"), shared)


class Pool(TargetStand):
    def __init__(self, account: Account) -> None:
        self._account = account

    def target(self) -> AwsTarget:
        return AwsTarget(self._account)


class Volumes(TargetStand):
    def __init__(self, account: Account) -> None:
        self._account = account

    def target(self) -> AttachedTarget:
        return AttachedTarget(self._account)


class OldPrimaries(SeedStand):
    """Root volumes of machines that are fenced, so that they are out of their places."""

    size_bytes = GIB

    def __init__(self, aws: AwsDouble, account: Account) -> None:
        self._aws = aws
        self._platform = open_aws(account.settings.model_dump())
        self._account = account
        self._volumes: dict[str, Path] = {}

    def target(self) -> AwsTarget:
        return AwsTarget(self._account)

    def disk(self, content: bytes) -> str:
        instance, compute = aws_site.Instance(self._aws), self._platform.compute
        assert compute is not None
        key = instance.key("sda1")
        instance.write(key, 0, content)
        compute.power_off(instance.machine_id)
        assert compute.fence(instance.machine_id, 2)
        self._volumes[f"machine:{key}"] = self._aws.volume(instance.volumes[key])
        return f"machine:{key}"

    def content(self, image: str, length: int) -> bytes:
        return self._volumes[image].open("rb").read(length)

    def adopt(self, disk_key: str, size_bytes: int, image: str, key: str) -> str:
        assert self._platform.adopt is not None
        return self._platform.adopt(disk_key, size_bytes, image, key)


class Machine(SourceStand):
    size_bytes = GIB

    def __init__(self, aws: AwsDouble, account: Account) -> None:
        self._account = account
        self._instance = instance = aws_site.Instance(aws)
        self.machine_id = instance.machine_id
        self.disk_keys = (instance.key("sda1"), instance.key("sdf"))

    def source(self) -> AwsSource:
        return aws_site.source(self._account)

    def write(self, disk_key: str, offset: int, data: bytes) -> None:
        self._instance.write(disk_key, offset, data)

    def forget_changes(self) -> None:
        for found in self._instance.snapshots(role="base"):
            self._instance.ec2.delete_snapshot(SnapshotId=found)

    def destroy_point(self, point_id: str) -> None:
        for found in self._instance.snapshots(point=point_id):
            self._instance.ec2.delete_snapshot(SnapshotId=found)


@pytest.mark.parametrize("check", checks(ManifestStoreSuite))
def test_s3_manifests(check: str, account: Account) -> None:
    getattr(ManifestStoreSuite(lambda: S3Manifests(account)), check)()


@pytest.mark.parametrize("check", checks(TargetSuite))
def test_aws_target(check: str, account: Account) -> None:
    getattr(TargetSuite(Pool(account)), check)()


@pytest.mark.parametrize("check", checks(SeedSuite))
def test_aws_seeds(check: str, aws: AwsDouble, account: Account) -> None:
    getattr(SeedSuite(OldPrimaries(aws, account)), check)()


@pytest.fixture(scope="module")
def node(aws: AwsDouble) -> dict[str, str]:
    return aws_site.node_machine(aws)


@pytest.mark.parametrize("check", checks(TargetSuite))
def test_aws_attached_target(check: str, aws: AwsDouble, node: dict[str, str], shared: Account, tmp_path: Path) -> None:
    stand = Volumes(aws_site.account(aws_site.config(aws, tmp_path, **node), shared))
    getattr(TargetSuite(stand), check)()


@pytest.mark.parametrize("check", checks(SourceSuite))
def test_aws_source(check: str, aws: AwsDouble, account: Account) -> None:
    getattr(SourceSuite(Machine(aws, account)), check)()
