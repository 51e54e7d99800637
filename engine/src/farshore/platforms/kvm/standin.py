"""Stands in for a guest, or for somebody outside: a process in a network namespace of its own that listens and tries.

Run as ``unshare --net python -I -S standin.py``: standard library alone. Commands come as lines of JSON and each is
answered by one; the end of its input ends it, and with it the namespace and whatever was plugged into it. What listens
answers every connection and every datagram with ``HELLO``.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import sys
import threading
import time

HELLO = b"farshore canary\n"


class Canary:
    """Listens on TCP and UDP of one port, on all addresses."""

    def __init__(self, address: str) -> None:
        self._tcp = socket.create_server((address, 0))
        self.port = self._tcp.getsockname()[1]
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind((address, self.port))
        self._udp.settimeout(1.0)  # so that the thread sees that it is closed
        self._closed = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._accept, self._echo)]
        for thread in self._threads:
            thread.start()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._tcp.accept()
            except OSError:
                return
            with peer:
                try:
                    peer.sendall(HELLO)
                except OSError:
                    continue

    def _echo(self) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(OSError):
                _, peer = self._udp.recvfrom(512)
                if peer:
                    self._udp.sendto(HELLO, peer)

    def close(self) -> None:
        """Stop listening."""
        self._closed.set()
        for sock in (self._tcp, self._udp):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


def reach(targets: list[tuple[str, int]], timeout_s: float) -> list[str]:
    """Try all ``targets`` at once by TCP and UDP; return what answered of each: ``tcp``, ``udp``, ``tcp udp`` or none.

    A peer that answers is noticed at once; the others are given ``timeout_s``, and datagrams are sent again meanwhile.
    """
    answered: list[set[str]] = [set() for _ in targets]
    selector = selectors.DefaultSelector()
    datagrams: list[tuple[socket.socket, tuple[str, int]]] = []
    for number, target in enumerate(targets):
        for kind, name in ((socket.SOCK_STREAM, "tcp"), (socket.SOCK_DGRAM, "udp")):
            sock = socket.socket(socket.AF_INET, kind)
            sock.setblocking(False)
            sock.connect_ex(target)
            selector.register(sock, selectors.EVENT_READ, (number, name))
            if name == "udp":
                datagrams.append((sock, target))
    deadline = time.monotonic() + timeout_s
    send_at = 0.0
    while (now := time.monotonic()) < deadline and any(len(found) < 2 for found in answered):
        if now >= send_at:
            send_at = now + 0.25
            for sock, _ in datagrams:
                try:
                    sock.send(b"canary\n")
                except OSError:
                    continue
        for key, _ in selector.select(min(0.25, deadline - now)):
            number, name = key.data
            try:
                data = key.fileobj.recv(512)  # type: ignore[union-attr]
            except OSError:
                data = b""
            if data == HELLO:
                answered[number].add(name)
            if name == "tcp":
                selector.unregister(key.fileobj)
    for key in list(selector.get_map().values()):
        key.fileobj.close()  # type: ignore[union-attr]
    return [" ".join(sorted(found)) for found in answered]


def main() -> None:
    """Answer commands until there are no more."""
    canary: Canary | None = None
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "listen":
            canary = canary or Canary("0.0.0.0")  # noqa: S104 - in a namespace of its own
            answer: object = canary.port
        else:
            answer = reach([(address, port) for address, port in command["targets"]], command["timeout_s"])
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
