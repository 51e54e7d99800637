"""What a source does not answer: each refused with a code of its own, said once, and at the cost of nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import pack

import pytest
from doubles.datapath import DEADLINE_S
from doubles.raw_target import connect, open_session, take
from doubles.source_here import SourceHere
from farshore.errors import Reconnect
from farshore.model.grant import GrantDisk
from farshore.transport import frames
from farshore.transport.frames import Type
from farshore.units import CHUNK_SIZE, LEAF_SIZE, MIB

Build = Callable[[int], bytes]
#: Of the disk of 1 MiB.
LEAVES = MIB // LEAF_SIZE


@pytest.fixture
def here(tmp_path: Path) -> Iterator[SourceHere]:
    one = SourceHere(tmp_path)
    yield one
    one.close()


def keeps_nothing(here: SourceHere) -> bool:
    """Whether all buffers come back; the last does so just after its answer was sent."""
    deadline = time.monotonic() + DEADLINE_S
    while here.service.buffers.lent_bytes and time.monotonic() < deadline:
        time.sleep(0.005)
    return here.service.buffers.lent_bytes == 0


def granted(key: str = "db/vda", size_bytes: int = MIB, point: str = "pt-1") -> dict[str, object]:
    """The part of a grant that names its disk."""
    return {"disks": (GrantDisk(disk_key=key, size_bytes=size_bytes, source_point=point),)}


REFUSED: dict[str, tuple[Build, str]] = {
    "READ over the end": (lambda n: frames.Read(n, 0, ((MIB - 512, 1024),)).encode(5), "read-range"),
    "READ far behind the end": (lambda n: frames.Read(n, 0, ((1 << 63, 4096),)).encode(5), "read-range"),
    "READ of a disk that is not granted": (lambda n: frames.Read(n, 1, ((0, 512),)).encode(5), "disk-not-granted"),
    "READ of the last disk": (
        lambda n: frames.Read(n, 2**32 - 1, ((0, 512),)).encode(5),
        "disk-not-granted",
    ),
    "READ of no session": (lambda n: frames.Read(n ^ 1, 0, ((0, 512),)).encode(5), "session-unknown"),
    "READ of session 0": (lambda _: frames.Read(0, 0, ((0, 512),)).encode(5), "session-unknown"),
    "LIST behind the end": (lambda n: frames.List(n, 0, False, MIB + 1).encode(5), "list-range"),
    "LIST since no base": (lambda n: frames.List(n, 0, True, 0).encode(5), "base-not-granted"),
    "LIST of no session": (lambda n: frames.List(n ^ 1, 0, False, 0).encode(5), "session-unknown"),
    "DIGEST over the end": (lambda n: frames.Digests(n, 0, LEAVES - 1, 2).encode(5), "digest-range"),
    "DIGEST far behind the end": (lambda n: frames.Digests(n, 0, 2**64 - 1, 1).encode(5), "digest-range"),
    "OPEN with rubbish": (lambda _: frames.Open("rubbish", 4096).encode(5), "grant-invalid"),
    "OPEN with nothing": (lambda _: frames.Open("", 4096).encode(5), "grant-invalid"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_names_its_reason_once_and_the_connection_goes_on(
    here: SourceHere, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    build, expected = REFUSED[name]
    with connect(here.sites) as connection, caplog.at_level(logging.INFO):
        number = open_session(connection, here.sites.params(here.sites.point()).grant)
        for _ in range(20):
            connection.sendall(build(number))
            header, meta, _payload = take(connection)
            assert (header.type, header.request) == (Type.ERROR, 5)
            assert frames.decode_error(meta).code == expected
        connection.sendall(frames.Read(number, 0, ((0, 4096),)).encode(6))
        assert take(connection)[0].request == 6
    assert keeps_nothing(here)
    said = [record for record in caplog.records if "refused" in record.message]
    assert len(said) == 1
    assert expected in said[0].message


def test_a_peer_that_varies_what_it_asks_is_not_said_more_often(
    here: SourceHere, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(here.sites) as connection, caplog.at_level(logging.INFO):
        number = open_session(connection, here.sites.params(here.sites.point()).grant)
        for index in range(50):
            connection.sendall(frames.Read(number ^ (index + 1), 0, ((0, 512),)).encode(5))
            connection.sendall(frames.Read(number, index + 1, ((0, 512),)).encode(5))
            connection.sendall(frames.Open("x" * index, 4096).encode(5))
            for _ in range(3):
                take(connection)
    assert len([record for record in caplog.records if "refused" in record.message]) == 3


BROKEN: dict[str, Build] = {
    "READ of more than a chunk": lambda n: frames.Read(n, 0, ((0, CHUNK_SIZE), (CHUNK_SIZE, 512))).encode(5),
    "READ of 4 GiB": lambda n: frames.Read(n, 0, ((0, 2**32 - 1),)).encode(5),
    "READ of nothing": lambda n: frames.Read(n, 0, ()).encode(5),
    "READ backwards": lambda n: frames.Read(n, 0, ((4096, 512), (0, 512))).encode(5),
    "READ of too many ranges": lambda n: frames.Read(n, 0, tuple((at * 2, 1) for at in range(513))).encode(5),
    "READ cut off": lambda n: frames.encode(Type.READ, 5, pack(">QIQ", n, 0, 0)),
    "LIST of too much": lambda n: frames.encode(Type.LIST, 5, pack(">QIBQI", n, 0, 0, 0, 2**32 - 1)),
    "DIGEST of too much": lambda n: frames.encode(Type.DIGEST, 5, pack(">QIQI", n, 0, 0, 2**32 - 1)),
    "CLOSE cut off": lambda _: frames.encode(Type.CLOSE, 5, b"123"),
    "OPEN without a grant": lambda _: frames.encode(Type.OPEN, 5, b"{}"),
    "OPEN that is no JSON": lambda _: frames.encode(Type.OPEN, 5, b"\xff" * 100),
    "an answer": lambda n: frames.encode_closed(5, n, {}),
    "another greeting": lambda _: frames.Hello().encode(),
    "no frame": lambda _: bytes(100),
    "a meta part of 4 GiB": lambda _: frames.MAGIC + b"\6" + bytes(7) + b"\xff" * 16,
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_the_protocol_ends_its_connection_and_no_other(here: SourceHere, name: str) -> None:
    with connect(here.sites) as other, connect(here.sites) as connection:
        number = open_session(other, here.sites.params(here.sites.point()).grant)
        connection.sendall(BROKEN[name](number))
        with pytest.raises((EOFError, OSError, Reconnect)):
            take(connection)
        other.sendall(frames.Read(number, 0, ((0, 4096),)).encode(6))
        assert take(other)[0].request == 6
    assert keeps_nothing(here)


GRANTS: dict[str, tuple[dict[str, object], str]] = {
    "another disk": (
        {"disks": (GrantDisk(disk_key="db/vdz", size_bytes=MIB, source_point="pt-1"),)},
        "disk-not-in-point",
    ),
    "another size": (
        {"disks": (GrantDisk(disk_key="db/vda", size_bytes=512, source_point="pt-1"),)},
        "disk-size-changed",
    ),
    "another point": (
        {"disks": (GrantDisk(disk_key="db/vda", size_bytes=MIB, source_point="pt-9"),)},
        "source-point-gone",
    ),
    "another source node": ({"source_node": "alpha-2"}, "grant-of-another-node"),
    "another target node": ({"target_node": "beta-2"}, "grant-of-another-node"),
    "another certificate": ({"target_thumbprint": "00"}, "grant-of-another-node"),
    "a time that is over": ({"not_after": 1.0}, "grant-expired"),
    "a time to come": ({"not_before": 1e12, "not_after": 2e12}, "grant-expired"),
    "a stale generation": ({"generation": -1}, "stale-generation"),
    "a stale epoch": ({"epoch": 4}, "stale-term"),
    "a stale term": ({"term": 4}, "stale-term"),
}


@pytest.mark.parametrize("name", GRANTS)
def test_a_grant_for_something_else_opens_nothing(here: SourceHere, name: str) -> None:
    changes, expected = GRANTS[name]
    snapshot = here.sites.point()
    with connect(here.sites) as connection:
        number = open_session(connection, here.sites.params(snapshot, epoch=5, term=5).grant)
        connection.sendall(
            frames.Open(here.sites.params(snapshot, epoch=5, term=5, grant=changes).grant, 4096).encode(2)
        )
        header, meta, _payload = take(connection)
        assert header.type is Type.ERROR
        assert frames.decode_error(meta).code == expected
        connection.sendall(frames.Read(number, 0, ((0, 4096),)).encode(3))
        assert take(connection)[0].request == 3, "what is open stays open"
    assert len(here.service.sessions()) == 1
