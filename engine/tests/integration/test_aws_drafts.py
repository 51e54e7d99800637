"""Drafts and points in EBS when calls fail, replies are lost and processes die."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from doubles import aws_site
from doubles.aws import AwsDouble
from farshore.errors import Forbidden, Invalid, NotFound, Permanent, RestartFromCheckpoint, Retry
from farshore.platforms.aws.account import Account
from farshore.platforms.aws.ebs import BLOCK
from farshore.platforms.aws.manifests import S3Manifests
from farshore.platforms.aws.target import AwsDraft, AwsTarget
from farshore.platforms.contract import Snapshot
from farshore.units import GIB, TIB

SIZE = 6 * BLOCK + 512
DISK = "db-1/vda"
CONTENT = random.Random(5).randbytes(SIZE)


@pytest.fixture(scope="module")
def shared(double: AwsDouble) -> Account:
    return aws_site.account(aws_site.config(double, Path("/nowhere")))


@pytest.fixture
def aws(double: AwsDouble) -> AwsDouble:
    double.clear()
    aws_site.make_bucket(double)
    double.forget_calls()
    return double


@pytest.fixture
def account(aws: AwsDouble, shared: Account, tmp_path: Path) -> Account:
    return aws_site.account(aws_site.config(aws, tmp_path / "scratch"), shared)


@pytest.fixture
def target(account: Account) -> AwsTarget:
    return AwsTarget(account)


def write(draft: AwsDraft, *blocks: int, content: bytes = CONTENT) -> None:
    for index in blocks:
        part = content[index * BLOCK : (index + 1) * BLOCK]
        draft.write(index * BLOCK, memoryview(part))


def content_of(target: AwsTarget, point: str, size: int = SIZE) -> bytes:
    buffer = bytearray(size)
    target.read_into(point, 0, memoryview(buffer))
    return bytes(buffer)


def sealed(target: AwsTarget, key: str, base: str | None = None, content: bytes = CONTENT) -> str:
    draft = target.open(DISK, SIZE, base, key)
    write(draft, *range(7), content=content)
    return draft.seal()


def count(aws: AwsDouble, operation: str) -> int:
    return len(aws.calls(operation))


def test_a_draft_goes_on_in_the_same_snapshot(aws: AwsDouble, account: Account, target: AwsTarget) -> None:
    draft = target.open(DISK, SIZE, None, "cp-1.t1")
    write(draft, 0, 1, 6)
    draft.close()  # as a kill leaves it: nothing was flushed
    again = AwsTarget(account)
    assert again.points() == ["draft:cp-1.t1"]
    draft = again.open(DISK, SIZE, None, "cp-1.t1")
    write(draft, 2, 3, 4, 5)
    point = draft.seal()
    assert content_of(again, point) == CONTENT
    assert count(aws, "StartSnapshot") == 1
    assert count(aws, "PutSnapshotBlock") == 7
    assert again.points() == [point]


def test_another_term_begins_a_draft_of_its_own(aws: AwsDouble, target: AwsTarget) -> None:
    first = target.open(DISK, SIZE, None, "cp-1.t1")
    write(first, 0)
    second = target.open(DISK, SIZE, None, "cp-1.t2")
    write(second, *range(7))
    point = second.seal()
    first.abandon()
    assert content_of(target, point) == CONTENT
    assert target.points() == [point]
    assert len(aws.client("ec2").describe_snapshots(OwnerIds=["self"])["Snapshots"]) == 1


def test_a_lost_reply_to_the_start_leaves_one_snapshot(aws: AwsDouble, target: AwsTarget) -> None:
    aws.fault("StartSnapshot", "lost")
    target.open(DISK, SIZE, None, "one").close()
    assert count(aws, "StartSnapshot") == 2
    assert len(aws.client("ec2").describe_snapshots(OwnerIds=["self"])["Snapshots"]) == 1


@pytest.mark.parametrize("kind", ["lost", "cut", "throttle", "5xx"])
def test_a_block_that_failed_is_written_again(aws: AwsDouble, target: AwsTarget, kind: str) -> None:
    draft = target.open(DISK, SIZE, None, "one")
    aws.fault("PutSnapshotBlock", kind)
    with pytest.raises(Retry) as caught:
        write(draft, 3)
    assert (caught.value.code == "throttled") is (kind == "throttle")
    write(draft, *range(7))
    assert content_of(target, draft.seal()) == CONTENT


@pytest.mark.parametrize("based", [False, True])
@pytest.mark.parametrize("kind", ["lost", "cut"])
def test_what_was_on_its_way_at_a_crash_reads_as_before(
    aws: AwsDouble, account: Account, target: AwsTarget, based: bool, kind: str
) -> None:
    """Nobody wrote it again: it is no part of what the next source point changed."""
    base = sealed(target, "base") if based else None
    other = random.Random(6).randbytes(SIZE)
    draft = target.open(DISK, SIZE, base, "one")
    write(draft, 1, content=other)
    aws.fault("PutSnapshotBlock", kind)
    with pytest.raises(Retry):
        write(draft, 2, content=other)
    draft.close()
    again = AwsTarget(account)
    draft = again.open(DISK, SIZE, base, "one")
    point = draft.seal()
    before = CONTENT if based else bytes(SIZE)
    assert content_of(again, point) == before[:BLOCK] + other[BLOCK : 2 * BLOCK] + before[2 * BLOCK :]


@pytest.mark.parametrize(("kind", "looks"), [("lost", 0), ("lost", 3), ("cut", 3), ("throttle", 0)])
def test_a_seal_whose_reply_was_lost_is_found(aws: AwsDouble, target: AwsTarget, kind: str, looks: int) -> None:
    aws.settings(completion_looks=looks)
    draft = target.open(DISK, SIZE, None, "one")
    write(draft, *range(7))
    aws.fault("CompleteSnapshot", kind)
    point = draft.seal()
    assert content_of(target, point) == CONTENT
    assert target.points() == [point]


def test_a_process_that_died_in_the_seal_seals_again(aws: AwsDouble, account: Account, target: AwsTarget) -> None:
    aws.settings(completion_looks=4)
    draft = target.open(DISK, SIZE, None, "one")
    write(draft, *range(7))
    draft._complete()
    draft.close()
    again = AwsTarget(account).open(DISK, SIZE, None, "one")
    assert content_of(target, again.seal()) == CONTENT


def test_a_journal_that_is_wrong_never_becomes_a_point(account: Account, target: AwsTarget, tmp_path: Path) -> None:
    """As after a loss of power: a block was put of which the journal knows nothing."""
    draft = target.open(DISK, SIZE, None, "one")
    write(draft, 0, 1)
    draft.close()
    (journal,) = (tmp_path / "scratch" / "drafts").glob("*/blocks")
    journal.write_bytes(journal.read_bytes()[:33])
    draft = AwsTarget(account).open(DISK, SIZE, None, "one")
    with pytest.raises(RestartFromCheckpoint) as caught:
        draft.seal()
    assert caught.value.code == "draft-lost"
    draft.abandon()
    assert target.points() == []
    assert content_of(target, sealed(target, "one")) == CONTENT


def test_a_draft_that_timed_out_begins_again(aws: AwsDouble, account: Account, target: AwsTarget) -> None:
    draft = target.open(DISK, SIZE, None, "one")
    write(draft, 0)
    aws.advance(4 * 86_400)
    with pytest.raises(RestartFromCheckpoint):
        write(draft, 1)
    draft.close()
    assert target.points() == []
    assert content_of(AwsTarget(account), sealed(AwsTarget(account), "one")) == CONTENT
    assert len(aws.client("ec2").describe_snapshots(OwnerIds=["self"])["Snapshots"]) == 1


def test_a_snapshot_that_is_not_known_everywhere_yet_is_waited_for(aws: AwsDouble, target: AwsTarget) -> None:
    aws.settings(hidden_calls=2)
    draft = target.open(DISK, SIZE, None, "one")
    for _ in range(2):
        with pytest.raises(Retry) as caught:
            write(draft, 0)
        assert caught.value.code == "snapshot-unseen"
    write(draft, *range(7))
    assert content_of(target, draft.seal()) == CONTENT


def test_a_base_that_is_gone_is_named(aws: AwsDouble, target: AwsTarget) -> None:
    base = sealed(target, "base")
    aws.client("ec2").delete_snapshot(SnapshotId=base)
    with pytest.raises(NotFound) as caught:
        target.open(DISK, SIZE, base, "one")
    assert caught.value.code == "point-not-found"
    assert target.points() == []


def test_blocks_are_read_with_fresh_tokens(aws: AwsDouble, target: AwsTarget) -> None:
    point = sealed(target, "one")
    assert content_of(target, point, BLOCK) == CONTENT[:BLOCK]
    aws.advance(8 * 86_400)
    assert content_of(target, point) == CONTENT


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("GetSnapshotBlock", "throttle"),
        ("GetSnapshotBlock", "cut"),
        ("GetSnapshotBlock", "expired-token"),
        ("ListSnapshotBlocks", "5xx"),
        ("ListSnapshotBlocks", "lost"),
    ],
)
def test_reading_outlasts_what_passes(aws: AwsDouble, target: AwsTarget, operation: str, kind: str) -> None:
    point = sealed(target, "one")
    aws.fault(operation, kind, times=1 if kind == "expired-token" else 2)
    assert content_of(target, point) == CONTENT


def test_too_many_pending_snapshots_are_waited_for(
    aws: AwsDouble, target: AwsTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farshore.platforms.aws.account.patiently.__defaults__", (0.0,))
    aws.settings(pending_snapshots=1)
    first = target.open(DISK, SIZE, None, "one")
    with pytest.raises(Retry) as caught:
        target.open(DISK, SIZE, None, "two")
    assert caught.value.code == "provider-busy"
    first.abandon()
    assert content_of(target, sealed(target, "two")) == CONTENT


def test_a_missing_permission_names_the_action(aws: AwsDouble, target: AwsTarget) -> None:
    draft = target.open(DISK, SIZE, None, "one")
    aws.policy(
        {
            "Version": "2012-10-17",
            "Statement": [
                {"Effect": "Allow", "Action": "*", "Resource": "*"},
                {"Effect": "Deny", "Action": "ebs:PutSnapshotBlock", "Resource": "*"},
            ],
        }
    )
    with pytest.raises(Forbidden) as caught:
        write(draft, 0)
    aws.policy(None)
    assert caught.value.code == "permission"
    assert caught.value.evidence["action"] == "ebs:PutSnapshotBlock"
    assert "ebs:PutSnapshotBlock" in caught.value.hint


def test_parts_of_blocks_and_disks_that_are_too_large_are_refused(target: AwsTarget) -> None:
    with pytest.raises(Invalid) as caught:
        target.open(DISK, 64 * TIB + 1, None, "one")
    assert caught.value.code == "disk-too-large"
    draft = target.open(DISK, SIZE, None, "one")
    for offset, length in ((512, BLOCK), (0, BLOCK - 512), (6 * BLOCK, BLOCK)):
        with pytest.raises(Permanent):
            draft.write(offset, memoryview(bytes(length)))


def test_a_volume_is_as_large_as_whole_gibibytes_and_the_disk_keeps_its_size(aws: AwsDouble, target: AwsTarget) -> None:
    point = target.open(DISK, GIB + 512, None, "one").seal()
    (found,) = aws.client("ec2").describe_snapshots(SnapshotIds=[point])["Snapshots"]
    assert found["VolumeSize"] == 2
    assert {"Key": "farshore:size", "Value": str(GIB + 512)} in found["Tags"]


def test_a_key_that_cannot_be_used_is_named(aws: AwsDouble, account: Account, tmp_path: Path) -> None:
    kms = aws.client("kms")
    key = kms.create_key()["KeyMetadata"]["Arn"]
    secret = AwsTarget(aws_site.account(aws_site.config(aws, tmp_path, kms_key=key), account))
    point = sealed(secret, "one")
    kms.disable_key(KeyId=key)
    for call in (lambda: secret.open(DISK, SIZE, None, "two"), lambda: content_of(secret, point)):
        with pytest.raises(Permanent) as caught:
            call()
        assert caught.value.code == "kms-key"
        assert caught.value.field == "platform.kms_key"
        assert "kms:Decrypt" in caught.value.hint


@pytest.mark.parametrize("kind", ["lost", "5xx", "throttle"])
def test_a_manifest_whose_reply_was_lost_is_ours(aws: AwsDouble, account: Account, kind: str) -> None:
    store = S3Manifests(account)
    aws.fault("PutObject", kind)
    assert store.put_if_absent("groups/a/1.json", b"one")
    assert not S3Manifests(account).put_if_absent("groups/a/1.json", b"one")


def test_a_missing_bucket_is_the_settings_fault(account: Account, aws: AwsDouble, tmp_path: Path) -> None:
    changed: dict[str, Any] = aws_site.config(aws, tmp_path, bucket="nobodys-bucket")
    store = S3Manifests(aws_site.account(changed, account))
    with pytest.raises(NotFound) as caught:
        store.get("groups/a/1.json")
    assert caught.value.field == "platform.bucket"


# --- points of instances ----------------------------------------------------------------------------------------------


class Protected:
    """An instance with one disk, and a source that reads it."""

    def __init__(self, aws: AwsDouble, account: Account) -> None:
        self.instance = aws_site.Instance(aws, ["sda1"])
        self.key = self.instance.key("sda1")
        self.source = aws_site.source(account)
        self.instance.write(self.key, 0, CONTENT)

    def point(self, point_id: str, base: str | None = None) -> Snapshot:
        return self.source.snapshot("grp", point_id, [self.instance.machine_id], {self.key: base}, "machine")

    def applied(self, point_id: str, base: str | None = None) -> Snapshot:
        snapshot = self.point(point_id, base)
        self.source.release("grp", point_id, [self.instance.machine_id], applied=True)
        return snapshot

    def read(self, snapshot: Snapshot) -> bytes:
        buffer = bytearray(SIZE)
        self.source.reader(snapshot, self.key).read_into(0, memoryview(buffer))
        return bytes(buffer)


@pytest.fixture
def protected(aws: AwsDouble, account: Account) -> Protected:
    return Protected(aws, account)


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("CreateSnapshots", "lost"),
        ("CreateSnapshots", "5xx"),
        ("DescribeSnapshots", "stale"),
        ("ListChangedBlocks", "throttle"),
        ("PutObject", "lost"),
    ],
)
def test_a_point_is_taken_over_what_passes(aws: AwsDouble, protected: Protected, operation: str, kind: str) -> None:
    """And in the end there is one snapshot for each of its disks."""
    protected.applied("pt-1")
    protected.instance.write(protected.key, BLOCK, b"changed")
    aws.fault(operation, kind)
    snapshot = protected.applied("pt-2", "pt-1")
    assert snapshot.disks[0].incremental
    assert protected.read(snapshot)[BLOCK : BLOCK + 7] == b"changed"
    assert len(protected.instance.snapshots()) == 1


def test_a_list_goes_on_behind_a_page_whose_token_has_expired(aws: AwsDouble, protected: Protected) -> None:
    aws.settings(page_blocks=2, empty_page_every=3)
    protected.applied("pt-1")
    protected.instance.write(protected.key, 0, bytes(SIZE))
    snapshot = protected.point("pt-2", "pt-1")
    aws.fault("ListChangedBlocks", "expired-token", skip=2)
    extents = list(protected.source.changed(snapshot, protected.key, "pt-1"))
    assert extents[0].offset == 0
    assert all(one.offset + one.length == two.offset for one, two in itertools.pairwise(extents))
    assert extents[-1].offset + extents[-1].length == 7 * BLOCK
    assert protected.read(snapshot) == bytes(SIZE)


def test_a_base_that_was_deleted_meanwhile_ends_the_listing(protected: Protected) -> None:
    protected.applied("pt-1")
    snapshot = protected.point("pt-2", "pt-1")
    for found in protected.instance.snapshots(role="base"):
        protected.instance.ec2.delete_snapshot(SnapshotId=found)
    with pytest.raises(RestartFromCheckpoint) as caught:
        list(protected.source.changed(snapshot, protected.key, "pt-1"))
    assert caught.value.code == "base-unknown"
    assert not protected.point("pt-3", "pt-1").disks[0].incremental


def test_a_volume_in_the_place_of_another_has_no_changes_to_list(aws: AwsDouble, protected: Protected) -> None:
    protected.applied("pt-1")
    ec2, machine = protected.instance.ec2, protected.instance.machine_id
    ec2.stop_instances(InstanceIds=[machine])
    aws.settings(state_looks=0)
    ec2.describe_instances(InstanceIds=[machine])
    ec2.describe_instances(InstanceIds=[machine])
    ec2.detach_volume(VolumeId=protected.instance.volumes[protected.key], InstanceId=machine)
    other = ec2.create_volume(AvailabilityZone=f"{aws.region}a", Size=1, VolumeType="gp3")["VolumeId"]
    ec2.describe_volumes(VolumeIds=[other])
    ec2.attach_volume(VolumeId=other, InstanceId=machine, Device="/dev/sda1")
    snapshot = protected.point("pt-2", "pt-1")
    assert not snapshot.disks[0].incremental
    assert "unrelated" in snapshot.disks[0].reason
    assert protected.read(snapshot) == bytes(SIZE)


def test_a_machine_that_is_not_protected_any_more_has_nothing_of_ours(protected: Protected) -> None:
    protected.applied("pt-1")
    protected.point("pt-2", "pt-1")
    assert len(protected.source.traces(protected.instance.machine_id)) == 2
    protected.source.untrack(protected.instance.machine_id)
    assert protected.source.traces(protected.instance.machine_id) == []
    assert protected.instance.snapshots() == []
    assert protected.source.find("pt-2") is None
