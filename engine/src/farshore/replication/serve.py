"""The source's half of the data path: serves points to the target nodes that hold a grant.

Connections come greeted, from a listener or a dialer. One thread per connection, blocking sockets, buffers taken once.
A session belongs to a grant, not to a connection: any connection of the same target node serves it. Who opens must show
a grant that names both nodes with the thumbprints of their certificates, of the catalog generation that this node
obeys, and of an epoch and term that nobody has passed.
"""

from __future__ import annotations

import contextlib
import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from farshore.blocks.digest import DIGEST_SIZE
from farshore.errors import Conflict, FarshoreError, Fenced, Forbidden, Invalid, Permanent, RestartFromCheckpoint
from farshore.model.checkpoint import SourceStats
from farshore.model.grant import ALL_DISKS, Grant, verify
from farshore.platforms.contract import Extent, Kind, Reader, Snapshot, Source
from farshore.replication.reading import ChunkReader, leaf_digests
from farshore.replication.usage import peak_rss_bytes
from farshore.transport import frames
from farshore.transport.frames import Type
from farshore.transport.listener import DataListener
from farshore.transport.sockets import hang_up, receive_frame
from farshore.transport.tls import NodeTls, Peer, same_thumbprint
from farshore.units import CHUNK_SIZE, LEAF_SIZE

log = logging.getLogger(__name__)

#: A session that nobody used for this long is forgotten, and its readers closed.
IDLE_SESSION_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """An open session. ``sent_bytes`` is payload that crossed the link."""

    session_id: str
    group_id: str
    point_ids: tuple[str, ...]
    target_node: str
    epoch: int
    term: int
    sent_bytes: int


class _Extents:
    """The extents of one disk, given out page by page; a page may be asked for again."""

    def __init__(self, begin: Callable[[], Iterator[Extent]]) -> None:
        self._begin = begin
        self._lock = threading.Lock()
        self._iterator: Iterator[Extent] | None = None
        self._ahead: Extent | None = None
        self._at = 0

    def page(self, offset: int, limit: int) -> tuple[list[tuple[int, int, bool]], bool]:
        """Return up to ``limit`` extents from ``offset`` on, and whether more follow."""
        with self._lock:
            # A listing that fails must never pass for one that has ended: then the next page begins anew.
            iterator, ahead = (self._iterator, self._ahead) if self._at == offset else (None, None)
            self._iterator = None
            if iterator is None:
                iterator = self._begin()
                ahead = next(iterator, None)
                while ahead is not None and ahead.offset + ahead.length <= offset:
                    ahead = next(iterator, None)
            rows: list[tuple[int, int, bool]] = []
            at = offset
            while ahead is not None and len(rows) < limit:
                start = max(ahead.offset, offset)
                at = ahead.offset + ahead.length
                rows.append((start, at - start, ahead.kind is Kind.ZERO))
                ahead = next(iterator, None)
            self._iterator, self._ahead, self._at = iterator, ahead, at
            return rows, ahead is not None


class _Session:
    """What one grant opened."""

    def __init__(self, number: int, grant: Grant, peer: Peer, source: Source, points: dict[str, Snapshot]) -> None:
        self.number = number
        self.grant = grant
        self.peer = peer
        self.fenced: FarshoreError | None = None
        self.zero_block = frames.ZERO_BLOCK
        self.sent_bytes = 0
        self.read_bytes = 0
        self._cpu_before = time.process_time()
        self.used_at = time.monotonic()
        self._source = source
        self._points = points
        self._lock = threading.Lock()
        self._lent = 0
        self._closed = False
        self._readers: dict[int, Reader] = {}
        self._extents: dict[tuple[int, bool], _Extents] = {}

    def size(self, disk: int) -> int:
        """Return a disk's size; refuse an index that the grant does not have."""
        if not 0 <= disk < len(self.grant.disks):
            raise Forbidden(f"the grant has no disk {disk}", code="disk-not-granted", disk=disk)
        return self.grant.disks[disk].size_bytes

    def snapshot(self, disk: int) -> Snapshot:
        """Return the point that a disk is read from."""
        return self._points[self.grant.disks[disk].source_point]

    def opened(self) -> frames.Opened:
        """Return the answer to OPEN."""
        disks = []
        for disk in self.grant.disks:
            facts = self._points[disk.source_point].disk(disk.disk_key)
            incremental = facts.incremental and disk.base is not None
            disks.append(frames.OpenedDisk(disk.disk_key, disk.size_bytes, incremental, facts.reason))
        return frames.Opened(self.number, self.grant.epoch, tuple(disks))

    def count(self, sent_bytes: int, read_bytes: int) -> None:
        """Add payload that is about to be sent, and what was read for it."""
        with self._lock:
            self.sent_bytes += sent_bytes
            self.read_bytes += read_bytes

    def stats(self) -> SourceStats:
        """Return what the session took until now."""
        return SourceStats(
            read_bytes=self.read_bytes,
            sent_bytes=self.sent_bytes,
            cpu_s=round(time.process_time() - self._cpu_before, 3),
            peak_rss_bytes=peak_rss_bytes(),
        )

    @contextlib.contextmanager
    def reading(self, disk: int) -> Iterator[Reader]:
        """Lend the disk's reader, opened at its first use. A session that is closed meanwhile closes it afterwards."""
        with self._lock:
            if self._closed:
                raise self.fenced or RestartFromCheckpoint("the session is not open here", code="session-unknown")
            reader = self._readers.get(disk)
            if reader is None:
                key = self.grant.disks[disk].disk_key
                reader = self._readers[disk] = self._source.reader(self.snapshot(disk), key)
            self._lent += 1
        try:
            yield reader
        finally:
            with self._lock:
                self._lent -= 1
            self._close_unused()

    def extents(self, disk: int, *, since_base: bool) -> _Extents:
        """Return the disk's extents since the grant's base, or all that is allocated."""
        granted = self.grant.disks[disk]
        if since_base and granted.base is None:
            raise Forbidden("the grant names no base for this disk", code="base-not-granted", disk=disk)
        snapshot, base = self.snapshot(disk), granted.base if since_base else None
        with self._lock:
            return self._extents.setdefault(
                (disk, since_base),
                _Extents(lambda: self._source.changed(snapshot, granted.disk_key, base)),
            )

    def close(self) -> None:
        """Close the readers, now or when the last one is given back: never under a thread that reads."""
        with self._lock:
            self._closed = True
        self._close_unused()

    def _close_unused(self) -> None:
        with self._lock:
            if not self._closed or self._lent:
                return
            readers = list(self._readers.values())
            self._readers.clear()
            self._extents.clear()
        for reader in readers:
            reader.close()


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
        self._sessions: dict[int, _Session] = {}
        self._sent_before = 0
        self._epochs: dict[str, int] = {}
        self._listener: DataListener | None = None
        self._gone = threading.Condition(self._lock)
        self._connections: set[ssl.SSLSocket] = set()
        self._stopping = False

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
        """Payload that was sent since the start, over all sessions."""
        with self._lock:
            return self._sent_before + sum(session.sent_bytes for session in self._sessions.values())

    def revoke(self, group_id: str) -> None:
        """End the sessions of a group: what they ask from now on is fenced."""
        with self._lock:
            ended = self._fence(
                lambda session: session.grant.group_id == group_id,
                Fenced("the session was revoked", code="session-revoked", group=group_id),
            )
        for session in ended:
            session.close()

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

    def serve_connection(self, connection: ssl.SSLSocket, peer: Peer) -> None:
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
            _Connection(self, connection, peer).run()
        finally:
            with self._gone:
                self._connections.discard(connection)
                self._gone.notify_all()

    # Sessions -------------------------------------------------------------------------------------------------------

    def open(self, text: str, peer: Peer, zero_block: int) -> frames.Opened:
        """Admit a grant; called by a connection.

        Raises:
            Forbidden: not our control plane's, or not for these two nodes.
            Fenced: expired, or passed by a higher generation, epoch or term.
            RestartFromCheckpoint: the point that it names is gone.
        """
        if self.grant_key is None:
            raise Forbidden("this node has no key to check grants with yet", code="grant-key-missing")
        grant = verify(text, self.grant_key, now=time.time())
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
                session = self._sessions[number] = _Session(number, grant, peer, self._source, points)
            session.peer = peer
            session.zero_block = max(zero_block, 512)
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

    def session(self, number: int, peer: Peer) -> _Session:
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

    def _pass_lower(self, grant: Grant) -> list[_Session]:
        """Refuse a grant that others have passed; fence and return the sessions that it passes. The lock is held."""
        epoch = self._epochs.get(grant.group_id, grant.epoch)
        term = max((s.grant.term for s in self._sessions.values() if _same_work(s.grant, grant)), default=grant.term)
        if grant.epoch < epoch or grant.term < term:
            raise Fenced(
                f"a session of group {grant.group_id} with a higher epoch or term is open or was open",
                code="stale-term",
                group=grant.group_id,
                epoch=grant.epoch,
                term=grant.term,
            )
        self._epochs[grant.group_id] = grant.epoch
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

    def _fence(self, which: Callable[[_Session], bool], error: Fenced) -> list[_Session]:
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


class _Connection:
    """Answers the questions of one connection, one after the other."""

    def __init__(self, service: SourceService, connection: ssl.SSLSocket, peer: Peer) -> None:
        self._service = service
        self._connection = connection
        self._peer = peer
        self._head = memoryview(bytearray(frames.HEADER.size))
        self._meta = memoryview(bytearray(frames.MAX_META))
        self._nothing = memoryview(b"")
        self._chunks = ChunkReader()
        self._payload = memoryview(bytearray(CHUNK_SIZE))
        self._leaves = memoryview(bytearray(CHUNK_SIZE))

    def run(self) -> None:
        """Answer until the peer goes.

        Raises:
            EOFError: the peer went, between two frames.
            FarshoreError, OSError: the connection is of no more use.
        """
        connection = self._connection
        while True:
            header = receive_frame(connection, self._head, self._meta)
            meta = self._meta[: header.meta_size]
            payload = self._nothing
            try:
                answer, payload = self._answer(header, meta)
            except FarshoreError as error:
                if error.code == "protocol-error":
                    raise
                answer = frames.encode_error(header.request, error)
            except OSError as error:
                failure = Permanent(f"the source could not be read: {error}", code="source-read", errno=error.errno)
                log.warning("%s", failure)
                answer = frames.encode_error(header.request, failure)
            except Exception as error:  # the question must be answered, or the target would ask it for ever
                log.exception("a question of type %s could not be answered", header.type.name)
                failure = Permanent("the source met an error of its own", code="internal", kind=type(error).__name__)
                answer = frames.encode_error(header.request, failure)
            connection.sendall(answer)
            if payload:
                connection.sendall(payload)

    def _answer(self, header: frames.Header, meta: memoryview) -> tuple[bytes, memoryview]:
        """Return the answer to one frame, and the payload to send behind it."""
        if header.type is Type.READ:
            return self._read(header.request, frames.Read.decode(meta))
        if header.type is Type.LIST:
            return self._list(header.request, frames.List.decode(meta)), self._nothing
        if header.type is Type.DIGEST:
            return self._digest(header.request, frames.Digests.decode(meta, answer=False)), self._nothing
        if header.type is Type.OPEN:
            asked = frames.Open.decode(meta)
            return self._service.open(asked.grant, self._peer, asked.zero_block).encode(header.request), self._nothing
        if header.type is Type.CLOSE:
            number = frames.decode_close(meta)
            stats = self._service.end(number, self._peer)
            return frames.encode_closed(header.request, number, stats), self._nothing
        raise Invalid(f"a source does not answer {header.type.name}", code="protocol-error")

    def _read(self, request: int, question: frames.Read) -> tuple[bytes, memoryview]:
        session = self._service.session(question.session, self._peer)
        size = session.size(question.disk)
        last = question.ranges[-1]
        if last[0] + last[1] > size:
            raise Invalid("READ reaches over the end of the disk", code="read-range", disk=question.disk)
        with session.reading(question.disk) as reader:
            chunk = self._chunks.read(reader, size, question.ranges, session.zero_block, self._payload)
        pieces, digests, filled = chunk
        payload = self._payload[:filled]
        session.count(len(payload), len(digests) // DIGEST_SIZE * LEAF_SIZE)
        epoch = session.grant.epoch
        head = frames.Data.encode(request, session.number, question.disk, epoch, pieces, digests, payload)
        return head, payload

    def _list(self, request: int, question: frames.List) -> bytes:
        session = self._service.session(question.session, self._peer)
        size = session.size(question.disk)
        if question.offset > size:
            raise Invalid("LIST begins behind the end of the disk", code="list-range", disk=question.disk)
        rows, more = session.extents(question.disk, since_base=question.since_base).page(
            question.offset, question.limit
        )
        return frames.Extents(session.number, question.disk, more, rows).encode(request)

    def _digest(self, request: int, question: frames.Digests) -> bytes:
        session = self._service.session(question.session, self._peer)
        size = session.size(question.disk)
        start, stop = question.first * LEAF_SIZE, (question.first + question.count) * LEAF_SIZE
        if stop - LEAF_SIZE >= size:
            raise Invalid("DIGEST reaches over the end of the disk", code="digest-range", disk=question.disk)
        digests: list[bytes] = []
        with session.reading(question.disk) as reader:
            for at in range(start, min(stop, size), CHUNK_SIZE):
                view = self._leaves[: min(CHUNK_SIZE, min(stop, size) - at)]
                reader.read_into(at, view)
                digests.extend(leaf_digests(view))
        return frames.Digests(session.number, question.disk, question.first, question.count, b"".join(digests)).encode(
            request
        )
