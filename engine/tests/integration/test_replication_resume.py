"""Processes killed in the middle: the same task goes on from its journal, and little travels twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from doubles.datapath import Sites
from doubles.resuming import DISK, LEVEL, MARK, filled, when, whole
from farshore.checkpoints.catalog import scan
from farshore.journal.log import decode
from farshore.journal.state import Kind, decode_ranges
from farshore.model.checkpoint import CycleStats, Manifest
from farshore.replication.resume import sweep
from farshore.units import KIB, MIB


@pytest.mark.parametrize(
    "faults",
    [
        "open#1:kill",
        "open-done#2:kill",
        "write#1:kill",
        "write#9:kill",
        "write-done#33:kill",
        "write#55:kill",
        "flush#1:kill",
        "flush-done#2:kill",
        "flush#5:kill",
        "put#1:kill",
        "put-done#3:kill",
        "seal#1:kill",
        "seal-done#1:kill",
        "seal#2:kill",
        "put#5:kill",
        "put#7:kill",
        "put-done#7:kill",
        "put-done#8:kill",
    ],
)
def test_a_killed_target_goes_on_from_its_journal(tmp_path: Path, faults: str) -> None:
    both = filled(tmp_path)
    try:
        source = both.start_source()
        snapshot = both.point()
        params = both.params(snapshot)
        again = both.params(snapshot, term=2)  # as it is given to the node's next life
        assert both.replicate(params, faults=faults) == {}, "the fault did not strike"
        whole(both, snapshot, both.replicate(again))
        assert both.sent(source) <= 2 * DISK + 2 * (LEVEL + MARK)
    finally:
        both.end()


def test_killed_again_and_again_it_still_ends(tmp_path: Path) -> None:
    both = filled(tmp_path)
    try:
        source = both.start_source()
        snapshot = both.point()
        params = both.params(snapshot)
        lives = 0
        while (reply := both.replicate(params, faults="write#24:kill,zero#24:kill")) == {}:
            lives += 1
            assert lives < 12
        whole(both, snapshot, reply)
        assert lives >= 2
        assert both.sent(source) <= 2 * DISK + lives * 2 * (LEVEL + MARK)
    finally:
        both.end()


def test_a_killed_source_is_waited_for(tmp_path: Path) -> None:
    both = filled(tmp_path)
    try:
        source = both.start_source()
        snapshot = both.point()
        target = both.start_target(both.params(snapshot), faults="write#3+:delay=0.2")
        when(target, 8 * MIB)
        source.end()
        both.start_source(port=both.port)
        stats = whole(both, snapshot, both.finish(target))
        assert stats.moved_bytes == 2 * DISK
        assert stats.resent_bytes <= 2 * LEVEL
    finally:
        both.end()


def test_both_killed(tmp_path: Path) -> None:
    both = filled(tmp_path)
    try:
        source = both.start_source()
        snapshot = both.point()
        params = both.params(snapshot)
        target = both.start_target(params, faults="write#3+:delay=0.2")
        when(target, 20 * MIB)
        source.end()
        target.end()
        before = durable_bytes(both)
        assert before >= MARK
        source = both.start_source(port=both.port)
        whole(both, snapshot, both.replicate(params))
        assert both.sent(source) == 2 * DISK - before
    finally:
        both.end()


def durable_bytes(both: Sites) -> int:
    """Return what the journals record as durable."""
    total = 0
    for path in both.journals.glob("*/*/journal"):
        for (kind, body), _ in decode(path.read_bytes()):
            if kind == Kind.DURABLE:
                total += sum(stop - start for start, stop in decode_ranges(body))
    return total


def test_an_incremental_copy_is_continued_too(tmp_path: Path) -> None:
    both = filled(tmp_path)
    try:
        source = both.start_source()
        snapshot = both.point()
        whole(both, snapshot, both.replicate(both.params(snapshot)))
        both.release(snapshot, applied=True)
        first = snapshot
        for at in range(0, DISK, 2 * MIB):
            both.machine("db").write("vda", at + 100, bytes([at // MIB + 1]) * (MIB + 7 * KIB))
        both.machine("db").discard("vdb", MIB, 20 * MIB)
        snapshot = both.point()
        before = both.sent(source)
        assert both.replicate(both.params(snapshot), faults="write-done#12:kill") == {}
        reply = both.replicate(both.params(snapshot))
        assert "result" in reply, reply
        manifest = Manifest.model_validate(reply["result"]["manifest"])
        assert both.published(manifest) == both.frozen(snapshot)
        stats = CycleStats.model_validate(reply["result"]["stats"])
        assert stats.mode == "incremental"
        assert stats.moved_bytes <= stats.changed_bytes
        assert both.sent(source) - before <= 15 * (MIB + 128 * KIB) + LEVEL + MARK
        assert len(both.beta.target.points()) == 4, first
    finally:
        both.end()


def test_a_full_pool_publishes_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    both = filled(tmp_path)
    try:
        both.start_source()
        snapshot = both.point()
        error = both.replicate(both.params(snapshot), faults="write#20+:full")["error"]
        assert (error["duty"], error["code"]) == ("NoSpace", "pool-full")
        assert both.beta.target.points() == []
        assert both.beta.manifests.list("groups/") == []
        assert list(both.journals.iterdir()) == []
        whole(both, snapshot, both.replicate(both.params(snapshot)))
    finally:
        both.end()


def test_one_disk_that_fails_keeps_the_whole_group_unpublished(tmp_path: Path) -> None:
    both = filled(tmp_path)
    try:
        both.start_source()
        snapshot = both.point()
        for faults in ("flush#3:io", "write#4+:retry", "seal#2:io", "seal#1:retry"):
            reply = both.replicate(both.params(snapshot), faults=faults)
            assert reply["error"]["duty"] in {"Permanent", "Retry"}
            assert both.beta.manifests.list("groups/") == []
        whole(both, snapshot, both.replicate(both.params(snapshot)))
    finally:
        both.end()


def test_what_an_older_attempt_of_the_group_left_is_removed(tmp_path: Path) -> None:
    both = filled(tmp_path)
    try:
        both.start_source()
        snapshot = both.point()
        assert both.replicate(both.params(snapshot), faults="write#30:kill") == {}
        assert len(both.beta.target.points()) == 2
        both.release(snapshot, applied=False)
        snapshot = both.point()
        whole(both, snapshot, both.replicate(both.params(snapshot)))
    finally:
        both.end()


def test_a_draft_that_was_removed_behind_our_back_is_begun_again(tmp_path: Path) -> None:
    both = filled(tmp_path)
    try:
        both.start_source()
        snapshot = both.point()
        assert both.replicate(both.params(snapshot), faults="write#50:kill") == {}
        for point in both.beta.target.points():
            both.beta.target.abandon(point.removeprefix("draft:"))
        stats = whole(both, snapshot, both.replicate(both.params(snapshot)))
        assert stats.resent_bytes >= MARK
    finally:
        both.end()


def test_two_processes_never_work_on_one_checkpoint(tmp_path: Path) -> None:
    both = filled(tmp_path)
    try:
        both.start_source()
        snapshot = both.point()
        params = both.params(snapshot)
        first = both.start_target(params, faults="write#3+:delay=0.25")
        when(first, 1)
        assert both.replicate(params)["error"]["code"] == "draft-busy"
        whole(both, snapshot, both.finish(first))
    finally:
        both.end()


@pytest.mark.parametrize("faults", ["seal#1:kill", "seal-done#1:kill", "seal-done#2:kill", "put#7:kill"])
def test_what_is_whole_is_published_without_its_source(tmp_path: Path, faults: str) -> None:
    both = filled(tmp_path)
    try:
        source = both.start_source()
        snapshot = both.point()
        params = both.params(snapshot)
        assert both.replicate(params, faults=faults) == {}
        reply = both.replicate(params) if "seal-done" in faults else None
        source.end()
        whole(both, snapshot, reply or both.replicate(params))
    finally:
        both.end()


@pytest.mark.parametrize("faults", ["write#40:kill", "seal-done#1:kill", "put#6:kill", "put-done#8:kill"])
def test_a_sweep_leaves_published_checkpoints_and_nothing_else(tmp_path: Path, faults: str) -> None:
    both = filled(tmp_path)
    try:
        both.start_source()
        snapshot = both.point()
        assert both.replicate(both.params(snapshot), faults=faults) == {}
        target, manifests = both.beta.target, both.beta.manifests
        assert sweep(target, manifests, both.journals, [f"cp-{snapshot.point_id}"]) == []
        assert sweep(target, manifests, both.journals, []) == [f"cp-{snapshot.point_id}"]
        published, _ = scan(manifests)
        assert len(published) == (faults == "put-done#8:kill")
        assert sorted(target.points()) == sorted(disk.point for one in published for disk in one.disks)
        assert list(both.journals.iterdir()) == []
    finally:
        both.end()
