"""Records of TLS 1.3: against the runtime's own TLS, in any pieces, with changed keys, and from peers that are none."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from farshore.testing.pki import TestAuthority
from farshore.transport import records
from farshore.transport.records import SUITES, Keys, Secured, secure
from farshore.transport.tls import NodeTls, identity_of
from farshore.units import KIB, MIB
from hypothesis import given, settings
from hypothesis import strategies as st

T = TypeVar("T")
DEADLINE_S = 60.0
SUITE = SUITES["TLS_AES_256_GCM_SHA384"]
DATA = bytes(os.urandom(3 * MIB + 77))


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> tuple[NodeTls, NodeTls]:
    """Two nodes of one authority."""
    authority = TestAuthority(tmp_path_factory.mktemp("pki"))
    return authority.load("alpha", "alpha-1"), authority.load("beta", "beta-1")


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    for end in (one, other):
        end.settimeout(DEADLINE_S)
    return one, other


def beside(work: Callable[[], T]) -> Callable[[], T]:
    """Begin ``work`` in a thread; what is returned waits for its result, or raises its error."""
    found: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue()

    def run() -> None:
        try:
            found.put((work(), None))
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
            found.put((None, error))

    threading.Thread(target=run, daemon=True).start()

    def result() -> T:
        value, error = found.get(timeout=DEADLINE_S)
        if error is not None:
            raise error
        return value  # type: ignore[return-value]

    return result


def taken(connection: socket.socket, size: int, step: int = 1 << 20) -> bytes:
    """Receive exactly so much, in steps of at most so much."""
    buffer, at = memoryview(bytearray(size)), 0
    while at < size:
        count = connection.recv_into(buffer[at : min(at + step, size)])
        assert count, "it ended early"
        at += count
    return bytes(buffer)


def bare(
    suite: records.Suite = SUITE, secrets: tuple[bytes, bytes] = (b"1" * 48, b"2" * 48)
) -> tuple[Secured, Secured]:
    """Two ends that share secrets without a handshake."""
    one, other = socket.socketpair()
    for end in (one, other):
        end.settimeout(DEADLINE_S)
    return (
        Secured(one, Keys(suite, secrets[0]), Keys(suite, secrets[1]), None, b""),
        Secured(other, Keys(suite, secrets[1]), Keys(suite, secrets[0]), None, b""),
    )


def forged(content: bytes, kind: int, *, number: int = 0, padding: int = 0, secret: bytes = b"2" * 48) -> bytes:
    """A record as a peer of :func:`bare`'s second end may send it."""
    keys = Keys(SUITE, secret)
    plain = content + bytes([kind]) + bytes(padding)
    header = struct.pack("!BHH", 23, 0x0303, len(plain) + 16)
    return header + keys.cipher.encrypt((keys.iv ^ number).to_bytes(12, "big"), plain, header)


def reader(come: bytes) -> Secured:
    """The second end of :func:`bare`, to which the bytes have come; the connection has ended behind them."""
    one, other = socket.socketpair()
    other.settimeout(DEADLINE_S)
    with one:
        one.sendall(come)
    return Secured(other, Keys(SUITE, b"2" * 48), Keys(SUITE, b"1" * 48), None, b"")


# Keys -----------------------------------------------------------------------------------------------------------------


def test_keys_are_derived_as_in_the_published_example() -> None:
    # RFC 8448, section 3: the server's application traffic.
    secret = bytes.fromhex("a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643")
    suite = SUITES["TLS_AES_128_GCM_SHA256"]
    keys = Keys(suite, secret)
    assert keys._expanded("key", 16).hex() == "9f02283b6c9c07efc26bb9f2ac92e356"
    assert keys.iv.to_bytes(12, "big").hex() == "cf782b88dd83549aadf1e984"


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_protects(name: str) -> None:
    one, other = bare(SUITES[name])
    with one, other:
        sent = beside(lambda: one.sendall(DATA))
        assert taken(other, len(DATA)) == DATA
        sent()


# Beside the runtime's TLS ---------------------------------------------------------------------------------------------


def with_runtime(nodes: tuple[NodeTls, NodeTls], *, serves: bool) -> tuple[Secured, ssl.SSLSocket]:
    """A connection with our end and the runtime's; ``serves``: ours is the server."""
    near, far = pair()
    ours, theirs = nodes if serves else nodes[::-1]
    if serves:
        greeted = beside(lambda: secure(far, ours.server, server_side=True))
        peer = theirs.client.wrap_socket(near)
        return greeted(), peer
    accepted = beside(lambda: theirs.server.wrap_socket(far, server_side=True))
    return secure(near, ours.client), accepted()


@pytest.mark.parametrize("serves", [True, False])
def test_the_runtime_reads_what_we_write_and_we_what_it_writes(nodes: tuple[NodeTls, NodeTls], serves: bool) -> None:
    ours, theirs = with_runtime(nodes, serves=serves)
    with ours, theirs:
        assert theirs.version() == "TLSv1.3"
        assert ours.certificate is not None
        assert identity_of(ours.certificate) == (nodes[1] if serves else nodes[0]).peer
        for sender, receiver in ((ours, theirs), (theirs, ours)):
            sent = beside(lambda sender=sender: sender.sendall(DATA))  # type: ignore[misc]
            assert taken(receiver, len(DATA)) == DATA
            sent()
        assert not ours.pending()


@pytest.mark.parametrize("serves", [True, False])
def test_the_runtime_follows_when_keys_change(
    nodes: tuple[NodeTls, NodeTls], serves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "KEY_RECORDS", 5)
    ours, theirs = with_runtime(nodes, serves=serves)
    with ours, theirs:
        first = ours._writing
        sent = beside(lambda: ours.sendall(DATA))
        assert taken(theirs, len(DATA)) == DATA
        sent()
        assert ours._writing is not first
        assert ours._writing.number <= 5


def test_tickets_of_a_server_that_gives_them_are_passed_over(nodes: tuple[NodeTls, NodeTls]) -> None:
    nodes[0].server.num_tickets = 3
    try:
        ours, theirs = with_runtime(nodes, serves=False)
    finally:
        nodes[0].server.num_tickets = 0
    with ours, theirs:
        assert not ours.pending()
        theirs.sendall(b"data")
        assert taken(ours, 4) == b"data"


def test_what_the_peer_ends_in_order_has_ended(nodes: tuple[NodeTls, NodeTls]) -> None:
    ours, theirs = with_runtime(nodes, serves=True)
    with ours:
        theirs.sendall(b"last")
        ended = beside(theirs.unwrap)
        assert taken(ours, 4) == b"last"
        assert [ours.recv(10), ours.recv(10)] == [b"", b""]
        assert ours.pending(), "whoever asks has to see the end"
        ours.close()
        with pytest.raises(OSError):  # noqa: PT011 - the runtime waits for an answer in kind
            ended()


def test_a_certificate_that_the_peer_refuses_is_named(nodes: tuple[NodeTls, NodeTls], tmp_path: Path) -> None:
    stranger = TestAuthority(tmp_path, "other").load("beta", "beta-1")
    stranger.client.verify_mode = ssl.CERT_NONE
    near, far = pair()
    refused = beside(lambda: nodes[0].server.wrap_socket(far, server_side=True))
    with secure(near, stranger.client) as ours, far:
        with pytest.raises(ssl.SSLError, match="ALERT_UNKNOWN_CA"):
            ours.recv(1)
        with pytest.raises(ssl.SSLError):
            refused()


def test_a_record_that_was_changed_is_refused_and_the_peer_is_told(nodes: tuple[NodeTls, NodeTls]) -> None:
    ours, theirs = with_runtime(nodes, serves=True)
    with ours, theirs:
        plain = socket.socket(fileno=os.dup(theirs.fileno()))
        with plain:
            plain.sendall(struct.pack("!BHH", 23, 0x0303, 100) + bytes(100))
        with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
            ours.recv(1)
        with pytest.raises(ssl.SSLError, match=r"(?i)bad.record.mac"):
            theirs.recv(1)


_ECHO = """
import socket, ssl, sys
folder, port = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.load_verify_locations(folder + "/test-ca.pem")
context.load_cert_chain(folder + "/beta-1.pem", folder + "/beta-1.key")
with context.wrap_socket(socket.create_connection(("127.0.0.1", int(port)))) as peer:
    print(peer.cipher()[0], flush=True)
    left = 1 << 20
    while left:
        data = peer.recv(left)
        peer.sendall(data)
        left -= len(data)
    peer.recv(1)
"""


@pytest.mark.parametrize("name", SUITES)
def test_each_suite_is_that_of_the_standard(name: str, tmp_path: Path) -> None:
    authority = TestAuthority(tmp_path)
    ours = authority.load("alpha", "alpha-1")
    authority.load("beta", "beta-1")
    (tmp_path / "openssl.cnf").write_text(
        f"openssl_conf = a\n[a]\nssl_conf = b\n[b]\nsystem_default = c\n[c]\nCiphersuites = {name}\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        other = subprocess.Popen(
            [sys.executable, "-c", _ECHO, str(tmp_path), str(listener.getsockname()[1])],
            env={**os.environ, "OPENSSL_CONF": str(tmp_path / "openssl.cnf")},
            stdout=subprocess.PIPE,
            text=True,
        )
        with other:
            listener.settimeout(DEADLINE_S)
            plain, _ = listener.accept()
            plain.settimeout(DEADLINE_S)
            with secure(plain, ours.server, server_side=True) as connection:
                sent = beside(lambda: connection.sendall(DATA[:MIB]))
                assert taken(connection, MIB) == DATA[:MIB]
                sent()
            assert other.stdout is not None
            assert other.stdout.readline().strip() == name


def test_many_handshakes_at_once_do_not_mix(nodes: tuple[NodeTls, NodeTls]) -> None:
    waiting = []
    for _ in range(24):
        near, far = pair()
        waiting.append(
            (
                beside(lambda far=far: secure(far, nodes[0].server, server_side=True)),  # type: ignore[misc]
                beside(lambda near=near: secure(near, nodes[1].client)),  # type: ignore[misc]
            )
        )
    for number, (server, client) in enumerate(waiting):
        with server() as one, client() as other:
            one.sendall(number.to_bytes(4, "big"))
            assert int.from_bytes(taken(other, 4), "big") == number


def test_a_handshake_leaves_nothing_behind(nodes: tuple[NodeTls, NodeTls]) -> None:
    def pipes() -> set[str]:
        found = set()
        for one in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # the folder's own
                found.add(str(one.readlink()))
        return {name for name in found if name.startswith("pipe:")}

    before = pipes()
    ours, theirs = with_runtime(nodes, serves=True)
    with ours, theirs:
        assert pipes() <= before
    for node in nodes:
        assert node.server.keylog_filename is node.client.keylog_filename is None


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\x00"])
def test_a_peer_that_falls_silent_costs_the_time_that_it_has(nodes: tuple[NodeTls, NodeTls], said: bytes) -> None:
    near, far = pair()
    with near, far:
        far.settimeout(0.2)
        near.sendall(said)
        with pytest.raises(TimeoutError):
            secure(far, nodes[0].server, server_side=True)
        assert far.fileno() > 0
        assert far.gettimeout() == 0.2


def test_what_is_no_handshake_is_refused_with_an_alert(nodes: tuple[NodeTls, NodeTls]) -> None:
    near, far = pair()
    with near, far:
        near.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
        with pytest.raises(ssl.SSLError):
            secure(far, nodes[0].server, server_side=True)
    near, far = pair()
    with far:
        near.close()
        with pytest.raises(ssl.SSLError, match="EOF"):
            secure(far, nodes[0].server, server_side=True)


# Data in pieces -------------------------------------------------------------------------------------------------------


@given(
    parts=st.lists(st.tuples(st.integers(0, 70_000), st.booleans()), min_size=1, max_size=5),
    step=st.sampled_from([1, 13, 4096, 16 * KIB, 16 * KIB + 1, 100_000]),
    arrives=st.sampled_from([1 << 20, 16 * KIB + 22, 16 * KIB + 21, 5_000, 700]),
)
@settings(deadline=None)
def test_data_comes_whole_in_any_pieces(parts: list[tuple[int, bool]], step: int, arrives: int) -> None:
    given_parts = [bytearray(DATA[number : number + size]) for number, (size, _) in enumerate(parts)]
    whole = b"".join(given_parts)
    if step == 1:
        given_parts, whole = given_parts[:1], bytes(given_parts[0][:2000])
        given_parts[0] = bytearray(whole)
    one, other = bare()
    with one, other:
        sealed = b"".join(
            bytes(piece)
            for piece in one.seal(
                *(bytes(p) if fixed else p for p, (_, fixed) in zip(given_parts, parts, strict=False))
            )
        )
        assert b"".join(given_parts) == whole, "parts are as they were"

        def deliver() -> None:
            for at in range(0, len(sealed), arrives):
                socket.socket.sendall(one, sealed[at : at + arrives])

        sent = beside(deliver)
        assert taken(other, len(whole), step) == whole
        assert not other.pending()
        sent()


def test_what_is_here_already_is_told_and_what_is_not_is_not_waited_for() -> None:
    one, other = bare()
    with one, other:
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.recv(1)
        one.send_parts(b"head", b"meta")
        assert other.recv(2) == b"he"
        assert other.pending()
        assert other.recv(10) == b"ad"
        assert other.pending(), "a record that the kernel has given out, and knows nothing of any more"
        assert other.recv(10) == b"meta"
        assert not other.pending()
        sealed = b"".join(bytes(piece) for piece in one.seal(b"x" * 100))
        one.send_sealed(memoryview(sealed)[:50])
        with pytest.raises(BlockingIOError):
            other.recv(1)
        assert not other.pending(), "half a record is nothing yet"
        one.send_sealed(memoryview(sealed)[50:])
        assert taken(other, 100) == b"x" * 100


def test_nothing_goes_past_the_protection() -> None:
    one, other = bare()
    with one, other:
        for way in (one.send, one.sendmsg, one.sendto, one.sendfile, one.recvfrom, one.recvmsg, one.makefile, one.dup):
            with pytest.raises(NotImplementedError):
                way()  # type: ignore[call-arg]
        with pytest.raises(ValueError, match="flags"):
            one.sendall(b"x", socket.MSG_DONTWAIT)
        with pytest.raises(ValueError, match="flags"):
            one.recv(1, socket.MSG_PEEK)


# Records that are no data ---------------------------------------------------------------------------------------------


def test_padding_is_taken_off() -> None:
    come = forged(b"one", 23, padding=200) + forged(b"", 23, number=1, padding=9) + forged(b"two", 23, number=2)
    with reader(come) as other:
        assert taken(other, 6, 6) == b"onetwo"


def test_keys_change_when_the_peer_says_so_and_ours_when_it_asks() -> None:
    one, other = bare()
    with one, other:
        socket.socket.sendall(one, forged(bytes([24, 0, 0, 1, 1]), 22))
        one._writing = one._writing.next()
        one.sendall(b"with new keys")
        assert other.recv(100) == b"with new keys"
        before, reads = other._writing, one._reading
        other.sendall(b"answer")
        assert one.recv(100) == b"answer"
        assert other._writing is not before
        assert one._reading is not reads
        writes = other._writing
        other.sendall(b"more")
        assert one.recv(100) == b"more"
        assert other._writing is writes, "it was asked once"


def test_a_message_may_come_in_two_records() -> None:
    ticket = bytes([4, 0, 0, 100]) + bytes(100)
    come = forged(ticket[:50], 22) + forged(ticket[50:], 22, number=1) + forged(b"data", 23, number=2)
    with reader(come) as other:
        assert other.recv(100) == b"data"


@pytest.mark.parametrize(
    ("behind", "reason"),
    [
        (forged(b"\x02\x28", 21, number=1), "ALERT_HANDSHAKE_FAILURE"),
        (forged(b"x", 23), "BAD_RECORD_MAC"),
        (b"GET / HTTP/1.1\r\n", "UNEXPECTED_MESSAGE"),
    ],
)
def test_what_came_before_it_is_read_first(behind: bytes, reason: str) -> None:
    with reader(forged(b"data", 23) + behind) as other:
        assert other.recv(100) == b"data"
        with pytest.raises(ssl.SSLError, match=reason):
            other.recv(100)


@pytest.mark.parametrize(
    ("come", "reason"),
    [
        (struct.pack("!BHH", 21, 0x0303, 2) + b"\x02\x28", "UNEXPECTED_MESSAGE"),
        (struct.pack("!BHH", 20, 0x0303, 1) + b"\x01", "UNEXPECTED_MESSAGE"),
        (b"GET / HTTP/1.1\r\n", "UNEXPECTED_MESSAGE"),
        (struct.pack("!BHH", 23, 0x0303, 16 * KIB + 257), "RECORD_OVERFLOW"),
        (struct.pack("!BHH", 23, 0x0303, 65535), "RECORD_OVERFLOW"),
        (struct.pack("!BHH", 23, 0x0303, 16) + bytes(16), "UNEXPECTED_MESSAGE"),
        (struct.pack("!BHH", 23, 0x0303, 17) + bytes(17), "BAD_RECORD_MAC"),
        (forged(b"data", 23, number=1), "BAD_RECORD_MAC"),
        (forged(b"data", 23)[:-1] + b"\0", "BAD_RECORD_MAC"),
        (forged(b"", 22), "UNEXPECTED_MESSAGE"),
        (forged(b"", 0, padding=50), "UNEXPECTED_MESSAGE"),
        (forged(b"\x01", 99), "UNEXPECTED_MESSAGE"),
        (forged(b"\x02\x28\x00", 21), "UNEXPECTED_MESSAGE"),
        (forged(b"\x02\x28", 21), "ALERT_HANDSHAKE_FAILURE"),
        (forged(b"\x02\xee", 21), "ALERT_238"),
        (forged(bytes([24, 0, 0, 1, 2]), 22), "UNEXPECTED_MESSAGE"),
        (forged(bytes([24, 0, 0, 1, 0, 4]), 22), "UNEXPECTED_MESSAGE"),
        (forged(bytes([13, 0, 0, 0]), 22), "UNEXPECTED_MESSAGE"),
        (forged(bytes([4, 255, 255, 255]), 22), "UNEXPECTED_MESSAGE"),
    ],
)
def test_what_has_no_place_is_refused(come: bytes, reason: str) -> None:
    with reader(come) as other, pytest.raises(ssl.SSLError, match=reason):
        other.recv(100)


@given(come=st.binary(max_size=200), begin=st.sampled_from([b"", b"\x17\x03\x03\x00", b"\x17\x03\x03\x00\x20"]))
@settings(deadline=None)
def test_random_bytes_end_in_an_error_or_in_the_end(come: bytes, begin: bytes) -> None:
    with reader(begin + come) as other:
        try:
            assert other.recv(100) == b""
        except ssl.SSLError:
            assert other.recv(100) == b"", "and nothing more comes out of it"
