"""What was packed comes back, and nothing else gets into the buffer or past its end."""

from __future__ import annotations

import contextlib

import pytest
import zstandard
from farshore.errors import Corruption
from farshore.transport.packing import Packer, Unpacker
from hypothesis import given, settings
from hypothesis import strategies as st

CONTENT = b"the same again, " * 4096
PACKED = Packer().pack(memoryview(CONTENT))


def unpack(packed: bytes, size: int) -> bytes:
    """Unpack in front of a guard, which has to stay as it is."""
    buffer = bytearray(size + 64)
    buffer[size:] = b"\xa5" * 64
    view, payload = memoryview(bytearray(packed)), memoryview(buffer)[:size]
    try:
        Unpacker().unpack(view, payload)
    finally:
        view.release()  # nothing may hold on to the buffers, for others get them next
        payload.release()
        assert buffer[size:] == b"\xa5" * 64
    return bytes(buffer[:size])


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=1, max_size=2000), st.integers(1, 50))
def test_it_comes_back(content: bytes, times: int) -> None:
    content *= times
    assert unpack(Packer().pack(memoryview(content)), len(content)) == content


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"no frame",
        PACKED[:-1],
        PACKED + b"x",
        PACKED + PACKED,
        Packer().pack(memoryview(CONTENT + b"x")),
        Packer().pack(memoryview(bytes(1 << 28))),
        zstandard.ZstdCompressor(write_content_size=False).compress(CONTENT),
        zstandard.ZstdCompressor(dict_data=zstandard.ZstdCompressionDict(CONTENT[:512])).compress(CONTENT),
    ],
    ids=["empty", "noise", "cut", "rest", "twice", "larger", "bomb", "no-size", "dictionary"],
)
def test_another_frame_is_refused(packed: bytes) -> None:
    with pytest.raises(Corruption) as caught:
        unpack(packed, len(CONTENT))
    assert caught.value.code == "packed-data"


def test_a_frame_that_lies_about_its_size_is_refused() -> None:
    """The declared size fits, the content is a thousand times as long."""
    bomb = bytearray(Packer().pack(memoryview(bytes(1 << 26))))
    honest = Packer().pack(memoryview(bytes(1 << 26)))
    assert zstandard.get_frame_parameters(honest).content_size == 1 << 26
    at = honest.index((1 << 26).to_bytes(4, "little"))
    bomb[at : at + 4] = (1 << 16).to_bytes(4, "little")
    with pytest.raises(Corruption):
        unpack(bytes(bomb), 1 << 16)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(PACKED) * 8 - 1))
def test_a_flipped_bit_never_leaves_the_buffer(bit: int) -> None:
    flipped = bytearray(PACKED)
    flipped[bit // 8] ^= 1 << bit % 8
    with contextlib.suppress(Corruption):
        assert len(unpack(bytes(flipped), len(CONTENT))) == len(CONTENT)
