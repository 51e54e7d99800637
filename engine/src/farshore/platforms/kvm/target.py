"""Where replicas live: one qcow2 layer per checkpoint.

A draft is written by one storage daemon. Sealing ends the daemon and renames the image: the rename is the commit point.
See docs/internals/kvm.md for the crash windows of sealing and dropping.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from farshore import durable
from farshore.errors import Conflict, Invalid, NotFound, Reconnect, Retry, Unavailable
from farshore.model.machine import Finding, PoolFacts
from farshore.platforms.contract import Caps
from farshore.platforms.existing import locate
from farshore.platforms.kvm import images, thinning
from farshore.platforms.kvm.layers import MAX_CHAIN, LayerFile, Layers
from farshore.platforms.nbd.client import Connection
from farshore.platforms.nbd.launcher import Export, Launcher, StorageDaemon
from farshore.platforms.nbd.pool import Pool
from farshore.units import MIB

CAPS: Final = Caps(granularity_bytes=images.CLUSTER_BYTES, max_io_bytes=MIB, max_parallel=8, fences_by="lock")
#: Sealed points that are kept open for reading; each is a process of some 20 MiB.
_OPEN_POINTS: Final = 4


class KvmTarget:
    """Layers in a pool; see :class:`farshore.platforms.contract.Target`."""

    caps = CAPS

    def __init__(self, pool: Path, launcher: Launcher) -> None:
        self.layers = Layers(pool)
        self._launcher = launcher
        self._lock = threading.RLock()
        self._disk_locks: dict[Path, threading.RLock] = {}
        self._drafts: dict[str, KvmDraft] = {}
        self._open_points: dict[str, Pool] = {}
        self._end_leftovers()

    def _end_leftovers(self) -> None:
        """End daemons of an earlier life; drafts stay, with all that a flush covered."""
        for key in list(self._launcher.keys()):
            if key.startswith(("draft:", "point:", thinning.KEY)):
                self._launcher.stop(key)

    def _disk(self, layer: LayerFile) -> threading.RLock:
        """Return the lock of one disk's layers, which may be held as long as a layer is copied."""
        with self._lock:
            return self._disk_locks.setdefault(layer.folder, threading.RLock())

    # --- drafts --------------------------------------------------------------------------------------------------

    def open(self, disk_key: str, size_bytes: int, base: str | None, key: str) -> KvmDraft:
        """Open a draft. Once sealed, the same key gives a draft that knows its point and takes no writes.

        A draft that is open already is taken over: the older handle's calls fail from now on.
        """
        if size_bytes <= 0 or size_bytes % 512:
            raise Invalid(f"a disk of {size_bytes} bytes: the size must be a multiple of 512", field="size_bytes")
        layer = self.layers.of_key(disk_key, key)
        with self._disk(layer):
            self._take_over(layer)
            if not layer.sealed.is_file():
                self._prepare(layer, disk_key, size_bytes, base, key)
            draft = KvmDraft(layer, key, self._launcher, self._forget, self._disk(layer))
            with self._lock:
                self._drafts[layer.point] = draft
            return draft

    def adopt(
        self, disk_key: str, size_bytes: int, image: str | Path, key: str, image_format: str | None = None
    ) -> str:
        """Make a point of an image that lies in the pool, or of a machine's of a known format; see ``Platform``."""
        layer = self.layers.of_key(disk_key, key)
        with self._disk(layer):
            if not layer.sealed.is_file() and not layer.draft.is_file():
                path = locate(self.layers.pool, image) if isinstance(image, str) else image
                durable.make_dir(layer.folder, 0o711)
                durable.write_json(layer.sidecar, {"disk_key": disk_key, "key": key, "size_bytes": size_bytes})
                images.take_in(path, layer.draft, size_bytes, image_format)
            return self.open(disk_key, size_bytes, None, key).seal()

    def _take_over(self, layer: LayerFile) -> None:
        with self._lock:
            older = self._drafts.pop(layer.point, None)
        if older:
            older.take_over()

    def _prepare(self, layer: LayerFile, disk_key: str, size_bytes: int, base: str | None, key: str) -> None:
        backing = self.layers.existing(base).sealed if base else None
        if layer.draft.is_file():
            head = images.header(layer.draft)
            if head.backing != backing or head.size_bytes != size_bytes:
                raise Conflict(
                    f"draft {key!r} of {disk_key} was begun with another base or size",
                    code="draft-mismatch",
                    base=str(head.backing),
                    size_bytes=head.size_bytes,
                )
            durable.fsync_dir(layer.folder)  # as in seal
            return
        durable.make_dir(layer.folder, 0o711)
        durable.write_json(layer.sidecar, {"disk_key": disk_key, "key": key, "size_bytes": size_bytes})
        images.create(layer.draft, size_bytes, backing)

    def _forget(self, draft: KvmDraft) -> None:
        with self._lock:
            if self._drafts.get(draft.layer.point) is draft:
                del self._drafts[draft.layer.point]
            # Its cycle reads no base any more, and another process of the node may want to drop one.
            for point in [
                point for point in self._open_points if self.layers.of_point(point).folder == draft.layer.folder
            ]:
                self._close_point(point)

    def abandon(self, key: str) -> None:
        """Remove the drafts called ``key``; a sealed one is no draft any more and stays."""
        for layer in self.layers.drafts_of(key):
            with self._disk(layer):
                self._take_over(layer)
                _remove_draft(layer, self._launcher)

    # --- points --------------------------------------------------------------------------------------------------

    def has(self, point: str) -> bool:
        """Say whether the point exists; sealing is atomic, so what is not on its way out is whole."""
        try:
            self.layers.existing(point)
        except NotFound:
            return False
        return True

    def points(self) -> list[str]:
        """Return the ids of sealed points and ``draft:<key>`` of drafts."""
        found = []
        for layer in self.layers.all():
            if layer.sealed.is_file():
                found.append(layer.point)
            elif layer.draft.is_file():
                with contextlib.suppress(FileNotFoundError):  # removed while we looked
                    found.append(f"draft:{layer.record()['key']}")
            elif layer.sealed.is_file():  # sealed while we looked
                found.append(layer.point)
        return found

    def path(self, point: str) -> Path:
        """Return the image of a sealed point, to be used as a backing image only."""
        return self.layers.existing(point).sealed

    def read_into(self, point: str, offset: int, buffer: memoryview) -> None:
        """Read a sealed point through its chain."""
        with _lost(point):
            pool = self._point_pool(point)
            try:
                _read(pool, offset, buffer)
            except (Reconnect, Unavailable):  # its daemon died, or another point's drop closed it
                with self._lock:
                    if self._open_points.get(point) is pool:
                        self._close_point(point)
                _read(self._point_pool(point), offset, buffer)

    def _point_pool(self, point: str) -> Pool:
        with self._lock:
            pool = self._open_points.pop(point, None)
            if pool is None:
                while len(self._open_points) >= _OPEN_POINTS:
                    self._close_point(next(iter(self._open_points)))
                path = self.layers.existing(point).sealed
                daemon = self._launcher.start(f"point:{point}", [images.node("disk", path)], [Export("disk", "d")])
                pool = Pool(lambda: daemon.connect("d"), CAPS.max_parallel)
            self._open_points[point] = pool  # the one used last stands last
            return pool

    def _close_points(self) -> None:
        """Close our own readers: they hold locks on the layers that have to change."""
        with self._lock:
            for opened in list(self._open_points):
                self._close_point(opened)

    def _close_point(self, point: str) -> None:
        self._open_points.pop(point).close()
        self._launcher.stop(f"point:{point}")

    def lease(self, point: str, tag: str) -> None:
        """Pin a point for ``tag``."""
        with self._disk(self.layers.of_point(point)):
            self.layers.existing(point)
            self.layers.lease(point, tag)

    def release(self, tag: str) -> None:
        """Drop all leases of ``tag``."""
        self.layers.release(tag)

    def check_drop(self, point: str) -> None:
        """Raise what :meth:`drop` would raise now. Its images are opened as for the drop, and nothing is written."""
        layer = self.layers.of_point(point)
        with self._disk(layer):
            self._close_points()
            if layer.sealed.is_file():
                thinning.check(self.layers, layer, self._launcher)

    def drop(self, point: str) -> None:
        """Remove a point; what stands on it shows the same as before.

        Raises:
            Conflict: it, or a layer that stands on it, is leased or open (``point-leased``, ``image-in-use``).
        """
        layer = self.layers.of_point(point)
        with self._disk(layer):
            self._close_points()
            if layer.sealed.is_file():
                thinning.take_out(self.layers, layer, self._launcher)
            if not layer.draft.is_file() and layer.folder.is_dir():
                durable.remove(layer.sidecar)

    def usage(self) -> PoolFacts:
        """Return the size and free space of the pool's file system."""
        usage = shutil.disk_usage(self.layers.pool)
        return PoolFacts(path=str(self.layers.pool), capacity_bytes=usage.total, free_bytes=usage.free)

    def findings(self) -> list[Finding]:
        """Return disks whose chain has grown past the length that we want."""
        longest: dict[str, int] = {}
        for layer in self.layers.all():
            if layer.sealed.is_file():
                disk = layer.point.rpartition("/")[0]
                longest[disk] = max(longest.get(disk, 0), self.layers.chain_length(layer.sealed))
        return [
            Finding(
                code="chain-too-long",
                severity="warning",
                subject=disk,
                message=f"the replica of {disk} has {length} layers, more than {MAX_CHAIN}",
                remedy="Keep fewer checkpoints, or unpin old ones, so that retention can thin the chain.",
            )
            for disk, length in longest.items()
            if length > MAX_CHAIN
        ]

    def close(self) -> None:
        """End all daemons; drafts stay."""
        with self._lock:
            for draft in list(self._drafts.values()):
                draft.close()
            for point in list(self._open_points):
                self._close_point(point)


class KvmDraft:
    """One layer while it is written; see :class:`farshore.platforms.contract.Draft`.

    When its daemon dies, what was not flushed may be gone: every call raises :class:`Retry` (``draft-lost``), and
    opening the key again goes on from what a flush covered.
    """

    def __init__(
        self,
        layer: LayerFile,
        key: str,
        launcher: Launcher,
        forget: Callable[[KvmDraft], None],
        disk: contextlib.AbstractContextManager[object],
    ) -> None:
        self.layer = layer
        self.draft_id = key
        self._launcher = launcher
        self._forget = forget
        self._disk = disk
        self._lock = threading.Lock()
        self._closed = False
        self._pool: Pool | None = None
        if not layer.sealed.is_file():
            daemon = launcher.start(
                _daemon_key(layer),
                [images.node("disk", layer.draft, writable=True)],
                [Export("disk", "d", writable=True)],
            )
            self._pool = Pool(lambda: _connect(daemon), CAPS.max_parallel)

    @contextlib.contextmanager
    def _connection(self) -> Iterator[Connection]:
        pool = self._pool
        if pool is None:
            raise Conflict(f"draft {self.draft_id!r} is sealed or closed", code="draft-closed", draft=self.draft_id)
        with _lost(self.draft_id), pool.lend() as connection:
            yield connection

    def write(self, offset: int, buffer: memoryview) -> None:
        """Write ``buffer`` at ``offset``."""
        with self._connection() as connection:
            connection.write(offset, buffer)

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make a range read as zero; the space goes back to the pool."""
        with self._connection() as connection:
            connection.write_zeroes(offset, length)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Read back, through the chain."""
        with self._connection() as connection:
            connection.read_into(offset, buffer)

    def flush(self) -> None:
        """Make all finished writes durable, those of other threads too: they share one block node."""
        with self._connection() as connection:
            connection.flush()

    def seal(self) -> str:
        """Freeze the layer; the rename is the commit point."""
        # The disk's lock first, as everywhere: a drop of the base must find us under one name.
        with self._disk, self._lock:
            if not self.layer.sealed.is_file():
                self.flush()
                self._stop()
                self.layer.draft.chmod(thinning.SEALED_MODE)
                images.fsync(self.layer.draft)
                self.layer.draft.rename(self.layer.sealed)
            durable.fsync_dir(self.layer.folder)  # who gave it its name may have died before this
        self._forget(self)
        return self.layer.point

    def abandon(self) -> None:
        """Remove the draft; nothing is done to one that is sealed."""
        with self._lock:
            self._stop()
            _remove_draft(self.layer, self._launcher)
        self._forget(self)

    def close(self) -> None:
        """End the daemon, the image closed in order; the draft stays."""
        with self._lock:
            self._stop()
        self._forget(self)

    def take_over(self) -> None:
        """Make this handle useless: somebody else opened the draft or removed it."""
        with self._lock:
            self._stop()

    def _stop(self) -> None:
        pool, self._pool = self._pool, None
        if pool:
            pool.close()
            self._launcher.stop(_daemon_key(self.layer))


def _daemon_key(layer: LayerFile) -> str:
    return f"draft:{layer.point}"


def _remove_draft(layer: LayerFile, launcher: Launcher) -> None:
    launcher.stop(_daemon_key(layer))
    if layer.folder.is_dir():
        durable.remove(layer.draft)
        durable.remove(layer.creating)
        if not layer.sealed.is_file():
            durable.remove(layer.sidecar)


def _connect(daemon: StorageDaemon) -> Connection:
    connection = daemon.connect("d")
    # Without it a flush would cover the writes of one connection only.
    if not connection.can_multi_conn:
        connection.close()
        raise Conflict("this qemu-storage-daemon does not share flushes between connections", code="no-multi-conn")
    return connection


def _read(pool: Pool, offset: int, buffer: memoryview) -> None:
    with pool.lend() as connection:
        connection.read_into(offset, buffer)


@contextlib.contextmanager
def _lost(what: str) -> Iterator[None]:
    """Say that the daemon is gone; no write is repeated into another one, for those before it may be lost too."""
    try:
        yield
    except (Reconnect, Unavailable) as error:
        raise Retry(
            f"the daemon that serves {what} is gone: {error.message}",
            code="draft-lost",
            hint="Open it again and go on from what was flushed.",
            of=what,
        ) from error
