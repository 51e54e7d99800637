"""The scrub finds every bit that flipped, and says where."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from doubles.manifests import a_manifest
from farshore.blocks.digest import leaf_digest
from farshore.checkpoints import addenda
from farshore.checkpoints.manifest import key_of
from farshore.checkpoints.publish import publish
from farshore.checkpoints.scrub import scrub
from farshore.checkpoints.trees import TreeStore
from farshore.errors import Conflict, Corruption, NotFound, Retry
from farshore.model.checkpoint import DiskPoint, Manifest
from farshore.model.task import Progress
from farshore.platforms.directory import DirectoryManifests
from farshore.platforms.file.target import FileTarget
from farshore.units import KIB, LEAF_SIZE, MIB

SIZE = 20 * MIB + 1536


class Pool:
    """Published checkpoints of one disk at a file target."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.target = FileTarget(root)
        self.store = DirectoryManifests(root / "manifests")
        self.points: list[str] = []
        self._base: tuple[str, str] | None = None

    def publish(self, writes: dict[int, bytes], size: int = SIZE) -> Manifest:
        sequence = len(self.points) + 1
        draft = self.target.open("db/vda", size, self._base[0] if self._base else None, f"cp-{sequence}.vda")
        for offset, data in writes.items():
            draft.write(offset, memoryview(data))
        trees = TreeStore(self.store, f"cp-{sequence}")
        content = bytearray(size)
        draft.read_into(0, memoryview(content))
        leaves = [leaf_digest(content[at : at + LEAF_SIZE]) for at in range(0, size, LEAF_SIZE)]
        made = trees.update(None, size, enumerate(leaves))
        point = draft.seal()
        draft.close()
        trees.commit(point, made)
        self.points.append(point)
        self._base = (point, made.root.hex())
        disk = DiskPoint(
            disk_key="db/vda", size_bytes=size, point=point, tree_root=made.root.hex(), source_point=f"s-{sequence}"
        )
        return publish(
            self.store,
            a_manifest(sequence=sequence, disks=(disk,)),
        )

    def image(self, number: int) -> Path:
        return self.root / "points" / self.points[number - 1] / "disk.img"

    def flip(self, number: int, bit: int) -> None:
        """Change one bit of a sealed point."""
        path = self.image(number)
        path.chmod(0o600)
        with path.open("r+b") as image:
            image.seek(bit // 8)
            byte = image.read(1)[0] ^ (1 << bit % 8)
            image.seek(bit // 8)
            image.write(bytes([byte]))

    def trees(self, pattern: str) -> list[Path]:
        return sorted((self.root / "manifests" / "trees").glob(pattern))


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    made = Pool(tmp_path / "pool")
    rng = random.Random(5)
    made.publish({0: rng.randbytes(3 * MIB), 7 * MIB + 11: rng.randbytes(2 * MIB), SIZE - 600: b"end"})
    return made


def test_a_whole_checkpoint_is_verified(pool: Pool) -> None:
    seen: list[Progress] = []
    (verdict,) = scrub(pool.store, pool.target, "grp", "cp-1", "run-1", on_progress=seen.append)
    assert (verdict.verdict, verdict.by, verdict.damages, verdict.read_bytes) == ("verified", "scrub", (), SIZE)
    assert addenda.load(pool.store) == [verdict]
    assert seen[-1].done_bytes == seen[-1].total_bytes == SIZE
    pool.target.check_drop(pool.points[0])  # no lease is left


def test_every_flipped_bit_is_named_by_disk_and_offset(pool: Pool) -> None:
    rng = random.Random(11)
    # In data, in a hole, in the first and the last byte.
    bits = sorted({0, SIZE * 8 - 1, 5 * MIB * 8, *(rng.randrange(SIZE * 8) for _ in range(40))})
    for bit in bits:
        pool.flip(1, bit)
    (verdict,) = scrub(pool.store, pool.target, "grp", "cp-1", "run-1")
    assert verdict.verdict == "suspect"
    assert {damage.disk_key for damage in verdict.damages} == {"db/vda"}
    named = {
        leaf
        for damage in verdict.damages
        for leaf in range(damage.offset // LEAF_SIZE, -(-(damage.offset + damage.length) // LEAF_SIZE))
    }
    assert named == {bit // 8 // LEAF_SIZE for bit in bits}
    assert all(damage.kind == "content" for damage in verdict.damages)
    assert verdict.damages[-1].offset + verdict.damages[-1].length == SIZE


@pytest.mark.parametrize("pattern", ["*.nodes", "*.index", "*.root"])
@pytest.mark.parametrize("how", ["flip", "cut", "gone"])
def test_a_damaged_tree_is_named_and_the_root_proves_the_content(pool: Pool, pattern: str, how: str) -> None:
    (path,) = pool.trees(pattern)
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 3] ^= 0x10
        path.write_bytes(data)
    (verdict,) = scrub(pool.store, pool.target, "grp", "cp-1", "run-1")
    assert verdict.verdict == "verified"
    assert {damage.kind for damage in verdict.damages} == {"tree"}
    assert "tree" in verdict.reason
    pool.flip(1, 8 * 8 * MIB)
    verdict = scrub(pool.store, pool.target, "grp", "cp-1", "run-2")[0]
    assert verdict.verdict == "suspect"
    assert any(
        damage.kind == "content" and damage.offset <= 8 * MIB < damage.offset + damage.length
        for damage in verdict.damages
    )


def test_what_cannot_be_read_is_named(pool: Pool) -> None:
    pool.image(1).chmod(0o600)
    os.truncate(pool.image(1), 20 * MIB - 100 * KIB)
    (verdict,) = scrub(pool.store, pool.target, "grp", "cp-1", "run-1")
    assert verdict.verdict == "suspect"
    (damage,) = verdict.damages
    assert (damage.kind, damage.offset) == ("unreadable", 20 * MIB - 128 * KIB)
    assert damage.offset + damage.length == SIZE


def test_a_point_that_is_gone_is_named(pool: Pool) -> None:
    shutil.rmtree(pool.image(1).parent)
    (verdict,) = scrub(pool.store, pool.target, "grp", "cp-1", "run-1")
    assert (verdict.verdict, verdict.damages[0].kind) == ("suspect", "missing")


def test_the_others_that_share_the_damage_are_suspect_too(pool: Pool) -> None:
    pool.publish({9 * MIB: b"later"})
    pool.publish({MIB: b"much later"})
    for number in (1, 3):
        pool.flip(number, 8 * (2 * MIB + 5))
    found = scrub(pool.store, pool.target, "grp", "cp-1", "run-1")
    assert [(one.checkpoint_id, one.verdict) for one in found] == [("cp-1", "suspect"), ("cp-3", "suspect")]
    assert found[1].damages[0].offset == 2 * MIB
    assert "cp-1" in found[1].reason


def test_the_same_run_says_the_same_again_and_another_one_looks_anew(pool: Pool) -> None:
    first = scrub(pool.store, pool.target, "grp", "cp-1", "run-1")
    pool.flip(1, 77)
    assert scrub(pool.store, pool.target, "grp", "cp-1", "run-1")[0] == first[0]
    assert scrub(pool.store, pool.target, "grp", "cp-1", "run-2")[0].verdict == "suspect"


def test_the_points_are_held_meanwhile_and_a_cancelled_scrub_says_nothing(pool: Pool) -> None:
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            with pytest.raises(Conflict):
                pool.target.drop(pool.points[0])
            raise Retry("cancelled", code="cancelled")

    with pytest.raises(Retry):
        scrub(pool.store, pool.target, "grp", "cp-1", "run-1", check=check)
    assert addenda.load(pool.store) == []
    pool.target.drop(pool.points[0])


def test_an_unknown_checkpoint_and_a_damaged_manifest_are_errors(pool: Pool) -> None:
    with pytest.raises(NotFound):
        scrub(pool.store, pool.target, "grp", "cp-7", "run-1")
    manifest = pool.publish({0: b"x"})
    path = pool.root / "manifests" / key_of(manifest)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes().replace(b'"sequence": 2', b'"sequence": 7'))
    with pytest.raises(Corruption):
        scrub(pool.store, pool.target, "grp", "cp-2", "run-1")
