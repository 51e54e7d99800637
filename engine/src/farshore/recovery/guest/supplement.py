"""Drivers that an initial file system lacks, from the guest's own modules, in an archive behind it.

With them go the lists by which the guest's own tools (udev, modprobe) find modules: those of all modules of the kernel
in the places of those of the few. What was there stays as it was, to the last byte, and is so again once no driver is
missing: the guest keeps a note of how long it was. An initial file system that the guest has made anew is its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Final

from farshore.recovery.guest import drivers, initramfs
from farshore.recovery.guest.guest import Guest
from farshore.recovery.guest.trees import Tree

RECORD: Final = "/var/lib/farshore/initramfs.json"
#: What the kernel's modules are found by (depmod(8), modules.dep(5)); the lists of a whole kernel have some 4 MiB.
_LISTS: Final = ("dep", "dep.bin", "alias", "alias.bin", "softdep", "symbols", "symbols.bin")
_MOST_BYTES: Final = 512 << 20
#: Trees of more are no drivers of a disk.
_MOST_MODULES: Final = 64


def read(tree: Tree, path: str) -> bytes | None:
    """Return an initial file system as it is."""
    return tree.read(path, _MOST_BYTES)


def original(tree: Tree, path: str, data: bytes) -> bytes:
    """Return what an initial file system was before anything was put behind it."""
    size, written = _load(tree).get(path, (0, ""))
    return data[:size] if written and hashlib.sha256(data).hexdigest() == written else data


def made(
    tree: Tree, base: str, data: bytes, contents: initramfs.Contents, missing: Collection[str]
) -> tuple[bytes, list[str]] | None:
    """Return ``data`` with the ``missing`` drivers behind it, and the paths of all that were put there.

    None where that cannot be: the guest has no such module, or its initial file system none at all, or a form that
    takes nothing behind it.

    Args:
        tree: the guest's files.
        base: the folder of the kernel's modules.
        data: the initial file system.
        contents: what is in it.
        missing: names of modules.
    """
    version = base.rsplit("/", 1)[-1]
    place = next(
        (f"{top}lib/modules/{version}" for top in ("usr/", "") if f"{top}lib/modules/{version}" in contents.names), ""
    )
    table = tree.text(f"{base}/modules.dep")
    if not place or table is None or contents.form not in initramfs.WRITTEN:
        return None
    there = drivers.modules(contents.names)
    paths = closure(table, _soft(tree.text(f"{base}/modules.softdep") or ""), missing)
    if paths is None or len(paths) > _MOST_MODULES:
        return None
    files: dict[str, bytes] = {}
    for path in paths:
        if drivers.module(path) in there:
            continue
        content = tree.read(f"{base}/{path}")
        if content is None:
            return None
        files[f"{place}/{path}"] = content
    packed = sorted(files)
    for name in _LISTS:
        content = tree.read(f"{base}/modules.{name}")
        if content is not None:
            files[f"{place}/modules.{name}"] = content
    padded = data + bytes(-len(data) % 4) if contents.form == "plain" else data
    return padded + initramfs.archive(files, contents.names, contents.form), packed


def put(guest: Guest, tree: Tree, path: str, before: bytes, after: bytes, detail: str) -> None:
    """Have an initial file system written, and noted how long it was ``before``."""
    guest.change(tree, path, after, "initial file system", detail)
    noted = _load(tree)
    noted.pop(path, None)
    if after != before:
        noted[path] = (len(before), hashlib.sha256(after).hexdigest())
    content = json.dumps({name: list(one) for name, one in sorted(noted.items())}, indent=1).encode() + b"\n"
    guest.change(tree, RECORD, content if noted else None, "record", "what the initial file system was")


def closure(table: str, soft: Mapping[str, Collection[str]], wanted: Collection[str]) -> list[str] | None:
    """Return the paths of modules and of all that they need, by ``modules.dep`` (its lines name all, not the next).

    None if one that is ``wanted`` is not in the table; what is only good to have (``soft``) may be missing.
    """
    needs: dict[str, list[str]] = {}
    for line in table.splitlines():
        path, _, rest = line.partition(":")
        # Old tables have whole paths.
        several = [one[one.find("/kernel/") + 1 :] if one.startswith("/") else one for one in [path, *rest.split()]]
        needs[drivers.module(path)] = several
    if not set(wanted) <= set(needs):
        return None
    found: dict[str, None] = {}
    left, seen = list(wanted), set(wanted)
    while left:
        name = left.pop(0)
        found.update(dict.fromkeys(needs.get(name, ())))
        for path in needs.get(name, ()):
            for more in soft.get(drivers.module(path), ()):
                if more not in seen:
                    seen.add(more)
                    left.append(more)
    return list(found)


def _soft(text: str) -> dict[str, list[str]]:
    """Return what modules ask for without needing it (modprobe.d(5), ``softdep NAME pre: ... post: ...``)."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) > 2 and words[0] == "softdep":
            names = [word.replace("-", "_") for word in words[2:] if not word.endswith(":")]
            found.setdefault(words[1].replace("-", "_"), []).extend(names)
    return found


def _load(tree: Tree) -> dict[str, tuple[int, str]]:
    try:
        entries = json.loads(tree.read(RECORD) or b"{}").items()
        return {str(path): (int(size), str(written)) for path, (size, written) in entries}
    except (ValueError, AttributeError, TypeError):
        return {}
