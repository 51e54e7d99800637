"""Connections that we open: to a node that listens, whichever of the two then asks.

:func:`dial` opens one. A :class:`Dialer` is for a source behind a wall: it keeps connections open to target nodes that
listen, and serves what they ask. Where such a node has parts (:mod:`farshore.transport.parts`), each of them gets
connections of its own, and one is kept to the node itself, which tells at each greeting how many parts there are.
"""

from __future__ import annotations

import logging
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final, Literal

from farshore.errors import FarshoreError, Forbidden, Permanent, Reconnect
from farshore.transport import frames
from farshore.transport.listener import Serve
from farshore.transport.notices import Notices, code_of, named
from farshore.transport.parts import name_of
from farshore.transport.records import Secured, secure
from farshore.transport.sockets import Wire, connections_for, hang_up, parse_address, prepare, receive_frame, wire_of
from farshore.transport.tls import NodeTls, Peer, peer_of, same_thumbprint

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 10.0
PAUSE_FIRST_S: Final = 0.1
PAUSE_MAX_S: Final = 5.0
#: Bytes of the largest frame that a greeting is answered with, which may be an error.
ANSWER_META_BYTES: Final = 16 * 1024
#: A connection that ended sooner than this counts as an attempt that failed.
_SHORT_S: Final = 5.0


def pause_s(attempt: int) -> float:
    """Return how long to wait after ``attempt`` failures; nodes that lost the same peer do not come back together."""
    longest = min(PAUSE_FIRST_S * 2.0 ** min(attempt, 10), PAUSE_MAX_S)
    return random.uniform(0.5, 1.0) * longest  # noqa: S311


def dial(
    identity: NodeTls,
    address: tuple[str, int],
    expected: Peer,
    timeout_s: float = CONNECT_TIMEOUT_S,
    part: int = 0,
    met: Callable[[Wire], None] = lambda _wire: None,
) -> Secured:
    """Return a connection to ``expected``, or a part of it, that has this time-out; the greeting comes next.

    ``met`` is told of the path as soon as somebody is there, a round trip or two before this returns.

    Raises:
        OSError: nobody is there.
        Forbidden: somebody else is there, or one side does not accept the other's certificate.
        Reconnect: the handshake failed in another way (``not-tls``), or did not come (``handshake-timeout``).
    """
    plain = socket.create_connection(address, timeout=timeout_s)
    connection = plain
    try:
        prepare(plain)
        met(wire_of(plain))
        connection = secured = secure(plain, identity.client, server_hostname=name_of(part))
        check_peer(peer_of(secured), expected, f"{address[0]}:{address[1]}")
    except ssl.SSLError as error:
        connection.close()
        raise refusal(error, expected) from error
    except TimeoutError as error:
        connection.close()
        raise Reconnect(f"{expected} took the connection and fell silent", code="handshake-timeout") from error
    except BaseException:
        connection.close()
        raise
    return secured


def check_peer(peer: Peer, expected: Peer, where: str) -> None:
    """Raise ``Forbidden`` unless it is the node, with the certificate, that we want."""
    if (peer.site, peer.node) != (expected.site, expected.node) or not same_thumbprint(
        peer.thumbprint, expected.thumbprint
    ):
        raise Forbidden(
            f"{where} is {peer}, not {expected}",
            code="wrong-peer",
            hint="Check the node's data address, and whether its certificate was renewed meanwhile.",
            expected=expected.thumbprint,
            found=peer.thumbprint,
        )


def refusal(error: ssl.SSLError, peer: Peer) -> FarshoreError:
    """Return ``Forbidden`` where one side rejected the other's certificate, else ``Reconnect``."""
    text = str(error)
    if isinstance(error, ssl.SSLCertVerificationError) or "ALERT" in text:
        return Forbidden(
            f"{peer} and this node do not accept each other's certificates: {text}",
            code="certificate-refused",
            hint="Compare the authorities of both nodes, and the validity of their certificates.",
        )
    return Reconnect(f"the TLS handshake with {peer} failed: {text}", code="not-tls")


def check_answer(header: frames.Header, meta: memoryview, *, answers: bool, peer: Peer) -> frames.Hello:
    """Return the greeting that a greeting was answered with.

    Raises:
        FarshoreError: what the peer says against us.
        Reconnect: it is no greeting.
        Permanent: there is no common version, or the peer has not the role that we need (``answers``).
    """
    if header.type is frames.Type.ERROR:
        raise frames.decode_error(meta)
    if header.type is not frames.Type.HELLO:
        raise Reconnect(f"{peer} did not greet", code="not-greeted")
    hello = frames.Hello.decode(meta)
    hello.agree()
    if hello.answers is not answers:
        raise Permanent(f"{peer} {'answers' if hello.answers else 'asks'}, as this node does", code="wrong-role")
    return hello


class Dialer:
    """Keeps connections to target nodes open and serves what comes on them.

    Args:
        identity: returns our certificate; asked at every connection.
        serve: answers a peer's questions on a greeted connection, and returns or raises when it has ended.
    """

    def __init__(self, identity: Callable[[], NodeTls], serve: Serve) -> None:
        self.identity = identity
        self.serve = serve
        self.notices = Notices()
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, Peer], _Kept] = {}

    def keep(self, address: str, peer: Peer, connections: int | Literal["auto"] = "auto") -> None:
        """Have ``connections`` to ``peer`` at ``address``, from now until :meth:`drop`. May be called again.

        ``auto``: as many as the round trip asks for, once it is known.

        Raises:
            Invalid: the address is not one.
        """
        parsed = parse_address(address, "address")
        with self._lock:
            kept = self._kept.setdefault((address, peer), _Kept())
            kept.auto = connections == "auto"
            kept.connections = connections_for(kept.rtt_s) if connections == "auto" else connections
            surplus = self._fill(kept, parsed, peer)
        for caller in surplus:
            caller.end()

    def _fill(self, kept: _Kept, address: tuple[str, int], peer: Peer) -> list[_Caller]:
        """Add callers up to the numbers that are wanted, or take away and return those beyond; the lock is held."""
        surplus = []
        for part in range(max(kept.parts, *kept.callers, 0) + 1):
            callers = kept.callers.setdefault(part, [])
            wanted = kept.wanted(part)
            surplus += callers[wanted:]
            del callers[wanted:]
            while len(callers) < wanted:
                callers.append(_Caller(self, address, peer, part, partial(self._greeted, kept, address, peer)))
                callers[-1].start()
        return surplus

    def _greeted(
        self, kept: _Kept, address: tuple[str, int], peer: Peer, rtt_s: float | None, parts: int | None
    ) -> None:
        """Take a measured round trip and how many parts there are into account; called by callers."""
        with self._lock:
            if rtt_s is not None and (kept.rtt_s is None or rtt_s < kept.rtt_s):
                kept.rtt_s = rtt_s
            if parts is not None:
                kept.parts = parts
            if kept.auto:
                kept.connections = max(kept.connections, connections_for(kept.rtt_s))
            surplus = self._fill(kept, address, peer) if kept.callers else []  # else it is to go
        for caller in surplus:
            caller.end()

    def drop(self, address: str, peer: Peer) -> None:
        """Close the connections to ``peer`` at ``address``."""
        with self._lock:
            callers = self._kept.pop((address, peer), _Kept()).take()
        for caller in callers:
            caller.end()

    def kept(self) -> list[tuple[str, Peer]]:
        """Return what is kept."""
        with self._lock:
            return list(self._kept)

    def refresh(self) -> None:
        """Open every connection anew, with our newest certificate. Those that are in use go on to their end."""
        with self._lock:
            kept = [(key, one, one.take()) for key, one in self._kept.items()]
        for (address, peer), one, callers in kept:
            for caller in callers:
                caller.retire()
            self.keep(address, peer, "auto" if one.auto else one.connections)

    def close(self) -> None:
        """Close all connections and wait for their threads."""
        with self._lock:
            callers = [caller for kept in self._kept.values() for caller in kept.take()]
            self._kept.clear()
        for caller in callers:
            caller.end()
        for caller in callers:
            caller.join(timeout=10.0)


class _Kept:
    """The connections to one peer; guarded by the dialer's lock."""

    def __init__(self) -> None:
        #: By part; 0 is the node itself.
        self.callers: dict[int, list[_Caller]] = {}
        self.auto = False
        self.connections = 0
        self.parts = 0
        self.rtt_s: float | None = None

    def wanted(self, part: int) -> int:
        """Return how many connections a part is to have: the node itself one, where parts do its work."""
        if part == 0 and self.parts:
            return 1
        return self.connections if part <= self.parts else 0

    def take(self) -> list[_Caller]:
        """Return the callers and forget them."""
        callers = [caller for part in self.callers.values() for caller in part]
        self.callers = {}
        return callers


class _Caller(threading.Thread):
    """One connection that is kept."""

    def __init__(
        self,
        dialer: Dialer,
        address: tuple[str, int],
        peer: Peer,
        part: int,
        greeted: Callable[[float | None, int | None], None],
    ) -> None:
        self._where = f"{address[0]}:{address[1]}"
        super().__init__(name=f"dial-{self._where}", daemon=True)
        self._dialer = dialer
        self._address = address
        self._peer = peer
        self._part = part
        self._greeted = greeted
        self._ended = threading.Event()
        self._connection: Secured | None = None

    def retire(self) -> None:
        """Do not come back once the connection has ended."""
        self._ended.set()

    def end(self) -> None:
        """End the connection."""
        self.retire()
        if self._connection is not None:
            hang_up(self._connection)

    def run(self) -> None:
        """Connect, serve, and again."""
        attempt = 0
        while not self._ended.is_set():
            began = time.monotonic()
            try:
                self._call()
            except EOFError:
                pass
            except (OSError, FarshoreError) as error:
                self._note(error)
            except Exception:  # a thread that ended would take its connection away for good
                log.exception("a connection to %s met an error of our own", self._peer)
            attempt = 0 if time.monotonic() - began > _SHORT_S else attempt + 1
            self._ended.wait(pause_s(attempt))

    def _call(self) -> None:
        with dial(self._dialer.identity(), self._address, self._peer, part=self._part) as connection:
            self._connection = connection
            if self._ended.is_set():  # and whoever ended us may have seen no connection yet
                return
            connection.sendall(frames.Hello(features=frames.ROLE_SOURCE).encode())
            meta = memoryview(bytearray(ANSWER_META_BYTES))
            try:
                header = receive_frame(connection, memoryview(bytearray(frames.HEADER.size)), meta)
            except ssl.SSLError as error:  # with TLS 1.3 the verdict on our certificate comes after the handshake
                raise refusal(error, self._peer) from error
            hello = check_answer(header, meta[: header.meta_size], answers=False, peer=self._peer)
            del meta
            self._dialer.notices.forget(self._where)
            connection.settimeout(None)
            self._greeted(wire_of(connection).rtt_s, None if self._part else hello.parts)
            self._dialer.serve(connection, self._peer)

    def _note(self, error: OSError | FarshoreError) -> None:
        if self._ended.is_set():
            return
        level = logging.WARNING if self._dialer.notices.news(self._where, code_of(error)) else logging.DEBUG
        log.log(level, "no connection to %s at %s: %s", self._peer, self._where, named(error))
