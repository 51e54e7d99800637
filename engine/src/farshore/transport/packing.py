"""Payloads as zstd, at both ends of a connection. One instance per thread: a zstd context serves one at a time."""

from __future__ import annotations

from typing import Final

import zstandard

from farshore.errors import Corruption
from farshore.units import CHUNK_SIZE

#: The fastest level that still finds what disks repeat; one more costs half as much again.
LEVEL: Final = 1


class Packer:
    """Compresses payloads."""

    def __init__(self) -> None:
        self._context = zstandard.ZstdCompressor(level=LEVEL, write_checksum=False)

    def pack(self, payload: memoryview) -> bytes:
        """Return ``payload`` as one zstd frame, which may be the larger of the two."""
        return self._context.compress(payload)


class Unpacker:
    """Decompresses payloads into a buffer of the caller: what a peer sends decides over no memory."""

    def __init__(self) -> None:
        self._context = zstandard.ZstdDecompressor(max_window_size=CHUNK_SIZE)

    def unpack(self, packed: memoryview, payload: memoryview) -> None:
        """Fill ``payload`` from the one zstd frame in ``packed``.

        Raises:
            Corruption: no such frame, or one of another size; nothing is read past the end of ``payload``.
        """
        try:
            declared = zstandard.get_frame_parameters(packed)
            if declared.content_size != payload.nbytes or declared.dict_id:
                raise _broken("is of another size than its pieces")
            reader = self._context.stream_reader(packed)
            try:
                fits = reader.readinto(payload) == payload.nbytes and not reader.read(1)
            finally:
                del reader  # it holds on to ``packed``, also through the traceback of an error
            if not fits:
                raise _broken("is of another size than it says")
        except zstandard.ZstdError as error:
            raise _broken(str(error)) from error


def _broken(reason: str) -> Corruption:
    return Corruption(f"a compressed chunk {reason}", code="packed-data")
