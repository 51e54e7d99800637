"""Registry hives of a Windows that is off: read in Python, written by libhivex (https://libguestfs.org/hivex.3.html)."""

from __future__ import annotations

import ctypes
import io
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from dissect.regf import RegistryHive

from farshore.errors import Permanent
from farshore.recovery.guest.broken import BROKEN
from farshore.recovery.guest.tools import HIVEX, HIVEX_PACKAGE

_OPEN_WRITE: Final = 4
_SZ: Final = 1
_EXPAND_SZ: Final = 2
_DWORD: Final = 4


class Hive:
    """A hive, opened for reading."""

    def __init__(self, data: bytes) -> None:
        self._hive = RegistryHive(io.BytesIO(data))

    @classmethod
    def load(cls, data: bytes | None) -> Self | None:
        """Open a hive; None if there is none or it does not load."""
        try:
            hive = cls(data or b"")
            list(hive._hive.root().subkeys())
        except BROKEN:
            return None
        return hive

    def keys(self, path: str) -> list[str]:
        """Return the names below a key; none if there is no such key."""
        try:
            return [key.name for key in self._key(path).subkeys()]
        except BROKEN:
            return []

    def has(self, path: str) -> bool:
        """Say whether there is a key."""
        try:
            self._key(path)
        except BROKEN:
            return False
        return True

    def value(self, path: str, name: str) -> Any:
        """Return a value, None if there is none."""
        try:
            return self._key(path).value(name).value
        except BROKEN:
            return None

    def number(self, path: str, name: str) -> int | None:
        """Return a value that is a number."""
        found = self.value(path, name)
        return found if isinstance(found, int) else None

    def texts(self, path: str, name: str) -> list[str]:
        """Return a value that is a list of texts."""
        found = self.value(path, name)
        return [str(item) for item in found if item] if isinstance(found, list) else []

    def _key(self, path: str) -> Any:
        node = self._hive.root()
        for part in path.split("\\"):
            node = node.subkey(part)
        return node


@dataclass(frozen=True, slots=True)
class Setting:
    """A value to be written; keys on the way to it are made."""

    path: str
    name: str
    value: int | str
    expand: bool = False

    def encoded(self) -> tuple[int, bytes]:
        """Return the value's type and bytes."""
        if isinstance(self.value, int):
            return _DWORD, struct.pack("<I", self.value)
        return (_EXPAND_SZ if self.expand else _SZ), self.value.encode("utf-16-le") + b"\0\0"


class _Value(ctypes.Structure):
    _fields_ = (
        ("key", ctypes.c_char_p),
        ("t", ctypes.c_int),
        ("len", ctypes.c_size_t),
        ("value", ctypes.c_void_p),
    )


def _library() -> Any:
    try:
        library = ctypes.CDLL(HIVEX, use_errno=True)
    except OSError as error:
        raise Permanent(
            f"{HIVEX} is not installed on this node",
            code="missing-tool",
            hint=f"As root: apt-get install {HIVEX_PACKAGE}",
        ) from error
    handle, node = ctypes.c_void_p, ctypes.c_size_t
    library.hivex_open.restype, library.hivex_open.argtypes = handle, [ctypes.c_char_p, ctypes.c_int]
    library.hivex_root.restype, library.hivex_root.argtypes = node, [handle]
    for name in ("hivex_node_get_child", "hivex_node_add_child"):
        function = getattr(library, name)
        function.restype, function.argtypes = node, [handle, node, ctypes.c_char_p]
    library.hivex_node_set_value.argtypes = [handle, node, ctypes.POINTER(_Value), ctypes.c_int]
    library.hivex_node_delete_child.argtypes = [handle, node]
    library.hivex_commit.argtypes = [handle, ctypes.c_char_p, ctypes.c_int]
    library.hivex_close.argtypes = [handle]
    return library


def settled(data: bytes) -> bool:
    """Say whether a hive has all that was written to it; else Windows replays its logs over it when it starts."""
    first, second = struct.unpack_from("<II", data, 4) if len(data) > 12 else (0, 1)
    return bool(first == second)


def changed(data: bytes, settings: Sequence[Setting], remove: Sequence[str] = ()) -> bytes:
    """Return a hive with ``settings``, and without the keys ``remove``.

    Raises:
        Permanent: libhivex is missing, or does not take the hive.
    """
    library = _library()
    with tempfile.TemporaryDirectory(prefix="farshore-guest-") as folder:
        path = Path(folder) / "hive"
        path.write_bytes(data)
        handle = library.hivex_open(str(path).encode(), _OPEN_WRITE)
        if not handle:
            raise _refused("open")
        try:
            for setting in settings:
                node = _walk(library, handle, setting.path, make=True)
                kind, value = setting.encoded()
                buffer = ctypes.create_string_buffer(value, len(value))
                entry = _Value(setting.name.encode(), kind, len(value), ctypes.cast(buffer, ctypes.c_void_p))
                if library.hivex_node_set_value(handle, node, ctypes.byref(entry), 0):
                    raise _refused(f"set {setting.path}\\{setting.name}")
            for key in remove:
                node = _walk(library, handle, key, make=False)
                if node and library.hivex_node_delete_child(handle, node):
                    raise _refused(f"remove {key}")
            if library.hivex_commit(handle, None, 0):
                raise _refused("commit")
        finally:
            library.hivex_close(handle)
        return path.read_bytes()


def _walk(library: Any, handle: Any, path: str, *, make: bool) -> int:
    node = int(library.hivex_root(handle))
    for part in path.split("\\"):
        child = int(library.hivex_node_get_child(handle, node, part.encode()))
        if not child and make:
            child = int(library.hivex_node_add_child(handle, node, part.encode()))
            if not child:
                raise _refused(f"add {path}")
        if not child:
            return 0
        node = child
    return node


def _refused(what: str) -> Permanent:
    return Permanent(
        f"libhivex did not {what} (errno {ctypes.get_errno()})",
        code="hive-not-writable",
        hint="Start the machine once at the source, so that Windows repairs the hive; replicate again.",
    )
