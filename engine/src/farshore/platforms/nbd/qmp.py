"""The few words of QMP that a storage daemon needs (QEMU, docs/interop/qmp-spec.rst)."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, Final

from farshore.errors import Permanent, Reconnect, Unavailable

TIMEOUT_S: Final = 60.0


class Monitor:
    """A session with a QMP server. Not for several threads.

    Raises:
        Unavailable: nobody listens.
        Reconnect: the server went away.
    """

    def __init__(self, path: Path, *, timeout_s: float = TIMEOUT_S) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise Unavailable(f"no monitor at {path}: {error}", code="qmp-unavailable") from error
        self._lines = self._socket.makefile("rb")
        try:
            self._read()
            self.execute("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run ``command`` and return what it returns; events that come in between are passed over.

        Argument names are written with ``_`` here and with ``-`` on the wire.

        Raises:
            Permanent: the server refuses (``qmp-error``).
        """
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = {name.replace("_", "-"): value for name, value in arguments.items()}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise Reconnect(f"the monitor went away: {error}", code="qmp-lost") from error
        while True:
            reply = self._read()
            if "return" in reply:
                return reply["return"]
            if "error" in reply:
                said = reply["error"]
                raise Permanent(
                    f"{command} failed: {said.get('desc')}", code="qmp-error", command=command, kind=said.get("class")
                )

    def _read(self) -> dict[str, Any]:
        try:
            line = self._lines.readline()
        except OSError as error:
            raise Reconnect(f"the monitor does not answer: {error}", code="qmp-lost") from error
        if not line:
            raise Reconnect("the monitor closed the connection", code="qmp-lost")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def close(self) -> None:
        """End the session."""
        self._lines.close()
        self._socket.close()
