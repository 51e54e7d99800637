"""Back into AWS: what the old primary's volumes hold is not sent again."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from doubles import aws_site
from doubles.aws import AwsDouble
from doubles.aws.sparse import same
from doubles.datapath import Sites
from farshore.errors import Conflict, Invalid, NotFound
from farshore.model.checkpoint import CycleStats, Manifest
from farshore.model.plan import Transport
from farshore.platforms.aws.ebs import BLOCK
from farshore.platforms.contract import Platform
from farshore.platforms.file import FileMachine
from farshore.platforms.registry import open_platform
from farshore.units import GIB, MIB

DATA = 12 * MIB


@pytest.fixture(scope="module")
def aws(double: AwsDouble) -> AwsDouble:
    aws_site.make_bucket(double)
    return double


def rested(platform: Platform, machine_id: str, epoch: int = 2) -> None:
    """Let a machine be an old primary: off, and barred by the fence that takes its root volume out of its place."""
    compute = platform.compute
    assert compute is not None
    compute.power_off(machine_id)
    assert compute.fence(machine_id, epoch)


def continued(both: Sites, point: str, root: Path) -> FileMachine:
    """Return a machine of files that goes on with what a point holds."""
    machine = FileMachine.create(root, "db", {"sda1": GIB})
    buffer = bytearray(16 * MIB)
    for at in range(0, GIB, len(buffer)):
        both.beta.target.read_into(point, at, memoryview(buffer))
        if any(buffer):
            machine.write("sda1", at, bytes(buffer))
    return machine


def back(both: Sites, old_disk: str) -> dict[str, Any]:
    """Copy the machine of files, as the control plane would order it after a failover."""
    snapshot = both.point()
    params = both.params(snapshot)
    disks = tuple(disk if disk.base_point else disk.model_copy(update={"old_disk": old_disk}) for disk in params.disks)
    reply: dict[str, Any] = both.replicate(params.model_copy(update={"disks": disks}))
    both.release(snapshot, applied="result" in reply)
    return reply


def test_only_what_differs_from_the_old_primary_crosses_the_link(aws: AwsDouble, tmp_path: Path) -> None:
    instance, noise = aws_site.Instance(aws, ["sda1"]), random.Random(4)
    key, home = instance.key("sda1"), aws_site.config(aws, tmp_path / "scratch")
    instance.write(key, 0, noise.randbytes(DATA // 2))
    instance.write(key, GIB - DATA // 2, noise.randbytes(DATA // 2))
    volume = aws.volume(instance.volumes[key])
    there = Sites(tmp_path / "there", {}, Transport(), {"source": home})
    there.machine_ids = (instance.machine_id,)
    try:
        there.start_source()
        snapshot = there.point()
        assert "result" in there.replicate(there.params(snapshot))
        there.release(snapshot, applied=True)
        manifest = there.newest()
        assert manifest is not None
        machine = continued(there, manifest.disks[0].point, tmp_path / "back" / "alpha")
    finally:
        there.end()
    instance.write(key, 3 * MIB, b"written after the checkpoint, and divergent")
    machine.write("sda1", MIB + 5, b"changed")
    machine.write("sda1", 600 * MIB, noise.randbytes(1000))

    platform = open_platform(home)
    both = Sites(tmp_path / "back", {}, Transport(), {"target": home})
    both.machine_ids = ("db",)
    try:
        source = both.start_source()
        assert back(both, key)["error"]["code"] == "old-primary-not-fenced"
        rested(platform, instance.machine_id)
        before = aws.volume(instance.volumes[key]).stat().st_mtime_ns
        aws.forget_calls()
        result = back(both, key)["result"]
        stats = CycleStats.model_validate(result["stats"])
        assert stats.mode == "verify", stats.reason
        assert f"seeded from machine:{key}" in stats.reason
        assert both.sent(source) <= 3 * BLOCK
        assert len(aws.calls("PutSnapshotBlock")) == 3
        manifest = Manifest.model_validate(result["manifest"])
        assert same(machine.image("sda1"), aws.snapshot(manifest.disks[0].point))
        assert both.beta.target.points() == [manifest.disks[0].point], "the seed is gone, the point is whole"
        assert both.beta.manifests.list("seeds/") == []
        assert volume.stat().st_mtime_ns == before, "the old primary's volume is as it was"
        machine.write("sda1", 5 * MIB, b"later")
        assert back(both, key)["result"]["stats"]["mode"] == "incremental"
    finally:
        both.end()


def test_a_machine_that_is_gone_is_no_obstacle(aws: AwsDouble, tmp_path: Path) -> None:
    both = Sites(tmp_path, {"db": {"sda1": 3 * MIB}}, Transport(), {"target": aws_site.config(aws, tmp_path / "s")})
    both.fill("db", "sda1", 1, 10)
    try:
        both.start_source()
        stats = CycleStats.model_validate(back(both, "i-0123456789abcdef0/sda1")["result"]["stats"])
        assert (stats.mode, "of no use" in stats.reason) == ("full", True)
    finally:
        both.end()


def test_what_cannot_be_a_seed_is_refused(aws: AwsDouble, tmp_path: Path) -> None:
    instance = aws_site.Instance(aws)
    config = aws_site.config(aws, tmp_path)
    platform = open_platform(config)
    assert platform.adopt is not None
    image = f"machine:{instance.key('sdf')}"
    with pytest.raises(Conflict):
        platform.adopt("db/vda", GIB, image, "seed.1")
    rested(platform, instance.machine_id)
    with pytest.raises(Invalid) as caught:
        platform.adopt("db/vda", GIB - 512, image, "seed.1")
    assert caught.value.code == "seed-too-large"
    with pytest.raises(NotFound):
        platform.adopt("db/vda", GIB, f"machine:{instance.machine_id}/sdz", "seed.1")
    with pytest.raises(Invalid) as caught:
        platform.adopt("db/vda", GIB, "golden.raw", "seed.1")
    assert caught.value.code == "seed-unsupported"
    sealed = aws.client("kms").create_key()["KeyMetadata"]["Arn"]
    secret = open_platform({**config, "kms_key": sealed})
    assert secret.adopt is not None
    with pytest.raises(Invalid) as caught:
        secret.adopt("db/vda", GIB, image, "seed.1")
    assert caught.value.code == "seed-plain"
    assert platform.target.points() == []


@pytest.mark.parametrize("kind", ["lost", "cut", "5xx"])
@pytest.mark.parametrize("operation", ["CreateSnapshot", "CreateTags"])
def test_a_seed_is_taken_once(aws: AwsDouble, tmp_path: Path, operation: str, kind: str) -> None:
    instance = aws_site.Instance(aws)
    instance.write(instance.key("sdf"), MIB, b"kept")
    platform = open_platform(aws_site.config(aws, tmp_path))
    assert platform.adopt is not None
    rested(platform, instance.machine_id)
    aws.fault(operation, kind)
    image = f"machine:{instance.key('sdf')}"
    point = platform.adopt("db/vda", GIB, image, "seed.1")
    assert platform.adopt("db/vda", GIB, image, "seed.1") == point
    assert platform.target.points() == [point]
    assert aws.snapshot(point).open("rb").read(MIB + 4) == bytes(MIB) + b"kept"
    taken = aws.client("ec2").describe_snapshots(Filters=[{"Name": "tag:farshore:draft", "Values": ["seed.1"]}])
    mine = [one for one in taken["Snapshots"] if {"Key": "farshore:role", "Value": "capture"} in one["Tags"]]
    assert mine == []
