"""Drafts that are volumes at the node's own machine, when calls fail, replies are lost and processes die."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from doubles import aws_site
from doubles.aws import AwsDouble
from farshore.errors import Conflict, FarshoreError, NotFound, Permanent, RestartFromCheckpoint, Retry
from farshore.platforms.aws import policy
from farshore.platforms.aws.account import Account
from farshore.platforms.aws.attached import AttachedTarget
from farshore.platforms.aws.compute import AwsCompute
from farshore.platforms.aws.target import AwsTarget
from farshore.platforms.aws.types import Types
from farshore.units import KIB, MIB

SIZE = 3 * MIB + 512
DISK = "db-1/vda"
CONTENT = random.Random(5).randbytes(SIZE)


@pytest.fixture(scope="module")
def shared(double: AwsDouble) -> Account:
    return aws_site.account(aws_site.config(double, Path("/nowhere")))


@pytest.fixture
def aws(double: AwsDouble) -> AwsDouble:
    double.clear()
    aws_site.make_bucket(double)
    return double


@pytest.fixture
def config(aws: AwsDouble, tmp_path: Path) -> dict[str, Any]:
    found = aws_site.config(aws, tmp_path / "scratch", **aws_site.node_machine(aws))
    aws.forget_calls()
    return found


@pytest.fixture
def account(config: dict[str, Any], shared: Account) -> Account:
    return aws_site.account(config, shared)


@pytest.fixture
def target(account: Account) -> AttachedTarget:
    return AttachedTarget(account)


def content_of(target: AttachedTarget, point: str) -> bytes:
    buffer = bytearray(SIZE)
    target.read_into(point, 0, memoryview(buffer))
    return bytes(buffer)


def sealed(target: AttachedTarget, key: str, base: str | None = None) -> str:
    draft = target.open(DISK, SIZE, base, key)
    draft.write(0, memoryview(CONTENT))
    return draft.seal()


def volumes(aws: AwsDouble) -> list[str]:
    """Return the volumes of drafts."""
    found = aws.client("ec2").describe_volumes(Filters=[{"Name": "tag:farshore:role", "Values": ["volume"]}])
    return [one["VolumeId"] for one in found["Volumes"]]


def snapshots(aws: AwsDouble) -> list[str]:
    return [one["SnapshotId"] for one in aws.client("ec2").describe_snapshots(OwnerIds=["self"])["Snapshots"]]


CHANGES = ("CreateVolume", "AttachVolume", "CreateSnapshot", "CreateTags", "DetachVolume", "DeleteVolume")
FAULTS = [(call, kind) for call in CHANGES for kind in ("lost", "5xx")] + [
    (call, kind) for call in ("DescribeVolumes", "DescribeSnapshots") for kind in ("stale", "cut")
]


@pytest.mark.parametrize(("operation", "kind"), FAULTS)
def test_a_call_that_fails_leaves_nothing_wrong(
    aws: AwsDouble, target: AttachedTarget, operation: str, kind: str
) -> None:
    aws.fault(operation, kind)
    for _ in range(3):  # a task that may pass is given out again
        try:
            point = sealed(target, "one")
            break
        except Retry:
            continue
    assert aws.pending_faults() == 0
    assert content_of(target, point) == CONTENT
    target.abandon("one")
    assert target.points() == [point] == snapshots(aws)
    assert volumes(aws) == []


def test_what_was_written_after_a_seal_that_failed_is_in_the_point(aws: AwsDouble, target: AttachedTarget) -> None:
    """The snapshot that the first seal took is never taken for the second one's."""
    draft = target.open(DISK, SIZE, None, "one")
    draft.write(0, memoryview(bytes(SIZE)))
    aws.fault("DescribeSnapshots", "error", skip=1, code="UnauthorizedOperation")
    with pytest.raises(FarshoreError):
        draft.seal()
    (early,) = snapshots(aws)
    draft.write(0, memoryview(CONTENT))
    point = draft.seal()
    assert point != early
    assert content_of(target, point) == CONTENT
    assert snapshots(aws) == [point]


@pytest.mark.parametrize("noted", [False, True])
def test_a_process_that_died_in_the_seal_finds_its_snapshot(aws: AwsDouble, account: Account, noted: bool) -> None:
    first = AttachedTarget(account)
    draft = first.open(DISK, SIZE, None, "one")
    draft.write(0, memoryview(CONTENT))
    draft.flush()
    facts = first.sealing(draft._facts)
    point = first.taken(facts)
    if not noted:  # it died before the snapshot was called a point
        aws.client("ec2").create_tags(Resources=[point], Tags=[{"Key": "farshore:role", "Value": "capture"}])
    draft.close()
    again = AttachedTarget(account)
    assert again.open(DISK, SIZE, None, "one").seal() == point
    again.abandon("one")
    assert (again.points(), volumes(aws), snapshots(aws)) == ([point], [], [point])


def test_another_term_writes_to_a_volume_of_its_own(aws: AwsDouble, target: AttachedTarget) -> None:
    first = target.open(DISK, SIZE, None, "cp-1.t1")
    first.write(0, memoryview(b"\1" * MIB))
    point = sealed(target, "cp-1.t2")
    first.write(MIB, memoryview(b"\1" * MIB))
    assert content_of(target, point) == CONTENT
    first.abandon()
    assert (target.points(), volumes(aws)) == ([point], [])


def test_two_processes_never_have_one_draft(account: Account, target: AttachedTarget) -> None:
    draft = target.open(DISK, SIZE, None, "one")
    with pytest.raises(Conflict) as caught:
        AttachedTarget(account).open(DISK, SIZE, None, "one")
    assert caught.value.code == "draft-busy"
    with pytest.raises(Conflict):
        AttachedTarget(account).abandon("one")
    draft.close()
    AttachedTarget(account).abandon("one")
    assert target.points() == []


def test_volumes_that_nobody_comes_back_for_go_with_the_next_draft(
    aws: AwsDouble, config: dict[str, Any], shared: Account, target: AttachedTarget, tmp_path: Path
) -> None:
    """Of a scratch folder that was lost, and of a machine that is gone; those of a machine that is there stay."""
    target.open(DISK, SIZE, None, "lost").close()
    shutil.rmtree(tmp_path / "scratch" / "drafts")
    other = aws_site.node_machine(aws)
    there = AttachedTarget(aws_site.account({**config, **other, "scratch": str(tmp_path / "other")}, shared))
    there.open(DISK, SIZE, None, "theirs").close()
    here = AttachedTarget(aws_site.account(config, shared))
    here.open(DISK, SIZE, None, "one").abandon()
    assert len(volumes(aws)) == 1
    assert there.points() == ["draft:theirs"]
    aws.client("ec2").terminate_instances(InstanceIds=[other["instance"]])
    here.open(DISK, SIZE, None, "two").abandon()
    assert volumes(aws) == []


def test_a_volume_that_vanished_costs_its_draft_only(aws: AwsDouble, target: AttachedTarget) -> None:
    draft = target.open(DISK, SIZE, None, "one")
    draft.write(0, memoryview(CONTENT))
    (volume,) = volumes(aws)
    aws.client("ec2").detach_volume(VolumeId=volume)
    aws.client("ec2").delete_volume(VolumeId=volume)
    with pytest.raises(RestartFromCheckpoint) as caught:
        draft.seal()
    assert caught.value.code == "draft-lost"
    draft.abandon()
    assert target.points() == []
    assert content_of(target, sealed(target, "one")) == CONTENT


def test_a_volume_that_was_detached_is_attached_again(aws: AwsDouble, target: AttachedTarget) -> None:
    draft = target.open(DISK, SIZE, None, "one")
    draft.write(0, memoryview(CONTENT))
    draft.flush()
    draft.close()
    (volume,) = volumes(aws)
    aws.client("ec2").detach_volume(VolumeId=volume)
    assert content_of(target, target.open(DISK, SIZE, None, "one").seal()) == CONTENT


def test_both_ways_stand_on_the_same_points(config: dict[str, Any], shared: Account, target: AttachedTarget) -> None:
    """The setting may be changed at any time; a draft that was begun in the other way is begun anew."""
    direct = AwsTarget(aws_site.account({**config, "target": "ebs-direct"}, shared))
    base = sealed(target, "base")
    draft = direct.open(DISK, SIZE, base, "next")
    draft.write(0, memoryview(b"\7" * 512 * KIB))
    middle = draft.seal()
    draft = direct.open(DISK, SIZE, middle, "last")
    draft.close()
    with pytest.raises(Conflict) as caught:
        target.open(DISK, SIZE, middle, "last")
    assert caught.value.code == "draft-mismatch"
    target.abandon("last")
    late = target.open(DISK, SIZE, middle, "last")
    late.write(MIB, memoryview(b"\x08" * MIB))
    late.close()
    with pytest.raises(Conflict):
        direct.open(DISK, SIZE, middle, "last")
    point = target.open(DISK, SIZE, middle, "last").seal()
    expected = b"\7" * 512 * KIB + CONTENT[512 * KIB : MIB] + b"\x08" * MIB + CONTENT[2 * MIB :]
    assert content_of(target, point) == expected
    assert content_of(target, base) == CONTENT


def test_a_place_that_somebody_else_has_taken_is_passed_over(aws: AwsDouble, target: AttachedTarget) -> None:
    aws.fault("AttachVolume", "error", times=2, code="InvalidParameterValue")
    assert content_of(target, sealed(target, "one")) == CONTENT
    assert len(aws.calls("AttachVolume")) == 3


def test_the_policy_is_enough(aws: AwsDouble, account: Account, target: AttachedTarget) -> None:
    aws.policy(policy.document(policy.Scope(aws.region, aws_site.BUCKET, account.settings.prefix)))
    base = sealed(target, "one")
    draft = target.open(DISK, SIZE, base, "two")
    draft.abandon()
    target.drop(base)
    assert {call.outcome for call in aws.calls()} == {"ok"}


def test_a_machine_that_is_full_says_so(aws: AwsDouble, target: AttachedTarget) -> None:
    aws.settings(attachments=1)
    with pytest.raises(FarshoreError) as caught:
        target.open(DISK, SIZE, None, "one")
    assert caught.value.code == "too-many-volumes"
    aws.settings(attachments=27)
    target.open(DISK, SIZE, None, "one").abandon()
    assert volumes(aws) == []


def test_a_node_knows_its_machine_by_the_hardware(
    config: dict[str, Any], shared: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = tmp_path / "board_asset_tag"
    monkeypatch.setattr("farshore.platforms.aws.volumes._ASSET_TAG", tag)
    target = AttachedTarget(aws_site.account({**config, "instance": ""}, shared))
    for text in (None, "Amazon EC2\n"):
        if text is not None:
            tag.write_text(text)
        with pytest.raises(Permanent) as caught:
            target.open(DISK, SIZE, None, "one")
        assert caught.value.code == "node-not-in-ec2"
    found = AwsCompute(target._account, Types(target._account), target.usage).check()
    assert "node-not-in-ec2" in {one.code for one in found}
    tag.write_text("i-0123456789abcdef0\n")
    with pytest.raises(NotFound):
        target.open(DISK, SIZE, None, "one")
    tag.write_text(f"{config['instance']}\n")
    found = AttachedTarget(aws_site.account({**config, "instance": ""}, shared))
    assert content_of(found, sealed(found, "one")) == CONTENT


def test_a_new_volume_has_the_key_of_the_settings(aws: AwsDouble, config: dict[str, Any], shared: Account) -> None:
    key = aws.client("kms").create_key()["KeyMetadata"]["Arn"]
    secret = AttachedTarget(aws_site.account({**config, "kms_key": key}, shared))
    point = sealed(secret, "one")
    [found] = aws.client("ec2").describe_snapshots(SnapshotIds=[point])["Snapshots"]
    assert (found["Encrypted"], found["KmsKeyId"]) == (True, key)


def test_a_key_that_cannot_be_used_is_named(aws: AwsDouble, config: dict[str, Any], shared: Account) -> None:
    kms = aws.client("kms")
    key = kms.create_key()["KeyMetadata"]["Arn"]
    kms.disable_key(KeyId=key)
    secret = AttachedTarget(aws_site.account({**config, "kms_key": key}, shared))
    with pytest.raises(Permanent) as caught:
        secret.open(DISK, SIZE, None, "one")
    assert caught.value.code == "volume-error"
    assert "KMS key" in caught.value.hint
    secret.abandon("one")
    assert volumes(aws) == []


def test_a_snapshot_that_fails_is_not_a_point_and_the_next_seal_takes_another(
    aws: AwsDouble, target: AttachedTarget
) -> None:
    draft = target.open(DISK, SIZE, None, "one")
    draft.write(0, memoryview(CONTENT))
    draft.flush()
    aws.settings(failing=volumes(aws))
    with pytest.raises(Retry) as caught:
        draft.seal()
    assert caught.value.code == "capture-failed"
    assert aws.client("ec2").describe_snapshots(OwnerIds=["self"])["Snapshots"] == []
    aws.settings(failing=[])
    assert content_of(target, draft.seal()) == CONTENT
