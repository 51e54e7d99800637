"""Reading and writing of one connection, by one thread that the kernel wakes when enough has come to be worth it."""

from __future__ import annotations

import select
import socket
from typing import Final

from farshore.errors import Reconnect
from farshore.transport.records import Secured
from farshore.units import KIB

#: What has to have come before a thread that waits for more than this is woken. At 1 Gbit/s over eight connections
#: and 200 ms a target took 6.4 s of processor for each GiB when every packet woke it. A young connection has less in
#: flight, and a receive window that grows with what is taken out: for it, this part of what it has brought so far.
_ENOUGH: Final = 128 * KIB
_PART: Final = 16
#: What a record can hold back: it is decrypted when all of it is there.
_RECORD: Final = 17 * KIB


class Stream:
    """A connection after its greeting.

    Silence of ``timeout_s`` in the midst of a frame ends it with ``Reconnect``.
    """

    def __init__(self, connection: Secured, timeout_s: float) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._enough = 1
        self._received = 0
        self._timeout_ms = int(timeout_s * 1000)
        self._readable = select.poll()
        self._readable.register(connection, select.POLLIN)
        self._writable = select.poll()
        self._writable.register(connection, select.POLLOUT)

    def send(self, data: bytes | memoryview) -> None:
        """Send all of ``data``."""
        for sealed in self._connection.seal(data):
            left = sealed
            while left:
                try:
                    left = left[self._connection.send_sealed(left) :]
                except BlockingIOError:
                    self._wait(self._writable)

    def receive(self, view: memoryview, *, at_start: bool = False) -> None:
        """Fill ``view``, as :class:`farshore.transport.sockets.Fill` says."""
        at, size = 0, len(view)
        while at < size:
            try:
                count = self._connection.recv_into(view[at:])
            except BlockingIOError:
                self._wake_at(min(size - at, (self._received + at) // _PART))
                self._wait(self._readable)
                continue
            if count == 0:
                if at_start and at == 0:
                    raise EOFError("the peer closed the connection")
                raise Reconnect("the connection ended inside of a frame")
            at += count
        self._received += size
        self._wake_at(0)

    def _wake_at(self, expected: int) -> None:
        """Have the kernel call the socket readable when as much, or enough, has come."""
        enough = max(1, min(_ENOUGH, expected - _RECORD))
        if enough != self._enough:
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, enough)
            self._enough = enough

    def _wait(self, poll: select.poll) -> None:
        if not poll.poll(self._timeout_ms):
            raise Reconnect("the peer fell silent in the midst of a frame", code="peer-silent")
