"""Reading of one TLS connection: what wakes the thread that waits, and that nothing is waited for in vain."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from farshore.testing.pki import TestAuthority
from farshore.transport.records import Secured, secure
from farshore.transport.stream import Stream
from farshore.units import KIB, MIB


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[tuple[ssl.SSLSocket, Secured]]:
    """The two ends of one connection over loopback: who sends, who receives."""
    authority = TestAuthority(tmp_path)
    tls = [authority.load(site, f"{site}-1") for site in ("alpha", "beta")]
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    accepted: list[ssl.SSLSocket] = []
    greeting = threading.Thread(target=lambda: accepted.append(tls[0].server.wrap_socket(far, server_side=True)))
    greeting.start()
    receiver = secure(near, tls[1].client)
    greeting.join()
    yield accepted[0], receiver
    accepted[0].close()
    receiver.close()


def wakes_at(connection: socket.socket) -> int:
    return connection.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)


@pytest.mark.timeout(120)
def test_a_reader_is_woken_for_enough_and_never_waits_for_more_than_there_is(
    ends: tuple[ssl.SSLSocket, Secured],
) -> None:
    sender, receiver = ends
    stream = Stream(receiver, 60.0)
    whole = bytes(range(256)) * (4 * MIB // 256)
    view = memoryview(bytearray(len(whole)))
    reading = threading.Thread(target=stream.receive, args=(view,))
    reading.start()
    sender.sendall(whole[: 3 * MIB])
    ends_at = time.monotonic() + 60
    while wakes_at(receiver) <= 64 * KIB and time.monotonic() < ends_at:
        time.sleep(0.01)  # until it has taken out all that came, and waits
    assert wakes_at(receiver) > 64 * KIB
    sender.sendall(whole[3 * MIB : -100])
    sender.sendall(whole[-100:])
    reading.join(60)
    assert not reading.is_alive(), "the last bytes are fewer than what wakes it, and have to come through"
    assert view == whole
    assert wakes_at(receiver) == 1, "the head of the next frame is short"


@pytest.mark.timeout(120)
def test_a_young_connection_wakes_its_reader_for_every_packet(ends: tuple[ssl.SSLSocket, Secured]) -> None:
    sender, receiver = ends
    stream = Stream(receiver, 60.0)
    view = memoryview(bytearray(MIB))
    reading = threading.Thread(target=stream.receive, args=(view,), daemon=True)
    reading.start()
    sender.sendall(bytes(100 * KIB))
    assert wakes_at(receiver) == 1, "its receive window grows with what is taken out"
    sender.sendall(bytes(MIB - 100 * KIB))
    reading.join(60)
    assert not reading.is_alive()
