"""Initial file systems: archives one after the other, each as it is or compressed.

What is in one is read; what it lacks is put behind it as one more archive: the kernel unpacks all of them, later files
in the places of earlier ones. Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import lz4.block
import zstandard

from farshore.recovery.guest.broken import BROKEN

#: An initramfs of 100 MiB unpacks to some 400 MiB; what is larger is no initramfs.
MOST_BYTES: Final = 1 << 30
Form = Literal["plain", "gzip", "zstd", "xz", "lzma", "bzip2", "lz4"]
#: Forms that an archive is written in; LZMA alone does not tell where it ends.
WRITTEN: Final[tuple[Form, ...]] = ("plain", "gzip", "zstd", "xz", "bzip2", "lz4")
_NEWC: Final = (b"070701", b"070702")
_HEADER_BYTES: Final = 110
_TRAILER: Final = "TRAILER!!!"
_MAGICS: Final[tuple[tuple[bytes, Form], ...]] = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x5d\0\0", "lzma"),
    (b"BZh", "bzip2"),
    (b"\x02\x21\x4c\x18", "lz4"),
)
_LZ4_LEGACY: Final = b"\x02\x21\x4c\x18"
#: Blocks of the legacy format hold 8 MiB each (lz4, doc/lz4_Frame_format.md).
_LZ4_BLOCK: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class Contents:
    """What an initial file system holds: paths, and the form that its last archive is in."""

    names: tuple[str, ...]
    form: Form


def read(data: bytes) -> Contents | None:
    """Return what is in an initramfs; None if it is in a form that we do not read."""
    found: list[str] = []
    form: Form = "plain"
    try:
        while data:
            at = _plain(data, found)
            if at > 0:
                form = "plain"
            if at >= len(data):
                break
            unpacked = _unpack(data[at:])
            if unpacked is None:
                # What is no archive ends it, for the kernel as for us.
                return Contents(tuple(found), form) if found else None
            form, inner, data = unpacked
            if _plain(inner, found) < len(inner):
                return None
    except (*BROKEN, lzma.LZMAError, zstandard.ZstdError, lz4.block.LZ4BlockError):
        return None
    return Contents(tuple(found), form)


def archive(files: Mapping[str, bytes], there: Collection[str], form: Form) -> bytes:
    """Return an archive of ``files`` to be put behind an initramfs that has ``there`` and whose last one is ``form``.

    Folders that are there are not made again: one could be a link.
    """
    split = [name.split("/") for name in files]
    folders = {"/".join(parts[:depth]) for parts in split for depth in range(1, len(parts))}
    made = bytearray()
    for number, (name, data, mode) in enumerate(
        [
            *((name, b"", 0o40755) for name in sorted(folders - set(there))),
            *((name, data, 0o100644) for name, data in sorted(files.items())),
            (_TRAILER, b"", 0),
        ],
        1,
    ):
        label = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(label), 0)
        made += b"070701" + b"".join(b"%08X" % value for value in fields) + label
        made += bytes(-len(made) % 4) + data
        made += bytes(-len(made) % 4)
    return packed(bytes(made), form)


def _plain(data: bytes, found: list[str]) -> int:
    """Read archives that are not compressed, and zeros between them; return where something else begins."""
    at = 0
    while at < len(data):
        if data[at] == 0:
            at += 1
        elif data[at : at + 6] in _NEWC:
            at = _archive(data, at, found)
        else:
            break
    return at


def _archive(data: bytes, at: int, found: list[str]) -> int:
    """Read one archive (cpio(5), "newc") and return where it ends."""
    while data[at : at + 6] in _NEWC:
        size = int(data[at + 54 : at + 62], 16)
        length = int(data[at + 94 : at + 102], 16)
        name = data[at + _HEADER_BYTES : at + _HEADER_BYTES + length - 1].decode(errors="replace")
        at = _padded(at + _HEADER_BYTES + length)
        at = _padded(at + size)
        if name == _TRAILER:
            break
        found.append(name.removeprefix("./"))
    return at


def _padded(at: int) -> int:
    return -(-at // 4) * 4


def _unpack(data: bytes) -> tuple[Form, bytes, bytes] | None:
    """Return the form of what ``data`` begins with, what it unpacks to, and what is behind it."""
    form = next((name for magic, name in _MAGICS if data.startswith(magic)), None)
    if form == "gzip":
        gzipped = zlib.decompressobj(wbits=31)
        return form, gzipped.decompress(data, MOST_BYTES), gzipped.unused_data
    if form == "zstd":
        return form, *_zstd(data)
    if form in {"xz", "lzma"}:
        xz = lzma.LZMADecompressor()
        return form, xz.decompress(data, MOST_BYTES), xz.unused_data
    if form == "bzip2":
        bz = bz2.BZ2Decompressor()
        return form, bz.decompress(data, MOST_BYTES), bz.unused_data
    if form == "lz4":
        return form, _lz4(data), b""
    return None


def _zstd(data: bytes) -> tuple[bytes, bytes]:
    source = io.BytesIO(data)
    frames = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    unpacker = frames.decompressobj()
    parts, total = [], 0
    while total < MOST_BYTES and not unpacker.eof and (some := source.read(1 << 20)):
        parts.append(unpacker.decompress(some))
        total += len(parts[-1])
    return b"".join(parts), unpacker.unused_data + source.read()


def _lz4(data: bytes) -> bytes:
    parts, at, total = [], 4, 0
    while at + 4 <= len(data) and total < MOST_BYTES:
        [size] = struct.unpack_from("<I", data, at)
        if size == int.from_bytes(_LZ4_LEGACY, "little"):  # archives packed one after the other
            at += 4
            continue
        if not size:
            break
        parts.append(lz4.block.decompress(data[at + 4 : at + 4 + size], uncompressed_size=_LZ4_BLOCK))
        total += len(parts[-1])
        at += 4 + size
    return b"".join(parts)


def packed(data: bytes, form: Form) -> bytes:
    """Return an archive in a form that kernels read (CONFIG_RD_*): the same bytes for the same archive."""
    if form == "gzip":
        return gzip.compress(data, mtime=0)
    if form == "zstd":
        return zstandard.ZstdCompressor().compress(data)
    if form == "xz":
        # The kernel knows no other check (Documentation/staging/xz.rst).
        return lzma.compress(data, check=lzma.CHECK_CRC32, preset=1)
    if form == "bzip2":
        return bz2.compress(data)
    if form == "lz4":
        pieces = [data[at : at + _LZ4_BLOCK] for at in range(0, len(data), _LZ4_BLOCK)]
        blocks = [lz4.block.compress(piece, store_size=False) for piece in pieces]
        return _LZ4_LEGACY + b"".join(struct.pack("<I", len(block)) + block for block in blocks)
    return data
