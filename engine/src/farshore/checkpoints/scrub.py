"""The scrub: a published checkpoint against its manifest, at the target alone.

Every leaf of every disk is read back from its point and compared with the disk's digest tree. The tree's root is made
anew from what was read, too: it proves the content where a part of the stored tree is damaged. Whatever differs is
named by disk and offset. The verdict is an addendum; the manifest never changes.

Points share storage with their neighbours: what is wrong in one is looked at in the group's other checkpoints at once.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from farshore.blocks import tree
from farshore.blocks.digest import DIGEST_SIZE, leaf_digest, leaf_digests
from farshore.checkpoints import addenda
from farshore.checkpoints.audit import disk_of
from farshore.checkpoints.manifest import decode, load_group, parse_key, prefix_of
from farshore.checkpoints.trees import TreeStore
from farshore.errors import Conflict, Corruption, FarshoreError, Invalid, NotFound, Permanent
from farshore.model.checkpoint import DiskPoint, Manifest
from farshore.model.integrity import Addendum, Damage
from farshore.model.task import Progress
from farshore.platforms.contract import ManifestStore, Target
from farshore.units import CHUNK_SIZE, LEAF_SIZE, format_size

log = logging.getLogger(__name__)

#: Reads on their way at once; more would only compete with replication for the pool.
_READERS: Final = 4
#: Damages that an addendum names; each is a run of leaves.
MOST_DAMAGES: Final = 500
#: Damages that neighbours are looked at for, and how many leaves of each; to know all of one, it has to be scrubbed.
_NEIGHBOUR_DAMAGES: Final = 100
_NEIGHBOUR_LEAVES: Final = 1024
#: Progress is told, and a cancel noticed, this often.
_STEP_BYTES: Final = 64 * CHUNK_SIZE
_UNREADABLE: Final = b"\xff" * DIGEST_SIZE


def scrub(
    store: ManifestStore,
    target: Target,
    group_id: str,
    checkpoint_id: str,
    origin: str,
    *,
    on_progress: Callable[[Progress], None] = lambda _progress: None,
    check: Callable[[], None] = lambda: None,
) -> list[Addendum]:
    """Read a checkpoint back and return what is known of it now, its own addendum first. Durable on return.

    Args:
        store: where the manifest is.
        target: where its points are; they are leased for ``origin`` meanwhile.
        group_id: the checkpoint's group.
        checkpoint_id: the checkpoint.
        origin: the run that asked; the same run again returns the same verdict.
        on_progress: called now and then, from this thread.
        check: called as often; raises to end the scrub.

    Raises:
        NotFound: there is no such checkpoint (any more).
        Corruption: its manifest is damaged.
        Retry, Reconnect: the target does not answer.
    """
    manifest = _find(store, group_id, checkpoint_id)
    total = sum(disk.size_bytes for disk in manifest.disks)
    done = 0

    def advance(size_bytes: int) -> None:
        nonlocal done
        before, done = done, done + size_bytes
        if before // _STEP_BYTES != done // _STEP_BYTES or done == total:
            check()
            note = f"{format_size(done)} of {format_size(total)} read back"
            on_progress(Progress(done_bytes=done, total_bytes=total, note=note))

    damages: list[Damage] = []
    try:
        for disk in manifest.disks:
            check()
            damages.extend(_scrub_disk(store, target, disk, origin, advance))
    finally:
        target.release(origin)
    found = [addenda.keep(store, _verdict(manifest, origin, damages, done))]
    if found[0].verdict == "suspect":
        found.extend(_neighbours(store, target, manifest, origin, damages, check))
    return found


def _find(store: ManifestStore, group_id: str, checkpoint_id: str) -> Manifest:
    for key in store.list(prefix_of(group_id)):
        parsed = parse_key(key)
        if parsed is not None and parsed[2] == checkpoint_id:
            return decode(store.get(key), key)
    raise NotFound(
        f"group {group_id} has no checkpoint {checkpoint_id}",
        code="checkpoint-not-found",
        hint="It was dropped, or never published.",
        checkpoint=checkpoint_id,
    )


def _verdict(manifest: Manifest, origin: str, damages: list[Damage], read_bytes: int, reason: str = "") -> Addendum:
    """Return the addendum. A damaged tree alone makes nothing suspect: the root has proven the content."""
    bad = [damage for damage in damages if damage.kind != "tree"]
    if damages and not reason:
        first = (bad or damages)[0]
        more = f" and {len(damages) - 1} more" if len(damages) > 1 else ""
        reason = f"disk {first.disk_key} at offset {first.offset}: {first.detail}{more}"
    return Addendum(
        checkpoint_id=manifest.checkpoint_id,
        group_id=manifest.group_id,
        epoch=manifest.epoch,
        sequence=manifest.sequence,
        verdict="suspect" if bad else "verified",
        by="scrub",
        origin=origin,
        at=time.time(),
        reason=reason or "every leaf was read back and is what the manifest says",
        damages=tuple(damages[:MOST_DAMAGES]),
        more=max(0, len(damages) - MOST_DAMAGES),
        read_bytes=read_bytes,
    )


def _scrub_disk(
    store: ManifestStore, target: Target, disk: DiskPoint, origin: str, advance: Callable[[int], None]
) -> list[Damage]:
    try:
        target.lease(disk.point, origin)
    except NotFound:
        return [Damage(disk_key=disk.disk_key, kind="missing", detail=f"its point {disk.point} is gone")]
    runs = _Runs(disk)
    proof = _Proof(store, disk, runs)
    contents = _read(target, disk, runs, advance)

    def leaves() -> Iterator[tuple[int, bytes]]:
        for first, held in contents:
            proof.compare(first, held)
            yield first, held

    made = tree.update(None, disk.size_bytes, leaves(), _load_nothing, _keep_nothing)
    if made.root.hex() != disk.tree_root:
        proof.blame_unproven()
    return runs.damages()


def _load_nothing(_digest: bytes) -> bytes:
    raise AssertionError("a tree that is made from all of its leaves loads no node")


def _keep_nothing(_digest: bytes, _data: bytes) -> None:
    """The tree is made for its root alone."""


class _Runs:
    """Damages of one disk, neighbours joined."""

    def __init__(self, disk: DiskPoint) -> None:
        self._disk = disk
        self._found: dict[str, list[list[int]]] = {}
        self._details: dict[str, str] = {}

    def add(self, kind: str, first: int, stop: int, detail: str) -> None:
        """Add the leaves ``[first, stop)``; of one kind they come in ascending order."""
        runs = self._found.setdefault(kind, [])
        self._details.setdefault(kind, detail)
        if runs and runs[-1][1] == first:
            runs[-1][1] = stop
        else:
            runs.append([first, stop])

    def damages(self) -> list[Damage]:
        """Return them by kind, the worst first."""
        size = self._disk.size_bytes
        return [
            Damage.model_validate(
                {
                    "disk_key": self._disk.disk_key,
                    "kind": kind,
                    "offset": first * LEAF_SIZE,
                    "length": min(stop * LEAF_SIZE, size) - first * LEAF_SIZE,
                    "detail": self._details[kind],
                }
            )
            for kind in ("unreadable", "content", "tree")
            for first, stop in self._found.get(kind, [])
        ]


class _Proof:
    """Compares what was read with the stored tree, as far as that is whole."""

    def __init__(self, store: ManifestStore, disk: DiskPoint, runs: _Runs) -> None:
        self._trees = TreeStore(store, "scrub")
        self._runs = runs
        self._unproven: list[tuple[int, int]] = []
        self._tree: tree.Tree | None = None
        try:
            opened = self._trees.open(disk.point, disk.tree_root)
            self._tree = opened if opened.size_bytes == disk.size_bytes else None
        except (NotFound, Corruption, ValueError) as error:
            log.warning("the digest tree of %s cannot be opened: %s", disk.point, error)

    def compare(self, first: int, held: bytes) -> None:
        """Compare the digests of leaves from ``first``; no more than one node of the tree covers."""
        stop = first + len(held) // DIGEST_SIZE
        try:
            wanted = self._trees.read(self._opened(), first, stop)
        except Corruption as error:
            self._runs.add("tree", first, stop, f"its digest tree: {error.message}")
            self._unproven.append((first, stop))
            return
        if wanted == held:
            return
        for index in range(stop - first):
            place = slice(index * DIGEST_SIZE, (index + 1) * DIGEST_SIZE)
            if held[place] not in {wanted[place], _UNREADABLE}:
                self._runs.add("content", first + index, first + index + 1, "the target holds other bytes")

    def _opened(self) -> tree.Tree:
        if self._tree is None:
            raise Corruption("it cannot be opened", code="tree-damaged")
        return self._tree

    def blame_unproven(self) -> None:
        """The root is another one: what no node could prove may be wrong."""
        for first, stop in self._unproven:
            self._runs.add("content", first, stop, "the content or its digests changed; the damaged tree cannot tell")


def _read(target: Target, disk: DiskPoint, runs: _Runs, advance: Callable[[int], None]) -> Iterator[tuple[int, bytes]]:
    """Yield ``(first leaf, digests)``, a chunk at a time, in order; some chunks are read ahead."""
    waiting: deque[tuple[int, Future[list[bytes | str]]]] = deque()
    starts = iter(range(0, disk.size_bytes, CHUNK_SIZE))
    pool = ThreadPoolExecutor(_READERS, thread_name_prefix="scrub")
    try:
        while True:
            while len(waiting) < 2 * _READERS and (start := next(starts, None)) is not None:
                waiting.append((start, pool.submit(_digests, target, disk, start)))
            if not waiting:
                return
            start, future = waiting.popleft()
            first, held = start // LEAF_SIZE, bytearray()
            for index, one in enumerate(future.result()):
                if isinstance(one, str):
                    runs.add("unreadable", first + index, first + index + 1, one)
                    held += _UNREADABLE
                else:
                    held += one
            advance(min(CHUNK_SIZE, disk.size_bytes - start))
            yield first, bytes(held)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _digests(target: Target, disk: DiskPoint, start: int) -> list[bytes | str]:
    """Return the digests of one chunk's leaves, read now; a text in the place of one that cannot be read."""
    view = memoryview(bytearray(min(CHUNK_SIZE, disk.size_bytes - start)))
    places = range(0, len(view), LEAF_SIZE)
    try:
        target.read_into(disk.point, start, view)
        return [*leaf_digests(view)]
    except (Permanent, Corruption, OSError):
        pass  # a part of it is lost; which?
    found: list[bytes | str] = []
    for at in places:
        leaf = view[at : at + LEAF_SIZE]
        try:
            target.read_into(disk.point, start + at, leaf)
            found.append(leaf_digest(leaf))
        except (Permanent, Corruption, OSError) as error:
            found.append(error.message if isinstance(error, FarshoreError) else str(error.strerror or error))
    return found


def _neighbours(
    store: ManifestStore,
    target: Target,
    scrubbed: Manifest,
    origin: str,
    damages: list[Damage],
    check: Callable[[], None],
) -> list[Addendum]:
    """Look at the damaged places in the group's other checkpoints; return addenda of those that share the damage."""
    found = []
    for manifest in load_group(store, scrubbed.group_id):
        if manifest.checkpoint_id == scrubbed.checkpoint_id:
            continue
        shared: list[Damage] = []
        for damage in damages[:_NEIGHBOUR_DAMAGES]:
            check()
            disk = disk_of(manifest, damage.disk_key)
            if disk is None or damage.kind not in {"content", "unreadable"}:
                continue
            try:
                shared.extend(_look(store, target, disk, damage))
            except (NotFound, Conflict, Invalid):
                continue  # it is being dropped
        if shared:
            reason = f"it shares damage with {scrubbed.checkpoint_id}, which was scrubbed"
            found.append(addenda.keep(store, _verdict(manifest, origin, shared, 0, reason)))
    return found


def _look(store: ManifestStore, target: Target, disk: DiskPoint, damage: Damage) -> list[Damage]:
    """Compare the leaves of ``damage`` in another point with that point's own tree."""
    first = damage.offset // LEAF_SIZE
    stop = min(-(-(damage.offset + damage.length) // LEAF_SIZE), tree.leaf_count(disk.size_bytes))
    stop = min(stop, first + _NEIGHBOUR_LEAVES)
    if first >= stop or not target.has(disk.point):
        return []
    runs = _Runs(disk)
    proof = _Proof(store, disk, runs)
    size = min(stop * LEAF_SIZE, disk.size_bytes)
    for start in range(first * LEAF_SIZE, size, LEAF_SIZE):
        part = disk.model_copy(update={"size_bytes": min(start + LEAF_SIZE, size)})
        (one,) = _digests(target, part, start)
        if isinstance(one, str):
            runs.add("unreadable", start // LEAF_SIZE, start // LEAF_SIZE + 1, one)
        else:
            proof.compare(start // LEAF_SIZE, one)
    return [item for item in runs.damages() if item.kind != "tree"]
