"""One disk, one cycle.

Reads top to bottom in the order of docs/architecture.md: identify, describe, schedule, stream, write, mark, finalize.

Threads: the disk's own thread runs :meth:`DiskCycle.run`, which asks for chunks. The link's threads bring them, checked
by the session, and hand them over to :class:`Landing`, whose threads write them and make the marks.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

from farshore.blocks import tree
from farshore.blocks.descriptors import Chunk, Descriptor, describe, gather, leaf_runs, pieces, united, without
from farshore.blocks.digest import leaf_digests
from farshore.checkpoints.trees import TreeStore
from farshore.errors import Conflict, Corruption, FarshoreError, Fenced, NotFound, Permanent, Retry
from farshore.journal.state import Copied, Counters, DraftState, Sealed
from farshore.model.checkpoint import DiskContent, DiskStats, LevelChange
from farshore.model.integrity import DiskAudit
from farshore.model.task import ReplicateDisk
from farshore.platforms.contract import Draft, Target
from farshore.replication.adopt import prove
from farshore.replication.audit import DiskAuditor, Missed, RidingAudit
from farshore.replication.flow import DiskWindow
from farshore.replication.landing import Landing
from farshore.replication.verify import differing
from farshore.transport.session import Session
from farshore.units import CHUNK_SIZE, LEAF_SIZE

log = logging.getLogger(__name__)

#: Changes of a window that are told; older ones are in the log.
LEVEL_CHANGES_MAX: Final = 50
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
        landing: Landing,
    ) -> None:
        self.disk = disk
        self.state = state
        self.described_bytes = 0
        self.plan: Plan | None = None
        self.tree: tree.Tree | None = None
        self._index = index
        self._session = session
        self._target = target
        self._trees = trees
        self._window = window
        self._auditor = auditor
        self._audit: RidingAudit | None = None
        self._listing: Iterator[tuple[int, int, bool]] | None = None
        self._draft: Draft | None = None
        self._landing = landing
        self._began = self._ended = 0.0

    def run(self) -> None:
        """Copy the disk; all of it is durable and recorded on return, and its digest tree is stored.

        Raises:
            FarshoreError: by the duty of who called.
        """
        self._began = time.monotonic()
        self._run()
        self._ended = time.monotonic()

    def _run(self) -> None:
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
        if plan.mode != "verify":  # on its way while the draft is opened
            self._listing = self._session.extents(self._index, since_base=plan.mode == "incremental")
        draft = self._draft = self._open_draft(plan)
        if self.state.held:
            readable = draft if self._target.caps.reads_unsealed else None
            granularity = self._target.caps.granularity_bytes
            prove(self._session, self._index, self.disk.size_bytes, self.state, readable, granularity)
            self._landing.begin_again()
        try:
            self._copy(plan)
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
            self._copy(plan)
            self.tree = self._grow(plan.tree)
        plan = self.plan = self._audited(draft, plan)
        self.state.finish(Copied(self.tree.root.hex(), plan.mode, plan.reason))

    def _copy(self, plan: Plan) -> None:
        """Copy what ``plan`` finds; all of it is durable on return."""
        extents = united(self._identify(plan), self.state.dirty, self.disk.size_bytes)
        for chunk in gather(self._describe(extents), unit=max(LEAF_SIZE, self._target.caps.granularity_bytes)):
            if not chunk.zero:
                self._request(chunk)
            elif self._landing.fills:
                for part in pieces(chunk):
                    self._landing.fill(part, self._window.acquire(part.size_bytes))
            else:
                self._landing.zero(chunk)
        self._landing.finish()

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
        self._copy(plan)
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
        return self._trees.update(base, self.disk.size_bytes, self.state.leaves.runs())

    def _check_journal(self) -> None:
        """Begin again where the leaf file lacks a digest of what the journal calls durable."""
        leaves = self.state.leaves
        if not all(leaves.has(start // LEAF_SIZE, -(-stop // LEAF_SIZE)) for start, stop in self.state.durable):
            self._begin_again("the leaf file")

    def _begin_again(self, what: str) -> None:
        """Begin a draft of another name. The one before is removed first: later, no journal would name it."""
        self._target.abandon(self.state.draft_key)
        lost = self.state.lost()
        log.warning("%s of %s is gone with %d bytes; beginning again", what, self.disk.disk_key, lost)
        self._landing.begin_again()

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
        """Give back what is held; the draft stays, with all that was written to it where that can be said."""
        self._landing.close()
        if self._draft is not None:
            self._draft.close()

    def content(self, held_before: int | None) -> DiskContent:
        """Return what was written looks like. ``held_before``: data that the base holds, None if that is not known."""
        written, sampler = self.counters.moved_bytes, self._landing.sampler
        mode = self.plan.mode if self.plan else "incremental"
        before = self.disk.size_bytes if held_before is None else held_before
        return DiskContent(
            mode=mode,
            written_bytes=written,
            held_bytes=min(self.disk.size_bytes, written if mode == "full" else max(before, written)),
            samples=sampler.samples,
            noisy=sampler.noisy,
            entropy_bits=round(sampler.entropy_bits, 3),
            uniformity=round(sampler.uniformity, 3),
        )

    def stats(self) -> DiskStats:
        """Return what the disk took, once :meth:`run` has returned."""
        counters, window = self.counters, self._window
        return DiskStats(
            disk_key=self.disk.disk_key,
            mode=self.plan.mode if self.plan else "incremental",
            moved_bytes=counters.moved_bytes,
            resent_bytes=counters.resent_bytes,
            read_back_bytes=self._landing.read_back_bytes,
            retries=self._landing.retries.total(),
            seconds=round(self._ended - self._began, 3),
            level_bytes=window.level,
            level_changes=tuple(
                LevelChange(
                    at_s=round(change.at - self._began, 3),
                    from_bytes=change.from_bytes,
                    to_bytes=change.to_bytes,
                    reason=change.reason,
                )
                for change in window.changes[-LEVEL_CHANGES_MAX:]
            ),
        )

    def abort(self, error: FarshoreError) -> None:
        """Make :meth:`run` end with ``error`` if it still runs."""
        self._window.abort(error)

    @property
    def wire_bytes(self) -> int:
        """Bytes of chunks as they crossed the link, since this process began."""
        return self._landing.wire_bytes

    @property
    def counters(self) -> Counters:
        """Bytes of the cycle so far, all attempts together."""
        return self._landing.counters

    @property
    def done_bytes(self) -> int:
        """Bytes that are in the draft, also by earlier attempts."""
        return self._landing.done_bytes

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
            # A seed never had any.
            incremental, reason = False, "the base's digests were lost" if disk.base_root else disk.reason
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
                yield start // LEAF_SIZE, b"".join(leaf_digests(view))

        return self._trees.update(None, size, leaves())

    def _identify(self, plan: Plan) -> Iterator[tuple[int, int, bool]]:
        """Yield what has to be copied, as extents."""
        base, index = plan.tree, self._index
        if plan.mode == "full" or base is None:
            yield from self._listed(since_base=False)
            return

        def leaves(first: int, stop: int) -> bytes:
            return self._trees.read(base, first, stop)

        if plan.mode == "incremental":
            self._audit = RidingAudit(self._auditor, self._session, index, self.disk.disk_key, self.disk.size_bytes)
            yield from self._audit.riding(self._listed(since_base=True), leaves)
            return
        for extent in differing(self._session, index, self.disk.size_bytes, leaves):
            if self._audit is not None:  # a second pass: whatever differs now was missed
                self._doubt(*extent[:2], plan.reason)
            yield extent

    def _listed(self, *, since_base: bool) -> Iterator[tuple[int, int, bool]]:
        """Return the source's list: the one that was asked for early, once, or a new one."""
        early, self._listing = self._listing, None
        return self._session.extents(self._index, since_base=since_base) if early is None else early

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
        self._landing.count_changed(self.described_bytes)

    # 3. to 6. schedule, stream, write, mark -------------------------------------------------------------------------

    def _request(self, chunk: Chunk) -> None:
        """Wait for the credit of a chunk and ask for it. The credit returns where the chunk lands."""
        credit = self._window.acquire(chunk.size_bytes, len(chunk.ranges))
        if (
            self.state.resumed
            and all(self.state.leaves.has(*run) for run in leaf_runs(chunk.ranges))
            and not any(True for at, size in chunk.ranges for _ in self.state.dirty.intersect(at, at + size))
        ):
            self._landing.count_resent(chunk.size_bytes)
        self._landing.touch(chunk)
        self._session.read(
            self._index,
            chunk.ranges,
            chunk.size_bytes,
            partial(self._landing.take, chunk, credit),
            partial(self._landing.refuse, credit),
        )

    # Drafts ---------------------------------------------------------------------------------------------------------

    def _open_draft(self, plan: Plan) -> Draft:
        """Open the draft, and find out whether it is the one that the journal speaks of."""
        state = self.state
        was_there = self._is_there()
        if was_there and not state.resumed and not state.held:
            raise Fenced(
                f"draft {state.draft_key} is there and has another journal", code="draft-taken", draft=state.draft_key
            )
        lost = state.begun and (not was_there or state.sought)
        if lost and state.copied is None:
            self._begin_again("the draft")  # before it is opened: what is found under its name is never a new one
            lost = False
        elif lost and not state.sought:
            state.seek()
        try:
            draft = self._open(plan)
        except Conflict as error:
            if error.code != "draft-mismatch":
                raise
            # It was begun in another mode: its base had gone, or has come back.
            self._begin_again("the base of the draft")
            draft = self._open(plan)
        else:
            if lost and self._is_there():  # it was not sealed, and to open it has made it
                draft.close()
                self._begin_again("the draft")
                draft = self._open(plan)
        self._landing.into(draft, based=plan.base is not None)
        return draft

    def _is_there(self) -> bool:
        return f"draft:{self.state.draft_key}" in self._target.points()

    def _open(self, plan: Plan) -> Draft:
        return self._target.open(self.disk.disk_key, self.disk.size_bytes, plan.base, self.state.draft_key)


def _mode(text: str) -> Mode:
    """Return the mode that a journal names; a name that this code does not know counts as the widest."""
    return next((mode for mode in MODES if mode == text), "full")
