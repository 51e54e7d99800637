"""The source's half of the data path: serves points to the target nodes that hold a grant.

Connections come greeted, from a listener or a dialer. One thread per connection, blocking sockets, buffers taken once.
A session belongs to a grant, not to a connection: any connection of the same target node serves it. Who opens must show
a grant that names both nodes with the thumbprints of their certificates, of the catalog generation that this node
obeys, and of an epoch and term that nobody has passed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from farshore.errors import Conflict, Fenced, Forbidden, RestartFromCheckpoint
from farshore.model.grant import ALL_DISKS, Grant, verify
from farshore.platforms.contract import Snapshot, Source
from farshore.replication.answering import Answering
from farshore.replication.compression import WireRate
from farshore.replication.readers import Readers
from farshore.replication.sessions import SessionInfo, SourceSession
from farshore.transport import frames
from farshore.transport.buffers import BufferPool
from farshore.transport.congestion import Paths
from farshore.transport.listener import DataListener
from farshore.transport.notices import Notices
from farshore.transport.records import Secured
from farshore.transport.sockets import hang_up
from farshore.transport.tls import NodeTls, Peer, same_thumbprint

log = logging.getLogger(__name__)

#: A session that nobody used for this long is forgotten, and its readers closed.
IDLE_SESSION_S: Final = 3600.0
#: Cycles whose terms are remembered after their sessions.
TERMS_MAX: Final = 1024


class SourceService:
    """Serves the points of ``source``. Attributes may be replaced while it runs.

    Attributes:
        identity: our certificate; connections that begin from now on use it.
        grant_key: the control plane's public key; None refuses every grant.
        generation: the catalog generation that is obeyed; grants of a lower one are fenced.
        on_generation: called when a grant brings a higher generation, to keep it.
    """

    def __init__(
        self, source: Source, identity: NodeTls, grant_key: Ed25519PublicKey | None, generation: int = 0
    ) -> None:
        self.identity = identity
        self.grant_key = grant_key
        self.generation = generation
        self.on_generation: Callable[[int], None] | None = None
        self._source = source
        self._lock = threading.Lock()
        self._sessions: dict[int, SourceSession] = {}
        self._sent_before = 0
        self._epochs: dict[str, int] = {}
        self._terms: OrderedDict[tuple[str, str, int], int] = OrderedDict()
        self._listener: DataListener | None = None
        self._gone = threading.Condition(self._lock)
        self._connections: set[Secured] = set()
        self._stopping = False
        parallel = max(source.caps.max_parallel, 4)
        self.readers = Readers(parallel)
        self.buffers = BufferPool()
        self.rate = WireRate()
        self.paths = Paths()
        self.notices = Notices()

    def start(self, listen: str) -> tuple[str, int]:
        """Serve whoever connects to ``host:port`` (port 0: any), and return the bound address.

        Raises:
            Invalid: not an address; ``field`` is ``data_listen``.
            Conflict: the address cannot be had.
        """
        listener = DataListener(lambda: self.identity, serve=self.serve_connection)
        bound = listener.start(listen)
        self._listener = listener
        return bound

    def sessions(self) -> list[SessionInfo]:
        """Return the open sessions."""
        with self._lock:
            return [
                SessionInfo(
                    session_id=session.grant.session_id,
                    group_id=session.grant.group_id,
                    point_ids=tuple(sorted({disk.source_point for disk in session.grant.disks})),
                    target_node=session.grant.target_node,
                    epoch=session.grant.epoch,
                    term=session.grant.term,
                    sent_bytes=session.sent_bytes,
                )
                for session in self._sessions.values()
                if session.fenced is None
            ]

    @property
    def sent_bytes(self) -> int:
        """Payload that was sent since the start, over all sessions, as it was before compression."""
        with self._lock:
            return self._sent_before + sum(session.sent_bytes for session in self._sessions.values())

    def stop(self) -> None:
        """End all connections and close all readers; serve nothing from now on. May be called again."""
        with self._gone:
            self._stopping = True
            for connection in self._connections:
                hang_up(connection)
        if self._listener is not None:
            self._listener.stop()
        with self._gone:
            self._gone.wait_for(lambda: not self._connections, timeout=10.0)
        with self._lock:
            sessions = list(self._sessions.values())
            self._sessions.clear()
        for session in sessions:
            session.close()
        self.readers.stop()

    def serve_connection(self, connection: Secured, peer: Peer) -> None:
        """Answer the questions of ``peer`` on a greeted connection until it goes, in the caller's thread.

        Raises:
            EOFError: the peer went, between two frames.
            FarshoreError, OSError: the connection is of no more use.
        """
        with self._lock:
            if self._stopping:
                return
            self._connections.add(connection)
        try:
            Answering(self, connection, peer).run()
        finally:
            with self._gone:
                self._connections.discard(connection)
                self._gone.notify_all()

    # Sessions -------------------------------------------------------------------------------------------------------

    def open(self, question: frames.Open, peer: Peer) -> frames.Opened:
        """Admit a grant; called by a connection.

        Raises:
            Forbidden: not our control plane's, or not for these two nodes.
            Fenced: expired, or passed by a higher generation, epoch or term.
            RestartFromCheckpoint: the point that it names is gone.
        """
        if self.grant_key is None:
            raise Forbidden("this node has no key to check grants with yet", code="grant-key-missing")
        grant = verify(question.grant, self.grant_key, now=time.time())
        self._check_nodes(grant, peer)
        self._check_generation(grant)
        points: dict[str, Snapshot] = {}
        for disk in grant.disks:
            snapshot = points.get(disk.source_point) or self._source.find(disk.source_point)
            if snapshot is None:
                raise RestartFromCheckpoint(
                    f"the source point {disk.source_point} is gone",
                    code="source-point-gone",
                    hint="The next cycle takes a new point; nothing that was published is affected.",
                    point=disk.source_point,
                )
            points[disk.source_point] = snapshot
            if grant.mode == "replicate":
                _check_disk(snapshot, disk.disk_key, disk.size_bytes)
        if grant.mode == "inspect":
            return _listing(grant, points)
        number = session_number(grant)
        with self._lock:
            ended = self._pass_lower(grant)
            session = self._sessions.get(number)
            if session is None:
                session = self._sessions[number] = SourceSession(number, grant, peer, self._source, points, self.rate)
            session.peer = peer
            session.zero_block = question.zero_block
            session.compress = question.compress
            session.used_at = time.monotonic()
            idle = [
                other
                for other in self._sessions.values()
                if other.used_at < time.monotonic() - IDLE_SESSION_S and other is not session
            ]
            for other in idle:
                del self._sessions[other.number]
                self._sent_before += other.sent_bytes
        for other in (*idle, *ended):
            other.close()
        return session.opened()

    def session(self, number: int, peer: Peer) -> SourceSession:
        """Return an open session of ``peer``; called by a connection.

        Raises:
            RestartFromCheckpoint: there is none (``session-unknown``: open it again with the grant).
            Fenced: a higher term or epoch has passed it.
            Forbidden: it is another node's.
        """
        with self._lock:
            session = self._sessions.get(number)
        if session is None:
            raise RestartFromCheckpoint("the session is not open here", code="session-unknown")
        if (session.peer.site, session.peer.node) != (peer.site, peer.node):
            raise Forbidden("the session is of another node", code="session-of-another")
        if session.fenced is not None:
            raise session.fenced
        session.used_at = time.monotonic()
        return session

    def end(self, number: int, peer: Peer) -> dict[str, Any]:
        """Close a session of ``peer`` if it is open; return what it took (:class:`SourceStats`)."""
        with self._lock:
            session = self._sessions.get(number)
            if session is None or (session.peer.site, session.peer.node) != (peer.site, peer.node):
                return {}
            del self._sessions[number]
            self._sent_before += session.sent_bytes
        session.close()
        return session.stats().model_dump()

    def _check_nodes(self, grant: Grant, peer: Peer) -> None:
        us = self.identity.peer
        pairs = (
            ("source", (grant.source_site, grant.source_node, grant.source_thumbprint), us),
            ("target", (grant.target_site, grant.target_node, grant.target_thumbprint), peer),
        )
        for role, (site, node, thumbprint), found in pairs:
            if (site, node) != (found.site, found.node) or not same_thumbprint(thumbprint, found.thumbprint):
                raise Forbidden(
                    f"the grant is for node {node} of site {site} as the {role}, not for {found}",
                    code="grant-of-another-node",
                    hint="A certificate that was renewed needs a fresh grant.",
                    role=role,
                )

    def _check_generation(self, grant: Grant) -> None:
        if grant.generation < self.generation:
            raise Fenced(
                "the grant is of a control plane that another one has replaced",
                code="stale-generation",
                grant=grant.generation,
                obeyed=self.generation,
            )
        if grant.generation > self.generation:
            self.generation = grant.generation
            if self.on_generation is not None:
                self.on_generation(grant.generation)

    def _pass_lower(self, grant: Grant) -> list[SourceSession]:
        """Refuse a grant that others have passed; fence and return the sessions that it passes. The lock is held."""
        epoch = self._epochs.get(grant.group_id, grant.epoch)
        work = grant.group_id, grant.session_id, grant.epoch
        term = self._terms.get(work, grant.term)  # of closed sessions too: a node that was passed may come late
        if grant.epoch < epoch or grant.term < term:
            raise Fenced(
                f"a session of group {grant.group_id} with a higher epoch or term is open or was open",
                code="stale-term",
                group=grant.group_id,
                epoch=grant.epoch,
                term=grant.term,
            )
        self._epochs[grant.group_id] = grant.epoch
        self._terms[work] = grant.term
        self._terms.move_to_end(work)
        while len(self._terms) > TERMS_MAX:
            self._terms.popitem(last=False)
        return self._fence(
            lambda session: (
                session.grant.group_id == grant.group_id
                and (
                    session.grant.epoch < grant.epoch
                    or (_same_work(session.grant, grant) and session.grant.term < grant.term)
                )
            ),
            Fenced("a higher epoch or term has taken over", code="stale-term", group=grant.group_id),
        )

    def _fence(self, which: Callable[[SourceSession], bool], error: Fenced) -> list[SourceSession]:
        """Fence sessions and return them, to be closed without the lock: that may take its time."""
        ended = [session for session in self._sessions.values() if session.fenced is None and which(session)]
        for session in ended:
            session.fenced = error
        return ended


def session_number(grant: Grant) -> int:
    """Return the number of a grant's session: the same after a restart, so what waits can be asked again as it is.

    It covers the disks with their points and bases: another point is another session, never the old one's readers.
    """
    disks = "".join(f"\n{disk.disk_key}\n{disk.size_bytes}\n{disk.source_point}\n{disk.base}" for disk in grant.disks)
    text = f"{grant.session_id}\n{grant.group_id}\n{grant.epoch}\n{grant.term}{disks}"
    return int.from_bytes(sha256(text.encode()).digest()[:8]) or 1


def _same_work(one: Grant, other: Grant) -> bool:
    """Say whether two grants are of one cycle. Terms grow within a cycle, so only then do they compare."""
    return one.group_id == other.group_id and one.session_id == other.session_id and one.epoch == other.epoch


def _listing(grant: Grant, points: dict[str, Snapshot]) -> frames.Opened:
    """Return what a grant to inspect is answered: all disks of its points. It has no session: nothing can be read."""
    disks = []
    for granted in grant.disks:
        if granted.disk_key != ALL_DISKS:
            raise Forbidden("a grant to inspect names points, not disks", code="grant-invalid", disk=granted.disk_key)
        for facts in points[granted.source_point].disks:
            incremental = facts.incremental and granted.base is not None
            disks.append(frames.OpenedDisk(facts.disk_key, facts.size_bytes, incremental, facts.reason))
    return frames.Opened(0, grant.epoch, tuple(disks))


def _check_disk(snapshot: Snapshot, key: str, size_bytes: int) -> None:
    try:
        found = snapshot.disk(key).size_bytes
    except KeyError:
        raise Forbidden(f"point {snapshot.point_id} has no disk {key}", code="disk-not-in-point", disk=key) from None
    if found != size_bytes:
        raise Conflict(
            f"disk {key} has {found} bytes in the point, not the {size_bytes} of the grant",
            code="disk-size-changed",
            disk=key,
        )
