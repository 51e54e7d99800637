"""A TCP proxy that does what networks do: it lies below TLS, so it sees records, not frames.

Toxics are set at any time and hold for all connections: ``latency_s``, ``bytes_per_s`` (a slow drip), ``corrupt_after``
(one byte of each connection is flipped, after so many), ``cut_after`` (the connection is reset after so many bytes),
``stalled`` (nothing passes, nothing ends). :meth:`Toxic.reset_all` cuts what is there.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from typing import Self


class Toxic:
    """Listens on a port of its own and passes everything on to ``target``, in both directions."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.latency_s = 0.0
        self.bytes_per_s: float | None = None
        self.corrupt_after: int | None = None
        self.cut_after: int | None = None
        self.stalled = False
        self.refuse = False
        self.connections = 0
        self.corrupted = 0
        self.cut = 0
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._ended = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.refuse:
                    _reset(client)
                    continue
                try:
                    server = socket.create_connection(self.target, timeout=60)
                except OSError:
                    _reset(client)
                    continue
                server.settimeout(None)
                self.connections += 1
                with self._lock:
                    self._pairs.add((client, server))
                for one, other in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=(one, other, (client, server)), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket, pair: tuple[socket.socket, socket.socket]) -> None:
        passed = 0
        try:
            while data := one.recv(16 * 1024 if self.bytes_per_s is None else 1024):
                while self.stalled and not self._ended.is_set():
                    time.sleep(0.02)
                if self.latency_s:
                    time.sleep(self.latency_s)
                if self.bytes_per_s is not None:
                    time.sleep(len(data) / self.bytes_per_s)
                if self.corrupt_after is not None and passed <= self.corrupt_after < passed + len(data):
                    damaged = bytearray(data)
                    damaged[self.corrupt_after - passed] ^= 0x40
                    data = bytes(damaged)
                    self.corrupted += 1
                if self.cut_after is not None and passed + len(data) > self.cut_after:
                    self.cut += 1
                    break
                other.sendall(data)
                passed += len(data)
        except OSError:
            pass
        finally:
            with self._lock:
                self._pairs.discard(pair)
            for side in pair:
                _reset(side)

    def reset_all(self) -> int:
        """Cut every connection by RST; return how many there were."""
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            for side in pair:
                _reset(side)
        return len(pairs)

    def close(self) -> None:
        """End the proxy and all that goes through it."""
        self._ended.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.reset_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _reset(side: socket.socket) -> None:
    """Close with RST, and wake whoever reads."""
    with contextlib.suppress(OSError):
        side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        side.shutdown(socket.SHUT_RDWR)
    side.close()
