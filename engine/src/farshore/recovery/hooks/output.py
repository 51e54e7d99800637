"""What a hook writes: secrets masked, the middle left out where it is long."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable
from typing import Final

from farshore.recovery.probes.sight import clean

HEAD_BYTES: Final = 16 * 1024
TAIL_BYTES: Final = 48 * 1024
MASK: Final = b"********"
#: A shorter one would be found in every second word.
SHORTEST_SECRET: Final = 4


def forms(secret: str) -> set[bytes]:
    """Return the byte strings that give a secret away: as it is, line by line, and as JSON writes it."""
    lines = [secret, secret.strip(), *(line.strip() for line in secret.splitlines())]
    found = {form for line in lines for form in (line, json.dumps(line)[1:-1], repr(line)[1:-1])}
    return {form.encode() for form in found if len(form) >= SHORTEST_SECRET}


class Output:
    """Takes what is written, piece by piece; keeps little of it.

    A secret that is cut in two by the pieces is found too: as many bytes as the longest one has are held back.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._forms = sorted({form for secret in secrets for form in forms(secret)}, key=len, reverse=True)
        self._longest = max(map(len, self._forms), default=1)
        self._pending = b""
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self._left_out = 0
        self.written_bytes = 0

    def mask(self, data: bytes) -> bytes:
        """Return ``data`` without the secrets."""
        for form in self._forms:
            data = data.replace(form, MASK)
        return data

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        self.written_bytes += len(data)
        masked = self.mask(self._pending + data)
        keep = len(masked) - self._longest + 1
        self._pending = masked[max(keep, 0) :]
        self._keep(masked[: max(keep, 0)])

    def text(self) -> str:
        """Return what was kept; nothing is fed any more."""
        self._keep(self._pending)
        self._pending = b""
        tail = b"".join(self._tail)[-TAIL_BYTES:]
        left_out = self._left_out + self._tail_bytes - len(tail)
        gap = f"\n... {left_out} bytes left out ...\n".encode() if left_out else b""
        whole = bytes(self._head) + gap + tail
        return clean(whole.decode("utf-8", errors="replace"), HEAD_BYTES + TAIL_BYTES + 64)

    def _keep(self, data: bytes) -> None:
        room = HEAD_BYTES - len(self._head)
        self._head += data[:room]
        data = data[room:] if room else data
        if data:
            self._tail.append(data)
            self._tail_bytes += len(data)
        while self._tail and self._tail_bytes - len(self._tail[0]) >= TAIL_BYTES:
            gone = len(self._tail.popleft())
            self._tail_bytes -= gone
            self._left_out += gone
