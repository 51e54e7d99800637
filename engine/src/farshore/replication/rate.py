"""How fast something has gone lately. Pure."""

from __future__ import annotations

from collections import deque
from typing import Final

#: What is looked back over: long enough to be steady, short enough to show a link that has just been cut.
SPAN_S: Final = 5.0


class Rate:
    """Takes a counter's readings and returns its rate over the last :data:`SPAN_S` seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def at(self, now: float, total_bytes: int) -> float:
        """Take what the counter shows at ``now`` (seconds, growing) and return the bytes per second."""
        self._seen.append((now, total_bytes))
        while len(self._seen) > 2 and self._seen[1][0] <= now - SPAN_S:
            self._seen.popleft()
        began, before = self._seen[0]
        return (total_bytes - before) / (now - began) if now > began else 0.0
