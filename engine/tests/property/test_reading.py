"""What a source sends of a chunk puts the same bytes at the target, and zeros cross nothing."""

from __future__ import annotations

from farshore.blocks.descriptors import leaf_runs
from farshore.blocks.digest import is_zero, leaf_digest
from farshore.replication.reading import ChunkReader, zero_runs
from farshore.transport.frames import Data
from farshore.units import CHUNK_SIZE, KIB, LEAF_SIZE
from hypothesis import given, settings
from hypothesis import strategies as st

SIZE = 5 * LEAF_SIZE + 700


class Memory:
    """A reader over bytes."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def read_into(self, offset: int, buffer: memoryview) -> None:
        assert offset + len(buffer) <= len(self.content)
        buffer[:] = self.content[offset : offset + len(buffer)]

    def close(self) -> None: ...


READER = ChunkReader()
PAYLOAD = memoryview(bytearray(CHUNK_SIZE))


def take(content: bytes, ranges: list[tuple[int, int]], block: int) -> tuple[list[tuple[int, int, bool]], bytes, bytes]:
    """Return what is sent of ``ranges``: pieces, digests of the leaves, data."""
    PAYLOAD[:] = b"\xee" * CHUNK_SIZE
    pieces, digests, filled = READER.read(Memory(content).read_into, len(content), ranges, block, PAYLOAD)
    return pieces, digests, bytes(PAYLOAD[:filled])


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """A small disk, mostly zeros, with data at places that matter."""
    content = bytearray(SIZE)
    for _ in range(draw(st.integers(0, 8))):
        edges = st.sampled_from([0, 4095, 4096, LEAF_SIZE - 1, LEAF_SIZE, SIZE - 1])
        at = draw(st.one_of(st.integers(0, SIZE - 1), edges))
        length = draw(st.sampled_from([1, 511, 4096, 10_000, LEAF_SIZE]))
        content[at : min(at + length, SIZE)] = b"\xaa" * (min(at + length, SIZE) - at)
    return bytes(content)


@st.composite
def requests(draw: st.DrawFn) -> list[tuple[int, int]]:
    granule = draw(st.sampled_from([512, 4096, 1]))
    bounds = sorted(draw(st.sets(st.integers(0, SIZE // granule), min_size=2, max_size=16)))
    return [(start * granule, (stop - start) * granule) for start, stop in zip(bounds[::2], bounds[1::2], strict=False)]


@settings(max_examples=300, deadline=None)
@given(contents(), requests(), st.sampled_from([4096, LEAF_SIZE]))
def test_the_pieces_are_the_disk(content: bytes, ranges: list[tuple[int, int]], block: int) -> None:
    pieces, digests, payload = take(content, ranges, block)
    Data(1, 0, pieces, b"", b"", b"").check_tiles(ranges)
    at = 0
    for offset, length, zero in pieces:
        if zero:
            assert not any(content[offset : offset + length])
        else:
            assert payload[at : at + length] == content[offset : offset + length]
            at += length
    assert at == len(payload)
    leaves = [leaf for first, stop in leaf_runs(ranges) for leaf in range(first, stop)]
    expected = [leaf_digest(content[leaf * LEAF_SIZE : (leaf + 1) * LEAF_SIZE]) for leaf in leaves]
    assert digests == b"".join(expected)


def plain_zero_runs(view: memoryview, start: int, block: int) -> list[tuple[int, int, bool]]:
    """What :func:`zero_runs` has to find, block by block."""
    runs: list[tuple[int, int, bool]] = []
    at = 0
    while at < len(view):
        stop = min(at + block - (start + at) % block, len(view))
        zero = not any(view[at:stop])
        if runs and runs[-1][2] is zero:
            runs[-1] = (runs[-1][0], stop, zero)
        else:
            runs.append((at, stop, zero))
        at = stop
    return runs


@settings(max_examples=500, deadline=None)
@given(contents(), st.integers(0, 9000), st.integers(1, SIZE), st.sampled_from([512, 4096, LEAF_SIZE]))
def test_zeros_are_found_as_if_block_by_block(content: bytes, start: int, size: int, block: int) -> None:
    view = memoryview(content)[start : start + size]
    assert list(zero_runs(view, start, block)) == plain_zero_runs(view, start, block)


def test_blocks_that_only_begin_with_zero_are_data() -> None:
    content = bytearray(SIZE)
    content[4095::4096] = b"\1" * len(content[4095::4096])
    assert list(zero_runs(memoryview(content), 0, 4096)) == [
        (0, SIZE // 4096 * 4096, False),
        (SIZE // 4096 * 4096, SIZE, True),
    ]


def test_a_whole_chunk_is_read_to_where_it_is_sent_from() -> None:
    """Nothing is moved within the buffer where no zeros are left out before it."""
    content = bytes(range(1, 256)) * (2 * CHUNK_SIZE // 255 + 1)
    for ranges in ([(0, CHUNK_SIZE)], [(LEAF_SIZE, LEAF_SIZE), (CHUNK_SIZE, 10 * LEAF_SIZE)]):
        pieces, digests, payload = take(content[: 2 * CHUNK_SIZE], ranges, 4096)
        assert [(offset, length) for offset, length, _ in pieces] == ranges
        assert payload == b"".join(content[offset : offset + length] for offset, length in ranges)
        assert len(digests) // 32 == sum(length for _, length in ranges) // LEAF_SIZE


@settings(max_examples=300, deadline=None)
@given(contents(), st.integers(0, 9000), st.sampled_from([512, 4096]))
def test_whole_zero_blocks_are_never_data(content: bytes, start: int, block: int) -> None:
    view = memoryview(content)[start:]
    runs = list(zero_runs(view, start, block))
    assert [run[0] for run in runs] == [0, *[run[1] for run in runs[:-1]]]
    assert runs[-1][1] == len(view)
    for low, high, zero in runs:
        if zero:
            assert is_zero(view[low:high]) or high - low > CHUNK_SIZE
        else:
            first = -(-(start + low) // block) * block
            for at in range(first, start + high - block + 1, block):
                assert any(content[at : at + block])


def test_touching_ranges_stay_apart() -> None:
    ranges = [(0, 4 * KIB), (4 * KIB, 4 * KIB), (8 * KIB, 120 * KIB)]
    for content in (bytes(SIZE), b"\1" * SIZE):
        pieces, _, _ = take(content, ranges, 4096)
        assert [(offset, length) for offset, length, _ in pieces] == ranges
