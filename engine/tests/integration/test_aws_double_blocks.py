"""The double's EBS direct APIs against what their documentation says, with boto3 as it is.

https://docs.aws.amazon.com/ebs/latest/userguide/ebs-accessing-snapshot.html and the API reference beside it.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError
from doubles.aws import BLOCK, AwsDouble

_ZERO = bytes(BLOCK)


@pytest.fixture
def aws(double: AwsDouble) -> AwsDouble:
    double.clear()
    return double


def block(text: str) -> bytes:
    return text.encode() * (BLOCK // len(text))


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def coded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def start(aws: AwsDouble, gib: int = 1, **more: Any) -> str:
    return aws.client("ebs").start_snapshot(VolumeSize=gib, **more)["SnapshotId"]


def put(aws: AwsDouble, snapshot: str, index: int, data: bytes, **other: Any) -> None:
    asked = {"DataLength": len(data), "Checksum": coded(digest(data)), "ChecksumAlgorithm": "SHA256"} | other
    aws.client("ebs").put_snapshot_block(SnapshotId=snapshot, BlockIndex=index, BlockData=data, **asked)


def state(aws: AwsDouble, snapshot: str) -> str:
    [row] = aws.client("ec2").describe_snapshots(SnapshotIds=[snapshot])["Snapshots"]
    return row["State"]


def wait(aws: AwsDouble, snapshot: str) -> None:
    for _ in range(10):
        if state(aws, snapshot) == "completed":
            return
    raise AssertionError(snapshot)


def made(aws: AwsDouble, blocks: dict[int, str], gib: int = 1, parent: str | None = None) -> str:
    snapshot = start(aws, gib, **({"ParentSnapshotId": parent} if parent else {}))
    for index, text in blocks.items():
        put(aws, snapshot, index, block(text))
    aws.client("ebs").complete_snapshot(SnapshotId=snapshot, ChangedBlocksCount=len(blocks))
    wait(aws, snapshot)
    return snapshot


def pages(aws: AwsDouble, snapshot: str, **more: Any) -> Iterator[dict[str, Any]]:
    page = aws.client("ebs").list_snapshot_blocks(SnapshotId=snapshot, **more)
    yield page
    while token := page.get("NextToken"):
        page = aws.client("ebs").list_snapshot_blocks(SnapshotId=snapshot, NextToken=token, **more)
        yield page


def indexes(aws: AwsDouble, snapshot: str, **more: Any) -> list[int]:
    return [row["BlockIndex"] for page in pages(aws, snapshot, **more) for row in page["Blocks"]]


def changed(aws: AwsDouble, first: str, second: str, **more: Any) -> list[dict[str, Any]]:
    answer = aws.client("ebs").list_changed_blocks(FirstSnapshotId=first, SecondSnapshotId=second, **more)
    return answer["ChangedBlocks"]


def read(aws: AwsDouble, snapshot: str, index: int, token: str) -> bytes:
    answer = aws.client("ebs").get_snapshot_block(SnapshotId=snapshot, BlockIndex=index, BlockToken=token)
    data = answer["BlockData"].read()
    assert answer["DataLength"] == len(data) == BLOCK
    assert answer["Checksum"] == coded(digest(data))
    return data


def refused(code: str, reason: str | None = None) -> Any:
    """Expect a vendor's error."""

    def check(error: ClientError) -> bool:
        return error.response["Error"]["Code"] == code and (reason is None or error.response.get("Reason") == reason)

    return pytest.RaisesExc(ClientError, check=check)


def invalid(reason: str) -> Any:
    return refused("ValidationException", reason)


# --- writing


def test_a_snapshot_is_started_with_blocks_of_512_kib(aws: AwsDouble) -> None:
    asked = {"Description": "a disk", "Tags": [{"Key": "a", "Value": "b"}], "VolumeSize": 3}
    answer = aws.client("ebs").start_snapshot(**asked)
    assert answer["BlockSize"] == BLOCK
    assert answer["VolumeSize"] == 3
    assert answer["Status"] == "pending"
    assert answer["Tags"] == asked["Tags"]
    [row] = aws.client("ec2").describe_snapshots(SnapshotIds=[answer["SnapshotId"]])["Snapshots"]
    assert (row["State"], row["VolumeSize"], row["Description"]) == ("pending", 3, "a disk")
    assert row["Tags"] == asked["Tags"]


def test_only_written_blocks_are_listed_in_order_and_read_back(aws: AwsDouble) -> None:
    snapshot = made(aws, {9: "i", 0: "a", 5: "e"})
    [page] = pages(aws, snapshot)
    assert [row["BlockIndex"] for row in page["Blocks"]] == [0, 5, 9]
    assert (page["VolumeSize"], page["BlockSize"]) == (1, BLOCK)
    tokens = {row["BlockIndex"]: row["BlockToken"] for row in page["Blocks"]}
    assert {index: read(aws, snapshot, index, tokens[index])[:1] for index in tokens} == {0: b"a", 5: b"e", 9: b"i"}


def test_a_block_may_be_written_again_while_the_snapshot_is_pending(aws: AwsDouble) -> None:
    snapshot = start(aws)
    put(aws, snapshot, 1, block("x"))
    put(aws, snapshot, 1, block("y"))
    aws.client("ebs").complete_snapshot(SnapshotId=snapshot, ChangedBlocksCount=1)
    wait(aws, snapshot)
    [row] = next(pages(aws, snapshot))["Blocks"]
    assert read(aws, snapshot, 1, row["BlockToken"]) == block("y")


@pytest.mark.parametrize(
    ("index", "data", "other"),
    [
        (0, b"short", {}),
        (2048, _ZERO, {}),
        (0, _ZERO, {"Checksum": coded(digest(b"other"))}),
    ],
    ids=["not 512 KiB", "beyond the end", "another checksum"],
)
def test_a_bad_block_is_refused(aws: AwsDouble, index: int, data: bytes, other: dict[str, Any]) -> None:
    snapshot = start(aws)
    with invalid("INVALID_BLOCK"):
        put(aws, snapshot, index, data, **other)


def test_completion_takes_its_time_and_nothing_is_readable_before(aws: AwsDouble) -> None:
    aws.settings(completion_looks=2)
    snapshot = start(aws)
    put(aws, snapshot, 0, _ZERO)
    with invalid("INVALID_SNAPSHOT_ID"):
        indexes(aws, snapshot)
    answer = aws.client("ebs").complete_snapshot(SnapshotId=snapshot, ChangedBlocksCount=1)
    assert answer["Status"] == "pending"
    with invalid("INVALID_SNAPSHOT_ID"):
        indexes(aws, snapshot)
    assert [state(aws, snapshot) for _ in range(4)] == ["pending", "pending", "completed", "completed"]
    assert indexes(aws, snapshot) == [0]


def test_nothing_is_written_to_what_was_completed(aws: AwsDouble) -> None:
    snapshot = made(aws, {0: "a"})
    with invalid("INVALID_SNAPSHOT_ID"):
        put(aws, snapshot, 1, _ZERO)
    with invalid("INVALID_SNAPSHOT_ID"):
        aws.client("ebs").complete_snapshot(SnapshotId=snapshot, ChangedBlocksCount=1)


def test_the_checksum_of_a_snapshot_is_over_the_digests_in_the_order_of_blocks(aws: AwsDouble) -> None:
    data = {7: block("h"), 3: block("d")}
    snapshot = start(aws)
    for index, one in data.items():
        put(aws, snapshot, index, one)
    whole = coded(digest(digest(data[3]) + digest(data[7])))
    aws.client("ebs").complete_snapshot(
        SnapshotId=snapshot,
        ChangedBlocksCount=2,
        Checksum=whole,
        ChecksumAlgorithm="SHA256",
        ChecksumAggregationMethod="LINEAR",
    )
    wait(aws, snapshot)


@pytest.mark.parametrize("wrong", ["count", "checksum"])
def test_a_snapshot_that_is_not_what_was_meant_is_an_error_for_good(aws: AwsDouble, wrong: str) -> None:
    snapshot = start(aws)
    put(aws, snapshot, 0, _ZERO)
    asked: dict[str, Any] = {"SnapshotId": snapshot, "ChangedBlocksCount": 2 if wrong == "count" else 1}
    if wrong == "checksum":
        asked |= {"Checksum": coded(digest(b"x")), "ChecksumAlgorithm": "SHA256", "ChecksumAggregationMethod": "LINEAR"}
    with refused("ValidationException"):
        aws.client("ebs").complete_snapshot(**asked)
    assert state(aws, snapshot) == "error"
    with refused("ValidationException"):
        put(aws, snapshot, 0, _ZERO)


def test_a_snapshot_that_nobody_writes_to_times_out(aws: AwsDouble) -> None:
    snapshot, other = start(aws, Timeout=10), start(aws, Timeout=10)
    aws.advance(9 * 60)
    put(aws, other, 0, _ZERO)
    aws.advance(2 * 60)
    assert (state(aws, snapshot), state(aws, other)) == ("error", "pending")
    with invalid("WRITE_REQUEST_TIMEOUT"):
        put(aws, snapshot, 0, _ZERO)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"VolumeSize": 65_537}, "INVALID_VOLUME_SIZE"),
        ({"VolumeSize": 1, "KmsKeyArn": "arn:aws:kms:x"}, "INVALID_CUSTOMER_KEY"),
        ({"VolumeSize": 1, "Tags": [{"Key": "a", "Value": "1"}, {"Key": "a", "Value": "2"}]}, "INVALID_TAG"),
    ],
    ids=["too large", "a key without encryption", "a tag twice"],
)
def test_a_snapshot_that_cannot_be_is_not_started(aws: AwsDouble, asked: dict[str, Any], reason: str) -> None:
    with invalid(reason):
        aws.client("ebs").start_snapshot(**asked)
    assert aws.client("ec2").describe_snapshots(OwnerIds=["self"])["Snapshots"] == []


def test_a_client_token_finds_the_first_snapshot_and_no_other(aws: AwsDouble) -> None:
    first = start(aws, ClientToken="one")
    assert start(aws, ClientToken="one") == first
    assert start(aws, ClientToken="other") != first
    with refused("ConflictException"):
        start(aws, 2, ClientToken="one")


def test_an_account_has_100_pending_snapshots_at_most(aws: AwsDouble) -> None:
    aws.settings(pending_snapshots=2)
    first, _ = start(aws), start(aws)
    with refused("ServiceQuotaExceededException") as caught:
        start(aws)
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 402
    aws.client("ebs").complete_snapshot(SnapshotId=first, ChangedBlocksCount=0)
    start(aws)


def test_a_new_snapshot_may_not_be_known_everywhere_yet(aws: AwsDouble) -> None:
    aws.settings(hidden_calls=2)
    snapshot = start(aws)
    for _ in range(2):
        with refused("ResourceNotFoundException", "SNAPSHOT_NOT_FOUND"):
            put(aws, snapshot, 0, _ZERO)
    put(aws, snapshot, 0, _ZERO)


# --- parents


def test_a_child_inherits_and_adds(aws: AwsDouble) -> None:
    parent = made(aws, {0: "a", 5: "b", 9: "c"})
    child = made(aws, {5: "B", 20: "d"}, parent=parent)
    assert indexes(aws, child) == [0, 5, 9, 20]
    with aws.snapshot(child).open("rb") as image:
        found = {index: (image.seek(index * BLOCK), image.read(1))[1] for index in (0, 1, 5, 9, 20)}
    assert found == {0: b"a", 1: b"\0", 5: b"B", 9: b"c", 20: b"d"}


def test_changes_name_both_sides(aws: AwsDouble) -> None:
    parent = made(aws, {0: "a", 5: "b"})
    child = made(aws, {5: "B", 20: "d"}, parent=parent)
    rows = {row["BlockIndex"]: row for row in changed(aws, parent, child)}
    assert list(rows) == [5, 20]
    assert read(aws, parent, 5, rows[5]["FirstBlockToken"]) == block("b")
    assert read(aws, child, 5, rows[5]["SecondBlockToken"]) == block("B")
    assert "FirstBlockToken" not in rows[20]
    assert "SecondBlockToken" not in {row["BlockIndex"]: row for row in changed(aws, child, parent)}[20]


def test_changes_are_listed_across_generations(aws: AwsDouble) -> None:
    first = made(aws, {0: "a"})
    second = made(aws, {1: "b"}, parent=first)
    third = made(aws, {2: "c"}, parent=second)
    assert [row["BlockIndex"] for row in changed(aws, first, third)] == [1, 2]


def test_snapshots_that_are_not_related_have_no_changes(aws: AwsDouble) -> None:
    one, other = made(aws, {0: "a"}), made(aws, {0: "a"})
    with invalid("UNRELATED_SNAPSHOTS"):
        changed(aws, one, other)


def test_a_parent_must_be_completed_and_not_larger(aws: AwsDouble) -> None:
    with refused("ValidationException"):
        start(aws, ParentSnapshotId=start(aws))
    with invalid("INVALID_VOLUME_SIZE"):
        start(aws, 1, ParentSnapshotId=made(aws, {0: "a"}, gib=2))
    with refused("ResourceNotFoundException"):
        start(aws, ParentSnapshotId="snap-00000000000000000")
    grown = made(aws, {4095: "z"}, gib=2, parent=made(aws, {0: "a"}, gib=1))
    assert indexes(aws, grown) == [0, 4095]


def test_what_a_child_inherited_outlives_its_parent(aws: AwsDouble) -> None:
    parent = made(aws, {0: "a", 1: "b"})
    child = made(aws, {1: "B"}, parent=parent)
    aws.client("ec2").delete_snapshot(SnapshotId=parent)
    tokens = {row["BlockIndex"]: row["BlockToken"] for row in next(pages(aws, child))["Blocks"]}
    assert read(aws, child, 0, tokens[0]) == block("a")
    with refused("ResourceNotFoundException", "SNAPSHOT_NOT_FOUND"):
        indexes(aws, parent)
    with refused("ResourceNotFoundException"):
        changed(aws, parent, child)


# --- pages and tokens


def test_pages_go_on_until_there_is_no_token(aws: AwsDouble) -> None:
    snapshot = made(aws, dict.fromkeys(range(0, 260, 2), "p"))
    lists = [[row["BlockIndex"] for row in page["Blocks"]] for page in pages(aws, snapshot, MaxResults=100)]
    assert [len(one) for one in lists] == [100, 30]
    assert list(itertools.chain(*lists)) == list(range(0, 260, 2))
    assert indexes(aws, snapshot, StartingBlockIndex=211) == list(range(212, 260, 2))


def test_pages_may_be_short_and_empty_while_more_follows(aws: AwsDouble) -> None:
    snapshot = made(aws, dict.fromkeys(range(20), "p"))
    aws.settings(page_blocks=7, empty_page_every=2)
    lists = [[row["BlockIndex"] for row in page["Blocks"]] for page in pages(aws, snapshot)]
    assert [len(one) for one in lists] == [7, 0, 7, 0, 6]
    assert list(itertools.chain(*lists)) == list(range(20))


def test_a_page_token_lives_for_an_hour(aws: AwsDouble) -> None:
    snapshot = made(aws, dict.fromkeys(range(3), "p"))
    aws.settings(page_blocks=1)
    token = next(pages(aws, snapshot))["NextToken"]
    aws.advance(3_500)
    aws.client("ebs").list_snapshot_blocks(SnapshotId=snapshot, NextToken=token)
    aws.advance(200)
    with invalid("INVALID_PAGE_TOKEN"):
        aws.client("ebs").list_snapshot_blocks(SnapshotId=snapshot, NextToken=token)


def test_a_block_token_lives_for_seven_days(aws: AwsDouble) -> None:
    snapshot = made(aws, {0: "a"})
    page = next(pages(aws, snapshot))
    [row] = page["Blocks"]
    aws.advance(7 * 86_400 - 60)
    read(aws, snapshot, 0, row["BlockToken"])
    aws.advance(120)
    with invalid("INVALID_BLOCK_TOKEN"):
        read(aws, snapshot, 0, row["BlockToken"])
    [row] = next(pages(aws, snapshot))["Blocks"]
    read(aws, snapshot, 0, row["BlockToken"])


def test_a_block_token_is_for_one_block_of_one_snapshot(aws: AwsDouble) -> None:
    snapshot, other = made(aws, {0: "a", 1: "b"}), made(aws, {0: "a"})
    first, second = next(pages(aws, snapshot))["Blocks"]
    for whose, index, token in ((snapshot, 1, first), (other, 0, first), (snapshot, 0, second)):
        with invalid("INVALID_BLOCK_TOKEN"):
            read(aws, whose, index, token["BlockToken"])
    with invalid("INVALID_BLOCK_TOKEN"):
        read(aws, snapshot, 0, "made-up")


def test_snapshots_are_known_in_their_region_only(aws: AwsDouble) -> None:
    snapshot = made(aws, {0: "a"})
    elsewhere = aws.client("ebs", region="eu-west-1")
    with refused("ResourceNotFoundException", "SNAPSHOT_NOT_FOUND"):
        elsewhere.list_snapshot_blocks(SnapshotId=snapshot)


# --- keys


def test_a_snapshot_with_a_key_that_is_disabled_is_closed(aws: AwsDouble) -> None:
    kms = aws.client("kms")
    key = kms.create_key()["KeyMetadata"]["Arn"]
    snapshot = start(aws, Encrypted=True, KmsKeyArn=key)
    put(aws, snapshot, 0, block("s"))
    aws.client("ebs").complete_snapshot(SnapshotId=snapshot, ChangedBlocksCount=1)
    wait(aws, snapshot)
    [row] = aws.client("ec2").describe_snapshots(SnapshotIds=[snapshot])["Snapshots"]
    assert (row["Encrypted"], row["KmsKeyId"]) == (True, key)
    child = aws.client("ebs").start_snapshot(VolumeSize=1, ParentSnapshotId=snapshot)
    assert child["KmsKeyArn"] == key
    with pytest.raises(ClientError):
        start(aws, ParentSnapshotId=snapshot, Encrypted=True)
    kms.disable_key(KeyId=key)
    for call in (
        lambda: indexes(aws, snapshot),
        lambda: put(aws, child["SnapshotId"], 0, _ZERO),
        lambda: start(aws, Encrypted=True, KmsKeyArn=key),
    ):
        with refused("AccessDeniedException", "DEPENDENCY_ACCESS_DENIED"):
            call()
    kms.enable_key(KeyId=key)
    assert indexes(aws, snapshot) == [0]


# --- what may go wrong


@pytest.mark.parametrize(
    ("kind", "code", "status"),
    [
        ("throttle", "RequestThrottledException", 400),
        ("5xx", "InternalServerException", 500),
        ("expired-credentials", "ExpiredTokenException", 403),
    ],
)
def test_calls_are_refused_as_often_as_asked(aws: AwsDouble, kind: str, code: str, status: int) -> None:
    snapshot = start(aws)
    aws.fault("PutSnapshotBlock", kind, times=2, skip=1)
    put(aws, snapshot, 0, _ZERO)
    for _ in range(2):
        with refused(code) as caught:
            put(aws, snapshot, 1, _ZERO)
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    put(aws, snapshot, 1, _ZERO)
    assert [call.outcome for call in aws.calls("PutSnapshotBlock")] == ["ok", code, code, "ok"]


def test_a_reply_may_be_lost_after_the_work_was_done_or_before(aws: AwsDouble) -> None:
    aws.fault("StartSnapshot", "lost")
    with pytest.raises(ConnectionClosedError):
        start(aws, ClientToken="a")
    [left] = aws.client("ec2").describe_snapshots(OwnerIds=["self"])["Snapshots"]
    assert start(aws, ClientToken="a") == left["SnapshotId"]
    aws.fault("StartSnapshot", "cut")
    with pytest.raises(ConnectionClosedError):
        start(aws, ClientToken="b")
    assert len(aws.client("ec2").describe_snapshots(OwnerIds=["self"])["Snapshots"]) == 1
    assert [call.outcome for call in aws.calls("StartSnapshot")] == ["lost", "ok", "cut"]


def test_tokens_may_be_out_of_date_at_any_time(aws: AwsDouble) -> None:
    snapshot = made(aws, {0: "a", 1: "b"})
    [row, _] = next(pages(aws, snapshot))["Blocks"]
    aws.fault("GetSnapshotBlock", "expired-token")
    with invalid("INVALID_BLOCK_TOKEN"):
        read(aws, snapshot, 0, row["BlockToken"])
    read(aws, snapshot, 0, row["BlockToken"])


def test_who_is_too_quick_is_throttled(aws: AwsDouble) -> None:
    aws.settings(rates={"StartSnapshot": 2})
    start(aws)
    start(aws)
    with refused("RequestThrottledException", "ACCOUNT_THROTTLED"):
        start(aws)


def test_boto3_s_own_retries_get_through(aws: AwsDouble) -> None:
    aws.fault("StartSnapshot", "5xx", times=2)
    answer = aws.client("ebs", attempts=4).start_snapshot(VolumeSize=1, ClientToken="t")
    assert answer["Status"] == "pending"
    assert len(aws.calls("StartSnapshot")) == 3


def test_what_a_policy_does_not_allow_is_denied_by_name(aws: AwsDouble) -> None:
    aws.policy({"Statement": [{"Effect": "Allow", "Action": ["ebs:Start*", "ec2:Describe*"], "Resource": "*"}]})
    snapshot = start(aws)
    with refused("AccessDeniedException") as caught:
        put(aws, snapshot, 0, _ZERO)
    assert "ebs:PutSnapshotBlock" in str(caught.value)


def test_volumes_of_64_tib_take_no_room(aws: AwsDouble) -> None:
    snapshot = made(aws, {65_536 * 2048 - 1: "e"}, gib=65_536)
    assert indexes(aws, snapshot) == [65_536 * 2048 - 1]
