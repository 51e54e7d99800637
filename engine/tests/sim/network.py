"""Sockets, TLS, poll and eventfd of the simulation.

A connection is two streams of *records*. What was sent arrives after the latency of the connection, in order; between
connections nothing is in order. As with TLS, records that were taken with the one that is read are not seen by ``poll``
any more, but by ``pending`` alone. A partition holds back what is on its way; a cut ends connections; a record may be
damaged, which the TLS layer notices (``outside``) or not (``inside``, as a broken middle box of the peer's own would).
"""

from __future__ import annotations

import errno
import itertools
import select as real_select
import socket as real_socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any

from farshore.transport import records
from sim.runtime import Namespace, Process, Task, Violation, hub

RECORD = 16 * 1024
CAPACITY = 256 * 1024


class Network:
    """All listeners and connections of a simulation, and what happens to them."""

    def __init__(self) -> None:
        self.listeners: dict[tuple[str, int], SimSocket] = {}
        self.sockets: dict[int, SimSocket] = {}
        self.events: dict[int, EventFd] = {}
        self.fds = itertools.count(1000)
        self.ports = itertools.count(20000)
        self.partitioned = False
        self.latency = 0.005
        self.jitter = 0.01
        self.bytes_per_s = 50e6
        self.damage: Callable[[], str | None] = lambda: None
        self.on_sent: Callable[[SimSocket, bytes], None] = lambda _socket, _data: None
        self.on_abandoned: Callable[[bytes], None] = lambda _frame: None
        self.on_cut: Callable[[SimSocket], None] = lambda _socket: None
        #: Returns up to where the reader of a stream may read that was damaged at an offset; None: as far as it likes.
        self.on_damage: Callable[[SimSocket, int], int | None] = lambda _socket, _offset: None
        self.cuts = 0

    def connections(self) -> list[SimSocket]:
        return [one for one in self.sockets.values() if one.peer is not None and not one.closed]

    def cut(self, one: SimSocket) -> None:
        """End a connection; both sides learn of it."""
        other = one.peer
        self.cuts += 1
        for side in (one, other):
            if side is not None and not side.broken:
                self.on_cut(side)
                side.fail(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))


NETWORK: Network | None = None


def install(network: Network | None) -> None:
    global NETWORK  # noqa: PLW0603
    NETWORK = network


def network() -> Network:
    if NETWORK is None:
        raise AssertionError("no simulation runs")
    return NETWORK


class EventFd:
    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.count = 0
        self.watchers: list[Task] = []

    def ready(self) -> bool:
        return self.count > 0


class SimSocket:
    """A listener, or one end of a connection; also stands for what is made of it by :func:`secure`."""

    def __init__(self, *_: Any) -> None:
        net = network()
        self.fd = next(net.fds)
        net.sockets[self.fd] = self
        self.process: Process = hub().check().process
        self.process.on_death.append(self._died)
        self.address: tuple[str, int] | None = None
        self.peer: SimSocket | None = None
        self.identity: Any = None
        self.server_side = False
        self.timeout: float | None = None
        self.closed = False
        self.broken: OSError | None = None
        self.ended = False
        self.backlog: deque[SimSocket] = deque()
        self.listening = False
        self.record = memoryview(b"")
        self.records: deque[bytes] = deque()
        self.taken: deque[bytes] = deque()
        self.waiting_bytes = 0
        self.arrives_at = 0.0
        self.held: list[Callable[[], None]] = []
        self.latency = net.latency + net.jitter * hub().rng.random()
        self.readers: list[Task] = []
        self.writers: list[Task] = []
        self.watchers: list[Task] = []
        self.sent_total = 0
        self.taken_total = 0
        self.received_total = 0
        self.ends_at: int | None = None

    # Setting up -----------------------------------------------------------------------------------------------------

    def _died(self) -> None:
        if not self.closed:
            self.closed = True
            if self.listening and self.address is not None:
                network().listeners.pop(self.address, None)
            if self.peer is not None:
                self.peer.arrive(None)
            for waiting in self.backlog:
                waiting.fail(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))

    def fileno(self) -> int:
        return -1 if self.closed else self.fd

    def settimeout(self, timeout: float | None) -> None:
        self.timeout = timeout

    def gettimeout(self) -> float | None:
        return self.timeout

    def setblocking(self, flag: bool) -> None:
        self.timeout = None if flag else 0.0

    def setsockopt(self, *_: Any) -> None:
        return

    def getsockopt(self, _level: int, _option: int, size: int = 0) -> Any:
        return bytes(size) if size else 0

    def getsockname(self) -> tuple[str, int]:
        return self.address or ("127.0.0.1", self.fd)

    def getpeername(self) -> tuple[str, int]:
        return self.peer.getsockname() if self.peer is not None else ("127.0.0.1", 0)

    def accept(self) -> tuple[SimSocket, tuple[str, int]]:
        here = hub()
        here.check()
        while not self.backlog:
            if self.closed or self.ended:
                raise OSError(errno.EINVAL, "Invalid argument")
            self._wait(self.readers)
        other = self.backlog.popleft()
        mine = SimSocket()
        mine.peer, other.peer = other, mine
        mine.latency = other.latency
        for queue in (other.readers, other.writers, other.watchers):
            for task in list(queue):
                here.wake(task)
        return Plain(mine), other.getsockname()  # type: ignore[return-value]

    @property
    def certificate(self) -> Any:
        return self.peer.identity.der if self.peer is not None and self.peer.identity is not None else None

    def handshake(self, identity: Any, server_side: bool) -> None:
        """Wait until the other side has shown itself too."""
        self.identity, self.server_side = identity, server_side
        deadline = None if self.timeout is None else hub().now + self.timeout
        while self.peer is None or self.peer.identity is None:
            self._check()
            if self.ended:
                raise ssl.SSLEOFError(8, "EOF occurred in violation of protocol")
            left = None if deadline is None else deadline - hub().now
            if left is not None and left <= 0:
                raise TimeoutError("The handshake operation timed out")
            hub().block(self.readers, min(0.05, left) if left is not None else 0.05)

    # Bytes ----------------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        hub().check()
        if self.closed:
            raise OSError(errno.EBADF, "Bad file descriptor")
        if self.broken is not None:
            raise self.broken

    def _wait(self, queue: list[Task], deadline: float | None = None) -> None:
        if self.timeout == 0.0:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        left = self.timeout if deadline is None else deadline - hub().now
        if left is not None and left <= 0:
            raise TimeoutError("The operation timed out")
        if not hub().block(queue, left) and left is not None:
            raise TimeoutError("The operation timed out")

    def sendall(self, data: Any) -> None:
        view = memoryview(data).cast("B")
        while view:
            view = view[self.send(view) :]

    def send_parts(self, *parts: Any) -> None:
        self.sendall(b"".join(parts))

    def seal(self, *parts: Any) -> list[memoryview]:
        return [memoryview(b"".join(parts))]

    def send_sealed(self, sealed: memoryview) -> int:
        return self.send(sealed)

    def send(self, data: Any) -> int:
        self._check()
        hub().point()
        self._check()
        other = self.peer
        view = memoryview(data).cast("B")
        if self.ended_writing or other is None:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        deadline = None if self.timeout is None else hub().now + self.timeout
        while other.waiting_bytes >= CAPACITY:
            if other.closed and self.ended:  # nobody reads there any more, and its machine has said so
                raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
            self._wait(self.writers, deadline)
            self._check()
        piece = bytes(view[: min(len(view), CAPACITY)])
        other.waiting_bytes += len(piece)
        self.sent_total += len(piece)
        network().on_sent(self, piece)
        self._carry(piece)
        return len(piece)

    ended_writing = False

    def _carry(self, piece: bytes) -> None:
        net, here, other = network(), hub(), self.peer
        assert other is not None
        self.arrives_at = max(self.arrives_at, here.now + self.latency) + len(piece) / net.bytes_per_s
        here.after(self.arrives_at - here.now, lambda: other.arrive(piece))

    def arrive(self, piece: bytes | None) -> None:
        """Take what came (None: the end), unless the way is cut off."""
        net = network()
        if net.partitioned or self.held:
            if not self.held:
                self._hold()
            self.held.append(lambda: self._take(piece))
            return
        self._take(piece)

    def _hold(self) -> None:
        def look() -> None:
            if network().partitioned:
                hub().after(0.5, look)
                return
            held, self.held = self.held, []
            for action in held:
                action()

        hub().after(0.5, look)

    def _take(self, piece: bytes | None) -> None:
        if self.closed or self.broken is not None:
            return
        if piece is None:
            self.ended = True
        else:
            for at in range(0, len(piece), RECORD):
                record = piece[at : at + RECORD]
                kind = network().damage()
                if kind == "outside":
                    self.fail(ssl.SSLError(1, "[SSL: DECRYPTION_FAILED_OR_BAD_RECORD_MAC] bad record mac"))
                    return
                if kind == "inside":
                    place = hub().rng.randrange(len(record) * 8)
                    damaged = bytearray(record)
                    damaged[place // 8] ^= 1 << place % 8
                    record = bytes(damaged)
                    end = network().on_damage(self, self.taken_total + place // 8)
                    if end is not None:
                        self.ends_at = end if self.ends_at is None else min(end, self.ends_at)
                self.taken_total += len(record)
                self.records.append(record)
        self._tell(self.readers, self.watchers, *([self.writers] if self.ended else []))

    def _tell(self, *queues: list[Task]) -> None:
        for queue in queues:
            for task in list(queue):
                hub().wake(task)

    def fail(self, error: OSError) -> None:
        """Break this end."""
        self.broken = error
        self._tell(self.readers, self.writers, self.watchers)

    def recv_into(self, buffer: Any, nbytes: int = 0) -> int:
        self._check()
        hub().point()
        view = memoryview(buffer).cast("B")
        size = nbytes or len(view)
        if self.ends_at is not None and self.received_total >= self.ends_at:
            raise Violation(f"I6: {self.process.name} reads on behind a damaged header or meta part")
        deadline = None if self.timeout is None else hub().now + self.timeout
        while not self.record:
            self._check()
            if self.taken:
                self.record = memoryview(self.taken.popleft())
                break
            if self.records:
                self.taken, self.records = self.records, deque()
                continue
            if self.ended:
                return 0
            self._wait(self.readers, deadline)
        count = min(size, len(self.record))
        view[:count] = self.record[:count]
        self.record = self.record[count:]
        self.received_total += count
        before, self.waiting_bytes = self.waiting_bytes, self.waiting_bytes - count
        if before >= CAPACITY > self.waiting_bytes and self.peer is not None:
            self._tell(self.peer.writers, self.peer.watchers)
        return count

    def recv(self, size: int) -> bytes:
        buffer = bytearray(size)
        return bytes(buffer[: self.recv_into(buffer)])

    def pending(self) -> bool:
        return bool(self.record or self.taken)

    def ready(self) -> bool:
        return bool(self.records or self.ended or self.broken is not None or self.backlog)

    def shutdown(self, _how: int = 2) -> None:
        hub().check()
        if self.closed:
            raise OSError(errno.EBADF, "Bad file descriptor")
        if self.listening:
            self.ended = True
        else:
            self.ended = True
            self.ended_writing = True
            if self.peer is not None:
                self._carry_end()
        self._tell(self.readers, self.writers, self.watchers)

    def _carry_end(self) -> None:
        other, here = self.peer, hub()
        assert other is not None
        self.arrives_at = max(self.arrives_at, here.now + self.latency)
        here.after(self.arrives_at - here.now, lambda: other.arrive(None))

    def close(self) -> None:
        hub().check()
        if self.closed:
            return
        self.closed = True
        network().sockets.pop(self.fd, None)
        if self.listening and self.address is not None:
            network().listeners.pop(self.address, None)
            for waiting in self.backlog:
                waiting.fail(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))
        elif self.peer is not None and not self.ended_writing:
            self._carry_end()
        self._tell(self.readers, self.writers, self.watchers)

    def __enter__(self) -> SimSocket:  # noqa: PYI034
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Plain:
    """A connection before TLS. Once that has taken it over, to close it closes nothing."""

    def __init__(self, inner: SimSocket) -> None:
        self.__dict__["inner"] = inner
        self.__dict__["taken"] = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.inner, name, value)

    def close(self) -> None:
        if not self.taken:
            self.inner.close()


class Context:
    """Stands for both contexts of a node's TLS."""

    def __init__(self, identity: Any, *, server: bool) -> None:
        self._identity = identity
        self._server = server

    def handshake(self, plain: Any, server_side: bool) -> None:
        plain.handshake(self._identity, server_side)


def secure(plain: Any, context: Any, *, server_side: bool = False, server_hostname: str | None = None) -> SimSocket:
    """Stand for :func:`farshore.transport.records.secure`."""
    del server_hostname
    context.handshake(plain, server_side)
    plain.__dict__["taken"] = True
    inner: SimSocket = plain.inner
    return inner


def create_connection(address: tuple[str, int], timeout: float | None = None, *_: Any, **__: Any) -> Plain:
    here, net = hub(), network()
    here.check()
    one = SimSocket()
    one.timeout = timeout
    one.address = ("127.0.0.1", next(net.ports))
    here.sleep(one.latency)
    end = here.now + (timeout if timeout is not None else 60.0)
    while net.partitioned:
        if here.now >= end:
            raise TimeoutError("timed out")
        here.sleep(min(0.5, max(0.0, end - here.now)))
    listener = net.listeners.get(address)
    if listener is None or listener.closed:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
    listener.backlog.append(one)
    listener._tell(listener.readers, listener.watchers)
    return Plain(one)


def create_server(address: tuple[str, int], **_: Any) -> SimSocket:
    net = network()
    listener = SimSocket()
    port = address[1] or next(net.ports)
    listener.address = (address[0], port)
    if listener.address in net.listeners:
        raise OSError(errno.EADDRINUSE, "Address already in use")
    listener.listening = True
    net.listeners[listener.address] = listener
    return listener


# --- poll and eventfd -------------------------------------------------------------------------------------------------


def _watched(fd: int) -> Any:
    net = network()
    return net.events.get(fd) or net.sockets.get(fd)


class Poll:
    def __init__(self, *_: Any) -> None:
        self._fds: dict[int, int] = {}

    def register(self, what: Any, mask: int = real_select.POLLIN) -> None:
        self._fds[what if isinstance(what, int) else what.fileno()] = mask

    modify = register

    def unregister(self, what: Any) -> None:
        self._fds.pop(what if isinstance(what, int) else what.fileno(), None)

    def _ready(self) -> list[tuple[int, int]]:
        found = []
        for fd, mask in self._fds.items():
            thing = _watched(fd)
            events = 0
            if thing is None:
                events = real_select.POLLNVAL
            else:
                if mask & real_select.POLLIN and thing.ready():
                    events |= real_select.POLLIN
                if (
                    mask & real_select.POLLOUT
                    and isinstance(thing, SimSocket)
                    and (thing.peer is None or thing.peer.waiting_bytes < CAPACITY)
                ):
                    events |= real_select.POLLOUT
            if events:
                found.append((fd, events))
        return found

    def poll(self, timeout: float | None = None) -> list[tuple[int, int]]:
        """Wait; ``timeout`` in milliseconds."""
        here = hub()
        task = here.check()
        seconds = None if timeout is None or timeout < 0 else timeout / 1000
        end = None if seconds is None else here.now + seconds
        while True:
            found = self._ready()
            left = None if end is None else end - here.now
            if found or (left is not None and left <= 0):
                return found
            things = [thing for fd in self._fds if (thing := _watched(fd)) is not None]
            queues = [thing.watchers for thing in things]
            queues += [
                thing.peer.waiting_queue()
                for thing in things
                if isinstance(thing, SimSocket) and thing.peer is not None and hasattr(thing.peer, "waiting_queue")
            ]
            for queue in queues:
                queue.append(task)
            try:
                here.block(None, left)
            finally:
                for queue in queues:
                    if task in queue:
                        queue.remove(task)


def eventfd(count: int = 0, _flags: int = 0) -> int:
    hub().check()
    one = EventFd(next(network().fds))
    one.count = count
    network().events[one.fd] = one
    return one.fd


def eventfd_write(fd: int, value: int) -> None:
    here = hub()
    here.check()
    one = network().events.get(fd)
    if one is None:
        raise OSError(errno.EBADF, "Bad file descriptor")
    one.count += value
    for task in list(one.watchers):
        here.wake(task)


def eventfd_read(fd: int) -> int:
    hub().check()
    one = network().events.get(fd)
    if one is None:
        raise OSError(errno.EBADF, "Bad file descriptor")
    if not one.count:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
    count, one.count = one.count, 0
    return count


def close_event(fd: int) -> bool:
    """Close an eventfd; False if it is none."""
    hub().check()
    return network().events.pop(fd, None) is not None


SOCKET = Namespace(real_socket, socket=SimSocket, create_connection=create_connection, create_server=create_server)
SELECT = Namespace(real_select, poll=Poll)
REPLACED: dict[int, Any] = {
    id(real_socket): SOCKET,
    id(real_select): SELECT,
    id(real_socket.socket): SimSocket,
    id(real_socket.create_connection): create_connection,
    id(real_socket.create_server): create_server,
    id(records.secure): secure,
}
