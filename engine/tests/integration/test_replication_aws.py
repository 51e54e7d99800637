"""From files to AWS and back: two node processes, killed on the way, with every byte compared."""

from __future__ import annotations

import errno
import json
import os
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from doubles import aws_site
from doubles.aws import AwsDouble
from doubles.datapath import Sites
from farshore.model.checkpoint import Manifest
from farshore.model.plan import Transport
from farshore.platforms.aws.ebs import BLOCK
from farshore.platforms.contract import Snapshot
from farshore.units import GIB, KIB, MIB

#: No multiple of a block, nor of a page.
DISK = 9 * MIB + 77 * 512


@pytest.fixture(scope="module")
def aws(double: AwsDouble) -> AwsDouble:
    aws_site.make_bucket(double)
    return double


class Crossing(Sites):
    """Two sites, one of which is in AWS."""

    def __init__(self, folder: Path, disks: Mapping[str, Mapping[str, int]], **platforms: dict[str, Any]) -> None:
        super().__init__(folder, disks, Transport(intermediate_checkpoint_window=4 * MIB), platforms)
        self.prefix = str(platforms.get("target", {}).get("prefix", ""))

    def copied(self, snapshot: Snapshot, **extra: Any) -> Manifest:
        """Copy a point, and be its node's next life where a fault has ended it."""
        params = self.params(snapshot)
        lives = 0
        while (reply := self.replicate(params, **extra)) == {}:
            lives += 1
            assert lives < 5
            extra.pop("faults", None)
            params = self.params(snapshot, term=lives + 1)
        assert lives == 0 or "faults" not in extra
        assert "result" in reply, json.dumps(reply)
        manifest = self.newest()
        assert manifest is not None
        return manifest


@pytest.fixture
def mode() -> str:
    """How drafts are written; a test may be asked to try both."""
    return "ebs-direct"


@pytest.fixture
def to_aws(aws: AwsDouble, tmp_path: Path, mode: str) -> Iterator[Crossing]:
    here = aws_site.node_machine(aws) if mode == "attached" else {}
    both = Crossing(tmp_path, {"db": {"vda": DISK}}, target=aws_site.config(aws, tmp_path / "scratch", **here))
    machine, noise = both.machine("db"), random.Random(1)
    machine.write("vda", 0, noise.randbytes(3 * MIB))
    machine.write("vda", 5 * MIB + 512, noise.randbytes(2 * MIB))
    machine.write("vda", DISK - 700, noise.randbytes(700))
    both.start_source()
    yield both
    both.end()
    assert left_volumes(aws, both) == []


def left_volumes(aws: AwsDouble, both: Crossing) -> list[str]:
    """Return the volumes of drafts that are still there."""
    mine = [{"Name": "tag:farshore:site", "Values": [f"{aws_site.BUCKET}/{both.prefix}"]}]
    return [one["VolumeId"] for one in aws.client("ec2").describe_volumes(Filters=mine)["Volumes"]]


@pytest.mark.parametrize("mode", ["ebs-direct", "attached"])
def test_a_disk_of_files_becomes_snapshots_and_each_keeps_what_it_was(
    aws: AwsDouble, to_aws: Crossing, mode: str
) -> None:
    machine, noise = to_aws.machine("db"), random.Random(2)
    frozen: dict[str, bytes] = {}
    for step in range(3):
        snapshot = to_aws.point()
        assert snapshot.disks[0].incremental is (step > 0)
        aws.forget_calls()
        manifest = to_aws.copied(snapshot)
        content = to_aws.frozen(snapshot)["db/vda"]
        frozen[manifest.disks[0].point] = content
        if mode == "attached":
            assert not aws.calls("PutSnapshotBlock")
            assert len(aws.calls("CreateSnapshot")) == 1
        elif step:
            assert len(aws.calls("PutSnapshotBlock")) <= 2 + 4, "a change of two places, and two MiB of zeros"
        to_aws.release(snapshot, applied=True)
        machine.discard("vda", (step + 1) * MIB, 2 * MIB)
        for _ in range(2):
            machine.write("vda", noise.randrange(0, DISK - 4096), noise.randbytes(100))
    for point, content in frozen.items():
        image = aws.snapshot(point)
        assert image.stat().st_size == GIB
        with image.open("rb") as held:
            assert held.read(DISK) == content
            assert not any(held.read(BLOCK)), "the rest of the last block"
            behind = -(-DISK // BLOCK) * BLOCK
            with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
                os.lseek(held.fileno(), behind, os.SEEK_DATA)


@pytest.mark.parametrize("mode", ["attached"])
def test_a_killed_node_goes_on_in_its_volume(aws: AwsDouble, to_aws: Crossing) -> None:
    aws.forget_calls()
    snapshot = to_aws.point()
    manifest = to_aws.copied(snapshot, faults="write#4:kill")
    assert to_aws.published(manifest) == to_aws.frozen(snapshot)
    assert len(aws.calls("CreateVolume")) == len(aws.calls("CreateSnapshot")) == 1
    assert to_aws.beta.target.points() == [manifest.disks[0].point]


@pytest.mark.parametrize("faults", ["write#2:kill", "flush-done#1:kill", "seal-done#1:kill"])
def test_a_killed_node_goes_on_in_its_snapshot(aws: AwsDouble, to_aws: Crossing, faults: str) -> None:
    aws.forget_calls()
    snapshot = to_aws.point()
    manifest = to_aws.copied(snapshot, faults=faults)
    assert to_aws.published(manifest) == to_aws.frozen(snapshot)
    assert len(aws.calls("StartSnapshot")) == 1
    assert to_aws.beta.target.points() == [manifest.disks[0].point]


@pytest.mark.parametrize("mode", ["ebs-direct", "attached"])
def test_a_draft_goes_on_with_another_source_point(aws: AwsDouble, to_aws: Crossing) -> None:
    """The first point was given up, with bytes of it in the snapshot that was begun."""
    snapshot = to_aws.point()
    assert to_aws.replicate(to_aws.params(snapshot), faults="write-done#4:kill") == {}
    to_aws.release(snapshot, applied=False)
    to_aws.machine("db").discard("vda", 0, 3 * MIB)
    aws.forget_calls()
    snapshot = to_aws.point()
    manifest = to_aws.copied(snapshot)
    assert to_aws.published(manifest) == to_aws.frozen(snapshot)
    assert to_aws.beta.target.points() == [manifest.disks[0].point]


def test_throttled_by_turns_it_still_ends(aws: AwsDouble, to_aws: Crossing) -> None:
    for skip in range(0, 20, 5):
        aws.fault("PutSnapshotBlock", "throttle", times=2, skip=skip)
    aws.fault("StartSnapshot", "throttle", times=2)
    aws.fault("CompleteSnapshot", "5xx")
    snapshot = to_aws.point()
    manifest = to_aws.copied(snapshot)
    assert to_aws.published(manifest) == to_aws.frozen(snapshot)


def test_an_instance_becomes_files(aws: AwsDouble, tmp_path: Path) -> None:
    """Full, then what changed; the source's node is killed on the way."""
    instance = aws_site.Instance(aws, ["sda1"])
    key, noise = instance.key("sda1"), random.Random(3)
    both = Crossing(tmp_path, {}, source=aws_site.config(aws, tmp_path / "scratch"))
    both.machine_ids = (instance.machine_id,)
    try:
        instance.write(key, 0, noise.randbytes(3 * MIB))
        instance.write(key, GIB - 5 * MIB, noise.randbytes(5 * MIB))
        source = both.start_source()
        for step in range(2):
            snapshot = both.point()
            assert snapshot.disks[0].incremental is (step > 0), snapshot.disks[0].reason
            aws.forget_calls()
            if step == 0:
                params = both.params(snapshot)
                target = both.start_target(params, faults="write#3+:delay=0.05")
                target.line()
                source.end()
                source = both.start_source(port=both.port)
                assert "result" in both.finish(target)
            else:
                both.copied(snapshot)
                assert len(aws.calls("GetSnapshotBlock")) <= 4 + 40, "what changed, and what an audit looks at"
            manifest = both.newest()
            assert manifest is not None
            held = aws.snapshot(snapshot.evidence["ebs"][key]["snapshot"])
            assert same(both, manifest.disks[0].point, held)
            both.release(snapshot, applied=True)
            instance.write(key, (step + 7) * 100 * MIB + 512, noise.randbytes(64 * KIB))
            instance.write(key, step * MIB, bytes(MIB))
        assert len(instance.snapshots(role="base")) == 1
        assert not instance.snapshots(role="source")
    finally:
        both.end()


def same(both: Sites, point: str, image: Path) -> bool:
    """Say whether a point of files has the bytes of a raw image."""
    buffer = bytearray(16 * MIB)
    with image.open("rb") as held:
        for at in range(0, GIB, len(buffer)):
            both.beta.target.read_into(point, at, memoryview(buffer))
            if held.read(len(buffer)) != buffer:
                return False
    return True
