"""Reading and writing of one TLS connection, by one thread.

Python decrypts record by record, 64 to the MiB, and gives the interpreter's lock away at each. Where eight threads do
so at once, most of their time goes into taking turns: a target was measured to spend 1.6 to 3.5 s of processor for each
GiB, and 1.4 s where a thread that has begun goes on until nothing more has come. So reading is done in *lanes*; who
waits for the network holds none, and is woken by the kernel when enough has come to be worth it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import ssl
import threading
from typing import Final

from farshore.errors import Reconnect
from farshore.units import KIB

#: What is shorter than this comes in one or two records, and needs no lane.
_SHORT: Final = 32 * KIB
#: What has to have come before a thread that waits for more than this is woken. At 1 Gbit/s over eight connections
#: and 200 ms a target took 6.4 s of processor for each GiB when every packet woke it. A young connection has less in
#: flight, and a receive window that grows with what is taken out: for it, this part of what it has brought so far.
_ENOUGH: Final = 128 * KIB
_PART: Final = 16
#: What a record can hold back: it is decrypted when all of it is there.
_RECORD: Final = 17 * KIB


class Lanes:
    """The lanes of a node: one for two processors, for each of them is busy at either end of a link."""

    def __init__(self) -> None:
        self._locks = itertools.cycle([threading.Lock() for _ in range(max(1, (os.cpu_count() or 1) // 2))])

    def next(self) -> threading.Lock:
        """Return the lane of one more connection."""
        return next(self._locks)


class Stream:
    """A connection after its greeting, read in a ``lane``.

    Silence of ``timeout_s`` in the midst of a frame ends it with ``Reconnect``.
    """

    def __init__(self, connection: ssl.SSLSocket, timeout_s: float, lane: threading.Lock) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._lane = lane
        self._enough = 1
        self._received = 0
        self._timeout_ms = int(timeout_s * 1000)
        self._readable = select.poll()
        self._readable.register(connection, select.POLLIN)
        self._writable = select.poll()
        self._writable.register(connection, select.POLLOUT)

    def send(self, data: bytes | memoryview) -> None:
        """Send all of ``data``."""
        view = memoryview(data)
        while view:
            try:
                view = view[self._connection.send(view) :]
            except ssl.SSLWantWriteError:
                self._wait(self._writable)
            except ssl.SSLWantReadError:
                self._wait(self._readable)

    def receive(self, view: memoryview, *, at_start: bool = False) -> None:
        """Fill ``view``, as :class:`farshore.transport.sockets.Fill` says."""
        at, size = 0, len(view)
        receive = self._connection.recv_into
        lane = self._lane if size >= _SHORT else contextlib.nullcontext()
        while at < size:
            try:
                with lane:
                    while at < size:
                        count = receive(view[at:], size - at)
                        if count == 0:
                            if at_start and at == 0:
                                raise EOFError("the peer closed the connection")
                            raise Reconnect("the connection ended inside of a frame")
                        at += count
            except ssl.SSLWantReadError:
                self._wake_at(min(size - at, (self._received + at) // _PART))
                self._wait(self._readable)
            except ssl.SSLWantWriteError:
                self._wait(self._writable)
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
