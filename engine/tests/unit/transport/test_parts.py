"""Which part of a node a connection is for, read off its first bytes, and how it gets there."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from farshore.testing.pki import TestAuthority
from farshore.transport import frames
from farshore.transport.parts import Door, hand_over, name_of, wanted_by

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        caller = socket.create_connection(server.getsockname())
        taken, _ = server.accept()
    caller.settimeout(60)
    taken.settimeout(60)
    with caller, taken:
        yield caller, taken


def hello(name: str | None) -> bytes:
    """Return the first message of a TLS handshake."""
    outgoing = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


@pytest.mark.parametrize(
    ("sent", "part"),
    [
        (hello(name_of(1)), 1),
        (hello(name_of(12)), 12),
        (hello(name_of(0)), 0),
        (hello("example.org"), 0),
        (hello("part-01.farshore"), 0),
        (hello("xpart-1.farshore"), 0),
        (hello("part-1.farshore.example"), 0),
        (b"GET / HTTP/1.1\r\n\r\n", 0),
        (b"\x00" * 40000, 0),
        (b"\x16\x03\x01\xff\xff" + bytes(30000), 0),
    ],
)
def test_the_part_is_read_and_nothing_is_taken_off(pair: Pair, sent: bytes, part: int):
    caller, taken = pair
    sender = threading.Thread(target=lambda: caller.sendall(sent))
    sender.start()
    assert wanted_by(taken) == part
    found = b""
    while len(found) < len(sent):
        found += taken.recv(1 << 16)
    sender.join()
    assert found == sent


def test_a_first_message_that_comes_byte_by_byte_is_waited_for(pair: Pair):
    caller, taken = pair
    caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sent = hello(name_of(3))
    found: list[int] = []
    reader = threading.Thread(target=lambda: found.append(wanted_by(taken)))
    reader.start()
    for byte in sent:
        caller.sendall(bytes([byte]))
    reader.join(60)
    assert found == [3]
    assert taken.recv(len(sent), socket.MSG_WAITALL) == sent


def test_a_caller_that_goes_or_is_mute_is_told_apart(pair: Pair):
    caller, taken = pair
    taken.settimeout(0.01)
    with pytest.raises(TimeoutError):
        wanted_by(taken)
    caller.sendall(hello(name_of(1))[:50])
    caller.shutdown(socket.SHUT_WR)
    taken.settimeout(60)
    assert wanted_by(taken) == 0
    taken.recv(50, socket.MSG_WAITALL)
    with pytest.raises(EOFError):
        wanted_by(taken)


def test_a_connection_that_was_looked_at_and_handed_over_is_served_as_if_it_had_come_there(pair: Pair, tmp_path: Path):
    caller, taken = pair
    authority = TestAuthority(tmp_path)
    ours, theirs = authority.load("beta", "beta-1"), authority.load("alpha", "alpha-1")
    names: list[str] = []

    def call() -> None:
        with theirs.client.wrap_socket(caller, server_hostname=name_of(2)) as secured:
            names.append(secured.recv(5).decode())

    thread = threading.Thread(target=call)
    thread.start()
    assert wanted_by(taken) == 2
    outside, inside = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with outside, Door(fileno=inside.detach()) as door:
        hand_over(outside, taken, "192.0.2.7")
        taken.close()
        moved, address = door.accept()
        assert address == ("192.0.2.7", 0)
        assert not moved.get_inheritable()
        moved.settimeout(60)
        with ours.server.wrap_socket(moved, server_side=True) as secured:
            secured.sendall(b"hello")
            thread.join(60)
        outside.close()
        with pytest.raises(ConnectionError):
            door.accept()
    assert names == ["hello"]


@pytest.mark.parametrize(("parts", "told"), [(0, 0), (1, 1), (32, 32), (255, 255), (1000, 255)])
def test_a_greeting_tells_of_parts_beside_the_role(parts: int, told: int):
    for role in (0, frames.ROLE_SOURCE):
        sent = frames.Hello(features=role | frames.parts_as_features(parts)).encode()
        read = frames.Hello.decode(sent[frames.HEADER.size :])
        assert (read.parts, read.answers) == (told, bool(role))
