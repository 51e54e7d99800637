"""What the records of a journal add up to. Pure but for the boot id of this machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from farshore.blocks.rangeset import RangeSet
from farshore.journal.ranges import decode_ranges

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Kind(IntEnum):
    """Kinds of records."""

    BEGIN = 1
    DURABLE = 2
    MARK = 3
    SEALED = 4
    LOST = 5
    COPIED = 6
    OPENED = 7
    CLOSED = 8
    TOUCHED = 9
    ADOPTED = 10
    COMPARED = 11
    TAKEN = 12
    SOUGHT = 13


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

    def passes_to(self, other: Subject) -> bool:
        """Say whether a draft of this may become one of ``other``: the same disk of the same direction, on one base."""
        ours, theirs = (
            (one.group_id, one.disk_key, one.size_bytes, one.base_point, one.epoch) for one in (self, other)
        )
        return ours == theirs


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


class History:
    """Records, added one after the other.

    Attributes:
        subject: what the draft is of now; None before BEGIN.
        durable: in the draft for good, with the content of the subject's source point.
        touched: written, or about to be, and not durable; its content is not known.
        held: durable with the content of an earlier source point, whose leaf digests the leaf file has.
        dirty: written before the draft passed to its subject, with a content that is not the subject's or not known.
        adopted: the draft passed from one source point to another.
        exact: the four sets name everything that was ever written to the draft.
        sought: the draft was not there, and was opened to see whether it is sealed: found now, it is a new one.
    """

    def __init__(self) -> None:
        self.format = 0
        self.subject: Subject | None = None
        self.draft_key = ""
        self.generation = 1
        self.counters = Counters()
        self.copied: Copied | None = None
        self.sealed: Sealed | None = None
        self.durable, self.touched = RangeSet(), RangeSet()
        self.held, self.dirty = RangeSet(), RangeSet()
        self.adopted = False
        self.exact = False
        self.sought = False
        self._boot: str | None = None
        self._closed = False

    def add(self, kind: int, body: bytes) -> None:
        """Add the next record."""
        if kind == Kind.BEGIN:
            begin = json.loads(body)
            self.format, self.draft_key = begin["format"], str(begin["draft_key"])
            self.subject = Subject(**begin["subject"])
        elif kind == Kind.DURABLE:
            for start, stop in decode_ranges(body):
                self.durable.add(start, stop)
                for other in (self.touched, self.held, self.dirty):
                    other.remove(start, stop)
        elif kind == Kind.TOUCHED:
            for start, stop in decode_ranges(body):
                self.touched.add(start, stop)
        elif kind == Kind.MARK:
            self.counters = Counters(**json.loads(body))
        elif kind == Kind.COPIED:
            self.copied = Copied(**json.loads(body))
        elif kind == Kind.SEALED:
            self.sealed = Sealed(**json.loads(body))
        elif kind == Kind.OPENED:
            self._opened(json.loads(body)["boot"])
        elif kind == Kind.CLOSED:
            self._closed = True
        elif kind == Kind.ADOPTED:
            self.adopt(Subject(**json.loads(body)))
        elif kind == Kind.COMPARED:
            self.compared()
        elif kind == Kind.TAKEN:
            self.exact = False
            for start, stop in decode_ranges(body):
                self.held.add(start, stop)
        elif kind == Kind.LOST:
            self.forget(str(json.loads(body)["draft_key"]) if body else self.draft_key)
        elif kind == Kind.SOUGHT:
            self.sought = True

    def _opened(self, boot: str) -> None:
        first = self._boot is None
        self.exact = not (self.touched or self.durable) if first else self.is_exact_at(boot)
        self._boot, self._closed = boot, False

    @property
    def opened(self) -> bool:
        """Whether the journal says which boot of the machine it was written in."""
        return self._boot is not None

    def is_exact_at(self, boot: str) -> bool:
        """Say whether nothing that was written is missing here, on a machine whose boot has the id ``boot``.

        What a process wrote without an fsync outlives the process, not the machine.
        """
        return self.exact and (self._closed or self._boot == boot)

    def adopt(self, subject: Subject) -> None:
        """Pass the draft to another source point: what was written is of the old one."""
        for start, stop in self.durable:
            self.held.add(start, stop)
        for start, stop in self.touched:
            self.dirty.add(start, stop)
            self.held.remove(start, stop)
        self.durable.clear()
        self.touched.clear()
        self.copied = None
        self.subject = subject
        self.adopted = True

    def compared(self) -> None:
        """Call everything dirty that is held still: it is not the subject's content."""
        for start, stop in self.held:
            self.dirty.add(start, stop)
        self.held.clear()

    def forget(self, draft_key: str) -> None:
        """Begin a new generation, in a draft of another name: the one before is gone."""
        self.generation += 1
        self.draft_key = draft_key
        for one in (self.durable, self.touched, self.held, self.dirty):
            one.clear()
        self.copied, self.sealed = None, None
        self.adopted = self.sought = False
        self.exact = self._boot is not None


def boot_id() -> str:
    """Return the name that the kernel gave to its present run."""
    return _BOOT_ID.read_text(encoding="ascii").strip()
