"""How much is sent again after a fault: real processes, killed or cut off at random instants of a full copy.

Each instant is a copy of its own, of two disks without a hole, that is broken off once at a random place and goes on.
What the source reads of each disk is counted in a file that outlives its process; in a full copy that is what it sends.
A bystander, whose processes nobody kills, copies a disk of its own at the same time.
"""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from farshore.model.checkpoint import Manifest
from farshore.model.plan import Transport
from farshore.testing.gate import Gate
from farshore.testing.sites import DEADLINE_S, Child, Sites, sites
from farshore.units import MIB

Fault = Literal["target", "source", "both", "cut"]

DISK: Final = 48 * MIB
LEVEL: Final = 4 * MIB
MARK: Final = 8 * MIB
#: Bytes of a disk that may be sent again for one fault.
BOUND: Final = LEVEL + MARK
TRANSPORT: Final = Transport(
    connections=4, per_disk_window=LEVEL, intermediate_checkpoint_window=MARK, compression="off"
)
_DISKS: Final = ("vda", "vdb")
#: How long a link that is cut stays down.
_CUT_S: Final = 1.5
_POLL_S: Final = 0.001


@dataclass(frozen=True, slots=True)
class Row:
    """One instant: ``at_bytes`` were read of both disks when the fault struck; ``resent_bytes`` is by disk."""

    instant: int
    fault: Fault
    at_bytes: int
    resent_bytes: dict[str, int]
    bystander_resent_bytes: int
    identical: bool
    seconds: float


def measure_resume(
    root: Path, instants: int, seed: int, faults: Sequence[Fault] = ("target", "source", "both")
) -> dict[str, Any]:
    """Break copies off at ``instants`` places, the kinds of fault in turn, and return what they cost.

    Returns:
        ``resent_bytes`` (most of any disk and instant), ``bound_bytes``, ``bystander_resent_bytes``, ``identical``,
        ``ok``, and ``rows``: one for each instant.
    """
    rng = random.Random(seed)  # noqa: S311
    rows = []
    for number in range(instants):
        folder = root / f"instant-{number}"
        folder.mkdir(parents=True)
        at_bytes = rng.randrange(MIB, len(_DISKS) * DISK - 2 * MIB)
        rows.append(_instant(folder, number, faults[number % len(faults)], at_bytes, rng))
        shutil.rmtree(folder)
    most = max((size for row in rows for size in row.resent_bytes.values()), default=0)
    bystander = max((row.bystander_resent_bytes for row in rows), default=0)
    identical = all(row.identical for row in rows)
    return {
        "resent_bytes": most,
        "bound_bytes": BOUND,
        "bystander_resent_bytes": bystander,
        "identical": identical,
        "ok": identical and most <= BOUND and bystander == 0,
        "rows": [asdict(row) for row in rows],
    }


def _instant(folder: Path, number: int, fault: Fault, at_bytes: int, rng: random.Random) -> Row:
    began = time.monotonic()
    with (
        sites(folder / "struck", {"db": dict.fromkeys(_DISKS, DISK)}, TRANSPORT) as struck,
        sites(folder / "bystander", {"web": {"vda": DISK // 2}}, TRANSPORT) as bystander,
    ):
        for both in (struck, bystander):
            _fill(both, rng)
        counts, others = _Counts(folder / "struck.counts", len(_DISKS)), _Counts(folder / "bystander.counts", 1)
        beside = _Beside(bystander, others)
        copy = _Copy(struck, counts)
        beside.start()
        found = copy.broken_off(fault, at_bytes)
        reply = copy.finish()
        identical = _identical(struck, copy, reply) and beside.finish()
        return Row(
            instant=number,
            fault=fault,
            at_bytes=found,
            resent_bytes={disk: size - DISK for disk, size in zip(_DISKS, counts.read(), strict=True)},
            bystander_resent_bytes=others.read()[0] - DISK // 2,
            identical=identical,
            seconds=round(time.monotonic() - began, 3),
        )


def _fill(both: Sites, rng: random.Random) -> None:
    """Make every byte of every disk data."""
    for machine_id in both.machine_ids:
        machine = both.machine(machine_id)
        for disk in machine.facts.disks:
            for at in range(0, disk.size_bytes, MIB):
                machine.write(disk.disk_id, at, rng.randbytes(MIB))


class _Counts:
    """Bytes that were read of each disk; written by the source's process."""

    def __init__(self, path: Path, disks: int) -> None:
        self.path = path
        self._disks = disks
        path.write_bytes(bytes(8 * disks))

    def read(self) -> list[int]:
        data = self.path.read_bytes()
        return [int.from_bytes(data[at : at + 8], "big") for at in range(0, 8 * self._disks, 8)]


class _Copy:
    """A copy between two processes, through a gate, that is broken off once."""

    def __init__(self, both: Sites, counts: _Counts) -> None:
        self._both = both
        self._counts = counts
        self._source = both.start_source(counts=str(counts.path))
        self._source_port = both.port
        self._gate = Gate(both.port)
        self.snapshot = both.point()
        self._term = 0
        self._target = self._start_target()

    def _start_target(self) -> Child:
        self._term += 1
        params = self._both.params(self.snapshot, term=self._term, address=f"127.0.0.1:{self._gate.port}")
        return self._both.start_target(params)

    def broken_off(self, fault: Fault, at_bytes: int) -> int:
        """Wait until so many bytes were read, strike, and set the copy going again; return how many there were."""
        wait_until(lambda: sum(self._counts.read()) >= at_bytes, f"{at_bytes} bytes to be read")
        if fault in {"target", "both"}:
            self._target.process.kill()
        if fault in {"source", "both"}:
            self._source.process.kill()
        if fault == "cut":
            self._gate.cut(down=True)
            time.sleep(_CUT_S)
            self._gate.open()
        found = sum(self._counts.read())
        if fault in {"source", "both"}:
            self._source.end()
            self._source = self._both.start_source(port=self._source_port, counts=str(self._counts.path))
        if fault in {"target", "both"}:
            self._target.end()
            self._target = self._start_target()
        return found

    def finish(self) -> dict[str, Any]:
        """Wait for the end and return the target's last message."""
        try:
            return self._both.finish(self._target)
        finally:
            self._gate.close()


class _Beside:
    """The copy of the bystander, in processes of its own."""

    def __init__(self, both: Sites, counts: _Counts) -> None:
        self._both = both
        self._source = both.start_source(counts=str(counts.path))
        self.snapshot = both.point()
        self._target: Child | None = None

    def start(self) -> None:
        self._target = self._both.start_target(self._both.params(self.snapshot), faults="write#4+:delay=0.02")

    def finish(self) -> bool:
        """Wait for the end; say whether the copy is whole."""
        if self._target is None:
            raise AssertionError("the bystander was not started")
        return _identical(self._both, self, self._both.finish(self._target))


def _identical(both: Sites, copy: _Copy | _Beside, reply: dict[str, Any]) -> bool:
    """Say whether the reply's checkpoint is the source's point, bit by bit."""
    if "result" not in reply:
        raise AssertionError(f"the copy did not end well: {reply}")
    manifest = Manifest.model_validate(reply["result"]["manifest"])
    return both.published(manifest) == both.frozen(copy.snapshot)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Look again and again until ``condition`` holds.

    Raises:
        AssertionError: it did not in time.
    """
    deadline = time.monotonic() + DEADLINE_S
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"no sign of {what} for {DEADLINE_S:.0f} s")
        pause.wait(_POLL_S)
