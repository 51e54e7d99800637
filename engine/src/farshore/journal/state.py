"""What of one draft is durable. See docs/internals/journal.md for the crash windows.

The journal records *durable* ranges only. The order at a mark is the caller's and this module's together: the draft is
flushed, the leaf file is synced, then the record is appended and synced. So a range that is recorded is in the draft,
and its leaves have their digests, whatever crash follows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

from farshore import durable
from farshore.blocks.rangeset import RangeSet
from farshore.errors import Conflict
from farshore.journal.leaves import Leaves
from farshore.journal.log import BODY_MAX, Log, Record, decode

_FORMAT: Final = 1
#: Ranges in one record: two varints of at most 9 bytes each stay below the largest body.
_RANGES_MAX: Final = BODY_MAX // 18


class Kind(IntEnum):
    """Kinds of records."""

    BEGIN = 1
    DURABLE = 2
    MARK = 3
    SEALED = 4
    LOST = 5
    COPIED = 6


@dataclass(frozen=True, slots=True)
class Subject:
    """What a journal is about. Two cycles with equal subjects continue each other."""

    group_id: str
    checkpoint_id: str
    disk_key: str
    size_bytes: int
    source_point: str
    base_source_point: str | None
    base_point: str | None
    epoch: int


@dataclass(frozen=True, slots=True)
class Counters:
    """Bytes of the cycle so far, over all of its attempts."""

    moved_bytes: int = 0
    zero_bytes: int = 0
    changed_bytes: int = 0
    resent_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Copied:
    """All of the disk is durable in the draft: its tree's root (hex), and how it was copied."""

    root: str
    mode: str
    reason: str


@dataclass(frozen=True, slots=True)
class Sealed:
    """The point that the draft became, and the root of its tree (hex)."""

    point: str
    root: str


class DraftState:
    """The journal and leaf file of one draft, in the folder ``path``. The caller excludes other processes.

    Attributes:
        draft_key: the draft's name at the target. It holds the term that began it: another node would begin its own.
        generation: grows by one each time that the draft was found lost.
        durable: ranges that were in the draft for good when the journal was opened. What is marked from then on is
            recorded only: the cycle never looks back at it, and it may be millions of ranges.
        copied: set when the whole disk is durable; from then on the source is not needed.
        sealed: set when the draft has become a point.
    """

    def __init__(self, path: Path, subject: Subject, draft_key: str) -> None:
        durable.make_dir(path)
        self._path = path
        self._log = Log(path / "journal")
        self.durable = RangeSet()
        self.counters = Counters()
        self.copied: Copied | None = None
        self.sealed: Sealed | None = None
        self.generation = 1
        self.draft_key = draft_key
        self.resumed = False
        try:
            if self._log.records:
                self._replay(self._log.records, subject)
                self.resumed = True
            else:
                body = {"format": _FORMAT, "subject": asdict(subject), "draft_key": draft_key}
                self._log.append((Kind.BEGIN, json.dumps(body, sort_keys=True).encode()))
            self._log.records.clear()  # they are replayed; a large disk has many
            self.leaves = Leaves(path / "leaves")
        except BaseException:
            self._log.close()
            raise

    def _replay(self, records: Iterable[Record], subject: Subject) -> None:
        for kind, body in records:
            if kind == Kind.BEGIN:
                begin = json.loads(body)
                if begin["format"] != _FORMAT or begin["subject"] != asdict(subject):
                    raise Conflict("the journal is of another cycle", code="journal-mismatch", found=begin["subject"])
                self.draft_key = str(begin["draft_key"])
            elif kind == Kind.DURABLE:
                for start, stop in decode_ranges(body):
                    self.durable.add(start, stop)
            elif kind == Kind.MARK:
                self.counters = Counters(**json.loads(body))
            elif kind == Kind.COPIED:
                self.copied = Copied(**json.loads(body))
            elif kind == Kind.SEALED:
                self.sealed = Sealed(**json.loads(body))
            elif kind == Kind.LOST:
                self._forget()

    def _forget(self) -> None:
        self.generation += 1
        self.durable.clear()
        self.copied = None
        self.sealed = None

    def mark(self, ranges: RangeSet, counters: Counters) -> None:
        """Record ``ranges`` as durable. The caller has flushed the draft since it wrote them.

        Raises:
            OSError: nothing is recorded, or it is not known; the journal takes no more.
        """
        self.leaves.sync()
        bodies = [(int(Kind.DURABLE), body) for body in encode_ranges(ranges)]
        self._log.append(*bodies, (Kind.MARK, json.dumps(asdict(counters)).encode()))
        self.counters = counters

    def lost(self) -> int:
        """Record that the draft is gone and begin a new generation; return how many bytes were lost with it."""
        bytes_lost = self.durable.total()
        self._log.append((Kind.LOST, b""))
        self._forget()
        self.counters = replace(self.counters, resent_bytes=self.counters.resent_bytes + bytes_lost)
        return bytes_lost

    def finish(self, copied: Copied) -> None:
        """Record that the whole disk is durable, before the draft is sealed."""
        self._log.append((Kind.COPIED, json.dumps(asdict(copied)).encode()))
        self.copied = copied

    def seal(self, sealed: Sealed) -> None:
        """Record the point that the draft became."""
        self._log.append((Kind.SEALED, json.dumps(asdict(sealed)).encode()))
        self.sealed = sealed

    def close(self) -> None:
        """Close the files."""
        self._log.close()
        self.leaves.close()


@dataclass(frozen=True, slots=True)
class Known:
    """What a journal says without being opened for work."""

    subject: Subject
    draft_key: str
    copied: bool
    sealed: Sealed | None


def read_subject(path: Path) -> Known | None:
    """Return what the journal in the folder ``path`` is about; None where none is readable."""
    try:
        data = (path / "journal").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    subject: dict[str, Any] | None = None
    draft_key, copied, sealed = "", False, None
    for (kind, body), _ in decode(data):
        if kind == Kind.BEGIN:
            begin = json.loads(body)
            subject, draft_key = begin["subject"], str(begin["draft_key"])
        elif kind == Kind.COPIED:
            copied = True
        elif kind == Kind.SEALED:
            sealed = Sealed(**json.loads(body))
        elif kind == Kind.LOST:
            copied, sealed = False, None
    return Known(Subject(**subject), draft_key, copied, sealed) if subject else None


def encode_ranges(ranges: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """Yield record bodies that hold ascending ranges: for each a varint gap since the last, and a varint length.

    Each body counts from 0 again, so it can be read by itself.
    """
    body = bytearray()
    count = at = 0
    for start, stop in ranges:
        _varint(body, start - at)
        _varint(body, stop - start)
        at = stop
        count += 1
        if count == _RANGES_MAX:
            yield bytes(body)
            body.clear()
            count = at = 0
    if body:
        yield bytes(body)


def decode_ranges(body: bytes) -> Iterator[tuple[int, int]]:
    """Yield the ranges of one record body."""
    at = position = 0
    while position < len(body):
        gap, position = _read_varint(body, position)
        length, position = _read_varint(body, position)
        yield at + gap, at + gap + length
        at += gap + length


def _varint(out: bytearray, value: int) -> None:
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _read_varint(body: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = body[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
