"""A disk that begins with an image at the target: only what differs crosses the link, and the image stays as it is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from doubles.datapath import Sites, sites
from farshore.model.checkpoint import CycleStats, Manifest
from farshore.units import KIB, LEAF_SIZE, MIB

SIZE = 20 * MIB + 512


def put_seed(both: Sites, name: str = "seeds/db.raw") -> Path:
    """Put a copy of the disk, as it is now, into the target's pool."""
    place = both.beta_root / "pool" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(both.machine("db").image("vda"), place)
    return place


def run(both: Sites, **extra: Any) -> dict[str, Any]:
    snapshot = both.point()
    expected = both.frozen(snapshot)
    params = both.params(snapshot, seeds={"db/vda": extra.pop("seed", "seeds/db.raw")})
    reply = both.replicate(params, **extra)
    if "result" in reply:
        assert both.published(Manifest.model_validate(reply["result"]["manifest"])) == expected
    both.release(snapshot, applied="result" in reply)
    return reply


def test_only_the_leaves_that_differ_cross(tmp_path: Path) -> None:
    with sites(tmp_path, {"db": {"vda": SIZE}}) as both:
        source = both.start_source()
        both.fill("db", "vda", 1, 80)
        seed = put_seed(both)
        as_it_was = seed.read_bytes()
        machine = both.machine("db")
        machine.write("vda", 3 * MIB + 100, b"first")
        machine.write("vda", 11 * MIB, b"second")
        machine.write("vda", SIZE - 4, b"last")
        stats = CycleStats.model_validate(run(both)["result"]["stats"])
        assert stats.mode == "verify"
        assert "seeded from seeds/db.raw" in stats.reason
        assert 0 < stats.moved_bytes <= 3 * LEAF_SIZE
        assert both.sent(source) <= 3 * LEAF_SIZE
        assert seed.read_bytes() == as_it_was
        # The seed was let go; the next cycle grows on the checkpoint.
        assert len(both.beta.target.points()) == 1
        assert both.beta.manifests.list("seeds/") == []
        machine.write("vda", MIB, b"later")
        assert run(both)["result"]["stats"]["mode"] == "incremental"


def test_what_the_seed_has_and_the_disk_has_not_becomes_zero(tmp_path: Path) -> None:
    with sites(tmp_path, {"db": {"vda": SIZE}}) as both:
        both.start_source()
        seed = put_seed(both)
        with seed.open("r+b") as image:
            image.seek(7 * MIB)
            image.write(b"\xee" * MIB)
        both.machine("db").write("vda", MIB, b"data")
        assert run(both)["result"]["stats"]["moved_bytes"] <= 2 * LEAF_SIZE


def test_a_shorter_image_is_a_seed_and_a_longer_one_is_none(tmp_path: Path) -> None:
    with sites(tmp_path, {"db": {"vda": SIZE}}) as both:
        both.start_source()
        both.fill("db", "vda", 1, 40)
        seed = put_seed(both)
        with seed.open("r+b") as image:
            image.truncate(SIZE + 1)
        assert run(both)["error"]["code"] == "seed-too-large"
        with seed.open("r+b") as image:
            image.truncate(SIZE - 300 * KIB)
        assert run(both)["result"]["stats"]["moved_bytes"] <= 6 * LEAF_SIZE


def test_what_is_no_image_of_the_pool_is_refused(tmp_path: Path) -> None:
    with sites(tmp_path, {"db": {"vda": SIZE}}) as both:
        both.start_source()
        both.fill("db", "vda", 1, 5)
        outside = tmp_path / "secret.raw"
        outside.write_bytes(b"x" * 4096)
        seeds = both.beta_root / "pool" / "seeds"
        seeds.mkdir()
        (seeds / "link.raw").symlink_to(outside)
        (seeds / "way").symlink_to(tmp_path)
        codes = {
            seed: run(both, seed=seed)["error"]["code"]
            for seed in ("seeds/none.raw", "seeds/link.raw", "seeds/way/secret.raw", str(outside), "seeds")
        }
        assert codes == {
            "seeds/none.raw": "seed-not-found",
            "seeds/link.raw": "seed-outside",
            "seeds/way/secret.raw": "seed-outside",
            str(outside): "seed-outside",
            "seeds": "seed-not-a-file",
        }
        assert both.beta.target.points() == []


@pytest.mark.parametrize("faults", ["seal#1:kill", "write#1:kill", "flush#1:kill", "seal-done#1:kill"])
def test_a_crash_takes_nothing_in_twice_and_leaves_nothing(tmp_path: Path, faults: str) -> None:
    with sites(tmp_path, {"db": {"vda": SIZE}}) as both:
        both.start_source()
        both.fill("db", "vda", 1, 80)
        put_seed(both)
        both.machine("db").write("vda", 5 * MIB, b"differs")
        snapshot = both.point()
        params = both.params(snapshot, seeds={"db/vda": "seeds/db.raw"})
        both.replicate(params, faults=faults)
        reply = both.replicate(params)
        assert both.published(Manifest.model_validate(reply["result"]["manifest"])) == both.frozen(snapshot)
        assert reply["result"]["stats"]["moved_bytes"] <= 2 * LEAF_SIZE
        assert len(both.beta.target.points()) == 1
        assert both.beta.manifests.list("seeds/") == []
