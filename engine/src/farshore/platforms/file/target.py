"""The target half: a pool of raw images.

    pool/drafts/<key>/disk.img draft.json    a draft, named by its caller's key
    pool/points/<point>/disk.img draft.json  sealed: the draft's folder under its final name, read-only
    pool/leases/<point>/<tag>                an empty file per lease

A draft's folder appears whole by one rename, and so does a point. A point's id follows from its draft's key, so that
``seal`` finds its own work again after a crash.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Final

from farshore import durable
from farshore.errors import Conflict, Invalid, NotFound, Permanent, RestartFromCheckpoint, Retry
from farshore.model.machine import PoolFacts
from farshore.platforms.contract import Caps
from farshore.platforms.existing import locate, refuse_larger
from farshore.platforms.file import locks
from farshore.platforms.file.sparse import clone, flush, named, punch_hole

_KEY: Final = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")
_IMAGE: Final = "disk.img"
_FACTS: Final = "draft.json"


class FileTarget:
    """Keeps points as files below ``pool``."""

    caps = Caps(granularity_bytes=4096, max_io_bytes=1 << 20, fences_by="lock")

    def __init__(self, pool: Path) -> None:
        self._pool = pool
        self._drafts = pool / "drafts"
        self._points = pool / "points"
        self._leases = pool / "leases"

    def open(self, disk_key: str, size_bytes: int, base: str | None, key: str) -> FileDraft:
        """Open or make the draft ``key``; see the contract."""
        point = _point_of(key)
        folder = self._drafts / _checked(key, "key")
        if self._is_sealed(point):
            return FileDraft(self, key, self._points / point, sealed=True)
        if folder.is_dir():
            durable.fsync_dir(self._drafts)  # who made it may have died before this
        else:
            self._make(folder, disk_key, size_bytes, base)
        try:
            facts = json.loads((folder / _FACTS).read_bytes())
        except (FileNotFoundError, ValueError) as error:
            raise RestartFromCheckpoint(f"draft {key} is damaged", code="draft-damaged", key=key) from error
        asked = {"disk_key": disk_key, "size_bytes": size_bytes, "base": base}
        if facts != asked:
            raise Conflict(f"draft {key} is of something else", code="draft-mismatch", found=facts, asked=asked)
        try:
            (folder / _IMAGE).chmod(0o600)  # a seal that a crash cut short has made it read-only
            return FileDraft(self, key, folder, sealed=False)
        except FileNotFoundError as error:
            raise Retry(f"draft {key} was sealed or removed while it was opened", code="draft-gone", key=key) from error

    def adopt(self, disk_key: str, size_bytes: int, image: str, key: str) -> str:
        """Make a point of the raw image ``image``, which lies in the pool; see ``Platform``."""
        point, folder = _point_of(_checked(key, "key")), self._drafts / key
        if self._is_sealed(point):
            return point
        if not folder.is_dir():
            path = locate(self._pool, image)
            refuse_larger(image, path.stat().st_size, size_bytes)
            self._make(folder, disk_key, size_bytes, None, path)
        return self.seal(key, folder)

    def _make(
        self, folder: Path, disk_key: str, size_bytes: int, base: str | None, content: Path | None = None
    ) -> None:
        temporary = folder.with_name(f".{folder.name}.tmp")
        durable.make_dir(self._drafts)
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            image = temporary / _IMAGE
            content = self._image(base) if base is not None else content
            if content is None:
                _make_empty(image, size_bytes)
            else:
                clone(content, image, size_bytes)
            _sync(image)
            durable.write_json(temporary / _FACTS, {"disk_key": disk_key, "size_bytes": size_bytes, "base": base})
            temporary.rename(folder)
            durable.fsync_dir(self._drafts)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise named(error, f"no draft for {disk_key} could be made", self._pool) from error

    def has(self, point: str) -> bool:
        """Say whether the point exists and is whole."""
        return (self._points / _checked(point, "point") / _IMAGE).is_file()

    def read_into(self, point: str, offset: int, buffer: memoryview) -> None:
        """Read a sealed point."""
        with self._image(point).open("rb") as image:
            _read(image.fileno(), offset, buffer)

    def lease(self, point: str, tag: str) -> None:
        """Pin the point for ``tag``."""
        self._image(point)
        durable.make_dir(self._leases / point)
        durable.create(self._leases / point / _checked(tag, "tag"), b"")

    def release(self, tag: str) -> None:
        """Drop all leases of ``tag``."""
        _checked(tag, "tag")
        for folder in self._leases.iterdir() if self._leases.is_dir() else ():
            durable.remove(folder / tag)

    def check_drop(self, point: str) -> None:
        """Refuse a point that is leased."""
        leases = self._leases / _checked(point, "point")
        if leases.is_dir() and any(leases.iterdir()):
            raise Conflict(
                f"point {point} is in use",
                code="point-leased",
                hint="Wait for the run that uses it, or end that run.",
                tags=sorted(path.name for path in leases.iterdir()),
            )

    def drop(self, point: str) -> None:
        """Remove a point whole. Images are independent of each other, so no other point is touched."""
        self.check_drop(point)
        folder, leases = self._points / point, self._leases / point
        _remove(folder, folder.with_name(f".{folder.name}.dropped"))
        if leases.is_dir():
            leases.rmdir()

    def points(self) -> list[str]:
        """Return all sealed points and drafts (drafts as ``draft:<key>``)."""
        return sorted([*_names(self._points), *(f"draft:{key}" for key in _names(self._drafts))])

    def abandon(self, key: str) -> None:
        """Remove the draft named ``key`` if it exists."""
        folder = self._drafts / _checked(key, "key")
        with locks.held(folder / _IMAGE, key):
            _remove(folder, folder.with_name(f".{folder.name}.tmp"))

    def usage(self) -> PoolFacts:
        """Return the pool's size and free space."""
        durable.make_dir(self._pool)
        facts = os.statvfs(self._pool)
        return PoolFacts(
            path=str(self._pool),
            capacity_bytes=facts.f_blocks * facts.f_frsize,
            free_bytes=facts.f_bavail * facts.f_frsize,
        )

    def seal(self, key: str, folder: Path) -> str:
        """Give a draft's folder its final name; called by the draft."""
        point = _point_of(key)
        durable.make_dir(self._points)
        (folder / _IMAGE).chmod(0o400)
        _sync(folder / _IMAGE)
        folder.rename(self._points / point)
        durable.fsync_dir(self._points)
        durable.fsync_dir(self._drafts)
        return point

    def _is_sealed(self, point: str) -> bool:
        """Say whether the point is there, and see to it that it stays: who sealed it may have died before that."""
        if not (self._points / point).is_dir():
            return False
        durable.fsync_dir(self._points)
        return True

    def _image(self, point: str) -> Path:
        path = self._points / _checked(point, "point") / _IMAGE
        if not path.is_file():
            raise NotFound(f"point {point} does not exist in {self._pool}", code="point-not-found", point=point)
        return path


class FileDraft:
    """A draft that is open, or the point that it has become."""

    def __init__(self, target: FileTarget, key: str, folder: Path, *, sealed: bool) -> None:
        self.draft_id = key
        self._target = target
        self._folder = folder
        self._point = _point_of(key) if sealed else None
        image = folder / _IMAGE
        self._lock = None if sealed else locks.take(image, key)
        try:
            self._fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC) if self._lock is None else self._lock.open(image)
        except BaseException:
            if self._lock is not None:
                self._lock.release()
            raise
        self._size = os.fstat(self._fd).st_size

    def write(self, offset: int, buffer: memoryview) -> None:
        """Write ``buffer`` at ``offset``."""
        self._check(offset, len(buffer))
        try:
            while buffer:
                count = os.pwrite(self._fd, buffer, offset)
                offset += count
                buffer = buffer[count:]
        except OSError as error:
            raise named(error, f"draft {self.draft_id} could not be written", self._folder) from error

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make a range read as zero, as a hole."""
        self._check(offset, length)
        try:
            punch_hole(self._fd, offset, length)
        except OSError as error:
            raise named(error, f"draft {self.draft_id} could not be written", self._folder) from error

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Read back."""
        _read(self._fd, offset, buffer)

    def flush(self) -> None:
        """Return when every write that had returned before the call is durable."""
        try:
            flush(self._fd)
        except OSError as error:
            # The kernel forgets dirty pages that it could not write: nothing that was written since the last flush
            # can be trusted, and a second fdatasync would wrongly succeed.
            raise named(error, f"draft {self.draft_id} could not be flushed", self._folder) from error

    def seal(self) -> str:
        """Freeze into a point and return its id."""
        if self._point is None:
            self.flush()
            try:
                self._point = self._target.seal(self.draft_id, self._folder)
            except OSError as error:
                raise named(error, f"draft {self.draft_id} could not be sealed", self._folder) from error
        return self._point

    def abandon(self) -> None:
        """Remove the draft."""
        self.close()
        if self._point is None:
            self._target.abandon(self.draft_id)

    def close(self) -> None:
        """Close the image; the draft stays."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def _check(self, offset: int, length: int) -> None:
        if self._point is not None:
            raise Conflict(f"draft {self.draft_id} is sealed", code="point-sealed", point=self._point)
        if offset < 0 or offset + length > self._size:
            raise Permanent("the write reaches over the end of the disk", code="disk-size", offset=offset)


def _point_of(key: str) -> str:
    return f"point-{sha256(key.encode()).hexdigest()[:24]}"


def _checked(name: str, field: str) -> str:
    if not _KEY.match(name):
        raise Invalid(f"{name!r} is no {field} of a file pool", code="pool-name", field=field)
    return name


def _remove(folder: Path, gone: Path) -> None:
    """Remove ``folder`` at once, by the name ``gone``; or what is left of that by somebody who died over it."""
    if folder.is_dir():
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)
    elif not gone.is_dir():
        return
    durable.fsync_dir(folder.parent)
    shutil.rmtree(gone)


def _make_empty(path: Path, size_bytes: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, size_bytes)
    finally:
        os.close(fd)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []


def _read(fd: int, offset: int, buffer: memoryview) -> None:
    at = 0
    while at < len(buffer):
        count = os.preadv(fd, [buffer[at:]], offset + at)
        if count == 0:
            raise Permanent("the read reaches over the end of the disk", code="disk-size", offset=offset)
        at += count
