"""Every API call of the platform ``aws`` x what may go wrong with it x the phase of a plan's life, one at a time.

A dry run of each tale tells which calls a phase makes. Then each of them fails once in each way, before the double of
AWS, and the tale goes on as the engine would. (Calls that are only refused, and then made again,
are tried some at a time.) A cell is right when what is published is bit by bit one generation of
the machine's disks, and published once; when each machine runs once, on its own disks, or rests behind its fence; and
when nothing is left at the end: no snapshot, image, volume, instance, interface, network, object. One whose fault was
not met is wrong.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import pytest
from botocore.retries.standard import ExponentialBackoff
from doubles import aws_site
from doubles.aws import AwsDouble
from farshore.errors import FarshoreError
from farshore.platforms.aws.account import Account

from benchmarks import aws_recovery
from benchmarks.aws_recovery import Recovery
from benchmarks.aws_story import PHASES, Published, Stage, insist, patiently
from benchmarks.processes import ProgramFailed
from benchmarks.results import Check, Figure

#: What may go wrong, with how often the double does it.
_KINDS: Final = {
    "throttle": ("throttle", 1),
    "5xx": ("5xx", 1),
    "5xx five times": ("5xx", 5),
    "cut": ("cut", 1),
    "lost": ("lost", 1),
    "expired-credentials": ("expired-credentials", 1),
    "expired-token": ("expired-token", 1),
    "stale": ("stale", 1),
}
_ALWAYS: Final = ("throttle", "5xx", "lost", "expired-credentials")
#: Of calls that change something also: it is not done at all, and it is refused for longer than the SDK asks by itself.
_CHANGES: Final = ("cut", "5xx five times")
#: Nothing is done, and the call is made again: of these, and of reads, several are tried in one tale.
_REFUSED: Final = frozenset({"throttle", "5xx", "5xx five times", "cut", "expired-credentials"})
_TOGETHER: Final = 12
_READS: Final = ("Describe", "Get", "List")
#: Reads of EC2 may be behind; tokens of blocks and pages run out.
_BEHIND: Final = "Describe"
_TOKENS: Final = frozenset({"GetSnapshotBlock", "ListChangedBlocks", "ListSnapshotBlocks"})
#: How copies are written, by the tale's name: block by block, and to volumes.
_COPIES: Final = {"copies": False, "copies to volumes": True}
TALES: Final = (*_COPIES, *aws_recovery.TALES)
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a folder of its own is made in it
#: Tales that a process tells before a double of AWS of its own.
_SHARE: Final = 15


@dataclass(frozen=True, slots=True)
class Cell:
    """One fault: at the ``nth`` call (from 0) of an operation in a phase of a tale."""

    tale: str
    phase: str
    operation: str
    nth: int
    kind: str

    def __str__(self) -> str:
        return f"{self.tale}, {self.phase}: {self.kind} at {self.operation} #{self.nth + 1}"


class Tale(Protocol):
    """A life in phases, on an account of its own."""

    @property
    def aws(self) -> AwsDouble:
        """Where it plays."""

    @property
    def phases(self) -> tuple[str, ...]:
        """The phases in their order."""

    def act(self, phase: str) -> None:
        """Play one."""

    def look(self, phase: str) -> None:
        """See what has come of it."""

    def verdict(self) -> list[str]:
        """Return what was wrong, and what is left once all is taken away."""


class Theatre:
    """The double and what is slow to make, for many tales one after the other."""

    def __init__(self, aws: AwsDouble, folder: Path) -> None:
        self.aws = aws
        self._folder = folder
        self._shared: Account = aws_site.account(aws_site.config(aws, Path("/nowhere")))

    @contextmanager
    def stage(self, *, attached: bool = False) -> Iterator[Stage]:
        """Return an empty account with one machine; ``attached``: drafts are written to volumes."""
        with self._scratch() as scratch:
            yield Stage(self.aws, self._shared, scratch, attached=attached)

    @contextmanager
    def tale(self, name: str) -> Iterator[Tale]:
        """Return one of :data:`TALES` at its beginning."""
        if name in _COPIES:
            with self.stage(attached=_COPIES[name]) as stage:
                yield Play(stage)
        else:
            with self._scratch() as scratch:
                yield Recovery(self.aws, self._shared, scratch, name)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        scratch = Path(tempfile.mkdtemp(dir=self._folder))
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch)


@contextmanager
def theatre(folder: Path) -> Iterator[Theatre]:
    """Start the double, with credentials that open only it. The SDK tries as often as ever, without its pauses.

    All is in memory where there is such a folder: what is tried is not what a disk keeps.
    """
    with (
        tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else folder, prefix="farshore-aws-") as place,
        pytest.MonkeyPatch.context() as patch,
        AwsDouble(Path(place) / "aws") as aws,
    ):
        for name, value in aws.environment().items():
            patch.setenv(name, value)
        patch.setattr(ExponentialBackoff, "delay_amount", lambda _self, _context: 0.01)
        yield Theatre(aws, Path(place))


def cells(house: Theatre, tales: Sequence[str] = TALES) -> list[Cell]:
    """Return all cells, from runs in which nothing fails."""
    found: list[Cell] = []
    for name in tales:
        with house.tale(name) as tale:
            for phase in tale.phases:
                tale.aws.forget_calls()
                tale.act(phase)
                counts = Counter(call.operation for call in tale.aws.calls())
                tale.look(phase)
                for operation, count in sorted(counts.items()):
                    found += _cells(name, phase, operation, count)
            if texts := tale.verdict():
                raise ProgramFailed(f"wrong although nothing failed: {texts}")
    return found


class Play:
    """The three phases of copies on a stage, and what was wrong with them."""

    phases = PHASES

    def __init__(self, stage: Stage) -> None:
        self.aws = stage.aws
        self._stage = stage
        self._done: list[Published] = []
        self._wrong: list[str] = []

    def act(self, phase: str) -> None:
        """Play one phase."""
        site = self._stage.site()
        if phase == "retire":
            patiently(lambda: site.retire([1, 2]))
            return
        self._stage.guest.write()
        number = PHASES.index(phase) + 1
        done, _ = insist(site, number, 1, self._done[-1] if self._done else None)
        self._done.append(done)

    def look(self, phase: str) -> None:
        """See what has come of a phase."""
        if phase == "retire":
            return
        number = PHASES.index(phase) + 1
        self._wrong += [text for one in self._done for text in self._stage.wrong(one)]
        if self._stage.manifests() != number:
            self._wrong.append(f"{self._stage.manifests()} manifests after checkpoint {number}")

    def verdict(self) -> list[str]:
        """Return what was wrong, and what is left."""
        return [*self._wrong, *(f"left: {name}" for name in self._stage.orphans())]


def batches(chosen: Sequence[Cell]) -> list[tuple[Cell, ...]]:
    """Return the cells as they are tried: alone, or some of one phase together whose calls are only to be made again.

    Of such a batch each fault is at a call of its own; where anything is wrong with it, each cell is tried alone.
    """
    alone: list[tuple[Cell, ...]] = []
    open_ones: dict[tuple[str, str], list[list[Cell]]] = {}
    for cell in chosen:
        if cell.kind not in _REFUSED and not (cell.kind == "lost" and cell.operation.startswith(_READS)):
            alone.append((cell,))
            continue
        known = open_ones.setdefault((cell.tale, cell.phase), [])
        for batch in known:
            if len(batch) < _TOGETHER and all(cell.operation != other.operation for other in batch):
                batch.append(cell)
                break
        else:
            known.append([cell])
    return [*alone, *(tuple(batch) for known in open_ones.values() for batch in known)]


def tried(house: Theatre, *together: Cell) -> list[str]:
    """Play a tale with the faults of one or several cells of one phase; return what was wrong."""
    with house.tale(together[0].tale) as tale:
        try:
            for phase in tale.phases:
                if phase == together[0].phase:
                    for cell in together:
                        kind, times = _KINDS[cell.kind]
                        tale.aws.fault(cell.operation, kind, times=times, skip=cell.nth)
                tale.act(phase)
                if phase == together[0].phase and tale.aws.pending_faults():
                    return ["the call was not made"]
                tale.look(phase)
        except (FarshoreError, AssertionError) as error:
            return [f"{type(error).__name__}: {error}", *tale.verdict()]
        return tale.verdict()


def shared(folder: Path, chosen: Sequence[tuple[Cell, ...]]) -> dict[str, list[str]]:
    """Try some batches before a double of their own; return what was wrong by the cell's name."""
    wrong: dict[str, list[str]] = {}
    with theatre(folder) as house:
        for batch in chosen:
            if texts := tried(house, *batch):
                found = {str(cell): texts for cell in batch if (texts := tried(house, cell))} if batch[1:] else {}
                wrong |= found or {"; ".join(map(str, batch)): texts}
    return wrong


def figure(say: Callable[[str], None], size: str, folder: Path) -> Figure:
    """Measure ``aws-faults``."""
    row = Figure("aws-faults")
    with theatre(folder) as house:
        every = cells(house)
    chosen = every if size == "full" else every[::12]
    told = batches(chosen)
    shares = [told[at : at + _SHARE] for at in range(0, len(told), _SHARE)]
    wrong: dict[str, list[str]] = {}
    # Most of a cell is waiting: one process more than there are processors.
    with ProcessPoolExecutor((os.cpu_count() or 1) + 1, multiprocessing.get_context("spawn")) as pool:
        parts = [pool.submit(shared, folder, share) for share in shares]
        for number, part in enumerate(as_completed(parts), 1):
            wrong |= (found := part.result())
            for cell, texts in found.items():
                say(f"{cell}: {'; '.join(texts)}")
            say(f"{number} of {len(shares)} parts of {len(chosen)} cells")
    orphans = sum(text.startswith("left: ") for texts in wrong.values() for text in texts)
    row.checks += [
        Check("cells", float(len(chosen)), ">=", 300, "of call, fault and phase"),
        Check("orphans", float(orphans), "<=", 0, "things left"),
        Check("wrong", float(len(wrong)), "<=", 0, "cells"),
    ]
    row.details |= {
        "by_kind": Counter(cell.kind for cell in chosen),
        "by_phase": Counter(f"{cell.tale}, {cell.phase}" for cell in chosen),
        "operations": sorted({cell.operation for cell in chosen}),
        "wrong": wrong,
    }
    return row


def _cells(tale: str, phase: str, operation: str, count: int) -> Iterator[Cell]:
    """Yield the cells of an operation that a phase calls ``count`` times.

    Of many calls the first two, one in the middle and the last are tried; of reads that are not behind, the ends.
    """
    reads = operation.startswith(_READS)
    many = sorted({0, 1, count // 2, count - 1} & set(range(count)))
    kinds = [*_ALWAYS, *(() if reads else _CHANGES)]
    for nth in (many[0], many[-1]) if reads and len(many) > 1 else many:
        yield from (Cell(tale, phase, operation, nth, kind) for kind in kinds)
    for nth in many:
        if operation.startswith(_BEHIND):
            yield Cell(tale, phase, operation, nth, "stale")
        if operation in _TOKENS:
            yield Cell(tale, phase, operation, nth, "expired-token")
