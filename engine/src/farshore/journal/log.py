"""An append-only log of records, each guarded by a CRC; a torn tail is cut off.

On disk: records one behind the other, each ``crc32 | length | sequence | kind`` (16 bytes, big-endian) and a body. The
CRC covers everything behind it. Sequence numbers count from 0. Reading ends at the first record that is not whole; what
lies behind it was never acknowledged: an append is acknowledged only after an fsync, which covers all records before it
too. Records that need no acknowledgement may be appended without one; a process that dies loses none of them, a machine
that loses power may lose those behind the last fsync.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple
from zlib import crc32

from farshore import durable
from farshore.errors import Corruption

HEAD: Final = struct.Struct(">IIII")
_CRC: Final = struct.Struct(">I")
#: Largest body of one record.
BODY_MAX: Final = 1 << 20


class Record(NamedTuple):
    """One record as it was appended."""

    kind: int
    body: bytes


def encode(sequence: int, kind: int, body: bytes) -> bytes:
    """Return a record's bytes."""
    if len(body) > BODY_MAX:
        raise ValueError(f"a record of {len(body)} bytes is too large")
    guarded = HEAD.pack(0, len(body), sequence, kind)[_CRC.size :] + body
    return _CRC.pack(crc32(guarded)) + guarded


def decode(data: bytes) -> Iterator[tuple[Record, int]]:
    """Yield each whole record with the offset behind it, up to the first that is not."""
    at = sequence = 0
    while at + HEAD.size <= len(data):
        crc, length, number, kind = HEAD.unpack_from(data, at)
        stop = at + HEAD.size + length
        if length > BODY_MAX or stop > len(data) or number != sequence:
            return
        if crc32(memoryview(data)[at + _CRC.size : stop]) != crc:
            return
        yield Record(kind, data[at + HEAD.size : stop]), stop
        at = stop
        sequence += 1


class Log:
    """A log in the file ``path``, held open for appending. One process at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        existed = path.exists()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._broken = False
        self.records: list[Record] = []
        try:
            if not existed:
                durable.fsync_dir(path.parent)
            data = path.read_bytes()
            self._end = 0
            for record, end in decode(data):
                self.records.append(record)
                self._end = end
            if self._end < len(data):
                os.ftruncate(self._fd, self._end)
                os.fsync(self._fd)
        except BaseException:
            os.close(self._fd)
            raise
        self._next = len(self.records)

    def append(self, *records: tuple[int, bytes], sync: bool = True) -> None:
        """Append records ``(kind, body)``; with ``sync`` these and all before them are durable on return.

        Raises:
            OSError: they are not; the log takes no more, for its end is not known.
        """
        if self._broken:
            raise Corruption(f"journal {self._path} failed before and is closed to writing", code="journal-broken")
        data = b"".join(encode(self._next + index, kind, body) for index, (kind, body) in enumerate(records))
        self._broken = True
        at = 0
        while at < len(data):
            at += os.pwrite(self._fd, data[at:], self._end + at)
        if sync:
            os.fsync(self._fd)
        self._broken = False
        self._end += len(data)
        self._next += len(records)

    @property
    def takes_more(self) -> bool:
        """Whether the log is open and has not failed."""
        return self._fd >= 0 and not self._broken

    def close(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
