"""Every state in which a power cut can leave journal, leaf file and draft."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from doubles.crash_disk import Recorder, lay_out, no_syncs, states
from doubles.leaf_file import by_leaf
from farshore.blocks.digest import leaf_digest
from farshore.blocks.rangeset import RangeSet
from farshore.journal.state import Copied, Counters, DraftState, Sealed, Subject, read_subject
from farshore.units import LEAF_SIZE

SUBJECT = Subject("grp", "cp-1", "web/vda", 64 * LEAF_SIZE, "pt-1", None, None, 1)
BLOCK = 16  # a leaf's stand-in: the draft of these tests keeps 16 bytes for each leaf


def block(leaf: int) -> bytes:
    return f"content of {leaf:05}".encode()[:BLOCK]


class Draft:
    """A file that grows as a draft would."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def write(self, leaf: int) -> None:
        os.pwrite(self.fd, block(leaf), leaf * BLOCK)

    def flush(self) -> None:
        os.fdatasync(self.fd)


def work(recorder: Recorder, folder: Path, marks: list[list[int]]) -> None:
    """Copy leaves in marks, as a cycle does; promise what each call of the journal promised."""
    draft = Draft(folder / "draft")
    parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(parent)
    os.close(parent)
    state = DraftState(folder / "journals", SUBJECT, "draft-1")
    recorder.note(("begun", None))
    done: list[int] = []
    for leaves in marks:
        written = RangeSet()
        for leaf in leaves:
            draft.write(leaf)
            state.leaves.put(leaf, leaf_digest(block(leaf)))
            written.add(leaf * LEAF_SIZE, (leaf + 1) * LEAF_SIZE)
        draft.flush()
        state.mark(written, Counters(moved_bytes=len(done) + len(leaves)))
        done += leaves
        recorder.note(("durable", tuple(done)))
    state.finish(Copied("ab" * 32, "full", ""))
    recorder.note(("copied", None))
    state.seal(Sealed("point-1", "ab" * 32))
    recorder.note(("sealed", None))
    state.close()
    os.close(draft.fd)


def check(root: Path, promises: tuple[tuple[str, object], ...]) -> None:
    """Recover, and compare with what was promised."""
    named = {name for name, _ in promises}
    promised = next((value for name, value in reversed(promises) if name == "durable"), ())
    if (root / "journals").is_dir():
        known = read_subject(root / "journals")
        assert known is not None or "begun" not in named
    state = DraftState(root / "journals", SUBJECT, "draft-of-a-later-term")
    assert state.draft_key == "draft-1" or "begun" not in named
    recorded = {start // LEAF_SIZE for start, stop in state.durable for start in range(start, stop, LEAF_SIZE)}
    assert set(promised) <= recorded  # type: ignore[call-overload]
    content = (root / "draft").read_bytes() if (root / "draft").exists() else b""
    digests = by_leaf(state.leaves)
    for leaf in recorded:
        assert content[leaf * BLOCK : (leaf + 1) * BLOCK] == block(leaf), "recorded, but not in the draft"
        assert digests[leaf] == leaf_digest(block(leaf)), "recorded, but without its digest"
    assert (state.copied is not None) >= ("copied" in named)
    assert (state.sealed is not None) >= ("sealed" in named)
    before = state.durable.copy()
    state.leaves.put(60, leaf_digest(b"later"))
    state.mark(RangeSet([(60 * LEAF_SIZE, 61 * LEAF_SIZE)]), Counters())  # and the work goes on
    state.close()
    again = DraftState(root / "journals", SUBJECT, "draft-of-a-later-term")
    before.add(60 * LEAF_SIZE, 61 * LEAF_SIZE)
    assert again.durable == before
    again.close()


def test_what_the_journal_records_is_durable_whatever_happens(tmp_path: Path) -> None:
    live = tmp_path / "live"
    live.mkdir()
    recorder = Recorder(live)
    with recorder.recording():
        work(recorder, live, [[3], [4, 9, 1], [20], [5, 6, 7, 40, 41]])
    tried = 0
    with no_syncs():
        for image, promises in states(recorder):
            root = tmp_path / "state"
            lay_out(image, root)
            check(root, promises)
            shutil.rmtree(root)
            tried += 1
    assert tried > 2000, tried


def test_a_journal_that_ignores_the_order_is_caught(tmp_path: Path) -> None:
    """The enumeration has teeth: a mark without the draft's flush is found."""
    live = tmp_path / "live"
    live.mkdir()
    recorder = Recorder(live)
    with recorder.recording():
        flush, Draft.flush = Draft.flush, lambda _self: None  # type: ignore[method-assign]
        try:
            work(recorder, live, [[3], [4]])
        finally:
            Draft.flush = flush  # type: ignore[method-assign]
    caught = 0
    with no_syncs():
        for image, promises in states(recorder):
            root = tmp_path / "state"
            lay_out(image, root)
            try:
                check(root, promises)
            except AssertionError:
                caught += 1
            shutil.rmtree(root)
    assert caught
