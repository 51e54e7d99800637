"""A file layer that records, and every state in which a crash may leave what was recorded.

The code under test runs on real files; beside them a model keeps, per file, what is durable and what was written since
its last fsync, and per directory which names were made or removed since its last fsync. At every step :func:`states`
yields what a disk might show after a power cut there: writes that were not synced may be there, missing, or torn at a
byte, in any combination that the limits allow; so may names. A rename is atomic, as journaling file systems make it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

#: With more unsynced operations than this, not every subset is tried, only the telling ones.
SUBSETS_UP_TO = 5


@dataclass
class Write:
    """Bytes that were written to a file, or (``data`` None) a new length at ``offset``."""

    node: int
    offset: int
    data: bytes | None


@dataclass
class Name:
    """A name that appeared (``node``) or went away; a rename does both at once."""

    made: tuple[str, int] | None = None
    gone: str | None = None

    def directories(self) -> set[str]:
        names = [name for name in (self.made and self.made[0], self.gone) if name]
        return {os.path.dirname(name) for name in names}  # noqa: PTH120


@dataclass
class State:
    """What is durable, and what is not yet."""

    files: dict[int, bytes] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    pending: list[Write | Name] = field(default_factory=list)


class Died(BaseException):
    """The process is no more: nothing that it would do afterwards, also in ``finally``, has any effect."""


class Recorder:
    """Records what is done below ``root`` while :meth:`recording` is active. ``note`` marks promises that were made.

    A process that dies over it loses nothing: a second recording goes on with what the first has left unsynced.
    """

    DIRECTORY = -1

    def __init__(self, root: Path) -> None:
        self.root = root
        self.states: list[tuple[State, tuple[Any, ...]]] = []
        self.promises: list[Any] = []
        self._state = State()
        self._names: dict[str, int] = {}
        self._fds: dict[int, int | str] = {}
        self._next = itertools.count(1)
        self._lives: int | None = None

    def note(self, promise: Any) -> None:
        """Say that from here on, after any crash, ``promise`` has to hold."""
        self.promises.append(promise)
        self._step()

    def _step(self) -> None:
        state = State(dict(self._state.files), dict(self._state.names), list(self._state.pending))
        self.states.append((state, tuple(self.promises)))

    def _add(self, operation: Write | Name) -> None:
        self._state.pending.append(operation)
        self._step()

    def _sync_file(self, node: int) -> None:
        content = bytearray(self._state.files.get(node, b""))
        for one in self._state.pending:
            if isinstance(one, Write) and one.node == node:
                _apply(content, one, None)
        self._state.files[node] = bytes(content)
        self._state.pending = [one for one in self._state.pending if not (isinstance(one, Write) and one.node == node)]
        self._step()

    def _sync_directory(self, path: str) -> None:
        keep: list[Write | Name] = []
        for one in self._state.pending:
            if isinstance(one, Name) and path in one.directories():
                _rename(self._state.names, one)
            else:
                keep.append(one)
        self._state.pending = keep
        self._step()

    @contextlib.contextmanager
    def recording(self, dies_after: int | None = None) -> Iterator[None]:
        """Record the calls of :mod:`os` that change files below the root; after so many of them the process is dead."""
        real = {name: getattr(os, name) for name in _PATCHED}
        self._lives = dies_after
        with contextlib.ExitStack() as stack:
            for name in _PATCHED:
                call = getattr(self, f"_{name}")(real)
                stack.enter_context(mock.patch.object(os, name, call if name in _HARMLESS else self._mortal(call)))
            yield

    def _mortal(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def one(*args: Any, **kwargs: Any) -> Any:
            if self._lives is not None:
                if self._lives == 0:
                    raise Died
                self._lives -= 1
            return call(*args, **kwargs)

        return one

    def _inside(self, path: Any) -> str | None:
        text = os.path.abspath(os.fspath(path))  # noqa: PTH100 - resolve() would follow links
        root = str(self.root)
        return text[len(root) :] or "/" if text == root or text.startswith(root + "/") else None

    def _open(self, real: dict[str, Callable[..., Any]]) -> Callable[..., int]:
        def call(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            inside = self._inside(path)
            existed = os.path.lexists(path)
            fd: int = real["open"](path, flags, *args, **kwargs)
            if inside is not None:
                if flags & os.O_DIRECTORY:
                    self._fds[fd] = inside
                else:
                    if not existed:
                        self._names[inside] = next(self._next)
                        self._state.files[self._names[inside]] = b""
                        self._add(Name(made=(inside, self._names[inside])))
                    self._fds[fd] = self._names[inside]
            return fd

        return call

    def _dup(self, real: dict[str, Callable[..., Any]]) -> Callable[..., int]:
        def call(fd: int) -> int:
            other: int = real["dup"](fd)
            if fd in self._fds:
                self._fds[other] = self._fds[fd]
            return other

        return call

    def _close(self, real: dict[str, Callable[..., Any]]) -> Callable[..., None]:
        def call(fd: int) -> None:
            self._fds.pop(fd, None)
            real["close"](fd)

        return call

    def _write(self, real: dict[str, Callable[..., Any]]) -> Callable[..., int]:
        def call(fd: int, data: Any) -> int:
            at = os.lseek(fd, 0, os.SEEK_CUR) if fd in self._fds else 0
            count: int = real["write"](fd, data)
            node = self._fds.get(fd)
            if isinstance(node, int):
                self._add(Write(node, at, bytes(data[:count])))
            return count

        return call

    def _pwrite(self, real: dict[str, Callable[..., Any]]) -> Callable[..., int]:
        def call(fd: int, data: Any, offset: int) -> int:
            count: int = real["pwrite"](fd, data, offset)
            node = self._fds.get(fd)
            if isinstance(node, int):
                self._add(Write(node, offset, bytes(data[:count])))
            return count

        return call

    def _ftruncate(self, real: dict[str, Callable[..., Any]]) -> Callable[..., None]:
        def call(fd: int, length: int) -> None:
            real["ftruncate"](fd, length)
            node = self._fds.get(fd)
            if isinstance(node, int):
                self._add(Write(node, length, None))

        return call

    def _fsync(self, _real: dict[str, Callable[..., Any]]) -> Callable[..., None]:
        def call(fd: int) -> None:
            node = self._fds.get(fd)
            if isinstance(node, str):
                self._sync_directory(node)
            elif isinstance(node, int):
                self._sync_file(node)

        return call

    _fdatasync = _fsync

    def _link(self, real: dict[str, Callable[..., Any]]) -> Callable[..., None]:
        def call(source: Any, target: Any, **kwargs: Any) -> None:
            real["link"](source, target, **kwargs)
            one, other = self._inside(source), self._inside(target)
            if one is not None and other is not None:
                self._names[other] = self._names[one]
                self._add(Name(made=(other, self._names[one])))

        return call

    def _rename(self, real: dict[str, Callable[..., Any]]) -> Callable[..., None]:
        def call(source: Any, target: Any, **kwargs: Any) -> None:
            real["rename"](source, target, **kwargs)
            one, other = self._inside(source), self._inside(target)
            if one is not None and other is not None:
                moved = {name: node for name, node in self._names.items() if name == one or name.startswith(one + "/")}
                for name, node in moved.items():
                    del self._names[name]
                    self._names[other + name[len(one) :]] = node
                self._add(Name(made=(other, self._names[other]), gone=one))

        return call

    _replace = _rename

    def _unlink(self, real: dict[str, Callable[..., Any]]) -> Callable[..., None]:
        return self._removing(real["unlink"])

    def _rmdir(self, real: dict[str, Callable[..., Any]]) -> Callable[..., None]:
        return self._removing(real["rmdir"])

    def _removing(self, real: Callable[..., Any]) -> Callable[..., None]:
        def call(path: Any, **kwargs: Any) -> None:
            full = path
            if kwargs.get("dir_fd") is not None:  # shutil.rmtree
                full = Path(f"/proc/self/fd/{kwargs['dir_fd']}").readlink() / path
            real(path, **kwargs)
            inside = self._inside(full)
            if inside is not None and inside in self._names:
                del self._names[inside]
                self._add(Name(gone=inside))

        return call

    def _mkdir(self, real: dict[str, Callable[..., Any]]) -> Callable[..., None]:
        def call(path: Any, *args: Any, **kwargs: Any) -> None:
            real["mkdir"](path, *args, **kwargs)
            inside = self._inside(path)
            if inside is not None:
                self._names[inside] = self.DIRECTORY
                self._add(Name(made=(inside, self.DIRECTORY)))

        return call


#: What changes no file, so that nobody dies over it.
_HARMLESS = frozenset({"close", "dup"})
_PATCHED = (
    "open",
    *_HARMLESS,
    "write",
    "pwrite",
    "ftruncate",
    "fsync",
    "fdatasync",
    "link",
    "rename",
    "replace",
    "unlink",
    "rmdir",
    "mkdir",
)


def _apply(content: bytearray, one: Write, cut: int | None) -> None:
    if one.data is None:
        if len(content) > one.offset:
            del content[one.offset :]
        else:
            content.extend(bytes(one.offset - len(content)))
        return
    data = one.data if cut is None else one.data[:cut]
    if not data:
        return
    if len(content) < one.offset:
        content.extend(bytes(one.offset - len(content)))
    content[one.offset : one.offset + len(data)] = data


def _rename(names: dict[str, int], one: Name) -> None:
    """Apply one operation on names, as far as it makes sense with those that were kept."""
    if one.gone is not None and one.made is not None:
        moved = {name: node for name, node in names.items() if name == one.gone or name.startswith(one.gone + "/")}
        if not moved:
            return
        for name in [other for other in names if other == one.made[0] or other.startswith(one.made[0] + "/")]:
            del names[name]
        for name, node in moved.items():
            del names[name]
            names[one.made[0] + name[len(one.gone) :]] = node
    elif one.gone is not None:
        names.pop(one.gone, None)
    elif one.made is not None:
        names[one.made[0]] = one.made[1]


def kept(count: int) -> Iterator[tuple[bool, ...]]:
    """Yield which of ``count`` unsynced operations reached the disk."""
    if count <= SUBSETS_UP_TO:
        yield from itertools.product((False, True), repeat=count)
        return
    seen = set()
    for number in range(count + 1):
        for one in (
            (*[True] * number, *[False] * (count - number)),
            (*[False] * number, *[True] * (count - number)),
            tuple(index != number for index in range(count)),
            tuple(index == number for index in range(count)),
        ):
            if one not in seen:
                seen.add(one)
                yield one


def states(recorder: Recorder, since: int = 0) -> Iterator[tuple[dict[str, bytes | None], tuple[Any, ...]]]:
    """Yield every state of the disk (path → content, None for a directory) with the promises that hold then.

    ``since``: the first step at which the power may fail; -1 for the last one.
    """
    seen: set[tuple[Any, ...]] = set()
    for state, promises in recorder.states[since:]:
        for choice in kept(len(state.pending)):
            taken = [one for one, here in zip(state.pending, choice, strict=True) if here]
            last = next((index for index in range(len(taken) - 1, -1, -1) if _torn(taken[index])), None)
            for cut in _cuts(taken[last]) if last is not None else (None,):
                image = _image(state, taken, last, cut)
                key = (tuple(sorted(image.items(), key=lambda item: item[0])), len(promises))
                if key not in seen:
                    seen.add(key)
                    yield image, promises


def kills(recorder: Recorder) -> Iterator[dict[str, bytes | None]]:
    """Yield what a process that is killed at each step leaves: all that it did, synced or not."""
    for state, _promises in recorder.states:
        yield _image(state, state.pending, None, None)


def _torn(one: Write | Name) -> bool:
    return isinstance(one, Write) and bool(one.data)


def _cuts(one: Write | Name) -> tuple[int | None, ...]:
    """Return where a write may be torn: at every byte of a short one, at the edges of a long one."""
    if not isinstance(one, Write) or one.data is None:
        return (None,)
    size = len(one.data)
    places = range(1, size) if size <= 64 else (1, 15, 16, 17, size // 2, size - 17, size - 1)
    return (None, *places)


def _image(state: State, taken: list[Write | Name], last: int | None, cut: int | None) -> dict[str, bytes | None]:
    contents = {node: bytearray(data) for node, data in state.files.items()}
    names = dict(state.names)
    for index, one in enumerate(taken):
        if isinstance(one, Write):
            _apply(contents.setdefault(one.node, bytearray()), one, cut if index == last else None)
        else:
            _rename(names, one)
    return {
        name: None if node == Recorder.DIRECTORY else bytes(contents.get(node, b""))
        for name, node in names.items()
        if all(names.get(parent) == Recorder.DIRECTORY for parent in _parents(name))
    }


def _parents(name: str) -> Iterator[str]:
    while (name := os.path.dirname(name)) not in {"", "/"}:  # noqa: PTH120
        yield name


def lay_out(image: dict[str, bytes | None], root: Path) -> None:
    """Make the files of a state below the new folder ``root``."""
    root.mkdir(parents=True)
    for name in sorted(image):
        content = image[name]
        path = root / name.lstrip("/")
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)


@contextlib.contextmanager
def no_syncs() -> Iterator[None]:
    """Let fsync be free while a state is looked at: there is no second power cut."""
    with mock.patch.object(os, "fsync"), mock.patch.object(os, "fdatasync"):
        yield
