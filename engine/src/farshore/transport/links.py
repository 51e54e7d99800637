"""The connections of a target node to its source nodes.

A :class:`Link` belongs to a pair of nodes and outlives sessions: small cycles are bound by connection start-up, not by
bandwidth. It has N connections, all opened at once; the first that is there is used at once. They are dialed by us, or
come in at our data port where the source is the one that connects; nothing else depends on that.

A request goes to the live connection with the fewest bytes outstanding, so that slow connections get less. When a
connection breaks, what it still owed goes to another one; every request of the protocol may be repeated. Connections
come back by themselves, with a pause that grows and is jittered. After ``give_up_s`` without any connection what waits
fails with ``Unavailable``.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Final, Literal

from farshore.errors import FarshoreError, Forbidden, Reconnect, Unavailable
from farshore.transport.buffers import BufferPool
from farshore.transport.connection import Connection, Request
from farshore.transport.dialing import CONNECT_TIMEOUT_S
from farshore.transport.notices import Notices
from farshore.transport.pace import Pace, soonest
from farshore.transport.records import Secured
from farshore.transport.sockets import Wire, at_work, connections_for, parse_address
from farshore.transport.tls import NodeTls, Peer

log = logging.getLogger(__name__)

#: A link may be down for so long, again and again, and the work that uses it goes on.
GIVE_UP_S: Final = 900.0
#: A request that broke this many connections, or outlived them, for this part of the time that a link may be down, is
#: not tried on another one: the peer accepts connections, but does not answer. A burst of damage breaks many at once.
SENDS_MAX: Final = 10
STUBBORN_PARTS: Final = 10
#: For so long a link's other connections wait for the first to show how long the path is. On a short one no more are
#: opened than are asked at once: each handshake takes milliseconds of processor, just when the first chunks should go.
PATH_SHOWN_S: Final = 0.010
#: Of an absence that was shorter nobody is told that it is over.
_AWAY_S: Final = 5.0
#: Connections that one node may open to us.
ADOPTED_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class LinkStats:
    """What a link is and has carried since it was made; ``wire_*`` as the kernel counts it, with TLS."""

    connections: int
    wire_sent: int
    wire_received: int
    reconnects: int
    resent_bytes: int
    rtt_s: float | None


class Link:
    """The connections to one peer. Made by :class:`Links`."""

    def __init__(self, links: Links, address: tuple[str, int] | None, peer: Peer, give_up_s: float) -> None:
        self._links = links
        self._address = address
        self.peer = peer
        self._give_up_s = give_up_s
        self.lock = threading.Lock()
        self._changed = threading.Condition(self.lock)
        self._connections: list[Connection] = []
        self._backlog: deque[Request] = deque()
        self._numbers = itertools.cycle(range(1, 1 << 32))
        self._names = itertools.count()
        self._users = 0
        self._auto = False
        self._wanted = 0
        self._closed = False
        self._watched = False
        self._down_since: float | None = None
        self._last_error: str = "no connection was tried yet" if address else "it has not connected to this node"
        self._broken = 0
        self._gone_sent = self._gone_received = 0
        self._rtt_s: float | None = None
        self._here = False
        self._shown_by = 0.0
        self.resent_bytes = 0
        self.notices = Notices()

    def __str__(self) -> str:
        return f"{self.peer} at {self._address[0]}:{self._address[1]}" if self._address else str(self.peer)

    @property
    def identity(self) -> NodeTls:
        """Who we are, with the newest certificate."""
        return self._links.identity

    @property
    def buffers(self) -> BufferPool:
        """Where the buffers of payloads come from."""
        return self._links.buffers

    @property
    def connect_timeout_s(self) -> float:
        """How long each step of opening a connection may take."""
        return self._links.connect_timeout_s

    @property
    def address(self) -> tuple[str, int]:
        """Where the peer listens."""
        if self._address is None:
            raise AssertionError("a link whose connections come in is not dialed")
        return self._address

    @property
    def in_use(self) -> bool:
        """Whether somebody uses the link."""
        return self._users > 0

    @property
    def closed(self) -> bool:
        """Whether the link takes nothing any more."""
        return self._closed

    @property
    def rtt_s(self) -> float | None:
        """The shortest round trip that was seen on the way to the peer, None before the first."""
        return self._rtt_s

    @property
    def down(self) -> tuple[float, str]:
        """For how long there has been no connection to a peer that is wanted, in seconds, and why. 0 where one is."""
        with self.lock:
            since = self._down_since if self._users else None
            return (0.0, "") if since is None else (time.monotonic() - since, self._last_error)

    def stats(self) -> LinkStats:
        """Return figures of all connections since the link was made."""
        with self.lock:
            wires = [connection.measure() for connection in self._connections if connection.alive]
            return LinkStats(
                connections=sum(connection.alive for connection in self._connections),
                wire_sent=self._gone_sent + sum(wire.sent_bytes for wire in wires),
                wire_received=self._gone_received + sum(wire.received_bytes for wire in wires),
                reconnects=self._broken,
                resent_bytes=self.resent_bytes,
                rtt_s=self._rtt_s,
            )

    def use(self, connections: int | Literal["auto"]) -> None:
        """Keep at least ``connections`` open until :meth:`unuse`; ``auto``: by the round trip, once it is known.

        How many come in from a peer that connects to us is for the peer to say.
        """
        with self._changed:
            self._users += 1
            if not any(connection.greeted for connection in self._connections):
                self._down_since = time.monotonic()
            if not self._connections:
                self._shown_by = time.monotonic() + PATH_SHOWN_S
            self._auto = self._auto or connections == "auto"
            self._wanted = max(self._wanted, connections_for(self._rtt_s) if connections == "auto" else connections)
            self._open_wanted()
            if not self._watched:
                self._watched = True
                threading.Thread(target=self._watch, name=f"link-watch-{self.peer.node}", daemon=True).start()
            self._changed.notify_all()

    def unuse(self) -> None:
        """End one :meth:`use`. Connections that live stay open; broken ones are not opened again."""
        with self._changed:
            self._users -= 1
            self._changed.notify_all()

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

    def adopt(self, connection: Secured) -> None:
        """Take over a greeted connection that the peer opened.

        Raises:
            Forbidden: it has opened too many.
            Reconnect: the link was closed.
        """
        with self._changed:
            if self._closed:
                raise Reconnect("the link was closed", code="link-closed")
            if len(self._connections) >= ADOPTED_MAX:
                raise Forbidden(f"{self.peer} has too many connections", code="too-many-connections")
            self._connections.append(Connection(self, self._name(), connection))
            self._connections[-1].start()

    def renew(self) -> None:
        """Replace all connections: what is asked from now on goes over new ones, what is outstanding comes to its end.

        An open session goes on over the new connections; only to open one does the certificate matter.
        """
        with self._changed:
            for connection in self._connections:
                connection.retiring, connection.alive = True, False
                connection.wake()

    def close(self) -> None:
        """Close all connections; what waits fails."""
        with self._changed:
            self._closed = True
            connections = list(self._connections)
            self._changed.notify_all()
        for connection in connections:
            connection.end()
        self._fail_all(Reconnect("the link was closed", code="link-closed"))

    def _name(self) -> str:
        return f"{self.peer.site}/{self.peer.node}-{next(self._names)}"

    def _open_wanted(self) -> None:
        """Open connections up to the number that is wanted; the lock is held."""
        while self._address is not None and len(self._connections) < self._wanted:
            self._connections.append(Connection(self, self._name()))
            self._connections[-1].start()

    def _place(self, request: Request) -> None:
        """Give a request to a connection; called with the lock held."""
        alive = [connection for connection in self._connections if connection.alive]
        if not alive:
            self._backlog.append(request)
            return
        size = request.weight + len(request.frame)
        best = soonest(alive[: at_work(self._rtt_s, here=self._here)], size)
        if not best.load:
            best.pace.asked(time.monotonic())
        best.load += size
        best.outbox.append(request)
        best.wake()

    def _watch(self) -> None:
        """Give up what waits when the peer has been away for too long; runs while somebody uses the link."""
        with self._changed:
            while self._users and not self._closed:
                now = time.monotonic()
                since = self._down_since
                if since is None:
                    self._changed.wait()
                elif now - since < self._give_up_s:
                    self._changed.wait(timeout=since + self._give_up_s - now)
                else:
                    self._down_since = now  # the next user gets its own time
                    waiting, self._backlog = list(self._backlog), deque()
                    error = Unavailable(
                        f"{self} cannot be reached: {self._last_error}",
                        code="peer-unreachable",
                        hint="Check that the other node runs and that its data port is reachable."
                        if self._address
                        else "Check that the other node runs, and that it knows this node's data address.",
                    )
                    self.lock.release()
                    try:
                        _fail(waiting, error)
                    finally:
                        self.lock.acquire()
            self._watched = False

    # Called by connections ------------------------------------------------------------------------------------------

    def wait_until_wanted(self, connection: Connection) -> bool:
        """Block until somebody uses the link, and needs this connection for it; False once the link is closed."""
        with self._changed:
            connection.working = False
            while not self._closed and (waits_s := self._waits_s(connection)) != 0.0:
                self._changed.wait(waits_s)
            connection.working = True
            return not self._closed

    def _waits_s(self, connection: Connection) -> float | None:
        """Return for how long a connection is not needed yet, in seconds; None: until something changes."""
        if not self._users:
            return None
        others = sum(other.working for other in self._connections if other is not connection)
        if self._rtt_s is None:
            return max(self._shown_by - time.monotonic(), 0.0) if others else 0.0
        return 0.0 if others < at_work(self._rtt_s, here=self._here) else None

    def rest(self, connection: Connection, seconds: float) -> None:
        """Wait before a connection is tried again, less long if the link is closed; another one may take its place."""
        with self._changed:
            connection.working = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closed, timeout=seconds)

    def came_up(self, connection: Connection) -> None:
        """Note a new connection and hand it what waits."""
        with self._changed:
            # One that was on its way while the certificate was renewed goes at once.
            connection.retiring = connection.shown not in {None, self.identity}
            connection.alive = not connection.retiring
            connection.load, connection.pace = 0, Pace()
            waiting, self._backlog = self._backlog, deque()
            for request in waiting:
                self._place(request)
            if connection.greeted:
                self._note_greeting(connection)

    def met(self, wire: Wire) -> None:
        """Note the path of a connection that is being opened: a long one's others need not wait for its handshake."""
        with self._changed:
            self._note_path(wire)
            self._changed.notify_all()

    def greeted(self, connection: Connection) -> None:
        """Note that a connection's peer has greeted: it is there."""
        with self._changed:
            connection.greeted = True
            self._note_greeting(connection)

    def _note_greeting(self, connection: Connection) -> None:
        away_s = time.monotonic() - self._down_since if self._down_since is not None and self._users else 0.0
        if away_s > _AWAY_S:
            log.info("connected to %s again after %.0f s", self, away_s)
        self._down_since = None
        self._note_path(connection.measure())
        self._changed.notify_all()

    def _note_path(self, wire: Wire) -> None:
        if wire.rtt_s is not None and (self._rtt_s is None or wire.rtt_s < self._rtt_s):
            self._rtt_s, self._here = wire.rtt_s, wire.here
        if self._auto:
            self._wanted = max(self._wanted, connections_for(self._rtt_s))
            self._open_wanted()

    def may_retire(self, connection: Connection) -> bool:
        """Take a connection out of use, to be replaced; False where the others have to be waited for."""
        with self._changed:
            others = [other for other in self._connections if other is not connection]
            if not connection.retiring:
                if any(other.retiring for other in others) or (self._users and not any(o.alive for o in others)):
                    return False
                connection.retiring, connection.alive = True, False
            return True

    def went_down(self, connection: Connection, owed: list[Request], reason: str) -> None:
        """Note a broken connection; what it owed goes to others."""
        hopeless = []
        with self._changed:
            greeted, aged = connection.greeted, connection.retiring
            self._broken += greeted and not aged and not self._closed
            connection.alive = connection.retiring = connection.greeted = False
            self._gone_sent += connection.wire.sent_bytes
            self._gone_received += connection.wire.received_bytes
            self._last_error = reason
            if not any(other.greeted for other in self._connections):
                self._down_since = self._down_since or time.monotonic()
            owed.extend(connection.outbox)
            connection.outbox.clear()
            for request in owed:
                if request.abandoned:
                    continue
                if request.times_sent:
                    self.resent_bytes += request.weight if greeted else 0
                    request.times_sent -= not greeted  # then nobody was there to ask
                stubborn_s = time.monotonic() - request.asked_at
                if request.times_sent >= SENDS_MAX and stubborn_s > self._give_up_s / STUBBORN_PARTS:
                    hopeless.append(request)
                else:
                    self._place(request)
            self._changed.notify_all()
        _fail(
            hopeless,
            Unavailable(f"{self.peer} does not answer, whichever way it is asked: {reason}", code="peer-silent"),
        )

    def left(self, connection: Connection) -> None:
        """Forget a connection that will not come back by itself."""
        with self._changed:
            if self._closed:
                return  # who closes waits for it
            self._connections.remove(connection)
        connection.forget()

    def not_connected(self, reason: str) -> None:
        """Note a failed attempt."""
        with self._changed:
            self._last_error = reason

    def refuse(self, error: FarshoreError) -> None:
        """Fail all that waits: the peer will never be the right one."""
        self._fail_all(error)

    def _fail_all(self, error: FarshoreError) -> None:
        with self._changed:
            waiting = list(self._backlog)
            self._backlog.clear()
        _fail(waiting, error)


def _fail(requests: list[Request], error: FarshoreError) -> None:
    """Tell each of ``requests``; one whose callback fails keeps no other from being told."""
    for request in requests:
        try:
            request.on_error(error)
        except Exception:
            log.exception("the end of a request could not be told")


class Links:
    """All links of a node.

    Args:
        identity: our certificate.
        give_up_s: what waits for a peer that is away for so long fails.
        connect_timeout_s: how long each step of opening a connection may take.
    """

    def __init__(
        self, identity: NodeTls, *, give_up_s: float = GIVE_UP_S, connect_timeout_s: float = CONNECT_TIMEOUT_S
    ) -> None:
        self.identity = identity
        self.connect_timeout_s = connect_timeout_s
        self.buffers = BufferPool()
        self._give_up_s = give_up_s
        self._lock = threading.Lock()
        self._closed = False
        self._links: dict[tuple[tuple[str, int] | None, Peer], Link] = {}

    def to(self, address: str, peer: Peer) -> Link:
        """Return the link to ``peer``, dialed at ``address``; an older one to another certificate there is closed.

        Raises:
            Invalid: the address is not one.
        """
        return self._link(parse_address(address, "address"), peer)

    def from_peer(self, peer: Peer) -> Link:
        """Return the link to a ``peer`` that connects to us; an older one to another certificate of it is closed."""
        return self._link(None, peer)

    def adopt(self, connection: Secured, peer: Peer) -> None:
        """Take over a greeted connection of a peer that answers; for a listener to call.

        Raises:
            FarshoreError: it is not taken; the caller closes it.
        """
        self._link(None, peer).adopt(connection)

    def _link(self, address: tuple[str, int] | None, peer: Peer) -> Link:
        peer = Peer(peer.site, peer.node, peer.thumbprint.lower().removeprefix("sha256:"))
        with self._lock:
            if self._closed:
                raise Reconnect("the links were closed", code="link-closed")
            stale = [key for key, link in self._links.items() if _passed(key, address, peer) and not link.in_use]
            closing = [self._links.pop(key) for key in stale]
            link = self._links.get((address, peer))
            if link is None:
                link = self._links[address, peer] = Link(self, address, peer, self._give_up_s)
        for old in closing:
            old.close()
        return link

    def renew(self, identity: NodeTls) -> None:
        """Show another certificate from now on; open connections are replaced."""
        with self._lock:
            self.identity = identity
            links = list(self._links.values())
        for link in links:
            link.renew()

    def close(self) -> None:
        """Close all links."""
        with self._lock:
            self._closed = True
            links = list(self._links.values())
            self._links.clear()
        for link in links:
            link.close()


def _passed(key: tuple[tuple[str, int] | None, Peer], address: tuple[str, int] | None, peer: Peer) -> bool:
    """Say whether a link is to what was at the address, or to the node, before ``peer``."""
    if key[0] != address or key[1] == peer:
        return False
    return address is not None or (key[1].site, key[1].node) == (peer.site, peer.node)
