"""What is logged of peers: each trouble once, for a peer that is refused comes back again and again."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import Final

from farshore.errors import FarshoreError

#: The same trouble with the same peer is not logged again before this.
NOTICE_INTERVAL_S: Final = 3600.0
_NOTICES_MAX: Final = 1024


class Notices:
    """Says whether something is to be logged, or was said of the same peer not long ago."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._said: OrderedDict[tuple[str, str], float] = OrderedDict()

    def news(self, host: str, code: str) -> bool:
        """Return True the first time in ``NOTICE_INTERVAL_S`` that it is called with these."""
        now = time.monotonic()
        with self._lock:
            before = self._said.get((host, code))
            if before is not None and now - before < NOTICE_INTERVAL_S:
                return False
            self._said[host, code] = now
            self._said.move_to_end((host, code))
            while len(self._said) > _NOTICES_MAX:
                self._said.popitem(last=False)
            return True

    def forget(self, host: str) -> None:
        """Let what comes from ``host`` be news again."""
        with self._lock:
            for key in [key for key in self._said if key[0] == host]:
                del self._said[key]


def code_of(error: OSError | EOFError | FarshoreError) -> str:
    """Return the code of what ended a connection."""
    return error.code if isinstance(error, FarshoreError) else "connection-lost"


def named(error: OSError | EOFError | FarshoreError) -> str:
    """Return what ended a connection, with its code."""
    return (
        str(error) if isinstance(error, FarshoreError) else f"{str(error) or type(error).__name__} [{code_of(error)}]"
    )
