"""Frames of a real session: they are what they were at the first release, and no bit of them may be another."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from farshore.errors import Corruption, FarshoreError, Reconnect
from farshore.transport import frames
from farshore.transport.frames import Type

GOLDEN = Path(__file__).with_name("golden") / "session.txt"
EPOCH = 1


def recorded() -> list[tuple[str, bytes, bytes]]:
    """Return ``(type, header and meta part, payload)`` of a session that was recorded once."""
    rows = []
    for line in GOLDEN.read_text(encoding="ascii").splitlines():
        name, head, payload = line.split(" ")
        rows.append((name, bytes.fromhex(head), bytes.fromhex(payload)))
    return rows


def decode(head: bytes, payload: bytes) -> Any:
    """Take a frame apart, as a node would; raise what it would."""
    header = frames.decode_header(head[: frames.HEADER.size])
    meta = head[frames.HEADER.size :]
    if len(meta) != header.meta_size or len(payload) != header.payload_size:
        raise Reconnect("the connection ended inside of a frame")
    frames.check_meta(header, meta)
    if header.type in {Type.DATA, Type.ZERO}:
        data = frames.Data.decode(meta, len(payload))
        data.check(EPOCH, memoryview(payload))
        return data
    return {
        Type.HELLO: frames.Hello.decode,
        Type.OPEN: frames.Open.decode,
        Type.OPENED: frames.Opened.decode,
        Type.LIST: frames.List.decode,
        Type.EXTENTS: frames.Extents.decode,
        Type.READ: frames.Read.decode,
        Type.DIGEST: lambda one: frames.Digests.decode(one, answer=False),
        Type.DIGESTS: lambda one: frames.Digests.decode(one, answer=True),
        Type.CLOSE: bytes,
        Type.CLOSED: bytes,
        Type.ERROR: frames.decode_error,
    }[header.type](meta)


def test_every_type_that_a_session_has_was_recorded() -> None:
    kinds = {name for name, _, _ in recorded()}
    assert kinds >= {"HELLO", "OPEN", "OPENED", "LIST", "EXTENTS", "READ", "DATA", "ZERO", "DIGEST", "DIGESTS", "CLOSE"}


@pytest.mark.parametrize("index", range(len(recorded())))
def test_a_recorded_frame_is_made_the_same_again(index: int) -> None:
    name, head, payload = recorded()[index]
    found = decode(head, payload)
    request = frames.decode_header(head[: frames.HEADER.size]).request
    if name == "HELLO":
        assert found.encode() == head
    elif name in {"OPEN", "OPENED", "LIST", "EXTENTS", "READ", "DIGEST", "DIGESTS"}:
        assert found.encode(request) == head
    elif name in {"DATA", "ZERO"}:
        made = frames.Data.encode(
            request, found.session, found.disk, EPOCH, found.pieces, found.leaf_digests, memoryview(payload)
        )
        assert made == head


@pytest.mark.parametrize("index", range(len(recorded())))
def test_every_bit_of_a_recorded_frame_counts(index: int) -> None:
    _, head, payload = recorded()[index]
    whole = bytearray(head + payload)
    for bit in range(len(whole) * 8):
        whole[bit // 8] ^= 1 << bit % 8
        try:
            decode(bytes(whole[: len(head)]), bytes(whole[len(head) :]))
        except (Reconnect, Corruption):
            pass
        except FarshoreError as error:
            raise AssertionError(f"bit {bit} gave {error!r}") from error
        else:
            raise AssertionError(f"bit {bit} passed")
        finally:
            whole[bit // 8] ^= 1 << bit % 8


def test_a_digest_that_is_right_for_another_place_is_refused() -> None:
    """Misdirected data: whole and well-formed, but of another disk, session, epoch or offset."""
    _, head, payload = next(row for row in recorded() if row[0] == "DATA")
    meta = bytearray(head[frames.HEADER.size :])
    for at in (7, 11, 36 + 7):  # last bytes of session, disk, first offset
        moved = bytearray(meta)
        moved[at] ^= 1
        guarded = bytearray(head[: frames._GUARDED.size])
        guarded[-4:] = crc32(moved).to_bytes(4, "big")
        again = bytes(guarded) + crc32(guarded).to_bytes(4, "big") + bytes(moved)
        with pytest.raises((Corruption, Reconnect)):
            decode(again, payload)
    found = frames.Data.decode(bytes(meta), len(payload))
    with pytest.raises(Corruption):
        found.check(EPOCH + 1, memoryview(payload))
