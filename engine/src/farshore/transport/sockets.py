"""Sockets of the data path: addresses, options, and frames off a connection."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from dataclasses import dataclass
from typing import Final

from farshore.errors import Invalid, Reconnect
from farshore.transport import frames

#: The part of the kernel's struct tcp_info that we read; linux/tcp.h, where new fields come only at the end.
_RTT_US: Final = struct.Struct("=I")
_RTT_AT: Final = 68
_MIN_RTT_AT: Final = 148
_BYTES: Final = struct.Struct("=Q")
_RECEIVED_AT: Final = 128
_SENT_AT: Final = 200
_RETRANS_AT: Final = 208
_TCP_INFO_BYTES: Final = 216


@dataclass(frozen=True, slots=True)
class Wire:
    """What a connection has carried, TLS and all, but nothing that the kernel had to send again.

    ``rtt_s`` is the shortest round trip that was seen, None before the first.
    """

    sent_bytes: int = 0
    received_bytes: int = 0
    rtt_s: float | None = None


def wire_of(connection: socket.socket) -> Wire:
    """Return what a TCP connection has carried so far.

    Raises:
        OSError: the connection is closed.
    """
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    if len(info) < _TCP_INFO_BYTES:  # a kernel before 4.19
        return Wire()
    (sent,), (again,) = _BYTES.unpack_from(info, _SENT_AT), _BYTES.unpack_from(info, _RETRANS_AT)
    (received,) = _BYTES.unpack_from(info, _RECEIVED_AT)
    (rtt,), (least,) = _RTT_US.unpack_from(info, _RTT_AT), _RTT_US.unpack_from(info, _MIN_RTT_AT)
    rtt = min(rtt, least) or rtt
    return Wire(sent - again, received, rtt / 1e6 if rtt else None)


def parse_address(text: str, field: str) -> tuple[str, int]:
    """Return host and port of ``host:port`` or ``[v6]:port``.

    Raises:
        Invalid: it is not an address; ``field`` names the setting.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise Invalid(f"{text!r} is no address; write host:port", code="address", field=field)
    return host, int(port)


def prepare(plain: socket.socket) -> None:
    """Set what every connection of the data path has, before its TLS handshake."""
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # The kernel finds a dead peer within about half a minute.
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)


def hang_up(connection: socket.socket) -> None:
    """Make whoever reads or writes the connection see its end; from any thread, more than once if need be."""
    with contextlib.suppress(OSError):
        # Not SSLSocket.shutdown, which takes the TLS object away under the thread that uses it.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def receive_frame(connection: ssl.SSLSocket, head: memoryview, meta: memoryview) -> frames.Header:
    """Receive a frame that has no payload, into buffers that are reused.

    Raises:
        EOFError: the peer closed the connection between two frames.
        Reconnect: what came is no such frame, or the connection ended inside of it.
    """
    header = receive_head(connection, head, meta)
    if header.payload_size:
        raise Reconnect("the peer sent data that was not asked for", code="protocol-error")
    return header


def receive_head(connection: ssl.SSLSocket, head: memoryview, meta: memoryview) -> frames.Header:
    """Receive the header and the meta part of a frame, as :func:`receive_frame` does; the payload follows."""
    receive(connection, head, at_start=True)
    header = frames.decode_header(head)
    if header.meta_size > len(meta):
        raise Reconnect("the peer sent more than was asked for", code="protocol-error")
    receive(connection, meta[: header.meta_size])
    frames.check_meta(header, meta[: header.meta_size])
    return header


def receive(connection: ssl.SSLSocket, view: memoryview, *, at_start: bool = False) -> None:
    """Fill ``view``."""
    at, size = 0, len(view)
    while at < size:
        count = connection.recv_into(view[at:])
        if count == 0:
            if at_start and at == 0:
                raise EOFError("the peer closed the connection")
            raise Reconnect("the connection ended inside of a frame")
        at += count
