"""A source whose change tracking lies is caught, and what it touched is doubted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from doubles.datapath import Sites, sites
from farshore.checkpoints import addenda, audit
from farshore.checkpoints.manifest import load_group
from farshore.model.checkpoint import CycleStats, Manifest
from farshore.model.integrity import integrity_of
from farshore.model.plan import Transport
from farshore.units import KIB, LEAF_SIZE, MIB

#: One leaf in four has its turn in each cycle.
QUARTER = Transport(intermediate_checkpoint_window=8 * MIB, audit_fraction=0.25)
SIZE = 40 * MIB + 512


def behind_the_log(both: Sites, offset: int, data: bytes) -> None:
    """Write to a disk so that its change log does not learn of it."""
    fd = os.open(both.machine("db").image("vda"), os.O_WRONLY)
    os.pwrite(fd, data, offset)
    os.close(fd)


def cycle(both: Sites) -> tuple[Manifest, CycleStats, bool, list[str]]:
    """Run one cycle; return what it published, whether that is the source, and which checkpoints are suspect now."""
    snapshot = both.point()
    expected = both.frozen(snapshot)
    reply: dict[str, Any] = both.replicate(both.params(snapshot))
    assert "result" in reply, reply
    manifest = Manifest.model_validate(reply["result"]["manifest"])
    both.release(snapshot, applied=True)
    right = both.published(manifest) == expected
    suspects = sorted({one["checkpoint_id"] for one in reply["result"]["addenda"] if one["verdict"] == "suspect"})
    return manifest, CycleStats.model_validate(reply["result"]["stats"]), right, suspects


def test_a_missed_change_is_caught_within_a_rotation_healed_and_doubted(tmp_path: Path) -> None:
    with sites(tmp_path, {"db": {"vda": SIZE}}, QUARTER) as both:
        both.start_source()
        both.fill("db", "vda", 1, 60)
        cycle(both)
        both.machine("db").write("vda", 3 * MIB, b"told")
        cycle(both)
        behind_the_log(both, 21 * MIB + 5, b"never told")
        missed = (21 * MIB) // LEAF_SIZE
        touched: list[str] = []
        for number in range(4):
            both.machine("db").write("vda", number * 5 * MIB, b"told again")
            manifest, stats, right, suspects = cycle(both)
            assert manifest.disks[0].audit is not None
            if stats.mode == "verify":
                break
            assert not right
            assert not suspects
            assert stats.audited_bytes > 0
            touched.append(manifest.checkpoint_id)
        assert stats.mode == "verify"
        assert right
        assert f"offset {missed * LEAF_SIZE}" in stats.reason
        assert "db/vda" in stats.reason
        assert stats.moved_bytes <= 2 * 64 * KIB
        # Those that it touched are among the doubted ones, which end at the leaf's last clean audit.
        assert set(touched) <= set(suspects)
        history = [one for one in reversed(load_group(both.beta.manifests, "grp-test")) if one != manifest]
        assert suspects == sorted(one.checkpoint_id for one in audit.touched(history, "db/vda", missed, missed + 1))
        # The next cycles are incremental again, and doubt nothing more.
        for _ in range(2):
            _, stats, right, later = cycle(both)
            assert (stats.mode, right, later) == ("incremental", True, suspects)


def test_all_that_was_missed_is_doubted_as_far_back_as_it_reaches(tmp_path: Path) -> None:
    half = Transport(intermediate_checkpoint_window=8 * MIB, audit_fraction=0.5)
    with sites(tmp_path, {"db": {"vda": 16 * MIB}}, half) as both:
        both.start_source()
        both.fill("db", "vda", 1, 20)
        first, _, _, _ = cycle(both)
        second, _, _, _ = cycle(both)
        for unit in range(4):
            behind_the_log(both, unit * 4 * MIB + 77, b"lie")
        third, stats, right, suspects = cycle(both)
        assert (stats.mode, right) == ("verify", True)
        # What was compared in the second cycle is sound there, the rest of it may not be. The first was a full copy.
        assert suspects == [second.checkpoint_id]
        whole = [disk.audit.whole for one in (first, second, third) for disk in one.disks if disk.audit]
        assert whole == [True, False, True]


def test_a_part_of_a_reported_leaf_that_was_not_named_is_found_by_reading_back(tmp_path: Path) -> None:
    with sites(tmp_path, {"db": {"vda": 8 * MIB}}, Transport(audit_fraction=1)) as both:
        both.start_source()
        both.fill("db", "vda", 1, 20)
        cycle(both)
        manifest, _, _, _ = cycle(both)
        # As if the change log had named a part of this leaf only: the digest is right and the copy is not.
        image = both.beta_root / "pool" / "points" / manifest.disks[0].point / "disk.img"
        image.chmod(0o600)
        with image.open("r+b") as opened:
            opened.seek(5 * MIB + 123)
            opened.write(b"stale")
        _, stats, right, _ = cycle(both)
        assert (stats.mode, right) == ("verify", True)
        assert "not what its digests say" in stats.reason
        assert stats.moved_bytes <= 64 * KIB
        _, stats, right, _ = cycle(both)
        assert (stats.mode, right) == ("incremental", True)


def test_the_audit_can_be_turned_off(tmp_path: Path) -> None:
    with sites(tmp_path, {"db": {"vda": 8 * MIB}}, Transport(audit_fraction=0)) as both:
        both.start_source()
        both.fill("db", "vda", 1, 5)
        cycle(both)
        behind_the_log(both, MIB, b"lie")
        for _ in range(3):
            _, stats, right, suspects = cycle(both)
            assert (stats.mode, stats.audited_bytes, right, suspects) == ("incremental", 0, False, [])


def test_what_was_said_goes_with_its_checkpoint(tmp_path: Path) -> None:
    from farshore.checkpoints.publish import withdraw

    with sites(tmp_path, {"db": {"vda": 8 * MIB}}, Transport(audit_fraction=0.5)) as both:
        both.start_source()
        both.fill("db", "vda", 1, 5)
        for _ in range(2):
            cycle(both)
        behind_the_log(both, MIB, b"lie")
        behind_the_log(both, 6 * MIB, b"lie")
        _, _, _, suspects = cycle(both)
        store = both.beta.manifests
        known = addenda.load(store)
        assert {one.checkpoint_id for one in known} == set(suspects)
        for name in suspects:
            assert integrity_of(addenda.of(known, name)) == "suspect"
            withdraw(store, both.beta.target, "grp-test", name)
        assert addenda.load(store) == []
