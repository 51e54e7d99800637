"""The source point vanishes while drafts are half full: the next checkpoint goes on in them, and is its own point."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles.datapath import Sites
from doubles.resuming import DISK, LEVEL, MARK, filled, when, whole
from doubles.source_here import SourceHere, raising
from farshore.errors import Fenced, Retry
from farshore.journal import state as journal
from farshore.journal.state import DraftState
from farshore.platforms.contract import Snapshot
from farshore.replication.cycle import DiskCycle
from farshore.units import KIB, MIB

#: What of a disk changes between the two points, in places that were copied, half copied and not yet copied.
CHANGED = [(MIB + 5, 3), (2 * MIB, 300 * KIB), (9 * MIB + 17, MIB), (25 * MIB, 2 * MIB)]
DISCARDED = [(4 * MIB, 2 * MIB), (12 * MIB + 100, 200 * KIB), (20 * MIB, MIB)]


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Sites]:
    sites = filled(tmp_path)
    yield sites
    sites.end()


def vanish(both: Sites, snapshot: Snapshot) -> None:
    shutil.rmtree(both.alpha_root / "points" / snapshot.point_id)


def change(both: Sites) -> int:
    """Write and discard; return in how many bytes, whole leaves, the points may differ."""
    for offset, length in CHANGED:
        both.machine("db").write("vda", offset, bytes([offset % 251 + 1]) * length)
    for offset, length in DISCARDED:
        both.machine("db").discard("vda", offset, length)
    return sum(length + 128 * KIB for _, length in CHANGED)


def broken_off(both: Sites, snapshot: Snapshot, moved_bytes: int) -> dict[str, str]:
    """Copy until so much has moved, then let the point vanish; return the error."""
    target = both.start_target(both.params(snapshot), faults="write#3+:delay=0.2,zero#3+:delay=0.2")
    when(target, moved_bytes)
    vanish(both, snapshot)
    error: dict[str, str] = both.finish(target)["error"]
    both.release(snapshot, applied=False)
    return error


def test_a_seed_goes_on_in_its_drafts_with_the_next_point(both: Sites) -> None:
    source = both.start_source()
    first = both.point()
    error = broken_off(both, first, DISK * 2 * 6 // 10)
    assert (error["duty"], error["code"]) == ("RestartFromCheckpoint", "source-point-gone")
    assert both.newest() is None
    before = both.sent(source)
    differs = change(both)
    second = both.point()
    stats = whole(both, second, both.replicate(both.params(second)))
    assert stats.mode == "full"
    # What was written when the point vanished is recorded in an orderly end; only what was on its way is lost.
    assert both.sent(source) - before <= 2 * DISK * 4 // 10 + differs + 2 * LEVEL


def test_it_goes_on_after_a_kill_too(both: Sites) -> None:
    source = both.start_source()
    first = both.point()
    assert both.replicate(both.params(first), faults="write#40:kill") == {}
    vanish(both, first)
    assert both.replicate(both.params(first))["error"]["code"] == "source-point-gone"
    both.release(first, applied=False)
    before = both.sent(source)
    differs = change(both)
    second = both.point()
    whole(both, second, both.replicate(both.params(second)))
    assert both.sent(source) - before <= 2 * DISK - 40 * MIB + differs + 2 * (LEVEL + MARK)


def test_killed_while_it_goes_on(both: Sites) -> None:
    both.start_source()
    first = both.point()
    assert both.replicate(both.params(first), faults="write#45:kill") == {}
    both.release(first, applied=False)
    change(both)
    second = both.point()
    for faults in ("open#2:kill", "write#1:kill", "zero#2:kill", "flush#1:kill", "flush-done#2:kill"):
        assert both.replicate(both.params(second), faults=faults) == {}, faults
    whole(both, second, both.replicate(both.params(second)))


def test_points_may_vanish_again_and_again(both: Sites) -> None:
    both.start_source()
    for number in range(4):
        snapshot = both.point()
        assert both.replicate(both.params(snapshot), faults="write#14:kill") == {}
        both.release(snapshot, applied=False)
        both.machine("db").write("vda", number * 5 * MIB, b"round" * 1000)
        both.machine("db").discard("vdb", number * 6 * MIB, 3 * MIB)
    snapshot = both.point()
    whole(both, snapshot, both.replicate(both.params(snapshot)))


def test_an_incremental_copy_goes_on_too(both: Sites) -> None:
    source = both.start_source()
    base = both.point()
    whole(both, base, both.replicate(both.params(base)))
    both.release(base, applied=True)
    machine = both.machine("db")
    for at in range(0, DISK, 2 * MIB):
        machine.write("vda", at + 100, bytes([at // MIB + 1]) * (MIB + 7 * KIB))
    machine.discard("vdb", 3 * MIB, 8 * MIB)
    first = both.point()
    assert both.replicate(both.params(first), faults="write#12:kill") == {}
    both.release(first, applied=False)
    machine.write("vda", 2 * MIB + 100, (b"vda 2 " * MIB)[100 : MIB + 100])  # as it was in the base
    machine.write("vdb", 4 * MIB, b"written again" * 5000)
    before = both.sent(source)
    second = both.point()
    stats = whole(both, second, both.replicate(both.params(second)))
    assert stats.mode == "incremental"
    assert both.sent(source) - before <= 15 * (MIB + 128 * KIB) + 2 * MIB
    assert len(both.beta.target.points()) == 4


def test_the_same_checkpoint_may_be_ordered_from_another_point(both: Sites) -> None:
    source = both.start_source()
    first = both.point()
    assert both.replicate(both.params(first, checkpoint_id="cp-same"), faults="write#40:kill") == {}
    both.release(first, applied=False)
    both.machine("db").write("vda", 12345, b"changed since")
    before = both.sent(source)
    second = both.point()
    whole(both, second, both.replicate(both.params(second, checkpoint_id="cp-same")))
    assert both.sent(source) - before <= 2 * DISK - 40 * MIB + 2 * (LEVEL + MARK) + MIB


def test_a_draft_on_another_base_is_begun_again(both: Sites) -> None:
    both.start_source()
    first = both.point()
    assert both.replicate(both.params(first), faults="write#30:kill") == {}
    abandoned = both.beta.target.points()
    second = both.point()
    params = both.params(second)
    disks = tuple(disk.model_copy(update={"base_point": "point-gone", "base_root": "ab" * 32}) for disk in params.disks)
    stats = whole(both, second, both.replicate(params.model_copy(update={"disks": disks})))
    assert stats.moved_bytes == 2 * DISK
    assert not set(abandoned) & set(both.beta.target.points())


# --- in one process ---------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path) -> Iterator[SourceHere]:
    one = SourceHere(tmp_path)
    yield one
    one.close()


def test_after_a_power_cut_a_draft_is_begun_again(here: SourceHere, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written after the last mark is not known then, so nothing tells what would have to be written again."""
    sites = here.sites
    first = sites.point()
    monkeypatch.setattr(DraftState, "finish", raising(Retry("killed"), then=DraftState.finish))
    close = DraftState.close
    monkeypatch.setattr(DraftState, "close", lambda state: (state._log.close(), state.leaves.close()))
    with pytest.raises(Retry):
        here.replicate(sites.params(first))
    monkeypatch.setattr(DraftState, "close", close)
    monkeypatch.setattr(journal, "boot_id", lambda: "another boot")
    sites.release(first, applied=False)
    second = sites.point()
    result = here.replicate(sites.params(second))
    assert sites.published(result.manifest) == sites.frozen(second)
    assert result.stats.moved_bytes > 0
    assert sites.beta.target.points() == [disk.point for disk in result.manifest.disks]


def test_equal_content_moves_nothing(here: SourceHere, monkeypatch: pytest.MonkeyPatch) -> None:
    sites = here.sites
    first = sites.point()
    monkeypatch.setattr(DiskCycle, "seal", raising(Retry("killed"), then=DiskCycle.seal))
    with pytest.raises(Retry):
        here.replicate(sites.params(first))
    moved = here.service.sent_bytes
    sites.release(first, applied=False)
    second = sites.point()
    result = here.replicate(sites.params(second))
    assert sites.published(result.manifest) == sites.frozen(second)
    assert here.service.sent_bytes == moved


def test_an_old_checkpoint_never_writes_into_a_draft_that_has_passed_on(
    here: SourceHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = here.sites
    first = sites.point()
    old = sites.params(first)
    monkeypatch.setattr(DiskCycle, "seal", raising(Retry("killed"), times=2, then=DiskCycle.seal))
    with pytest.raises(Retry):
        here.replicate(old)
    sites.fill("db", "vda", 9, 3)
    second = sites.point()
    with pytest.raises(Retry):
        here.replicate(sites.params(second))
    [draft] = sites.beta.target.points()
    other = sites.folder / "another-node"
    with pytest.raises(Fenced) as caught:
        here.replicate(sites.params(second, checkpoint_id=old.manifest.checkpoint_id), journal_dir=other)
    assert caught.value.code == "draft-taken"
    assert sites.beta.target.points() == [draft]
    result = here.replicate(sites.params(second))
    assert sites.published(result.manifest) == sites.frozen(second)
