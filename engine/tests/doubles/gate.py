"""A TCP forwarder with a gate: lets a number of bytes of answers through, then holds until it is opened."""

from __future__ import annotations

import contextlib
import socket
import threading


class Gate:
    """Forwards a port of its own to ``port``. Bytes towards the caller are counted; those over ``allow`` wait."""

    def __init__(self, port: int) -> None:
        self.target = port
        self._changed = threading.Condition()
        self._left: int | None = None
        self.passed_bytes = 0
        self._held = False
        self._closed = False
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def allow(self, size_bytes: int) -> None:
        """Let that many more bytes through, then hold."""
        with self._changed:
            self._left, self._held = size_bytes, False
            self._changed.notify_all()

    def open(self) -> None:
        """Let everything through."""
        with self._changed:
            self._left, self._held = None, False
            self._changed.notify_all()

    def await_held(self, timeout_s: float = 30) -> None:
        """Wait until bytes are held back."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._held, timeout_s), "nothing came to the gate"

    def cut(self) -> None:
        """Break every connection that is there."""
        with self._changed:
            sockets, self._sockets = self._sockets, set()
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._left = None
            self._changed.notify_all()
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while not self._closed:
            try:
                caller, _ = self._listener.accept()
                callee = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                if self._closed:
                    return
                caller.close()
                continue
            with self._changed:
                self._sockets |= {caller, callee}
            threading.Thread(target=self._forward, args=(caller, callee, False), daemon=True).start()
            threading.Thread(target=self._forward, args=(callee, caller, True), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(16384):
                if counted:
                    self._admit(len(data))
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _admit(self, size_bytes: int) -> None:
        with self._changed:
            while self._left is not None and self._left < size_bytes:
                self._held = True
                self._changed.notify_all()
                self._changed.wait()
            if self._left is not None:
                self._left -= size_bytes
            self.passed_bytes += size_bytes
