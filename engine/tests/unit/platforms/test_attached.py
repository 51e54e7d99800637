"""Disks that are named by their paths, as a source and as a target."""

from __future__ import annotations

from pathlib import Path

import pytest
from farshore.errors import Invalid, NotFound
from farshore.platforms.contract import Kind
from farshore.platforms.file.attached import AttachedDisk, AttachedSource, AttachedTarget, base_of

KEY = "attached/0-abc"


def filled(path: Path, size: int = 65536) -> Path:
    path.write_bytes(b"x" * size)
    return path


def target(tmp_path: Path) -> AttachedTarget:
    return AttachedTarget({KEY: tmp_path / "b.img"}, tmp_path / "state")


def test_what_was_there_does_not_shine_through_a_copy_without_a_base(tmp_path: Path) -> None:
    filled(tmp_path / "b.img", 100_000)
    target(tmp_path).open(KEY, 8192, None, "draft").close()
    assert (tmp_path / "b.img").read_bytes() == bytes(8192)


def test_a_draft_is_found_again_with_what_was_written(tmp_path: Path) -> None:
    draft = target(tmp_path).open(KEY, 8192, None, "draft")
    draft.write(4096, memoryview(b"kept"))
    draft.flush()
    draft.close()
    again = target(tmp_path).open(KEY, 8192, None, "draft")
    buffer = bytearray(4)
    again.read_into(4096, memoryview(buffer))
    assert bytes(buffer) == b"kept"
    assert target(tmp_path).points() == ["draft:draft"]


def test_a_point_outlives_that_its_draft_is_abandoned(tmp_path: Path) -> None:
    one = target(tmp_path)
    point = one.open(KEY, 8192, None, "draft").seal()
    one.abandon("draft")
    assert one.has(point)
    assert one.points() == [point]
    one.drop(point)
    assert not one.has(point)
    assert (tmp_path / "b.img").is_file()  # its user's


def test_an_abandoned_draft_is_forgotten(tmp_path: Path) -> None:
    one = target(tmp_path)
    one.open(KEY, 8192, None, "draft").abandon()
    assert one.points() == []


def test_a_base_has_to_be_there_with_the_disks_size(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        target(tmp_path).open(KEY, 8192, base_of(KEY), "draft")
    filled(tmp_path / "b.img", 8192)
    assert target(tmp_path).has(base_of(KEY))
    target(tmp_path).open(KEY, 8192, base_of(KEY), "draft").close()
    assert (tmp_path / "b.img").read_bytes() == b"x" * 8192


def test_a_disk_that_was_written_is_another_one(tmp_path: Path) -> None:
    disk = AttachedDisk(filled(tmp_path / "a.img"))
    before = disk.key(0)
    assert disk.key(0) == before
    with (tmp_path / "a.img").open("r+b") as image:
        image.write(b"changed")
    assert disk.key(0) != before


def test_changes_are_told_as_they_were_named(tmp_path: Path) -> None:
    disk = AttachedDisk(filled(tmp_path / "a.img"), ((0, 512), (4096, 8192)))
    source = AttachedSource([disk], "now")
    point = source.find("now")
    assert point is not None
    [facts] = point.disks
    assert facts.incremental
    extents = list(source.changed(point, facts.disk_key, "base"))
    assert [(one.offset, one.length, one.kind) for one in extents] == [(0, 512, Kind.DATA), (4096, 8192, Kind.DATA)]
    assert source.find("then") is None


def test_what_cannot_be_a_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for path in (tmp_path / "empty", tmp_path, tmp_path / "missing"):
        with pytest.raises(Invalid) as caught:
            AttachedDisk(path).size()
        assert caught.value.field == "disk"
        assert str(path) in caught.value.message
