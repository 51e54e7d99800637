"""A draft that passes from one source point to the next, cut at every instant: what comes out is the last point."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from doubles.crash_disk import Recorder, kills, lay_out, no_syncs, states
from doubles.leaf_file import by_leaf
from farshore.blocks.digest import ZERO_LEAF, leaf_digest
from farshore.blocks.rangeset import RangeSet
from farshore.errors import Conflict
from farshore.journal import state as journal
from farshore.journal.state import Counters, DraftState, Subject
from farshore.units import LEAF_SIZE

LEAVES = 24
BLOCK = 16  # a leaf's stand-in: the draft of these tests keeps 16 bytes for each leaf
FIRST = Subject("grp", "cp-1", "web/vda", LEAVES * LEAF_SIZE, "pt-1", None, None, 1)
SECOND = replace(FIRST, checkpoint_id="cp-2", source_point="pt-2")
THIRD = replace(FIRST, checkpoint_id="cp-3", source_point="pt-3")

Content = dict[int, bytes]


def content(versions: str) -> Content:
    """Return a point's leaves: a letter for each, a dot where it reads as zero."""
    return {leaf: f"leaf {leaf:06} is {letter}".encode() for leaf, letter in enumerate(versions) if letter != "."}


#: Places that stay, change, come, go, go and come back.
POINTS = {
    "pt-1": content("aaaaaaaaaa..aaaa........"),
    "pt-2": content("aabb.aab..aaab.a..cc...."),
    "pt-3": content("aabba.aa..a.cbaa..cca..."),
}


class Draft:
    """A file that grows as a draft would; what was never written reads as zero."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(parent)
        os.close(parent)

    def write(self, leaf: int, data: bytes) -> None:
        os.pwrite(self.fd, data, leaf * BLOCK)

    def flush(self) -> None:
        os.fdatasync(self.fd)

    def content(self) -> Content:
        data = self.path.read_bytes().ljust(LEAVES * BLOCK, b"\0")
        blocks = {leaf: data[leaf * BLOCK : (leaf + 1) * BLOCK] for leaf in range(LEAVES)}
        return {leaf: block for leaf, block in blocks.items() if block != bytes(BLOCK)}


def digest(point: Content, leaf: int) -> bytes:
    return leaf_digest(point[leaf]) if leaf in point else ZERO_LEAF


def leaves_of(ranges: RangeSet) -> list[int]:
    return [leaf for start, stop in ranges for leaf in range(start // LEAF_SIZE, stop // LEAF_SIZE)]


def span(leaf: int) -> tuple[int, int]:
    return leaf * LEAF_SIZE, (leaf + 1) * LEAF_SIZE


def advance(state: DraftState, draft: Draft, point: Content) -> Iterator[None]:
    """Copy as a cycle does, by two leaves, a mark every four; stop where the caller stops asking."""
    if state.held:
        equal = [leaf for leaf in leaves_of(state.held) if state.leaves.get(leaf, leaf + 1) == digest(point, leaf)]
        state.prove(RangeSet(span(leaf) for leaf in equal))
    yield
    wanted = sorted((set(point) | set(leaves_of(state.dirty))) - set(leaves_of(state.durable)))
    written = RangeSet()
    for at in range(0, len(wanted), 2):
        state.touch([span(leaf) for leaf in wanted[at : at + 2]])
        for leaf in wanted[at : at + 2]:
            draft.write(leaf, point.get(leaf, bytes(BLOCK)))
            state.leaves.put(leaf, digest(point, leaf))
            written.add(*span(leaf))
        yield
        if at % 4 == 2:
            draft.flush()
            state.mark(written, Counters())
            written = RangeSet()
            yield
    draft.flush()
    state.mark(written, Counters())


def killed(state: DraftState) -> None:
    """Let go as a process does that is killed."""
    state._log.close()
    state.leaves.close()


def record(folder: Path, steps: tuple[int, int, int]) -> Recorder:
    """Copy the three points into one draft, each as far as ``steps`` says."""
    recorder = Recorder(folder)
    with recorder.recording():
        draft = Draft(folder / "draft")
        for subject, count in zip((FIRST, SECOND, THIRD), steps, strict=True):
            state = DraftState(folder / "journal", subject, "draft-1")
            for _, _step in zip(range(count), advance(state, draft, POINTS[subject.source_point]), strict=False):
                pass
            killed(state)
        os.close(draft.fd)
    return recorder


def check(root: Path) -> bool:
    """Go on with the third point; False where the draft would be given up."""
    point = POINTS["pt-3"]
    try:
        state = DraftState(root / "journal", THIRD, "draft-1")
    except Conflict:
        return False
    if not (root / "draft").exists() and (state.durable or state.held or state.dirty):
        raise AssertionError("the journal names what was never there")
    draft = Draft(root / "draft")
    try:
        if not state.resumed and draft.content():
            raise AssertionError("a draft was written to before it had a journal")
        for _ in advance(state, draft, point):
            pass
        assert draft.content() == point
        kept = by_leaf(state.leaves)
        for leaf, found in kept.items():
            assert found == digest(point, leaf), "the tree would be of another content"
        assert set(point) <= set(kept)
    finally:
        state.close()
        os.close(draft.fd)
    return True


STEPS = [(4, 0, 0), (5, 1, 2), (7, 5, 3), (3, 3, 99), (99, 4, 1), (6, 99, 5)]


@pytest.mark.parametrize("steps", STEPS)
def test_whatever_a_kill_leaves_becomes_the_last_point(tmp_path: Path, steps: tuple[int, int, int]) -> None:
    live = tmp_path / "live"
    live.mkdir()
    recorder = record(live, steps)
    with no_syncs():
        for number, image in enumerate(kills(recorder)):
            root = tmp_path / str(number)
            lay_out(image, root)
            assert check(root), "after a kill nothing is given up"
            shutil.rmtree(root)


@pytest.mark.parametrize("steps", [(5, 3, 1), (4, 4, 3)])
def test_whatever_a_power_cut_leaves_becomes_the_last_point_or_is_given_up(
    tmp_path: Path, steps: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    live = tmp_path / "live"
    live.mkdir()
    recorder = record(live, steps)
    monkeypatch.setattr(journal, "boot_id", lambda: "another boot")
    kept = tried = 0
    with no_syncs():
        for image, _promises in states(recorder):
            root = tmp_path / "state"
            lay_out(image, root)
            kept += check(root)
            tried += 1
            shutil.rmtree(root)
    assert tried > 500
    assert kept


@pytest.mark.parametrize("broken", ["touch", "prove"])
def test_a_journal_that_forgets_what_was_there_is_caught(
    tmp_path: Path, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The enumeration has teeth: writes that no record names, and content that is taken for proven, are found."""
    if broken == "touch":
        monkeypatch.setattr(DraftState, "touch", lambda _self, _ranges: None)
    else:
        prove = DraftState.prove
        monkeypatch.setattr(DraftState, "prove", lambda self, _equal: prove(self, self.held.copy()))
    live = tmp_path / "live"
    live.mkdir()
    recorder = record(live, (6, 0, 0))
    caught = 0
    with no_syncs():
        for number, image in enumerate(kills(recorder)):
            root = tmp_path / str(number)
            lay_out(image, root)
            try:
                check(root)
            except AssertionError:
                caught += 1
            shutil.rmtree(root)
    assert caught
