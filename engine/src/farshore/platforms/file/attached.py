"""Disks that are named by their paths: raw images or block devices as a source, raw images as a target.

Here the image is the disk: a draft is written where the disk lies, and a base that it grows on is used up. That is how
a volume works that is attached to a node; a measurement of a link, ``farshore linktest``, works on such disks too.

    state/<disk>.json    what the image at the target holds: a draft or a point; written whole
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from farshore import durable
from farshore.errors import Conflict, Invalid, NotFound, Permanent
from farshore.model.machine import PoolFacts
from farshore.model.plan import Consistency, Quiesce
from farshore.platforms.contract import Caps, Extent, Kind, Snapshot, SnapshotDisk
from farshore.platforms.file.held import Held
from farshore.platforms.file.sparse import data_ranges, flush, named, punch_hole

#: The machine that the disks are said to belong to, and the name of the source's point before this one.
MACHINE: Final = "attached"
BASE: Final = "base"


def base_of(disk_key: str) -> str:
    """Return the name of the point that an image is before anything is written to it."""
    return f"{BASE}-{disk_key}"


@dataclass(frozen=True, slots=True)
class AttachedDisk:
    """A disk at the source. ``changed`` is ``(offset, length)`` since the base, None where no base is known."""

    path: Path
    changed: tuple[tuple[int, int], ...] | None = None

    def key(self, index: int) -> str:
        """Return a key that changes with what is at the path, so that nothing older is ever gone on with."""
        size = self.size()
        facts = self.path.stat()
        text = f"{facts.st_dev} {facts.st_ino} {facts.st_mtime_ns} {size} {self.changed}"
        return f"{MACHINE}/{index}-{sha256(text.encode()).hexdigest()[:16]}"

    def size(self) -> int:
        """Return the size in bytes.

        Raises:
            Invalid: there is no image or block device that can be read; ``field`` is ``disk``.
        """
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if not (stat.S_ISREG(mode := os.fstat(fd).st_mode) or stat.S_ISBLK(mode)):
                    raise Invalid(f"{self.path} is no image and no block device", code="disk", field="disk")
                size = os.lseek(fd, 0, os.SEEK_END)
            finally:
                os.close(fd)
        except OSError as error:
            raise Invalid(f"{self.path} cannot be read: {error.strerror}", code="disk", field="disk") from error
        if size == 0:
            raise Invalid(f"{self.path} is empty", code="disk", field="disk")
        return size


class AttachedSource:
    """Reads disks that nobody writes meanwhile: there is one point, and it is the disks as they are."""

    caps = Caps(granularity_bytes=512)

    def __init__(self, disks: Sequence[AttachedDisk], point_id: str) -> None:
        self._disks = {disk.key(index): disk for index, disk in enumerate(disks)}
        self._point = Snapshot(
            point_id=point_id,
            group_id=MACHINE,
            taken_at=time.time(),
            level="crash",
            machines=(),
            disks=tuple(
                SnapshotDisk(
                    key,
                    disk.size(),
                    incremental=disk.changed is not None,
                    reason="" if disk.changed is not None else "no changes were named",
                )
                for key, disk in self._disks.items()
            ),
        )

    def snapshot(
        self,
        group_id: str,  # noqa: ARG002
        point_id: str,
        machine_ids: Sequence[str],  # noqa: ARG002
        bases: Mapping[str, str | None],  # noqa: ARG002
        consistency: Consistency,  # noqa: ARG002
        quiesce: Mapping[str, Quiesce] | None = None,  # noqa: ARG002
    ) -> Snapshot:
        """Return the only point."""
        found = self.find(point_id)
        if found is None:
            raise NotFound(f"attached disks have no point but {self._point.point_id}", code="point-not-found")
        return found

    def find(self, point_id: str) -> Snapshot | None:
        """Return the only point."""
        return self._point if point_id == self._point.point_id else None

    def changed(self, snapshot: Snapshot, disk_key: str, base: str | None) -> Iterator[Extent]:
        """Yield what was named as changed, or all that is allocated."""
        disk = self._disks[disk_key]
        if base is not None:
            yield from (Extent(offset, length, Kind.DATA) for offset, length in disk.changed or ())
            return
        size = snapshot.disk(disk_key).size_bytes
        with disk.path.open("rb") as opened:
            if stat.S_ISBLK(os.fstat(opened.fileno()).st_mode):
                yield Extent(0, size, Kind.DATA)
                return
            for start, stop in data_ranges(opened.fileno(), size):
                yield Extent(start, stop - start, Kind.DATA)

    def reader(self, snapshot: Snapshot, disk_key: str) -> AttachedReader:
        """Return a reader of one disk."""
        return AttachedReader(self._disks[disk_key].path, snapshot.disk(disk_key).size_bytes)

    def release(self, group_id: str, point_id: str, machine_ids: Sequence[str], *, applied: bool) -> None:
        """Nothing is held."""

    def untrack(self, machine_id: str) -> None:
        """Nothing is tracked."""

    def sweep(self, keep: Sequence[str]) -> list[str]:  # noqa: ARG002
        """Nothing is left behind."""
        return []


class AttachedReader:
    """Reads one disk."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        self._size = size_bytes
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._held = Held(self._fd)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer``; see the contract."""
        self._check(offset, buffer)
        at = 0
        while at < len(buffer):
            count = os.preadv(self._fd, [buffer[at:]], offset + at)
            if count == 0:
                raise Permanent(f"{self._path} became smaller while it was read", code="disk-size")
            at += count

    def read_held(self, offset: int, buffer: memoryview) -> bool:
        """Fill ``buffer`` from the page cache; see the contract."""
        self._check(offset, buffer)
        return self._held.read(offset, buffer)

    def _check(self, offset: int, buffer: memoryview) -> None:
        if offset + len(buffer) > self._size:
            raise Invalid("the read reaches over the end of the disk", code="disk-size", field="offset")

    def close(self) -> None:
        """Close the disk."""
        os.close(self._fd)


class AttachedTarget:
    """Writes disks where they lie. ``images`` maps disk keys to paths; ``state`` is a folder of this target alone."""

    caps = Caps(granularity_bytes=512, max_io_bytes=1 << 20)

    def __init__(self, images: Mapping[str, Path], state: Path) -> None:
        self._images = dict(images)
        self._state = state
        self._read: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {}
        durable.make_dir(state)

    def open(self, disk_key: str, size_bytes: int, base: str | None, key: str) -> AttachedDraft:
        """Open or begin the draft ``key`` in the disk's image; see the contract."""
        image = self._images[disk_key]
        held = self._held(disk_key)
        if held is None or held["key"] != key:
            if base is not None and not (image.is_file() and image.stat().st_size == size_bytes):
                raise NotFound(f"{image} is not there with {size_bytes} bytes", code="point-not-found", point=base)
            try:
                if base is None:
                    _make_empty(image, size_bytes)
                self._hold(disk_key, {"key": key, "size_bytes": size_bytes, "sealed": False})
            except OSError as error:
                raise named(error, f"no draft for {disk_key} could be made", image) from error
        return AttachedDraft(self, disk_key, key, image)

    def has(self, point: str) -> bool:
        """Say whether the point is what an image holds now."""
        for disk_key, image in self._images.items():
            if point == base_of(disk_key):
                return image.is_file()
        return any(held["sealed"] and _point_of(held["key"]) == point for _, held in self._all())

    def read_into(self, point: str, offset: int, buffer: memoryview) -> None:
        """Read a sealed point."""
        for disk_key, held in self._all():
            if held["sealed"] and _point_of(held["key"]) == point:
                reader = AttachedReader(self._images[disk_key], held["size_bytes"])
                try:
                    reader.read_into(offset, buffer)
                finally:
                    reader.close()
                return
        raise NotFound(f"no image holds point {point}", code="point-not-found", point=point)

    def lease(self, point: str, tag: str) -> None:
        """Nothing but its user drops an attached disk."""

    def release(self, tag: str) -> None:
        """There are no leases."""

    def check_drop(self, point: str) -> None:
        """Anything may be dropped."""

    def drop(self, point: str) -> None:
        """Take back that an image is a point; the image is its user's and stays."""
        for disk_key, held in self._all():
            if _point_of(held["key"]) == point:
                durable.remove(self._path(disk_key))

    def points(self) -> list[str]:
        """Return the points, and the drafts as ``draft:<key>``."""
        return sorted(_point_of(held["key"]) if held["sealed"] else f"draft:{held['key']}" for _, held in self._all())

    def abandon(self, key: str) -> None:
        """Forget the draft named ``key``, unless it is a point already; the image is its user's and stays."""
        for disk_key, held in self._all():
            if held["key"] == key and not held["sealed"]:
                durable.remove(self._path(disk_key))

    def usage(self) -> PoolFacts:
        """Return the size and the free space of where the first image lies."""
        folder = next(iter(self._images.values())).parent
        facts = os.statvfs(folder)
        return PoolFacts(
            path=str(folder),
            capacity_bytes=facts.f_blocks * facts.f_frsize,
            free_bytes=facts.f_bavail * facts.f_frsize,
        )

    def seal(self, disk_key: str, key: str) -> str:
        """Call the image a point; called by the draft, which has flushed it."""
        held = self._held(disk_key)
        if held is None or held["key"] != key:
            raise Conflict(f"draft {key} is not in its image any more", code="draft-gone", key=key)
        self._hold(disk_key, {**held, "sealed": True})
        return _point_of(key)

    def _all(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for disk_key in self._images:
            held = self._held(disk_key)
            if held is not None:
                yield disk_key, held

    def _held(self, disk_key: str) -> dict[str, Any] | None:
        """Return what the image holds; read again only where the file is another one than last time."""
        path = self._path(disk_key)
        try:
            facts = path.stat()
            version = (facts.st_ino, facts.st_mtime_ns)
            known = self._read.get(disk_key)
            if known is None or known[0] != version:
                known = self._read[disk_key] = (version, json.loads(path.read_bytes()))
        except FileNotFoundError:
            return None
        return known[1]

    def _hold(self, disk_key: str, held: Mapping[str, Any]) -> None:
        durable.write_json(self._path(disk_key), held)

    def _path(self, disk_key: str) -> Path:
        return self._state / f"{disk_key.partition('/')[2]}.json"


class AttachedDraft:
    """An image that is being written."""

    def __init__(self, target: AttachedTarget, disk_key: str, key: str, image: Path) -> None:
        self.draft_id = key
        self._target = target
        self._disk_key = disk_key
        self._image = image
        self._fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)

    def write(self, offset: int, buffer: memoryview) -> None:
        """Write ``buffer`` at ``offset``."""
        try:
            while buffer:
                count = os.pwrite(self._fd, buffer, offset)
                offset += count
                buffer = buffer[count:]
        except OSError as error:
            raise named(error, f"{self._image} could not be written", self._image.parent) from error

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make a range read as zero, as a hole."""
        try:
            punch_hole(self._fd, offset, length)
        except OSError as error:
            raise named(error, f"{self._image} could not be written", self._image.parent) from error

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Read back."""
        at = 0
        while at < len(buffer):
            count = os.preadv(self._fd, [buffer[at:]], offset + at)
            if count == 0:
                raise Permanent(f"{self._image} became smaller while it was written", code="disk-size")
            at += count

    def flush(self) -> None:
        """Return when every write that had returned before the call is durable."""
        try:
            flush(self._fd)
        except OSError as error:
            raise named(error, f"{self._image} could not be flushed", self._image.parent) from error

    def seal(self) -> str:
        """Call the image a point and return its id."""
        self.flush()
        return self._target.seal(self._disk_key, self.draft_id)

    def abandon(self) -> None:
        """Forget the draft."""
        self.close()
        self._target.abandon(self.draft_id)

    def close(self) -> None:
        """Close the image; the draft stays."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _point_of(key: str) -> str:
    return f"point-{sha256(key.encode()).hexdigest()[:24]}"


def _make_empty(path: Path, size_bytes: int) -> None:
    """Make ``path`` an image that is all zero; what was there before must not shine through."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Invalid(f"{path} is no regular file", code="disk", field="disk", hint="Name an image to be made.")
        os.ftruncate(fd, 0)
        os.ftruncate(fd, size_bytes)
        os.fsync(fd)
    finally:
        os.close(fd)
    durable.fsync_dir(path.parent)
