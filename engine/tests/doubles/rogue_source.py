"""A source node that answers as the test wants: real TLS, real frames, wrong content."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any

from farshore.errors import FarshoreError
from farshore.transport import frames
from farshore.transport.frames import Type
from farshore.transport.sockets import receive_frame
from farshore.transport.tls import NodeTls
from farshore.units import MIB

Answer = Callable[[int, frames.Read], tuple[bytes, bytes]]


class RogueSource:
    """Opens a session of one disk of 1 MiB that is all data; READ is answered by ``answer``."""

    def __init__(self, identity: NodeTls, answer: Answer, *, hello: bytes | None = None) -> None:
        self._identity = identity
        self._answer = answer
        self._hello = hello or frames.Hello(features=frames.ROLE_SOURCE).encode()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.reads = 0
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        head, meta = memoryview(bytearray(28)), memoryview(bytearray(frames.MAX_META))
        with contextlib.suppress(OSError, EOFError, FarshoreError):
            connection = self._identity.server.wrap_socket(plain, server_side=True)
            self._sockets.append(connection)
            receive_frame(connection, head, meta)
            connection.sendall(self._hello)
            while True:
                header = receive_frame(connection, head, meta)
                for part in self._reply(header, bytes(meta[: header.meta_size])):
                    connection.sendall(part)

    def _reply(self, header: frames.Header, meta: bytes) -> tuple[bytes, ...]:
        number: Any = header.request
        if header.type is Type.OPEN:
            disk = frames.OpenedDisk("db/vda", MIB, incremental=False)
            return (frames.Opened(1, 1, (disk,)).encode(number),)
        if header.type is Type.LIST:
            return (frames.Extents(1, 0, False, [(0, MIB, False)]).encode(number),)
        if header.type is Type.READ:
            self.reads += 1
            return self._answer(number, frames.Read.decode(meta))
        return (frames.encode_closed(number, 1, {}),)

    def close(self) -> None:
        self._listener.close()
        for one in self._sockets:
            one.close()
