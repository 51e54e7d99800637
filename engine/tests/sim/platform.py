"""A site's storage in the simulation: machines with change tracking, a pool with a volatile cache, a manifest store.

They live outside of all processes. Faults strike in them through ``world.strike(operation)``, which may raise, take its
time, or kill the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from farshore.errors import Conflict, FarshoreError, NotFound, Permanent, RestartFromCheckpoint, Retry
from farshore.model.machine import PoolFacts
from farshore.platforms.contract import Caps, Extent, Kind, Snapshot, SnapshotDisk
from farshore.units import LEAF_SIZE
from sim.runtime import Violation, hub

BLOCK = 4096


@dataclass
class PoolDraft:
    disk_key: str
    size: int
    base: str | None
    current: bytearray
    durable: bytearray
    pending: list[tuple[int, bytes]] = field(default_factory=list)
    writing: int = 0
    holder: Any = None
    users: int = 0


class Pool:
    """Drafts and points. What is written is in the cache until a flush that began later has ended."""

    def __init__(self, strike: Callable[[str], None], caps: Caps) -> None:
        self.strike = strike
        self.caps = caps
        self.drafts: dict[str, PoolDraft] = {}
        self.points: dict[str, bytes] = {}
        self.frozen: dict[str, bytes] = {}
        self.leases: dict[str, set[str]] = {}
        self.lost: set[str] = set()
        self.abandoned: dict[str, str] = {}
        self.sealed_by: dict[str, str] = {}
        self.disk_of: dict[str, str] = {}
        self.on_written: Callable[[str, int, int], None] = lambda _key, _offset, _length: None
        self.on_failed: Callable[[str, int], None] = lambda _key, _offset: None
        self.on_drop: Callable[[str], None] = lambda _point: None
        self.peak_parallel = 0

    def power_cut(self) -> None:
        rng = hub().rng
        for draft in self.drafts.values():
            style = rng.random()
            for offset, data in draft.pending:
                if style < 0.3 or rng.random() < 0.5:
                    continue
                keep = len(data) if rng.random() < 0.7 else rng.randint(0, len(data) // 512) * 512
                draft.durable[offset : offset + keep] = data[:keep]
            draft.pending.clear()
            draft.current = bytearray(draft.durable)

    def free(self, key: str) -> None:
        """Refuse what another process has open, where the platform locks.

        Raises:
            Conflict: it has.
        """
        draft = self.drafts.get(key)
        held_by = draft.holder if draft is not None and self.caps.fences_by == "lock" else None
        if held_by is not None and held_by.alive and held_by is not hub().check().process:
            raise Conflict(f"draft {key} is open in another process", code="draft-open", key=key)

    def abandon(self, key: str) -> None:
        """Remove a draft."""
        self.free(key)
        if self.drafts.pop(key, None) is not None:
            self.abandoned[key] = hub().check().process.machine.name

    def lose_draft(self, key: str) -> None:
        del self.drafts[key]
        self.lost.add(key)

    @staticmethod
    def point_of(key: str) -> str:
        return f"point-{sha256(key.encode()).hexdigest()[:24]}"


class SimTarget:
    """The contract's Target over a pool."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.caps = pool.caps

    def open(self, disk_key: str, size_bytes: int, base: str | None, key: str) -> SimDraft:
        pool = self.pool
        hub().point()
        pool.strike("open")
        point = pool.point_of(key)
        if point in pool.points:
            return SimDraft(pool, key, sealed=True)
        draft = pool.drafts.get(key)
        if draft is None:
            if base is None:
                content = bytearray(size_bytes)
            else:
                if base not in pool.points:
                    raise NotFound(f"point {base} does not exist", code="point-not-found")
                content = bytearray(pool.points[base][:size_bytes])
                content.extend(bytes(size_bytes - len(content)))
            draft = pool.drafts[key] = PoolDraft(disk_key, size_bytes, base, content, bytearray(content))
            pool.disk_of[key] = disk_key
            pool.strike("open-done")
        if (draft.disk_key, draft.size, draft.base) != (disk_key, size_bytes, base):
            raise Conflict(f"draft {key} is of something else", code="draft-mismatch")
        return SimDraft(pool, key, sealed=False)

    def has(self, point: str) -> bool:
        hub().point()
        return point in self.pool.points

    def read_into(self, point: str, offset: int, buffer: memoryview) -> None:
        hub().point()
        self.pool.strike("read-point")
        if point not in self.pool.points:
            raise NotFound(f"point {point} does not exist", code="point-not-found")
        content = self.pool.points[point]
        if offset + len(buffer) > len(content):
            raise Permanent("the read reaches over the end of the disk", code="disk-size")
        buffer[:] = content[offset : offset + len(buffer)]

    def lease(self, point: str, tag: str) -> None:
        hub().point()
        self.pool.leases.setdefault(point, set()).add(tag)

    def release(self, tag: str) -> None:
        hub().point()
        for tags in self.pool.leases.values():
            tags.discard(tag)

    def check_drop(self, point: str) -> None:
        hub().point()
        if self.pool.leases.get(point):
            raise Conflict(f"point {point} is in use", code="point-leased")

    def drop(self, point: str) -> None:
        self.check_drop(point)
        self.pool.on_drop(point)
        self.pool.points.pop(point, None)

    def points(self) -> list[str]:
        hub().point()
        return sorted([*self.pool.points, *(f"draft:{key}" for key in self.pool.drafts)])

    def abandon(self, key: str) -> None:
        hub().point()
        self.pool.strike("abandon")
        self.pool.abandon(key)

    def usage(self) -> PoolFacts:
        return PoolFacts(path="sim", capacity_bytes=1 << 40, free_bytes=1 << 39)


class SimDraft:
    """The contract's Draft. Half of a write is taken at its end: who gives the buffer away too early is found."""

    def __init__(self, pool: Pool, key: str, *, sealed: bool) -> None:
        self.draft_id = key
        self._pool = pool
        self._point = pool.point_of(key) if sealed else None
        self._closed = False
        self._process = hub().check().process
        draft = pool.drafts.get(key)
        if draft is not None:
            pool.free(key)
            draft.users = draft.users + 1 if draft.holder is self._process else 1
            draft.holder = self._process

    def _draft(self) -> PoolDraft:
        hub().check()
        if self._closed:
            raise Violation(f"draft {self.draft_id} is used after it was closed")
        if self._point is not None:
            raise Conflict(f"draft {self.draft_id} is sealed", code="point-sealed")
        draft = self._pool.drafts.get(self.draft_id)
        if draft is None:
            if self._pool.point_of(self.draft_id) in self._pool.points:
                raise Conflict(f"draft {self.draft_id} is sealed", code="point-sealed")
            raise RestartFromCheckpoint(f"draft {self.draft_id} is gone", code="draft-gone")
        return draft

    def _put(self, offset: int, data: bytes) -> None:
        draft = self._draft()
        draft.current[offset : offset + len(data)] = data
        draft.pending.append((offset, data))
        if self._pool.caps.durable_on_write:
            draft.durable[offset : offset + len(data)] = data
            draft.pending.clear()

    def write(self, offset: int, buffer: memoryview) -> None:
        try:
            self._write(offset, buffer)
        except FarshoreError as error:
            if not isinstance(error, Retry):  # which is tried again
                self._pool.on_failed(self.draft_id, offset)
            raise

    def _write(self, offset: int, buffer: memoryview) -> None:
        draft = self._draft()
        length = len(buffer)
        if offset < 0 or offset + length > draft.size or length == 0:
            raise Violation(f"write of {offset}+{length} into a disk of {draft.size} bytes")
        unit = self._pool.caps.granularity_bytes
        if offset % unit or (length % unit and offset + length != draft.size):
            raise Violation(f"write of {offset}+{length} is not aligned to {unit}")
        if length > self._pool.caps.max_io_bytes:
            raise Violation(f"write of {length} bytes, more than {self._pool.caps.max_io_bytes}")
        draft.writing += 1
        self._pool.peak_parallel = max(self._pool.peak_parallel, draft.writing)
        try:
            half = length // 1024 * 512
            if half:
                self._put(offset, bytes(buffer[:half]))
            self._pool.strike("write")
            self._put(offset + half, bytes(buffer[half:]))
        finally:
            draft.writing -= 1
            self._pool.on_written(self.draft_id, offset, length)
        self._pool.strike("write-done")

    def write_zeroes(self, offset: int, length: int) -> None:
        draft = self._draft()
        if offset < 0 or offset + length > draft.size or length <= 0:
            raise Violation(f"zeros of {offset}+{length} into a disk of {draft.size} bytes")
        try:
            self._pool.strike("zero")
            self._put(offset, bytes(length))
        finally:
            self._pool.on_written(self.draft_id, offset, length)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        hub().point()
        if self._point is not None:
            buffer[:] = self._pool.points[self._point][offset : offset + len(buffer)]
            return
        buffer[:] = self._draft().current[offset : offset + len(buffer)]

    def flush(self) -> None:
        draft = self._draft()
        covered, draft.pending = draft.pending, []
        keep: list[tuple[int, bytes]] = covered
        try:
            self._pool.strike("flush")
            self._draft()
            for offset, data in covered:
                draft.durable[offset : offset + len(data)] = data
            keep = []
        except Permanent:
            keep = []  # the kernel has forgotten these pages: no later flush makes them durable
            raise
        finally:
            draft.pending = [*keep, *draft.pending]
        self._pool.strike("flush-done")

    def seal(self) -> str:
        if self._point is None:
            self.flush()
            self._pool.strike("seal")
            draft = self._draft()
            point = self._pool.point_of(self.draft_id)
            # What was written and not flushed would be lost by a power cut: freezing takes the durable content.
            content = bytearray(draft.durable)
            for offset, data in draft.pending:
                content[offset : offset + len(data)] = data
            self._pool.points[point] = self._pool.frozen[point] = bytes(content)
            del self._pool.drafts[self.draft_id]
            self._pool.sealed_by[self.draft_id] = self._process.machine.name
            self._point = point
            self._pool.strike("seal-done")
        return self._point

    def abandon(self) -> None:
        self.close()
        if self._point is None:
            self._pool.abandon(self.draft_id)

    def close(self) -> None:
        if not self._closed and self._process.alive:
            draft = self._pool.drafts.get(self.draft_id)
            if draft is not None and draft.holder is self._process:
                draft.users -= 1
                draft.holder = draft.holder if draft.users else None
        self._closed = True


class Manifests:
    """The contract's ManifestStore; durable on return."""

    def __init__(self, strike: Callable[[str], None]) -> None:
        self.strike = strike
        self.objects: dict[str, bytes | None] = {}
        self.on_put: Callable[[str, bytes], None] = lambda _key, _data: None

    def list(self, prefix: str = "") -> list[str]:
        hub().point()
        return sorted(key for key, data in self.objects.items() if data is not None and key.startswith(prefix))

    def get(self, key: str) -> bytes:
        hub().point()
        data = self.objects.get(key)
        if data is None:
            raise NotFound(f"there is no {key}", code="object-not-found")
        return data

    def put_if_absent(self, key: str, data: bytes) -> bool:
        hub().point()
        self.strike("put")
        if key in self.objects:
            return False
        self.objects[key] = bytes(data)
        self.on_put(key, bytes(data))
        self.strike("put-done")
        return True

    def tombstone(self, key: str) -> None:
        hub().point()
        self.objects[key] = None


class Machines:
    """The source's disks and points."""

    def __init__(self, strike: Callable[[str], None], sizes: Mapping[str, int]) -> None:
        self.strike = strike
        self.disks = {key: bytearray(size) for key, size in sizes.items()}
        self.points: dict[str, Snapshot] = {}
        self.content: dict[tuple[str, str], bytes] = {}
        self.known: dict[tuple[str, str], bytes] = {}
        self.lists: dict[tuple[str, str, str | None], list[Extent]] = {}
        self.incremental = True
        self.over_report = 0.1
        self.missed: set[tuple[str, int]] = set()

    def take(self, group_id: str, point_id: str, bases: Mapping[str, str | None], now: float) -> Snapshot:
        disks = []
        for key, content in self.disks.items():
            base = bases.get(key)
            incremental = self.incremental and base is not None and (base, key) in self.known
            reason = "" if incremental else "no tracking"
            disks.append(SnapshotDisk(key, len(content), incremental, reason))
            self.content[point_id, key] = self.known[point_id, key] = bytes(content)
        snapshot = Snapshot(point_id, group_id, now, "machine", (), tuple(disks))
        self.points[point_id] = snapshot
        return snapshot

    def extents(self, point_id: str, key: str, base: str | None) -> list[Extent]:
        """Return what changed by blocks, a little more than that, and zeros told or not."""
        found = self.lists.get((point_id, key, base))
        if found is not None:
            return found
        rng = hub().rng
        new = self.known[point_id, key]
        old = self.known[base, key] if base is not None else b""
        step = rng.choice((512, BLOCK, BLOCK, 65536))
        rows: list[Extent] = []
        for at in range(0, len(new), step):
            stop = min(at + step, len(new))
            block = new[at:stop]
            zero = not any(block)
            if base is None:
                named = not zero or rng.random() < self.over_report
            else:
                before = old[at:stop]
                named = block != before + bytes(len(block) - len(before)) or rng.random() < self.over_report
            if not named:
                continue
            kind = Kind.ZERO if zero and rng.random() < 0.7 else Kind.DATA
            last = rows[-1] if rows else None
            if last is not None and last.offset + last.length == at and last.kind is kind and rng.random() < 0.95:
                rows[-1] = Extent(last.offset, last.length + stop - at, kind)
            else:
                rows.append(Extent(at, stop - at, kind))
        self.lists[point_id, key, base] = rows
        return rows


class SimSource:
    """The contract's Source, as far as a session needs it."""

    caps = Caps()

    def __init__(self, machines: Machines) -> None:
        self._machines = machines

    def find(self, point_id: str) -> Snapshot | None:
        hub().point()
        return self._machines.points.get(point_id)

    def changed(self, snapshot: Snapshot, disk_key: str, base: str | None) -> Iterator[Extent]:
        for extent in self._machines.extents(snapshot.point_id, disk_key, base):
            hub().check()
            self._machines.strike("list")
            self._alive(snapshot)
            yield extent

    def _alive(self, snapshot: Snapshot) -> None:
        if snapshot.point_id not in self._machines.points:
            raise RestartFromCheckpoint(
                f"point {snapshot.point_id} is gone", code="source-point-gone", point=snapshot.point_id
            )

    def reader(self, snapshot: Snapshot, disk_key: str) -> SimReader:
        hub().point()
        self._alive(snapshot)
        return SimReader(self, self._machines, snapshot, disk_key)

    def sweep(self, _keep: Sequence[str]) -> list[str]:
        return []


class SimReader:
    def __init__(self, source: SimSource, machines: Machines, snapshot: Snapshot, disk_key: str) -> None:
        self._source = source
        self._machines = machines
        self._snapshot = snapshot
        self._content = machines.known[snapshot.point_id, disk_key]
        self._closed = False
        self._reading = 0

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if self._closed:
            raise Violation("a reader is used after it was closed")
        if offset < 0 or offset + len(buffer) > len(self._content):
            raise Permanent("the read reaches over the end of the disk", code="disk-size")
        self._reading += 1
        try:
            self._machines.strike("read")
            self._source._alive(self._snapshot)
            buffer[:] = self._content[offset : offset + len(buffer)]
        finally:
            self._reading -= 1

    def read_held(self, offset: int, buffer: memoryview) -> bool:
        if self._closed:
            raise Violation("a reader is used after it was closed")
        self._source._alive(self._snapshot)
        held = offset // LEAF_SIZE % 2 == 0 and offset + len(buffer) <= len(self._content)
        if held:
            buffer[:] = self._content[offset : offset + len(buffer)]
        return held

    def close(self) -> None:
        hub().check()
        if self._reading:
            raise Violation("a reader is closed under a thread that reads")
        self._closed = True


def unused(*_: Any) -> None:
    """Do nothing."""
