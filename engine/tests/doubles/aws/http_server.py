"""HTTP/1.1 as far as boto3 speaks it, with one thread per connection and no copy of a block's bytes."""

from __future__ import annotations

import contextlib
import io
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote

_REASONS = {200: "OK", 201: "Created", 202: "Accepted", 400: "Bad Request", 403: "Forbidden", 404: "Not Found"}


@dataclass(slots=True)
class Request:
    """One request, its body read."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytearray

    @property
    def path(self) -> str:
        """The path without the query, decoded."""
        return unquote(self.target.partition("?")[0])

    @property
    def query_text(self) -> str:
        """What follows the question mark."""
        return self.target.partition("?")[2]

    @property
    def query(self) -> dict[str, str]:
        """The query's names and values."""
        return dict(parse_qsl(self.query_text, keep_blank_values=True))


@dataclass(slots=True)
class Reply:
    """One reply. ``body`` is bytes-like; ``cut``: the connection ends and nothing is said."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | bytearray | memoryview = b""
    cut: bool = False


class Server:
    """Answers with what ``handle`` returns."""

    def __init__(self, handle: Callable[[Request], Reply]) -> None:
        self._handle = handle
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = int(self._listener.getsockname()[1])

    def serve(self) -> None:
        """Accept connections, for ever."""
        while True:
            peer, _ = self._listener.accept()
            threading.Thread(target=self._connection, args=(peer,), daemon=True).start()

    def _connection(self, peer: socket.socket) -> None:
        # Head and body of a reply are two writes: with Nagle's algorithm each would wait for a delayed acknowledgement.
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with peer, contextlib.suppress(ConnectionError, EOFError), peer.makefile("rb", buffering=64 * 1024) as stream:
            while (request := _read(stream, peer)) is not None:
                reply = self._handle(request)
                if reply.cut:
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                _write(peer, request, reply)


def _read(stream: io.BufferedReader, peer: socket.socket) -> Request | None:
    line = stream.readline()
    if not line.strip():
        return None
    method, target, _ = line.decode("latin-1").split(" ", 2)
    headers: dict[str, str] = {}
    while (line := stream.readline()).strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    if headers.get("expect", "").lower() == "100-continue":
        peer.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return Request(method, target, headers, _chunks(stream))
    body = bytearray(int(headers.get("content-length", "0")))
    _fill(stream, memoryview(body))
    return Request(method, target, headers, body)


def _chunks(stream: io.BufferedReader) -> bytearray:
    body = bytearray()
    while size := int(stream.readline().split(b";")[0], 16):
        piece = bytearray(size)
        _fill(stream, memoryview(piece))
        body += piece
        stream.readline()
    while stream.readline().strip():
        pass
    return body


def _fill(stream: io.BufferedReader, view: memoryview) -> None:
    while view:
        count = stream.readinto(view)
        if not count:
            raise EOFError
        view = view[count:]


def _write(peer: socket.socket, request: Request, reply: Reply) -> None:
    head = [f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, 'Status')}"]
    if "content-length" not in {name.lower() for name in reply.headers}:
        head.append(f"Content-Length: {len(reply.body)}")
    head += [f"{name}: {value}" for name, value in reply.headers.items()]
    peer.sendall(("\r\n".join(head) + "\r\n\r\n").encode("latin-1"))
    if len(reply.body) and request.method != "HEAD":
        peer.sendall(reply.body)
