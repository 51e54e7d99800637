"""The target half: a draft is a snapshot that is being written, a point the same snapshot once it is completed.

A point's id is the snapshot's, so that whatever makes machines finds it without us. See docs/internals/aws.md.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Final
from uuid import uuid4

from farshore.errors import Conflict, FarshoreError, NotFound, Permanent, RestartFromCheckpoint, Retry
from farshore.model.machine import PoolFacts
from farshore.platforms.aws import tags
from farshore.platforms.aws.account import Account
from farshore.platforms.aws.ebs import BLOCK, LARGEST_BYTES, TIMEOUT_MIN, UNSEEN_S, ZERO_BLOCK, Ebs, gib_of
from farshore.platforms.aws.journal import Blocks, DraftFacts, Journals
from farshore.platforms.aws.reading import SnapshotReader, Tokens
from farshore.platforms.contract import Caps

log = logging.getLogger(__name__)

_DRAFT: Final = "draft"
_ZERO_DIGEST: Final = sha256(ZERO_BLOCK).digest()
#: Points that are read at once keep their tokens; others are listed again.
_READERS_MAX: Final = 8
#: Storage has no end here; this is what can be told without asking: 64 volumes of the largest size.
_CAPACITY: Final = 64 * LARGEST_BYTES


class AwsTarget:
    """Keeps points as EBS snapshots."""

    caps = Caps(
        granularity_bytes=BLOCK,
        max_io_bytes=2 * BLOCK,
        max_parallel=64,
        needs_full_block=True,
        zero_is_hole=False,
        durable_on_write=False,  # the service keeps a block that it has answered; what we know of it is flushed
        reads_unsealed=False,
        fences_by="checksum",
        draft_lifetime_s=TIMEOUT_MIN * 60.0,
    )

    def __init__(self, account: Account) -> None:
        settings = account.settings
        self._ebs = Ebs(account)
        self._journals = Journals(settings.folder / "drafts")
        self._site = tags.site_of(settings.bucket, settings.prefix)
        self._lock = threading.Lock()
        self._readers: OrderedDict[str, SnapshotReader] = OrderedDict()

    # Drafts ---------------------------------------------------------------------------------------------------------

    def open(self, disk_key: str, size_bytes: int, base: str | None, key: str) -> AwsDraft:
        """Open or begin the draft ``key``; see the contract."""
        gib = gib_of(size_bytes)
        facts = self._journals.read(key) or self._find_sealed(key)
        if facts is not None:
            if facts.disk_key != disk_key or facts.size_bytes != size_bytes or facts.base != base:
                raise Conflict(f"draft {key} is of something else", code="draft-mismatch", key=key)
            if facts.sealed:
                return AwsDraft(self, self._ebs, facts, None)
        blocks = self._journals.open(key)
        try:
            if facts is not None and facts.snapshot_id:
                facts = self._found_again(facts)
                if facts is not None and facts.sealed:
                    blocks.close()
                    return AwsDraft(self, self._ebs, facts, None)
            if facts is None:
                self._check_base(base)
                blocks.clear()
                facts = DraftFacts(key, disk_key, size_bytes, base, uuid4().hex, time.time())
                self._journals.write(facts)
            if not facts.snapshot_id:
                facts = self._begin(facts, gib)
        except BaseException:
            blocks.close()
            if self._journals.read(key) is None:
                self._journals.remove(key)
            raise
        return AwsDraft(self, self._ebs, facts, blocks)

    def _find_sealed(self, key: str) -> DraftFacts | None:
        """Return the point that a draft has become, by its tags; what is left of one without a journal is removed."""
        for found in list(self._ebs.find(tags.filters(SITE=self._site, DRAFT=key))):
            if found.state == "completed":
                named = found.tags
                return DraftFacts(
                    key=key,
                    disk_key=named.get(tags.DISK, ""),
                    size_bytes=int(named.get(tags.SIZE, "0")),
                    base=named.get(tags.BASE) or None,
                    nonce="",
                    started_at=found.started_at,
                    snapshot_id=found.snapshot_id,
                    completing=True,
                    sealed=True,
                )
            log.info("snapshot %s of draft %s has no journal here and is removed", found.snapshot_id, key)
            self._ebs.delete(found.snapshot_id)
        return None

    def _found_again(self, facts: DraftFacts) -> DraftFacts | None:
        """Return what has become of a draft that was begun; None if it is lost, with its journal."""
        found = self._ebs.state(facts.snapshot_id)
        if found is not None and found.state == "completed":
            facts = replace(facts, sealed=True)
            self._journals.write(facts)
            return facts
        if (found is not None and found.state == "pending") or (found is None and _is_young(facts)):
            return facts
        why = f"is in state {found.state} {found.message}" if found is not None else "is gone"
        log.warning("snapshot %s of draft %s %s; it begins again", facts.snapshot_id, facts.key, why)
        if found is not None:
            self._ebs.delete(facts.snapshot_id)
        self._journals.forget(facts.key)
        return None

    def _check_base(self, base: str | None) -> None:
        if base is not None and not self.has(base):
            raise _gone(base)

    def _begin(self, facts: DraftFacts, gib: int) -> DraftFacts:
        """Begin the snapshot of a draft whose journal is there."""
        named = {
            tags.SITE: self._site,
            tags.ROLE: _DRAFT,
            tags.DRAFT: facts.key,
            tags.DISK: facts.disk_key,
            tags.SIZE: str(facts.size_bytes),
            tags.BASE: facts.base or "",
            tags.NAME: f"farshore {facts.disk_key}",
        }
        token = tags.token(self._site, facts.key, facts.nonce)
        try:
            snapshot_id = self._ebs.start(gib, facts.base, token, named)
        except FarshoreError as error:
            if not isinstance(error, Retry):
                self._journals.forget(facts.key)
                self._check_base(facts.base)
            raise
        facts = replace(facts, snapshot_id=snapshot_id)
        self._journals.write(facts)
        return facts

    def abandon(self, key: str) -> None:
        """Remove the draft named ``key`` if it exists."""
        facts = self._journals.read(key)
        if facts is None:
            self._remove_begun(key)
            return
        with self._journals.held(key):
            if not facts.snapshot_id:
                self._remove_begun(key)  # it may have been begun, and whoever did so died before the reply
            elif not facts.sealed:
                found = self._ebs.state(facts.snapshot_id)
                if found is None or found.state != "completed":  # else it was sealed, and only the reply was lost
                    self._ebs.delete(facts.snapshot_id)
            self._journals.remove(key)

    def _remove_begun(self, key: str) -> None:
        """Remove the snapshots of a draft, by its tags, that are no points."""
        for left in list(self._ebs.find(tags.filters(SITE=self._site, DRAFT=key))):
            if left.state != "completed":
                self._ebs.delete(left.snapshot_id)

    def sealed(self, facts: DraftFacts) -> DraftFacts:
        """Keep that a draft is a point now; called by the draft."""
        facts = replace(facts, completing=True, sealed=True)
        self._journals.write(facts)
        return facts

    def completing(self, facts: DraftFacts) -> DraftFacts:
        """Keep that a draft's seal has begun; called by the draft."""
        facts = replace(facts, completing=True)
        self._journals.write(facts)
        return facts

    # Points ---------------------------------------------------------------------------------------------------------

    def has(self, point: str) -> bool:
        """Say whether the point exists and is whole."""
        found = self._ebs.state(point)
        return found is not None and found.state == "completed"

    def read_into(self, point: str, offset: int, buffer: memoryview) -> None:
        """Read a sealed point."""
        self.reader(point).read_into(offset, buffer)

    def reader(self, point: str) -> SnapshotReader:
        """Return the reader of a point."""
        with self._lock:
            found = self._readers.get(point)
            if found is None:
                found = self._readers[point] = SnapshotReader(
                    self._ebs, point, Tokens(self._ebs, point), partial(_gone, point)
                )
            self._readers.move_to_end(point)
            while len(self._readers) > _READERS_MAX:
                self._readers.popitem(last=False)
        return found

    def lease(self, point: str, tag: str) -> None:
        """Pin the point for ``tag``: the snapshot carries the lease, so every node sees it."""
        if not self.has(point):
            raise _gone(point)
        self._ebs.tag(point, {tags.lease(tag): "1"})

    def release(self, tag: str) -> None:
        """Drop all leases of ``tag``."""
        key = tags.lease(tag)
        named = [{"Name": "tag-key", "Values": [key]}, *tags.filters(SITE=self._site)]
        for found in list(self._ebs.find(named)):
            self._ebs.untag(found.snapshot_id, key)

    def check_drop(self, point: str) -> None:
        """Refuse a point that is leased."""
        found = self._ebs.state(point)
        leases = sorted(key for key in found.tags if key.startswith(tags.LEASE)) if found is not None else []
        if leases:
            raise Conflict(
                f"point {point} is in use",
                code="point-leased",
                hint="Wait for the run that uses it, or end that run.",
                tags=[key.removeprefix(tags.LEASE) for key in leases],
            )

    def drop(self, point: str) -> None:
        """Remove a point whole. The service keeps the blocks that later snapshots need."""
        self.check_drop(point)
        with self._lock:
            self._readers.pop(point, None)
        self._ebs.delete(point)

    def points(self) -> list[str]:
        """Return all sealed points and the drafts of this node (as ``draft:<key>``)."""
        found = {one.snapshot_id: one for one in self._ebs.find(tags.filters(SITE=self._site, ROLE=_DRAFT))}
        names = {one.snapshot_id for one in found.values() if one.state == "completed"}
        for facts in self._journals.all():
            if facts.sealed or not facts.snapshot_id:
                continue
            state = found.get(facts.snapshot_id) or self._ebs.state(facts.snapshot_id)
            if state.state == "pending" if state is not None else _is_young(facts):
                names.add(f"draft:{facts.key}")
        return sorted(names)

    def usage(self) -> PoolFacts:
        """Return that there is room; the service has no limit but the account's quotas."""
        return PoolFacts(path=f"ebs:{self._site}", capacity_bytes=_CAPACITY, free_bytes=_CAPACITY)


class AwsDraft:
    """A snapshot that is being written, or the point that it has become."""

    def __init__(self, target: AwsTarget, ebs: Ebs, facts: DraftFacts, blocks: Blocks | None) -> None:
        self.draft_id = facts.key
        self._target = target
        self._ebs = ebs
        self._facts = facts
        self._blocks = blocks
        self._sealing = threading.Lock()

    def write(self, offset: int, buffer: memoryview) -> None:
        """Write whole blocks, the disk's last one in part."""
        for index, part in self._parts(offset, len(buffer)):
            data = bytes(buffer[part])
            if len(data) < BLOCK:
                data += bytes(BLOCK - len(data))
            self._put(index, data, sha256(data).digest())

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make blocks read as zero: by writing them, but where nothing of this or an earlier snapshot is there."""
        blocks = self._open_blocks()
        for index, _ in self._parts(offset, length):
            if self._facts.base is not None or blocks.is_touched(index):
                self._put(index, ZERO_BLOCK, _ZERO_DIGEST)

    def read_into(self, offset: int, buffer: memoryview) -> None:  # noqa: ARG002
        """A snapshot that is being written cannot be read."""
        raise Permanent("a draft in EBS cannot be read before it is sealed", code="draft-unreadable", key=self.draft_id)

    def flush(self) -> None:
        """Return when what is known of the blocks is durable; the service keeps what it has answered."""
        self._open_blocks().flush()

    def seal(self) -> str:
        """Complete the snapshot, wait until it is whole, and return its id."""
        with self._sealing:
            if not self._facts.sealed:
                self._complete()
                self._await()
                self._facts = self._target.sealed(self._facts)
                self.close()
        return self._facts.snapshot_id

    def abandon(self) -> None:
        """Remove the draft."""
        self.close()
        if not self._facts.sealed:
            self._target.abandon(self.draft_id)

    def close(self) -> None:
        """Let others have the draft; it stays."""
        blocks, self._blocks = self._blocks, None
        if blocks is not None:
            blocks.close()

    def _complete(self) -> None:
        blocks = self._open_blocks()
        self._settle(blocks)
        blocks.flush()
        count, digest = 0, sha256()
        for _, one in blocks.digests():
            if one is None:
                raise AssertionError("every block was settled")
            digest.update(one)
            count += 1
        again = self._facts.completing
        self._facts = self._target.completing(self._facts)
        try:
            self._ebs.complete(self._facts.snapshot_id, count, digest.digest(), again=again)
        except Retry:
            raise
        except FarshoreError as error:
            raise self._lost(f"{error.message}") from error

    def _settle(self, blocks: Blocks) -> None:
        """Write anew what was on its way when an earlier process died and nobody wrote since: it holds the base's."""
        for index in [index for index, digest in blocks.digests() if digest is None]:
            base = self._facts.base
            data = (self._target.reader(base).block(index) if base is not None else None) or ZERO_BLOCK
            self._put(index, data, sha256(data).digest())

    def _await(self) -> None:
        found = self._ebs.wait_completed([self._facts.snapshot_id]).get(self._facts.snapshot_id)
        if found is None or found.state != "completed":
            raise self._lost(f"state {found.state}: {found.message}" if found is not None else "it is gone")

    def _put(self, index: int, data: bytes, digest: bytes) -> None:
        blocks, facts = self._open_blocks(), self._facts
        blocks.touch(index)
        try:
            self._ebs.put(facts.snapshot_id, index, data, digest)
        except Retry:
            raise
        except NotFound as error:
            if _is_young(facts):
                raise Retry(
                    f"snapshot {facts.snapshot_id} is not known everywhere yet", code="snapshot-unseen"
                ) from error
            raise self._lost("it is gone") from error
        except FarshoreError as error:
            found = self._ebs.state(facts.snapshot_id)
            if found is None or found.state == "error" or error.evidence.get("reason") == "WRITE_REQUEST_TIMEOUT":
                raise self._lost(found.message if found is not None else "it is gone") from error
            raise
        blocks.written(index, digest)

    def _lost(self, why: str) -> RestartFromCheckpoint:
        return RestartFromCheckpoint(
            f"snapshot {self._facts.snapshot_id}, a draft of {self._facts.disk_key}, is lost: {why}",
            code="draft-lost",
            hint="The next attempt copies the disk into a draft of its own; nothing that was published is affected.",
            snapshot=self._facts.snapshot_id,
        )

    def _open_blocks(self) -> Blocks:
        if self._facts.sealed:
            raise Conflict(f"draft {self.draft_id} is sealed", code="point-sealed", point=self._facts.snapshot_id)
        if self._blocks is None:
            raise Conflict(f"draft {self.draft_id} is closed", code="draft-closed", key=self.draft_id)
        return self._blocks

    def _parts(self, offset: int, length: int) -> list[tuple[int, slice]]:
        """Return the blocks of a range with their parts of a buffer."""
        size = self._facts.size_bytes
        if offset < 0 or offset + length > size:
            raise Permanent("the write reaches over the end of the disk", code="disk-size", offset=offset)
        if offset % BLOCK or (length % BLOCK and offset + length != size):
            raise Permanent(
                f"EBS takes whole blocks of {BLOCK} bytes, not {length} at {offset}", code="block-part", offset=offset
            )
        return [((offset + at) // BLOCK, slice(at, min(at + BLOCK, length))) for at in range(0, length, BLOCK)]


def _is_young(facts: DraftFacts) -> bool:
    """Say whether a snapshot may be too new to be known everywhere."""
    return time.time() - facts.started_at < UNSEEN_S


def _gone(point: str) -> NotFound:
    return NotFound(f"point {point} does not exist", code="point-not-found", point=point)
