"""Drafts and points in EBS when calls fail, replies are lost and processes die."""

from __future__ import annotations

import random
from collections.abc import Iterator
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
from farshore.units import GIB, TIB

SIZE = 6 * BLOCK + 512
DISK = "db-1/vda"
CONTENT = random.Random(5).randbytes(SIZE)


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsDouble]:
    with pytest.MonkeyPatch.context() as patch, AwsDouble(tmp_path_factory.mktemp("aws")) as started:
        for name, value in started.environment().items():
            patch.setenv(name, value)
        yield started


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


@pytest.mark.parametrize("looks", [0, 3])
@pytest.mark.parametrize("kind", ["lost", "cut", "throttle", "5xx"])
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


@pytest.mark.parametrize("kind", ["throttle", "5xx", "lost", "cut", "expired-token"])
@pytest.mark.parametrize("operation", ["GetSnapshotBlock", "ListSnapshotBlocks"])
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
