"""The target half: a draft is a snapshot that is being written, a point the same snapshot once it is completed.

A point's id is the snapshot's, so that whatever makes machines finds it without us. See docs/internals/aws.md.
"""

from __future__ import annotations

import logging
import threading
import time
from hashlib import sha256
from typing import Final
from uuid import uuid4

from farshore.errors import Conflict, FarshoreError, NotFound, Permanent, RestartFromCheckpoint, Retry
from farshore.platforms.aws import tags
from farshore.platforms.aws.ebs import BLOCK, TIMEOUT_MIN, ZERO_BLOCK, Ebs, SnapshotState, gib_of
from farshore.platforms.aws.journal import Blocks, DraftFacts
from farshore.platforms.aws.points import Points, is_young, mismatch
from farshore.platforms.contract import Caps

log = logging.getLogger(__name__)

_ZERO_DIGEST: Final = sha256(ZERO_BLOCK).digest()


class AwsTarget(Points):
    """Writes drafts block by block, by the EBS direct APIs; no machine is in between."""

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

    # Drafts ---------------------------------------------------------------------------------------------------------

    def open(self, disk_key: str, size_bytes: int, base: str | None, key: str) -> AwsDraft:
        """Open or begin the draft ``key``; see the contract."""
        gib = gib_of(size_bytes)
        facts = self._known(disk_key, size_bytes, base, key)
        if facts is not None and facts.sealed:
            return AwsDraft(self, self._ebs, facts, None)
        if facts is not None and facts.volume_id:
            raise mismatch(key)  # it was begun in the other way, before the settings changed
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

    def _found_again(self, facts: DraftFacts) -> DraftFacts | None:
        """Return what has become of a draft that was begun; None if it is lost, with its journal."""
        found = self._ebs.state(facts.snapshot_id)
        if found is not None and found.state == "completed":
            return self._note(facts, sealed=True)
        if (found is not None and found.state == "pending") or (found is None and is_young(facts)):
            return facts
        why = f"is in state {found.state} {found.message}" if found is not None else "is gone"
        log.warning("snapshot %s of draft %s %s; it begins again", facts.snapshot_id, facts.key, why)
        if found is not None:
            self._ebs.delete(facts.snapshot_id)
        self._journals.forget(facts.key)
        return None

    def _begin(self, facts: DraftFacts, gib: int) -> DraftFacts:
        """Begin the snapshot of a draft whose journal is there."""
        named = self._tags(facts) | {tags.ROLE: tags.DRAFT_ROLE}
        token = tags.token(self._site, facts.key, facts.nonce)
        try:
            snapshot_id = self._ebs.start(gib, facts.base, token, named)
        except FarshoreError as error:
            if not isinstance(error, Retry):
                self._journals.forget(facts.key)
                self._check_base(facts.base)
            raise
        return self._note(facts, snapshot_id=snapshot_id)

    def sealed(self, facts: DraftFacts) -> DraftFacts:
        """Keep that a draft is a point now; called by the draft."""
        return self._note(facts, completing=True, sealed=True)

    def completing(self, facts: DraftFacts) -> DraftFacts:
        """Keep that a draft's seal has begun; called by the draft."""
        return self._note(facts, completing=True)

    def points(self) -> list[str]:
        """Return all sealed points and the drafts of this node (as ``draft:<key>``)."""

        def is_there(facts: DraftFacts, found: dict[str, SnapshotState]) -> bool:
            if not facts.snapshot_id:
                return False
            state = found.get(facts.snapshot_id) or self._ebs.state(facts.snapshot_id)
            return state.state == "pending" if state is not None else is_young(facts)

        return self._named(is_there)


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
            if is_young(facts):
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
