"""The names in an initial file system: archives one after the other, the last one compressed.

Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import bz2
import io
import lzma
import struct
import zlib
from typing import Final

import lz4.block
import zstandard

from farshore.recovery.guest.broken import BROKEN

#: An initramfs of 100 MiB unpacks to some 400 MiB; what is larger is no initramfs.
MOST_BYTES: Final = 1 << 30
_NEWC: Final = (b"070701", b"070702")
_HEADER_BYTES: Final = 110
_LZ4_LEGACY: Final = b"\x02\x21\x4c\x18"
#: Blocks of the legacy format hold 8 MiB each (lz4, doc/lz4_Frame_format.md).
_LZ4_BLOCK: Final = 8 << 20


def names(data: bytes) -> list[str] | None:
    """Return the paths in an initramfs; None if it is in a form that we do not read."""
    found: list[str] = []
    at = 0
    try:
        while at < len(data):
            if data[at : at + 4] == b"\0\0\0\0":
                at += 4
            elif data[at : at + 6] in _NEWC:
                at = _archive(data, at, found)
            elif data[at] == 0:
                at += 1
            else:
                unpacked = _unpack(data[at:])
                if unpacked is None:
                    return found or None
                inner = names(unpacked)
                return found + inner if inner is not None else None
    except (*BROKEN, lzma.LZMAError, zstandard.ZstdError, lz4.block.LZ4BlockError):
        return None
    return found


def _archive(data: bytes, at: int, found: list[str]) -> int:
    """Read one archive (cpio(5), "newc") and return where it ends."""
    while data[at : at + 6] in _NEWC:
        size = int(data[at + 54 : at + 62], 16)
        length = int(data[at + 94 : at + 102], 16)
        name = data[at + _HEADER_BYTES : at + _HEADER_BYTES + length - 1].decode(errors="replace")
        at = _padded(at + _HEADER_BYTES + length)
        at = _padded(at + size)
        if name == "TRAILER!!!":
            break
        found.append(name.removeprefix("./"))
    return at


def _padded(at: int) -> int:
    return -(-at // 4) * 4


def _unpack(data: bytes) -> bytes | None:
    if data[:2] == b"\x1f\x8b":
        return zlib.decompressobj(wbits=31).decompress(data, MOST_BYTES)
    if data[:4] == b"\x28\xb5\x2f\xfd":
        reader = zstandard.ZstdDecompressor(max_window_size=1 << 31).stream_reader(io.BytesIO(data))
        return reader.read(MOST_BYTES)
    if data[:6] == b"\xfd7zXZ\0" or data[:3] == b"\x5d\0\0":
        return lzma.LZMADecompressor().decompress(data, MOST_BYTES)
    if data[:3] == b"BZh":
        return bz2.BZ2Decompressor().decompress(data, MOST_BYTES)
    if data[:4] == _LZ4_LEGACY:
        return _lz4(data)
    return None


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
