"""Every API call of the platform ``aws`` x what may go wrong with it x the phase of a plan's life, one at a time.

A dry run tells which calls a phase makes. Then each of them fails once in each way, before the double of AWS, and the
story goes on as the engine would. A cell is right when what is published is bit by bit one generation of the machine's
disks, when it is published once, and when nothing is left at the end: no snapshot, volume, instance, interface, object.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from doubles import aws_site
from doubles.aws import AwsDouble
from farshore.errors import FarshoreError
from farshore.platforms.aws.account import Account

from benchmarks.aws_story import PHASES, Published, Stage, insist, patiently
from benchmarks.processes import ProgramFailed
from benchmarks.results import Check, Figure

_ALWAYS: Final = ("throttle", "5xx", "cut", "lost", "expired-credentials")
#: Reads of EC2 may be behind; tokens of blocks and pages run out.
_BEHIND: Final = "Describe"
_TOKENS: Final = frozenset({"GetSnapshotBlock", "ListChangedBlocks", "ListSnapshotBlocks"})
#: Of calls that a phase makes many of, so many are tried: the first two, one in the middle, the last.
_PER_OPERATION: Final = 4


@dataclass(frozen=True, slots=True)
class Cell:
    """One fault: at the ``nth`` call (from 0) of an operation in a phase."""

    phase: str
    operation: str
    nth: int
    kind: str

    def __str__(self) -> str:
        return f"{self.phase}: {self.kind} at {self.operation} #{self.nth + 1}"


class Theatre:
    """The double and what is slow to make, for many stories one after the other."""

    def __init__(self, aws: AwsDouble, folder: Path) -> None:
        self.aws = aws
        self._folder = folder
        self._shared: Account = aws_site.account(aws_site.config(aws, Path("/nowhere")))

    @contextmanager
    def stage(self, *, attached: bool = False) -> Iterator[Stage]:
        """Return an empty account with one machine; ``attached``: drafts are written to volumes."""
        scratch = Path(tempfile.mkdtemp(dir=self._folder))
        try:
            yield Stage(self.aws, self._shared, scratch, attached=attached)
        finally:
            shutil.rmtree(scratch)


@contextmanager
def theatre(folder: Path) -> Iterator[Theatre]:
    """Start the double, with credentials that open only it."""
    with pytest.MonkeyPatch.context() as patch, AwsDouble(folder / "aws") as aws:
        for name, value in aws.environment().items():
            patch.setenv(name, value)
        yield Theatre(aws, folder)


def cells(house: Theatre) -> list[Cell]:
    """Return all cells, from a run in which nothing fails."""
    found: list[Cell] = []
    with house.stage() as stage:
        play = Play(stage)
        for phase in PHASES:
            stage.aws.forget_calls()
            play.act(phase)
            counts = Counter(call.operation for call in stage.aws.calls())
            play.look(phase)
            found += [
                Cell(phase, operation, nth, kind)
                for operation, count in sorted(counts.items())
                for nth in _some(count)
                for kind in _kinds(operation)
            ]
        if texts := play.verdict():
            raise ProgramFailed(f"wrong although nothing failed: {texts}")
    return found


class Play:
    """The three phases on a stage, and what was wrong with them."""

    def __init__(self, stage: Stage) -> None:
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


def tried(house: Theatre, cell: Cell) -> list[str]:
    """Play a story with one fault; return what was wrong."""
    with house.stage() as stage:
        play = Play(stage)
        try:
            for phase in PHASES:
                if phase == cell.phase:
                    stage.aws.fault(cell.operation, cell.kind, skip=cell.nth)
                play.act(phase)
                if phase == cell.phase and stage.aws.pending_faults():
                    return ["the call was not made"]
                play.look(phase)
        except (FarshoreError, AssertionError) as error:
            return [f"{type(error).__name__}: {error}", *play.verdict()]
        return play.verdict()


def figure(say: Callable[[str], None], size: str, folder: Path) -> Figure:
    """Measure ``aws-faults``."""
    row = Figure("aws-faults")
    with theatre(folder) as house:
        chosen = cells(house)
        chosen = chosen if size == "full" else chosen[::12]
        wrong: dict[str, list[str]] = {}
        for count, cell in enumerate(chosen, 1):
            if texts := tried(house, cell):
                wrong[str(cell)] = texts
                say(f"{cell}: {'; '.join(texts)}")
            if count % 50 == 0:
                say(f"{count} of {len(chosen)} cells")
    orphans = sum(text.startswith("left: ") for texts in wrong.values() for text in texts)
    row.checks += [
        Check("cells", float(len(chosen)), ">=", 300, "of call, fault and phase"),
        Check("orphans", float(orphans), "<=", 0, "things left"),
        Check("wrong", float(len(wrong)), "<=", 0, "cells"),
    ]
    row.details |= {
        "by_kind": Counter(cell.kind for cell in chosen),
        "by_phase": Counter(cell.phase for cell in chosen),
        "operations": sorted({cell.operation for cell in chosen}),
        "wrong": wrong,
    }
    return row


def _kinds(operation: str) -> list[str]:
    kinds = list(_ALWAYS)
    if operation.startswith(_BEHIND):
        kinds.append("stale")
    if operation in _TOKENS:
        kinds.append("expired-token")
    return kinds


def _some(count: int) -> list[int]:
    if count <= _PER_OPERATION:
        return list(range(count))
    return [0, 1, count // 2, count - 1]
