"""Sockets that end at a point in time, however slowly the peer drips."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

#: A guest that boots has no address yet, and the kernel takes 3 s to say so; asking anew is quicker than waiting.
CONNECT_S: Final = 1.5


class Connection(io.RawIOBase):
    """A TCP connection whose every operation ends by ``deadline`` (in ``clock``'s seconds) with TimeoutError."""

    _socket: socket.socket | None = None

    def __init__(self, address: str, port: int, deadline: float, clock: Callable[[], float]) -> None:
        super().__init__()
        self._deadline = deadline
        self._clock = clock
        self._socket = socket.create_connection((address, port), timeout=min(CONNECT_S, self._left()))

    def _left(self) -> float:
        left = self._deadline - self._clock()
        if left <= 0:
            raise TimeoutError("no answer in time")
        return left

    def _open(self) -> socket.socket:
        if self._socket is None:
            raise ValueError("the connection is closed")
        self._socket.settimeout(self._left())
        return self._socket

    def send(self, data: bytes) -> None:
        """Send all of ``data``."""
        self._open().sendall(data)

    def readable(self) -> bool:
        """Say yes."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Receive into ``buffer``; 0 at the end."""
        return self._open().recv_into(buffer)

    def makefile(self, *_args: Any, **_kwargs: Any) -> io.BufferedReader:
        """Return a buffered reader, as ``http.client`` asks a socket for."""
        return io.BufferedReader(self)

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        super().close()


#: Makes a connection: address, port, deadline, clock.
Connect = Callable[[str, int, float, Callable[[], float]], Connection]
