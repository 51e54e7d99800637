"""The source half: points are frozen copies of a machine's images.

points/<point>/snapshot.json     the commit point of ``snapshot``: without it the folder is a left-over
points/<point>/<machine>/<disk>.img
points/<point>/<machine>/<disk>.changed   the bitmap since the base that was asked for
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from farshore import durable
from farshore.errors import Invalid, NotFound, RestartFromCheckpoint
from farshore.model.machine import Inventory, PoolFacts, disk_key
from farshore.model.plan import Consistency, Quiesce
from farshore.platforms.contract import Caps, Extent, Kind, Snapshot, SnapshotDisk
from farshore.platforms.file.held import Held
from farshore.platforms.file.machine import BLOCK, FileMachine, machines
from farshore.platforms.file.sparse import clone, data_ranges, named

log = logging.getLogger(__name__)


class FileSource:
    """Reads machines that are folders below ``root``."""

    caps = Caps(granularity_bytes=512, levels=("machine", "group"))

    def __init__(self, root: Path) -> None:
        self._root = root
        self._points = root / "points"

    def snapshot(
        self,
        group_id: str,
        point_id: str,
        machine_ids: Sequence[str],
        bases: Mapping[str, str | None],
        consistency: Consistency,
        quiesce: Mapping[str, Quiesce] | None = None,  # noqa: ARG002  nobody is in there
    ) -> Snapshot:
        """Take one point; see the contract. All machines are paused together, so the level is ``group`` for several."""
        folder = self._folder(point_id)
        existing = self.find(point_id)
        if existing is not None:
            return existing
        members = [FileMachine(self._root, machine_id) for machine_id in machine_ids]
        self._remove_left_overs(group_id, keep={base for base in bases.values() if base})
        durable.make_dir(folder)
        try:
            with ExitStack() as stack:
                for machine in sorted(members, key=lambda one: one.machine_id):  # one order: two groups never wait
                    stack.enter_context(machine.paused())
                taken_at = time.time()
                disks: list[SnapshotDisk] = []
                for machine in members:
                    machine.track(point_id)
                    disks.extend(self._freeze(machine, folder, point_id, bases))
                facts = tuple(machine.facts for machine in members)
        except OSError as error:
            self._discard(point_id, machine_ids)
            raise named(error, f"point {point_id} could not be taken", folder) from error
        snapshot = Snapshot(
            point_id=point_id,
            group_id=group_id,
            taken_at=taken_at,
            level="group" if consistency == "group" or (consistency != "machine" and len(members) > 1) else "machine",
            machines=facts,
            disks=tuple(disks),
            evidence=_evidence(consistency),
        )
        durable.write_json(folder / "snapshot.json", snapshot.to_json())
        return snapshot

    def _freeze(
        self, machine: FileMachine, folder: Path, point_id: str, bases: Mapping[str, str | None]
    ) -> Iterator[SnapshotDisk]:
        """Copy the images and the bitmaps since the bases; the machine is paused."""
        durable.make_dir(folder / machine.machine_id)
        for disk in machine.facts.disks:
            key = disk_key(machine.machine_id, disk.disk_id)
            image = folder / machine.machine_id / f"{disk.disk_id}.img"
            image.unlink(missing_ok=True)
            clone(machine.image(disk.disk_id), image, disk.size_bytes)
            image.chmod(0o400)
            base = bases.get(key)
            if base is None:
                yield SnapshotDisk(key, disk.size_bytes, incremental=False, reason="the target holds nothing yet")
                continue
            bitmap = machine.changed_blocks(disk.disk_id, base) if base != point_id else None
            if bitmap is None:
                reason = f"the change log since {base} is missing or does not fit the disk"
                yield SnapshotDisk(key, disk.size_bytes, incremental=False, reason=reason)
                continue
            durable.write(image.with_suffix(".changed"), json.dumps({"base": base}).encode() + b"\n" + bitmap)
            yield SnapshotDisk(key, disk.size_bytes, incremental=True)

    def find(self, point_id: str) -> Snapshot | None:
        """Return the point if it is whole and still there."""
        try:
            return Snapshot.from_json(json.loads((self._folder(point_id) / "snapshot.json").read_bytes()))
        except FileNotFoundError:
            return None

    def changed(self, snapshot: Snapshot, disk_key: str, base: str | None) -> Iterator[Extent]:
        """Yield what changed since ``base``, or all that is allocated; holes among the changed blocks come as ZERO."""
        image = self._image(snapshot, disk_key)
        size = snapshot.disk(disk_key).size_bytes
        try:
            with image.open("rb") as opened:
                if base is None:
                    for start, stop in data_ranges(opened.fileno(), size):
                        yield Extent(start, stop - start, Kind.DATA)
                    return
                head, _, bitmap = image.with_suffix(".changed").read_bytes().partition(b"\n")
                if json.loads(head)["base"] != base:
                    raise RestartFromCheckpoint(
                        f"point {snapshot.point_id} knows no changes since {base}", code="base-unknown", base=base
                    )
                allocated = _Allocated(opened.fileno(), size)
                for low, high in _runs(bitmap, size):
                    at = low
                    for start, stop in allocated.within(low, high):
                        if at < start:
                            yield Extent(at, start - at, Kind.ZERO)
                        yield Extent(start, stop - start, Kind.DATA)
                        at = stop
                    if at < high:
                        yield Extent(at, high - at, Kind.ZERO)
        except FileNotFoundError as error:
            raise _gone(snapshot.point_id) from error

    def reader(self, snapshot: Snapshot, disk_key: str) -> FileReader:
        """Return a reader of one disk of the point."""
        return FileReader(self._image(snapshot, disk_key), snapshot.point_id, snapshot.disk(disk_key).size_bytes)

    def release(self, group_id: str, point_id: str, machine_ids: Sequence[str], *, applied: bool) -> None:
        """End the reading of a point. What was applied leaves its bitmap, as the base of the next cycle."""
        log.info("point %s of group %s was %s", point_id, group_id, "applied" if applied else "given up")
        if not applied:
            self._discard(point_id, machine_ids)
            return
        self._remove_images(point_id)
        for machine_id in machine_ids:
            try:
                machine = FileMachine(self._root, machine_id)
            except NotFound:
                continue
            if point_id not in machine.tracked_points():
                continue  # the base is gone; the older ones are not worth less for it
            for older in machine.tracked_points():
                if older != point_id and not (self._folder(older) / "snapshot.json").exists():
                    machine.untrack(older)

    def untrack(self, machine_id: str) -> None:
        """Remove every trace of ours from the machine."""
        machine = FileMachine(self._root, machine_id)
        for point_id in machine.tracked_points():
            machine.untrack(point_id)
        for point_id in self._all_points():
            snapshot = self.find(point_id)
            if snapshot and [facts.machine_id for facts in snapshot.machines] == [machine_id]:
                self._remove_images(point_id)

    def traces(self, machine_id: str) -> list[str]:
        """Name the points that a machine's changes are tracked since, and those that hold its disks."""
        held = [
            point_id
            for point_id in self._all_points()
            if (snapshot := self.find(point_id)) and machine_id in {facts.machine_id for facts in snapshot.machines}
        ]
        return sorted(
            {
                *(f"tracking since {point_id}" for point_id in FileMachine(self._root, machine_id).tracked_points()),
                *(f"point {point_id}" for point_id in held),
            }
        )

    def sweep(self, keep: Sequence[str]) -> list[str]:
        """Remove points that are not in ``keep``, with their bitmaps."""
        removed = []
        for point_id in self._all_points():
            if point_id not in keep:
                snapshot = self.find(point_id)
                members = [facts.machine_id for facts in snapshot.machines] if snapshot else []
                self._discard(point_id, members or [machine.machine_id for machine in machines(self._root)])
                removed.append(point_id)
        return removed

    def inventory(self) -> Inventory:
        """Return what lies below the root."""
        pool = self._root / "pool"
        facts = os.statvfs(pool if pool.is_dir() else self._root)
        return Inventory(
            platform="file",
            machines=tuple(machine.facts for machine in machines(self._root)),
            pool=PoolFacts(
                path=str(pool),
                capacity_bytes=facts.f_blocks * facts.f_frsize,
                free_bytes=facts.f_bavail * facts.f_frsize,
            ),
        )

    def _remove_left_overs(self, group_id: str, keep: set[str]) -> None:
        """Remove the points that an older attempt of the group left.

        A point that is a base now was published, and only its release was lost: its bitmap is what we count from.
        """
        for point_id in self._all_points():
            snapshot = self.find(point_id)
            if snapshot is None or snapshot.group_id != group_id:
                continue
            if point_id in keep:
                self._remove_images(point_id)
            else:
                self._discard(point_id, [facts.machine_id for facts in snapshot.machines])

    def _discard(self, point_id: str, machine_ids: Sequence[str]) -> None:
        self._remove_images(point_id)
        for machine_id in machine_ids:
            try:
                FileMachine(self._root, machine_id).untrack(point_id)
            except NotFound:
                continue

    def _remove_images(self, point_id: str) -> None:
        folder = self._folder(point_id)
        if folder.is_dir():
            durable.remove(folder / "snapshot.json")  # first: from here on the point is not offered any more
            shutil.rmtree(folder)
            durable.fsync_dir(self._points)

    def _all_points(self) -> list[str]:
        return sorted(path.name for path in self._points.iterdir()) if self._points.is_dir() else []

    def _folder(self, point_id: str) -> Path:
        if not point_id or point_id.startswith(".") or "/" in point_id:
            raise Invalid(f"{point_id!r} is no point's id", code="point-id", field="point_id")
        return self._points / point_id

    def _image(self, snapshot: Snapshot, key: str) -> Path:
        machine_id, _, disk_id = key.partition("/")
        snapshot.disk(key)
        return self._folder(snapshot.point_id) / machine_id / f"{disk_id}.img"


class FileReader:
    """Reads one frozen image."""

    def __init__(self, image: Path, point_id: str, size_bytes: int) -> None:
        self._point_id = point_id
        self._size = size_bytes
        self._marker = str(image.parent.parent / "snapshot.json")
        try:
            self._fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise _gone(point_id) from error
        self._held = Held(self._fd)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer``; see the contract."""
        self._check(offset, buffer)
        at = 0
        while at < len(buffer):
            count = os.preadv(self._fd, [buffer[at:]], offset + at)
            if count == 0:
                raise _gone(self._point_id)
            at += count

    def read_held(self, offset: int, buffer: memoryview) -> bool:
        """Fill ``buffer`` from the page cache; see the contract."""
        self._check(offset, buffer)
        return self._held.read(offset, buffer)

    def _check(self, offset: int, buffer: memoryview) -> None:
        if offset + len(buffer) > self._size:
            raise Invalid("the read reaches over the end of the disk", code="disk-size", field="offset")
        # An open file outlives its removal; a point that was removed must not be served any longer.
        if not os.path.exists(self._marker):  # noqa: PTH110 - asked for every read
            raise _gone(self._point_id)

    def close(self) -> None:
        """Close the image."""
        os.close(self._fd)


def _runs(bitmap: bytes, size: int) -> Iterator[tuple[int, int]]:
    """Yield ``(start, stop)`` in bytes of the runs of set bits, the last cut at the disk's ``size``."""
    start = -1
    for index, byte in enumerate(bitmap):
        if byte == (0xFF if start >= 0 else 0):
            continue
        for bit in range(8):
            at = (index * 8 + bit) * BLOCK
            if byte >> bit & 1:
                start = at if start < 0 else start
            elif start >= 0:
                yield start, min(at, size)
                start = -1
    if 0 <= start < size:
        yield start, size


class _Allocated:
    """Which parts of a file are allocated, asked in ascending order.

    The last answer is kept: a file system may walk all of a long allocated range to find its end.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._ranges = data_ranges(fd, size)
        self._last = next(self._ranges, None)

    def within(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """Yield the allocated parts of ``[low, high)``."""
        while self._last is not None and self._last[0] < high:
            start, stop = max(self._last[0], low), min(self._last[1], high)
            if start < stop:
                yield start, stop
            if self._last[1] > high:
                return  # it goes on behind
            self._last = next(self._ranges, None)


def _gone(point_id: str) -> RestartFromCheckpoint:
    return RestartFromCheckpoint(
        f"the source point {point_id} is gone",
        code="source-point-gone",
        hint="The next cycle takes a new point; nothing that was published is affected.",
        point=point_id,
    )


def _evidence(consistency: Consistency) -> dict[str, Any]:
    evidence: dict[str, Any] = {"method": "machines paused while their images were copied"}
    if consistency == "application":
        evidence["below_application"] = ["images have no guest agent that could freeze what is in them"]
    return evidence
