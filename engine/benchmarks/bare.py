"""A bare pipe in Python: read, TLS 1.3, write, and nothing else; what the runtime itself can do.

    python -m benchmarks.bare serve|pull HOST PORT KEYS CONNECTIONS IMAGE

Each end prints its seconds and CPU seconds from the moment of connecting on, as JSON.

One thread and one connection for each share of the image's data; chunks of 1 MiB, buffers used again, no digest, no
flush, no manifest, no retry. A chunk goes as 16 bytes of offset and length with its data; a length of 0 is the end.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.ranges import data_ranges

CHUNK: Final = 1 << 20
_HEADER: Final = struct.Struct("!QQ")


def context(keys: Path, end: str) -> ssl.SSLContext:
    """Return the TLS settings of one end: mutual, 1.3 only."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if end == "source" else ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_verify_locations(keys / "ca.pem")
    made.load_cert_chain(keys / f"{end}.pem", keys / f"{end}.key")
    if end == "source":
        made.num_tickets = 0
    return made


def serve(host: str, port: int, keys: Path, connections: int, image: Path) -> None:
    """Send the image's data, spread over the connections."""
    tls = context(keys, "source")
    chunks = [
        (at, min(CHUNK, offset + length - at))
        for offset, length in data_ranges(image)
        for at in range(offset, offset + length, CHUNK)
    ]
    share = iter(chunks)
    lock = threading.Lock()
    fd = os.open(image, os.O_RDONLY)

    def send(plain: socket.socket) -> None:
        buffer = bytearray(_HEADER.size + CHUNK)
        view = memoryview(buffer)
        with tls.wrap_socket(plain, server_side=True) as connection:
            while True:
                with lock:
                    chunk = next(share, (0, 0))
                _HEADER.pack_into(buffer, 0, *chunk)
                end = _HEADER.size + chunk[1]
                os.preadv(fd, [view[_HEADER.size : end]], chunk[0])
                connection.sendall(view[:end])
                if not chunk[1]:
                    connection.recv(1)
                    return

    with socket.create_server((host, port), backlog=connections) as listener, _Timed():
        _all(send, [_no_delay(listener.accept()[0]) for _ in range(connections)])


def pull(host: str, port: int, keys: Path, connections: int, image: Path) -> None:
    """Write what comes."""
    tls = context(keys, "target")
    fd = os.open(image, os.O_RDWR | os.O_CREAT, 0o600)

    def receive(plain: socket.socket) -> None:
        buffer = memoryview(bytearray(CHUNK))
        header = memoryview(bytearray(_HEADER.size))
        with tls.wrap_socket(plain) as connection:
            while True:
                _fill(connection, header)
                offset, length = _HEADER.unpack(header)
                if not length:
                    connection.send(b"!")
                    return
                _fill(connection, buffer[:length])
                os.pwrite(fd, buffer[:length], offset)

    with _Timed():
        _all(receive, [_no_delay(socket.create_connection((host, port))) for _ in range(connections)])


def _fill(connection: ssl.SSLSocket, view: memoryview) -> None:
    got = 0
    while got < len(view):
        count = connection.recv_into(view[got:])
        if not count:
            raise ConnectionError("the other end is gone")
        got += count


def _no_delay(connection: socket.socket) -> socket.socket:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _all(work: Callable[[socket.socket], None], sockets: list[socket.socket]) -> None:
    failed: list[BaseException] = []

    def guarded(connection: socket.socket) -> None:
        try:
            work(connection)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(one,)) for one in sockets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


class _Timed:
    """Prints what passed inside it."""

    def __enter__(self) -> None:
        self._begun, self._cpu = time.monotonic(), _cpu_s()

    def __exit__(self, *_: object) -> None:
        print(json.dumps({"seconds": time.monotonic() - self._begun, "cpu_s": _cpu_s() - self._cpu}))  # noqa: T201


def _cpu_s() -> float:
    taken = resource.getrusage(resource.RUSAGE_SELF)
    return taken.ru_utime + taken.ru_stime


def main(words: list[str]) -> None:
    """Run one end."""
    end, host, port, keys, connections, image = words
    (serve if end == "serve" else pull)(host, int(port), Path(keys), int(connections), Path(image))


if __name__ == "__main__":
    main(sys.argv[1:])
