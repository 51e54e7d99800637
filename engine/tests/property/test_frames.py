"""No input makes the codec do anything but return a frame or refuse it."""

from __future__ import annotations

import contextlib

from farshore.blocks.digest import DIGEST_SIZE
from farshore.errors import Corruption, Reconnect
from farshore.transport import frames
from farshore.transport.frames import Type
from hypothesis import given, settings
from hypothesis import strategies as st

u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)


@st.composite
def ascending(draw: st.DrawFn, most: int = 20) -> list[tuple[int, int]]:
    bounds = sorted(draw(st.sets(st.integers(0, 1 << 20), max_size=2 * most)))
    return [(start, stop - start) for start, stop in zip(bounds[::2], bounds[1::2], strict=False)]


def meta_of(frame: bytes) -> bytes:
    header = frames.decode_header(frame[: frames.HEADER.size])
    meta = frame[frames.HEADER.size :]
    assert len(meta) == header.meta_size
    frames.check_meta(header, meta)
    return meta


@settings(max_examples=300)
@given(u64, u32, st.booleans(), u64, st.integers(1, frames.MAX_EXTENTS), u32)
def test_list_round_trip(session: int, disk: int, since: bool, offset: int, limit: int, request: int) -> None:
    question = frames.List(session, disk, since, offset, limit)
    assert frames.List.decode(meta_of(question.encode(request))) == question


@settings(max_examples=300)
@given(u64, u32, ascending(), st.data())
def test_extents_round_trip(session: int, disk: int, ranges: list[tuple[int, int]], data: st.DataObject) -> None:
    rows = [(offset, length, data.draw(st.booleans())) for offset, length in ranges]
    answer = frames.Extents(session, disk, bool(rows) and data.draw(st.booleans()), rows)
    assert frames.Extents.decode(meta_of(answer.encode(1))) == answer


@settings(max_examples=300)
@given(u64, u32, ascending().filter(bool))
def test_read_round_trip(session: int, disk: int, ranges: list[tuple[int, int]]) -> None:
    question = frames.Read(session, disk, tuple(ranges))
    assert frames.Read.decode(meta_of(question.encode(1))) == question


@settings(max_examples=300)
@given(u64, u32, u64, ascending().filter(bool), st.data())
def test_data_round_trip_and_its_place(
    session: int, disk: int, epoch: int, ranges: list[tuple[int, int]], data: st.DataObject
) -> None:
    small = [(offset, min(length, 64)) for offset, length in ranges]
    pieces = [(offset, length, data.draw(st.booleans())) for offset, length in small]
    payload = data.draw(st.binary(min_size=(n := sum(p[1] for p in pieces if not p[2])), max_size=n))
    digests = bytes(DIGEST_SIZE) * data.draw(st.integers(0, 5))
    frame = frames.Data.encode(1, session, disk, epoch, pieces, digests, memoryview(payload))
    chunk = frames.Data.decode(meta_of(frame), len(payload))
    assert list(chunk.pieces) == pieces
    assert chunk.leaf_digests == digests
    chunk.check(epoch, memoryview(payload))
    chunk.check_tiles(small)
    if payload:
        at = data.draw(st.integers(0, len(payload) * 8 - 1))
        flipped = bytearray(payload)
        flipped[at // 8] ^= 1 << at % 8
        try:
            chunk.check(epoch, memoryview(flipped))
        except Corruption:
            pass
        else:
            raise AssertionError("a flipped bit passed")


@settings(max_examples=300)
@given(u64, u32, u64, st.integers(1, frames.MAX_DIGESTS), st.booleans())
def test_digests_round_trip(session: int, disk: int, first: int, count: int, answer: bool) -> None:
    frame = frames.Digests(session, disk, first, count, b"\7" * (DIGEST_SIZE * count) if answer else b"")
    assert frames.Digests.decode(meta_of(frame.encode(1)), answer=answer) == frame


@settings(max_examples=500)
@given(st.sampled_from(list(Type)), st.binary(max_size=400), st.integers(0, 400))
def test_any_meta_part_is_decoded_or_refused(kind: Type, meta: bytes, payload_size: int) -> None:
    decoders = {
        Type.HELLO: frames.Hello.decode,
        Type.OPEN: frames.Open.decode,
        Type.OPENED: frames.Opened.decode,
        Type.LIST: frames.List.decode,
        Type.EXTENTS: frames.Extents.decode,
        Type.READ: frames.Read.decode,
        Type.DATA: lambda data: frames.Data.decode(data, payload_size),
        Type.ZERO: lambda data: frames.Data.decode(data, 0),
        Type.DIGEST: lambda data: frames.Digests.decode(data, answer=False),
        Type.DIGESTS: lambda data: frames.Digests.decode(data, answer=True),
        Type.CLOSE: frames.decode_close,
        Type.CLOSED: frames.decode_closed,
        Type.ERROR: frames.decode_error,
    }
    with contextlib.suppress(Reconnect):
        decoders[kind](meta)


@settings(max_examples=500)
@given(st.binary(min_size=28, max_size=28))
def test_any_header_is_refused_unless_its_checksum_fits(data: bytes) -> None:
    try:
        frames.decode_header(data)
    except Reconnect:
        return
    raise AssertionError("random bytes were taken for a frame")
