"""NBD server on a Unix socket for disks that are made up in this process: fixed newstyle, simple replies.

For one storage daemon beside us, which passes on what others ask of it. Requests of a connection are answered in turn;
each export is asked over a connection of its own.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol, Self

from farshore.errors import FarshoreError, NoSpace
from farshore.platforms.nbd import protocol as p
from farshore.platforms.nbd.launcher import check_socket_path

#: What an option may carry: the name of an export has 4096 bytes at most.
_OPTION_MAX: Final = 16384


class Disk(Protocol):
    """What is served."""

    size_bytes: int

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the bytes at ``offset``."""

    def write(self, offset: int, buffer: memoryview) -> None:
        """Write ``buffer`` at ``offset``."""


class Server:
    """``with Server(path, disks):`` serves ``disks`` by their names until the end of the block.

    ``failure`` is the first error that a disk has raised: whoever asked was told EIO alone.

    Raises:
        Invalid: ``path`` is too long for a socket.
    """

    def __init__(self, path: Path, disks: Mapping[str, Disk]) -> None:
        check_socket_path(path, "platform.scratch")
        self.path = path
        self.failure: FarshoreError | None = None
        self._disks = disks
        self._lock = threading.Lock()
        self._peers: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def __enter__(self) -> Self:
        self.path.unlink(missing_ok=True)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._begin(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            peers = list(self._peers)
        for peer in peers:
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self.path.unlink(missing_ok=True)

    def _begin(self, work: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=work, args=arguments, name="nbd-server", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:  # it was closed
                return
            with self._lock:
                self._peers.append(peer)
            self._begin(self._serve, peer)

    def _serve(self, peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError, EOFError):
            disk = self._negotiate(peer)
            while disk is not None and self._answer(peer, disk):
                pass

    def _negotiate(self, peer: socket.socket) -> Disk | None:
        """Return the disk that was chosen; None where the peer has gone."""
        peer.sendall(p.GREETING.pack(p.MAGIC, p.OPTION_MAGIC, p.FIXED_NEWSTYLE | p.NO_ZEROES))
        _receive(peer, p.CLIENT_FLAGS.size)
        while True:
            magic, option, length = p.OPTION.unpack(_receive(peer, p.OPTION.size))
            if magic != p.OPTION_MAGIC or length > _OPTION_MAX:
                return None
            data = _receive(peer, length)
            if option == p.Option.GO:
                disk = self._disks.get(data[4 : 4 + int.from_bytes(data[:4])].decode(errors="replace"))
                if disk is None:
                    _reply(peer, option, p.OptionReply.ERROR_UNKNOWN)
                    continue
                flags = p.ExportFlag.HAS_FLAGS | p.ExportFlag.SEND_FLUSH
                about = p.INFO_EXPORT.pack(p.Info.EXPORT, disk.size_bytes, flags)
                _reply(peer, option, p.OptionReply.INFO, about)
                _reply(peer, option, p.OptionReply.ACK)
                return disk
            if option == p.Option.ABORT:
                _reply(peer, option, p.OptionReply.ACK)
                return None
            _reply(peer, option, p.OptionReply.ERROR_UNSUPPORTED)

    def _answer(self, peer: socket.socket, disk: Disk) -> bool:
        """Answer one request; False at the end."""
        magic, _, command, cookie, offset, length = p.REQUEST.unpack(_receive(peer, p.REQUEST.size))
        if magic != p.REQUEST_MAGIC or command == p.Command.DISCONNECT or length > p.MAX_PAYLOAD:
            return False
        data = _receive(peer, length) if command == p.Command.WRITE else bytearray()
        failed = 0
        if command in {p.Command.READ, p.Command.WRITE} and offset + length > disk.size_bytes:
            failed = errno.EINVAL
        else:
            try:
                if command == p.Command.READ:
                    data = bytearray(length)
                    disk.read_into(offset, memoryview(data))
                elif command == p.Command.WRITE:
                    disk.write(offset, memoryview(data))
                elif command != p.Command.FLUSH:
                    failed = errno.EINVAL
            except FarshoreError as error:
                with self._lock:
                    self.failure = self.failure or error
                failed = errno.ENOSPC if isinstance(error, NoSpace) else errno.EIO
        peer.sendall(p.REPLY_MAGIC.pack(p.SIMPLE_REPLY_MAGIC) + p.SIMPLE_REPLY.pack(failed, cookie))
        if command == p.Command.READ and not failed:
            peer.sendall(data)
        return True


def _reply(peer: socket.socket, option: int, kind: p.OptionReply, data: bytes = b"") -> None:
    peer.sendall(p.OPTION_REPLY.pack(p.OPTION_REPLY_MAGIC, option, kind, len(data)) + data)


def _receive(peer: socket.socket, length: int) -> bytearray:
    """Return ``length`` bytes.

    Raises:
        EOFError: the peer has gone.
    """
    data = bytearray(length)
    view, at = memoryview(data), 0
    while at < length:
        count = peer.recv_into(view[at:])
        if not count:
            raise EOFError
        at += count
    return data
