"""A link and what it dials: peers that are none, connections that age, and a way that is cut for a while."""

from __future__ import annotations

import contextlib
import queue
import socket
import ssl
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from doubles.datapath import DEADLINE_S
from doubles.source_here import SourceHere
from farshore.errors import FarshoreError
from farshore.replication import answering
from farshore.testing.pki import TestAuthority
from farshore.transport import connection, dialing, frames, links
from farshore.transport.connection import Request
from farshore.transport.links import Link, Links
from farshore.transport.session import Session
from farshore.transport.sockets import Wire, at_work, hang_up, receive_frame
from farshore.transport.tls import NodeTls, Peer, load


class Stand:
    """Somebody at an address who does as the test says."""

    def __init__(self, handle: Callable[[socket.socket], None]) -> None:
        self._handle = handle
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._taken: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = self._listener.accept()
                self._taken.append(plain)
                threading.Thread(target=self._run, args=(plain,), daemon=True).start()

    def _run(self, plain: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError, FarshoreError):
            self._handle(plain)

    def close(self) -> None:
        hang_up(self._listener)
        self._listener.close()
        for plain in self._taken:
            hang_up(plain)
            plain.close()


class Nodes:
    """A target node, and the certificates of a source node for stands to show."""

    def __init__(self, folder: Path) -> None:
        authority = TestAuthority(folder)
        self.source: NodeTls = authority.load("alpha", "alpha-1")
        self.target: NodeTls = authority.load("beta", "beta-1")
        self._ends: list[Callable[[], None]] = []

    def link(self, handle: Callable[[socket.socket], None], *, give_up_s: float = 0.6) -> Link:
        stand = Stand(handle)
        links = Links(self.target, give_up_s=give_up_s, connect_timeout_s=0.3)
        self._ends += [links.close, stand.close]
        link = links.to(f"127.0.0.1:{stand.port}", self.source.peer)
        link.use(2)
        return link

    def secured(self, plain: socket.socket) -> ssl.SSLSocket:
        return self.source.server.wrap_socket(plain, server_side=True)

    def close(self) -> None:
        for end in self._ends:
            end()


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    one = Nodes(tmp_path)
    yield one
    one.close()


def ask(link: Link) -> FarshoreError | frames.Type:
    """Ask something; return the type of the answer, or the error."""
    found: queue.Queue[FarshoreError | frames.Type] = queue.Queue()
    link.submit(
        Request(
            lambda number: frames.encode_close(number, 1),
            lambda header, _meta, lent: (lent.release(), found.put(header.type))[1],
            found.put,
        )
    )
    return found.get(timeout=DEADLINE_S)


def hello(secured: ssl.SSLSocket, answer: bytes) -> tuple[memoryview, memoryview]:
    """Take a greeting and answer it."""
    head, meta = memoryview(bytearray(28)), memoryview(bytearray(frames.MAX_META))
    receive_frame(secured, head, meta)
    secured.sendall(answer)
    return head, meta


SOURCE_HELLO = frames.Hello(features=frames.ROLE_SOURCE).encode()


def test_silence_behind_an_open_port(nodes: Nodes) -> None:
    error = ask(nodes.link(lambda plain: plain.recv(1) and None))
    assert isinstance(error, FarshoreError)
    assert (error.code, "handshake-timeout" in str(error)) == ("peer-unreachable", True)


def test_silence_behind_a_handshake(nodes: Nodes) -> None:
    def handle(plain: socket.socket) -> None:
        secured = nodes.secured(plain)
        while secured.recv(100):
            pass

    error = ask(nodes.link(handle))
    assert isinstance(error, FarshoreError)
    assert (error.code, "greeting-timeout" in str(error)) == ("peer-unreachable", True)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(40), "not-a-frame"),
        (frames.encode_close(0, 1), "not-greeted"),
        (frames.Hello(7, 9, features=frames.ROLE_SOURCE).encode(), "protocol-version"),
        (frames.Hello().encode(), "wrong-role"),
    ],
)
def test_a_peer_that_answers_a_greeting_wrongly(nodes: Nodes, answer: bytes, code: str) -> None:
    def handle(plain: socket.socket) -> None:
        secured = nodes.secured(plain)
        hello(secured, answer)
        secured.recv(100)

    error = ask(nodes.link(handle))
    assert isinstance(error, FarshoreError)
    assert code in str(error)


def test_somebody_who_speaks_no_tls(nodes: Nodes) -> None:
    error = ask(nodes.link(lambda plain: plain.sendall(b"220 mail.example.org ESMTP\r\n" * 10)))
    assert isinstance(error, FarshoreError)
    assert "not-tls" in str(error)


def test_an_answer_that_is_too_large_takes_no_memory(nodes: Nodes) -> None:
    answered = 0

    def handle(plain: socket.socket) -> None:
        nonlocal answered
        secured = nodes.secured(plain)
        head, meta = hello(secured, SOURCE_HELLO)
        while True:
            header = receive_frame(secured, head, meta)
            answered += 1
            if answered == 1:
                guarded = struct.pack(">4sBBHIIII", b"FSH1", frames.Type.DATA, 0, 0, header.request, 64, 0x8000_0000, 0)
                secured.sendall(guarded + struct.pack(">I", zlib.crc32(guarded)))
            elif answered == 2:  # a frame that may have a payload, but not for this question
                pieces = [(0, 4096, False)]
                secured.sendall(frames.Data.encode(header.request, 1, 0, 1, pieces, b"", memoryview(bytes(4096))))
            else:
                secured.sendall(frames.encode_closed(header.request, 1, {}))

    link = nodes.link(handle, give_up_s=30)
    assert ask(link) is frames.Type.CLOSED
    assert answered == 3
    assert link.buffers.peak_bytes == 0
    assert link.stats().reconnects == 2


def test_a_peer_that_is_away_for_a_while_costs_only_the_time(nodes: Nodes) -> None:
    away = threading.Event()
    away.set()

    def handle(plain: socket.socket) -> None:
        if away.is_set():
            return plain.close()
        secured = nodes.secured(plain)
        head, meta = hello(secured, SOURCE_HELLO)
        while True:
            header = receive_frame(secured, head, meta)
            secured.sendall(frames.encode_closed(header.request, 1, {}))

    link = nodes.link(handle, give_up_s=60)
    threading.Timer(1.0, away.clear).start()
    assert ask(link) is frames.Type.CLOSED
    assert link.down == (0.0, "")


def test_a_link_says_for_how_long_it_is_down(nodes: Nodes) -> None:
    link = nodes.link(lambda plain: plain.close(), give_up_s=60)
    deadline = time.monotonic() + DEADLINE_S
    while link.down[0] < 0.5 and time.monotonic() < deadline:
        time.sleep(0.05)
    seconds, why = link.down
    assert 0.5 <= seconds < DEADLINE_S
    assert why
    link.unuse()
    assert link.down == (0.0, "")


def test_connections_are_replaced_in_their_time_and_nobody_notices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "AGE_MAX_S", 0.2)
    monkeypatch.setattr(links, "at_work", lambda _rtt_s, **_here: 3)
    here = SourceHere(tmp_path)
    served = set[tuple[str, int]]()
    serve = here.service.serve_connection

    def counted(one: ssl.SSLSocket, peer: Peer) -> None:
        served.add(one.getpeername())
        serve(one, peer)

    here.service._listener._serve = counted  # type: ignore[union-attr]
    try:
        link = here.links.to(f"127.0.0.1:{here.sites.port}", here.sites.alpha_tls.peer)
        link.use(3)
        ends = time.monotonic() + DEADLINE_S
        while len(served) < 9 and time.monotonic() < ends:
            assert isinstance(ask(link), frames.Type)
        assert len(served) >= 9
        assert (link.stats().reconnects, link.stats().resent_bytes) == (0, 0)
        assert 1 <= link.stats().connections <= 3
    finally:
        here.close()


def test_a_renewed_certificate_is_on_new_connections_and_an_open_session_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "at_work", lambda _rtt_s, **_here: 3)
    here = SourceHere(tmp_path)
    sites, shown = here.sites, list[str]()
    serve = here.service.serve_connection

    def noted(one: ssl.SSLSocket, peer: Peer) -> None:
        shown.append(peer.thumbprint)
        serve(one, peer)

    here.service._listener._serve = noted  # type: ignore[union-attr]
    try:
        snapshot = sites.point()
        link = here.links.to(f"127.0.0.1:{sites.port}", sites.alpha_tls.peer)
        link.use(3)
        session = Session(link, sites.params(snapshot).grant, 1, 4096)
        session.open()
        before = sites.beta_tls.peer.thumbprint
        await_true(lambda: len(shown) == 3)
        files = sites.authority.node("beta", "beta-1")
        renewed = load(files.cert, files.key, files.ca)
        here.links.renew(renewed)
        assert list(session.extents(0, since_base=False))
        sites.beta_tls = renewed
        other = Session(link, sites.params(snapshot, term=2).grant, 1, 4096)
        other.open()
        other.close()
        await_true(lambda: len(shown) == 6 and link.stats().connections == 3)
        assert sorted(shown) == sorted([before] * 3 + [renewed.peer.thumbprint] * 3)
        assert link.stats().reconnects == 0
    finally:
        here.close()


def test_a_long_way_gets_more_connections_once_it_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (connection, dialing):
        monkeypatch.setattr(module, "wire_of", lambda _connection: Wire(rtt_s=0.2))
    here = SourceHere(tmp_path)
    try:
        link = here.links.to(f"127.0.0.1:{here.sites.port}", here.sites.alpha_tls.peer)
        link.use(2)
        await_true(lambda: link.stats().connections == 2)
        link.use("auto")
        await_true(lambda: link.stats().connections == 16)
        assert link.rtt_s == 0.2
    finally:
        here.close()


def test_a_short_way_gets_no_more_connections_than_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "PATH_SHOWN_S", 10.0)  # on a busy machine a connection takes its time
    here = SourceHere(tmp_path)
    served = list[ssl.SSLSocket]()
    serve = here.service.serve_connection

    def counted(one: ssl.SSLSocket, peer: Peer) -> None:
        served.append(one)
        serve(one, peer)

    here.service._listener._serve = counted  # type: ignore[union-attr]
    try:
        link = here.links.to(f"127.0.0.1:{here.sites.port}", here.sites.alpha_tls.peer)
        link.use(64)
        count = min(64, at_work(0.0, here=True))
        await_true(lambda: link.stats().connections == count)
        assert all(isinstance(ask(link), frames.Type) for _ in range(20))
        assert len(served) == link.stats().connections == count
        hang_up(served[0])
        await_true(lambda: len(served) == count + 1 and link.stats().connections == count)
    finally:
        here.close()


def test_a_peer_that_is_gone_before_it_is_served_leaves_nothing_open(tmp_path: Path) -> None:
    here = SourceHere(tmp_path)
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            gone = socket.create_connection(listener.getsockname())
            connection, _ = listener.accept()
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gone.close()  # by a reset
        before = events_open()
        connection.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            answering.Answering(here.service, connection, here.sites.beta_tls.peer).run()  # type: ignore[arg-type]
        assert events_open() == before
    finally:
        here.close()


def events_open() -> int:
    return sum("eventfd" in str(one.readlink()) for one in Path("/proc/self/fd").iterdir() if one.is_symlink())


def await_true(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + DEADLINE_S
    while not condition() and time.monotonic() < ends:
        time.sleep(0.01)
    assert condition()
