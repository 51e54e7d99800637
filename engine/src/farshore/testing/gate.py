"""A TCP forwarder with a gate: holds bytes back, breaks connections, refuses new ones."""

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
        self._down = False
        self._closed = threading.Event()
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
            self._left, self._held, self._down = None, False, False
            self._changed.notify_all()

    def await_held(self, timeout_s: float = 30) -> None:
        """Wait until bytes are held back."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._held, timeout_s):
                raise AssertionError("nothing came to the gate")

    def cut(self, *, down: bool = False) -> None:
        """Break every connection that is there; ``down``: and let none through until :meth:`open`."""
        with self._changed:
            sockets, self._sockets = self._sockets, set()
            self._down = self._down or down
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Break every connection and take no more."""
        self._closed.set()
        with self._changed:
            self._left = None
            self._changed.notify_all()
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                caller, _ = self._listener.accept()
            except OSError:
                continue
            try:
                callee = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                caller.close()
                continue
            with self._changed:
                down = self._down
                if not down:
                    self._sockets |= {caller, callee}
            if down:
                caller.close()
                callee.close()
                continue
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
