"""Disk images: what ``qemu-img`` does for us, and the few header fields that we read ourselves.

qcow2's layout: QEMU, docs/interop/qcow2.txt.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from farshore import durable
from farshore.errors import Corruption, Invalid, NotFound, Permanent, Retry
from farshore.platforms.existing import refuse_larger
from farshore.platforms.nbd.launcher import failure
from farshore.units import KIB

TOOL: Final = "qemu-img"
#: The granularity of dirty bitmaps, so that a replicated range never copies from below. No subclusters: QEMU 7.2 aborts
#: when it streams into an image that has them (docs/adr/0002-kvm-points-layers-and-reversal.md).
CLUSTER_BYTES: Final = 64 * KIB
_HEADER: Final = struct.Struct(">4sIQIIQ")  # magic, version, backing offset, backing length, cluster bits, size
_MAGIC: Final = b"QFI\xfb"
#: qemu-img works on metadata only here, but for a seed; this is for a disk that hangs.
_TIMEOUT_S: Final = 300.0
#: A seed is copied whole.
_COPY_TIMEOUT_S: Final = 86400.0


@dataclass(frozen=True, slots=True)
class Header:
    """What we need of a qcow2 header; ``backing`` is resolved against the image's folder."""

    size_bytes: int
    backing: Path | None


@dataclass(frozen=True, slots=True)
class Bitmap:
    """A persistent dirty bitmap as the file tells it. ``in_use``: not stored since the image was opened."""

    name: str
    in_use: bool
    enabled: bool


@dataclass(frozen=True, slots=True)
class Layer:
    """One image of a backing chain."""

    path: Path
    format: str
    size_bytes: int
    bitmaps: tuple[Bitmap, ...]

    def bitmap(self, name: str) -> Bitmap | None:
        """Return the bitmap called ``name``."""
        return next((bitmap for bitmap in self.bitmaps if bitmap.name == name), None)


def header(path: Path) -> Header:
    """Read the header of the qcow2 image at ``path``, which may be in use.

    Raises:
        NotFound: there is no such file.
        Corruption: it is no qcow2 image.
    """
    try:
        with path.open("rb") as image:
            head = image.read(_HEADER.size)
            if len(head) < _HEADER.size or head[:4] != _MAGIC:
                raise Corruption(f"{path} is no qcow2 image", code="not-qcow2")
            _, _, offset, length, _, size = _HEADER.unpack(head)
            if not offset:
                return Header(size, None)
            image.seek(offset)
            name = os.fsdecode(image.read(length))
    except FileNotFoundError as error:
        raise NotFound(f"image {path} does not exist", code="image-missing") from error
    return Header(size, Path(os.path.normpath(path.parent / name)))


def below(path: Path) -> list[Path]:
    """Return the images that the one at ``path`` stands on, as far as they can be told from headers."""
    found: list[Path] = []
    with contextlib.suppress(NotFound, Corruption):  # gone, or raw: the chain ends
        while (backing := header(found[-1] if found else path).backing) is not None and backing not in found:
            found.append(backing)
    return found


def run(*arguments: str | Path, timeout_s: float = _TIMEOUT_S) -> str:
    """Run ``qemu-img`` and return its output; failures by duty, see :func:`farshore.platforms.nbd.launcher.failure`."""
    argv = [TOOL, *map(str, arguments)]
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        raise Permanent(
            f"{TOOL} is not installed", code="missing-tool", hint="As root: apt-get install qemu-utils"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise Retry(f"{TOOL} {arguments[0]} did not end", code="disk-hangs", argv=argv) from error
    if done.returncode:
        raise failure(f"{TOOL} {arguments[0]} failed", (done.stderr or done.stdout).strip()[-2000:])
    return done.stdout


def create(path: Path, size_bytes: int, backing: Path | None) -> None:
    """Create the image ``path``, durable under its name on return; a half-made one never has it.

    The backing image is named relative to the layer's folder, so that a pool can be moved as a whole.
    """
    making = path.with_name(f"{path.name}.creating")
    making.unlink(missing_ok=True)
    base = ("-F", "qcow2", "-b", relative(backing, path.parent)) if backing else ()
    try:
        run("create", "-q", "-f", "qcow2", "-o", f"cluster_size={CLUSTER_BYTES}", *base, making, str(size_bytes))
        fsync(making)
        making.rename(path)
    except BaseException:
        making.unlink(missing_ok=True)
        raise
    durable.fsync_dir(path.parent)


def take_in(source: Path, path: Path, size_bytes: int, image_format: str | None = None) -> None:
    """Make the image ``path`` of ``size_bytes`` with the content of ``source``, durable under its name on return.

    The name says the format, for the content may be a guest's: ``.qcow2``, or else raw. ``image_format``: it is the
    disk of a machine, whose definition says this, and may stand on others.

    Raises:
        Invalid: ``source`` is larger, or reads from other files, which may be anybody's.
    """
    kind = image_format or ("qcow2" if source.suffix == ".qcow2" else "raw")
    said = json.loads(run("info", "--output=json", "-f", kind, source))
    details = said.get("format-specific", {}).get("data", {})
    stands = "backing-filename" in said or "data-file" in details
    if (stands and image_format is None) or said.get("encrypted"):
        raise Invalid(
            f"{source} stands on another file, or is encrypted",
            code="seed-not-whole",
            field="seed",
            hint=f"Make it whole: {TOOL} convert -O qcow2 OLD NEW.qcow2",
        )
    refuse_larger(source.name, said["virtual-size"], size_bytes)
    making = path.with_name(f"{path.name}.creating")
    making.unlink(missing_ok=True)
    try:
        option = f"cluster_size={CLUSTER_BYTES}"
        run("convert", "-q", "-f", kind, "-O", "qcow2", "-o", option, source, making, timeout_s=_COPY_TIMEOUT_S)
        run("resize", "-q", "-f", "qcow2", making, str(size_bytes))
        fsync(making)
        making.rename(path)
    except BaseException:
        making.unlink(missing_ok=True)
        raise
    durable.fsync_dir(path.parent)


def relative(path: Path, folder: Path) -> str:
    """Return how an image in ``folder`` names ``path``."""
    return os.path.relpath(path, folder)


def set_backing(path: Path, backing: Path | None) -> None:
    """Change the name of the backing image in the header alone, durable on return; contents must be equal already."""
    base = ("-F", "qcow2", "-b", relative(backing, path.parent)) if backing else ("-b", "")
    run("rebase", "-u", "-f", "qcow2", *base, path)
    fsync(path)


def fsync(path: Path) -> None:
    """Make the content of ``path`` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def chain(path: Path, image_format: str = "qcow2") -> list[Layer]:
    """Return the backing chain of ``path``, itself first; images that are in use can be asked too."""
    said = json.loads(run("info", "--output=json", "-U", "--backing-chain", "-f", image_format, path))
    return [_layer(item) for item in said]


def _layer(item: dict[str, Any]) -> Layer:
    data = item.get("format-specific", {}).get("data", {})
    bitmaps = [
        Bitmap(bitmap["name"], "in-use" in bitmap["flags"], "auto" in bitmap["flags"])
        for bitmap in data.get("bitmaps", ())
    ]
    return Layer(Path(os.path.normpath(item["filename"])), item["format"], item["virtual-size"], tuple(bitmaps))


def add_bitmap(path: Path, name: str) -> None:
    """Add an enabled persistent bitmap to an image that nobody has open."""
    run("bitmap", "--add", "--enable", "-f", "qcow2", path, name)
    fsync(path)


def remove_bitmap(path: Path, name: str) -> None:
    """Remove a bitmap, consistent or not, from an image that nobody has open."""
    run("bitmap", "--remove", "-f", "qcow2", path, name)


def node(
    name: str,
    path: Path,
    *,
    image_format: str = "qcow2",
    writable: bool = False,
    device: bool = False,
    locking: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Return ``blockdev-add`` arguments that open an image, with its backing chain unless ``options`` say otherwise.

    ``device``: the path is a block device. Without ``locking`` an image is read although somebody may open it for
    writing meanwhile.
    """
    file: dict[str, Any] = {"driver": "host_device" if device else "file", "filename": str(path)}
    if not locking:
        file["locking"] = "off"
    if writable:
        file["discard"] = "unmap"
        options["discard"] = "unmap"
    return {"driver": image_format, "node-name": name, "read-only": not writable, "file": file, **options}
