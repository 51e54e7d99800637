"""The frames that two nodes exchange: a codec without I/O. Byte by byte in docs/internals/protocol.md.

A frame is a header of 28 bytes, a *meta* part and a *payload*. The header guards itself and the meta part by CRC-32; a
payload, which only DATA has, is guarded by the wire digest in its meta part. So a flipped bit anywhere is found here,
also where something between two TLS connections flipped it.

Every frame that comes from the peer is checked against bounds before memory is taken for it. What breaks a rule raises
``Reconnect``: the stream's position is not trusted any more, and the connection has to go.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain
from typing import Any, Final
from zlib import crc32

from farshore.blocks.descriptors import MAX_DESCRIPTORS
from farshore.blocks.digest import DIGEST_SIZE, Buffer, wire_digest
from farshore.errors import Corruption, FarshoreError, Permanent, Reconnect, from_dict
from farshore.units import CHUNK_SIZE, LEAF_SIZE

MAGIC: Final = b"FSH1"
VERSION_MIN: Final = 1
VERSION_MAX: Final = 1
#: Bit of a greeting's features: the sender answers questions. Unset: it asks. Who dialed says nothing about it.
ROLE_SOURCE: Final = 1
#: Where a listener's features say how many parts it has that a source connects to, one byte; see parts.py.
_PARTS_SHIFT: Final = 8
_PARTS_MAX: Final = 255

#: Zero runs within a chunk are found by pages of this size or by the target's granularity, whichever is larger.
ZERO_BLOCK: Final = 4096
#: Pieces in one answer. Each range is cut where data turns to zero or back, which can happen at every page that it
#: touches; n ranges of 1 MiB in all touch at most 256 + 2 n pages.
MAX_PIECES: Final = CHUNK_SIZE // ZERO_BLOCK + 2 * MAX_DESCRIPTORS
#: Leaves that a chunk can touch: each range begins and ends in one, and 1 MiB holds 16.
MAX_LEAVES: Final = CHUNK_SIZE // LEAF_SIZE + 2 * MAX_DESCRIPTORS
#: Extents in one EXTENTS frame.
MAX_EXTENTS: Final = 4096
#: Leaf digests in one DIGESTS frame: 64 MiB of disk, read in about a tenth of a second.
MAX_DIGESTS: Final = 1024
MAX_META: Final = 256 * 1024
MAX_PAYLOAD: Final = CHUNK_SIZE

#: Flag of a DATA frame: its payload is zstd.
COMPRESSED: Final = 1

HEADER: Final = struct.Struct(">4sBBHIIIII")
_GUARDED: Final = struct.Struct(">4sBBHIIII")
_CRC: Final = struct.Struct(">I")
_HELLO: Final = struct.Struct(">HHII")
#: Bytes of the largest meta part that a greeting has.
MAX_HELLO: Final = _HELLO.size + 64
_LIST: Final = struct.Struct(">QIBQI")
_EXTENTS: Final = struct.Struct(">QIB")
_EXTENT: Final = struct.Struct(">QQB")
_READ: Final = struct.Struct(">QI")
_RANGE: Final = struct.Struct(">QI")
_DATA: Final = struct.Struct(">QIII16s")
_DIGESTS: Final = struct.Struct(">QIQI")
_SESSION: Final = struct.Struct(">Q")
_ZERO_BIT: Final = 1 << 31

if (
    MAX_PIECES * _RANGE.size + MAX_LEAVES * DIGEST_SIZE + _DATA.size > MAX_META
    or MAX_EXTENTS * _EXTENT.size + _EXTENTS.size > MAX_META
    or MAX_DIGESTS * DIGEST_SIZE + _DIGESTS.size > MAX_META
):
    raise AssertionError("the largest table fits the largest meta part")


class Type(IntEnum):
    """Kinds of frames."""

    HELLO = 1
    OPEN = 2
    OPENED = 3
    LIST = 4
    EXTENTS = 5
    READ = 6
    DATA = 7
    ZERO = 8
    DIGEST = 9
    DIGESTS = 10
    CLOSE = 11
    CLOSED = 12
    ERROR = 13


@dataclass(frozen=True, slots=True)
class Header:
    """What stands in front of a frame. ``request`` pairs an answer with its question."""

    type: Type
    request: int
    meta_size: int
    payload_size: int
    meta_crc: int
    compressed: bool = False


def encode(kind: Type, request: int, meta: Buffer, payload_size: int = 0, *, compressed: bool = False) -> bytes:
    """Return header and meta part of a frame; the caller sends the payload behind them.

    Raises:
        ValueError: a part is larger than the protocol allows; a bug of the caller.
    """
    size = memoryview(meta).nbytes
    if size > MAX_META or payload_size > MAX_PAYLOAD:
        raise ValueError(f"{kind.name} of {size}+{payload_size} bytes is too large")
    flags = COMPRESSED if compressed else 0
    guarded = _GUARDED.pack(MAGIC, kind, flags, 0, request, size, payload_size, crc32(meta))
    return b"".join((guarded, _CRC.pack(crc32(guarded)), meta))


def decode_header(data: Buffer) -> Header:
    """Return the header in the 28 bytes ``data``.

    Raises:
        Reconnect: not a frame (``not-a-frame``, ``frame-damaged``), larger than allowed (``frame-too-large``), or none
            that we know.
    """
    magic, kind, flags, reserved, request, meta_size, payload_size, meta_crc, crc = HEADER.unpack(data)
    if magic != MAGIC:
        raise _broken("what came is not a frame", "not-a-frame")
    if crc32(memoryview(data)[: _GUARDED.size]) != crc:
        raise _broken("the header of a frame is damaged", "frame-damaged")
    if reserved or kind not in _KINDS or flags not in {0, COMPRESSED} or (flags and kind != Type.DATA):
        raise _broken(f"frame type {kind} with flags {flags} is unknown")
    if meta_size > MAX_META or payload_size > (MAX_PAYLOAD if kind == Type.DATA else 0):
        raise _broken(f"a frame of {meta_size}+{payload_size} bytes is too large", "frame-too-large")
    return Header(Type(kind), request, meta_size, payload_size, meta_crc, bool(flags))


def check_meta(header: Header, meta: Buffer) -> None:
    """Raise ``Reconnect`` if ``meta`` is not what the header was made for."""
    if crc32(meta) != header.meta_crc:
        raise _broken("the meta part of a frame is damaged", "frame-damaged")


# --- greeting -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """First frame in both directions: which versions the sender speaks, and its role."""

    version_min: int = VERSION_MIN
    version_max: int = VERSION_MAX
    software: str = "farshore"
    features: int = 0

    def encode(self) -> bytes:
        """Return the whole frame."""
        name = self.software.encode()[:64]
        numbers = _HELLO.pack(self.version_min, self.version_max, MAX_PAYLOAD, self.features)
        return encode(Type.HELLO, 0, numbers + name)

    @property
    def answers(self) -> bool:
        """Whether the sender answers questions; else it asks them."""
        return bool(self.features & ROLE_SOURCE)

    @property
    def parts(self) -> int:
        """How many parts the sender has that take connections of their own."""
        return self.features >> _PARTS_SHIFT & _PARTS_MAX

    @classmethod
    def decode(cls, meta: Buffer) -> Hello:
        """Return the greeting in a meta part."""
        view = memoryview(meta)
        if not _HELLO.size <= view.nbytes <= MAX_HELLO:
            raise _broken("the greeting has a wrong size")
        low, high, _payload, features = _HELLO.unpack_from(view)
        return cls(low, high, bytes(view[_HELLO.size :]).decode("utf-8", "replace"), features)

    def agree(self) -> int:
        """Return the highest version that both sides speak.

        Raises:
            Permanent: there is none.
        """
        version = min(self.version_max, VERSION_MAX)
        if version < max(self.version_min, VERSION_MIN):
            raise Permanent(
                f"the other node speaks protocol {self.version_min} to {self.version_max}, this one "
                f"{VERSION_MIN} to {VERSION_MAX}",
                code="protocol-version",
                hint="Bring both nodes to the same release.",
            )
        return version


def parts_as_features(parts: int) -> int:
    """Return the features of a greeting that tells of so many parts."""
    return min(parts, _PARTS_MAX) << _PARTS_SHIFT


# --- session --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Open:
    """Ask for a session.

    ``grant`` is the signed text. Zeros may be told in blocks of ``zero_block`` bytes. ``compress``: the source may send
    zstd where it pays.
    """

    grant: str
    zero_block: int
    compress: bool = False

    def encode(self, request: int) -> bytes:
        """Return the whole frame."""
        body: dict[str, Any] = {"grant": self.grant, "zero_block": self.zero_block}
        if self.compress:
            body["compress"] = "auto"
        return encode(Type.OPEN, request, _dump(body))

    @classmethod
    def decode(cls, meta: Buffer) -> Open:
        """Return the question in a meta part."""
        body = _parse(meta)
        grant, zero_block, compress = body.get("grant"), body.get("zero_block"), body.get("compress", "off")
        if not isinstance(grant, str) or not isinstance(zero_block, int) or not 512 <= zero_block <= CHUNK_SIZE:
            raise _broken("OPEN lacks a grant or a block size")
        if compress not in {"auto", "off"}:
            raise _broken("OPEN asks for an unknown compression")
        return cls(grant, zero_block, compress == "auto")


@dataclass(frozen=True, slots=True)
class OpenedDisk:
    """What the source says of a disk. ``incremental``: it can name the changes since the grant's base."""

    disk_key: str
    size_bytes: int
    incremental: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Opened:
    """Answer to OPEN: the session's number and its disks, in the order of the grant; an index names one from now on."""

    session: int
    epoch: int
    disks: tuple[OpenedDisk, ...]

    def encode(self, request: int) -> bytes:
        """Return the whole frame."""
        disks = [[d.disk_key, d.size_bytes, d.incremental, d.reason] for d in self.disks]
        return encode(Type.OPENED, request, _dump({"session": self.session, "epoch": self.epoch, "disks": disks}))

    @classmethod
    def decode(cls, meta: Buffer) -> Opened:
        """Return the answer in a meta part."""
        body = _parse(meta)
        try:
            disks = tuple(
                OpenedDisk(str(key), int(size), bool(incremental), str(reason))
                for key, size, incremental, reason in body["disks"]
            )
            return cls(int(body["session"]), int(body["epoch"]), disks)
        except (KeyError, TypeError, ValueError) as error:
            raise _broken("OPENED is not well-formed") from error


def encode_close(request: int, session: int) -> bytes:
    """Return CLOSE."""
    return encode(Type.CLOSE, request, _SESSION.pack(session))


def decode_close(meta: Buffer) -> int:
    """Return the session's number in CLOSE."""
    if memoryview(meta).nbytes != _SESSION.size:
        raise _broken("CLOSE has a wrong size")
    return int(_SESSION.unpack(meta)[0])


def encode_closed(request: int, session: int, stats: dict[str, Any]) -> bytes:
    """Return CLOSED: the session's number, and what it took at the source."""
    return encode(Type.CLOSED, request, _SESSION.pack(session) + _dump(stats))


def decode_closed(meta: Buffer) -> tuple[int, dict[str, Any]]:
    """Return ``(session, stats)`` of CLOSED."""
    view = memoryview(meta)
    if view.nbytes < _SESSION.size:
        raise _broken("CLOSED has a wrong size")
    return int(_SESSION.unpack_from(view)[0]), _parse(view[_SESSION.size :])


def encode_error(request: int, error: FarshoreError) -> bytes:
    """Return ERROR as the answer to ``request`` (0: the connection as a whole)."""
    body = _dump(error.to_dict())
    if len(body) > MAX_META:
        body = _dump({**error.to_dict(), "evidence": {}, "message": error.message[:4096], "hint": error.hint[:4096]})
    return encode(Type.ERROR, request, body)


def decode_error(meta: Buffer) -> FarshoreError:
    """Return the error that the peer sent."""
    return from_dict(_parse(meta))


# --- extents --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class List:
    """Ask for extents that end behind ``offset``: changed since the grant's base, or all that is allocated."""

    session: int
    disk: int
    since_base: bool
    offset: int
    limit: int = MAX_EXTENTS

    def encode(self, request: int) -> bytes:
        """Return the whole frame."""
        meta = _LIST.pack(self.session, self.disk, self.since_base, self.offset, self.limit)
        return encode(Type.LIST, request, meta)

    @classmethod
    def decode(cls, meta: Buffer) -> List:
        """Return the question in a meta part."""
        if memoryview(meta).nbytes != _LIST.size:
            raise _broken("LIST has a wrong size")
        session, disk, since_base, offset, limit = _LIST.unpack(meta)
        if since_base > 1 or not 1 <= limit <= MAX_EXTENTS:
            raise _broken("LIST asks for too much")
        return cls(session, disk, bool(since_base), offset, limit)


@dataclass(frozen=True, slots=True)
class Extents:
    """Ascending, disjoint ``(offset, length, zero)``. ``more``: ask again from the end of the last."""

    session: int
    disk: int
    more: bool
    extents: Sequence[tuple[int, int, bool]]

    def encode(self, request: int) -> bytes:
        """Return the whole frame."""
        rows = struct.pack(">" + "QQB" * len(self.extents), *chain.from_iterable(self.extents))
        return encode(Type.EXTENTS, request, _EXTENTS.pack(self.session, self.disk, self.more) + rows)

    @classmethod
    def decode(cls, meta: Buffer) -> Extents:
        """Return the extents in a meta part."""
        view = memoryview(meta)
        if view.nbytes < _EXTENTS.size or (view.nbytes - _EXTENTS.size) % _EXTENT.size:
            raise _broken("EXTENTS has a wrong size")
        session, disk, more = _EXTENTS.unpack_from(view)
        rows = [(offset, length, zero == 1) for offset, length, zero in _EXTENT.iter_unpack(view[_EXTENTS.size :])]
        if len(rows) > MAX_EXTENTS or (more and not rows) or more > 1:
            raise _broken("EXTENTS promises more and has none")
        seen = 0
        for offset, length, _zero in rows:
            if offset < seen or length == 0:
                raise _broken("EXTENTS are out of order")
            seen = offset + length
        return cls(session, disk, bool(more), rows)


# --- data -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Read:
    """Ask for one chunk: ascending, disjoint ``(offset, length)``."""

    session: int
    disk: int
    ranges: tuple[tuple[int, int], ...]

    def encode(self, request: int) -> bytes:
        """Return the whole frame."""
        rows = struct.pack(">" + "QI" * len(self.ranges), *chain.from_iterable(self.ranges))
        return encode(Type.READ, request, _READ.pack(self.session, self.disk) + rows)

    @classmethod
    def decode(cls, meta: Buffer) -> Read:
        """Return the question in a meta part."""
        view = memoryview(meta)
        if view.nbytes < _READ.size or (view.nbytes - _READ.size) % _RANGE.size:
            raise _broken("READ has a wrong size")
        session, disk = _READ.unpack_from(view)
        ranges = tuple(_RANGE.iter_unpack(view[_READ.size :]))
        seen = total = 0
        for offset, length in ranges:
            if offset < seen or length == 0:
                raise _broken("READ has ranges out of order")
            seen = offset + length
            total += length
        if not 0 < len(ranges) <= MAX_DESCRIPTORS or total > CHUNK_SIZE:
            raise _broken("READ asks for too much")
        return cls(session, disk, ranges)


@dataclass(frozen=True, slots=True)
class Data:
    """Answer to READ: pieces ``(offset, length, zero)`` that tile what was asked, and digests of all leaves touched.

    Only pieces that are not zero have bytes in the payload, in order. Without any, the frame's type is ZERO. The
    payload may cross the wire compressed; ``digest`` and ``size_bytes`` are of what it was before, ``wire_bytes`` are
    those of the whole frame as it came.
    """

    session: int
    disk: int
    pieces: Sequence[tuple[int, int, bool]]
    leaf_digests: bytes
    table: bytes
    digest: bytes
    size_bytes: int = 0
    wire_bytes: int = 0

    @staticmethod
    def encode(
        request: int,
        session: int,
        disk: int,
        epoch: int,
        pieces: Sequence[tuple[int, int, bool]],
        leaf_digests: Buffer,
        payload: memoryview,
        packed_size: int | None = None,
    ) -> bytes:
        """Return header and meta part; ``payload`` has to follow on the wire, or the zstd of it in ``packed_size``."""
        cells = [cell for offset, length, zero in pieces for cell in (offset, length | _ZERO_BIT if zero else length)]
        table = struct.pack(">" + "QI" * len(pieces), *cells) + leaf_digests
        digest = wire_digest(session, disk, epoch, table, payload)
        head = _DATA.pack(session, disk, len(pieces), memoryview(leaf_digests).nbytes // DIGEST_SIZE, digest)
        if packed_size is not None:
            return encode(Type.DATA, request, head + table, packed_size, compressed=True)
        kind = Type.DATA if payload.nbytes else Type.ZERO
        return encode(kind, request, head + table, payload.nbytes)

    @classmethod
    def decode(cls, meta: Buffer, payload_size: int, *, compressed: bool = False) -> Data:
        """Return the answer in a meta part. What was compressed has become smaller, from no more than a chunk."""
        view = memoryview(meta)
        if view.nbytes < _DATA.size:
            raise _broken("DATA has a wrong size")
        session, disk, count, leaves, digest = _DATA.unpack_from(view)
        split = _DATA.size + count * _RANGE.size
        if count > MAX_PIECES or leaves > MAX_LEAVES or view.nbytes != split + leaves * DIGEST_SIZE:
            raise _broken("DATA has a wrong size")
        pieces = [
            (offset, length & ~_ZERO_BIT, length >= _ZERO_BIT)
            for offset, length in _RANGE.iter_unpack(view[_DATA.size : split])
        ]
        size = sum(length for _, length, zero in pieces if not zero)
        if not 0 < payload_size < size <= MAX_PAYLOAD if compressed else payload_size != size:
            raise _broken("the payload of DATA is not as long as its pieces")
        table = bytes(view[_DATA.size :])
        wire = HEADER.size + view.nbytes + payload_size
        return cls(session, disk, pieces, table[split - _DATA.size :], table, digest, size, wire)

    def check(self, epoch: int, payload: memoryview) -> None:
        """Raise ``Corruption`` unless the payload, unpacked, is what the source read for exactly this place.

        The digest takes in session, disk, epoch and every offset and length.
        """
        if wire_digest(self.session, self.disk, epoch, self.table, payload) != self.digest:
            raise Corruption("a chunk failed its wire digest", code="wire-digest", session=self.session, disk=self.disk)

    def check_tiles(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Raise ``Corruption`` unless the pieces cover ``ranges`` exactly, in order, and nothing outside of them."""
        at = iter(ranges)
        offset, left = 0, 0
        for start, length, _zero in self.pieces:
            if left == 0:
                offset, left = next(at, (0, 0))
            if start != offset or not 0 < length <= left:
                raise self._misplaced(start, length)
            offset += length
            left -= length
        if left or next(at, None) is not None:
            raise self._misplaced(offset, left)

    def _misplaced(self, offset: int, length: int) -> Corruption:
        return Corruption(
            "the source sent a range that was not asked for",
            code="misplaced-data",
            disk=self.disk,
            offset=offset,
            length=length,
        )


# --- digests --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Digests:
    """Ask for ``count`` leaf digests from leaf ``first`` (type DIGEST), or bring them (type DIGESTS)."""

    session: int
    disk: int
    first: int
    count: int
    digests: bytes = b""

    def encode(self, request: int) -> bytes:
        """Return the whole frame."""
        head = _DIGESTS.pack(self.session, self.disk, self.first, self.count)
        return encode(Type.DIGESTS if self.digests else Type.DIGEST, request, head + self.digests)

    @classmethod
    def decode(cls, meta: Buffer, *, answer: bool) -> Digests:
        """Return the question or the answer in a meta part."""
        view = memoryview(meta)
        if view.nbytes < _DIGESTS.size:
            raise _broken("DIGESTS has a wrong size")
        session, disk, first, count = _DIGESTS.unpack_from(view)
        digests = bytes(view[_DIGESTS.size :])
        if not 0 < count <= MAX_DIGESTS or len(digests) != (count * DIGEST_SIZE if answer else 0):
            raise _broken("DIGESTS has a wrong size")
        return cls(session, disk, first, count, digests)


_KINDS: Final = frozenset(int(kind) for kind in Type)


def _dump(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), default=str).encode()


def _parse(meta: Buffer) -> dict[str, Any]:
    try:
        body = json.loads(bytes(meta))
    except (ValueError, RecursionError) as error:
        raise _broken("the meta part is no JSON") from error
    if not isinstance(body, dict):
        raise _broken("the meta part is no JSON object")
    return body


def _broken(message: str, code: str = "protocol-error") -> Reconnect:
    return Reconnect(f"the peer broke the protocol: {message}", code=code)
