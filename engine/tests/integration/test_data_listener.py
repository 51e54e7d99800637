"""The data port: who is let in, and what becomes of those who are not."""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import ssl
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles.control_process import until
from doubles.source_here import raising
from farshore.errors import FarshoreError, Reconnect
from farshore.testing.pki import TestAuthority
from farshore.transport import frames
from farshore.transport.listener import GREETING_MAX, DataListener
from farshore.transport.sockets import receive_frame
from farshore.transport.tls import NodeTls, Peer

Arrivals = queue.Queue[tuple[ssl.SSLSocket, Peer]]


class Port:
    """A data port, and the connections that came through it."""

    def __init__(self, folder: Path, *, serves: bool = True, adopts: bool = True, timeout_s: float = 90.0) -> None:
        self.authority = TestAuthority(folder)
        self.ours = self.authority.load("alpha", "alpha-1")
        self.theirs = self.authority.load("beta", "beta-1")
        self.served, self.adopted = Arrivals(), Arrivals()
        self.listener = DataListener(
            lambda: self.ours,
            serve=self._serve if serves else None,
            adopt=(lambda connection, peer: self.adopted.put((connection, peer))) if adopts else None,
            greeting_timeout_s=timeout_s,
        )
        _, self.port = self.listener.start("127.0.0.1:0")
        self._clients: list[socket.socket] = []

    def _serve(self, connection: ssl.SSLSocket, peer: Peer) -> None:
        self.served.put((connection, peer))
        while connection.recv(100):
            pass

    def plain(self) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        self._clients.append(client)
        return client

    def dial(self, identity: NodeTls | None = None) -> ssl.SSLSocket:
        client = (identity or self.theirs).client.wrap_socket(self.plain())
        self._clients.append(client)
        return client

    def close(self) -> None:
        self.listener.stop()
        for client in self._clients:
            client.close()


def port_of(folder: Path, **options: float) -> contextlib.AbstractContextManager[Port]:
    return contextlib.closing(Port(folder, **options))  # type: ignore[arg-type]


def answer(connection: ssl.SSLSocket) -> frames.Hello | FarshoreError:
    """Return what the other side says to a greeting."""
    meta = memoryview(bytearray(frames.MAX_META))
    header = receive_frame(connection, memoryview(bytearray(28)), meta)
    if header.type is frames.Type.ERROR:
        return frames.decode_error(meta[: header.meta_size])
    return frames.Hello.decode(meta[: header.meta_size])


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.WARNING, "farshore.transport.listener"):
        yield caplog


def await_codes(log: pytest.LogCaptureFixture, *codes: str) -> None:
    """Wait until refusals with these codes were logged, and nothing but these, each once."""
    deadline = time.monotonic() + 60
    while len(log.messages) < len(codes) and time.monotonic() < deadline:
        time.sleep(0.01)
    found = [message.rpartition("[")[2].partition("]")[0] for message in log.messages]
    assert sorted(found) == sorted(codes), log.messages


def test_a_peer_comes_to_the_side_that_it_is_for_whoever_dialed(tmp_path: Path) -> None:
    with port_of(tmp_path) as port:
        asker, source = port.dial(), port.dial()
        asker.sendall(frames.Hello().encode())
        reply = answer(asker)
        assert isinstance(reply, frames.Hello)
        assert reply.answers
        source.sendall(frames.Hello(features=frames.ROLE_SOURCE).encode())
        reply = answer(source)
        assert isinstance(reply, frames.Hello)
        assert not reply.answers
        assert port.served.get(timeout=60)[1] == port.adopted.get(timeout=60)[1] == port.theirs.peer


def test_an_adopted_connection_outlives_the_listener(tmp_path: Path) -> None:
    with port_of(tmp_path) as port:
        source = port.dial()
        source.sendall(frames.Hello(features=frames.ROLE_SOURCE).encode())
        answer(source)
        adopted, _ = port.adopted.get(timeout=60)
        port.listener.stop()
        adopted.sendall(b"still here")
        assert source.recv(100) == b"still here"
        adopted.close()


@pytest.mark.parametrize("role", ["serves", "adopts"])
def test_a_node_without_the_side_that_a_peer_needs_says_so(
    tmp_path: Path, role: str, warnings: pytest.LogCaptureFixture
) -> None:
    with port_of(tmp_path, **{role: False}) as port:
        for _ in range(2):
            client = port.dial()
            client.sendall(frames.Hello(features=0 if role == "serves" else frames.ROLE_SOURCE).encode())
            reply = answer(client)
            assert isinstance(reply, FarshoreError)
            assert reply.code == "role-not-served"
            assert client.recv(1) == b""
        await_codes(warnings, "role-not-served")


def greeted(port: Port) -> bool:
    try:
        client = port.dial()
        client.sendall(frames.Hello().encode())
        return isinstance(answer(client), frames.Hello)
    except (OSError, Reconnect):
        return False  # too slow this time


def test_silence_is_not_waited_for_and_logged_once(tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    with port_of(tmp_path, timeout_s=0.5) as port:
        for connect in (port.plain, port.plain, port.dial, port.dial):
            with contextlib.suppress(OSError):  # on a busy machine the handshake alone may take too long
                assert connect().recv(1) == b""
        await_codes(warnings, "greeting-timeout")
        until(lambda: greeted(port), "who greets is answered")


def test_drops_that_come_one_by_one_do_not_win_time(tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    with port_of(tmp_path, timeout_s=0.5) as port:
        with contextlib.suppress(OSError):  # the port hangs up long before the greeting is whole
            client = port.dial()
            for byte in frames.Hello().encode():
                client.sendall(bytes((byte,)))
                time.sleep(0.1)
        await_codes(warnings, "greeting-timeout")


def header(kind: int = 1, *, magic: bytes = b"FSH1", meta: int = 0, payload: int = 0) -> bytes:
    """Return a header that is right but for what it says."""
    guarded = struct.pack(">4sBBHIIII", magic, kind, 0, 0, 0, meta, payload, 0)
    return guarded + struct.pack(">I", zlib.crc32(guarded))


BAD_FIRST_WORDS = {
    "not-a-frame": b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n",
    "frame-damaged": frames.Hello().encode()[:10] + b"\xff" + frames.Hello().encode()[11:],
    "protocol-version": frames.Hello(7, 9).encode(),
    "frame-too-large": header(meta=0xFFFF_FFFF),
    "not-greeted": frames.Read(1, 0, ((0, 512),)).encode(1),
    "protocol-error": header(kind=99),
}


@pytest.mark.parametrize("code", sorted(BAD_FIRST_WORDS))
def test_bad_first_words_have_a_name_each_and_are_logged_once(
    tmp_path: Path, code: str, warnings: pytest.LogCaptureFixture
) -> None:
    with port_of(tmp_path) as port:
        for _ in range(3):
            client = port.dial()
            client.sendall(BAD_FIRST_WORDS[code])
            with contextlib.suppress(OSError):
                while client.recv(4096):
                    pass
        await_codes(warnings, code)
        greeted = port.dial()
        greeted.sendall(frames.Hello().encode())
        assert isinstance(answer(greeted), frames.Hello)


def test_who_speaks_no_tls_at_all_is_named_once(tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    with port_of(tmp_path) as port:
        for _ in range(3):
            client = port.plain()
            client.sendall(b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n")
            with contextlib.suppress(OSError):
                while client.recv(4096):
                    pass
        await_codes(warnings, "not-tls")


def test_who_has_no_certificate_of_ours_is_named_once(tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    stranger = TestAuthority(tmp_path / "elsewhere", "other").load("beta", "beta-1")
    with port_of(tmp_path / "here") as port:
        stranger.client.load_verify_locations(port.authority.ca)
        for _ in range(2):
            with contextlib.suppress(OSError):
                client = port.dial(stranger)
                client.sendall(frames.Hello().encode())
                client.recv(1)
        await_codes(warnings, "certificate-refused")


def test_a_crowd_that_says_nothing_does_not_keep_others_out(tmp_path: Path) -> None:
    with port_of(tmp_path, timeout_s=60.0) as port:
        crowd = [port.plain() for _ in range(GREETING_MAX + 20)]
        greeted = port.dial()
        greeted.sendall(frames.Hello().encode())
        assert isinstance(answer(greeted), frames.Hello)
        gone = 0
        for client in crowd[:10]:
            with contextlib.suppress(ConnectionError):
                gone += client.recv(1) == b""
        assert gone

        def waiting() -> int:
            return sum(thread.name == "data-connection" for thread in threading.enumerate())

        until(lambda: waiting() <= GREETING_MAX + 2, "those who were dropped are gone")


def test_an_error_of_our_own_costs_one_connection(tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    with port_of(tmp_path) as port:
        serve, port.listener._serve = port.listener._serve, raising(ZeroDivisionError("a bug"))
        first = port.dial()
        first.sendall(frames.Hello().encode())
        answer(first)
        assert first.recv(1) == b""
        assert "an error of our own" in warnings.text
        port.listener._serve = serve
        second = port.dial()
        second.sendall(frames.Hello().encode())
        assert isinstance(answer(second), frames.Hello)
        assert port.served.get(timeout=60)[1] == port.theirs.peer
