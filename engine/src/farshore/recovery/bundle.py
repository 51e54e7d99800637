"""The files of a plan's hooks as one tar file that is named by its digest. Pure; used by control plane and node.

The same files make the same bytes: entries in order of their names, owner, mode and times fixed.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Iterator, Mapping
from typing import Final

from farshore.errors import Corruption, Invalid
from farshore.model.hooks import Hooks
from farshore.model.plan import Plan
from farshore.model.probe import AnsibleProbe

MOST_FILES: Final = 512
LARGEST_FILE_BYTES: Final = 512 * 1024
#: With base64 around it, and a plan beside it, still below what the interface takes as one body.
LARGEST_BUNDLE_BYTES: Final = 2 * 1024 * 1024

_PART: Final = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}"
_PATH: Final = re.compile(rf"{_PART}(?:/{_PART}){{0,15}}")


def pack(files: Mapping[str, bytes]) -> bytes:
    """Return the bundle of ``files`` (content by path).

    Raises:
        Invalid: a path leads elsewhere or has characters that mean something, or it is too much.
    """
    for path in files:
        if not is_path(path):
            raise _refused(f"{path!r} is no name for a file of hooks", "Use letters, digits, dots, dashes, underlines.")
    folders = {path.rpartition("/")[0] for path in files}
    for path in sorted(files):
        if path in folders or any(folder.startswith(path + "/") for folder in folders):
            raise _refused(f"{path!r} is a file and a folder", "Rename one of them.")
    if len(files) > MOST_FILES:
        raise _refused(f"the hooks have {len(files)} files; {MOST_FILES} at most", _ROOM)
    for path, content in files.items():
        if len(content) > LARGEST_FILE_BYTES:
            raise _refused(f"{path} has {len(content)} bytes; {LARGEST_FILE_BYTES} at most", _ROOM)
    if sum(map(len, files.values())) > LARGEST_BUNDLE_BYTES:
        raise _refused(f"the hooks' files have more than {LARGEST_BUNDLE_BYTES} bytes together", _ROOM)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(files):
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(files[path]), 0o644
            archive.addfile(entry, io.BytesIO(files[path]))
    return out.getvalue()


_ROOM: Final = "Only what tasks need belongs beside them; large things are fetched from where they are kept."


def unpack(content: bytes, digest: str) -> dict[str, bytes]:
    """Return the files of the bundle called ``digest``.

    Raises:
        Corruption: it is another one, or no bundle.
    """
    if digest_of(content) != digest:
        raise Corruption("the hooks' files are not those of the plan", code="hook-bundle-changed", digest=digest)
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for entry in archive:
                source = archive.extractfile(entry) if entry.isreg() else None
                if source is None or not is_path(entry.name):
                    raise Corruption(f"a bundle with {entry.name!r} in it", code="hook-bundle-invalid", digest=digest)
                files[entry.name] = source.read()
    except tarfile.TarError as error:
        raise Corruption("this is no bundle of hooks", code="hook-bundle-invalid", digest=digest) from error
    return files


def is_path(text: str) -> bool:
    """Say whether ``text`` may name a file of a bundle: it stays below its folder, and is plain to every program."""
    return _PATH.fullmatch(text) is not None and len(text) <= 400 and all(len(part) <= 100 for part in text.split("/"))


def digest_of(content: bytes) -> str:
    """Return the name of a bundle."""
    return hashlib.sha256(content).hexdigest()


def referred(plan: Plan) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield where the plan names a file of tasks, and which."""
    yield from _of_hooks(("hooks",), plan.hooks)
    for index, group in enumerate(plan.boot_groups):
        yield from _of_hooks(("boot_groups", index, "hooks"), group.hooks)
    for index, machine in enumerate(plan.machines):
        yield from _of_hooks(("machines", index, "hooks"), machine.hooks)
        for number, probe in enumerate(machine.probes):
            if isinstance(probe, AnsibleProbe):
                yield ("machines", index, "probes", number, "file"), probe.file


def _of_hooks(path: tuple[str | int, ...], hooks: Hooks) -> Iterator[tuple[tuple[str | int, ...], str]]:
    for moment, hook in hooks.items():
        if hook.file is not None:
            yield (*path, moment), hook.file


def _refused(message: str, hint: str) -> Invalid:
    return Invalid(message, code="hook-files-invalid", field="files", hint=hint)
