"""Connections from a target node to a source node.

A :class:`Link` belongs to a pair of nodes and outlives sessions: small cycles are bound by connection start-up, not by
bandwidth. It has N connections, one thread each, with blocking sockets and buffers that are taken once. All reading and
writing of a connection happens in its own thread, for a TLS connection must not be used by two at once.

A request goes to the live connection with the fewest bytes outstanding, so that slow connections get less. When a
connection breaks, what it still owed goes to another one; every request of the protocol may be repeated. Connections
come back by themselves, with a pause that grows and is jittered. After ``give_up_s`` without any connection what waits
fails with ``Unavailable``.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import random
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from farshore.errors import FarshoreError, Forbidden, Permanent, Reconnect, Unavailable
from farshore.transport import frames
from farshore.transport.sockets import hang_up, parse_address, prepare, receive_frame
from farshore.transport.tls import NodeTls, Peer, peer_of, same_thumbprint

log = logging.getLogger(__name__)

#: Bytes of requests that a connection may have unanswered. They fit the smallest default receive buffer (64 KiB of a
#: 128 KiB tcp_rmem), so sending one never waits for a source that is itself busy sending to us.
REQUEST_BYTES_MAX: Final = 48 * 1024
#: Silence of this length while an answer is owed means that the connection is dead.
ANSWER_TIMEOUT_S: Final = 60.0
CONNECT_TIMEOUT_S: Final = 10.0
GIVE_UP_S: Final = 120.0
#: A request that broke this many connections, or outlived them, is not tried on another one: the peer accepts
#: connections, but does not answer.
SENDS_MAX: Final = 10
PAUSE_FIRST_S: Final = 0.1
PAUSE_MAX_S: Final = 5.0

OnAnswer = Callable[[frames.Header, memoryview, memoryview], None]
OnError = Callable[[FarshoreError], None]


class Request:
    """A question that waits for its answer.

    ``on_answer`` and ``on_error`` are called once in all, from a connection's thread; the views that ``on_answer`` gets
    are valid only during the call. ``weight`` is the bytes that the answer is expected to bring.
    """

    __slots__ = ("abandoned", "build", "frame", "number", "on_answer", "on_error", "times_sent", "weight")

    def __init__(self, build: Callable[[int], bytes], on_answer: OnAnswer, on_error: OnError, weight: int = 0) -> None:
        self.build = build
        self.on_answer = on_answer
        self.on_error = on_error
        self.weight = weight
        self.number = 0
        self.frame = b""
        self.times_sent = 0
        self.abandoned = False


class Link:
    """The connections to one peer. Made by :class:`Links`."""

    def __init__(self, links: Links, address: tuple[str, int], peer: Peer, give_up_s: float) -> None:
        self._links = links
        self.address = address
        self.peer = peer
        self._give_up_s = give_up_s
        self.lock = threading.Lock()
        self._changed = threading.Condition(self.lock)
        self._connections: list[_Connection] = []
        self._backlog: deque[Request] = deque()
        self._numbers = itertools.cycle(range(1, 1 << 32))
        self._users = 0
        self._closed = False
        self._down_since: float | None = None
        self._last_error: str = "no connection was tried yet"
        self.resent_bytes = 0

    @property
    def identity(self) -> NodeTls:
        """Who we are, with the newest certificate."""
        return self._links.identity

    @property
    def in_use(self) -> bool:
        """Whether somebody uses the link."""
        return self._users > 0

    @property
    def closed(self) -> bool:
        """Whether the link takes nothing any more."""
        return self._closed

    def use(self, connections: int) -> None:
        """Keep at least ``connections`` open until :meth:`unuse`."""
        with self._changed:
            self._users += 1
            if not any(connection.alive for connection in self._connections):
                self._down_since = time.monotonic()
            while len(self._connections) < connections:
                connection = _Connection(self, len(self._connections))
                self._connections.append(connection)
                connection.start()
            self._changed.notify_all()

    def unuse(self) -> None:
        """End one :meth:`use`. Connections that live stay open; broken ones are not opened again."""
        with self._changed:
            self._users -= 1

    def submit(self, request: Request) -> None:
        """Send a request when a connection is there for it."""
        with self._changed:
            if self._closed:
                error: FarshoreError = Reconnect("the link was closed", code="link-closed")
            else:
                request.number = next(self._numbers)
                request.frame = request.build(request.number)
                self._place(request)
                return
        request.on_error(error)

    def close(self) -> None:
        """Close all connections; what waits fails."""
        with self._changed:
            self._closed = True
            connections = list(self._connections)
            self._changed.notify_all()
        for connection in connections:
            connection.end()
        self._fail_all(Reconnect("the link was closed", code="link-closed"))

    def _place(self, request: Request) -> None:
        """Give a request to a connection; called with the lock held."""
        alive = [connection for connection in self._connections if connection.alive]
        if not alive:
            self._backlog.append(request)
            return
        best = min(alive, key=lambda connection: connection.load)
        best.load += request.weight + len(request.frame)
        best.outbox.append(request)
        best.wake()

    # Called by connections ------------------------------------------------------------------------------------------

    def wait_until_wanted(self) -> bool:
        """Block until somebody uses the link; False once it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._users > 0)
            return not self._closed

    def pause(self, seconds: float) -> None:
        """Wait, less long if the link is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed, timeout=seconds)

    def came_up(self, connection: _Connection) -> None:
        """Note a new connection and hand it what waits."""
        with self._changed:
            connection.alive = True
            connection.load = 0
            self._down_since = None
            waiting, self._backlog = self._backlog, deque()
            for request in waiting:
                self._place(request)
            self._changed.notify_all()

    def went_down(self, connection: _Connection, owed: list[Request], reason: str) -> None:
        """Note a broken connection; what it owed goes to others."""
        hopeless = []
        with self._changed:
            connection.alive = False
            self._last_error = reason
            if not any(other.alive for other in self._connections):
                self._down_since = self._down_since or time.monotonic()
            owed.extend(connection.outbox)
            connection.outbox.clear()
            for request in owed:
                if request.abandoned:
                    continue
                if request.times_sent:
                    self.resent_bytes += request.weight
                if request.times_sent >= SENDS_MAX:
                    hopeless.append(request)
                else:
                    self._place(request)
        _fail(
            hopeless,
            Unavailable(f"{self.peer} does not answer, whichever way it is asked: {reason}", code="peer-silent"),
        )

    def not_connected(self, reason: str) -> None:
        """Note a failed attempt; give up when it has gone on for too long."""
        with self._changed:
            self._last_error = reason
            since = self._down_since
            expired = since is not None and time.monotonic() - since > self._give_up_s
            if expired and self._users:
                self._down_since = time.monotonic()  # the next user gets its own time
        if expired:
            self._fail_all(
                Unavailable(
                    f"{self.peer} cannot be reached at {self.address[0]}:{self.address[1]}: {reason}",
                    code="peer-unreachable",
                    hint="Check that the other node runs and that its data port is reachable.",
                )
            )

    def refuse(self, error: FarshoreError) -> None:
        """Fail all that waits: the peer will never be the right one."""
        self._fail_all(error)

    def _fail_all(self, error: FarshoreError) -> None:
        with self._changed:
            waiting = list(self._backlog)
            self._backlog.clear()
        _fail(waiting, error)


class _Connection(threading.Thread):
    """One connection and all reading and writing on it."""

    def __init__(self, link: Link, index: int) -> None:
        host, port = link.address
        super().__init__(name=f"link-{host}:{port}-{index}", daemon=True)
        self._link = link
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.outbox: deque[Request] = deque()
        self.alive = False
        self.load = 0
        self._socket: ssl.SSLSocket | None = None
        self._outstanding: dict[int, Request] = {}
        self._outstanding_bytes = 0
        self._head = memoryview(bytearray(frames.HEADER.size))
        self._meta = memoryview(bytearray(frames.MAX_META))
        self._payload = memoryview(bytearray(frames.MAX_PAYLOAD))

    def wake(self) -> None:
        """Make the thread look at its outbox."""
        with contextlib.suppress(OSError):
            os.eventfd_write(self._event, 1)

    def run(self) -> None:
        """Connect, serve, and again."""
        attempt = 0
        while self._link.wait_until_wanted():
            try:
                connection = self._connect()
            except Permanent as error:
                self._link.refuse(error)
                self._link.pause(PAUSE_MAX_S)
                continue
            except Exception as error:  # a thread that ended would take its connection away for good
                if not isinstance(error, (OSError, EOFError, FarshoreError)):
                    log.exception("connecting to %s met an error of our own", self._link.peer)
                self._link.not_connected(str(error) or type(error).__name__)
                # Full jitter: nodes that lost the same peer do not come back together.
                self._link.pause(random.uniform(0.5, 1.0) * min(PAUSE_FIRST_S * 2**attempt, PAUSE_MAX_S))  # noqa: S311
                attempt = min(attempt + 1, 10)
                continue
            attempt = 0
            self._socket = connection
            self._link.came_up(self)
            reason = "closed"
            try:
                self._serve(connection)
            except (OSError, EOFError, FarshoreError) as error:
                reason = str(error) or type(error).__name__
                log.info("connection to %s broke: %s", self._link.peer, reason)
            except Exception as error:  # a bug of ours: what was asked goes to another connection, and is shown
                reason = repr(error)
                log.exception("connection to %s was given up", self._link.peer)
            finally:
                self._socket = None
                connection.close()
                owed = list(self._outstanding.values())
                self._outstanding.clear()
                self._outstanding_bytes = 0
                self._link.went_down(self, owed, reason)

    def end(self) -> None:
        """Wake the thread wherever it is and wait for it; the link is closed."""
        self.wake()
        connection = self._socket
        if connection is not None:
            hang_up(connection)
        self.join()
        # Only now: a number that was given back might be another file's when somebody wakes us.
        os.close(self._event)

    def _connect(self) -> ssl.SSLSocket:
        plain = socket.create_connection(self._link.address, timeout=CONNECT_TIMEOUT_S)
        try:
            prepare(plain)
            connection = self._link.identity.client.wrap_socket(plain)
        except ssl.SSLError as error:
            plain.close()
            raise _refusal(error, self._link) from error
        except BaseException:
            plain.close()
            raise
        try:
            self._greet(connection)
            connection.settimeout(ANSWER_TIMEOUT_S)
        except ssl.SSLError as error:  # with TLS 1.3 the peer's verdict on our certificate comes after the handshake
            connection.close()
            raise _refusal(error, self._link) from error
        except BaseException:
            connection.close()
            raise
        return connection

    def _greet(self, connection: ssl.SSLSocket) -> None:
        """Make sure that it is the right peer, and that both speak one version."""
        expected, peer = self._link.peer, peer_of(connection)
        same_node = (peer.site, peer.node) == (expected.site, expected.node)
        if not same_node or not same_thumbprint(peer.thumbprint, expected.thumbprint):
            raise Forbidden(
                f"{self._link.address[0]}:{self._link.address[1]} is {peer}, not {expected}",
                code="wrong-peer",
                hint="Check the node's data address, and whether its certificate was renewed meanwhile.",
                expected=expected.thumbprint,
                found=peer.thumbprint,
            )
        connection.sendall(frames.Hello().encode())
        header = self._receive_frame(connection)
        if header.type is frames.Type.ERROR:
            raise frames.decode_error(self._meta[: header.meta_size])
        if header.type is not frames.Type.HELLO:
            raise Reconnect("the peer did not greet", code="protocol-error")
        hello = frames.Hello.decode(self._meta[: header.meta_size])
        hello.agree()
        if not hello.answers:
            raise Permanent(f"{peer} asks, as this node does", code="wrong-role")

    def _serve(self, connection: ssl.SSLSocket) -> None:
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        poll.register(self._event, select.POLLIN)
        heard = time.monotonic()
        while not self._link.closed:
            self._send_waiting(connection)
            if not connection.pending():
                ready = {fd for fd, _ in poll.poll(1000)}
                if self._event in ready:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._event)
                if connection.fileno() not in ready:
                    if not self._outstanding:
                        heard = time.monotonic()
                    elif time.monotonic() - heard > ANSWER_TIMEOUT_S:
                        raise Reconnect("no answer came in time", code="peer-silent")
                    continue
            header = self._receive_frame(connection)
            heard = time.monotonic()
            self._handle(header)

    def _send_waiting(self, connection: ssl.SSLSocket) -> None:
        batch = []
        with self._link.lock:
            while self.outbox and (self._outstanding_bytes < REQUEST_BYTES_MAX or not self._outstanding):
                request = self.outbox.popleft()
                if request.abandoned:
                    self.load -= request.weight + len(request.frame)
                    continue
                request.times_sent += 1
                self._outstanding[request.number] = request
                self._outstanding_bytes += len(request.frame)
                batch.append(request.frame)
        if batch:
            connection.sendall(b"".join(batch))

    def _handle(self, header: frames.Header) -> None:
        meta, payload = self._meta[: header.meta_size], self._payload[: header.payload_size]
        # What can fail comes first: until it is taken out, a request goes to another connection.
        failure = frames.decode_error(meta) if header.type is frames.Type.ERROR else None
        request = self._outstanding.pop(header.request, None)
        if request is None:
            if failure is not None and header.request == 0:
                raise failure
            raise Reconnect("the peer answered what was not asked", code="protocol-error")
        self._outstanding_bytes -= len(request.frame)
        with self._link.lock:
            self.load -= request.weight + len(request.frame)
        if request.abandoned:
            return
        if failure is not None:
            request.on_error(failure)
        else:
            request.on_answer(header, meta, payload)

    def _receive_frame(self, connection: ssl.SSLSocket) -> frames.Header:
        """Receive one frame into the thread's own buffers."""
        return receive_frame(connection, self._head, self._meta, self._payload)


def _fail(requests: list[Request], error: FarshoreError) -> None:
    """Tell each of ``requests``; one whose callback fails keeps no other from being told."""
    for request in requests:
        try:
            request.on_error(error)
        except Exception:
            log.exception("the end of a request could not be told")


def _refusal(error: ssl.SSLError, link: Link) -> FarshoreError:
    """Return ``Forbidden`` where one side rejected the other's certificate, else ``Reconnect``."""
    text = str(error)
    if isinstance(error, ssl.SSLCertVerificationError) or "ALERT" in text:
        return Forbidden(
            f"{link.peer} and this node do not accept each other's certificates: {text}",
            code="certificate-refused",
            hint="Compare the authorities of both nodes, and the validity of their certificates.",
        )
    return Reconnect(f"the TLS handshake with {link.peer} failed: {text}", code="handshake")


class Links:
    """All links of a node. ``identity`` may be replaced after a renewal of the certificate."""

    def __init__(self, identity: NodeTls, *, give_up_s: float = GIVE_UP_S) -> None:
        self.identity = identity
        self._give_up_s = give_up_s
        self._lock = threading.Lock()
        self._links: dict[tuple[str, int, Peer], Link] = {}

    def to(self, address: str, peer: Peer) -> Link:
        """Return the link to ``peer`` at ``address``; an older one to another certificate there is closed.

        Raises:
            Invalid: the address is not one.
        """
        host, port = parse_address(address, "address")
        with self._lock:
            stale = [
                key
                for key, link in self._links.items()
                if key[:2] == (host, port) and key[2] != peer and not link.in_use
            ]
            closing = [self._links.pop(key) for key in stale]
            link = self._links.get((host, port, peer))
            if link is None:
                link = self._links[host, port, peer] = Link(self, (host, port), peer, self._give_up_s)
        for old in closing:
            old.close()
        return link

    def close(self) -> None:
        """Close all links."""
        with self._lock:
            links = list(self._links.values())
            self._links.clear()
        for link in links:
            link.close()
