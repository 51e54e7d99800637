"""Random histories of a journal, in memory: many thousands of states that a power cut may leave; see `make crash`."""

from __future__ import annotations

import os
import random
from types import SimpleNamespace
from typing import Any

import pytest
from doubles.crash_disk import Died, Name, State, Write, states
from doubles.leaf_file import by_leaf
from farshore.blocks.digest import leaf_digest
from farshore.blocks.rangeset import RangeSet
from farshore.journal.state import Copied, Counters, DraftState, Sealed, Subject, read_subject
from farshore.units import LEAF_SIZE
from sim import files, network, runtime, world

STATES = int(os.environ.get("STATES", "14000"))
SUBJECT = Subject("grp", "cp-1", "web/vda", 64 * LEAF_SIZE, "pt-1", None, None, 1)
BLOCK = 16


class Recording(files.Files):
    """Files that remember what was durable, and what was not yet, after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[tuple[State, tuple[Any, ...]]] = []
        self.promises: list[Any] = []

    def promise(self, name: str, value: Any = None) -> None:
        self.promises.append((name, value))
        self._step()

    def _step(self) -> None:
        one = State(dict(self.state.files), dict(self.state.names), list(self.state.pending))
        self.states.append((one, tuple(self.promises)))

    def note(self, one: Write | Name) -> None:
        super().note(one)
        self._step()

    def sync_file(self, node: int) -> None:
        super().sync_file(node)
        self._step()

    def sync_directory(self, path: str) -> None:
        super().sync_directory(path)
        self._step()


def place(disk: files.Files) -> Any:
    return disk.root() / "journals" / "cp-1" / "vda"


def begin(disk: files.Files, rng: random.Random) -> DraftState:
    """Begin the journal; perhaps in the second process, for the first one died over it."""
    left = rng.choice((rng.randint(0, 12), 1 << 60))

    def strike(_operation: str, _path: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Died

    disk.strike = strike
    try:
        return DraftState(place(disk), SUBJECT, "draft-1")
    except Died:
        left = 1 << 60
        return DraftState(place(disk), SUBJECT, "draft-1")


def block(leaf: int) -> bytes:
    return f"content of {leaf:05}".encode()[:BLOCK]


def work(disk: Recording, rng: random.Random) -> None:
    """Copy leaves in marks as a cycle does, perhaps over a restart, and promise what the journal promised."""
    root = disk.root()
    draft = files.open_(root / "draft", os.O_RDWR | os.O_CREAT)
    files.fsync(files.open_(root, os.O_RDONLY | os.O_DIRECTORY))
    state = begin(disk, rng)
    disk.promise("begun")
    leaves = rng.sample(range(56), rng.randint(2, 10))
    done: list[int] = []
    while leaves:
        count = rng.randint(1, 4)
        batch, leaves = leaves[:count], leaves[count:]
        state.touch((leaf * LEAF_SIZE, (leaf + 1) * LEAF_SIZE) for leaf in sorted(batch))
        for leaf in batch:
            at = 0
            while at < BLOCK:
                at += files.pwrite(draft, block(leaf)[at:], leaf * BLOCK + at)
            state.leaves.put(leaf, leaf_digest(block(leaf)))
        if rng.random() < 0.2:  # the process ends before its mark, in order
            state.close()
            state = DraftState(place(disk), SUBJECT, "draft-2")
            leaves += batch
            continue
        files.fsync(draft)
        state.mark(RangeSet((leaf * LEAF_SIZE, (leaf + 1) * LEAF_SIZE) for leaf in sorted(batch)), Counters())
        done += batch
        disk.promise("durable", tuple(done))
    state.finish(Copied("ab" * 32, "full", ""))
    disk.promise("copied")
    state.seal(Sealed("point-1", "ab" * 32))
    disk.promise("sealed")
    state.close()


def check(image: dict[str, bytes | None], promises: tuple[tuple[str, Any], ...]) -> None:
    """Recover, and compare with what was promised."""
    disk = files.Files()
    for name, data in image.items():
        node = files.DIRECTORY if data is None else next(disk.numbers)
        disk.names[name] = node
        if data is not None:
            disk.content[node] = bytearray(data)
    named = {name for name, _ in promises}
    promised = next((value for name, value in reversed(promises) if name == "durable"), ())
    assert "begun" not in named or read_subject(place(disk)) is not None
    state = DraftState(place(disk), SUBJECT, "draft-of-a-later-term")
    assert state.draft_key == "draft-1" or "begun" not in named
    recorded = {start // LEAF_SIZE for start, stop in state.durable for start in range(start, stop, LEAF_SIZE)}
    assert set(promised) <= recorded
    content = image.get("/draft") or b""
    digests = by_leaf(state.leaves)
    for leaf in recorded:
        assert content[leaf * BLOCK : (leaf + 1) * BLOCK] == block(leaf), "recorded, but not in the draft"
        assert digests.get(leaf) == leaf_digest(block(leaf)), "recorded, but without its digest"
    assert (state.copied is not None) >= ("copied" in named)
    assert (state.sealed is not None) >= ("sealed" in named)
    state.close()


def played(function: Any) -> Any:
    """Run ``function`` as the only task of a simulation."""
    here = runtime.Hub(1, switchiness=0.0, steps_max=1 << 60)
    runtime.install(here)
    network.install(network.Network())
    files.reset()
    found: list[Any] = []
    try:
        with world.stage():
            process = runtime.Process("node", SimpleNamespace(boot=1))
            task = here.spawn(process, lambda: found.append(function()), "node")
            here.run(lambda: task.done)
    finally:
        runtime.install(None)
        network.install(None)
        files.reset()
    return found[0]


@pytest.mark.timeout(36_000)
def test_whatever_a_power_cut_leaves_the_journal_told_the_truth() -> None:
    def many() -> int:
        tried = seed = 0
        while tried < STATES:
            rng = random.Random(seed)
            disk = Recording()
            work(disk, rng)
            for image, promises in states(disk):  # type: ignore[arg-type]
                check(image, promises)
                tried += 1
                if tried % 5000 == 0:
                    files.reset()
                if tried >= STATES:
                    break
            seed += 1
        return tried

    assert played(many) >= STATES


def test_a_journal_that_does_not_sync_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DraftState, "mark", _unsynced)

    def caught() -> int:
        disk = Recording()
        work(disk, random.Random(3))
        wrong = 0
        for image, promises in states(disk):  # type: ignore[arg-type]
            try:
                check(image, promises)
            except AssertionError:
                wrong += 1
        return wrong

    assert played(caught)


def _unsynced(state: Any, ranges: RangeSet, counters: Counters) -> None:
    """As DraftState.mark, without the sync of the leaf file."""
    from farshore.journal.ranges import encode_ranges
    from farshore.journal.state import Kind

    state._log.append(*[(int(Kind.DURABLE), body) for body in encode_ranges(ranges)])
    state._unrecorded_bytes -= ranges.total()
    state.counters = counters
