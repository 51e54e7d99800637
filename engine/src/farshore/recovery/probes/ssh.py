"""SSH: green when a command ends with the status, and its output holds the text.

The guest is not trusted with more than it has: nothing is forwarded, no agent is offered, and its host key goes into
the evidence. Where the plan pins the key, another one gets neither password nor signature.
"""

from __future__ import annotations

import base64
import hashlib
import io
import logging
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import paramiko

from farshore.errors import FarshoreError, Permanent
from farshore.model.probe import SshProbe
from farshore.recovery.probes.sight import (
    CANNOT_TRY,
    NO_ANSWER,
    NOT_ALLOWED,
    READ_LIMIT_BYTES,
    WRONG_ANSWER,
    WRONG_HOST_KEY,
    Sight,
    decode,
    of_error,
    red,
)

#: A guest that boots has no address yet, and the kernel takes 3 s to say so; asking anew is quicker than waiting.
_CONNECT_S: Final = 3.0
_KINDS: Final[tuple[type[paramiko.PKey], ...]] = (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey)
# It tells every peer that is no SSH with a traceback.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)


def look(
    probe: SshProbe, address: str, deadline: float, clock: Callable[[], float], secret: Callable[[str], str]
) -> Sight:
    """Connect, authenticate, run the command and judge it, all before ``deadline``."""
    try:
        key = _key(secret(probe.key), probe.key) if probe.key else None
        password = secret(probe.password) if probe.password else None
    except FarshoreError as error:
        return red(CANNOT_TRY, error.message, final=True)

    def left() -> float:
        remaining = deadline - clock()
        if remaining <= 0:
            raise TimeoutError("no answer in time")
        return remaining

    seen = ""
    try:
        with socket.create_connection((address, probe.port), timeout=min(_CONNECT_S, left())) as sock:
            transport = paramiko.Transport(sock)
            try:
                transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = left()
                transport.start_client(timeout=left())
                shown = fingerprint(transport.get_remote_server_key())
                seen = f"{transport.remote_version}\nhost key {shown}\n"
                if probe.host_key is not None and shown != probe.host_key:
                    return red(WRONG_HOST_KEY, f"the guest shows the host key {shown}, not {probe.host_key}", seen)
                if key is not None:
                    transport.auth_publickey(probe.user, key)
                else:
                    transport.auth_password(probe.user, password or "", fallback=False)
                return _run(probe, transport, left, seen)
            finally:
                transport.close()
    except paramiko.AuthenticationException as error:
        return red(NOT_ALLOWED, f"{probe.user} is not let in: {error}", seen)
    except (paramiko.SSHException, EOFError) as error:
        return red(WRONG_ANSWER, f"no SSH: {error or type(error).__name__}", seen)
    except OSError as error:
        return replace(of_error(error), seen=seen)


def fingerprint(key: paramiko.PKey) -> str:
    """Return a key's fingerprint as OpenSSH prints it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")


def _run(probe: SshProbe, transport: paramiko.Transport, left: Callable[[], float], seen: str) -> Sight:
    channel = transport.open_session(timeout=left())
    channel.set_combine_stderr(True)
    channel.settimeout(left())
    channel.exec_command(probe.command)
    output = b""
    while len(output) < READ_LIMIT_BYTES:
        channel.settimeout(left())
        piece = channel.recv(4096)
        if not piece:
            break
        output += piece
    text = decode(output)
    seen += f"$ {probe.command}\n{text}"
    if not channel.status_event.wait(left()):
        return red(NO_ANSWER, "the command did not end in time", seen)
    status = channel.recv_exit_status()
    return judged(status, probe.exit, text, probe.contains, f"{seen}\nexit status {status}")


def judged(status: int, expected: int, text: str, contains: str, seen: str) -> Sight:
    """Return the verdict on a command."""
    if status != expected:
        return red(WRONG_ANSWER, f"exit status {status}, not {expected}", seen)
    if contains not in text:
        return red(WRONG_ANSWER, f"exit status {status}, but the output lacks the text", seen)
    return Sight(green=True, detail=f"exit status {status}", seen=seen)


def _key(text: str, name: str) -> paramiko.PKey:
    for kind in _KINDS:
        try:
            return kind.from_private_key(io.StringIO(text + "\n"))
        except (paramiko.SSHException, ValueError, UnicodeError, IndexError):
            continue
    raise Permanent(
        f"secret {name!r} is no private key without a passphrase (Ed25519, ECDSA or RSA)", code="secret-no-key"
    )
