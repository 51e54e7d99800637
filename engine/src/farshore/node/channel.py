"""What a node and its worker processes say to each other: JSON objects, one a line, over a pair of sockets."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any, Final

#: A process that reads nothing for so long is stuck.
SEND_TIMEOUT_S: Final = 5


class Channel:
    """One end. Any thread may send; one receives."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_TIMEOUT_S, 0))
        self._socket = connection
        self._lock = threading.Lock()

    def send(self, do: str, **values: Any) -> None:
        """Send one message.

        Raises:
            OSError: the other end is gone, or stuck.
        """
        data = json.dumps({"do": do, **values}, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            self._socket.sendall(data)

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yield what the other end sends until it is gone; a line that it did not finish is none."""
        try:
            with self._socket.makefile("rb") as lines:
                for line in lines:
                    if line.endswith(b"\n"):
                        yield json.loads(line)
        except OSError:
            return

    def hang_up(self) -> None:
        """Let the other end, and who receives here, know that this is over."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()
