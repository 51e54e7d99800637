"""The EBS direct APIs, from https://docs.aws.amazon.com/ebs/latest/APIReference/ and the user guide's chapter on them.

A snapshot inherits its parent's blocks and is readable once it is completed, which takes some looks. Lists come in
order, in pages that may be short or empty while more follows. Tokens of pages live for an hour, those of blocks for
seven days. A block's checksum is verified as it comes; CompleteSnapshot verifies the number of blocks that were
written and, where it is given, the digest over all their digests in order.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from typing import Any, Final
from urllib.parse import unquote

from doubles.aws.blocks import BLOCK, BLOCKS_PER_GIB, Snapshot, from_block
from doubles.aws.errors import ApiError
from doubles.aws.faults import Fault
from doubles.aws.http_server import Reply, Request
from doubles.aws.world import World

_BLOCK_TOKEN_S: Final = 7 * 86_400
_PAGE_TOKEN_S: Final = 3_600
_KEY: Final = secrets.token_bytes(16)
_OWNER: Final = "123456789012"
_LARGEST_GIB: Final = 65_536


def operation_of(request: Request) -> str:
    """Return which operation a request asks for."""
    parts = request.target.partition("?")[0].strip("/").split("/")
    match request.method, parts:
        case "POST", ["snapshots"]:
            return "StartSnapshot"
        case "POST", ["snapshots", "completion", _]:
            return "CompleteSnapshot"
        case "PUT", ["snapshots", _, "blocks", _]:
            return "PutSnapshotBlock"
        case "GET", ["snapshots", _, "blocks", _]:
            return "GetSnapshotBlock"
        case "GET", ["snapshots", _, "blocks"]:
            return "ListSnapshotBlocks"
        case "GET", ["snapshots", _, "changedblocks"]:
            return "ListChangedBlocks"
    return "Unknown"


def resource_of(request: Request) -> str:
    """Return the snapshot that a request is about."""
    parts = unquote(request.target.partition("?")[0]).strip("/").split("/")
    return next((part for part in parts if part.startswith("snap-")), "")


def answer(world: World, operation: str, region: str, request: Request, fault: Fault | None) -> Reply:
    """Do what is asked."""
    expired = fault is not None and fault.kind == "expired-token"
    match operation:
        case "StartSnapshot":
            return _start(world, region, json.loads(bytes(request.body) or b"{}"))
        case "PutSnapshotBlock":
            return _put(world, region, request)
        case "CompleteSnapshot":
            return _complete(world, region, request)
        case "GetSnapshotBlock":
            return _get(world, region, request, expired=expired)
        case "ListSnapshotBlocks":
            return _list_blocks(world, region, request, expired=expired)
        case "ListChangedBlocks":
            return _list_changed(world, region, request, expired=expired)
    raise ApiError("ValidationException", f"no such operation: {request.method} {request.path}")


def _invalid(message: str, reason: str = "INVALID_PARAMETER_VALUE") -> ApiError:
    return ApiError("ValidationException", message, reason)


def _json(status: int, document: dict[str, Any]) -> Reply:
    return Reply(status, {"Content-Type": "application/json"}, json.dumps(document).encode())


def _snapshot(world: World, region: str, snapshot_id: str) -> Snapshot:
    snapshot = world.blocks.snapshots.get(snapshot_id)
    if snapshot is not None and snapshot.hidden > 0:
        snapshot.hidden -= 1
        snapshot = None
    if snapshot is None or snapshot.region != region:
        raise ApiError(
            "ResourceNotFoundException", f"The snapshot '{snapshot_id}' does not exist.", "SNAPSHOT_NOT_FOUND"
        )
    world.settle(snapshot)
    if snapshot.kms_key is not None and not world.key_usable(region, snapshot.kms_key):
        raise ApiError(
            "AccessDeniedException", f"The key {snapshot.kms_key} cannot be used", "DEPENDENCY_ACCESS_DENIED"
        )
    return snapshot


def _completed(world: World, region: str, snapshot_id: str) -> Snapshot:
    snapshot = _snapshot(world, region, snapshot_id)
    if snapshot.state != "completed":
        raise _invalid(f"The snapshot '{snapshot_id}' is not in the completed state", "INVALID_SNAPSHOT_ID")
    return snapshot


def _pending(world: World, region: str, snapshot_id: str) -> Snapshot:
    snapshot = _snapshot(world, region, snapshot_id)
    if snapshot.state == "error":
        raise _invalid(
            f"The snapshot '{snapshot_id}' is in the error state: {snapshot.message}", "WRITE_REQUEST_TIMEOUT"
        )
    if snapshot.state != "pending" or snapshot.sealed:
        raise _invalid(f"The snapshot '{snapshot_id}' is not in the pending state", "INVALID_SNAPSHOT_ID")
    return snapshot


# --- writing


def _start(world: World, region: str, asked: dict[str, Any]) -> Reply:
    size, parent_id, timeout = asked.get("VolumeSize"), asked.get("ParentSnapshotId"), asked.get("Timeout", 60)
    if not isinstance(size, int) or not 1 <= size <= _LARGEST_GIB:
        raise _invalid(f"VolumeSize must be between 1 and {_LARGEST_GIB} GiB", "INVALID_VOLUME_SIZE")
    if not 10 <= timeout <= 4_320:
        raise _invalid("Timeout must be between 10 and 4320 minutes")
    if len(asked.get("Tags", [])) > 50 or len({tag["Key"] for tag in asked.get("Tags", [])}) != len(
        asked.get("Tags", [])
    ):
        raise _invalid("A snapshot has 50 tags at most, each key once", "INVALID_TAG")
    if parent_id and (asked.get("Encrypted") is not None or asked.get("KmsKeyArn")):
        raise _invalid("Encrypted and KmsKeyArn cannot be given with ParentSnapshotId")
    if asked.get("KmsKeyArn") and not asked.get("Encrypted"):
        raise _invalid("KmsKeyArn needs Encrypted", "INVALID_CUSTOMER_KEY")
    with world.lock:
        token = (region, "StartSnapshot", asked.get("ClientToken", ""))
        arguments = {name: value for name, value in asked.items() if name != "ClientToken"}
        if token[2] and token in world.tokens:
            known_arguments, known_id = world.tokens[token]
            if known_arguments != arguments:
                raise ApiError("ConflictException", "The client token was used with other parameters")
            if (known := world.blocks.snapshots.get(known_id)) is not None:
                world.settle(known)
                return _json(201, _started(known, asked))
        parent = _completed(world, region, parent_id) if parent_id else None
        if parent is not None and parent.size_gib > size:
            raise _invalid("VolumeSize is smaller than the parent's", "INVALID_VOLUME_SIZE")
        for one in world.blocks.snapshots.values():
            world.settle(one)
        pending = sum(
            one.state == "pending" and not one.sealed for one in world.blocks.snapshots.values() if one.region == region
        )
        if pending >= world.behaviour.quota("pending_snapshots", region):
            raise ApiError(
                "ServiceQuotaExceededException", "Pending snapshots per account", "DEPENDENCY_SERVICE_QUOTA_EXCEEDED"
            )
        known = sum(one.region == region for one in world.blocks.snapshots.values())
        if known >= world.behaviour.quota("snapshots", region):
            raise ApiError("ServiceQuotaExceededException", "Snapshots per region", "DEPENDENCY_SERVICE_QUOTA_EXCEEDED")
        key = parent.kms_key if parent is not None else None
        if asked.get("Encrypted"):
            key = asked.get("KmsKeyArn") or world.default_key(region)
        if key is not None and not world.key_usable(region, key):
            raise ApiError("AccessDeniedException", f"The key {key} cannot be used", "DEPENDENCY_ACCESS_DENIED")
        snapshot_id, now = f"snap-0{secrets.token_hex(8)}", world.clock.now()
        snapshot = Snapshot(
            snapshot_id,
            region,
            size,
            parent_id or None,
            parent.lineage if parent else snapshot_id,
            now,
            timeout * 60.0,
            key,
        )
        snapshot.active, snapshot.hidden = now, world.behaviour.hidden_calls
        world.blocks.snapshots[snapshot_id] = snapshot
        if token[2]:
            world.tokens[token] = (arguments, snapshot_id)
        tags = {tag["Key"]: tag["Value"] for tag in asked.get("Tags", [])}
        world.register(snapshot, tags, asked.get("Description", ""))
        world.started(snapshot_id)
        return _json(201, _started(snapshot, asked))


def _started(snapshot: Snapshot, asked: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "SnapshotId": snapshot.snapshot_id,
        "OwnerId": _OWNER,
        "Status": snapshot.state,
        "StartTime": snapshot.started,
        "VolumeSize": snapshot.size_gib,
        "BlockSize": BLOCK,
        "SseType": "sse-kms" if snapshot.kms_key else "none",
    }
    for name in ("Description", "Tags", "ParentSnapshotId"):
        if asked.get(name):
            answer[name] = asked[name]
    return answer | ({"KmsKeyArn": snapshot.kms_key} if snapshot.kms_key else {})


def _put(world: World, region: str, request: Request) -> Reply:
    _, snapshot_id, _, index_text = request.path.strip("/").split("/")
    index, checksum = int(index_text), request.headers.get("x-amz-checksum", "")
    if len(request.body) != BLOCK or request.headers.get("x-amz-data-length") != str(BLOCK):
        raise _invalid(f"A block has {BLOCK} bytes", "INVALID_BLOCK")
    if request.headers.get("x-amz-checksum-algorithm") != "SHA256" or not checksum:
        raise _invalid("The checksum algorithm is SHA256")
    digest = base64.b64decode(checksum)
    if world.behaviour.verify and hashlib.sha256(request.body).digest() != digest:
        raise _invalid("The checksum does not match the data", "INVALID_BLOCK")
    with world.lock:
        snapshot = _pending(world, region, snapshot_id)
        if not 0 <= index < snapshot.size_gib * BLOCKS_PER_GIB:
            raise _invalid(f"The block {index} is beyond the end of the volume", "INVALID_BLOCK")
        snapshot.writing += 1
    try:
        world.blocks.put(snapshot, index, request.body)
    finally:
        with world.lock:
            snapshot.writing -= 1
            snapshot.own[index] = digest
            snapshot.active = world.clock.now()
    return Reply(201, {"x-amz-Checksum": checksum, "x-amz-Checksum-Algorithm": "SHA256"})


def _complete(world: World, region: str, request: Request) -> Reply:
    snapshot_id = request.path.strip("/").split("/")[2]
    count, checksum = int(request.headers.get("x-amz-changedblockscount", "-1")), request.headers.get("x-amz-checksum")
    with world.lock:
        known = _snapshot(world, region, snapshot_id)
        if known.sealed and known.seal == (count, checksum) and world.behaviour.complete_again:
            return _json(202, {"Status": known.state})
        snapshot = _pending(world, region, snapshot_id)
        if count < 0:
            raise _invalid("ChangedBlocksCount is not negative")
        if checksum is not None:
            if request.headers.get("x-amz-checksum-algorithm") != "SHA256":
                raise _invalid("The checksum algorithm is SHA256")
            if request.headers.get("x-amz-checksum-aggregation-method") != "LINEAR":
                raise _invalid("The aggregation method is LINEAR")
        if snapshot.writing:
            raise _invalid("Blocks are still being written", "CONFLICTING_BLOCK_UPDATE")
        whole = hashlib.sha256(b"".join(snapshot.own[block] for block in sorted(snapshot.own))).digest()
        if count != len(snapshot.own):
            snapshot.state, snapshot.message = "error", "ChangedBlocksCount does not match the blocks that were written"
            raise _invalid(snapshot.message)
        if checksum is not None and base64.b64decode(checksum) != whole:
            snapshot.state, snapshot.message = "error", "The aggregated checksum does not match"
            raise _invalid(snapshot.message)
        world.blocks.seal(snapshot)
        snapshot.sealed, snapshot.looks, snapshot.seal = True, world.behaviour.completion_looks, (count, checksum)
        return _json(202, {"Status": "pending"})


# --- reading


def _signed(text: str) -> str:
    mark = hmac.new(_KEY, text.encode(), hashlib.sha1).digest()[:9]
    return f"{base64.urlsafe_b64encode(mark).decode()}.{text}"


def _opened(token: str, reason: str, now: float, *, expired: bool) -> list[str]:
    """Return a token's parts: what it is for and until when."""
    _, _, text = token.partition(".")
    parts = text.split(".")
    if token != _signed(text) or len(parts) < 2:
        raise _invalid("The token is not valid", reason)
    if expired or float(parts[-1]) < now:
        raise _invalid("The token has expired", reason)
    return parts


def _block_token(snapshot: Snapshot, block: int, until: int) -> str:
    return _signed(f"{snapshot.snapshot_id}.{block}.{until}")


def _get(world: World, region: str, request: Request, *, expired: bool) -> Reply:
    _, snapshot_id, _, index_text = request.path.strip("/").split("/")
    with world.lock:
        snapshot = _completed(world, region, snapshot_id)
        now = world.clock.now()
    token = request.query.get("blockToken", "")
    parts = _opened(token, "INVALID_BLOCK_TOKEN", now, expired=expired)
    if parts[:-1] != [snapshot_id, index_text] or int(index_text) not in snapshot.index:
        raise _invalid("The token is not for this block", "INVALID_BLOCK_TOKEN")
    data = world.blocks.get(snapshot, int(index_text))
    headers = {
        "Content-Type": "application/octet-stream",
        "x-amz-Data-Length": str(BLOCK),
        "x-amz-Checksum": base64.b64encode(hashlib.sha256(data).digest()).decode(),
        "x-amz-Checksum-Algorithm": "SHA256",
    }
    return Reply(200, headers, data)


def _page(
    world: World, request: Request, order: list[int], subject: str, *, expired: bool
) -> tuple[list[int], str | None]:
    """Return the blocks of the page that is asked for, and the token of the next."""
    query = request.query
    asked = int(query.get("maxResults", "10000"))
    if not 100 <= asked <= 10_000:
        raise _invalid("MaxResults must be between 100 and 10000")
    now, start, number = world.clock.now(), int(query.get("startingBlockIndex", "0")), 1
    if "pageToken" in query:
        whose, start_text, number_text, _ = _opened(query["pageToken"], "INVALID_PAGE_TOKEN", now, expired=expired)
        if whose != subject:
            raise _invalid("The token is of another list", "INVALID_PAGE_TOKEN")
        start, number = int(start_text), int(number_text)
    position = from_block(order, start)
    every = world.behaviour.empty_page_every
    size = 0 if every and number % every == 0 else min(asked, world.behaviour.page_blocks)
    page = order[position : position + size]
    more = position + len(page) < len(order)
    following = (
        _signed(f"{subject}.{order[position + len(page)]}.{number + 1}.{int(now + _PAGE_TOKEN_S)}") if more else None
    )
    return page, following


def _listed(world: World, name: str, rows: list[dict[str, Any]], size_gib: int, following: str | None) -> Reply:
    document = {
        name: rows,
        "ExpiryTime": world.clock.now() + _BLOCK_TOKEN_S,
        "VolumeSize": size_gib,
        "BlockSize": BLOCK,
    }
    return _json(200, document | ({"NextToken": following} if following else {}))


def _list_blocks(world: World, region: str, request: Request, *, expired: bool) -> Reply:
    with world.lock:
        snapshot = _completed(world, region, request.path.strip("/").split("/")[1])
        order = snapshot.order()
    page, following = _page(world, request, order, snapshot.snapshot_id, expired=expired)
    until = int(world.clock.now() + _BLOCK_TOKEN_S)
    rows = [{"BlockIndex": block, "BlockToken": _block_token(snapshot, block, until)} for block in page]
    return _listed(world, "Blocks", rows, snapshot.size_gib, following)


def _list_changed(world: World, region: str, request: Request, *, expired: bool) -> Reply:
    first_id = request.query.get("firstSnapshotId")
    if not first_id:
        raise _invalid("FirstSnapshotId is missing", "INVALID_SNAPSHOT_ID")
    with world.lock:
        second = _completed(world, region, request.path.strip("/").split("/")[1])
        first = _completed(world, region, first_id)
        if first.lineage != second.lineage:
            raise _invalid("The snapshots are not of the same lineage", "UNRELATED_SNAPSHOTS")
        order = world.blocks.changed(first, second)
    subject = f"{first.snapshot_id}/{second.snapshot_id}"
    page, following = _page(world, request, order, subject, expired=expired)
    until = int(world.clock.now() + _BLOCK_TOKEN_S)
    rows = []
    for block in page:
        row: dict[str, Any] = {"BlockIndex": block}
        if block in first.index:
            row["FirstBlockToken"] = _block_token(first, block, until)
        if block in second.index:
            row["SecondBlockToken"] = _block_token(second, block, until)
        rows.append(row)
    return _listed(world, "ChangedBlocks", rows, second.size_gib, following)
