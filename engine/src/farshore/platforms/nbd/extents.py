"""Extents of an export, as the platform contract names them."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

from farshore.platforms.contract import Extent, Kind
from farshore.platforms.nbd import protocol as p
from farshore.platforms.nbd.client import Connection, Status


def allocated(connection: Connection) -> Iterator[Extent]:
    """Yield what holds data; all else reads as zero."""
    for part in connection.block_status(p.ALLOCATION):
        if not part.flags & p.STATE_ZERO:
            yield Extent(part.offset, part.length, Kind.DATA)


def changed(dirty: Iterable[tuple[int, int]], connection: Connection) -> Iterator[Extent]:
    """Yield the ``dirty`` ranges (offset, end), told apart into data and zeroes by the export's allocation."""
    for offset, end in dirty:
        for part in connection.block_status(p.ALLOCATION, offset, end - offset):
            yield Extent(part.offset, part.length, Kind.ZERO if part.flags & p.STATE_ZERO else Kind.DATA)


def dirty(parts: Iterable[Status], size_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges (offset, end) of a dirty bitmap's status, cut at ``size_bytes``."""
    for part in parts:
        if part.flags & p.STATE_DIRTY and part.offset < size_bytes:
            yield part.offset, min(part.offset + part.length, size_bytes)


def union(*ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the union of sorted ranges (offset, end), sorted, neighbours joined."""
    held: tuple[int, int] | None = None
    for offset, end in heapq.merge(*ranges):
        if held and offset <= held[1]:
            held = held[0], max(held[1], end)
        else:
            if held:
                yield held
            held = offset, end
    if held:
        yield held
