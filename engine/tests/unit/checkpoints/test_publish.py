"""Publication, its idempotence, and who is fenced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from doubles.manifests import a_manifest
from farshore.checkpoints import catalog
from farshore.checkpoints.manifest import decode, encode, key_of, load_group, newest, parse_key, validate
from farshore.checkpoints.publish import find, publish
from farshore.errors import Corruption, Fenced, Invalid
from farshore.model.checkpoint import DiskPoint, Manifest
from farshore.platforms.directory import DirectoryManifests

DISK = DiskPoint(disk_key="web/vda", size_bytes=512, point="point-1", tree_root="ab" * 32, source_point="pt-1")


def manifest(sequence: int = 1, checkpoint_id: str | None = None, **changes: Any) -> Manifest:
    named = {"checkpoint_id": checkpoint_id} if checkpoint_id else {}
    return a_manifest(**{"sequence": sequence, "group_id": "grp-a", "disks": (DISK,), **named, **changes})


@pytest.fixture
def store(tmp_path: Path) -> DirectoryManifests:
    return DirectoryManifests(tmp_path / "manifests")


def test_a_checkpoint_is_published_once(store: DirectoryManifests) -> None:
    first = publish(store, manifest())
    assert publish(store, manifest(plan_revision=2)) == first
    assert find(store, manifest()) == first
    assert newest(store, "grp-a") == first
    assert store.list("groups/") == ["groups/grp-a/0000000001-cp-1.json"]


def test_the_newest_is_of_the_highest_epoch(store: DirectoryManifests) -> None:
    for one in (manifest(1), manifest(2), manifest(1, "cp-e2", epoch=2)):
        publish(store, one)
    assert [one.checkpoint_id for one in load_group(store, "grp-a")] == ["cp-1", "cp-2", "cp-e2"]
    assert newest(store, "grp-a") == manifest(1, "cp-e2", epoch=2)
    assert newest(store, "grp-b") is None


@pytest.mark.parametrize(
    ("late", "why"),
    [
        (manifest(2, "cp-x"), "has the sequence of cp-2"),
        (manifest(2, "cp-x", ordered_at=500.0), "has the sequence of cp-2"),
        (manifest(3, epoch=0), "before that of cp-2"),
        (manifest(3, generation=0), "before that of cp-2"),
    ],
)
def test_who_comes_too_late_is_fenced(store: DirectoryManifests, late: Manifest, why: str) -> None:
    publish(store, manifest(2))
    with pytest.raises(Fenced, match=why):
        publish(store, late)
    assert [one.checkpoint_id for one in load_group(store, "grp-a")] == ["cp-2"]


class Racing:
    """A store in which somebody else acts just before one of our calls."""

    def __init__(self, store: DirectoryManifests, key: str, act: Any) -> None:
        self._store, self._key, self._act = store, key, act

    def put_if_absent(self, key: str, data: bytes) -> bool:
        if key.startswith(self._key) and self._act is not None:
            act, self._act = self._act, None
            act()
        return self._store.put_if_absent(key, data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@pytest.mark.parametrize("moment", ["claims/", "groups/"])
@pytest.mark.parametrize("other_ordered_at", [50.0, 500.0])
def test_two_at_once_leave_exactly_one(store: DirectoryManifests, moment: str, other_ordered_at: float) -> None:
    outcomes = []

    def other() -> None:
        try:
            outcomes.append(publish(store, manifest(1, "cp-other", ordered_at=other_ordered_at)).checkpoint_id)
        except Fenced:
            outcomes.append("fenced")

    try:
        outcomes.append(publish(Racing(store, moment, other), manifest(1, "cp-mine")).checkpoint_id)  # type: ignore[arg-type]
    except Fenced:
        outcomes.append("fenced")
    published = [one.checkpoint_id for one in load_group(store, "grp-a")]
    assert len(published) == 1
    assert sorted(outcomes) == sorted(["fenced", *published])


@pytest.mark.parametrize("moment", ["claims/", "groups/"])
def test_nothing_of_a_lower_epoch_is_published_after_a_higher_one(store: DirectoryManifests, moment: str) -> None:
    publish(store, manifest(1))
    racing: Any = Racing(store, moment, lambda: publish(store, manifest(1, "cp-e2", epoch=2)))
    with pytest.raises(Fenced):
        publish(racing, manifest(2, "cp-late"))
    assert [one.checkpoint_id for one in load_group(store, "grp-a")] == ["cp-1", "cp-e2"]


@pytest.mark.parametrize("moment", ["claims/", "groups/"])
def test_a_higher_epoch_is_published_whatever_a_lower_one_does(store: DirectoryManifests, moment: str) -> None:
    publish(store, manifest(1))
    outcomes = []

    def lower() -> None:
        try:
            outcomes.append(publish(store, manifest(2, "cp-late")).checkpoint_id)
        except Fenced:
            outcomes.append("fenced")

    racing: Any = Racing(store, moment, lower)
    publish(racing, manifest(1, "cp-e2", epoch=2))
    assert outcomes == (["cp-late"] if moment == "claims/" else ["fenced"])
    assert newest(store, "grp-a") == manifest(1, "cp-e2", epoch=2)


def test_a_dead_claim_does_not_block_the_sequence(store: DirectoryManifests) -> None:
    store.put_if_absent("claims/grp-a/0000000001-0000000001.json", b'{"checkpoint_id": "cp-dead", "ordered_at": 1.0}')
    for number, one in enumerate((manifest(1, "cp-next", ordered_at=2.0),)):
        assert publish(store, one).checkpoint_id == "cp-next", number
    with pytest.raises(Fenced, match="refused"):
        find(store, manifest(1, "cp-dead"))
    with pytest.raises(Fenced):
        publish(store, manifest(1, "cp-dead", ordered_at=1.0))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"disks": ()}, "disks"),
        ({"disks": (DISK, DISK)}, "disks[1].disk_key"),
        ({"disks": (DISK.model_copy(update={"tree_root": "xyz"}),)}, "disks[0]"),
        ({"disks": (DISK.model_copy(update={"point": ""}),)}, "disks[0]"),
        ({"sequence": -1}, "sequence"),
        ({"checkpoint_id": "a/b"}, "checkpoint_id"),
    ],
)
def test_an_incomplete_manifest_is_refused(store: DirectoryManifests, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as caught:
        publish(store, manifest(**changes))
    assert caught.value.field == field
    assert store.list() == []


def test_encoding_round_trip_and_damage() -> None:
    one = validate(manifest())
    assert decode(encode(one), key_of(one)) == one
    assert parse_key(key_of(one)) == ("grp-a", 1, "cp-1")
    for data in (b"", b"{}", encode(one)[:-10], encode(manifest(2))):
        with pytest.raises(Corruption):
            decode(data, key_of(one))


def test_the_catalog_scan_reports_damage_and_goes_on(store: DirectoryManifests) -> None:
    publish(store, manifest(1))
    publish(store, manifest(2))
    store.put_if_absent("groups/grp-b/0000000001-cp-9.json", b"nonsense")
    found, findings = catalog.scan(store)
    assert [one.checkpoint_id for one in found] == ["cp-1", "cp-2"]
    assert [(one.code, one.subject) for one in findings] == [("manifest-damaged", "groups/grp-b/0000000001-cp-9.json")]


def test_points_and_manifests_are_compared() -> None:
    difference = catalog.compare([manifest(1)], ["point-2", "draft:key"])
    assert difference == catalog.Difference((("cp-1", "point-1"),), ("point-2",), ("key",))
