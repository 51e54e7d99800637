"""An SSH server (paramiko's own) in this process that knows one user and runs no command: it looks answers up."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import paramiko

#: RFC 4254, section 5.4.
_CHANNEL_SUCCESS = 99


def new_key() -> tuple[paramiko.PKey, str]:
    """Return a new key and its text."""
    key = paramiko.ECDSAKey.generate()
    out = io.StringIO()
    key.write_private_key(out)
    return key, out.getvalue()


@dataclass
class SshServer:
    """What it admits and answers; ``logins`` are the tries that it saw."""

    user: str = "probe"
    password: str | None = None
    key: paramiko.PKey | None = None
    #: Output and exit status by command; one that is not here never ends.
    answers: dict[str, tuple[str, int]] = field(default_factory=dict)
    host_key: paramiko.PKey = field(default_factory=paramiko.ECDSAKey.generate)
    logins: list[str] = field(default_factory=list)
    #: Where it listens. Ansible takes 127.0.0.1 for the machine that it runs on, and asks nobody.
    address: str = "127.0.0.1"
    port: int = 0

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.host_key.asbytes()).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


class _Rules(paramiko.ServerInterface):
    def __init__(self, server: SshServer) -> None:
        self.server = server
        self.held: list[paramiko.Channel] = []

    def get_allowed_auths(self, username: str) -> str:  # noqa: ARG002 - called by its names
        return "password,publickey"

    def check_auth_password(self, username: str, password: str) -> int:
        self.server.logins.append(username)
        good = username == self.server.user and self.server.password is not None and password == self.server.password
        return paramiko.AUTH_SUCCESSFUL if good else paramiko.AUTH_FAILED

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self.server.logins.append(username)
        good = username == self.server.user and key == self.server.key
        return paramiko.AUTH_SUCCESSFUL if good else paramiko.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:  # noqa: ARG002
        return paramiko.OPEN_SUCCEEDED

    def check_channel_pty_request(self, *_: object) -> bool:
        return True

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        answer = self.server.answers.get(command.decode())
        if answer is None:
            self.held.append(channel)
            return True

        # The library confirms the request once this has returned, which a thread could overtake: say it before.
        confirmed = paramiko.Message()
        confirmed.add_byte(bytes([_CHANNEL_SUCCESS]))
        confirmed.add_int(channel.remote_chanid)
        channel.transport._send_user_message(confirmed)

        def run() -> None:
            with contextlib.suppress(OSError, EOFError):
                channel.sendall(answer[0].encode())
                channel.send_exit_status(answer[1])
                channel.close()

        threading.Thread(target=run, daemon=True).start()
        return True


@contextlib.contextmanager
def ssh_server(server: SshServer) -> Iterator[SshServer]:
    """Let ``server`` listen on a port of its own."""
    listener = socket.create_server((server.address, 0))
    server.port = listener.getsockname()[1]
    transports: list[paramiko.Transport] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            transport = paramiko.Transport(connection)
            transport.add_server_key(server.host_key)
            transports.append(transport)
            with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
                transport.start_server(event=threading.Event(), server=_Rules(server))

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for transport in transports:
            transport.close()
