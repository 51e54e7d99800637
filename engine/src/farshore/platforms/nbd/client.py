"""NBD client over blocking sockets: one connection, one request at a time, no allocation on the data path.

Several connections (:mod:`farshore.platforms.nbd.pool`) give parallelism. Payload goes from the socket into the
caller's buffer and back without a copy in between.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Never

from farshore.errors import FarshoreError, NoSpace, NotFound, Permanent, Reconnect, Retry, Unavailable
from farshore.platforms.nbd import protocol as p
from farshore.units import MIB

#: A local export answers in milliseconds; a disk that hangs this long is worth a new connection.
TIMEOUT_S: Final = 60.0
FLUSH_TIMEOUT_S: Final = 600.0
_ZEROES: Final = memoryview(bytes(MIB))

Address = Path | tuple[str, int]


@dataclass(frozen=True, slots=True)
class Status:
    """One range of one meta context, in bytes; ``flags`` mean what the context says."""

    offset: int
    length: int
    flags: int


class Connection:
    """A connection to one export.

    Args:
        address: a Unix socket's path, or host and port.
        export: the export's name.
        contexts: meta contexts that :meth:`block_status` will be asked for.

    Raises:
        Unavailable: nobody listens.
        NotFound: the server has no such export, or no such context (``nbd-context``).
        Reconnect: the connection was lost; this object is of no more use.
    """

    def __init__(
        self,
        address: Address,
        export: str,
        contexts: Sequence[str] = (),
        *,
        timeout_s: float = TIMEOUT_S,
        flush_timeout_s: float = FLUSH_TIMEOUT_S,
    ) -> None:
        self.address = address
        self.export = export
        self.size_bytes = 0
        self.flags = p.ExportFlag(0)
        self.max_payload_bytes = p.MAX_PAYLOAD
        self.block_bytes = 1
        self._contexts: dict[int, str] = {}
        self._cookie = 0
        self._head = bytearray(32)
        self._flush_timeout_s = flush_timeout_s
        self._socket = _connect(address, timeout_s)
        try:
            self._negotiate(contexts)
        except BaseException:
            self.drop()
            raise

    @property
    def can_multi_conn(self) -> bool:
        """Whether a flush on one connection covers what was written on others."""
        return bool(self.flags & p.ExportFlag.CAN_MULTI_CONN)

    # --- handshake -----------------------------------------------------------------------------------------------

    def _negotiate(self, contexts: Sequence[str]) -> None:
        magic, option_magic, flags = p.GREETING.unpack(self._receive(p.GREETING.size))
        if magic != p.MAGIC or option_magic != p.OPTION_MAGIC or not flags & p.FIXED_NEWSTYLE:
            self._fail("does not speak the fixed newstyle handshake")
        self._send(p.CLIENT_FLAGS.pack(p.FIXED_NEWSTYLE | (flags & p.NO_ZEROES)))
        self._ask(p.Option.STRUCTURED_REPLY, b"")
        name = self.export.encode()
        if contexts:
            queries = b"".join(struct.pack(">I", len(c.encode())) + c.encode() for c in contexts)
            body = struct.pack(">I", len(name)) + name + struct.pack(">I", len(contexts)) + queries
            for kind, data in self._ask(p.Option.SET_META_CONTEXT, body):
                if kind == p.OptionReply.META_CONTEXT:
                    self._contexts[int.from_bytes(data[:4])] = data[4:].decode(errors="replace")
            for context in contexts:
                if context not in self._contexts.values():
                    raise NotFound(
                        f"export {self.export!r} has no context {context!r}",
                        code="nbd-context",
                        export=self.export,
                        context=context,
                    )
        wanted = struct.pack(">HH", 1, p.Info.BLOCK_SIZE)
        for kind, data in self._ask(p.Option.GO, struct.pack(">I", len(name)) + name + wanted):
            if kind == p.OptionReply.INFO:
                self._learn(data)

    def _learn(self, data: bytes) -> None:
        info = int.from_bytes(data[:2])
        if info == p.Info.EXPORT:
            size, flags = struct.unpack(">QH", data[2:12])
            self.size_bytes, self.flags = size, p.ExportFlag(flags)
        elif info == p.Info.BLOCK_SIZE:
            smallest, _preferred, largest = struct.unpack(">III", data[2:14])
            self.block_bytes = smallest
            self.max_payload_bytes = min(self.max_payload_bytes, largest)

    def _ask(self, option: p.Option, data: bytes) -> list[tuple[int, bytes]]:
        """Send an option and return the replies before the acknowledgement."""
        self._send(p.OPTION.pack(p.OPTION_MAGIC, option, len(data)) + data)
        replies: list[tuple[int, bytes]] = []
        while True:
            magic, about, kind, length = p.OPTION_REPLY.unpack(self._receive(p.OPTION_REPLY.size))
            if magic != p.OPTION_REPLY_MAGIC or about != option or length > p.MAX_OPTION_REPLY:
                self._fail("answered an option with what is no option reply")
            body = self._receive(length)
            if kind == p.OptionReply.ACK:
                return replies
            if kind & p.OptionReply.ERROR:
                said = body.decode(errors="replace")
                if kind == p.OptionReply.ERROR_UNKNOWN:
                    raise NotFound(f"no export {self.export!r} at {self.address}: {said}", export=self.export)
                raise Permanent(f"the NBD server refuses {option.name}: {said}", code="nbd-refused", reply=kind)
            replies.append((kind, body))

    # --- requests ------------------------------------------------------------------------------------------------

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the bytes at ``offset``.

        Raises:
            Permanent: the range ends behind the export (``out-of-bounds``).
            Retry: the server could not read (``io-error``).
            Reconnect: the connection was lost.
        """
        self._inside(offset, len(buffer))
        while buffer:
            part = buffer[: self.max_payload_bytes]
            self._request(p.Command.READ, offset, len(part))
            self._read_reply(offset, part)
            offset += len(part)
            buffer = buffer[len(part) :]

    def write(self, offset: int, buffer: memoryview | bytes) -> None:
        """Write ``buffer`` at ``offset``; durable only after :meth:`flush`.

        Raises:
            NoSpace: the image cannot grow.
            Retry, Reconnect: as in :meth:`read_into`.
        """
        view = memoryview(buffer)
        self._inside(offset, len(view))
        while view:
            part = view[: self.max_payload_bytes]
            self._request(p.Command.WRITE, offset, len(part), payload=part)
            self._simple_reply(f"write of {len(part)} bytes at {offset}")
            offset += len(part)
            view = view[len(part) :]

    def write_zeroes(self, offset: int, length: int, *, hole: bool = True) -> None:
        """Make a range read as zero; with ``hole`` the server may give the space back."""
        self._ranges(p.Command.WRITE_ZEROES, offset, length, flags=0 if hole else p.NO_HOLE)

    def flush(self) -> None:
        """Return when every write that was answered before is durable.

        With ``CAN_MULTI_CONN`` that holds for writes of other connections too.
        """
        timeout_s = self._socket.gettimeout()
        # Gigabytes may wait for a slow disk, and nothing is said until they are there.
        self._socket.settimeout(self._flush_timeout_s)
        try:
            self._request(p.Command.FLUSH, 0, 0)
            self._simple_reply("flush")
        finally:
            with contextlib.suppress(OSError):  # it was lost, and closed
                self._socket.settimeout(timeout_s)

    def block_status(self, context: str, offset: int = 0, length: int | None = None) -> Iterator[Status]:
        """Yield the ranges of ``context`` in order, neighbours with equal flags joined, clipped to the range asked."""
        if context not in self._contexts.values():
            raise NotFound(f"context {context!r} was not asked for at the handshake", code="nbd-context")
        end = self.size_bytes if length is None else offset + length
        self._inside(offset, end - offset)
        held: Status | None = None
        while offset < end:
            self._request(p.Command.BLOCK_STATUS, offset, min(end - offset, p.MAX_RANGE))
            seen = offset
            for size, flags in self._status_reply(context):
                size = min(size, end - seen)  # noqa: PLW2901  a server may tell more than was asked
                if held and held.flags == flags:
                    held = Status(held.offset, held.length + size, flags)
                else:
                    if held:
                        yield held
                    held = Status(seen, size, flags)
                seen += size
                if seen >= end:
                    break
            if seen == offset:
                self._fail("told no extent at all")
            offset = seen
        if held:
            yield held

    def close(self) -> None:
        """Say good-bye and close; never fails."""
        if self._socket.fileno() >= 0:
            with contextlib.suppress(OSError, FarshoreError):
                self._request(p.Command.DISCONNECT, 0, 0)
        self.drop()

    def drop(self) -> None:
        """Close without a word; a call that waits in another thread ends with :class:`Reconnect`."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    # --- transmission --------------------------------------------------------------------------------------------

    def _inside(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise Permanent(
                f"{length} bytes at {offset} are not inside export {self.export!r} of {self.size_bytes} bytes",
                code="out-of-bounds",
                offset=offset,
                length=length,
                size_bytes=self.size_bytes,
            )

    def _ranges(self, command: p.Command, offset: int, length: int, flags: int = 0) -> None:
        self._inside(offset, length)
        while length:
            part = min(length, p.MAX_RANGE)
            self._request(command, offset, part, flags=flags)
            self._simple_reply(f"{command.name.lower()} of {part} bytes at {offset}")
            offset += part
            length -= part

    def _request(
        self, command: p.Command, offset: int, length: int, *, flags: int = 0, payload: memoryview | None = None
    ) -> None:
        self._cookie += 1
        head = p.REQUEST.pack(p.REQUEST_MAGIC, flags, command, self._cookie, offset, length)
        if payload is None:
            self._send(head)
            return
        try:
            sent = self._socket.sendmsg([head, payload])
        except OSError as error:
            self._lost(error)
        if sent < len(head):
            self._send(head[sent:])
            sent = len(head)
        self._send(payload[sent - len(head) :])

    def _simple_reply(self, what: str) -> None:
        """Read a reply without payload, in either form."""
        failure: FarshoreError | None = None
        while True:
            chunk = self._chunk()
            if chunk.kind & p.Chunk.ERROR or chunk.error:
                failure = self._failure(chunk, what)
            elif chunk.length:
                self._fail(f"sent {chunk.length} bytes nobody asked for")
            if chunk.done:
                break
        if failure:
            raise failure

    def _read_reply(self, offset: int, buffer: memoryview) -> None:
        filled = 0
        failure: FarshoreError | None = None
        while True:
            chunk = self._chunk()
            if chunk.kind & p.Chunk.ERROR or chunk.error:
                failure = self._failure(chunk, f"read of {len(buffer)} bytes at {offset}")
            elif chunk.kind == p.Chunk.OFFSET_DATA:
                start = int.from_bytes(self._receive(8)) - offset
                self._receive_into(self._part(buffer, start, chunk.length - 8))
                filled += chunk.length - 8
            elif chunk.kind == p.Chunk.OFFSET_HOLE:
                at, size = struct.unpack(">QI", self._receive(12))
                hole = self._part(buffer, at - offset, size)
                for begin in range(0, size, MIB):
                    part = hole[begin : begin + MIB]
                    part[:] = _ZEROES[: len(part)]
                filled += size
            elif chunk.kind != p.Chunk.NONE:
                self._fail(f"answered a read with a chunk of type {chunk.kind}")
            if chunk.done:
                break
        if failure:
            raise failure
        if filled != len(buffer):
            self._fail(f"answered a read of {len(buffer)} bytes with {filled}")

    def _part(self, buffer: memoryview, start: int, length: int) -> memoryview:
        if start < 0 or length < 0 or start + length > len(buffer):
            self._fail("answered a read with bytes of another place")
        return buffer[start : start + length]

    def _status_reply(self, context: str) -> list[tuple[int, int]]:
        extents: list[tuple[int, int]] = []
        failure: FarshoreError | None = None
        while True:
            chunk = self._chunk()
            if chunk.kind & p.Chunk.ERROR or chunk.error:
                failure = self._failure(chunk, "block status")
            elif chunk.kind == p.Chunk.BLOCK_STATUS:
                body = self._receive(chunk.length)
                if self._contexts.get(int.from_bytes(body[:4])) == context:
                    extents = list(p.EXTENT.iter_unpack(body[4:]))
            elif chunk.kind != p.Chunk.NONE:
                self._fail(f"answered a block status with a chunk of type {chunk.kind}")
            if chunk.done:
                break
        if failure:
            raise failure
        return extents

    def _chunk(self) -> _Chunk:
        """Read the head of the next chunk of the reply to the last request; a simple reply is one chunk."""
        head = memoryview(self._head)
        self._receive_into(head[:4])
        [magic] = p.REPLY_MAGIC.unpack_from(head)
        if magic == p.SIMPLE_REPLY_MAGIC:
            self._receive_into(head[: p.SIMPLE_REPLY.size])
            error, cookie = p.SIMPLE_REPLY.unpack_from(head)
            chunk = _Chunk(p.Chunk.NONE, 0, error, done=True)
        elif magic == p.CHUNK_MAGIC:
            self._receive_into(head[: p.CHUNK.size])
            flags, kind, cookie, length = p.CHUNK.unpack_from(head)
            chunk = _Chunk(kind, length, 0, done=bool(flags & p.DONE))
        else:
            self._fail("sent what is no reply")
        if cookie != self._cookie:
            self._fail("answered another request")
        return chunk

    def _failure(self, chunk: _Chunk, what: str) -> FarshoreError:
        """Return the error that a reply tells; the connection stays good unless the server goes away."""
        code, said = chunk.error, ""
        if chunk.kind & p.Chunk.ERROR:
            body = self._receive(chunk.length)
            code = int.from_bytes(body[:4])
            said = body[6 : 6 + int.from_bytes(body[4:6])].decode(errors="replace")
        name = errno.errorcode.get(code, str(code))
        text = f"{what} of export {self.export!r} failed: {said or os.strerror(code)} ({name})"
        if code == errno.ENOSPC:
            return NoSpace(text, hint="Make room in the pool, then run the cycle again.", errno=name)
        if code == errno.ESHUTDOWN:
            return Reconnect(text, errno=name)
        if code in {errno.EIO, errno.ENOMEM}:
            return Retry(text, code="io-error", errno=name)
        return Permanent(text, code="nbd-error", errno=name)

    # --- socket --------------------------------------------------------------------------------------------------

    def _send(self, data: bytes | memoryview) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            self._lost(error)

    def _receive(self, length: int) -> bytes:
        data = bytearray(length)
        self._receive_into(memoryview(data))
        return bytes(data)

    def _receive_into(self, view: memoryview) -> None:
        while view:
            try:
                count = self._socket.recv_into(view)
            except OSError as error:
                self._lost(error)
            if not count:
                self._lost(None)
            view = view[count:]

    def _lost(self, error: OSError | None) -> Never:
        self.drop()
        raise Reconnect(
            f"the connection to export {self.export!r} was lost: {error or 'the server closed it'}",
            code="nbd-lost",
            export=self.export,
        ) from error

    def _fail(self, what: str) -> Never:
        self.drop()
        raise Reconnect(f"the NBD server at {self.address} {what}", code="nbd-protocol", export=self.export)


@dataclass(frozen=True, slots=True)
class _Chunk:
    kind: int
    length: int
    error: int
    done: bool


def _connect(address: Address, timeout_s: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        if isinstance(address, Path):
            sock.connect(str(address))
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect(address)
    except OSError as error:
        sock.close()
        raise Unavailable(f"no NBD server at {address}: {error}", code="nbd-unavailable") from error
    return sock
