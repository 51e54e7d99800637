"""Taking checkpoints away while something may use their points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from farshore.checkpoints.manifest import key_of, load_group
from farshore.checkpoints.publish import finish_withdrawals, publish, withdraw
from farshore.errors import Conflict, NotFound, Retry
from farshore.model.checkpoint import DiskPoint, Manifest
from farshore.platforms.directory import DirectoryManifests
from farshore.platforms.file.target import FileTarget

SIZE = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> DirectoryManifests:
    return DirectoryManifests(tmp_path / "manifests")


@pytest.fixture
def target(tmp_path: Path) -> FileTarget:
    return FileTarget(tmp_path / "pool")


@pytest.fixture
def published(store: DirectoryManifests, target: FileTarget) -> Manifest:
    points = []
    for disk in ("vda", "vdb"):
        draft = target.open(f"db/{disk}", SIZE, None, f"cp-1.{disk}")
        points.append(draft.seal())
        draft.close()
    values: dict[str, Any] = {
        "checkpoint_id": "cp-1",
        "group_id": "grp",
        "plan": "p",
        "plan_revision": 1,
        "catalog_id": "c",
        "generation": 1,
        "epoch": 1,
        "term": 1,
        "sequence": 1,
        "source_site": "alpha",
        "target_site": "beta",
        "level": "machine",
        "ordered_at": 100.0,
        "taken_at": 100.0,
        "machines": (),
        "disks": tuple(
            DiskPoint(disk_key=f"db/{disk}", size_bytes=SIZE, point=point, tree_root="ab" * 32, source_point="pt-1")
            for disk, point in zip(("vda", "vdb"), points, strict=True)
        ),
    }
    return publish(store, Manifest.model_validate(values))


def test_a_checkpoint_in_use_stays_whole(store: DirectoryManifests, target: FileTarget, published: Manifest) -> None:
    points = [disk.point for disk in published.disks]
    target.lease(points[1], "drill-1")
    with pytest.raises(Conflict) as caught:
        withdraw(store, target, "grp", "cp-1")
    assert caught.value.code == "in-use"
    assert caught.value.evidence == {"checkpoint": "cp-1", "point": points[1], "cause": "point-leased"}
    assert load_group(store, "grp") == [published]
    assert finish_withdrawals(store, target) == []
    assert all(target.has(point) for point in points)
    target.release("drill-1")
    withdraw(store, target, "grp", "cp-1")
    assert target.points() == store.list("groups/") == store.list("withdrawn/") == []
    with pytest.raises(NotFound):
        withdraw(store, target, "grp", "cp-1")


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("error", [Conflict("in use", code="point-leased"), Retry("busy", code="daemon-hangs")])
def test_a_point_that_comes_into_use_meanwhile_is_left_to_the_sweep(
    store: DirectoryManifests,
    target: FileTarget,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def refuse(_point: str) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(target, "drop", refuse)
        withdraw(store, target, "grp", "cp-1")
        assert finish_withdrawals(store, target) == []
    assert load_group(store, "grp") == []
    assert len(target.points()) == 2
    assert finish_withdrawals(store, target) == ["cp-1"]
    assert target.points() == store.list("groups/") == store.list("withdrawn/") == []


def test_a_withdrawal_that_was_only_noted_waits_for_the_use_to_end(
    store: DirectoryManifests, target: FileTarget, published: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(_key: str) -> None:
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(store, "tombstone", stopped)
        with pytest.raises(OSError, match="killed"):
            withdraw(store, target, "grp", "cp-1")
    target.lease(published.disks[0].point, "drill-1")
    assert finish_withdrawals(store, target) == []
    assert store.list(key_of(published)) == [key_of(published)]
    target.release("drill-1")
    assert finish_withdrawals(store, target) == ["cp-1"]
    assert target.points() == []
