"""Parts of a node: processes that take data connections of their own behind the node's one port.

A TLS session cannot move to another process once its handshake has begun, so whoever connects names the part that it is
for in the handshake's first message, as a server name (RFC 6066). That name is read without taking anything off the
connection, which is then handed over as it came. It proves nothing and admits to nothing: each part asks for
certificates and a greeting as the node itself does.
"""

from __future__ import annotations

import re
import socket
import ssl
import struct
from typing import Any, Final, Protocol

_NAME: Final = re.compile(r"part-([1-9][0-9]?)\.farshore")
#: A handshake's first message has about 500 bytes, with keys that stand quantum computers about 2 KiB.
_HELLO_MAX: Final = 16 * 1024
#: A connection on its way to a part: where it comes from.
_HOST_MAX: Final = 256
_FD: Final = struct.Struct("i")


class Parts(Protocol):
    """The parts of a node, numbered from 1."""

    def expect(self) -> int:
        """Return how many there are; a peer that will connect to each of them is there."""

    def take(self, part: int, connection: socket.socket, host: str) -> bool:
        """Hand a connection over; False if there is no such part. The caller closes it in any case.

        Raises:
            FarshoreError, OSError: the part cannot take it now.
        """


class Door(socket.socket):
    """The end of a pair of sockets (``SOCK_SEQPACKET``) where connections are handed over: who listens accepts them."""

    def accept(self) -> tuple[socket.socket, Any]:
        """Wait for a connection; return it, and the host and port that it comes from.

        Raises:
            OSError: none came with it, or the other end is gone.
        """
        # Not socket.recv_fds, which forgets its flags.
        host, ancillary, _, _ = self.recvmsg(_HOST_MAX, socket.CMSG_SPACE(_FD.size), socket.MSG_CMSG_CLOEXEC)
        if not ancillary:
            raise ConnectionError("no connection was handed over")
        return socket.socket(fileno=_FD.unpack(ancillary[0][2])[0]), (host.decode(), 0)


def hand_over(door: socket.socket, connection: socket.socket, host: str) -> None:
    """Send a connection to the other end of a pair of sockets, at once or never.

    Raises:
        OSError: the other end is gone, or takes none.
    """
    rights = socket.SOL_SOCKET, socket.SCM_RIGHTS, _FD.pack(connection.fileno())
    door.sendmsg([host.encode()[:_HOST_MAX]], [rights], socket.MSG_DONTWAIT)


def name_of(part: int) -> str | None:
    """Return the server name of a part; 0 is the node itself, which has none."""
    return f"part-{part}.farshore" if part else None


def wanted_by(connection: socket.socket) -> int:
    """Return the part that a new connection is for, 0 where it names none, within the connection's time-out.

    Raises:
        OSError: it said nothing in time.
        EOFError: it ended and had said nothing.
    """
    size = 0
    try:
        while size < _HELLO_MAX:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size + 1)
            seen = connection.recv(_HELLO_MAX, socket.MSG_PEEK)
            if not seen:
                raise EOFError("the peer closed the connection")
            if len(seen) == size:
                break  # it ended
            size = len(seen)
            name = _server_name(seen)
            if name is not None:
                match = _NAME.fullmatch(name)
                return int(match[1]) if match else 0
    finally:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    return 0


def _server_name(seen: bytes) -> str | None:
    """Return the server name in the beginning of a handshake: empty where there is none, None where more must come."""
    names: list[str] = []

    def found(_tls: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> int:
        names.append(name or "")
        return ssl.ALERT_DESCRIPTION_USER_CANCELLED.value

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = found
    incoming = ssl.MemoryBIO()
    incoming.write(seen)
    try:
        context.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True).do_handshake()
    except ssl.SSLWantReadError:
        return None
    except ssl.SSLError:  # as the callback asked for, or it is no TLS, which whoever greets it will say
        pass
    return names[0] if names else ""
