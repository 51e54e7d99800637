"""Reading one disk of a source point."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from farshore.errors import NotFound, Reconnect, RestartFromCheckpoint, Unavailable
from farshore.platforms.contract import Extent
from farshore.platforms.kvm.points import DiskRecord, MachineRecord
from farshore.platforms.nbd import extents
from farshore.platforms.nbd import protocol as p
from farshore.platforms.nbd.client import Connection
from farshore.platforms.nbd.pool import Pool

#: Connections to one disk's export; QEMU serves them from one thread, more would only wait.
CONNECTIONS: Final = 4


class KvmReader:
    """Reads a disk of a point; see :class:`farshore.platforms.contract.Reader`.

    Args:
        machine: the machine's record, which names the socket.
        disk: the disk.
        check: called after each read; raises if what was read need not be the point's any more.
    """

    def __init__(self, machine: MachineRecord, disk: DiskRecord, check: Callable[[], None]) -> None:
        self._disk = disk
        self._check = check
        self._pool = Pool(lambda: Connection(Path(machine.socket), disk.target), CONNECTIONS)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer``; a lost connection is opened again once, for the export outlives a daemon's restart."""
        with gone(self._disk.disk_key):
            try:
                self._read(offset, buffer)
            except Reconnect:
                self._read(offset, buffer)
        self._check()

    def read_held(self, offset: int, buffer: memoryview) -> bool:  # noqa: ARG002
        """Nothing is held here."""
        return False

    def _read(self, offset: int, buffer: memoryview) -> None:
        with self._pool.lend() as connection:
            connection.read_into(offset, buffer)

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()


def changes(machine: MachineRecord, disk: DiskRecord, base: str | None, check: Callable[[], None]) -> Iterator[Extent]:
    """Yield what changed since ``base``, all that is allocated where it is None."""
    socket = Path(machine.socket)
    with gone(disk.disk_key), contextlib.ExitStack() as stack:

        def connect(export: str, *contexts: str) -> Connection:
            connection = Connection(socket, export, contexts)
            stack.callback(connection.close)
            return connection

        main = connect(disk.target, p.ALLOCATION)
        if base is None:
            found = extents.allocated(main)
        else:
            maps = []
            for item in disk.dirty:
                context = p.dirty_bitmap(item.bitmap)
                maps.append(extents.dirty(connect(item.export, context).block_status(context), main.size_bytes))
            found = extents.changed(extents.union(*maps), main)
        yield from found
        check()


@contextlib.contextmanager
def gone(disk_key: str) -> Iterator[None]:
    """Say that the point is gone when its export is."""
    try:
        yield
    except (Reconnect, Unavailable, NotFound) as error:
        raise RestartFromCheckpoint(
            f"the point of disk {disk_key} is gone: {error.message}", code="source-point-gone", disk_key=disk_key
        ) from error
