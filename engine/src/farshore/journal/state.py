"""What of one draft is durable. See docs/internals/journal.md for the crash windows.

The journal records *durable* ranges only. The order at a mark is the caller's and this module's together: the draft is
flushed, the leaf file is synced, then the record is appended and synced. So a range that is recorded is in the draft,
and its leaves have their digests, whatever crash follows.

Beside them it names what is *touched*: ranges that are about to be written. That is what lets a draft pass to another
source point, for then everything that the old one left in it has to be proven or written again.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from heapq import nlargest
from pathlib import Path
from typing import Final

from farshore import durable
from farshore.blocks.rangeset import RangeSet
from farshore.errors import Conflict, Retry
from farshore.journal.history import Copied, Counters, History, Kind, Sealed, Subject, boot_id
from farshore.journal.leaves import Leaves
from farshore.journal.log import Log, decode
from farshore.journal.ranges import decode_ranges, encode_ranges

__all__ = [
    "Copied",
    "Counters",
    "DraftState",
    "Kind",
    "Known",
    "Sealed",
    "Subject",
    "decode_ranges",
    "encode_ranges",
    "read_subject",
]

_FORMAT: Final = 1
#: Ranges of a cover.
COVER_RANGES: Final = 4096


class DraftState:
    """The journal and leaf file of one draft, in the folder ``path``. The caller excludes other processes.

    A journal of another source point of the same disk, onto the same base, is adopted: what it calls durable is
    ``held`` then. What is marked while it is open is recorded only: the cycle never looks back at it, and it may be
    millions of ranges.
    """

    def __init__(
        self,
        path: Path,
        subject: Subject,
        own_key: str,
        *,
        draft_key: str | None = None,
        taken: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Open or begin.

        Args:
            path: the folder.
            subject: what the draft is of.
            own_key: the name of a draft that is begun now, for a new journal or where the draft is lost.
            draft_key: for a new journal of a draft that another node began: that one's name.
            taken: what that node called durable.
        """
        durable.make_dir(path)
        self._path = path
        self._own_key = own_key
        self._lock = threading.Lock()
        self._log = Log(path / "journal")
        try:
            self._history = history = History()
            for kind, body in self._log.records:
                history.add(kind, body)
            self._log.records.clear()  # a large disk has many
            self.resumed = history.subject is not None
            first: list[tuple[int, bytes]] = []
            if not self.resumed:
                begin = {"format": _FORMAT, "subject": asdict(subject), "draft_key": draft_key or own_key}
                first.append((Kind.BEGIN, _json(begin)))
            first.append((Kind.OPENED, _json({"boot": boot_id()})))
            if not self.resumed:
                first.extend((Kind.TAKEN, body) for body in encode_ranges(taken))
            for kind, body in first:
                history.add(kind, body)
            if history.subject != subject:
                self._check(history, subject)
                first.append((Kind.ADOPTED, _json(asdict(subject))))
                history.adopt(subject)
            self._log.append(*first)
            self.leaves = Leaves(path / "leaves")
        except BaseException:
            self._log.close()
            raise
        self.counters = history.counters
        self._cover = history.durable.copy()
        self._unrecorded_bytes = 0

    @staticmethod
    def _check(history: History, subject: Subject) -> None:
        """Refuse a journal that cannot be adopted."""
        found = history.subject
        if (
            history.format != _FORMAT
            or found is None
            or not found.passes_to(subject)
            or not history.exact
            or history.sealed
        ):
            raise Conflict(
                "the journal is of another cycle",
                code="journal-mismatch",
                found=asdict(found) if found is not None else None,
                exact=history.exact,
            )

    @property
    def draft_key(self) -> str:
        """The draft's name at the target."""
        return self._history.draft_key

    @property
    def generation(self) -> int:
        """How many drafts there were."""
        return self._history.generation

    @property
    def durable(self) -> RangeSet:
        """Ranges of the subject's content that were durable when the journal was opened, or proven since."""
        return self._history.durable

    @property
    def held(self) -> RangeSet:
        """Ranges that are durable with an earlier content, or by another's word."""
        return self._history.held

    @property
    def dirty(self) -> RangeSet:
        """Ranges that have to be written whatever the source calls changed."""
        return self._history.dirty

    @property
    def adopted(self) -> bool:
        """Whether the draft was begun for another source point."""
        return self._history.adopted

    @property
    def sought(self) -> bool:
        """Whether the draft was not there before; see :meth:`seek`."""
        return self._history.sought

    @property
    def begun(self) -> bool:
        """Whether anything is said of the draft's content."""
        return bool(self.durable or self.held or self.dirty or self.adopted or self.copied)

    @property
    def copied(self) -> Copied | None:
        """How the whole disk became durable; None while it is not."""
        return self._history.copied

    @property
    def sealed(self) -> Sealed | None:
        """The point that the draft became."""
        return self._history.sealed

    def touch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Note that ``ranges`` may be written from now on. Outlives the process, not a power cut; see ``exact``."""
        named = list(ranges)
        with self._lock:
            self._log.append(*((int(Kind.TOUCHED), body) for body in encode_ranges(named)), sync=False)
            self._unrecorded_bytes += sum(stop - start for start, stop in named)

    def mark(self, ranges: RangeSet, counters: Counters) -> None:
        """Record ``ranges`` as durable. The caller has flushed the draft since it wrote them.

        Raises:
            OSError: nothing is recorded, or it is not known; the journal takes no more.
        """
        self.leaves.sync()
        bodies = [(int(Kind.DURABLE), body) for body in encode_ranges(ranges)]
        with self._lock:
            self._log.append(*bodies, (Kind.MARK, _json(asdict(counters))))
            self._unrecorded_bytes -= ranges.total()
            for start, stop in ranges:
                self._cover.add(start, stop)
            if len(self._cover) > 4 * COVER_RANGES:
                self._cover = _largest(self._cover, COVER_RANGES)
        self.counters = counters

    def cover(self, max_ranges: int = COVER_RANGES) -> list[tuple[int, int]]:
        """Return at most ``max_ranges`` ranges, all of them durable: the largest, where there are more."""
        with self._lock:
            return list(_largest(self._cover, max_ranges))

    def prove(self, equal: RangeSet) -> None:
        """Settle what is held: ``equal``, a part of it, is the subject's content; the rest is dirty.

        Called before anything of the subject is written, for the leaf file tells the earlier content until then.
        """
        bodies = [(int(Kind.DURABLE), body) for body in encode_ranges(equal)]
        self.leaves.sync()
        with self._lock:
            self._record(*bodies, (int(Kind.COMPARED), b""))
            self._cover = self.durable.copy()

    def seek(self) -> None:
        """Record that the draft is not there, before it is opened to see whether it was sealed.

        To open it makes it where it was lost. Whoever finds it afterwards has to know that it is not the one before.
        """
        with self._lock:
            self._record((Kind.SOUGHT, b""))

    def lost(self) -> int:
        """Record that the draft is gone and begin a new generation; return how many bytes were lost with it.

        The new draft has a name of its own: what others were told of the one before never passes for this one's.
        """
        bytes_lost = self.durable.total() + self.held.total()
        self.leaves.clear()
        with self._lock:
            self._record((Kind.LOST, _json({"draft_key": f"{self._own_key}.g{self.generation + 1}"})))
            self._cover.clear()
        self.counters = replace(self.counters, resent_bytes=self.counters.resent_bytes + bytes_lost)
        return bytes_lost

    def finish(self, copied: Copied) -> None:
        """Record that the whole disk is durable, before the draft is sealed.

        Raises:
            Retry: something was touched, and is not recorded as durable.
        """
        with self._lock:
            if self._unrecorded_bytes > 0:  # the second defence: a failed mark ends the cycle
                raise Retry(
                    f"{self._unrecorded_bytes} bytes that were written to {self.draft_key} are not known to be durable",
                    code="mark-failed",
                    hint="The next attempt copies them again.",
                    draft=self.draft_key,
                )
            self._record((Kind.COPIED, _json(asdict(copied))))

    def seal(self, sealed: Sealed) -> None:
        """Record the point that the draft became."""
        with self._lock:
            self._record((Kind.SEALED, _json(asdict(sealed))))

    def _record(self, *records: tuple[int, bytes]) -> None:
        self._log.append(*records)
        for kind, body in records:
            self._history.add(kind, body)

    def close(self) -> None:
        """Close the files. Nothing that was written is missing from the journal then, if it can still be written."""
        with self._lock:
            if self._log.takes_more:
                with contextlib.suppress(OSError):
                    self._log.append((Kind.CLOSED, b""))
            self._log.close()
            self.leaves.close()


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _largest(ranges: RangeSet, count: int) -> RangeSet:
    if len(ranges) <= count:
        return ranges.copy()
    return RangeSet(sorted(nlargest(count, ranges, key=lambda one: one[1] - one[0])))


@dataclass(frozen=True, slots=True)
class Known:
    """What a journal says without being opened for work. ``exact``: it may be adopted (see :class:`History`)."""

    subject: Subject
    draft_key: str
    copied: bool
    sealed: Sealed | None
    exact: bool = False


def doubt(path: Path) -> None:
    """Note in a journal that others may have written to its draft: it passes to no other source point any more."""
    log = Log(path / "journal")
    try:
        if log.records:
            log.append((int(Kind.TAKEN), b""))
    finally:
        log.close()


def read_subject(path: Path) -> Known | None:
    """Return what the journal in the folder ``path`` is about; None where none is readable."""
    try:
        data = (path / "journal").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    history = History()
    for (kind, body), _ in decode(data):
        if not history.opened or kind not in {Kind.DURABLE, Kind.TOUCHED, Kind.MARK}:
            history.add(kind, body)
    if history.subject is None:
        return None
    exact = history.is_exact_at(boot_id())
    return Known(history.subject, history.draft_key, history.copied is not None, history.sealed, exact)
