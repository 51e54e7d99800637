"""Ranges as bytes: for each a varint gap since the last one's end, and a varint length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from farshore.journal.log import BODY_MAX

#: Ranges in one body: two varints of at most 9 bytes each stay below the largest body of a record.
_RANGES_MAX: Final = BODY_MAX // 18


def encode_ranges(ranges: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """Yield record bodies that hold ascending ranges ``(start, stop)``.

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
