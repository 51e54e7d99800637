"""The EBS direct APIs: snapshots as 512 KiB blocks with SHA-256 digests.

https://docs.aws.amazon.com/ebs/latest/userguide/ebs-accessing-snapshot.html and the API reference beside it.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from farshore.errors import Corruption, FarshoreError, Invalid, NotFound, Permanent, Retry
from farshore.platforms.aws import tags
from farshore.platforms.aws.account import Account, patiently, wait_for
from farshore.units import GIB, KIB, format_size

#: Fixed by the service.
BLOCK: Final = 512 * KIB
ZERO_BLOCK: Final = bytes(BLOCK)
#: The largest volume of any type.
LARGEST_BYTES: Final = 65536 * GIB
#: In minutes, the longest that the service allows: a draft dies when nothing is put for so long.
TIMEOUT_MIN: Final = 4320
PAGE: Final = 10_000
#: For so long after it was begun a snapshot may be unknown to some of the service.
UNSEEN_S: Final = 120.0

Row = tuple[int, str | None]


@dataclass(frozen=True, slots=True)
class SnapshotState:
    """A snapshot as EC2 describes it. ``state``: ``pending``, ``completed``, ``error`` or another."""

    snapshot_id: str
    state: str
    message: str
    volume_id: str
    size_bytes: int
    started_at: float
    tags: Mapping[str, str]


def gib_of(size_bytes: int) -> int:
    """Return the size of the volume that holds a disk, in GiB.

    Raises:
        Invalid: no volume is that large.
    """
    if size_bytes > LARGEST_BYTES:
        raise Invalid(
            f"a disk of {format_size(size_bytes)} does not fit: EBS has {format_size(LARGEST_BYTES)} at most",
            code="disk-too-large",
            field="size_bytes",
            hint="Leave the disk out of the plan, or split it.",
        )
    return max(-(-size_bytes // GIB), 1)


def digest_text(digest: bytes) -> str:
    """Return a digest as the service writes it."""
    return base64.b64encode(digest).decode()


class Ebs:
    """Snapshots of one account and region. Safe from several threads."""

    def __init__(self, account: Account) -> None:
        self._account = account

    # As blocks ------------------------------------------------------------------------------------------------------

    def start(self, gib: int, parent: str | None, token: str, named: Mapping[str, str]) -> str:
        """Begin a snapshot and return its id; the same ``token`` finds the same one."""
        settings = self._account.settings
        params: dict[str, Any] = {"ParentSnapshotId": parent} if parent else {}
        if not parent and settings.kms_key:  # a child has its parent's key
            params = {"Encrypted": True, "KmsKeyArn": settings.kms_key}
        reply = self._account.patiently(
            "ebs",
            "start_snapshot",
            VolumeSize=gib,
            ClientToken=token,
            Timeout=TIMEOUT_MIN,
            Description="Farshore",
            Tags=tags.tag_list(named),
            **params,
        )
        if reply["BlockSize"] != BLOCK:
            raise Permanent(f"the service has blocks of {reply['BlockSize']} bytes, not {BLOCK}", code="ebs-block-size")
        return str(reply["SnapshotId"])

    def put(self, snapshot_id: str, index: int, data: bytes, digest: bytes) -> None:
        """Write one block; once, for whoever calls knows how patient it is."""
        self._account.call(
            "ebs",
            "put_snapshot_block",
            SnapshotId=snapshot_id,
            BlockIndex=index,
            BlockData=data,
            DataLength=BLOCK,
            Checksum=digest_text(digest),
            ChecksumAlgorithm="SHA256",
        )

    def complete(self, snapshot_id: str, count: int, digest: bytes, *, again: bool) -> None:
        """End the writing. ``digest``: SHA-256 over the digests of all ``count`` blocks, by index.

        ``again``: an earlier call may have come through. Then, and after a lost reply, a refusal says nothing: the
        snapshot's state does.
        """
        checksum = (
            {"Checksum": digest_text(digest), "ChecksumAlgorithm": "SHA256", "ChecksumAggregationMethod": "LINEAR"}
            if count
            else {}
        )
        doubt = again

        def call() -> None:
            nonlocal doubt
            try:
                self._account.call(
                    "ebs", "complete_snapshot", SnapshotId=snapshot_id, ChangedBlocksCount=count, **checksum
                )
            except Retry as error:
                doubt = doubt or error.code not in {"throttled", "provider-busy"}
                raise

        try:
            patiently(call)
        except Retry:
            raise
        except FarshoreError:
            if not doubt:
                raise

    def get(self, snapshot_id: str, index: int, token: str) -> bytes:
        """Read one block, checked; patient with what may pass."""
        return patiently(lambda: self._get(snapshot_id, index, token))

    def _get(self, snapshot_id: str, index: int, token: str) -> bytes:
        for _ in range(3):
            reply = self._account.call(
                "ebs", "get_snapshot_block", SnapshotId=snapshot_id, BlockIndex=index, BlockToken=token
            )
            data = self._account.body(reply["BlockData"], "ebs", "get_snapshot_block")
            if len(data) == BLOCK and digest_text(sha256(data).digest()) == reply["Checksum"]:
                return data
        raise Corruption(
            f"block {index} of {snapshot_id} does not have the digest that the service says",
            code="ebs-checksum",
            snapshot=snapshot_id,
            block=index,
        )

    def blocks(self, snapshot_id: str, first: int = 0, page: int = PAGE) -> Iterator[tuple[list[Row], int | None]]:
        """Yield pages of ``(index, token)`` from block ``first`` on, and where the next one begins; None at the end."""
        return self._rows("list_snapshot_blocks", "Blocks", "BlockToken", first, page, SnapshotId=snapshot_id)

    def changed(
        self, older: str, newer: str, first: int = 0, page: int = PAGE
    ) -> Iterator[tuple[list[Row], int | None]]:
        """Like :meth:`blocks`, of what differs between two snapshots; no token where ``newer`` has no such block."""
        return self._rows(
            "list_changed_blocks",
            "ChangedBlocks",
            "SecondBlockToken",
            first,
            page,
            FirstSnapshotId=older,
            SecondSnapshotId=newer,
        )

    def _rows(
        self, operation: str, listed: str, named: str, first: int, page: int, **which: str
    ) -> Iterator[tuple[list[Row], int | None]]:
        at: dict[str, Any] = {"StartingBlockIndex": first}
        behind = first
        while True:
            try:
                reply = self._account.patiently("ebs", operation, MaxResults=page, **which, **at)
            except FarshoreError as error:
                if "NextToken" in at and error.evidence.get("reason") == "INVALID_PAGE_TOKEN":
                    at = {"StartingBlockIndex": behind}  # it lives for an hour; the list goes on behind what we have
                    continue
                raise
            rows = [(int(row["BlockIndex"]), row.get(named)) for row in reply[listed]]
            if rows:
                behind = rows[-1][0] + 1
            following = reply.get("NextToken")
            yield rows, behind if following else None
            if not following:
                return
            at = {"NextToken": following}

    # As EC2's -------------------------------------------------------------------------------------------------------

    def describe(self, snapshot_ids: list[str]) -> dict[str, SnapshotState]:
        """Return those of the snapshots that are there."""
        if not snapshot_ids:
            return {}
        filters = [{"Name": "snapshot-id", "Values": snapshot_ids}]
        return {found.snapshot_id: found for found in self.find(filters)}

    def find(self, filters: list[dict[str, Any]]) -> Iterator[SnapshotState]:
        """Yield our account's snapshots by filters."""
        for page in self._account.pages(
            "ec2", "describe_snapshots", OwnerIds=["self"], Filters=filters, MaxResults=1000
        ):
            for found in page["Snapshots"]:
                yield SnapshotState(
                    snapshot_id=found["SnapshotId"],
                    state=found["State"],
                    message=found.get("StateMessage") or "",
                    volume_id=found.get("VolumeId") or "",
                    size_bytes=int(found["VolumeSize"]) * GIB,
                    started_at=found["StartTime"].timestamp(),
                    tags=tags.tag_map(found),
                )

    def state(self, snapshot_id: str) -> SnapshotState | None:
        """Return one snapshot; None if it is not there."""
        return self.describe([snapshot_id]).get(snapshot_id)

    def delete(self, snapshot_id: str) -> None:
        """Remove a snapshot; one that is gone is no error.

        Raises:
            Conflict: an image is made of it.
        """
        try:
            self._account.patiently("ec2", "delete_snapshot", SnapshotId=snapshot_id)
        except NotFound:
            return

    def tag(self, snapshot_id: str, named: Mapping[str, str]) -> None:
        """Put tags on a snapshot."""
        self._account.patiently("ec2", "create_tags", Resources=[snapshot_id], Tags=tags.tag_list(named))

    def untag(self, snapshot_id: str, key: str) -> None:
        """Take a tag away; one that is not there is no error."""
        self._account.patiently("ec2", "delete_tags", Resources=[snapshot_id], Tags=[{"Key": key}])

    def wait_completed(self, snapshot_ids: list[str]) -> dict[str, SnapshotState]:
        """Return when all snapshots are completed, or one is in ``error`` or gone: look at the states.

        One that was just made is not told of at once everywhere: it counts as gone after some looks.
        """
        settings = self._account.settings
        missing_until = time.monotonic() + min(UNSEEN_S, 20 * settings.poll_s)

        def look() -> dict[str, SnapshotState] | None:
            found = self.describe(snapshot_ids)
            if any(one.state == "error" for one in found.values()):
                return found
            if len(found) < len(set(snapshot_ids)):
                return found if time.monotonic() >= missing_until else None
            return found if all(one.state == "completed" for one in found.values()) else None

        def late() -> FarshoreError:
            return Retry(
                f"snapshots are not completed yet: {', '.join(snapshot_ids)}",
                code="snapshot-pending",
                hint="Called again it goes on waiting.",
            )

        return wait_for(look, settings.poll_s, settings.completion_s, late)
