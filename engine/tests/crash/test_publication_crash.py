"""Every state in which a power cut can leave drafts, points, trees and manifests."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from pathlib import Path

from doubles.crash_disk import Died, Recorder, lay_out, no_syncs, states
from doubles.manifests import a_manifest
from farshore.blocks.digest import leaf_digest
from farshore.checkpoints import catalog
from farshore.checkpoints.manifest import load_group
from farshore.checkpoints.publish import confirm, find, finish_withdrawals, publish, withdraw
from farshore.checkpoints.trees import TreeStore
from farshore.errors import Fenced, NotFound
from farshore.model.checkpoint import DiskPoint, Manifest
from farshore.platforms.directory import DirectoryManifests
from farshore.platforms.file.target import FileTarget

SIZE = 4096
DISKS = ("web/vda", "web/vdb")


def head(sequence: int, checkpoint_id: str, ordered_at: float | None = None) -> Manifest:
    return a_manifest(
        checkpoint_id=checkpoint_id, sequence=sequence, ordered_at=float(sequence) if ordered_at is None else ordered_at
    )


def content(checkpoint_id: str, disk_key: str) -> bytes:
    return f"{checkpoint_id} {disk_key} ".encode() * 20


def copy(target: FileTarget, store: DirectoryManifests, one: Manifest) -> Manifest:
    """Make the points of a checkpoint, as the end of a cycle does, and return its manifest."""
    points = []
    for disk_key in DISKS:
        key = f"{one.checkpoint_id}.{disk_key.replace('/', '.')}"
        draft = target.open(disk_key, SIZE, None, key)
        data = content(one.checkpoint_id, disk_key)
        if draft._point is None:
            draft.write(0, memoryview(data))
        draft.flush()
        trees = TreeStore(store, key)
        tree = trees.update(None, SIZE, [(0, leaf_digest(data))])
        point = draft.seal()
        trees.commit(point, tree)
        draft.close()
        points.append(
            DiskPoint(disk_key=disk_key, size_bytes=SIZE, point=point, tree_root=tree.root.hex(), source_point="pt")
        )
    return one.model_copy(update={"disks": tuple(points)})


def stores(root: Path) -> tuple[FileTarget, DirectoryManifests]:
    return FileTarget(root / "pool"), DirectoryManifests(root / "pool" / "manifests")


def whole(target: FileTarget, store: DirectoryManifests) -> set[str]:
    """Return the visible checkpoints, after proving that all disks of each are there, to the last byte."""
    found, findings = catalog.scan(store)
    assert not findings
    assert not catalog.compare(found, target.points()).missing
    for manifest in found:
        assert [disk.disk_key for disk in manifest.disks] == list(DISKS)
        for disk in manifest.disks:
            buffer = bytearray(SIZE)
            target.read_into(disk.point, 0, memoryview(buffer))
            expected = content(manifest.checkpoint_id, disk.disk_key)
            assert bytes(buffer) == expected + bytes(SIZE - len(expected))
            trees = TreeStore(store, "reader")
            tree = trees.open(disk.point, disk.tree_root)
            assert trees.read(tree, 0, 1) == leaf_digest(expected)
    return {manifest.checkpoint_id for manifest in found}


def test_a_checkpoint_is_there_for_all_disks_or_for_none(tmp_path: Path) -> None:
    live = tmp_path / "live"
    live.mkdir()
    recorder = Recorder(live)
    target, store = stores(live)
    with recorder.recording():
        one = publish(store, copy(target, store, head(1, "cp-1")))
        recorder.note("cp-1")
    tried = visible = 0
    with no_syncs():
        for image, promises in states(recorder):
            root = tmp_path / "state"
            lay_out(image, root)
            target, store = stores(root)
            there = whole(target, store)
            assert there >= set(promises)
            visible += bool(there)
            # The task is given again, and ends with the same checkpoint.
            again = find(store, head(1, "cp-1")) or publish(store, copy(target, store, head(1, "cp-1")))
            assert again == one
            assert whole(target, store) == {"cp-1"}
            shutil.rmtree(root)
            tried += 1
    assert tried > 300, tried
    assert 0 < visible < tried


def test_a_withdrawn_checkpoint_goes_before_its_points(tmp_path: Path) -> None:
    live = tmp_path / "live"
    live.mkdir()
    recorder = Recorder(live)
    target, store = stores(live)
    with recorder.recording():
        for number in (1, 2):
            publish(store, copy(target, store, head(number, f"cp-{number}")))
        del recorder.states[:]
        withdraw(store, target, "grp", "cp-1")
        recorder.note("gone")
    tried = 0
    with no_syncs():
        for image, promises in states(recorder):
            root = tmp_path / "state"
            lay_out(image, root)
            target, store = stores(root)
            there = whole(target, store)
            assert there in ({"cp-1", "cp-2"}, {"cp-2"})
            assert "gone" not in promises or there == {"cp-2"}
            # Whoever comes next ends it.
            finish_withdrawals(store, target)
            with contextlib.suppress(NotFound):
                withdraw(store, target, "grp", "cp-1")
            assert whole(target, store) == {"cp-2"}
            left = catalog.compare(load_group(store, "grp"), target.points())
            assert (left.orphans, left.drafts) == ((), ())
            shutil.rmtree(root)
            tried += 1
    assert tried > 100, tried


def test_a_dead_checkpoint_never_comes_up_beside_the_one_that_took_its_place(tmp_path: Path) -> None:
    live = tmp_path / "live"
    live.mkdir()
    recorder = Recorder(live)
    target, store = stores(live)
    with recorder.recording():
        dead = copy(target, store, head(1, "cp-dead"))
        store.put_if_absent("claims/grp/0000000001-0000000001.json", b'{"checkpoint_id": "cp-dead", "ordered_at": 1.0}')
        later = copy(target, store, head(1, "cp-later", ordered_at=5.0))
        del recorder.states[:]
        publish(store, later)
        recorder.note("cp-later")
    with no_syncs():
        for image, promises in states(recorder):
            root = tmp_path / "state"
            lay_out(image, root)
            target, store = stores(root)
            assert whole(target, store) >= set(promises)
            for one in (dead, later):
                with contextlib.suppress(Fenced):
                    publish(store, one)
            assert len(whole(target, store)) == 1
            shutil.rmtree(root)


def test_what_goes_on_after_a_death_outlives_a_power_cut(tmp_path: Path) -> None:
    """A process dies at each of its calls, and another one ends its work: what that says is done, the disk knows."""
    died = 0
    for calls in itertools.count():
        live = tmp_path / f"live-{calls}"
        live.mkdir()
        recorder = Recorder(live)
        try:
            with recorder.recording(dies_after=calls):
                target, store = stores(live)
                publish(store, copy(target, store, head(1, "cp-1")))
            break
        except Died:
            died += 1
        with recorder.recording():
            target, store = stores(live)
            found = find(store, head(1, "cp-1"))
            one = confirm(store, found) if found else publish(store, copy(target, store, head(1, "cp-1")))
        for image, _ in states(recorder, since=-1):
            root = tmp_path / "state"
            lay_out(image, root)
            target, store = stores(root)
            assert whole(target, store) == {"cp-1"}, f"after {calls} calls"
            assert find(store, head(1, "cp-1")) == one
            shutil.rmtree(root)
    assert died > 100


def test_a_draft_that_a_death_half_removed_is_gone_for_good(tmp_path: Path) -> None:
    died = 0
    for calls in itertools.count():
        live = tmp_path / f"live-{calls}"
        live.mkdir()
        recorder = Recorder(live)
        with recorder.recording():
            target, store = stores(live)
            one = copy(target, store, head(1, "cp-1"))
            target.open("web/vda", SIZE, None, "cp-2.vda").close()
        try:
            with recorder.recording(dies_after=calls):
                target.abandon("cp-2.vda")
                target.drop(one.disks[0].point)
            break
        except Died:
            died += 1
        with recorder.recording():
            target = FileTarget(live / "pool")
            target.abandon("cp-2.vda")
            target.drop(one.disks[0].point)
        assert not [path for path in (live / "pool").rglob(".*") if path.is_dir()], "space that nobody gives back"
        for image, _ in states(recorder, since=-1):
            root = tmp_path / "state"
            lay_out(image, root)
            assert FileTarget(root / "pool").points() == [one.disks[1].point], f"after {calls} calls"
            shutil.rmtree(root)
    assert died > 5
