"""Fence marks of this site's machines: from which epoch on a machine must not run or be read here.

The platform carries its own mark; this one is the node's, so that an order from an older epoch is refused without
asking anybody, also after a restart of node and control plane. Marks only grow, until an order of the same or a higher
epoch lifts them.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path

from farshore import durable
from farshore.errors import Fenced


class Marks:
    """The marks in the file ``path``: machine id → epoch of the fence. Safe for several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._epochs: dict[str, int] = {}
        if path.exists():
            data = json.loads(path.read_text(encoding="utf-8"))
            self._epochs = {str(machine): int(epoch) for machine, epoch in data.items()}

    def epoch(self, machine_id: str) -> int | None:
        """Return the epoch of the machine's fence, None if it has none."""
        with self._lock:
            return self._epochs.get(machine_id)

    def fence(self, machine_id: str, epoch: int) -> None:
        """Mark the machine; a higher mark stays."""
        with self._lock:
            if self._epochs.get(machine_id, -1) < epoch:
                self._store({**self._epochs, machine_id: epoch})

    def lift(self, machine_id: str, epoch: int) -> None:
        """Take the mark away.

        Raises:
            Fenced: the mark is of a higher epoch than the one that asks.
        """
        self.admit(machine_id, epoch)
        with self._lock:
            if machine_id in self._epochs:
                self._store({machine: mark for machine, mark in self._epochs.items() if machine != machine_id})

    def admit(self, machine_id: str, epoch: int, *, reads: bool = False) -> None:
        """Refuse an order of an epoch that is over for this machine.

        ``reads``: also one of the epoch that the fence began, for what a fenced machine holds is stale in it.

        Raises:
            Fenced: the machine was fenced in a higher epoch, or in this one if it is to be read.
        """
        mark = self.epoch(machine_id)
        if mark is not None and (mark > epoch or (reads and mark == epoch)):
            raise Fenced(
                f"machine {machine_id!r} was fenced in epoch {mark}; this order is of epoch {epoch}",
                code="machine-fenced",
                hint="The machine's primary is at another site now; only failback leads back.",
                machine_id=machine_id,
                fence_epoch=mark,
                epoch=epoch,
            )

    def _store(self, epochs: dict[str, int]) -> None:
        durable.write_json(self._path, epochs)
        self._epochs = epochs
