"""The client of a simulated provider: one call, one reply; errors by the duty of who catches them."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any, Final, Protocol

from farshore.errors import FarshoreError, Fenced, NotFound, Permanent, Reconnect, Retry, Unavailable

_TIMEOUT_S: Final = 120.0


class Api(Protocol):
    """Whatever carries calls to an account."""

    def call(self, operation: str, **params: Any) -> Any:
        """Return the result of one call.

        Raises:
            Retry, Reconnect, Permanent: as the provider says, or because its reply did not come.
        """


class SocketApi:
    """Calls over a local socket. Safe from several threads: each call has a connection of its own while it lasts."""

    def __init__(self, path: Path, caller: str = "") -> None:
        self._path = path
        self._caller = caller
        self._lock = threading.Lock()
        self._idle: list[socket.socket] = []

    def call(self, operation: str, **params: Any) -> Any:
        """Return the result of one call."""
        line = json.dumps({"operation": operation, "params": params, "caller": self._caller}).encode() + b"\n"
        connection = self._connection()
        try:
            connection.sendall(line)
            answer = _read_line(connection)
        except OSError as error:
            connection.close()
            raise Reconnect(
                f"the simulated provider's reply to {operation!r} did not come: {error}", code="reply-lost"
            ) from error
        if not answer:
            connection.close()
            raise Reconnect(f"the simulated provider's reply to {operation!r} did not come", code="reply-lost")
        with self._lock:
            self._idle.append(connection)
        return result_of(json.loads(answer))

    def _connection(self) -> socket.socket:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_TIMEOUT_S)
        try:
            connection.connect(str(self._path))
        except OSError as error:
            connection.close()
            raise Unavailable(
                f"the simulated provider at {self._path} does not answer",
                code="provider-unreachable",
                hint="Start it: `python -m farshore.platforms.simulated.provider SETTINGS.json`.",
            ) from error
        return connection


def result_of(reply: dict[str, Any]) -> Any:
    """Return the result in a reply, or raise its error."""
    error = reply.get("error")
    if error is None:
        return reply["result"]
    raise _raised(str(error["kind"]), f"the provider: {error['message']}", str(error.get("limit", "")))


def _raised(kind: str, message: str, limit: str) -> FarshoreError:
    if kind == "throttled":
        return Retry(message, code="throttled", limit=limit)
    if kind == "quota":
        return Permanent(
            message,
            code="quota-exceeded",
            hint="Have the provider raise the quota, or remove machines that are not needed; then go on with the run.",
        )
    if kind == "not-found":
        return NotFound(message, code="machine-not-found")
    if kind == "fenced":
        return Fenced(
            message,
            code="machine-fenced",
            hint="The machine runs at another site. Fail back, or lift the fence if you are sure that it does not.",
        )
    return Permanent(message, code="provider-refused")


def _read_line(connection: socket.socket) -> bytes:
    parts: list[bytes] = []
    while chunk := connection.recv(1 << 16):
        parts.append(chunk)
        if chunk.endswith(b"\n"):
            return b"".join(parts)
    return b""
