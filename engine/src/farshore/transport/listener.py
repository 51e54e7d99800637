"""The data port of a node: accepts connections, makes sure who is there, and hands each to the side that it is for.

A peer that asks is for the source side (``serve``), one that answers for the target side (``adopt``). Until a peer has
shown its certificate and greeted it has a thread and a few KiB, at most ``GREETING_MAX`` of them at once and
``greeting_timeout_s`` each; the buffers of the data path are taken afterwards. A peer that is refused is logged once.

A node with parts (``parts``) has one port for all: a connection that names a part goes to it as it is, and the part's
own listener, which has no port but a door, greets it.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final

from farshore.errors import Conflict, FarshoreError, Forbidden, Permanent, Reconnect
from farshore.transport import frames
from farshore.transport.notices import Notices, code_of, named
from farshore.transport.parts import Parts, wanted_by
from farshore.transport.records import Secured, secure
from farshore.transport.sockets import hang_up, parse_address, prepare, receive_frame
from farshore.transport.tls import NodeTls, Peer, peer_of

log = logging.getLogger(__name__)

GREETING_TIMEOUT_S: Final = 10.0
#: Connections that are served at once; 32 per plan is the highest setting.
CONNECTIONS_MAX: Final = 512
#: Connections that have not greeted yet. When another comes, the oldest has to go.
GREETING_MAX: Final = 64
#: How long a refused peer may take to read why.
_PARTING_TIMEOUT_S: Final = 1.0
_META_BYTES: Final = 16 * 1024

Serve = Callable[[Secured, Peer], None]


class DataListener:
    """Accepts the data connections of a node.

    Args:
        identity: returns our certificate; asked at every connection.
        serve: answers a peer's questions on a greeted connection, in its thread, and returns when it has ended. None: a
            peer that asks is refused.
        adopt: takes over the connection of a peer that answers, and returns at once. None: such a peer is refused.
        parts: take the connections that name one of them; a peer that answers is told how many there are.
        greeting_timeout_s: a peer has this long from its connection to the end of its greeting, round trips and all.
    """

    def __init__(
        self,
        identity: Callable[[], NodeTls],
        *,
        serve: Serve | None = None,
        adopt: Serve | None = None,
        parts: Parts | None = None,
        greeting_timeout_s: float = GREETING_TIMEOUT_S,
    ) -> None:
        self._identity = identity
        self._serve = serve
        self._adopt = adopt
        self._parts = parts
        self._timeout_s = greeting_timeout_s
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._threads: dict[threading.Thread, socket.socket] = {}
        self._greeting: OrderedDict[threading.Thread, float] = OrderedDict()
        self._stopping = threading.Event()
        self._notices = Notices()

    def start(self, listen: str) -> tuple[str, int]:
        """Listen on ``host:port`` (port 0: any) and return the bound address.

        Raises:
            Invalid: not an address; ``field`` is ``data_listen``.
            Conflict: the address cannot be had.
        """
        host, port = parse_address(listen, "data_listen")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listener = socket.create_server((host, port), family=family, backlog=64)
        except OSError as error:
            raise Conflict(
                f"cannot listen on {listen}: {error.strerror or error}",
                code="data-listen",
                hint="Choose a free port of this machine in data_listen.",
                field="data_listen",
            ) from error
        self.start_at(listener)
        bound = listener.getsockname()
        return str(bound[0]), int(bound[1])

    def start_at(self, listener: socket.socket) -> None:
        """Take what a listening socket accepts, or a :class:`~farshore.transport.parts.Door`; it is ours now."""
        self._socket = listener
        threading.Thread(target=self._accept, args=(listener,), name="data-listener", daemon=True).start()

    def stop(self) -> None:
        """Close the port and all connections that were not adopted. May be called again."""
        self._stopping.set()
        listener, self._socket = self._socket, None
        if listener is not None:
            hang_up(listener)  # wakes the thread that accepts
            listener.close()
        with self._lock:
            threads = dict(self._threads)
        for connection in threads.values():
            hang_up(connection)
        for thread in threads:
            if thread.ident is not None:  # else it is about to start, and finds its connection at an end
                thread.join(timeout=10.0)

    # Inside ---------------------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        while not self._stopping.is_set():
            self._drop_slow()
            try:
                if not poll.poll(500 if self._greeting else None):
                    continue
                plain, address = listener.accept()
            except OSError as error:
                if self._stopping.is_set():
                    return
                log.warning("accepting a connection failed: %s", error)
                time.sleep(0.1)  # out of descriptors: others have to close first
                continue
            with self._lock:
                if len(self._threads) - len(self._greeting) >= CONNECTIONS_MAX:
                    plain.close()
                    continue
                thread = threading.Thread(
                    target=self._run, args=(plain, str(address[0])), name="data-connection", daemon=True
                )
                self._threads[thread] = plain
                self._greeting[thread] = time.monotonic() + self._timeout_s
            try:
                thread.start()
            except RuntimeError as error:  # the system has no thread left; those who are served go on
                log.warning("a data connection was not taken: %s", error)
                self._forget(thread)
                plain.close()

    def _drop_slow(self) -> None:
        """Hang up on peers whose time to greet is over, and on the oldest where there are too many."""
        now = time.monotonic()
        with self._lock:
            slow = [thread for thread, deadline in self._greeting.items() if deadline < now]
            slow += list(self._greeting)[len(slow) : len(self._greeting) - GREETING_MAX]
            sockets = [self._threads[thread] for thread in slow]
        for connection in sockets:
            hang_up(connection)

    def _run(self, plain: socket.socket, host: str) -> None:
        """Greet one peer, and serve it until it goes."""
        connection: socket.socket = plain
        try:
            if self._passed_on(plain, host):
                return
            secured, peer, asks = self._welcome(plain)
            connection = secured
            if asks and self._serve is not None:
                self._serve(secured, peer)
            elif self._adopt is not None:
                self._adopt(secured, peer)
                connection = plain  # which the TLS connection has left empty: what was adopted stays open
        except EOFError:
            pass
        except (OSError, FarshoreError) as error:
            self._note(host, error)
        except Exception:
            log.exception("a data connection from %s met an error of our own", host)
        finally:
            connection.close()
            self._forget(threading.current_thread())

    def _passed_on(self, plain: socket.socket, host: str) -> bool:
        """Hand a connection to the part that it names; False if it is for us."""
        if self._parts is None:
            return False
        plain.settimeout(self._timeout_s)
        with self._in_time():
            part = wanted_by(plain)
        return part > 0 and self._parts.take(part, plain, host)

    def _forget(self, thread: threading.Thread) -> None:
        with self._lock:
            self._threads.pop(thread, None)
            self._greeting.pop(thread, None)

    def _welcome(self, plain: socket.socket) -> tuple[Secured, Peer, bool]:
        """Return the connection, who is there, and whether they ask."""
        me = threading.current_thread()
        connection: Secured | None = None
        try:
            with self._in_time():
                prepare(plain)
                plain.settimeout(self._timeout_s)
                connection = _handshake(plain, self._identity().server)
                with self._lock:
                    self._threads[me] = connection
                if self._stopping.is_set():  # and whoever stops us may have hung up on what it was before
                    hang_up(connection)
                peer = peer_of(connection)
                asks = self._greet(connection)
                connection.settimeout(None)
                with self._lock:
                    self._greeting.pop(me, None)
        except (OSError, EOFError, FarshoreError):
            if connection is not None:
                connection.close()
            raise
        return connection, peer, asks

    @contextlib.contextmanager
    def _in_time(self) -> Iterator[None]:
        """Name the reason where a peer failed because its time was over."""
        began = time.monotonic()
        try:
            yield
        except (OSError, EOFError, FarshoreError) as error:
            if not self._stopping.is_set() and time.monotonic() - began >= self._timeout_s:
                raise Reconnect("it did not greet in time", code="greeting-timeout") from error
            raise

    def _greet(self, connection: Secured) -> bool:
        """Exchange greetings and return whether the peer asks."""
        meta = memoryview(bytearray(_META_BYTES))
        header = receive_frame(connection, memoryview(bytearray(frames.HEADER.size)), meta)
        if header.type is not frames.Type.HELLO:
            raise Reconnect("it did not greet", code="not-greeted")
        hello = frames.Hello.decode(meta[: header.meta_size])
        try:
            self._check(hello)
        except Permanent as error:
            _part(connection, error)
            raise
        features = frames.ROLE_SOURCE
        if hello.answers:
            features = frames.parts_as_features(self._parts.expect() if self._parts is not None else 0)
        connection.sendall(frames.Hello(features=features).encode())
        return not hello.answers

    def _check(self, hello: frames.Hello) -> None:
        """Raise ``Permanent`` unless we speak a version of the peer's and have the side that it is for."""
        hello.agree()
        if (self._adopt if hello.answers else self._serve) is None:
            raise Permanent(
                f"this node does not {'pull from' if hello.answers else 'serve'} peers that connect to it",
                code="role-not-served",
                hint="Compare data_listen of the site link with the settings of both nodes.",
            )

    def _note(self, host: str, error: OSError | FarshoreError) -> None:
        if self._stopping.is_set():
            return
        level = logging.WARNING if self._notices.news(host, code_of(error)) else logging.DEBUG
        log.log(level, "a data connection from %s ended: %s", host, named(error))


def _handshake(plain: socket.socket, context: ssl.SSLContext) -> Secured:
    try:
        return secure(plain, context, server_side=True)
    except ssl.SSLError as error:
        if any(word in str(error) for word in ("CERTIFICATE", "UNKNOWN_CA", "DECRYPT_ERROR")):
            raise Forbidden(f"its certificate is not accepted: {error}", code="certificate-refused") from error
        raise Reconnect(f"it does not speak TLS as we do: {error}", code="not-tls") from error


def _part(connection: Secured, error: FarshoreError) -> None:
    """Tell a peer why it is refused. What it sent meanwhile is read, or the reset would overtake the answer."""
    with contextlib.suppress(OSError):
        connection.sendall(frames.encode_error(0, error))
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(_PARTING_TIMEOUT_S)
        for _ in range(64):
            if not connection.recv(_META_BYTES):
                return
