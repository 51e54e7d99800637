"""Sockets of the data path: addresses, options, and frames off a connection."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from farshore.errors import Invalid, Reconnect
from farshore.transport import frames
from farshore.units import LINK_RATE, MIB, format_size

#: The part of the kernel's struct tcp_info that we read; linux/tcp.h, where new fields come only at the end.
_RTT_US: Final = struct.Struct("=I")
_RTT_AT: Final = 68
_MIN_RTT_AT: Final = 148
_BYTES: Final = struct.Struct("=Q")
_RECEIVED_AT: Final = 128
_SENT_AT: Final = 200
_RETRANS_AT: Final = 208
_TCP_INFO_BYTES: Final = 216


#: Connections to a peer where the path decides, and how many from which round trip on: there each connection is slower
#: to find its rate, and slower to recover it after a loss.
CONNECTIONS: Final = 8
CONNECTIONS_LONG: Final = 16
LONG_RTT_S: Final = 0.150
#: A round trip within a room: the bytes on the way are few, whatever the rate.
SHORT_RTT_S: Final = 0.001
_RTT_ASSUMED_S: Final = 0.1
_PROCESSORS: Final = os.cpu_count() or 1  # asked once: the system reads it from a file
#: What a connection begins with, and what it needs where packets are lost by chance; see congestion.py.
_CONGESTION_FIRST: Final = "cubic"
_CONGESTION_LOSSY: Final = "bbr"
_SYSCTL: Final = Path("/proc/sys/net/ipv4")


def losses_of(connection: socket.socket) -> tuple[int, int, float]:
    """Return the bytes that a TCP connection has sent, those among them that it sent again, and how its queue stands.

    The third is the round trip now as a multiple of the shortest: 1 where no packet waits on its way.

    Raises:
        OSError: the connection is closed.
    """
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    if len(info) < _TCP_INFO_BYTES:  # a kernel before 4.19
        return 0, 0, 1.0
    (sent,), (again,) = _BYTES.unpack_from(info, _SENT_AT), _BYTES.unpack_from(info, _RETRANS_AT)
    (rtt,), (least,) = _RTT_US.unpack_from(info, _RTT_AT), _RTT_US.unpack_from(info, _MIN_RTT_AT)
    return sent, again, rtt / max(least, 1)


class Fill(Protocol):
    """Fills a view from a connection.

    Raises:
        EOFError: with ``at_start``: the peer closed the connection before a first byte.
        Reconnect: the connection ended before the view was full.
    """

    def __call__(self, view: memoryview, *, at_start: bool = False) -> None:
        """Fill ``view``."""


@dataclass(frozen=True, slots=True)
class Wire:
    """What a connection has carried, TLS and all, but nothing that the kernel had to send again.

    ``rtt_s`` is the shortest round trip that was seen, None before the first; ``here``: both ends are on one machine.
    """

    sent_bytes: int = 0
    received_bytes: int = 0
    rtt_s: float | None = None
    here: bool = False


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
    here = connection.getpeername()[0] == connection.getsockname()[0]
    return Wire(sent - again, received, rtt / 1e6 if rtt else None, here)


def at_work(rtt_s: float | None, *, here: bool = False) -> int:
    """Return how many connections of a path of this round trip are asked at once, at most.

    A long path is filled by many. A short one is filled by any; there more threads than processors only take turns.
    Ends that are both ``here`` share the machine's processors: with two of them, eight connections cost a sixth more
    than two, and two a tenth more than one.
    """
    if rtt_s is None or rtt_s >= SHORT_RTT_S:
        return sys.maxsize
    return max(1, _PROCESSORS // 2) if here else max(2, _PROCESSORS)


def connections_for(rtt_s: float | None) -> int:
    """Return how many connections a path of this round trip gets by default."""
    return CONNECTIONS_LONG if rtt_s is not None and rtt_s >= LONG_RTT_S else CONNECTIONS


def hints(rtt_s: float | None = None) -> list[str]:
    """Return what to change in the kernel's settings for long links, one sentence each; none where all is well."""
    found = []
    rtt = _RTT_ASSUMED_S if rtt_s is None else rtt_s
    for name in ("tcp_rmem", "tcp_wmem"):
        most = int((_setting(name).split() or ["0"])[-1])
        rate = most // 2 * connections_for(rtt) / max(rtt, 0.001)  # about half of a buffer is the kernel's own
        if most and rate < LINK_RATE:
            found.append(
                f"net.ipv4.{name} allows {format_size(most)} per connection, so about {format_size(int(rate))}/s at a "
                f"round trip of {rtt * 1000:.0f} ms; raise its third number to {64 * MIB}."
            )
    if _CONGESTION_LOSSY not in _setting("tcp_available_congestion_control").split():
        found.append(
            f"The kernel has no congestion control {_CONGESTION_LOSSY}, so packets that are lost cost more than they "
            "must; load the module tcp_bbr."
        )
    if _setting("tcp_slow_start_after_idle") == "1":
        found.append(
            "net.ipv4.tcp_slow_start_after_idle is 1, so kept connections begin each cycle slowly; set it to 0."
        )
    return found


def _setting(name: str) -> str:
    try:
        return (_SYSCTL / name).read_text(encoding="ascii").strip()
    except OSError:  # another kernel, or a container that hides it
        return ""


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
    """Set what every connection of the data path has, before its TLS handshake.

    The sizes of its buffers are left to the kernel: it follows the path, up to what :func:`hints` looks at; a size of
    our own would be fixed.
    """
    with contextlib.suppress(OSError):  # then with what the system has
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _CONGESTION_FIRST.encode())
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
        connection.shutdown(socket.SHUT_RDWR)


def receive_frame(connection: socket.socket, head: memoryview, meta: memoryview) -> frames.Header:
    """Receive a frame that has no payload, into buffers that are reused.

    Raises:
        EOFError: the peer closed the connection between two frames.
        Reconnect: what came is no such frame, or the connection ended inside of it.
    """
    header = receive_head(partial(receive, connection), head, meta)
    if header.payload_size:
        raise Reconnect("the peer sent data that was not asked for", code="protocol-error")
    return header


def receive_head(fill: Fill, head: memoryview, meta: memoryview) -> frames.Header:
    """Receive the header and the meta part of a frame, as :func:`receive_frame` does; the payload follows.

    ``fill`` fills a view from the connection: :func:`receive`, or a stream's.
    """
    fill(head, at_start=True)
    header = frames.decode_header(head)
    if header.meta_size > len(meta):
        raise Reconnect("the peer sent more than was asked for", code="protocol-error")
    fill(meta[: header.meta_size])
    frames.check_meta(header, meta[: header.meta_size])
    return header


def receive(connection: socket.socket, view: memoryview, *, at_start: bool = False) -> None:
    """Fill ``view``."""
    at, size = 0, len(view)
    while at < size:
        count = connection.recv_into(view[at:], size - at)
        if count == 0:
            if at_start and at == 0:
                raise EOFError("the peer closed the connection")
            raise Reconnect("the connection ended inside of a frame")
        at += count
