"""File to file between two processes: what is published is the source's point, bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path

from doubles.datapath import sites
from farshore.model.checkpoint import CycleStats, Manifest
from farshore.units import KIB, MIB


def test_full_then_incremental_copies_are_the_source_points(tmp_path: Path) -> None:
    with sites(tmp_path, {"db": {"vda": 24 * MIB, "vdb": 9 * MIB + 512}, "web": {"vda": 3 * MIB}}) as both:
        both.start_source()
        both.fill("db", "vda", 1, 60)
        both.fill("db", "vdb", 2, 10)
        for cycle in range(3):
            snapshot = both.point()
            expected = both.frozen(snapshot)
            reply = both.replicate(both.params(snapshot))
            assert "result" in reply, reply
            manifest = Manifest.model_validate(reply["result"]["manifest"])
            stats = CycleStats.model_validate(reply["result"]["stats"])
            assert both.published(manifest) == expected
            assert stats.mode == ("full" if cycle == 0 else "incremental")
            if cycle:
                assert stats.moved_bytes <= 10 * 128 * KIB
            both.release(snapshot, applied=True)
            both.fill("db", "vda", 10 + cycle, 10, size=4096)
            both.machine("web").write("vda", 3 * MIB - 700, b"x" * 700)
            both.machine("db").discard("vda", 5 * MIB, 3 * MIB)
        assert manifest.sequence == 3
        assert [path.name for path in both.journals.iterdir()] == []


def test_one_disk_without_changes_does_not_stop_the_others(tmp_path: Path) -> None:
    with sites(tmp_path, {"a": {"vda": 2 * MIB}, "b": {"vda": 2 * MIB}, "c": {"vda": 70 * KIB}}) as both:
        both.start_source()
        both.fill("c", "vda", 3, 1, size=60 * KIB)
        expected: dict[str, bytes] = {}
        for write in (None, ("b", b"second cycle"), None):
            if write:
                both.machine(write[0]).write("vda", MIB + 5, write[1])
            snapshot = both.point()
            expected = both.frozen(snapshot)
            reply = both.replicate(both.params(snapshot))
            assert both.published(Manifest.model_validate(reply["result"]["manifest"])) == expected
            both.release(snapshot, applied=True)
        assert reply["result"]["stats"]["moved_bytes"] == 0
        assert reply["result"]["stats"]["changed_bytes"] == 0


def test_zeros_never_cross_the_link(tmp_path: Path) -> None:
    with sites(tmp_path, {"db": {"vda": 16 * MIB}}) as both:
        source = both.start_source()
        machine = both.machine("db")
        machine.write("vda", 0, bytes(8 * MIB))  # allocated, and all zeros
        machine.write("vda", 9 * MIB, b"\1" * 4096 + bytes(60 * KIB) + b"\2" * 4096)
        snapshot = both.point()
        reply = both.replicate(both.params(snapshot))
        stats = CycleStats.model_validate(reply["result"]["stats"])
        assert stats.moved_bytes == 8192
        assert both.published(Manifest.model_validate(reply["result"]["manifest"])) == both.frozen(snapshot)
        assert 0 < both.sent(source) <= 8192, "compressed or not"


def test_a_published_checkpoint_is_not_pulled_twice(tmp_path: Path) -> None:
    with sites(tmp_path, {"db": {"vda": 2 * MIB}}) as both:
        both.start_source()
        both.fill("db", "vda", 1, 4)
        params = both.params(both.point())
        first = both.replicate(params)["result"]
        second = both.replicate(params)["result"]
        assert second["manifest"] == first["manifest"]
        assert second["stats"]["moved_bytes"] == 0
        assert len(both.beta.target.points()) == 1


def test_without_a_change_log_only_leaves_that_differ_cross(tmp_path: Path) -> None:
    with sites(tmp_path, {"db": {"vda": 130 * MIB + 512}}) as both:
        both.start_source()
        machine = both.machine("db")
        both.fill("db", "vda", 1, 40)
        snapshot = both.point()
        both.replicate(both.params(snapshot))
        both.release(snapshot, applied=True)
        machine.write("vda", 7 * MIB + 100, b"new")
        machine.write("vda", 130 * MIB + 511, b"!")
        machine.discard("vda", 64 * MIB, 40 * MIB)
        shutil.rmtree(machine.changes)
        snapshot = both.point()
        assert not any(disk.incremental for disk in snapshot.disks)
        reply = both.replicate(both.params(snapshot))["result"]
        manifest, stats = Manifest.model_validate(reply["manifest"]), CycleStats.model_validate(reply["stats"])
        assert both.published(manifest) == both.frozen(snapshot)
        assert stats.mode == "verify"
        assert "change log" in stats.reason
        assert 0 < stats.moved_bytes <= 2 * 64 * KIB


def test_a_disk_that_grew_is_verified_and_one_that_shrank_copied(tmp_path: Path) -> None:
    with sites(tmp_path, {"db": {"vda": 20 * MIB + 512}}) as both:
        both.start_source()
        both.fill("db", "vda", 1, 40)
        modes = []
        for size in (20 * MIB + 512, 33 * MIB, 5 * MIB + 1024):
            with both.machine("db").image("vda").open("r+b") as image:
                image.truncate(size)
            both.machine("db").write("vda", size - 3, b"end")
            snapshot = both.point()
            reply = both.replicate(both.params(snapshot))["result"]
            modes.append(reply["stats"]["mode"])
            assert both.published(Manifest.model_validate(reply["manifest"])) == both.frozen(snapshot)
            both.release(snapshot, applied=True)
        assert modes == ["full", "verify", "full"]


def test_lost_digests_of_the_base_are_made_again(tmp_path: Path) -> None:
    with sites(tmp_path, {"db": {"vda": 6 * MIB}}) as both:
        both.start_source()
        both.fill("db", "vda", 1, 10)
        for cycle in range(2):
            snapshot = both.point()
            reply = both.replicate(both.params(snapshot))["result"]
            assert both.published(Manifest.model_validate(reply["manifest"])) == both.frozen(snapshot)
            both.release(snapshot, applied=True)
            if cycle == 0:
                shutil.rmtree(both.beta_root / "pool" / "manifests" / "trees")
                both.machine("db").write("vda", MIB, b"changed")
        assert reply["stats"]["mode"] == "verify"
        assert reply["stats"]["moved_bytes"] <= 64 * KIB


def test_a_base_that_vanished_at_the_target_means_a_full_copy(tmp_path: Path) -> None:
    with sites(tmp_path, {"db": {"vda": 6 * MIB}}) as both:
        both.start_source()
        both.fill("db", "vda", 1, 10)
        snapshot = both.point()
        manifest = Manifest.model_validate(both.replicate(both.params(snapshot))["result"]["manifest"])
        both.release(snapshot, applied=True)
        both.beta.target.drop(manifest.disks[0].point)
        snapshot = both.point()
        reply = both.replicate(both.params(snapshot))["result"]
        assert reply["stats"]["mode"] == "full"
        assert both.published(Manifest.model_validate(reply["manifest"])) == both.frozen(snapshot)
