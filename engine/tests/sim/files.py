"""The files of one machine: what its processes see, what is durable, and what a power cut leaves of the rest.

The durability model is the one of :mod:`doubles.crash_disk`: a write or a name that was not synced may be there,
missing or torn after a power cut. The death of a process alone loses nothing.
"""

from __future__ import annotations

import errno
import fcntl as real_fcntl
import itertools
import os as real_os
import shutil as real_shutil
from collections.abc import Callable, Iterator
from typing import Any

from doubles.crash_disk import Name, State, Write, _apply, _image, _rename
from sim import network
from sim.runtime import Namespace, hub

DIRECTORY = -1
SECTOR = 512


class Files:
    """A file system in memory. ``strike(operation, path)`` may raise, or take its time."""

    def __init__(self) -> None:
        self.content: dict[int, bytearray] = {}
        self.names: dict[str, int] = {"/": DIRECTORY}
        self.state = State(names={"/": DIRECTORY})
        self.numbers = itertools.count(1)
        self.locks: dict[int, Any] = {}
        self.strike: Callable[[str, str], None] = lambda _operation, _path: None
        self.on_sync: Callable[[str, bytes], None] = lambda _path, _content: None

    def root(self) -> SimPath:
        return SimPath(self, "/")

    def power_cut(self) -> None:
        """Lose what was not synced, or a part of it."""
        rng = hub().rng
        style = rng.random()
        pending = self.state.pending
        if style < 0.25:
            taken = []
        elif style < 0.5:
            taken = pending[: rng.randint(0, len(pending))]
        else:
            taken = [one for one in pending if rng.random() < 0.5]
        writes = [index for index, one in enumerate(taken) if isinstance(one, Write) and one.data]
        if writes and rng.random() < 0.7:
            last = writes[-1]
            taken = [*taken[:last], *self._torn(taken[last]), *taken[last + 1 :]]
        image = _image(self.state, list(taken), None, None)
        self.content.clear()
        self.names = {"/": DIRECTORY}
        self.locks.clear()
        for name, data in image.items():
            if data is None:
                self.names[name] = DIRECTORY
            else:
                node = next(self.numbers)
                self.names[name] = node
                self.content[node] = bytearray(data)
        self.state = State(
            files={node: bytes(data) for node, data in self.content.items()}, names=dict(self.names), pending=[]
        )

    def _torn(self, one: Any) -> list[Write]:
        """Return what is there of a write: less of it, its length but not its content, or some of its sectors."""
        rng = hub().rng
        data, size = one.data, len(one.data)
        cut = rng.randint(0, size)
        style = rng.choice(("shorter", "hollow", "sectors"))
        if style == "shorter":
            return [Write(one.node, one.offset, data[:cut])]
        # Where the file was as long before, what is missing is what was there.
        known = max(0, len(self.state.files.get(one.node, b"")) - one.offset)
        edges = [0, cut, size]
        if style == "sectors":
            edges = [0, *(at for at in range(1, size) if (one.offset + at) % SECTOR == 0), size]
        found = []
        for number, (low, high) in enumerate(itertools.pairwise(edges)):
            here = rng.random() < 0.5 if style == "sectors" else number == 0
            if here:
                found.append(Write(one.node, one.offset + low, data[low:high]))
            elif high > max(low, known):
                start = max(low, known)
                found.append(Write(one.node, one.offset + start, bytes(high - start)))
        return found

    # Operations -----------------------------------------------------------------------------------------------------

    def note(self, one: Write | Name) -> None:
        self.state.pending.append(one)

    def sync_file(self, node: int) -> None:
        content = bytearray(self.state.files.get(node, b""))
        keep: list[Write | Name] = []
        for one in self.state.pending:
            if isinstance(one, Write) and one.node == node:
                _apply(content, one, None)
            else:
                keep.append(one)
        self.state.pending = keep
        self.state.files[node] = bytes(content)
        for name, other in self.names.items():
            if other == node:
                self.on_sync(name, self.state.files[node])

    def sync_directory(self, path: str) -> None:
        keep: list[Write | Name] = []
        for one in self.state.pending:
            if isinstance(one, Name) and path in one.directories():
                _rename(self.state.names, one)
            else:
                keep.append(one)
        self.state.pending = keep

    def make(self, path: str, node: int) -> None:
        self.names[path] = node
        self.note(Name(made=(path, node)))

    def move(self, one: str, other: str) -> None:
        if one not in self.names:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", one)
        moved = {name: node for name, node in self.names.items() if name == one or name.startswith(one + "/")}
        for name in [name for name in self.names if name == other or name.startswith(other + "/")]:
            del self.names[name]
        for name, node in moved.items():
            del self.names[name]
            self.names[other + name[len(one) :]] = node
        self.note(Name(made=(other, self.names[other]), gone=one))

    def remove(self, path: str) -> None:
        if path not in self.names:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        del self.names[path]
        self.note(Name(gone=path))


class SimPath:
    """What of pathlib.Path the data path uses."""

    def __init__(self, files: Files, text: str) -> None:
        self._files = files
        self._text = text

    def __truediv__(self, name: Any) -> SimPath:
        return SimPath(self._files, f"{self._text.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self._text

    __repr__ = __fspath__ = __str__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SimPath) and self._text == other._text

    def __lt__(self, other: SimPath) -> bool:
        return self._text < other._text

    def __hash__(self) -> int:
        return hash(self._text)

    @property
    def name(self) -> str:
        return self._text.rpartition("/")[2]

    @property
    def parent(self) -> SimPath:
        return SimPath(self._files, self._text.rpartition("/")[0] or "/")

    def with_name(self, name: str) -> SimPath:
        return self.parent / name

    def _node(self) -> int | None:
        hub().check()
        return self._files.names.get(self._text)

    def exists(self) -> bool:
        return self._node() is not None

    def is_dir(self) -> bool:
        return self._node() == DIRECTORY

    def is_file(self) -> bool:
        return self._node() not in {None, DIRECTORY}

    def read_bytes(self) -> bytes:
        node = self._node()
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", self._text)
        if node == DIRECTORY:
            raise IsADirectoryError(errno.EISDIR, "Is a directory", self._text)
        return bytes(self._files.content[node])

    def read_text(self, **_: Any) -> str:
        return self.read_bytes().decode()

    def iterdir(self) -> Iterator[SimPath]:
        if self._node() is None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", self._text)
        if not self.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "Not a directory", self._text)
        start = self._text.rstrip("/") + "/"
        names = [n for n in self._files.names if n.startswith(start) and "/" not in n[len(start) :] and n != "/"]
        return iter([SimPath(self._files, name) for name in sorted(names)])

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        del mode
        hub().point()
        if self.exists():
            if exist_ok:
                return
            raise FileExistsError(errno.EEXIST, "File exists", self._text)
        if not self.parent.is_dir():
            if not parents:
                raise FileNotFoundError(errno.ENOENT, "No such file or directory", self._text)
            self.parent.mkdir(parents=True, exist_ok=True)
        self._files.strike("mkdir", self._text)
        if not self.exists():  # while that took its time, another thread may have made it
            self._files.make(self._text, DIRECTORY)
        elif not exist_ok:
            raise FileExistsError(errno.EEXIST, "File exists", self._text)

    def unlink(self, missing_ok: bool = False) -> None:
        hub().point()
        if not self.exists():
            if missing_ok:
                return
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", self._text)
        self._files.remove(self._text)

    def rmdir(self) -> None:
        hub().point()
        if list(self.iterdir()):
            raise OSError(errno.ENOTEMPTY, "Directory not empty", self._text)
        self._files.remove(self._text)

    def replace(self, target: SimPath) -> SimPath:
        hub().point()
        self._files.strike("rename", self._text)
        self._files.move(self._text, target._text)
        return target

    rename = replace

    def stat(self) -> Any:
        node = self._node()
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", self._text)
        size = len(self._files.content.get(node, b""))
        return Namespace(real_os, st_size=size, st_mtime=hub().now, st_mode=0o100600, st_ino=node, st_dev=1)


class _Open:
    def __init__(self, path: SimPath, node: int, process: Any) -> None:
        self.path = path
        self.files = path._files
        self.node = node
        self.process = process
        self.at = 0


class _Table:
    """Open files of all machines."""

    def __init__(self) -> None:
        self.fds: dict[int, _Open] = {}


TABLE = _Table()


def reset() -> None:
    TABLE.fds.clear()


def _get(fd: int) -> _Open:
    hub().point()
    one = TABLE.fds.get(fd)
    if one is None:
        raise OSError(errno.EBADF, "Bad file descriptor")
    return one


def open_(path: Any, flags: int, mode: int = 0o777) -> int:
    del mode
    here = hub()
    here.point()
    if not isinstance(path, SimPath):
        raise TypeError(f"{path} is no file of the simulation")
    files, text = path._files, path._text
    node = files.names.get(text)
    if node is None:
        if not flags & real_os.O_CREAT or not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", text)
        files.strike("create", text)
        node = files.names.get(text)  # while that took its time, another thread may have made it
        if node is None:
            node = next(files.numbers)
            files.content[node] = bytearray()
            files.state.files[node] = b""
            files.make(text, node)
        elif flags & real_os.O_EXCL:
            raise FileExistsError(errno.EEXIST, "File exists", text)
    elif flags & real_os.O_CREAT and flags & real_os.O_EXCL:
        raise FileExistsError(errno.EEXIST, "File exists", text)
    elif flags & real_os.O_TRUNC:
        files.content[node].clear()
        files.note(Write(node, 0, None))
    fd = next(network.network().fds)
    process = here.check().process
    TABLE.fds[fd] = _Open(path, node, process)
    process.on_death.append(lambda: close_file(fd))
    return fd


def close_file(fd: int) -> bool:
    one = TABLE.fds.pop(fd, None)
    if one is None:
        return False
    if one.files.locks.get(one.node) is one:
        del one.files.locks[one.node]
    return True


def close(fd: int) -> None:
    hub().check()
    if not network.close_event(fd) and not close_file(fd):
        raise OSError(errno.EBADF, "Bad file descriptor")


def pwrite(fd: int, data: Any, offset: int) -> int:
    one = _get(fd)
    piece = bytes(data)
    one.files.strike("write", one.path._text)
    if len(piece) > 1 and hub().rng.random() < 0.02:
        piece = piece[: hub().rng.randint(1, len(piece))]  # a short write is no error
    operation = Write(one.node, offset, piece)
    _apply(one.files.content[one.node], operation, None)
    one.files.note(operation)
    return len(piece)


def write(fd: int, data: Any) -> int:
    one = _get(fd)
    count = pwrite(fd, data, one.at)
    one.at += count
    return count


def pread(fd: int, size: int, offset: int) -> bytes:
    one = _get(fd)
    return bytes(one.files.content[one.node][offset : offset + size])


def ftruncate(fd: int, length: int) -> None:
    one = _get(fd)
    operation = Write(one.node, length, None)
    _apply(one.files.content[one.node], operation, None)
    one.files.note(operation)


def fsync(fd: int) -> None:
    one = _get(fd)
    if one.node == DIRECTORY:
        one.files.strike("sync-dir", one.path._text)
        hub().check()
        one.files.sync_directory(one.path._text)
    else:
        one.files.strike("sync", one.path._text)
        hub().check()
        one.files.sync_file(one.node)


def fstat(fd: int) -> Any:
    one = _get(fd)
    return Namespace(real_os, st_size=len(one.files.content.get(one.node, b"")), st_ino=one.node, st_dev=1)


def lseek(fd: int, offset: int, how: int) -> int:
    one = _get(fd)
    size = len(one.files.content[one.node])
    if how in {real_os.SEEK_DATA, real_os.SEEK_HOLE}:
        if offset >= size:
            raise OSError(errno.ENXIO, "No such device or address")
        return offset if how == real_os.SEEK_DATA else size
    one.at = offset if how == real_os.SEEK_SET else size + offset
    return one.at


def link(source: SimPath, target: SimPath, **_: Any) -> None:
    hub().point()
    files = source._files
    if target._text in files.names:
        raise FileExistsError(errno.EEXIST, "File exists", target._text)
    files.make(target._text, files.names[source._text])


def flock(fd: int, operation: int) -> None:
    one = _get(fd)
    held = one.files.locks.get(one.node)
    if held is not None and held is not one:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
    if operation & real_fcntl.LOCK_UN:
        one.files.locks.pop(one.node, None)
    else:
        one.files.locks[one.node] = one


def rmtree(path: SimPath, ignore_errors: bool = False, **_: Any) -> None:
    hub().point()
    files = path._files
    start = path._text
    found = sorted((n for n in files.names if n == start or n.startswith(start + "/")), reverse=True)
    if not found and not ignore_errors:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", start)
    for name in found:
        hub().check()
        files.remove(name)


OS = Namespace(
    real_os,
    open=open_,
    close=close,
    write=write,
    pwrite=pwrite,
    pread=pread,
    ftruncate=ftruncate,
    fsync=fsync,
    fdatasync=fsync,
    fstat=fstat,
    lseek=lseek,
    link=link,
    replace=lambda one, other: one.replace(other),
    rename=lambda one, other: one.replace(other),
    unlink=lambda one: one.unlink(),
    cpu_count=lambda: 2,  # the same schedule on any machine
    eventfd=network.eventfd,
    eventfd_write=network.eventfd_write,
    eventfd_read=network.eventfd_read,
)
REPLACED: dict[int, Any] = {
    id(real_os): OS,
    id(real_fcntl): Namespace(real_fcntl, flock=flock),
    id(real_shutil): Namespace(real_shutil, rmtree=rmtree),
}
