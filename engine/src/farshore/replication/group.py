"""All disks of a group: copied side by side, sealed together, published at once."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from farshore import durable
from farshore.checkpoints import addenda
from farshore.checkpoints.manifest import load_group
from farshore.checkpoints.publish import confirm, find, publish
from farshore.checkpoints.trees import TreeStore
from farshore.errors import (
    Corruption,
    FarshoreError,
    Fenced,
    NoSpace,
    RestartFromCheckpoint,
    Retry,
)
from farshore.journal.state import DraftState, Sealed, Subject
from farshore.model.checkpoint import CycleStats, DiskPoint, Manifest, SourceStats
from farshore.model.grant import Grant, GrantDisk
from farshore.model.task import Progress, ReplicateDisk, ReplicateParams, ReplicateResult
from farshore.platforms.contract import ManifestStore, Target
from farshore.replication import admission, resume
from farshore.replication.audit import DiskAuditor
from farshore.replication.cycle import MODES, DiskCycle, Mode
from farshore.replication.flow import NodeWindow
from farshore.replication.landing import Landing, journal_error
from farshore.replication.rate import Rate
from farshore.replication.seeding import Adopt, let_go, take_in
from farshore.replication.usage import memory_bytes
from farshore.transport.frames import ZERO_BLOCK
from farshore.transport.links import Links
from farshore.transport.session import Session
from farshore.transport.tls import Peer
from farshore.units import format_size
from farshore.window.budget import node_budget

log = logging.getLogger(__name__)

#: Progress is told this often.
PROGRESS_INTERVAL_S: Final = 0.5
#: A source that is away for longer is spoken of.
_AWAY_S: Final = 3.0
#: After these the drafts are of use: the same cycle goes on from its journal, or the next one takes them over.
_RESUMABLE: Final = frozenset({"session-gone", "grant-expired", "source-point-gone", "base-unknown"})

OnProgress = Callable[[Progress], None]
#: Told once the drafts of all disks are there; what is durable of them may be asked from then on, from any thread.
OnDrafts = Callable[[Sequence[DraftState]], None]


def replicate(
    params: ReplicateParams,
    *,
    target: Target,
    manifests: ManifestStore,
    links: Links,
    journal_dir: Path,
    on_progress: OnProgress = lambda _progress: None,
    on_drafts: OnDrafts = lambda _drafts: None,
    cancel: threading.Event | None = None,
    window: NodeWindow | None = None,
    grant_key: Ed25519PublicKey | None = None,
    adopt: Adopt | None = None,
) -> ReplicateResult:
    """Pull a source point into new native points of ``target`` and publish them as one checkpoint.

    Called again with the same checkpoint and source point it goes on where it was; when that is published already it
    returns what was published.

    Args:
        params: the task's parameters.
        target: where the points are made.
        manifests: where the checkpoint is published.
        links: connections to other nodes; they stay open.
        journal_dir: where the journals of unfinished checkpoints are kept; durable storage of this node alone.
        on_progress: called from this thread, about twice a second.
        on_drafts: called from this thread with the journals of the drafts, for others to read how far they are.
        cancel: set it to end the call early with ``Retry`` (``cancelled``); what is durable is kept.
        window: the node's byte budget, shared with other groups.
        grant_key: the control plane's key, to check the grant here too.
        adopt: takes in images as seeds, where the platform can.

    Raises:
        Retry, Reconnect: what is durable is kept; call again.
        RestartFromCheckpoint: ``session-gone`` and ``grant-expired`` need a fresh grant, ``source-point-gone`` and
            ``base-unknown`` a new checkpoint from a new point; it goes on in the same drafts. With any other code the
            drafts are gone.
        NoSpace, Corruption: the drafts are removed, nothing is published.
        Fenced: somebody else owns the group now; nothing was touched.
    """
    head = params.manifest
    folder = journal_dir / head.checkpoint_id
    grant = admission.read_grant(params.grant, grant_key)
    admission.check(params, grant)
    durable.make_dir(journal_dir)
    with resume.held(folder):
        began = time.monotonic()
        existing = find(manifests, head)
        if existing is not None:
            confirm(manifests, existing)
            resume.leave(target, folder, existing)
            return ReplicateResult(
                manifest=existing, stats=_no_stats(existing), addenda=tuple(addenda.load(manifests, head.group_id))
            )
        with _journal_errors():
            resume.begin_term(manifests, folder, head)
            params = take_in(params, manifests, adopt, cancel)
            resume.take_up(target, manifests, journal_dir, folder, admission.subjects(params, grant))
        try:
            with ExitStack() as stack:
                group = _Group(params, grant, target, manifests, folder, stack)
                on_drafts(group.drafts)
                session = group.copy(links, window or NodeWindow(_default_budget()), on_progress, cancel)
                manifest = group.publish()
                stats = group.stats(session)
        except OSError as error:
            failure = journal_error(error)
            if isinstance(failure, NoSpace):
                _discard(target, folder, failure)
            raise failure from error
        except (NoSpace, Corruption) as error:
            _discard(target, folder, error)
            raise
        except RestartFromCheckpoint as error:
            if error.code not in _RESUMABLE:
                _discard(target, folder, error)
            raise
        resume.leave(target, folder, manifest)
        let_go(target, manifests, head.group_id)
        return ReplicateResult(
            manifest=manifest,
            stats=stats.model_copy(update={"seconds": round(time.monotonic() - began, 3)}),
            addenda=tuple(addenda.load(manifests, head.group_id)),
        )


@contextmanager
def _journal_errors() -> Iterator[None]:
    """Give an error of the node's own files its name; what is durable is kept."""
    try:
        yield
    except OSError as error:
        raise journal_error(error) from error


class _Group:
    """The disks of one checkpoint, with their journals open."""

    def __init__(
        self,
        params: ReplicateParams,
        grant: Grant,
        target: Target,
        manifests: ManifestStore,
        folder: Path,
        stack: ExitStack,
    ) -> None:
        self._params = params
        self._grant = grant
        self._target = target
        self._manifests = manifests
        self._stack = stack
        self._states: list[DraftState] = []
        self._cycles: list[DiskCycle] = []
        self._wire = Rate()
        self._reasons: set[str] = set()
        self._held: dict[str, int] = {}
        for disk, subject in zip(params.disks, admission.subjects(params, grant), strict=True):
            state = self._open_state(disk, subject, folder / resume.disk_folder(subject.disk_key))
            stack.callback(state.close)
            self._states.append(state)

    def _open_state(self, disk: ReplicateDisk, subject: Subject, path: Path) -> DraftState:
        """Open a disk's journal, or begin it: for a draft of its own, or for one of another node."""
        own_key = resume.draft_key(subject.checkpoint_id, subject.disk_key, self._grant.term)
        if path.exists():
            return DraftState(path, subject, own_key)
        begins = resume.inherit(self._target, disk, subject, own_key)
        state = DraftState(path, subject, own_key, draft_key=begins.draft_key, taken=begins.taken)
        if begins.lost_bytes:
            state.counters = replace(state.counters, resent_bytes=begins.lost_bytes)
            self._reasons.add(begins.reason)
        return state

    @property
    def drafts(self) -> Sequence[DraftState]:
        """The journals of the drafts, in the order of the disks."""
        return tuple(self._states)

    def copy(
        self, links: Links, window: NodeWindow, on_progress: OnProgress, cancel: threading.Event | None
    ) -> Session:
        """Copy all disks side by side; all are durable on return. The first error ends all of them.

        The session that is returned has ended; the source's confirmation is on its way while the disks are sealed.
        """
        params, grant = self._params, self._grant
        peer = Peer(grant.source_site, grant.source_node, grant.source_thumbprint)
        link = links.to(params.address, peer) if params.address else links.from_peer(peer)
        zero_block = max(ZERO_BLOCK, self._target.caps.granularity_bytes)
        compress = params.transport.compression == "auto"
        session = Session(link, params.grant, grant.epoch, zero_block, compress=compress)
        self._stack.callback(session.close)
        if not all(self._is_copied(state) for state in self._states):
            link.use(params.transport.connections)
            self._stack.callback(link.unuse)
            _open(session, cancel, lambda: on_progress(self._progress(session)))
        order = {disk.disk_key: index for index, disk in enumerate(grant.disks)}
        history = _history(self._manifests, params.manifest)
        self._held = _held(history)
        known = addenda.load(self._manifests, params.manifest.group_id)
        for disk, state in zip(params.disks, self._states, strict=True):
            trees = TreeStore(self._manifests, state.draft_key)
            disk_window = window.disk(
                params.transport.window_levels,
                params.transport.per_disk_window,
                params.transport.intermediate_checkpoint_window,
                writers_max=self._target.caps.max_parallel,
                limits=[name for name in params.limits if not name.startswith("writes:")],  # calls keep to those
                name=disk.disk_key,
                rtt_s=session.rtt_s,
            )
            landing = Landing(
                disk.disk_key,
                state,
                disk_window,
                self._target.caps,
                window.writers,
                read_back=params.read_back,
            )
            auditor = DiskAuditor(
                self._manifests, history, known, params.manifest, disk.disk_key, params.transport.audit_fraction
            )
            cycle = DiskCycle(
                disk, order[disk.disk_key], session, self._target, trees, state, disk_window, auditor, landing
            )
            self._cycles.append(cycle)
            self._stack.callback(disk_window.close)
            self._stack.callback(cycle.close)
        # Callbacks run last first: the session ends before the windows and drafts that its answers would touch.
        self._stack.callback(session.close)
        self._run(session, window, on_progress, cancel)
        session.close()
        return session

    def _is_copied(self, state: DraftState) -> bool:
        """Say whether a disk needs its source no more."""
        if state.sealed is not None:
            return self._target.has(state.sealed.point)
        return state.copied is not None and f"draft:{state.draft_key}" in self._target.points()

    def _run(
        self, session: Session, window: NodeWindow, on_progress: OnProgress, cancel: threading.Event | None
    ) -> None:
        done = threading.Condition()
        running = len(self._cycles)
        errors: list[BaseException] = []

        def fail(error: BaseException) -> None:
            errors.append(error)
            cause = (
                error if isinstance(error, FarshoreError) else Retry("another disk of the group failed", code="group")
            )
            for cycle in self._cycles:
                cycle.abort(cause)
            session.abort(cause)

        def run(cycle: DiskCycle) -> None:
            nonlocal running
            try:
                cycle.run()
            except BaseException as error:  # noqa: BLE001 - it is raised again in the caller's thread
                with done:
                    first = not errors
                if first:
                    fail(error)
            finally:
                with done:
                    running -= 1
                    done.notify_all()

        threads = [
            threading.Thread(target=run, args=(cycle,), name=f"disk-{cycle.disk.disk_key}") for cycle in self._cycles
        ]
        for thread in threads:
            thread.start()
        try:
            while True:
                with done:
                    finished = done.wait_for(lambda: running == 0, timeout=PROGRESS_INTERVAL_S)
                if finished:
                    break
                window.seen(session.rtt_s)
                on_progress(self._progress(session))
                if cancel is not None and cancel.is_set() and not errors:
                    fail(Retry("the cycle was cancelled", code="cancelled", hint="What is durable is kept."))
        except BaseException as error:
            fail(error)
            raise
        finally:
            for thread in threads:
                thread.join()
        if errors:
            raise errors[0]
        on_progress(self._progress(session))

    def publish(self) -> Manifest:
        """Seal all disks, then create the manifest: the checkpoint exists from then on, for all disks at once."""
        sealed = self._seal()
        disks = tuple(
            DiskPoint(
                disk_key=state_disk.disk_key,
                size_bytes=state_disk.size_bytes,
                point=one.point,
                tree_root=one.root,
                source_point=granted.source_point,
                audit=cycle.audit_record(),
                content=cycle.content(self._held.get(state_disk.disk_key)),
            )
            for state_disk, one, granted, cycle in zip(
                self._params.disks, sealed, self._granted(), self._cycles, strict=True
            )
        )
        return publish(self._manifests, self._params.manifest.model_copy(update={"disks": disks}))

    def _seal(self) -> list[Sealed]:
        """Seal all disks side by side, for each waits for its storage several times."""
        waiting = deque(enumerate(self._cycles))
        sealed: dict[int, Sealed] = {}
        errors: list[BaseException] = []

        def work() -> None:
            with contextlib.suppress(IndexError):
                while not errors:
                    index, cycle = waiting.popleft()
                    try:
                        sealed[index] = cycle.seal()
                    except BaseException as error:  # noqa: BLE001 - it is raised again in the caller's thread
                        errors.append(error)

        threads = [threading.Thread(target=work, name="seal") for _ in self._cycles[: self._target.caps.max_parallel]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return [sealed[index] for index in range(len(self._cycles))]

    def _granted(self) -> list[GrantDisk]:
        granted = {disk.disk_key: disk for disk in self._grant.disks}
        return [granted[disk.disk_key] for disk in self._params.disks]

    def _progress(self, session: Session) -> Progress:
        away_s, why = session.away
        done = sum(cycle.done_bytes for cycle in self._cycles)
        total = max(sum(cycle.described_bytes for cycle in self._cycles), done)
        wire = sum(cycle.wire_bytes for cycle in self._cycles)
        mode = _widest(self._cycles)
        note = f"{mode}: {format_size(done)} of {format_size(total)}"
        if away_s > _AWAY_S:
            note += f"; the source has not been reached for {away_s:.0f} s: {why}"
        return Progress(
            done_bytes=done,
            total_bytes=total,
            note=note,
            detail={
                "moved_bytes": sum(cycle.counters.moved_bytes for cycle in self._cycles),
                "wire_bytes_per_s": round(self._wire.at(time.monotonic(), wire)),
                "mode": mode,
            },
        )

    def stats(self, session: Session) -> CycleStats:
        """Return what the cycle took; ``session`` is the one that :meth:`copy` returned."""
        source = session.source_stats()
        counters = [cycle.counters for cycle in self._cycles]
        disks = [
            cycle.stats().model_copy(update={"content": cycle.content(self._held.get(cycle.disk.disk_key))})
            for cycle in self._cycles
        ]
        reasons = self._reasons | {cycle.plan.reason for cycle in self._cycles if cycle.plan and cycle.plan.reason}
        return CycleStats(
            mode=_widest(self._cycles),
            disk_bytes=sum(disk.size_bytes for disk in self._params.disks),
            changed_bytes=sum(one.changed_bytes for one in counters),
            moved_bytes=sum(one.moved_bytes for one in counters),
            zero_bytes=sum(one.zero_bytes for one in counters),
            resent_bytes=sum(one.resent_bytes for one in counters) + session.resent_bytes,
            audited_bytes=sum(cycle.audited_bytes for cycle in self._cycles),
            seconds=0.0,
            reason="; ".join(sorted(reasons)),
            retries=sum(one.retries for one in disks) + session.corrupt,
            source=SourceStats.model_validate(source) if source else None,
            disks=tuple(disks),
        )


def _history(manifests: ManifestStore, head: Manifest) -> list[Manifest]:
    """Return the group's checkpoints before ``head`` of its epoch, newest first."""
    before = [one for one in load_group(manifests, head.group_id) if one.epoch == head.epoch]
    return [one for one in reversed(before) if one.sequence < head.sequence]


def _held(history: Sequence[Manifest]) -> dict[str, int]:
    """Return how much data each disk holds, by the newest checkpoint that says it; ``history`` is newest first."""
    held: dict[str, int] = {}
    for manifest in history:
        for disk in manifest.disks:
            if disk.content is not None:
                held.setdefault(disk.disk_key, disk.content.held_bytes)
    return held


def _open(session: Session, cancel: threading.Event | None, waiting: Callable[[], None]) -> None:
    """Open the session; an expired grant is no fence, only a reason to ask for a fresh one."""
    try:
        session.open(cancel, waiting)
    except Fenced as error:
        if error.code != "grant-expired":
            raise
        raise RestartFromCheckpoint(
            error.message, code="grant-expired", hint="Order the cycle again with a fresh grant.", **error.evidence
        ) from error


def _discard(target: Target, folder: Path, cause: FarshoreError) -> None:
    """Remove the drafts after ``cause``, which stays the error that is told."""
    try:
        resume.discard(target, folder)
    except FarshoreError as error:
        log.warning("drafts of %s stay until the next sweep (%s), after: %s", folder.name, error, cause)


def _widest(cycles: list[DiskCycle]) -> Mode:
    return max((cycle.plan.mode for cycle in cycles if cycle.plan), key=MODES.index, default="incremental")


def _no_stats(manifest: Manifest) -> CycleStats:
    return CycleStats(
        mode="incremental",
        disk_bytes=sum(disk.size_bytes for disk in manifest.disks),
        changed_bytes=0,
        moved_bytes=0,
        seconds=0.0,
        reason="the checkpoint was published before",
    )


def _default_budget() -> int:
    return node_budget(memory_bytes())
