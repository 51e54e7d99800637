"""A manifest store in a directory, for platforms that keep their points in files."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Final

from farshore import durable
from farshore.errors import FarshoreError, Invalid, NoSpace, NotFound, Permanent

#: Keys are relative paths of plain names. Names that begin with a dot are ours: temporary files.
_PART: Final = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._:@=+-]{0,254}$")
_TOMBSTONE: Final = ".tombstone"


class DirectoryManifests:
    """Objects as files below ``root``, with create-if-absent by ``link(2)``.

    A tombstone is a file beside the object. It is created before the object is removed, and every reader looks for it
    first, so the object is gone for all from the moment the tombstone has its name.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._made: set[Path] = set()  # folders whose names are durable; nobody removes one

    def list(self, prefix: str = "") -> list[str]:
        """Return the keys that begin with ``prefix``, sorted; tombstoned ones are left out."""
        # Only the directory that the prefix names can hold what begins with it.
        top = self._root / os.path.dirname(prefix)  # noqa: PTH120 - a key is text, not a path
        if ".." in prefix.split("/") or not top.is_dir():
            return []
        keys = []
        for directory, _, names in os.walk(top):
            there = set(names)
            base = Path(directory).relative_to(self._root).as_posix()
            for name in names:
                if name.startswith(".") or name.endswith(_TOMBSTONE) or name + _TOMBSTONE in there:
                    continue
                key = name if base == "." else f"{base}/{name}"
                if key.startswith(prefix):
                    keys.append(key)
        return sorted(keys)

    def get(self, key: str) -> bytes:
        """Return an object; ``NotFound`` if absent or tombstoned."""
        path = self._path(key)
        try:
            if not self._tombstone(path).exists():
                return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            pass
        raise NotFound(f"object {key} does not exist", code="object-not-found", key=key)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create an object, durable on return. False if it exists (also as a tombstone)."""
        path = self._path(key)
        if self._tombstone(path).exists():
            return False
        try:
            self._make(path.parent)
            return durable.create(path, data)
        except OSError as error:
            raise self._failed(error) from error

    def tombstone(self, key: str) -> None:
        """Take an object away for good: it is not listed, not readable, and its key cannot be created again."""
        path = self._path(key)
        try:
            self._make(path.parent)
            durable.create(self._tombstone(path), b"")
            durable.remove(path)
        except OSError as error:
            raise self._failed(error) from error

    def _make(self, folder: Path) -> None:
        if folder not in self._made or not folder.is_dir():
            durable.make_dir(folder)
            self._made.add(folder)

    def _failed(self, error: OSError) -> FarshoreError:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return NoSpace(
                f"the manifest store {self._root} has no space left",
                code="pool-full",
                hint="Free space in the pool, lower the retention, or give the site a larger pool.",
                path=str(self._root),
            )
        return Permanent(
            f"the manifest store {self._root} cannot be written: {error.strerror or error}",
            code="file-io",
            path=str(self._root),
            errno=error.errno,
        )

    @staticmethod
    def _tombstone(path: Path) -> Path:
        return path.with_name(path.name + _TOMBSTONE)

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if not all(_PART.match(part) for part in parts) or key.endswith(_TOMBSTONE):
            raise Invalid(f"{key!r} is no key of a manifest store", code="object-key", field="key")
        return self._root.joinpath(*parts)
