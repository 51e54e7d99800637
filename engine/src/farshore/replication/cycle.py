"""One disk, one cycle.

Reads top to bottom in the order of docs/architecture.md: identify, describe, schedule, stream, write, mark, finalize.

Threads: the disk's own thread runs :meth:`DiskCycle.run`, which asks for chunks. The link's threads bring them, checked
by the session, and write them. The two meet under one lock, where what is written but not durable is kept.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

from farshore.blocks import tree
from farshore.blocks.descriptors import Chunk, Descriptor, describe, gather, leaf_runs, without
from farshore.blocks.digest import DIGEST_SIZE, ZERO_LEAF, leaf_digest
from farshore.blocks.rangeset import RangeSet
from farshore.checkpoints.trees import TreeStore
from farshore.errors import Corruption, FarshoreError, NoSpace, NotFound, Permanent, Retry
from farshore.journal.state import Copied, Counters, DraftState, Sealed
from farshore.model.integrity import DiskAudit
from farshore.model.task import ReplicateDisk
from farshore.platforms.contract import Draft, Target
from farshore.replication.audit import DiskAuditor, Missed, RidingAudit
from farshore.replication.flow import DiskWindow
from farshore.replication.verify import differing
from farshore.transport import frames
from farshore.transport.buffers import Lent
from farshore.transport.session import Session
from farshore.units import CHUNK_SIZE, LEAF_SIZE

log = logging.getLogger(__name__)

Mode = Literal["incremental", "verify", "full"]
#: From the narrowest to the widest.
MODES: Final[tuple[Mode, ...]] = ("incremental", "verify", "full")


@dataclass(frozen=True, slots=True)
class Plan:
    """How a disk is copied. ``base`` is the target's point to grow on, ``tree`` its digests."""

    mode: Mode
    reason: str
    base: str | None
    tree: tree.Tree | None


class DiskCycle:
    """The copy of one disk of a source point into a draft.

    ``described_bytes`` and ``done_bytes`` may be read by others at any time, for progress.
    """

    def __init__(
        self,
        disk: ReplicateDisk,
        index: int,
        session: Session,
        target: Target,
        trees: TreeStore,
        state: DraftState,
        window: DiskWindow,
        auditor: DiskAuditor,
    ) -> None:
        self.disk = disk
        self.state = state
        self.described_bytes = 0
        self.done_bytes = state.durable.total()
        self.plan: Plan | None = None
        self.tree: tree.Tree | None = None
        self._index = index
        self._session = session
        self._target = target
        self._trees = trees
        self._window = window
        self._auditor = auditor
        self._audit: RidingAudit | None = None
        self._draft: Draft | None = None
        self._lock = threading.Lock()
        self._written = RangeSet()
        self._counters = state.counters
        self._error: FarshoreError | None = None

    def run(self) -> None:
        """Copy the disk; all of it is durable and recorded on return, and its digest tree is stored.

        Raises:
            FarshoreError: by the duty of who called.
        """
        if self.state.copied is not None and self._copied_before():
            return
        if not self._session.disks:
            raise Retry(
                f"the draft of disk {self.disk.disk_key} vanished while it was taken up again",
                code="draft-gone",
                hint="The next attempt copies the disk again.",
                disk=self.disk.disk_key,
            )
        self._check_journal()
        self.plan = plan = self._choose()
        draft = self._draft = self._open_draft(plan)
        try:
            self._copy(draft, plan)
            self.tree = self._grow(plan.tree)
        except Corruption as error:
            if error.code != "tree-damaged" or plan.tree is None or plan.base is None:
                raise
            log.warning("the digest tree of %s has to be made again: %s", plan.base, error)
            # Without the base's digests nothing proves that the base is what the change log counts from.
            self._audit = None
            plan = self.plan = Plan(
                "verify", "the base's digests were damaged", plan.base, self._rebuild_base(plan.base)
            )
            self._copy(draft, plan)
            self.tree = self._grow(plan.tree)
        plan = self.plan = self._audited(draft, plan)
        self.state.finish(Copied(self.tree.root.hex(), plan.mode, plan.reason))

    def _copy(self, draft: Draft, plan: Plan) -> None:
        """Copy what ``plan`` finds; all of it is durable on return."""
        descriptors = self._describe(self._identify(plan))
        for chunk in gather(descriptors, unit=max(LEAF_SIZE, self._target.caps.granularity_bytes)):
            if chunk.zero:
                self._zero(draft, chunk, skip=plan.base is None)
                continue
            credit = self._window.acquire(chunk.size_bytes)
            while credit is None:
                self._mark(draft)
                credit = self._window.acquire(chunk.size_bytes)
            self._request(draft, chunk, credit)
        self._window.drain()
        self._mark(draft)

    def _audited(self, draft: Draft, plan: Plan) -> Plan:
        """End the audit; where change tracking has lied, hold the whole disk against the source."""
        audit = self._audit
        if audit is None:
            return plan
        if self._target.caps.reads_unsealed:
            audit.read_back(draft.read_into, self._leaves)
        missed = audit.missed
        if missed is not None:
            self._auditor.doubt(missed, self.disk.size_bytes)
        elif not self._auditor.failed_before:
            return plan
        reason = missed.reason if missed else "an audit of this cycle had found a missed change"
        log.error("%s: %s", self.disk.disk_key, reason)
        # What the draft holds, not what its digests say: they come from the source, which named a part of a leaf only.
        held = self._rebuild(draft.read_into) if self._target.caps.reads_unsealed else self.tree
        plan = Plan("verify", reason, plan.base, held)
        self._copy(draft, plan)
        self.tree = self._grow(held)
        return plan

    def _leaves(self, first: int, stop: int) -> bytes:
        """Return digests of the disk's new tree."""
        if self.tree is None:
            raise AssertionError("a tree is read once it has grown")
        return self._trees.read(self.tree, first, stop)

    def audit_record(self) -> DiskAudit:
        """Return which leaves were compared with the source, for the manifest."""
        return self._auditor.record(whole=self.plan is None or self.plan.mode != "incremental")

    @property
    def audited_bytes(self) -> int:
        """Bytes that were not reported as changed and were compared with the source nevertheless."""
        return self._audit.audited_bytes if self._audit is not None else 0

    def _grow(self, base: tree.Tree | None) -> tree.Tree:
        """Return the disk's tree: the base's, with the leaf digests of what was copied."""
        return self._trees.update(base, self.disk.size_bytes, iter(self.state.leaves))

    def _check_journal(self) -> None:
        """Begin again where the leaf file lacks a digest of what the journal calls durable."""
        leaves = self.state.leaves
        if not all(leaves.has(start // LEAF_SIZE, -(-stop // LEAF_SIZE)) for start, stop in self.state.durable):
            self._begin_again("the leaf file")

    def _begin_again(self, what: str) -> None:
        lost = self.state.lost()
        log.warning("%s of %s is gone with %d bytes; beginning again", what, self.disk.disk_key, lost)
        self.done_bytes = 0
        self._counters = self.state.counters

    def _copied_before(self) -> bool:
        """Take up a disk that is whole in its draft, or sealed, since an earlier attempt; False if that is lost."""
        copied = self.state.copied
        if copied is None:
            return False
        base, base_tree = None, None
        if copied.mode != "full" and self.disk.base_point is not None:
            base, base_tree = self.disk.base_point, self._base_tree(self.disk.base_point)[0]
        self.plan = Plan(_mode(copied.mode), copied.reason, base, base_tree)
        self._draft = self._open_draft(self.plan)
        if self.state.copied is None:
            self._draft.close()
            return False
        self.tree = self._grow(base_tree)
        if self.tree.root.hex() != copied.root:
            raise Corruption(
                f"the leaf digests of disk {self.disk.disk_key} are not those that its tree was made from",
                code="leaf-file",
                disk=self.disk.disk_key,
            )
        return True

    def seal(self) -> Sealed:
        """Freeze the draft, name its tree and record both. Called when all disks of the group have run."""
        if self._draft is None or self.tree is None:
            raise AssertionError("a disk is sealed after its cycle")
        point = self._draft.seal()
        self._trees.commit(point, self.tree)
        sealed = Sealed(point, self.tree.root.hex())
        self.state.seal(sealed)
        return sealed

    def close(self) -> None:
        """Give back what is held; the draft stays."""
        if self._draft is not None:
            self._draft.close()

    def abort(self, error: FarshoreError) -> None:
        """Make :meth:`run` end with ``error`` if it still runs."""
        self._window.abort(error)

    @property
    def counters(self) -> Counters:
        """Bytes of the cycle so far, all attempts together."""
        with self._lock:
            return self._counters

    # 1. identify ----------------------------------------------------------------------------------------------------

    def _choose(self) -> Plan:
        """Choose the narrowest way that the base, its tree and the source's change tracking allow."""
        disk, source = self.disk, self._session.disks[self._index]
        if disk.base_point is None:
            return Plan("full", disk.reason or "the target holds nothing yet", None, None)
        if not self._target.has(disk.base_point):
            return Plan("full", f"the base {disk.base_point} is gone at the target", None, None)
        incremental, reason = disk.incremental and source.incremental, disk.reason or source.reason
        try:
            base_tree, proven = self._base_tree(disk.base_point)
        except Permanent:
            return Plan("full", "the base's digests are lost, and it has another size", None, None)
        if not proven:
            incremental, reason = False, "the base's digests were lost"
        if self._auditor.base_damaged:
            incremental, reason = False, "a scrub has found its base damaged"
            base_tree = self._rebuild_base(disk.base_point)
        if base_tree.size_bytes > disk.size_bytes:
            return Plan("full", "the disk is smaller than its base", None, None)
        if base_tree.size_bytes < disk.size_bytes:
            incremental, reason = False, "the disk has grown"
        return Plan(
            "incremental" if incremental else "verify", "" if incremental else reason, disk.base_point, base_tree
        )

    def _base_tree(self, point: str) -> tuple[tree.Tree, bool]:
        """Return the base's tree, and whether it is the stored one; else it was made again from the base."""
        try:
            return self._trees.open(point, self.disk.base_root or ""), True
        except (NotFound, Corruption, ValueError) as error:
            log.warning("the digest tree of %s has to be made again: %s", point, error)
            return self._rebuild_base(point), False

    def _rebuild_base(self, point: str) -> tree.Tree:
        """Return a tree made from the base itself."""
        return self._rebuild(lambda offset, buffer: self._target.read_into(point, offset, buffer))

    def _rebuild(self, read_into: Callable[[int, memoryview], None]) -> tree.Tree:
        """Return a tree made from what is read."""
        self._trees.forget()
        buffer = memoryview(bytearray(CHUNK_SIZE))
        size = self.disk.size_bytes

        def leaves() -> Iterator[tuple[int, bytes]]:
            for start in range(0, size, CHUNK_SIZE):
                view = buffer[: min(CHUNK_SIZE, size - start)]
                read_into(start, view)
                for at in range(0, len(view), LEAF_SIZE):
                    yield (start + at) // LEAF_SIZE, leaf_digest(view[at : at + LEAF_SIZE])

        return self._trees.update(None, size, leaves())

    def _identify(self, plan: Plan) -> Iterator[tuple[int, int, bool]]:
        """Yield what has to be copied, as extents."""
        base, index = plan.tree, self._index
        if plan.mode == "full" or base is None:
            yield from self._session.extents(index, since_base=False)
            return

        def leaves(first: int, stop: int) -> bytes:
            return self._trees.read(base, first, stop)

        if plan.mode == "incremental":
            self._audit = RidingAudit(self._auditor, self._session, index, self.disk.disk_key, self.disk.size_bytes)
            yield from self._audit.riding(self._session.extents(index, since_base=True), leaves)
            return
        for extent in differing(self._session, index, self.disk.size_bytes, leaves):
            if self._audit is not None:  # a second pass: whatever differs now was missed
                self._doubt(*extent[:2], plan.reason)
            yield extent

    def _doubt(self, offset: int, length: int, reason: str) -> None:
        missed = Missed(offset // LEAF_SIZE, -(-(offset + length) // LEAF_SIZE), reason)
        self._auditor.doubt(missed, self.disk.size_bytes)

    # 2. describe ----------------------------------------------------------------------------------------------------

    def _describe(self, extents: Iterator[tuple[int, int, bool]]) -> Iterator[Descriptor]:
        """Yield the descriptors that are not durable yet, and count all of them."""

        def counted() -> Iterator[Descriptor]:
            for descriptor in describe(extents, self.disk.size_bytes, self._target.caps.granularity_bytes):
                self.described_bytes += descriptor.length
                yield descriptor

        try:
            yield from without(counted(), self.state.durable)
        except ValueError as error:
            raise Corruption(
                f"the source's extents of disk {self.disk.disk_key} make no sense: {error}", code="extents"
            ) from error
        with self._lock:
            self._counters = replace(self._counters, changed_bytes=self.described_bytes)

    # 3. to 5. schedule, stream, write -------------------------------------------------------------------------------

    def _request(self, draft: Draft, chunk: Chunk, credit: int) -> None:
        """Ask for a chunk whose credit is held. What comes is written, and the credit returns, in a link's thread."""
        if self.state.resumed and all(self.state.leaves.has(*run) for run in leaf_runs(chunk.ranges)):
            with self._lock:  # it came before, but was not durable when the process died
                resent = self._counters.resent_bytes + chunk.size_bytes
                self._counters = replace(self._counters, resent_bytes=resent)

        def settle(error: FarshoreError | None) -> None:
            # The one place where a chunk's credit returns, written or not.
            if error is None:
                self._window.written(credit)
            else:
                # In this order: with its last credit back and no error yet, the disk would pass for copied.
                self._window.abort(error)
                self._window.failed(credit)

        def on_data(data: frames.Data, lent: Lent) -> None:
            size = lent.view.nbytes
            try:
                self._write(draft, data, lent.view)
            finally:
                lent.release()
            self._keep_digests(chunk, data)
            with self._lock:
                self._note(chunk, moved=size)
                settle(None)

        self._session.read(self._index, chunk.ranges, chunk.size_bytes, on_data, settle)

    def _write(self, draft: Draft, data: frames.Data, payload: memoryview) -> None:
        """Write a chunk's pieces, neighbours joined."""
        at = 0
        limit = self._target.caps.max_io_bytes
        start, length, is_zero = data.pieces[0][0], 0, data.pieces[0][2]
        for offset, size, zero in (*data.pieces, (-1, 0, False)):
            if zero is is_zero and offset == start + length and (zero or length + size <= limit):
                length += size
                continue
            if is_zero:
                self._write_zeroes(draft, start, length)
            else:
                draft.write(start, payload[at : at + length])
                at += length
            start, length, is_zero = offset, size, zero

    def _write_zeroes(self, draft: Draft, offset: int, length: int) -> None:
        # A draft without a base is all zero, and nothing else is ever written to these places.
        if self.plan is None or self.plan.base is not None:
            draft.write_zeroes(offset, length)

    def _keep_digests(self, chunk: Chunk, data: frames.Data) -> None:
        """Put the digests of all leaves that the chunk touches into the leaf file."""
        at = 0
        for first, stop in leaf_runs(chunk.ranges):
            size = (stop - first) * DIGEST_SIZE
            digests = data.leaf_digests[at : at + size]
            if len(digests) != size:
                break
            try:
                self.state.leaves.put(first, digests)
            except OSError as error:
                raise journal_error(error) from error
            at += size
        else:
            if at == len(data.leaf_digests):
                return
        raise Corruption("a chunk came with another number of leaf digests", code="leaf-digests", disk=data.disk)

    def _zero(self, draft: Draft, chunk: Chunk, *, skip: bool) -> None:
        """Write a zero range, which crosses no link."""
        (offset, length), *_ = chunk.ranges
        if not skip:
            draft.write_zeroes(offset, length)
        first, stop = offset // LEAF_SIZE, -(-(offset + length) // LEAF_SIZE)
        self.state.leaves.put(first, ZERO_LEAF * (stop - first))
        with self._lock:
            self._note(chunk, moved=0)

    def _note(self, chunk: Chunk, moved: int) -> None:
        """Add a chunk to what is written but not durable; the lock is held."""
        for offset, length in chunk.ranges:
            self._written.add(offset, offset + length)
        self.done_bytes += chunk.size_bytes
        self._counters = replace(
            self._counters,
            moved_bytes=self._counters.moved_bytes + moved,
            zero_bytes=self._counters.zero_bytes + chunk.size_bytes - moved,
        )

    # 6. mark --------------------------------------------------------------------------------------------------------

    def _mark(self, draft: Draft) -> None:
        """Make what is written durable and record it. Only writes that had returned before the flush count."""
        with self._lock:
            written, self._written = self._written, RangeSet()
            counters = self._counters
            covered = self._window.begin_mark()
        if written:
            draft.flush()
            try:
                self.state.mark(written, counters)
            except OSError as error:
                raise journal_error(error) from error
        self._window.durable(covered)

    # Drafts ---------------------------------------------------------------------------------------------------------

    def _open_draft(self, plan: Plan) -> Draft:
        """Open the draft, and find out whether it is the one that the journal speaks of."""
        state, target = self.state, self._target
        name = f"draft:{state.draft_key}"
        was_there = name in target.points()
        draft = target.open(self.disk.disk_key, self.disk.size_bytes, plan.base, state.draft_key)
        if not was_there and name in target.points() and (state.durable or state.copied):
            self._begin_again("the draft")
        return draft


def _mode(text: str) -> Mode:
    """Return the mode that a journal names; a name that this code does not know counts as the widest."""
    return next((mode for mode in MODES if mode == text), "full")


def journal_error(error: OSError) -> FarshoreError:
    """Return the error that a failed write of the node's own files means."""
    message = f"the journal could not be written: {error.strerror or error}"
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return NoSpace(message, code="journal-full", hint="Free space in the node's state directory.")
    return Permanent(message, code="journal-io")
