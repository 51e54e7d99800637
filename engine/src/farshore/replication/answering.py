"""One connection at the source: receives questions, has them worked on by the readers, sends the answers.

The connection's own thread does all its reading and writing, for a TLS object must not be used by two at once. It waits
for nothing but its peer: what is in memory it answers itself, for each change of threads costs as much as a part of the
answer; all other questions go to the readers, and answers come back in the order in which they are ready.

Memory is bounded. Questions are kept as they came, at most :data:`QUESTIONS_BYTES_MAX` of them; beyond that, none is
received. Of each disk, :data:`DISK_MAX` are at work or answered and not sent; and while :data:`READY_MAX` answers wait
to be sent, no further question is taken up. So a peer that asks and does not read holds those, and one more for each
thread that was at work.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple, Protocol

from farshore.blocks.digest import DIGEST_SIZE, leaf_digests
from farshore.errors import FarshoreError, Invalid, Permanent, Reconnect
from farshore.platforms.contract import Reader
from farshore.replication.compression import CompressionLaw, WireRate
from farshore.replication.readers import Readers
from farshore.replication.reading import ChunkReader
from farshore.replication.sessions import SourceSession
from farshore.transport import frames
from farshore.transport.buffers import BufferPool, Lent
from farshore.transport.congestion import Paths
from farshore.transport.frames import Type
from farshore.transport.notices import Notices
from farshore.transport.packing import Packer
from farshore.transport.records import Secured
from farshore.transport.sockets import receive_frame
from farshore.transport.tls import Peer
from farshore.units import CHUNK_SIZE, LEAF_SIZE

log = logging.getLogger(__name__)

#: More than a target of ours has unanswered on one connection.
QUESTIONS_BYTES_MAX: Final = 128 * 1024
#: One is sent while the next one is made ready.
READY_MAX: Final = 2
DISK_MAX: Final = 2
#: Unsent bytes that the kernel takes for one connection. Beyond it, sending waits; so what the link cannot take shows
#: here, where compression is decided, and not as megabytes in the kernel, behind which every later answer would wait.
UNSENT_BYTES_MAX: Final = 512 * 1024
#: How often a thread that waits for answers looks after the readers.
_LOOK_MS: Final = 100
#: What a question takes beside its bytes, roughly.
_QUESTION_BYTES: Final = 256
#: Where session and disk stand in every question about a disk.
_SESSION_BYTES: Final = 8
_PLACE_BYTES: Final = 12
_NO_SESSION: Final = frozenset({"session-unknown", "session-of-another"})
_DISK_QUESTIONS: Final = frozenset({Type.READ, Type.LIST, Type.DIGEST})


class Service(Protocol):
    """What a connection needs of the service that it belongs to."""

    readers: Readers
    buffers: BufferPool
    rate: WireRate
    paths: Paths
    notices: Notices

    def open(self, question: frames.Open, peer: Peer) -> frames.Opened:
        """Admit a grant."""

    def session(self, number: int, peer: Peer) -> SourceSession:
        """Return an open session of ``peer``."""

    def end(self, number: int, peer: Peer) -> dict[str, object]:
        """Close a session of ``peer``; return what it took."""


class _Question(NamedTuple):
    """A question as it came. ``lane``: the disk whose storage it may have to wait for."""

    type: Type
    request: int
    meta: bytes
    lane: bytes | int


class _NotHeld(Exception):
    """The storage has to be waited for."""


class _Lane:
    """Questions about one disk. ``taken``: how many are at work, or answered and not sent yet."""

    __slots__ = ("taken", "waiting")

    def __init__(self) -> None:
        self.taken = 0
        self.waiting: deque[_Question] = deque()


class _Answer(NamedTuple):
    """What goes back for ``question``; ``head`` may have the payload behind it.

    ``lent`` holds what is sent, until it is sent. ``law`` learns how that went. ``broken`` ends the connection.
    """

    question: _Question
    head: bytes
    payload: memoryview | bytes = b""
    lent: Lent | None = None
    law: CompressionLaw | None = None
    broken: FarshoreError | None = None


class _Tools(threading.local):
    """What each thread that works on questions has for itself."""

    def __init__(self) -> None:
        self.chunks = ChunkReader()
        self.packer = Packer()


_tools = _Tools()


class Answering:
    """Answers what one peer asks on one connection."""

    def __init__(self, service: Service, connection: Secured, peer: Peer) -> None:
        self._service = service
        self._connection = connection
        self._peer = peer
        self._path = service.paths.to((peer.site, peer.node))
        self._head = memoryview(bytearray(frames.HEADER.size))
        self._meta = memoryview(bytearray(frames.MAX_META))
        self._lock = threading.Lock()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._asleep = False
        self._closed = False
        self._asked_bytes = 0
        self._lanes: dict[bytes | int, _Lane] = {}
        self._returned: deque[_Question] = deque()
        self._ready: deque[_Answer] = deque()
        self._answer: dict[Type, Callable[[_Question], _Answer]] = {
            Type.READ: self._read,
            Type.LIST: self._list,
            Type.DIGEST: self._digest,
            Type.OPEN: self._open,
            Type.CLOSE: self._close,
        }

    def run(self) -> None:
        """Answer until the peer goes.

        Raises:
            EOFError: the peer went, between two frames.
            FarshoreError, OSError: the connection is of no more use.
        """
        connection, fd = self._connection, self._connection.fileno()
        poll = select.poll()
        poll.register(self._event, select.POLLIN)
        listening = False
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES_MAX)
            self._path.join(connection)
            while True:
                self._send_ready()
                self._take_up_returned()
                room = self._asked_bytes < QUESTIONS_BYTES_MAX
                if room is not listening:
                    poll.register(fd, select.POLLIN if room else 0)
                    listening = room
                if not (room and connection.pending()):
                    seen = self._wait(poll).get(fd, 0)
                    if not seen:
                        continue
                    if not room:
                        raise EOFError("the peer went without reading its answers")
                self._receive()
        finally:
            self._path.leave(connection)
            with self._lock:
                self._closed = True
                os.close(self._event)
            self._drop_ready()

    # In the connection's thread -------------------------------------------------------------------------------------

    def _wait(self, poll: select.poll) -> dict[int, int]:
        """Sleep until there is something to do; return what happened on which file."""
        self._asleep = True
        if self._ready or self._returned:
            self._asleep = False
            return {}
        seen = dict(poll.poll(_LOOK_MS if self._asked_bytes else None))
        self._asleep = False
        if self._event in seen:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._event)
        if self._asked_bytes:
            self._service.readers.look()
        return seen

    def _receive(self) -> None:
        header = receive_frame(self._connection, self._head, self._meta)
        if header.type not in self._answer:
            raise Reconnect(f"a source does not answer {header.type.name}", code="protocol-error")
        meta = bytes(self._meta[: header.meta_size])
        lane = meta[:_PLACE_BYTES] if header.type in _DISK_QUESTIONS else id(self)
        self._asked_bytes += len(meta) + _QUESTION_BYTES
        question = _Question(header.type, header.request, meta, lane)
        here = self._lanes.get(lane)
        if here is None:
            here = self._lanes[lane] = _Lane()
        if here.taken < DISK_MAX:
            here.taken += 1
            self._submit(question)
        else:
            here.waiting.append(question)

    def _submit(self, question: _Question) -> None:
        if len(self._ready) < READY_MAX and question.type is Type.READ:
            try:
                self._ready.append(self._answered(question, partial(self._read, held=True)))
            except _NotHeld:
                pass
            else:
                return
        self._service.readers.submit(question.lane, partial(self._work, question))

    def _take_up_next(self, question: _Question) -> None:
        """Let the next one about the same disk take the place of a question whose answer was sent."""
        self._asked_bytes -= len(question.meta) + _QUESTION_BYTES
        here = self._lanes[question.lane]
        if here.waiting:
            self._submit(here.waiting.popleft())
            return
        here.taken -= 1
        if not here.taken:
            del self._lanes[question.lane]

    def _take_up_returned(self) -> None:
        """Hand questions to the readers again that found too many answers waiting."""
        for _ in range(min(READY_MAX - len(self._ready), len(self._returned))):
            self._submit(self._returned.popleft())

    def _send_ready(self) -> None:
        connection, service = self._connection, self._service
        while self._ready:
            answer = self._ready.popleft()
            if answer.broken is not None:
                raise answer.broken
            size = len(answer.head) + len(answer.payload)
            began, cpu_began = time.monotonic(), time.thread_time() if answer.law is not None else 0.0
            try:
                connection.send_parts(answer.head, answer.payload)
            finally:
                _give_back(answer)
            now = time.monotonic()
            service.rate.add(size, now)
            self._path.look(now)
            if answer.law is not None:
                answer.law.sent(size, max(now - began - (time.thread_time() - cpu_began), 0.0))
            self._take_up_next(answer.question)
            self._take_up_returned()

    def _drop_ready(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                _give_back(self._ready.popleft())

    # In a reader's thread -------------------------------------------------------------------------------------------

    def _work(self, question: _Question) -> None:
        """Answer one question; whatever happens, it is answered, or the target would ask for ever."""
        if len(self._ready) < READY_MAX:
            self._ready.append(self._answered(question, self._answer[question.type]))
        else:
            self._returned.append(question)  # no memory for another answer until the peer has read these
        with self._lock:
            closed = self._closed
            if self._asleep and not closed:
                self._asleep = False
                os.eventfd_write(self._event, 1)
        if closed:
            self._drop_ready()

    def _answered(self, question: _Question, answer: Callable[[_Question], _Answer]) -> _Answer:
        try:
            return answer(question)
        except _NotHeld:
            raise
        except FarshoreError as error:
            if error.code == "protocol-error":
                return _Answer(question, b"", broken=error)
            failure = error
        except OSError as error:
            failure = Permanent(f"the source could not be read: {error}", code="source-read", errno=error.errno)
        except Exception as error:
            log.exception("a question of type %s could not be answered", question.type.name)
            failure = Permanent("the source met an error of its own", code="internal", kind=type(error).__name__)
        self._note(question, failure)
        return _Answer(question, frames.encode_error(question.request, failure))

    def _note(self, question: _Question, error: FarshoreError) -> None:
        """Log a refusal once for each session and code; what names no session of the peer's counts for the peer."""
        named = question.type in _DISK_QUESTIONS and error.code not in _NO_SESSION
        session = question.meta[:_SESSION_BYTES].hex() if named else ""
        level = logging.WARNING if self._service.notices.news(f"{self._peer} {session}", error.code) else logging.DEBUG
        log.log(level, "%s of %s is refused: %s", question.type.name, self._peer, error)

    def _open(self, question: _Question) -> _Answer:
        opened = self._service.open(frames.Open.decode(question.meta), self._peer)
        return _Answer(question, opened.encode(question.request))

    def _close(self, question: _Question) -> _Answer:
        number = frames.decode_close(question.meta)
        stats = self._service.end(number, self._peer)
        return _Answer(question, frames.encode_closed(question.request, number, stats))

    def _read(self, question: _Question, *, held: bool = False) -> _Answer:
        """Answer READ. ``held``: only from memory.

        Raises:
            _NotHeld: it is not there, or the answer is worth compressing, which several threads do better.
        """
        asked = frames.Read.decode(question.meta)
        session = self._service.session(asked.session, self._peer)
        size = session.size(asked.disk)
        law = session.law(asked.disk)
        if held and (not session.may_be_held(asked.disk) or (law is not None and law.pays(time.monotonic()))):
            raise _NotHeld
        last = asked.ranges[-1]
        if last[0] + last[1] > size:
            raise Invalid("READ reaches over the end of the disk", code="read-range", disk=asked.disk)
        lent = self._service.buffers.take(sum(length for _, length in asked.ranges))
        try:
            with session.reading(asked.disk) as reader:
                pieces, digests, filled = _tools.chunks.read(
                    partial(_read_held, reader) if held else reader.read_into,
                    size,
                    asked.ranges,
                    session.zero_block,
                    lent.view,
                )
        except BaseException as error:
            if isinstance(error, _NotHeld):
                session.not_held(asked.disk)
            lent.release()
            raise
        payload = lent.view[:filled]
        packed = _pack(law, payload) if law is not None else None
        head = frames.Data.encode(
            question.request,
            session.number,
            asked.disk,
            session.grant.epoch,
            pieces,
            digests,
            payload,
            None if packed is None else len(packed),
        )
        session.count(filled, len(digests) // DIGEST_SIZE * LEAF_SIZE)
        if packed is not None:
            lent.release()
            return _Answer(question, head, packed, None, law)
        if not filled:
            lent.release()
            return _Answer(question, head)
        return _Answer(question, head, payload, lent, law)

    def _list(self, question: _Question) -> _Answer:
        asked = frames.List.decode(question.meta)
        session = self._service.session(asked.session, self._peer)
        size = session.size(asked.disk)
        if asked.offset > size:
            raise Invalid("LIST begins behind the end of the disk", code="list-range", disk=asked.disk)
        rows, more = session.extents(asked.disk, since_base=asked.since_base).page(asked.offset, asked.limit)
        return _Answer(question, frames.Extents(session.number, asked.disk, more, rows).encode(question.request))

    def _digest(self, question: _Question) -> _Answer:
        asked = frames.Digests.decode(question.meta, answer=False)
        session = self._service.session(asked.session, self._peer)
        size = session.size(asked.disk)
        start, stop = asked.first * LEAF_SIZE, (asked.first + asked.count) * LEAF_SIZE
        if stop - LEAF_SIZE >= size:
            raise Invalid("DIGEST reaches over the end of the disk", code="digest-range", disk=asked.disk)
        digests: list[bytes] = []
        lent = self._service.buffers.take(CHUNK_SIZE)
        try:
            with session.reading(asked.disk) as reader:
                for at in range(start, min(stop, size), CHUNK_SIZE):
                    view = lent.view[: min(CHUNK_SIZE, min(stop, size) - at)]
                    reader.read_into(at, view)
                    digests += leaf_digests(view)
        finally:
            lent.release()
        answer = frames.Digests(session.number, asked.disk, asked.first, asked.count, b"".join(digests))
        return _Answer(question, answer.encode(question.request))


def _read_held(reader: Reader, offset: int, buffer: memoryview) -> None:
    if not reader.read_held(offset, buffer):
        raise _NotHeld


def _give_back(answer: _Answer) -> None:
    if answer.lent is not None:
        answer.lent.release()


def _pack(law: CompressionLaw, payload: memoryview) -> bytes | None:
    """Return the payload compressed, or None where it is to be sent as it is."""
    if not law.wants(len(payload), time.monotonic()):
        return None
    began = time.thread_time()
    packed = _tools.packer.pack(payload)
    return packed if law.packed(len(payload), len(packed), time.thread_time() - began) else None
