"""One connection of a link, and the thread that does all reading and writing on it.

A TLS connection must not be used by two threads at once, so whoever wants something sent puts it into the outbox and
wakes the thread. Payloads are received into buffers that are lent to whoever asked for them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import select
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from farshore.errors import FarshoreError, Permanent, Reconnect
from farshore.transport import frames
from farshore.transport.buffers import NOTHING, Lent
from farshore.transport.dialing import check_answer, dial, pause_s, refusal
from farshore.transport.notices import code_of, named
from farshore.transport.pace import Pace
from farshore.transport.records import Secured
from farshore.transport.sockets import Wire, hang_up, receive_frame, receive_head, wire_of
from farshore.transport.stream import Stream

if TYPE_CHECKING:
    from farshore.transport.links import Link
    from farshore.transport.tls import NodeTls

log = logging.getLogger(__name__)

#: Bytes of requests that a connection may have unanswered. They fit the smallest default receive buffer (64 KiB of a
#: 128 KiB tcp_rmem), so sending one never waits for a source that is itself busy sending to us.
REQUEST_BYTES_MAX: Final = 48 * 1024
#: Silence of this length while an answer is owed means that the connection is dead.
ANSWER_TIMEOUT_S: Final = 60.0
#: A connection older than this is replaced once nothing is outstanding on it: with the newest certificates.
AGE_MAX_S: Final = 3600.0
_REFUSED_PAUSE_S: Final = 5.0
#: A connection that broke sooner than this counts as an attempt that failed.
_SHORT_S: Final = 1.0
#: After one that lived for so long, the next trouble is news again.
_PROVEN_S: Final = 60.0

OnAnswer = Callable[[frames.Header, memoryview, Lent], None]
OnError = Callable[[FarshoreError], None]


class Request:
    """A question that waits for its answer.

    ``on_answer`` and ``on_error`` are called once in all, from a connection's thread. The meta part that ``on_answer``
    gets is valid only during the call; the payload is for it to keep, and to release. ``weight`` is the bytes that the
    answer is expected to bring, ``keeps`` says that it may bring a payload at all.
    """

    __slots__ = (
        "abandoned",
        "asked_at",
        "build",
        "frame",
        "keeps",
        "number",
        "on_answer",
        "on_error",
        "times_sent",
        "weight",
    )

    def __init__(
        self,
        build: Callable[[int], bytes],
        on_answer: OnAnswer,
        on_error: OnError,
        weight: int = 0,
        *,
        keeps: bool = False,
    ) -> None:
        self.build = build
        self.on_answer = on_answer
        self.on_error = on_error
        self.weight = weight
        self.keeps = keeps
        self.number = 0
        self.frame = b""
        self.times_sent = 0
        self.asked_at = 0.0
        self.abandoned = False


class _Aged(Exception):
    """The connection is to be replaced."""


class Connection(threading.Thread):
    """One connection. Made by a link: to be dialed again and again, or ``given`` and used to its end.

    Attributes:
        alive: requests may be placed here; guarded by the link's lock, as are ``load``, ``pace`` and ``outbox``.
        greeted: the peer has shown that it speaks the protocol.
        retiring: it comes to its end with what is outstanding.
        working: it is open or being opened, not waiting until it is needed; guarded by the link's lock.
        load: bytes that are asked for and not yet answered.
        pace: how fast they come.
        shown: who we are on it; None where the listener knows.
    """

    def __init__(self, link: Link, name: str, given: Secured | None = None) -> None:
        super().__init__(name=f"link-{name}", daemon=True)
        self._link = link
        self._given = given
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.outbox: deque[Request] = deque()
        self.alive = False
        self.greeted = False
        self.retiring = False
        self.working = False
        self.load = 0
        self.pace = Pace()
        self.shown: NodeTls | None = None
        self.wire = Wire()
        self._socket: Secured | None = None
        self._outstanding: dict[int, Request] = {}
        self._outstanding_bytes = 0
        self._head = memoryview(bytearray(frames.HEADER.size))
        self._meta = memoryview(bytearray(frames.MAX_META))

    def wake(self) -> None:
        """Make the thread look at its outbox."""
        with contextlib.suppress(OSError):
            os.eventfd_write(self._event, 1)

    def run(self) -> None:
        """Use the connection that was given; or connect, use, and again."""
        if self._given is not None:
            self._use(self._given, greeted=True)
            self._link.left(self)
            return
        attempt = 0
        while self._link.wait_until_wanted(self):
            began = time.monotonic()
            connection = self._connect()
            if connection is not None and self._use(connection, greeted=False) and time.monotonic() - began > _SHORT_S:
                attempt = 0
            else:
                self._link.rest(self, pause_s(attempt))
                attempt += 1

    def end(self) -> None:
        """Wake the thread wherever it is and wait for it; the link is closed."""
        self.wake()
        connection = self._socket
        if connection is not None:
            hang_up(connection)
        self.join()
        self.forget()

    def forget(self) -> None:
        """Give back what the thread used; nobody may know it any more."""
        # Not earlier: a number that was given back might be another file's when somebody wakes us.
        os.close(self._event)

    def measure(self) -> Wire:
        """Return what the connection has carried until now."""
        connection = self._socket
        if connection is not None:
            with contextlib.suppress(OSError):  # it ended this moment; its thread has the last figures
                self.wire = wire_of(connection)
        return self.wire

    # Inside ---------------------------------------------------------------------------------------------------------

    def _connect(self) -> Secured | None:
        link = self._link
        self.shown = link.identity
        try:
            return dial(self.shown, link.address, link.peer, link.connect_timeout_s, met=link.met)
        except Permanent as error:
            link.refuse(error)
            link.rest(self, _REFUSED_PAUSE_S)
        except (OSError, EOFError, FarshoreError) as error:
            link.not_connected(self._note(error))
        except Exception as error:  # a thread that ended would take its connection away for good
            log.exception("connecting to %s met an error of our own", link.peer)
            link.not_connected(repr(error))
        return None

    def _use(self, connection: Secured, *, greeted: bool) -> bool:
        """Use a connection to its end, and say whether the peer had greeted."""
        link = self._link
        self._socket = connection
        self.wire = Wire()
        self.greeted = greeted
        reason = "closed"
        refused: FarshoreError | None = None
        began = time.monotonic()
        link.came_up(self)
        try:
            if not greeted:
                self._greet(connection)
            self._serve(connection)
        except _Aged:
            reason = "replaced after its time"
        except (OSError, EOFError, FarshoreError) as error:
            if not self.greeted and isinstance(error, ssl.SSLError):
                # With TLS 1.3 the peer's verdict on our certificate comes after the handshake.
                error = refusal(error, link.peer)
            elif not self.greeted and isinstance(error, TimeoutError):
                error = Reconnect(f"{link.peer} did not greet in time", code="greeting-timeout")
            if not self.greeted and isinstance(error, Permanent):
                refused = error
            reason = self._note(error)
        except Exception as error:  # a bug of ours: what was asked goes to another connection, and is shown
            reason = repr(error)
            log.exception("connection to %s was given up", link.peer)
        finally:
            self.measure()
            self._socket = None
            connection.close()
            owed = list(self._outstanding.values())
            self._outstanding.clear()
            self._outstanding_bytes = 0
            link.went_down(self, owed, reason)
            if time.monotonic() - began > _PROVEN_S:
                link.notices.forget(str(link))
        if refused is not None:
            link.refuse(refused)
            link.rest(self, _REFUSED_PAUSE_S)
        return self.greeted

    def _note(self, error: OSError | EOFError | FarshoreError) -> str:
        """Log why there is no connection, if that is news, and return it."""
        if not self._link.closed:
            level = logging.WARNING if self._link.notices.news(str(self._link), code_of(error)) else logging.DEBUG
            log.log(level, "no connection to %s: %s", self._link, named(error))
        return str(error) or type(error).__name__

    def _greet(self, connection: Secured) -> None:
        """Greet, and send what waits without waiting for the answer: who speaks another version refuses both."""
        connection.settimeout(self._link.connect_timeout_s)
        connection.sendall(frames.Hello().encode())
        self._send_waiting(connection.sendall)
        header = receive_frame(connection, self._head, self._meta)
        check_answer(header, self._meta[: header.meta_size], answers=True, peer=self._link.peer)
        self._link.greeted(self)

    def _serve(self, connection: Secured) -> None:
        stream = Stream(connection, ANSWER_TIMEOUT_S)
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        poll.register(self._event, select.POLLIN)
        heard = time.monotonic()
        retire_at = heard + random.uniform(0.9, 1.0) * AGE_MAX_S  # noqa: S311 - not all at once
        while not self._link.closed:
            self._send_waiting(stream.send)
            if not connection.pending():
                now = time.monotonic()
                retiring = self.retiring or (now > retire_at and self._link.may_retire(self))
                if retiring and not (self._outstanding or self.outbox):
                    raise _Aged
                owed = bool(self._outstanding)
                ready = {fd for fd, _ in poll.poll(1000 if owed or self.retiring else max(1, retire_at - now) * 1000)}
                if self._event in ready:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._event)
                if connection.fileno() not in ready:
                    if not owed:
                        heard = time.monotonic()
                    elif time.monotonic() - heard > ANSWER_TIMEOUT_S:
                        raise Reconnect("no answer came in time", code="peer-silent")
                    continue
            header = receive_head(stream.receive, self._head, self._meta)
            self._handle(stream, header)
            heard = time.monotonic()

    def _send_waiting(self, send: Callable[[bytes], None]) -> None:
        batch = []
        with self._link.lock:
            while self.outbox and (self._outstanding_bytes < REQUEST_BYTES_MAX or not self._outstanding):
                request = self.outbox.popleft()
                if request.abandoned:
                    self.load -= request.weight + len(request.frame)
                    continue
                request.times_sent += 1
                request.asked_at = request.asked_at or time.monotonic()
                self._outstanding[request.number] = request
                self._outstanding_bytes += len(request.frame)
                batch.append(request.frame)
        if batch:
            send(b"".join(batch))

    def _handle(self, stream: Stream, header: frames.Header) -> None:
        """Find whom a frame answers, and receive its payload for them."""
        meta = self._meta[: header.meta_size]
        # What can fail comes first: until it is taken out, a request goes to another connection.
        failure = frames.decode_error(meta) if header.type is frames.Type.ERROR else None
        request = self._outstanding.get(header.request)
        if request is None:
            if failure is not None and header.request == 0:
                raise failure
            raise Reconnect("the peer answered what was not asked", code="protocol-error")
        lent = self._receive_payload(stream, header.payload_size, request)
        del self._outstanding[header.request]
        self._outstanding_bytes -= len(request.frame)
        size = request.weight + len(request.frame)
        with self._link.lock:
            self.load -= size
            self.pace.answered(size, time.monotonic())
        if request.abandoned:
            lent.release()
        elif failure is not None:
            request.on_error(failure)
        else:
            request.on_answer(header, meta, lent)

    def _receive_payload(self, stream: Stream, size_bytes: int, request: Request) -> Lent:
        if not size_bytes:
            return NOTHING
        if not request.keeps:
            raise Reconnect("the peer sent data that was not asked for", code="protocol-error")
        lent = self._link.buffers.take(size_bytes)
        try:
            stream.receive(lent.view)
        except BaseException:
            lent.release()
            raise
        return lent
