"""How fast a process may call an operation: its part of what the account may, leased by the control plane.

The quotas are the service's defaults, https://docs.aws.amazon.com/general/latest/gr/ebs-service.html (read 2026-11-22);
``platform.api_rates`` says where an account has others.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Final

from farshore.platforms.paced import Pace

#: Calls per second of one account in one region, by the API's own names: those that write, and those that read.
WRITES: Final[Mapping[str, float]] = {"PutSnapshotBlock": 1000.0, "StartSnapshot": 10.0, "CompleteSnapshot": 10.0}
READS: Final[Mapping[str, float]] = {"GetSnapshotBlock": 1000.0, "ListChangedBlocks": 50.0, "ListSnapshotBlocks": 50.0}
RATES: Final[Mapping[str, float]] = {**WRITES, **READS}
#: Snapshots that may be pending in an account and region at once; this many are left to others.
PENDING_MAX: Final = 100
PENDING_LEFT: Final = 20


class Pacing:
    """The rates that hold for this process. Safe from several threads.

    ``account``: calls per second that the whole account may make. A process that has no share keeps to them, so that
    it never asks for what nobody would get, and has something to halve when it is told that it is too fast.
    """

    def __init__(self, account: Mapping[str, float] = RATES) -> None:
        self._account = account
        self._turns = {name: (threading.Lock(), Pace()) for name in account}
        for name in account:
            self.set(name, None)

    def set(self, operation: str, per_s: float | None) -> None:
        """Let another rate hold for an operation; None is that of the account."""
        if operation in self._turns:
            self._turns[operation][1].set(self._account[operation] if per_s is None else per_s)

    def wait(self, operation: str) -> None:
        """Return when it is this call's turn."""
        found = self._turns.get(operation)
        if found is not None:
            turn, pace = found
            with turn:  # one thread watches the clock for all that wait
                pace.wait()

    def slow(self, operation: str) -> None:
        """Keep to half of the rate for a while: the service has refused a call as one too many."""
        found = self._turns.get(operation)
        if found is not None:
            found[1].slow()
