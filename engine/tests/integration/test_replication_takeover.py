"""Another node takes a copy over: it goes on in the draft of a writer that is gone, never beside one that is not."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.datapath import Child, Sites
from doubles.resuming import DISK, MARK, filled, when, whole
from doubles.source_here import SourceHere, raising
from farshore.blocks.rangeset import RangeSet
from farshore.errors import Fenced, Retry
from farshore.journal.log import decode
from farshore.journal.state import DraftState, Kind, decode_ranges, read_subject
from farshore.model.checkpoint import CycleStats, Manifest
from farshore.model.task import ReplicateParams, ReplicateResult
from farshore.platforms.contract import Snapshot
from farshore.replication.cycle import DiskCycle
from farshore.replication.resume import disk_folder, sweep
from farshore.transport.tls import load
from farshore.units import MIB

OTHER = "beta-2"


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Sites]:
    sites = filled(tmp_path)
    yield sites
    sites.end()


class Successor:
    """Another node of the target site, with its own certificate and journals, and the same pool."""

    def __init__(self, both: Sites) -> None:
        self.both = both
        self.files = both.authority.node("beta", OTHER)
        self.journals = both.folder / OTHER / "journal"

    def params(self, snapshot: Snapshot, *, told: dict[str, tuple[str, list[tuple[int, int]]]]) -> ReplicateParams:
        """Return the task as it is given to this node, with what the first one told of its drafts."""
        peer = load(self.files.cert, self.files.key, self.files.ca).peer
        params = self.both.params(snapshot, term=2, grant={"target_node": OTHER, "target_thumbprint": peer.thumbprint})
        disks = tuple(
            disk.model_copy(update={"draft_key": told[disk.disk_key][0], "durable": tuple(told[disk.disk_key][1])})
            if disk.disk_key in told
            else disk
            for disk in params.disks
        )
        return params.model_copy(update={"disks": disks})

    def replicate(self, params: ReplicateParams, **extra: Any) -> dict[str, Any]:
        files = {"cert": str(self.files.cert), "key": str(self.files.key), "ca": str(self.files.ca)}
        return self.both.replicate(params, journal_dir=str(self.journals), **files, **extra)


def told(both: Sites, snapshot: Snapshot) -> dict[str, tuple[str, list[tuple[int, int]]]]:
    """Return what the first node's journals call durable, as it would have told with its last poll."""
    found = {}
    for disk in snapshot.disks:
        path = both.journals / f"cp-{snapshot.point_id}" / disk_folder(disk.disk_key)
        known = read_subject(path)
        assert known is not None
        ranges = RangeSet()
        for (kind, body), _ in decode((path / "journal").read_bytes()):
            if kind == Kind.DURABLE:
                for span in decode_ranges(body):
                    ranges.add(*span)
        found[disk.disk_key] = (known.draft_key, list(ranges))
    return found


def durable_bytes(copy: dict[str, tuple[str, list[tuple[int, int]]]]) -> int:
    return sum(stop - start for _, ranges in copy.values() for start, stop in ranges)


def test_the_draft_of_a_node_that_is_gone_goes_on(both: Sites) -> None:
    source = both.start_source()
    snapshot = both.point()
    assert both.replicate(both.params(snapshot), faults="write#45:kill") == {}
    copy = told(both, snapshot)
    assert durable_bytes(copy) >= 2 * MARK
    before = both.sent(source)
    successor = Successor(both)
    reply = successor.replicate(successor.params(snapshot, told=copy))
    assert "result" in reply, reply
    manifest = Manifest.model_validate(reply["result"]["manifest"])
    assert both.published(manifest) == both.frozen(snapshot)
    assert CycleStats.model_validate(reply["result"]["stats"]).resent_bytes == 0
    assert both.sent(source) - before == 2 * DISK - durable_bytes(copy)
    assert sorted(both.beta.target.points()) == sorted(disk.point for disk in manifest.disks)
    # The first node comes back, and finds that there is nothing left to do.
    assert sweep(both.beta.target, both.beta.manifests, both.journals, []) == [f"cp-{snapshot.point_id}"]
    assert sorted(both.beta.target.points()) == sorted(disk.point for disk in manifest.disks)


def test_a_copy_that_claims_too_much_is_found_out(both: Sites) -> None:
    both.start_source()
    snapshot = both.point()
    assert both.replicate(both.params(snapshot), faults="write#30:kill") == {}
    copy = {key: (draft, [(0, DISK)]) for key, (draft, _ranges) in told(both, snapshot).items()}
    successor = Successor(both)
    reply = successor.replicate(successor.params(snapshot, told=copy))
    assert both.published(Manifest.model_validate(reply["result"]["manifest"])) == both.frozen(snapshot)


@pytest.mark.parametrize("faults", ["open#2:kill", "write#3:kill", "flush#2:kill", "seal-done#1:kill"])
def test_a_successor_may_die_too(both: Sites, faults: str) -> None:
    both.start_source()
    snapshot = both.point()
    assert both.replicate(both.params(snapshot), faults="write#40:kill") == {}
    successor = Successor(both)
    params = successor.params(snapshot, told=told(both, snapshot))
    assert successor.replicate(params, faults=faults) == {}
    reply = successor.replicate(params)
    manifest = Manifest.model_validate(reply["result"]["manifest"])
    assert both.published(manifest) == both.frozen(snapshot)
    assert sorted(both.beta.target.points()) == sorted(disk.point for disk in manifest.disks)


def test_a_writer_that_was_only_stopped_changes_nothing_any_more(both: Sites) -> None:
    source = both.start_source()
    snapshot = both.point()
    first = both.start_target(both.params(snapshot), faults="write#3+:delay=0.2")
    when(first, 20 * MIB)
    first.process.send_signal(signal.SIGSTOP)
    copy = told(both, snapshot)
    assert durable_bytes(copy)
    successor = Successor(both)
    reply = successor.replicate(successor.params(snapshot, told=copy))
    assert "result" in reply, reply
    stats = CycleStats.model_validate(reply["result"]["stats"])
    manifest = Manifest.model_validate(reply["result"]["manifest"])
    assert "open in another process" in stats.reason, "its draft was left to it"
    assert stats.resent_bytes >= durable_bytes(copy)
    content = both.published(manifest)
    assert content == both.frozen(snapshot)
    first.process.send_signal(signal.SIGCONT)
    error = last_word(both, first)
    assert error["duty"] == "Fenced", error
    assert both.newest() == manifest
    assert both.published(manifest) == content
    assert source.process.poll() is None
    sweep(both.beta.target, both.beta.manifests, both.journals, [])
    assert sorted(both.beta.target.points()) == sorted(disk.point for disk in manifest.disks)


def last_word(both: Sites, child: Child) -> dict[str, Any]:
    reply = both.finish(child)
    return dict(reply.get("error") or reply)


def test_the_next_term_of_the_same_node_goes_on_as_before(both: Sites) -> None:
    both.start_source()
    snapshot = both.point()
    for term in (1, 2, 3):
        assert both.replicate(both.params(snapshot, term=term), faults="write#12:kill") == {}
    whole(both, snapshot, both.replicate(both.params(snapshot, term=4)))
    assert json.loads(both.beta.manifests.get(f"terms/grp-test/cp-{snapshot.point_id}-0000000004.json"))


def test_a_lower_term_begins_nothing(both: Sites) -> None:
    both.start_source()
    snapshot = both.point()
    assert both.replicate(both.params(snapshot, term=2), faults="write#12:kill") == {}
    error = both.replicate(both.params(snapshot, term=1))["error"]
    assert (error["duty"], error["code"]) == ("Fenced", "stale-term")
    whole(both, snapshot, both.replicate(both.params(snapshot, term=2)))


def test_a_draft_that_another_node_may_have_written_to_passes_to_no_other_point(both: Sites) -> None:
    both.start_source()
    snapshot = both.point()
    assert both.replicate(both.params(snapshot), faults="write#30:kill") == {}
    successor = Successor(both)
    assert successor.replicate(successor.params(snapshot, told=told(both, snapshot)), faults="write#9:kill") == {}
    assert both.replicate(both.params(snapshot, term=3), faults="write#5:kill") == {}
    both.release(snapshot, applied=False)
    both.machine("db").discard("vda", 0, DISK)
    snapshot = both.point()
    whole(both, snapshot, both.replicate(both.params(snapshot)))


# --- in one process ---------------------------------------------------------------------------------------------------


def test_a_stopped_writer_that_had_copied_all_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its session is not needed any more, so only the store tells it that a higher term has begun."""
    here = SourceHere(tmp_path)
    try:
        sites = here.sites
        snapshot = sites.point()
        seal, results = DiskCycle.seal, list[ReplicateResult]()

        def stopped(cycle: DiskCycle) -> object:
            monkeypatch.setattr(DiskCycle, "seal", seal)
            monkeypatch.setattr(DraftState, "seal", raising(Retry("killed"), then=DraftState.seal))
            with pytest.raises(Retry):  # begun, and not yet published
                here.replicate(sites.params(snapshot, term=2), journal_dir=tmp_path / "other")
            return seal(cycle)

        monkeypatch.setattr(DiskCycle, "seal", stopped)
        with pytest.raises(Fenced) as caught:
            here.replicate(sites.params(snapshot))
        assert caught.value.code == "stale-term"
        assert sites.newest() is None
        assert sweep(sites.beta.target, sites.beta.manifests, sites.journals, []) == [], "it may be the successor's"
        results.append(here.replicate(sites.params(snapshot, term=2), journal_dir=tmp_path / "other"))
        assert sites.published(results[0].manifest) == sites.frozen(snapshot)
        assert len(sweep(sites.beta.target, sites.beta.manifests, sites.journals, [])) == 1
        assert sites.beta.target.points() == [disk.point for disk in results[0].manifest.disks]
    finally:
        here.close()
