"""Two hundred peers that are none: each refused, the same reason told once, and no memory kept for any of them."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from doubles.datapath import DEADLINE_S, Sites, sites
from farshore.transport import frames
from farshore.transport.tls import NodeTls
from farshore.units import KIB, MIB

BAD = 200
#: What an interpreter may take besides: threads' stacks and arenas that stay. The buffers of one connection that was
#: served would be more than 1 MiB each.
RSS_KEPT_MAX = 24 * MIB

Rude = Callable[[socket.socket, NodeTls], None]


def rss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * KIB
    raise AssertionError("no VmRSS")


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def say(data: bytes) -> Rude:
    """Send plain bytes where a TLS handshake belongs."""

    def rude(plain: socket.socket, _identity: NodeTls) -> None:
        plain.sendall(data)
        listen(plain)

    return rude


def secured(*parts: bytes) -> Rude:
    """Send bytes after a good handshake."""

    def rude(plain: socket.socket, identity: NodeTls) -> None:
        connection = identity.client.wrap_socket(plain)
        for part in parts:
            connection.sendall(part)
        listen(connection)
        connection.close()

    return rude


def listen(connection: socket.socket) -> None:
    """Read until the other side ends it."""
    connection.settimeout(5.0)
    with contextlib.suppress(OSError):
        while connection.recv(64 * 1024):
            pass


def header(kind: int, meta: int, payload: int, *, magic: bytes = b"FSH1", good: bool = True) -> bytes:
    """Return a header that announces sizes, with the right checksum or a wrong one."""
    from zlib import crc32

    head = frames._GUARDED.pack(magic, kind, 0, 0, 1, meta, payload, 0)
    return head + (crc32(head) ^ (0 if good else 1)).to_bytes(4, "big")


def hello() -> bytes:
    return frames.Hello().encode()


def other_version() -> bytes:
    return frames.Hello(version_min=40, version_max=41).encode()


RANDOM = random.Random(3).randbytes(4096)
RUDE: dict[str, Rude] = {
    "http": say(b"GET / HTTP/1.1\r\nHost: farshore\r\n\r\n"),
    "ssh": say(b"SSH-2.0-OpenSSH_9.9\r\n"),
    "random": say(RANDOM),
    "gone": lambda plain, _identity: plain.close(),
    "http-in-tls": secured(b"GET / HTTP/1.1\r\nHost: farshore\r\n\r\n" * 3),
    "random-in-tls": secured(RANDOM),
    "other-version": secured(other_version()),
    "not-greeted": secured(frames.Read(1, 0, ((0, 4096),)).encode(1)),
    "oversized-greeting": secured(header(frames.Type.HELLO, 0xFFFFFFFF, 0)),
    "negative-length": secured(hello(), header(frames.Type.READ, 0x80000000, 0)),
    "oversized-payload": secured(hello(), header(frames.Type.DATA, 64, 0xFFFFFFF0)),
    "oversized-meta": secured(hello(), header(frames.Type.READ, frames.MAX_META + 1, 0)),
    "damaged-header": secured(hello(), header(frames.Type.READ, 24, 0, good=False)),
    "unknown-type": secured(hello(), header(99, 0, 0)),
    "unasked-data": secured(hello(), header(frames.Type.DATA, 40, frames.MAX_PAYLOAD) + bytes(40)),
    "wrong-digest": secured(hello(), header(frames.Type.READ, 24, 0) + bytes(24)),
}


def source(both: Sites) -> int:
    """Start the source and return its process id."""
    return both.start_source().process.pid


def test_two_hundred_bad_peers_cost_no_memory_and_keep_nobody_out(tmp_path: Path) -> None:
    with sites(tmp_path, {"web": {"vda": 4 * MIB}}) as both:
        both.fill("web", "vda", 1, 10)
        pid = source(both)
        snapshot = both.point()
        assert "error" not in both.replicate(both.params(snapshot))  # the good way has been gone once
        both.release(snapshot, applied=True)
        before = rss(pid)
        open_before = descriptors(pid)
        for number in range(BAD):
            rude = list(RUDE.values())[number % len(RUDE)]
            with (
                socket.create_connection(("127.0.0.1", both.port), timeout=DEADLINE_S) as plain,
                contextlib.suppress(OSError, ssl.SSLError, ValueError),
            ):
                rude(plain, both.beta_tls)
        kept = rss(pid) - before
        assert kept <= RSS_KEPT_MAX, f"{kept // KIB} KiB were kept"
        deadline = time.monotonic() + DEADLINE_S
        while descriptors(pid) > open_before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert descriptors(pid) <= open_before
        told = [line for path in tmp_path.glob("source-*.log") for line in path.read_text("utf-8").splitlines()]
        reasons = [line.partition("ended:")[2] for line in told if "a data connection from" in line]
        assert reasons
        assert len(reasons) == len(set(reasons)), "the same reason is told once"
        assert len(reasons) <= len(RUDE)
        both.fill("web", "vda", 2, 10)
        snapshot = both.point()
        assert "error" not in both.replicate(both.params(snapshot))
        manifest = both.newest()
        assert manifest is not None
        assert both.published(manifest) == both.frozen(snapshot)
