"""What is made to go wrong, and when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

#: ``throttle`` ``5xx`` ``error`` (details: code, message): answered instead of the work.
#: ``cut``: the connection ends and nothing is done. ``lost``: it ends when all is done.
#: ``stale``: a describe or list shows what was there before. ``expired-token``: page and block tokens are out of date.
#: ``expired-credentials``: what signed the call is. ``kill``, ``kill-after`` (details: pid): the caller dies there.
KINDS: Final = frozenset(
    {"throttle", "5xx", "error", "cut", "lost", "stale", "expired-token", "expired-credentials", "kill", "kill-after"}
)


@dataclass(slots=True)
class Fault:
    """One of them."""

    operation: str
    kind: str
    times: int
    skip: int
    details: dict[str, Any]


class Faults:
    """Those that are still to come. The caller holds the world's lock."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def clear(self) -> None:
        """Take all away."""
        self._faults.clear()

    def add(self, fault: Fault) -> None:
        """Let something happen."""
        assert fault.kind in KINDS, fault.kind
        self._faults.append(fault)

    def take(self, operation: str) -> Fault | None:
        """Return what happens to this call."""
        for fault in self._faults:
            if fault.operation not in {operation, "*"}:
                continue
            if fault.skip > 0:
                fault.skip -= 1
                continue
            fault.times -= 1
            if fault.times <= 0:
                self._faults.remove(fault)
            return fault
        return None

    def __len__(self) -> int:
        return len(self._faults)
