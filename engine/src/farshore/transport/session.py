"""One replication session as the target sees it: questions to the source, and their answers.

A session lives at the source; all connections of the link serve it. When the source has forgotten it (its process was
restarted), the session is opened again with the same grant and what was asked is asked again, unseen by the caller.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from farshore.errors import Corruption, FarshoreError, Fenced, Reconnect, RestartFromCheckpoint, Retry
from farshore.transport import frames
from farshore.transport.buffers import Lent
from farshore.transport.connection import OnAnswer, OnError, Request
from farshore.transport.frames import Type
from farshore.transport.links import Link
from farshore.transport.packing import Unpacker

log = logging.getLogger(__name__)

#: A chunk whose digest fails is asked for again this often; more is no accident of the wire.
CORRUPT_TRIES: Final = 3
#: How long the confirmation of a session's end is waited for.
CLOSE_TIMEOUT_S: Final = 5.0

#: While a session is being opened its caller looks up this often.
_LOOK_S: Final = 0.5

T = TypeVar("T")
OnData = Callable[[frames.Data, Lent], None]


class Session:
    """An open session. Methods may be called from several threads; callbacks come from the link's threads."""

    def __init__(self, link: Link, grant: str, epoch: int, zero_block: int, *, compress: bool = False) -> None:
        self._link = link
        self._question = frames.Open(grant, zero_block, compress)
        self._epoch = epoch
        self._lock = threading.Lock()
        self._quiet = threading.Condition(self._lock)
        self._requests: dict[Request, OnError] = {}
        self._parked: list[Request] = []
        self._reopening = False
        self._busy = 0
        self._error: FarshoreError | None = None
        self.number = 0
        self.disks: tuple[frames.OpenedDisk, ...] = ()
        self.received_bytes = 0
        self.resent_bytes = 0
        self.corrupt = 0
        self._told: Future[dict[str, Any]] | None = None

    @property
    def rtt_s(self) -> float | None:
        """The shortest round trip to the source that was seen, in seconds; None before the first."""
        return self._link.rtt_s

    @property
    def away(self) -> tuple[float, str]:
        """For how long the source has not been reached, in seconds, and why; 0 where it is."""
        return self._link.down

    def open(self, cancel: threading.Event | None = None, waiting: Callable[[], None] = lambda: None) -> frames.Opened:
        """Open the session and return what the source says of its disks. ``waiting`` is called now and then meanwhile.

        Raises:
            Retry: ``cancel`` was set meanwhile.
            FarshoreError: what the source, or the way there, says against it.
        """
        future = self._ask(self._question.encode, Type.OPENED, frames.Opened.decode)
        while True:
            try:
                opened = future.result(timeout=_LOOK_S)
                break
            except TimeoutError:
                waiting()
                if cancel is not None and cancel.is_set():
                    self.abort(Retry("the cycle was cancelled", code="cancelled", hint="What is durable is kept."))
        if opened.epoch != self._epoch:
            raise Fenced("the source opened another epoch", code="stale-epoch", ours=self._epoch, theirs=opened.epoch)
        self.number = opened.session
        self.disks = opened.disks
        return opened

    def extents(self, disk: int, *, since_base: bool) -> Iterator[tuple[int, int, bool]]:
        """Return the ``(offset, length, zero)`` that changed since the grant's base, or all that is allocated.

        The first page is asked for by the call itself; the next one is on its way while one is used.
        """
        return self._pages(disk, since_base, self._list(disk, since_base, 0))

    def _pages(self, disk: int, since_base: bool, page: Future[frames.Extents]) -> Iterator[tuple[int, int, bool]]:
        while True:
            answer = page.result()
            if answer.more:
                offset, length, _zero = answer.extents[-1]
                page = self._list(disk, since_base, offset + length)
            yield from answer.extents
            if not answer.more:
                return

    def _list(self, disk: int, since_base: bool, offset: int) -> Future[frames.Extents]:
        question = frames.List(self.number, disk, since_base, offset)

        def decode(meta: memoryview) -> frames.Extents:
            answer = frames.Extents.decode(meta)
            if (answer.session, answer.disk) != (self.number, disk) or any(row[0] < offset for row in answer.extents):
                raise Corruption("the source answered for another place", code="misplaced-data", disk=disk)
            return answer

        return self._ask(question.encode, Type.EXTENTS, decode)

    def digests(self, disk: int, first: int, count: int) -> Future[bytes]:
        """Ask for the digests of ``count`` leaves from ``first``."""
        question = frames.Digests(self.number, disk, first, count)

        def decode(meta: memoryview) -> bytes:
            answer = frames.Digests.decode(meta, answer=True)
            if (answer.session, answer.disk, answer.first, answer.count) != (self.number, disk, first, count):
                raise Corruption("the source answered for another place", code="misplaced-data", disk=disk)
            return answer.digests

        return self._ask(question.encode, Type.DIGESTS, decode)

    def read(
        self, disk: int, ranges: Sequence[tuple[int, int]], size_bytes: int, on_data: OnData, on_error: OnError
    ) -> None:
        """Ask for a chunk. Exactly one of the callbacks is called, once, from a link's thread.

        ``on_data`` gets pieces that passed the wire digest and tile ``ranges``, and the buffer with their data, to
        release when it is used, also if it raises. What it raises goes to ``on_error``.
        """
        question = frames.Read(self.number, disk, tuple(ranges))
        tries = 0

        def on_answer(header: frames.Header, meta: memoryview, lent: Lent) -> None:
            nonlocal tries
            self.received_bytes += header.payload_size
            try:
                data, lent = self._checked(header, meta, lent, disk, ranges)
            except Corruption:
                tries += 1
                self.corrupt += 1
                if tries < CORRUPT_TRIES:
                    self._submit(question.encode, on_answer, on_error, size_bytes, keeps=True)
                    return
                raise
            on_data(data, lent)

        self._submit(question.encode, on_answer, on_error, size_bytes, keeps=True)

    def _checked(
        self, header: frames.Header, meta: memoryview, lent: Lent, disk: int, ranges: Sequence[tuple[int, int]]
    ) -> tuple[frames.Data, Lent]:
        """Return a chunk that is what was asked for, and whole, with its payload as it was before compression.

        ``lent`` is released where another buffer is returned, or none.
        """
        try:
            data = self._described(header, meta, disk)
            if header.compressed:
                lent = self._unpacked(lent, data.size_bytes)
            data.check(self._epoch, lent.view)
            data.check_tiles(ranges)
        except BaseException:
            lent.release()
            raise
        return data, lent

    def _described(self, header: frames.Header, meta: memoryview, disk: int) -> frames.Data:
        """Return what a frame says of its payload."""
        if header.type not in {Type.DATA, Type.ZERO} or (header.compressed and not self._question.compress):
            raise Reconnect("the peer answered with something else than was asked for", code="protocol-error")
        data = frames.Data.decode(meta, header.payload_size, compressed=header.compressed)
        if (data.session, data.disk) != (self.number, disk):
            raise Corruption("a chunk is of another session or disk", code="misplaced-data", disk=data.disk)
        return data

    def _unpacked(self, packed: Lent, size_bytes: int) -> Lent:
        """Return what was compressed, and give ``packed`` back."""
        whole = self._link.buffers.take(size_bytes)
        try:
            _unpacking.unpacker.unpack(packed.view, whole.view)
        except BaseException:
            whole.release()
            raise
        packed.release()
        return whole

    def abort(self, error: FarshoreError) -> None:
        """Fail everything that waits, now and from now on, with ``error``."""
        with self._quiet:
            self._error = self._error or error
            error = self._error
            waiting = list(self._requests.items())
            self._requests.clear()
            self._parked.clear()
            for request, _ in waiting:
                request.abandoned = True
            self._busy += 1  # what is told below uses what the caller of close() takes away after it
        try:
            for _, on_error in waiting:
                on_error(error)
        finally:
            self._done()

    def close(self) -> None:
        """End the session: after the call no callback runs any more. The source learns of it, if it can be reached.

        Nothing waits for its confirmation, which is a round trip away; see :meth:`source_stats`.
        """
        in_order = self._error is None
        self.abort(Reconnect("the session was closed", code="session-closed"))
        with self._quiet:
            self._quiet.wait_for(lambda: self._busy == 0)
        number, self.number = self.number, 0
        if not number:
            return
        told: Future[dict[str, Any]] = Future()

        def closed(header: frames.Header, meta: memoryview, _lent: Lent) -> None:
            _settle(told, frames.decode_closed(meta)[1] if header.type is Type.CLOSED else {})

        self._link.submit(
            Request(lambda request: frames.encode_close(request, number), closed, lambda _error: _settle(told, {}))
        )
        if in_order:
            self._told = told

    def source_stats(self) -> dict[str, Any]:
        """Wait for the confirmation of :meth:`close`; return what the source says that the session took, if it does."""
        if self._told is None:
            return {}
        try:
            return self._told.result(timeout=CLOSE_TIMEOUT_S)
        except TimeoutError:
            log.info("the source did not confirm the end of the session")
            return {}

    # Inside ---------------------------------------------------------------------------------------------------------

    def _ask(self, build: Callable[[int], bytes], answer: Type, decode: Callable[[memoryview], T]) -> Future[T]:
        """Submit a question whose answer is small, and return its future."""
        future: Future[T] = Future()

        def on_answer(header: frames.Header, meta: memoryview, _lent: Lent) -> None:
            if header.type is not answer:
                raise Reconnect("the peer answered with something else", code="protocol-error")
            _settle(future, decode(meta))

        def on_error(error: FarshoreError) -> None:
            _fail(future, error)

        self._submit(build, on_answer, on_error, 0)
        return future

    def _submit(
        self,
        build: Callable[[int], bytes],
        on_answer: OnAnswer,
        on_error: OnError,
        weight: int,
        *,
        keeps: bool = False,
    ) -> None:
        request = Request(build, _unset, _unset_error, weight, keeps=keeps)

        def answered(header: frames.Header, meta: memoryview, lent: Lent) -> None:
            if not self._take(request):
                lent.release()
                return
            if request.times_sent > 1:
                self.resent_bytes += header.payload_size
            try:
                on_answer(header, meta, lent)
            except FarshoreError as error:
                on_error(error)
            except Exception as error:  # a bug, or an OSError that nobody named: it ends the cycle and is shown
                log.exception("an answer could not be handled")
                on_error(FarshoreError(f"an answer could not be handled: {error!r}", code="internal"))
            finally:
                self._done()

        def failed(error: FarshoreError) -> None:
            if error.code == "session-unknown" and self._park(request):
                return
            if not self._take(request):
                return
            try:
                on_error(error)
            finally:
                self._done()

        request.on_answer, request.on_error = answered, failed
        with self._lock:
            error = self._error
            if error is None:
                self._requests[request] = on_error
        if error is not None:
            on_error(error)
            return
        self._link.submit(request)

    def _take(self, request: Request) -> bool:
        """Say whether the request's callback may run; exactly one caller gets True."""
        with self._lock:
            if self._requests.pop(request, None) is None:
                return False
            self._busy += 1
            return True

    def _done(self) -> None:
        with self._quiet:
            self._busy -= 1
            self._quiet.notify_all()

    def _park(self, request: Request) -> bool:
        """Hold a request back until the session is open again; False where there is nothing to open again."""
        with self._lock:
            if not self.number or request not in self._requests:
                return False
            self._parked.append(request)
            if self._reopening:
                return True
            self._reopening = True
        log.info("the source forgot the session; opening it again")
        opening = Request(
            self._question.encode,
            self._reopened,
            self._not_reopened,
        )
        self._link.submit(opening)
        return True

    def _reopened(self, header: frames.Header, meta: memoryview, _lent: Lent) -> None:
        if header.type is not Type.OPENED:
            self._not_reopened(Reconnect("the peer answered with something else", code="protocol-error"))
            return
        try:
            opened = frames.Opened.decode(meta)
        except FarshoreError as error:  # what is parked has to be told
            self._not_reopened(error)
            return
        if (opened.session, opened.disks) != (self.number, self.disks):
            self._not_reopened(
                RestartFromCheckpoint("the source's points changed while it was away", code="source-point-gone")
            )
            return
        with self._lock:
            parked, self._parked = self._parked, []
            self._reopening = False
        for request in parked:
            if not request.abandoned:
                self._link.submit(request)

    def _not_reopened(self, error: FarshoreError) -> None:
        if error.code in {"grant-expired", "grant-of-another-node"}:  # the other one: a certificate was renewed
            error = RestartFromCheckpoint(
                "the source forgot the session, and the grant to open it again is of no use any more",
                code="session-gone",
                hint="Order the cycle again with a fresh grant; what is durable is not sent again.",
            )
        self.abort(error)


class _Unpacking(threading.local):
    """What a thread needs to unpack; taken once, by threads that meet compressed chunks."""

    def __init__(self) -> None:
        self.unpacker = Unpacker()


_unpacking = _Unpacking()


def _settle(future: Future[T], value: T) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: Future[T], error: FarshoreError) -> None:
    if not future.done():
        future.set_exception(error)


def _unset(_header: frames.Header, _meta: memoryview, _lent: Lent) -> None:
    raise AssertionError("the request was submitted before it was whole")


def _unset_error(_error: FarshoreError) -> None:
    raise AssertionError("the request was submitted before it was whole")
