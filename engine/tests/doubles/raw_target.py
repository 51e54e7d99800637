"""A target that sends what a test wants on a connection of its own: real TLS, frames by hand."""

from __future__ import annotations

import socket
import ssl

from doubles.datapath import Sites
from farshore.transport import frames
from farshore.transport.sockets import receive


def connect(both: Sites) -> ssl.SSLSocket:
    """Connect to the source and greet as a target would."""
    plain = socket.create_connection(("127.0.0.1", both.port))
    connection = both.beta_tls.client.wrap_socket(plain)
    connection.sendall(frames.Hello().encode())
    take(connection)
    return connection


def take(connection: ssl.SSLSocket) -> tuple[frames.Header, bytes, bytes]:
    """Receive one frame, whatever it is."""
    head = memoryview(bytearray(frames.HEADER.size))
    receive(connection, head, at_start=True)
    header = frames.decode_header(head)
    meta, payload = bytearray(header.meta_size), bytearray(header.payload_size)
    receive(connection, memoryview(meta))
    receive(connection, memoryview(payload))
    return header, bytes(meta), bytes(payload)


def open_session(connection: ssl.SSLSocket, grant: str) -> int:
    """Open a session and return its number."""
    connection.sendall(frames.Open(grant, 4096).encode(1))
    return frames.Opened.decode(take(connection)[1]).session
