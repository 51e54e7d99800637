"""Ports for servers that are started later, or again: nobody else on this machine is given them meanwhile."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path

#: Each process of tests has a block of its own, and its first port is held for as long as the process lives.
_BLOCK = 100
#: The kernel gives no port below its range for clients (32768) to whoever asks for any: neither connections nor others.
_FIRST, _END = 12_000, 32_000


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


@cache
def _block(_pid: int) -> tuple[socket.socket, Iterator[int]]:
    lowest_of_clients = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    assert lowest_of_clients >= _END
    for first in range(_FIRST, _END, _BLOCK):
        with contextlib.suppress(OSError):
            return socket.create_server(("127.0.0.1", first)), itertools.cycle(range(first + 1, first + _BLOCK))
    raise AssertionError("all blocks of ports are taken")


def free_port() -> int:
    """Return a port of this process that nobody listens on; it comes again after some hundred others."""
    _guard, ports = _block(os.getpid())
    return next(port for port in ports if _is_free(port))
