"""Reading files of a guest that is off, whatever its file system is. Links are followed inside the guest alone."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final, Literal, Protocol

from dissect.btrfs import Btrfs
from dissect.extfs import ExtFS
from dissect.fat import FATFS
from dissect.ntfs import NTFS
from dissect.xfs import XFS

from farshore.errors import Permanent
from farshore.recovery.guest.broken import BROKEN
from farshore.recovery.guest.volumes import Volume

Kind = Literal["file", "dir", "link", "other"]
#: Configuration and lists; an initramfs or a kernel is asked for with a limit of its own.
MOST_BYTES: Final = 16 << 20
_MOST_LINKS: Final = 40


class FileSystem(Protocol):
    """One file system: nodes are its own, and mean nothing to others."""

    @property
    def root(self) -> Any:
        """The top folder."""

    def child(self, node: Any, name: str) -> Any:
        """Return what is called ``name`` in a folder, None if nothing is."""

    def names(self, node: Any) -> list[str]:
        """Return the names in a folder."""

    def kind(self, node: Any) -> Kind:
        """Return what a node is."""

    def link(self, node: Any) -> str:
        """Return where a node points that ``kind`` calls a link; ``Permanent`` for any other."""

    def open(self, node: Any) -> BinaryIO:
        """Open a file."""

    def permissions(self, node: Any) -> tuple[int, int, int]:
        """Return a node's mode, owner and group."""


#: What the three file systems call a node's mode, owner and group.
_INODE: Final = (("i_mode", "di_mode", "mode"), ("i_uid", "di_uid", "uid"), ("i_gid", "di_gid", "gid"))
_BY_TYPE: Final[dict[int, Kind]] = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link"}


class _Unix:
    """ext2 to ext4, XFS and btrfs: their readers are alike."""

    def __init__(self, handle: BinaryIO, kind: str) -> None:
        if kind == "btrfs":
            self._tree: Any = Btrfs(handle).default_subvolume
        else:
            self._tree = ExtFS(handle) if kind == "ext" else XFS(handle)
        self._type = "type" if kind == "btrfs" else "filetype"
        self.uuid = str(Btrfs(handle).uuid if kind == "btrfs" else self._tree.uuid)

    @property
    def root(self) -> Any:
        return self._tree.root

    def child(self, node: Any, name: str) -> Any:
        return node.listdir().get(name) if name else node

    def names(self, node: Any) -> list[str]:
        return [name for name in node.listdir() if name not in {".", ".."}]

    def kind(self, node: Any) -> Kind:
        return _BY_TYPE.get(stat.S_IFMT(getattr(node, self._type)), "other")

    def link(self, node: Any) -> str:
        return str(node.link)

    def open(self, node: Any) -> BinaryIO:
        handle: BinaryIO = node.open()
        return handle

    def permissions(self, node: Any) -> tuple[int, int, int]:
        inode = node.inode
        found = [next((int(value) for name in names if (value := getattr(inode, name, None))), 0) for names in _INODE]
        mode, owner, group = found
        return stat.S_IMODE(mode), owner, group


def _no_link(node: Any) -> Permanent:
    """Return the error of a question that only a mistake of ours can ask: these file systems show us no links."""
    return Permanent(f"{getattr(node, 'name', 'a file')!r} is no link", code="no-link")


class _Fat:
    def __init__(self, handle: BinaryIO) -> None:
        self._tree = FATFS(handle)

    @property
    def root(self) -> Any:
        return self._tree.root

    def child(self, node: Any, name: str) -> Any:
        return next((entry for entry in node.iterdir() if entry.name.lower() == name.lower()), None)

    def names(self, node: Any) -> list[str]:
        """Return names; those of eight and three letters in lower case, as Linux shows them."""
        entries = [entry for entry in node.iterdir() if entry.name not in {".", ".."} and not entry.is_volume_id()]
        return [entry.name.lower() if entry.name == entry.short_name else entry.name for entry in entries]

    def kind(self, node: Any) -> Kind:
        return "dir" if node.is_directory() else "file"

    def link(self, node: Any) -> str:
        raise _no_link(node)

    def open(self, node: Any) -> BinaryIO:
        handle: BinaryIO = node.open()
        return handle

    def permissions(self, node: Any) -> tuple[int, int, int]:  # noqa: ARG002
        return 0o644, 0, 0


class _Ntfs:
    def __init__(self, handle: BinaryIO) -> None:
        self.ntfs = NTFS(handle)

    @property
    def root(self) -> Any:
        return self.ntfs.mft.root

    def child(self, node: Any, name: str) -> Any:
        found = {key.lower(): value for key, value in node.listdir(dereference=True).items()}
        return found.get(name.lower())

    def names(self, node: Any) -> list[str]:
        return [name for name in node.listdir(ignore_dos=True) if name != "."]

    def kind(self, node: Any) -> Kind:
        return "dir" if node.is_dir() else "file"

    def link(self, node: Any) -> str:
        raise _no_link(node)

    def open(self, node: Any) -> BinaryIO:
        handle: BinaryIO = node.open()
        return handle

    def permissions(self, node: Any) -> tuple[int, int, int]:  # noqa: ARG002
        return 0o644, 0, 0


def open_volume(volume: Volume) -> FileSystem | None:
    """Open a volume's file system; None if it has none that we read, or one that is broken."""
    try:
        volume.handle.seek(0)
        if volume.content in {"ext", "xfs", "btrfs"}:
            return _Unix(volume.handle, volume.content)
        if volume.content == "fat":
            return _Fat(volume.handle)
        if volume.content == "ntfs":
            return _Ntfs(volume.handle)
    except BROKEN:
        return None
    return None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a path leads: the volume, the path in it with all links followed, and the node."""

    volume: Volume
    system: FileSystem
    path: str
    node: Any


@dataclass(slots=True)
class Tree:
    """A guest's files from its root on, with other volumes mounted in it."""

    volume: Volume
    system: FileSystem
    mounts: dict[str, tuple[Volume, FileSystem]] = field(default_factory=dict)

    def mount(self, path: str, volume: Volume, system: FileSystem) -> None:
        """Show a volume at ``path``."""
        self.mounts[_normal(path)] = (volume, system)

    def find(self, path: str, *, follow: bool = True) -> Place | None:
        """Return where ``path`` leads, None if nowhere."""
        try:
            return self._find(path, follow=follow)
        except BROKEN:
            return None

    def _find(self, path: str, *, follow: bool) -> Place | None:
        parts = [part for part in path.split("/") if part]
        done: list[str] = []
        links = 0
        volume, system = self.mounts.get("/", (self.volume, self.system))
        node, base = system.root, 0
        stack: list[tuple[Volume, FileSystem, Any, int]] = []
        while parts:
            name = parts.pop(0)
            if name == ".":
                continue
            if name == "..":
                if done:
                    done.pop()
                    volume, system, node, base = stack.pop()
                continue
            here = (volume, system, node, base)
            at = "/" + "/".join([*done, name])
            if at in self.mounts:
                volume, system = self.mounts[at]
                node, base = system.root, len(done) + 1
            else:
                child = system.child(node, name)
                if child is None:
                    return None
                if system.kind(child) == "link" and (follow or parts):
                    links += 1
                    if links > _MOST_LINKS:
                        return None
                    goal = system.link(child)
                    parts = [*(part for part in goal.split("/") if part), *parts]
                    if goal.startswith("/"):
                        done, stack = [], []
                        volume, system = self.mounts.get("/", (self.volume, self.system))
                        node, base = system.root, 0
                    continue
                node = child
            stack.append(here)
            done.append(name)
        return Place(volume, system, "/" + "/".join(done[base:]), node)

    def read(self, path: str, limit: int = MOST_BYTES) -> bytes | None:
        """Return a file's content, None if there is none or it is not readable or longer than ``limit``."""
        place = self.find(path)
        try:
            if place is None or place.system.kind(place.node) != "file":
                return None
            data = place.system.open(place.node).read(limit + 1)
        except BROKEN:
            return None
        return data if len(data) <= limit else None

    def text(self, path: str) -> str | None:
        """Return a file as text, None if there is none; bytes that are no UTF-8 survive being written back."""
        data = self.read(path)
        return None if data is None else data.decode(errors="surrogateescape")

    def names(self, path: str) -> list[str]:
        """Return the names in a folder, sorted; none if there is no such folder."""
        place = self.find(path)
        try:
            if place is None or place.system.kind(place.node) != "dir":
                return []
            return sorted(place.system.names(place.node))
        except BROKEN:
            return []

    def exists(self, path: str) -> bool:
        """Say whether ``path`` leads anywhere."""
        return self.find(path) is not None

    def is_dir(self, path: str) -> bool:
        """Say whether ``path`` leads to a folder."""
        place = self.find(path)
        return place is not None and place.system.kind(place.node) == "dir"

    def any_of(self, paths: Iterable[str]) -> str | None:
        """Return the first path that leads somewhere."""
        return next((path for path in paths if self.exists(path)), None)


def _normal(path: str) -> str:
    return "/" + "/".join(part for part in path.split("/") if part)
