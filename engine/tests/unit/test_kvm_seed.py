"""Images that become the base of a first copy, and scrubs, on layers of real storage daemons. Needs QEMU's tools."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles.manifests import a_manifest
from farshore.blocks.digest import leaf_digest
from farshore.checkpoints.publish import publish
from farshore.checkpoints.scrub import scrub
from farshore.checkpoints.trees import TreeStore
from farshore.errors import Invalid, NotFound
from farshore.model.checkpoint import DiskPoint, Manifest
from farshore.platforms.directory import DirectoryManifests
from farshore.platforms.kvm.target import KvmTarget
from farshore.platforms.nbd.launcher import Launcher
from farshore.replication.seeding import let_go
from farshore.units import KIB, LEAF_SIZE, MIB

SIZE = 8 * MIB
DISK = "6f9c9b0a-52ad-4f0e-9d0f-5a5b4b1a7c11/vda"


@pytest.fixture
def target(tmp_path: Path) -> Iterator[KvmTarget]:
    launcher = Launcher(tmp_path / "d")
    made = KvmTarget(tmp_path / "pool", launcher)
    yield made
    made.close()
    for key in list(launcher.keys()):
        launcher.stop(key)


def content(target: KvmTarget, point: str, size: int = SIZE) -> bytes:
    buffer = bytearray(size)
    target.read_into(point, 0, memoryview(buffer))
    return bytes(buffer)


def seed(target: KvmTarget, name: str, data: bytes, *options: str) -> Path:
    folder = target.layers.pool / "seeds"
    folder.mkdir(exist_ok=True)
    raw = folder / f"{name}.raw"
    raw.write_bytes(data)
    if options:
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, folder / name, *options], check=True)
    return folder / name


@pytest.mark.parametrize("name", ["db.raw", "db.qcow2"])
def test_an_image_becomes_a_point_once(target: KvmTarget, name: str) -> None:
    data = random.Random(3).randbytes(3 * MIB)
    if name.endswith("qcow2"):
        seed(target, name, data, "-o", "cluster_size=4096")
    else:
        seed(target, "db", data)
    point = target.adopt(DISK, SIZE, f"seeds/{name}", "seed.1")
    assert content(target, point) == data + bytes(SIZE - len(data))
    assert target.adopt(DISK, SIZE, "seeds/gone.raw", "seed.1") == point
    draft = target.open(DISK, SIZE, point, "cp-1.vda")
    draft.write(5 * MIB, memoryview(b"more" * 1024))
    grown = draft.seal()
    expected = content(target, grown)
    target.drop(point)
    assert target.points() == [grown]
    assert content(target, grown) == expected
    assert expected[: len(data)] == data


def test_an_image_that_reads_from_other_files_is_refused(target: KvmTarget, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * MIB)
    folder = target.layers.pool / "seeds"
    folder.mkdir()
    for name, options in (("on.qcow2", ["-F", "raw", "-b", str(secret)]), ("ext.qcow2", ["-o", f"data_file={secret}"])):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, folder / name, str(MIB)], check=True)
        with pytest.raises(Invalid) as caught:
            target.adopt(DISK, SIZE, f"seeds/{name}", f"seed.{name}")
        assert caught.value.code == "seed-not-whole"
    # A guest may write what looks like a header to a raw disk: it stays raw.
    (folder / "looks.raw").write_bytes((folder / "on.qcow2").read_bytes())
    point = target.adopt(DISK, SIZE, "seeds/looks.raw", "seed.looks")
    assert content(target, point)[:4] == b"QFI\xfb"
    with pytest.raises(NotFound):
        target.adopt(DISK, SIZE, "seeds/none.raw", "seed.none")
    with pytest.raises(Invalid):
        target.adopt(DISK, 64 * KIB, "seeds/looks.raw", "seed.small")


def checkpoint(target: KvmTarget, store: DirectoryManifests, number: int, point: str) -> Manifest:
    data = content(target, point)
    trees = TreeStore(store, f"cp-{number}")
    leaves = [leaf_digest(data[at : at + LEAF_SIZE]) for at in range(0, SIZE, LEAF_SIZE)]
    made = trees.update(None, SIZE, enumerate(leaves))
    trees.commit(point, made)
    disk = DiskPoint(disk_key=DISK, size_bytes=SIZE, point=point, tree_root=made.root.hex(), source_point=f"s-{number}")
    return publish(
        store,
        a_manifest(sequence=number, disks=(disk,)),
    )


def flip(path: Path, needle: bytes) -> None:
    """Change one bit of an image where ``needle`` lies in it."""
    path.chmod(0o600)
    data = path.read_bytes()
    at = data.index(needle)
    with path.open("r+b") as image:
        image.seek(at + 7)
        image.write(bytes([data[at + 7] ^ 4]))
    os.sync()


def test_a_flipped_bit_of_a_layer_is_named_in_all_checkpoints_that_show_it(target: KvmTarget, tmp_path: Path) -> None:
    store = DirectoryManifests(tmp_path / "pool" / "manifests")
    rng = random.Random(9)
    parts = [rng.randbytes(128 * KIB) for _ in range(3)]
    draft = target.open(DISK, SIZE, None, "k1")
    draft.write(MIB, memoryview(parts[0]))
    draft.write(3 * MIB, memoryview(parts[1]))
    first = draft.seal()
    checkpoint(target, store, 1, first)
    draft = target.open(DISK, SIZE, first, "k2")
    draft.write(MIB, memoryview(parts[2]))
    second = draft.seal()
    checkpoint(target, store, 2, second)
    assert scrub(store, target, "grp", "cp-2", "run-1")[0].verdict == "verified"
    target._close_points()
    flip(target.path(first), parts[1][70 * KIB : 71 * KIB])
    flip(target.path(first), parts[0][:KIB])  # covered by the second layer
    found = scrub(store, target, "grp", "cp-1", "run-2")
    assert [(one.checkpoint_id, one.verdict) for one in found] == [("cp-1", "suspect"), ("cp-2", "suspect")]
    assert [damage.offset for damage in found[0].damages] == [MIB, 3 * MIB + 64 * KIB]
    assert [damage.offset for damage in found[1].damages] == [3 * MIB + 64 * KIB]
    target.check_drop(first)  # no lease is left


def test_a_layer_that_cannot_be_opened_is_damage_too(target: KvmTarget, tmp_path: Path) -> None:
    store = DirectoryManifests(tmp_path / "pool" / "manifests")
    draft = target.open(DISK, SIZE, None, "k1")
    draft.write(MIB, memoryview(b"x" * 128 * KIB))
    point = draft.seal()
    checkpoint(target, store, 1, point)
    target._close_points()
    path = target.path(point)
    path.chmod(0o600)
    with path.open("r+b") as image:
        image.write(b"no image")
    (verdict,) = scrub(store, target, "grp", "cp-1", "run-1")
    assert (verdict.verdict, verdict.damages[0].kind) == ("suspect", "unreadable")
    assert verdict.damages[0].length == SIZE


def test_a_seed_goes_once_its_disk_is_published(target: KvmTarget, tmp_path: Path) -> None:
    import json
    import time

    store = DirectoryManifests(tmp_path / "pool" / "manifests")
    seed(target, "db", b"z" * MIB)
    body = {"disk_key": DISK, "size_bytes": SIZE, "key": "seed.1", "at": time.time()}
    store.put_if_absent("seeds/grp/seed.1-cp-1.json", json.dumps(body).encode())
    point = target.adopt(DISK, SIZE, "seeds/db.raw", "seed.1")
    assert let_go(target, store) == []
    draft = target.open(DISK, SIZE, point, "k1")
    grown = draft.seal()
    checkpoint(target, store, 1, grown)
    assert let_go(target, store) == ["seed.1"]
    assert target.points() == [grown]
    assert content(target, grown)[:MIB] == b"z" * MIB
