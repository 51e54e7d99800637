"""The audit of one disk in one cycle: leaves that change tracking did not report are compared with the source.

It rides along with the extents of an incremental cycle. When the copy is complete, what the draft itself holds of the
leaves whose turn it is is read back too: change tracking that is finer than a leaf can lie about a part of one, and
then the digest, which the source made of all of it, is right and the copy is not.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

from farshore.blocks.digest import DIGEST_SIZE, leaf_digests
from farshore.blocks.tree import leaf_count
from farshore.checkpoints import addenda, audit
from farshore.model.checkpoint import Manifest
from farshore.model.integrity import Addendum, Damage, DiskAudit
from farshore.platforms.contract import ManifestStore
from farshore.transport.session import Session
from farshore.units import CHUNK_SIZE, LEAF_SIZE

#: Questions on their way at once; each has the source read up to 4 MiB.
_AHEAD: Final = 8

#: ``(first, stop) -> digests`` of leaves, one behind the other.
ReadLeaves = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Missed:
    """Leaves ``[first, stop)`` of which the copy is not what the source holds."""

    first: int
    stop: int
    reason: str


class DiskAuditor:
    """What a cycle knows about the audits of one disk, and what it says when one fails.

    Args:
        store: where addenda are kept.
        history: the group's published checkpoints before this one, of its epoch, newest first.
        known: what is known of them.
        head: the checkpoint that is being made.
        disk_key: the disk.
        fraction: the plan's ``audit_fraction``.
    """

    def __init__(
        self,
        store: ManifestStore,
        history: Sequence[Manifest],
        known: Sequence[Addendum],
        head: Manifest,
        disk_key: str,
        fraction: float,
    ) -> None:
        self._store = store
        self._history = history
        self._head = head
        self._disk_key = disk_key
        self._fraction = fraction
        before = next((disk for one in history if (disk := audit.disk_of(one, disk_key)) is not None), None)
        self._before = before.audit if before is not None else None
        #: An earlier try of this cycle has found the disk's change tracking lying.
        self.failed_before = any(
            one.by == "audit" and one.origin == head.checkpoint_id and self._is_about(one) for one in known
        )
        base = [one for one in known if history and one.checkpoint_id == history[0].checkpoint_id]
        scrubs = sorted((one for one in base if one.by == "scrub"), key=lambda one: one.at)
        #: The target does not hold what the base's digests say.
        self.base_damaged = bool(scrubs) and scrubs[-1].verdict == "suspect" and self._is_about(scrubs[-1])
        self._marked: set[str] = set()
        # As far back as any missed change can reach: a disk may differ in a million places.
        self._doubtful = audit.most_touched(history, disk_key)

    def _is_about(self, addendum: Addendum) -> bool:
        return any(damage.disk_key == self._disk_key for damage in addendum.damages)

    def record(self, *, whole: bool) -> DiskAudit:
        """Return what the manifest says of this cycle's audit; ``whole``: all leaves were compared with the source."""
        return audit.following(self._before, self._fraction, whole=whole)

    def due(self, size_bytes: int) -> Iterator[tuple[int, int]]:
        """Yield the runs of leaves whose turn it is."""
        turn = self.record(whole=False)
        return audit.due(self._disk_key, leaf_count(size_bytes), turn.slots, turn.turn)

    def doubt(self, missed: Missed, size_bytes: int) -> None:
        """Mark the checkpoints that a missed change may have touched, durable on return. Again: nothing.

        It is done before the cycle repairs its own copy, so that a crash in between loses no doubt.
        """
        if len(self._marked) == self._doubtful:
            return
        offset = missed.first * LEAF_SIZE
        damage = Damage(
            disk_key=self._disk_key,
            kind="missed-change",
            offset=offset,
            length=min(missed.stop * LEAF_SIZE, size_bytes) - offset,
            detail=missed.reason,
        )
        for manifest in audit.touched(self._history, self._disk_key, missed.first, missed.stop):
            if manifest.checkpoint_id in self._marked:
                continue
            self._marked.add(manifest.checkpoint_id)
            addendum = Addendum(
                checkpoint_id=manifest.checkpoint_id,
                group_id=manifest.group_id,
                epoch=manifest.epoch,
                sequence=manifest.sequence,
                verdict="suspect",
                by="audit",
                origin=self._head.checkpoint_id,
                at=time.time(),
                reason=missed.reason,
                damages=(damage,),
            )
            addenda.keep(self._store, addendum, part=self._disk_key)


class RidingAudit:
    """Compares, while a disk's reported extents pass by, the due leaves that none of them touches."""

    def __init__(self, auditor: DiskAuditor, session: Session, disk: int, disk_key: str, size_bytes: int) -> None:
        self._session = session
        self._disk = disk
        self._key = disk_key
        self._size = size_bytes
        self._auditor = auditor
        self._runs = auditor.due(size_bytes)
        self._run = next(self._runs, None)
        self._free: list[tuple[int, int]] = []
        self._waiting: deque[tuple[list[tuple[int, int]], Future[bytes]]] = deque()
        self.missed: Missed | None = None
        self.audited_bytes = 0

    def riding(self, extents: Iterable[tuple[int, int, bool]], base: ReadLeaves) -> Iterator[tuple[int, int, bool]]:
        """Yield ``extents`` as they are; what was missed is known when they have ended.

        ``base`` returns the base's digests.
        """
        at = 0
        for extent in extents:
            offset, length, _ = extent
            self._unreported(at, offset // LEAF_SIZE, base)
            at = max(at, -(-(offset + length) // LEAF_SIZE))
            yield extent
        self._unreported(at, leaf_count(self._size), base)
        self._ask()
        while self._waiting:
            self._compare(base)

    def _unreported(self, first: int, stop: int, base: ReadLeaves) -> None:
        """Take up the due leaves of ``[first, stop)``, which no extent touches."""
        while self._run is not None and self._run[0] < stop:
            low, high = max(self._run[0], first), min(self._run[1], stop)
            if low < high:
                self._free.append((low, high))
            if self._run[1] > stop:
                self._run = (stop, self._run[1])
                return
            self._ask()
            if len(self._waiting) > _AHEAD:
                self._compare(base)
            self._run = next(self._runs, None)

    def _ask(self) -> None:
        """Ask for one unit's leaves at once, with those between that were reported."""
        if self._free and self.missed is None:
            first, stop = self._free[0][0], self._free[-1][1]
            self._waiting.append((self._free, self._session.digests(self._disk, first, stop - first)))
        self._free = []

    def _compare(self, base: ReadLeaves) -> None:
        runs, future = self._waiting.popleft()
        source, start = future.result(), runs[0][0]
        for first, stop in runs:
            self.audited_bytes += (stop - first) * LEAF_SIZE
            found = source[(first - start) * DIGEST_SIZE : (stop - start) * DIGEST_SIZE]
            run = _first_difference(found, base(first, stop))
            if run is not None and self.missed is None:
                self.missed = self._describe(
                    first + run[0], first + run[1], f"change tracking missed a change of disk {self._key}"
                )

    def read_back(self, read: Callable[[int, memoryview], None], leaves: ReadLeaves) -> None:
        """Compare what the copy holds of all due leaves with the digests that it should have."""
        if self.missed is not None:
            return
        for first, stop in self._auditor.due(self._size):
            held = content_digests(read, first, min(stop * LEAF_SIZE, self._size))
            run = _first_difference(held, leaves(first, stop))
            if run is not None:
                self.missed = self._describe(
                    first + run[0], first + run[1], f"the copy of disk {self._key} is not what its digests say"
                )
                return

    def _describe(self, first: int, stop: int, what: str) -> Missed:
        offset = first * LEAF_SIZE
        return Missed(first, stop, f"{what} at offset {offset}")


def content_digests(read: Callable[[int, memoryview], None], first: int, stop_bytes: int) -> bytes:
    """Return the digests of the leaves from ``first`` to the byte ``stop_bytes``, read now."""
    buffer = memoryview(bytearray(CHUNK_SIZE))
    digests: list[bytes] = []
    for start in range(first * LEAF_SIZE, stop_bytes, CHUNK_SIZE):
        view = buffer[: min(CHUNK_SIZE, stop_bytes - start)]
        read(start, view)
        digests += leaf_digests(view)
    return b"".join(digests)


def _first_difference(one: bytes, other: bytes) -> tuple[int, int] | None:
    """Return the first run of leaves whose digests differ."""
    if one == other:
        return None
    places = [slice(at, at + DIGEST_SIZE) for at in range(0, len(other), DIGEST_SIZE)]
    differs = [one[place] != other[place] for place in places]
    first = differs.index(True)
    return first, differs.index(False, first) if False in differs[first:] else len(differs)
