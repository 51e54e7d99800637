"""Golden frames, and what a frame must not do. The bytes are frozen: nodes of two releases talk to each other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from farshore.errors import Corruption, FarshoreError, Fenced, Permanent, Reconnect
from farshore.transport import frames
from farshore.transport.frames import Type
from farshore.transport.packing import Unpacker
from farshore.units import MIB

PAYLOAD = b"farshore" * 512
#: The same as one zstd frame; frozen, for another release of the library may pack it otherwise.
PACKED = bytes.fromhex("28b52ffd60000f7d00004066617273686f72650100f59f5fb8")
GOLDEN = Path(__file__).with_name("golden_frames.txt")


def samples() -> dict[str, tuple[bytes, bytes]]:
    """One of each frame: (header and meta part, payload)."""
    opened = frames.Opened(7, 3, (frames.OpenedDisk("web/vda", MIB, incremental=False, reason="first"),))
    pieces = [(0, 4096, False), (4096, 4096, True)]
    data = frames.Data.encode(5, 7, 0, 3, pieces, b"\1" * 32, memoryview(PAYLOAD))
    packed = frames.Data.encode(5, 7, 0, 3, pieces, b"\1" * 32, memoryview(PAYLOAD), len(PACKED))
    zero = frames.Data.encode(6, 7, 0, 3, [(8192, 4096, True)], b"\2" * 32, memoryview(b""))
    error = Fenced("taken over", code="stale-term", hint="Stop.", group="g")
    return {
        "HELLO": (frames.Hello(software="golden").encode(), b""),
        "HELLO-source": (frames.Hello(software="golden", features=frames.ROLE_SOURCE).encode(), b""),
        "OPEN": (frames.Open("body.signature", 4096).encode(1), b""),
        "OPEN-compress": (frames.Open("body.signature", 4096, compress=True).encode(1), b""),
        "OPENED": (opened.encode(1), b""),
        "LIST": (frames.List(7, 0, since_base=True, offset=512, limit=10).encode(2), b""),
        "EXTENTS": (frames.Extents(7, 0, True, [(0, 4096, False), (8192, 512, True)]).encode(2), b""),
        "READ": (frames.Read(7, 0, ((0, 8192), (1 << 40, 512))).encode(5), b""),
        "DATA": (data, PAYLOAD),
        "DATA-packed": (packed, PACKED),
        "ZERO": (zero, b""),
        "DIGEST": (frames.Digests(7, 0, 16, 2).encode(8), b""),
        "DIGESTS": (frames.Digests(7, 0, 16, 2, b"\3" * 64).encode(8), b""),
        "CLOSE": (frames.encode_close(9, 7), b""),
        "CLOSED": (frames.encode_closed(9, 7, {"sent_bytes": 5}), b""),
        "ERROR": (frames.encode_error(10, error), b""),
    }


def receive(data: bytes) -> object:
    """Decode a whole frame as a node would; raise what a node would."""
    header = frames.decode_header(data[: frames.HEADER.size])
    meta = data[frames.HEADER.size : frames.HEADER.size + header.meta_size]
    payload = data[frames.HEADER.size + header.meta_size :]
    if len(meta) < header.meta_size or len(payload) < header.payload_size:
        raise Reconnect("the connection ended inside of a frame")
    frames.check_meta(header, meta)
    view = memoryview(payload)[: header.payload_size]
    match header.type:
        case Type.HELLO:
            return frames.Hello.decode(meta)
        case Type.OPEN:
            return frames.Open.decode(meta)
        case Type.OPENED:
            return frames.Opened.decode(meta)
        case Type.LIST:
            return frames.List.decode(meta)
        case Type.EXTENTS:
            return frames.Extents.decode(meta)
        case Type.READ:
            return frames.Read.decode(meta)
        case Type.DATA | Type.ZERO:
            chunk = frames.Data.decode(meta, len(view), compressed=header.compressed)
            if header.compressed:
                packed, view = view, memoryview(bytearray(chunk.size_bytes))
                Unpacker().unpack(packed, view)
            chunk.check(3, view)
            return chunk, bytes(view)
        case Type.DIGEST | Type.DIGESTS:
            return frames.Digests.decode(meta, answer=header.type is Type.DIGESTS)
        case Type.CLOSE:
            return frames.decode_close(meta)
        case Type.CLOSED:
            return frames.decode_closed(meta)
        case Type.ERROR:
            return frames.decode_error(meta).to_dict()


def test_golden_frames() -> None:
    frozen = dict(line.split() for line in GOLDEN.read_text(encoding="ascii").splitlines())
    assert {name: head.hex() for name, (head, _) in samples().items()} == frozen


@pytest.mark.parametrize("name", sorted(samples()))
def test_every_frame_comes_back_as_it_was(name: str) -> None:
    head, payload = samples()[name]
    header = frames.decode_header(head[: frames.HEADER.size])
    assert header.type.name == name.partition("-")[0]
    assert header.payload_size == len(payload)
    assert receive(head + payload) is not None


@pytest.mark.parametrize("name", sorted(samples()))
def test_every_flipped_bit_is_found(name: str) -> None:
    head, payload = samples()[name]
    whole = bytearray(head + payload)
    for bit in (
        range(len(whole) * 8) if name != "DATA" else [*range(len(head) * 8), *range(len(head) * 8, len(whole) * 8, 13)]
    ):
        whole[bit // 8] ^= 1 << bit % 8
        try:
            taken = receive(bytes(whole))
        except (Reconnect, Corruption):
            pass
        else:  # a bit of a zstd frame that means nothing may differ; what comes out may not
            assert name == "DATA-packed"
            assert bit >= len(head) * 8
            assert taken == receive(head + payload)
        whole[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("name", sorted(samples()))
def test_every_cut_is_found(name: str) -> None:
    head, payload = samples()[name]
    for size in range(frames.HEADER.size, len(head) + len(payload)):
        with pytest.raises(Reconnect):
            receive((head + payload)[:size])


def test_a_chunk_is_bound_to_its_place() -> None:
    head, payload = samples()["DATA"]
    chunk = frames.Data.decode(head[frames.HEADER.size :], len(payload))
    chunk.check(3, memoryview(payload))
    for other in (
        frames.Data(8, chunk.disk, chunk.pieces, chunk.leaf_digests, chunk.table, chunk.digest),
        frames.Data(chunk.session, 1, chunk.pieces, chunk.leaf_digests, chunk.table, chunk.digest),
        frames.Data(chunk.session, chunk.disk, chunk.pieces, chunk.leaf_digests, b"?" + chunk.table[1:], chunk.digest),
    ):
        with pytest.raises(Corruption):
            other.check(3, memoryview(payload))
    with pytest.raises(Corruption):
        chunk.check(4, memoryview(payload))


def chunk(*pieces: tuple[int, int, bool]) -> frames.Data:
    return frames.Data(1, 0, pieces, b"", b"", b"")


@pytest.mark.parametrize(
    ("pieces", "ranges"),
    [
        ([(0, 8, False)], [(0, 4)]),
        ([(0, 4, False)], [(0, 8)]),
        ([(0, 4, False)], [(0, 4), (8, 4)]),
        ([(0, 4, False), (8, 4, False)], [(0, 4)]),
        ([(4, 4, False)], [(0, 4)]),
        ([(0, 4, False), (4, 4, True)], [(0, 4), (8, 4)]),
        ([(0, 2, False), (3, 1, True)], [(0, 4)]),
        ([(0, 0, True), (0, 4, False)], [(0, 4)]),
        ([], [(0, 4)]),
    ],
)
def test_data_outside_of_what_was_asked_is_refused(
    pieces: list[tuple[int, int, bool]], ranges: list[tuple[int, int]]
) -> None:
    with pytest.raises(Corruption, match="not asked for"):
        chunk(*pieces).check_tiles(ranges)


def test_pieces_that_tile_what_was_asked_are_taken() -> None:
    chunk((0, 4, False), (8, 2, True), (10, 2, False)).check_tiles([(0, 4), (8, 4)])


def bad_metas() -> Iterator[tuple[str, bytes]]:
    yield "HELLO", b"\0"
    yield "HELLO", frames.Hello(software="x").encode()[frames.HEADER.size :] + b"x" * 80
    yield "OPEN", b"{"
    yield "OPEN", b"[]"
    yield "OPEN", b'{"grant": 1, "zero_block": 4096}'
    yield "OPEN", b'{"grant": "g", "zero_block": 1}'
    yield "OPENED", b'{"session": 1, "epoch": 1, "disks": [[1, 2]]}'
    yield "OPENED", b"{}"
    yield "LIST", b"\0" * 24
    most = frames.List(1, 0, since_base=True, offset=0, limit=1).encode(1)
    yield "LIST", most[frames.HEADER.size : -4] + b"\xff" * 4
    yield "EXTENTS", b"\0" * 12
    yield "EXTENTS", frames.Extents(1, 0, True, []).encode(1)[frames.HEADER.size :]
    yield "EXTENTS", frames.Extents(1, 0, False, [(8, 8, False), (0, 8, False)]).encode(1)[frames.HEADER.size :]
    yield "EXTENTS", frames.Extents(1, 0, False, [(8, 0, False)]).encode(1)[frames.HEADER.size :]
    yield "READ", b"\0" * 12
    yield "READ", frames.Read(1, 0, ((8, 8), (8, 8))).encode(1)[frames.HEADER.size :]
    yield "READ", frames.Read(1, 0, ((8, 0),)).encode(1)[frames.HEADER.size :]
    yield "READ", frames.Read(1, 0, ((0, MIB), (MIB, 1))).encode(1)[frames.HEADER.size :]
    yield "READ", frames.Read(1, 0, tuple((at * 2, 1) for at in range(513))).encode(1)[frames.HEADER.size :]
    yield "ZERO", b"\0" * 10
    yield "ZERO", frames.Data.encode(1, 1, 0, 3, [(0, 8, False)], b"", memoryview(b""))[frames.HEADER.size :]
    yield "OPEN", b'{"grant": "g", "zero_block": 4096, "compress": "always"}'
    yield "DIGEST", b"\0" * 24
    yield "DIGEST", frames.Digests(1, 0, 0, 1025).encode(1)[frames.HEADER.size :]
    yield "DIGESTS", frames.Digests(1, 0, 0, 2, b"x" * 63).encode(1)[frames.HEADER.size :]
    yield "CLOSE", b"\0" * 7
    yield "ERROR", b"nonsense"


@pytest.mark.parametrize(("name", "meta"), list(bad_metas()))
def test_meta_parts_that_break_a_rule_are_refused(name: str, meta: bytes) -> None:
    with pytest.raises(Reconnect, match="broke the protocol"):
        receive(frames.encode(Type[name], 1, meta))


@pytest.mark.parametrize(
    ("meta_size", "payload_size", "kind"),
    [
        (frames.MAX_META + 1, 0, Type.READ),
        (0, MIB + 1, Type.DATA),
        (0, 1, Type.READ),
        (2**32 - 1, 2**32 - 1, Type.DATA),
    ],
)
def test_a_frame_that_asks_for_too_much_memory_is_refused(meta_size: int, payload_size: int, kind: Type) -> None:
    from zlib import crc32

    guarded = frames._GUARDED.pack(frames.MAGIC, kind, 0, 0, 1, meta_size, payload_size, 0)
    with pytest.raises(Reconnect, match="too large"):
        frames.decode_header(guarded + crc32(guarded).to_bytes(4))


def test_only_data_may_be_compressed() -> None:
    for kind in set(Type) - {Type.DATA}:
        with pytest.raises(Reconnect, match="broke the protocol"):
            frames.decode_header(frames.encode(kind, 1, b"", compressed=True))


@pytest.mark.parametrize(
    ("pieces", "packed_size"),
    [
        ([(0, 4096, True)], 1),
        ([(0, 4096, False)], 0),
        ([(0, 4096, False)], 4096),
        ([(0, MIB, False), (MIB, 1, False)], 100),
        ([(at * MIB, MIB, False) for at in range(1000)], 100),
    ],
)
def test_what_was_compressed_became_smaller_and_was_no_more_than_a_chunk(
    pieces: list[tuple[int, int, bool]], packed_size: int
) -> None:
    meta = frames.Data.encode(1, 1, 0, 3, pieces, b"", memoryview(b"x"), packed_size)[frames.HEADER.size :]
    with pytest.raises(Reconnect, match="not as long as its pieces"):
        frames.Data.decode(meta, packed_size, compressed=True)


def test_what_is_sent_too_large_is_our_bug() -> None:
    with pytest.raises(ValueError, match="too large"):
        frames.encode(Type.READ, 1, bytes(frames.MAX_META + 1))


def test_versions_meet_at_the_highest_that_both_speak() -> None:
    assert frames.Hello(1, 9).agree() == 1
    with pytest.raises(Permanent) as caught:
        frames.Hello(2, 9).agree()
    assert caught.value.code == "protocol-version"


def test_errors_keep_their_duty_and_evidence() -> None:
    for error in (
        Fenced("a", code="b", hint="c", field="d", term=1),
        Reconnect("x" * 300_000, evidence_of="y" * 300_000),
    ):
        frame = frames.encode_error(3, error)
        back = frames.decode_error(frame[frames.HEADER.size :])
        assert type(back) is type(error)
        assert isinstance(back, FarshoreError)
        assert back.code == error.code
