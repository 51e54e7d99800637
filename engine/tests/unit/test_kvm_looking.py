"""Pictures of screens: what QEMU gives becomes a PNG."""

from __future__ import annotations

import struct
import zlib

import pytest
from farshore.errors import Permanent
from farshore.platforms.kvm import looking


def test_a_png_is_left_alone_and_a_ppm_becomes_one() -> None:
    pixels = bytes(range(18))  # the first are white space
    made = looking.png(b"P6\n3 2\n255\n" + pixels)
    assert looking.png(made) == made
    assert struct.unpack(">II", made[16:24]) == (3, 2)
    start = made.index(b"IDAT") + 4
    length = struct.unpack(">I", made[start - 8 : start - 4])[0]
    rows = zlib.decompress(made[start : start + length])
    assert rows == b"\0" + pixels[:9] + b"\0" + pixels[9:]


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a", b"P6\n3 2\n255\n\0", b"P6\n3 2\n65535\n" + bytes(36), b"P5\n1 1\n255\n\0"]
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(Permanent):
        looking.png(data)
