"""Reads a completed snapshot as a disk: finds the tokens of its blocks, and what was never written is zero."""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

from farshore.errors import FarshoreError, Invalid, NotFound
from farshore.platforms.aws.ebs import BLOCK, PAGE, Ebs, Row

#: Pages of tokens that are kept: what is listed and not read yet, some 10 MiB.
PAGES_MAX: Final = 6
#: Rows of a page that is asked for because of one block somewhere, not in the course of a reading.
_PAGE_HERE: Final = 500
#: Blocks that were read in part, and are likely to be wanted again.
_KEPT_BLOCKS: Final = 8
#: Whoever reads on this near behind a page is in the course of a reading.
_AHEAD: Final = 2048
_NO_END: Final = 1 << 62


class _Page:
    """Tokens of the blocks in ``[start, stop)``. ``whole``: what is not in it does not exist."""

    __slots__ = ("indexes", "start", "stop", "tokens", "whole")

    def __init__(self, start: int, stop: int, rows: list[Row], *, whole: bool) -> None:
        self.start, self.stop, self.whole = start, stop, whole
        self.indexes = array("Q", (index for index, _ in rows))
        self.tokens = [token for _, token in rows]

    def find(self, index: int) -> tuple[bool, str | None]:
        """Say whether the page knows of ``index``, and its token; none where there is no such block."""
        if not self.start <= index < self.stop:
            return False, None
        place = bisect_left(self.indexes, index)
        if place < len(self.indexes) and self.indexes[place] == index:
            return True, self.tokens[place]
        return self.whole, None


class Tokens:
    """The tokens of one snapshot's blocks, as many as are kept. Safe from several threads."""

    def __init__(self, ebs: Ebs, snapshot_id: str) -> None:
        self._ebs = ebs
        self._snapshot_id = snapshot_id
        self._lock = threading.Lock()
        self._pages: deque[_Page] = deque(maxlen=PAGES_MAX)

    def add(self, first: int, rows: list[Row], following: int | None, *, whole: bool) -> None:
        """Keep a page that somebody has listed from block ``first`` on."""
        with self._lock:
            self._add(first, rows, following, whole=whole)

    def of(self, index: int) -> str | None:
        """Return the token of a block; None if the snapshot has no such block."""
        with self._lock:
            known, token = self._known(index)
            if known:
                return token
            running = not self._pages or any(0 <= index - page.stop <= _AHEAD for page in self._pages)
            first = index
            for rows, following in self._ebs.blocks(self._snapshot_id, first, PAGE if running else _PAGE_HERE):
                if rows or following is None:
                    self._add(first, rows, following, whole=True)
                    break
            return self._known(index)[1]

    def forget(self, index: int) -> None:
        """Drop what is known of a block: its token is not taken any more."""
        with self._lock:
            stale = [page for page in self._pages if page.start <= index < page.stop]
            for page in stale:
                self._pages.remove(page)

    def _add(self, first: int, rows: list[Row], following: int | None, *, whole: bool) -> None:
        self._pages.append(_Page(first, _NO_END if following is None else following, rows, whole=whole))

    def _known(self, index: int) -> tuple[bool, str | None]:
        for page in reversed(self._pages):
            known, token = page.find(index)
            if known:
                return True, token
        return False, None


class SnapshotReader:
    """Reads a snapshot. ``gone`` makes the error for one that is not there any more. Safe from several threads."""

    def __init__(
        self,
        ebs: Ebs,
        snapshot_id: str,
        tokens: Tokens,
        gone: Callable[[], FarshoreError],
        size_bytes: int | None = None,
    ) -> None:
        self._ebs = ebs
        self._snapshot_id = snapshot_id
        self._tokens = tokens
        self._gone = gone
        self._size = size_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, bytes] = OrderedDict()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the bytes at ``offset``."""
        if self._size is not None and offset + len(buffer) > self._size:
            raise Invalid("the read reaches over the end of the disk", code="disk-size", field="offset")
        at = 0
        while at < len(buffer):
            index, skip = divmod(offset + at, BLOCK)
            length = min(BLOCK - skip, len(buffer) - at)
            buffer[at : at + length] = self._part(index, skip, length)
            at += length

    def read_held(self, offset: int, buffer: memoryview) -> bool:  # noqa: ARG002
        """Nothing is held here."""
        return False

    def block(self, index: int) -> bytes | None:
        """Return one block whole; None if it was never written."""
        try:
            for last in (False, True):
                token = self._tokens.of(index)
                if token is None:
                    return None
                try:
                    return self._ebs.get(self._snapshot_id, index, token)
                except FarshoreError as error:
                    if last or error.evidence.get("reason") != "INVALID_BLOCK_TOKEN":
                        raise
                    self._tokens.forget(index)  # they live for seven days
        except NotFound as error:
            raise self._gone() from error
        raise AssertionError("the loop returns or raises")

    def close(self) -> None:
        """Nothing is held open."""

    def _part(self, index: int, skip: int, length: int) -> memoryview | bytes:
        with self._lock:
            data = self._kept.get(index)
        if data is None:
            found = self.block(index)
            if found is None:
                return bytes(length)
            data = found
            if length < BLOCK:
                with self._lock:
                    self._kept[index] = data
                    while len(self._kept) > _KEPT_BLOCKS:
                        self._kept.popitem(last=False)
        return memoryview(data)[skip : skip + length]
