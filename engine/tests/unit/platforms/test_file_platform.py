"""Platform ``file`` where the contract says nothing: its settings, sparse files, a full pool."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from farshore.errors import Conflict, FarshoreError, Invalid, NoSpace, NotFound, RestartFromCheckpoint
from farshore.platforms.contract import Extent, Kind
from farshore.platforms.directory import DirectoryManifests
from farshore.platforms.file import FileMachine, FileTarget, locks
from farshore.platforms.file.sparse import clone, data_ranges, punch_hole
from farshore.platforms.file.target import FileDraft
from farshore.platforms.registry import open_platform
from farshore.units import KIB, MIB


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({}, "platform.type"),
        ({"type": "paper"}, "platform.type"),
        ({"type": "file"}, "platform.root"),
        ({"type": "file", "root": "relative/path"}, "platform.root"),
        ({"type": "file", "root": 7}, "platform.root"),
    ],
)
def test_wrong_settings_name_their_field(config: dict[str, object], field: str) -> None:
    with pytest.raises(Invalid) as caught:
        open_platform(config)
    assert caught.value.field == field


def test_an_inventory_lists_machines_with_their_disks(tmp_path: Path) -> None:
    platform = open_platform({"type": "file", "root": str(tmp_path)})
    assert platform.inventory().machines == ()
    FileMachine.create(tmp_path, "web-1", {"vda": MIB, "vdb": 2 * MIB}, name="web")
    inventory = platform.inventory()
    assert [(facts.machine_id, facts.name) for facts in inventory.machines] == [("web-1", "web")]
    assert [disk.size_bytes for disk in inventory.machines[0].disks] == [MIB, 2 * MIB]
    assert inventory.pool is not None
    assert platform.compute is None


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    platform = open_platform({"type": "file", "root": str(tmp_path)})
    with pytest.raises((Invalid, NotFound)):
        FileMachine(tmp_path, name)
    with pytest.raises(Invalid):
        platform.source.find(name)
    with pytest.raises(Invalid):
        platform.target.open("web/vda", MIB, None, name)
    with pytest.raises(Invalid):
        platform.target.has(name)


def test_a_damaged_description_names_its_file(tmp_path: Path) -> None:
    machine = FileMachine.create(tmp_path, "web", {"vda": MIB})
    (machine.path / "machine.json").write_text("{", encoding="utf-8")
    with pytest.raises(Invalid, match=r"machine\.json"):
        _ = machine.facts


def test_writes_over_the_end_are_refused(tmp_path: Path) -> None:
    machine = FileMachine.create(tmp_path, "web", {"vda": MIB})
    with pytest.raises(Invalid):
        machine.write("vda", MIB - 1, b"xy")
    draft = FileTarget(tmp_path / "pool").open("web/vda", MIB, None, "key")
    for call in (lambda: draft.write(MIB - 1, memoryview(b"xy")), lambda: draft.write_zeroes(MIB, 1)):
        with pytest.raises(FarshoreError):
            call()
    draft.close()


def test_a_draft_of_something_else_is_refused(tmp_path: Path) -> None:
    target = FileTarget(tmp_path / "pool")
    target.open("web/vda", MIB, None, "key").close()
    for disk_key, size in (("web/vdb", MIB), ("web/vda", 2 * MIB)):
        with pytest.raises(Conflict) as caught:
            target.open(disk_key, size, None, "key")
        assert caught.value.code == "draft-mismatch"


def test_a_damaged_draft_is_told(tmp_path: Path) -> None:
    target = FileTarget(tmp_path / "pool")
    target.open("web/vda", MIB, None, "key").close()
    (tmp_path / "pool" / "drafts" / "key" / "draft.json").unlink()
    with pytest.raises(RestartFromCheckpoint) as caught:
        target.open("web/vda", MIB, None, "key")
    assert caught.value.code == "draft-damaged"


def test_changed_blocks_that_are_holes_come_as_zero(tmp_path: Path) -> None:
    machine = FileMachine.create(tmp_path, "web", {"vda": MIB})
    machine.write("vda", 0, b"x" * MIB)
    source = open_platform({"type": "file", "root": str(tmp_path)}).source
    source.snapshot("grp", "pt-0", ["web"], {}, "machine")
    source.release("grp", "pt-0", ["web"], applied=True)
    machine.discard("vda", 128 * KIB, 256 * KIB)
    machine.write("vda", 640 * KIB, b"y")
    snapshot = source.snapshot("grp", "pt-1", ["web"], {"web/vda": "pt-0"}, "machine")
    assert list(source.changed(snapshot, "web/vda", "pt-0")) == [
        Extent(128 * KIB, 256 * KIB, Kind.ZERO),
        Extent(640 * KIB, 64 * KIB, Kind.DATA),
    ]
    with pytest.raises(RestartFromCheckpoint):
        list(source.changed(snapshot, "web/vda", "pt-9"))


def test_copies_stay_sparse_and_grow_by_zeros(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    with one.open("wb") as handle:
        handle.truncate(64 * MIB)
        os.pwrite(handle.fileno(), b"x" * MIB, 8 * MIB)
        os.pwrite(handle.fileno(), b"y", 64 * MIB - 1)
    clone(one, other, 80 * MIB)
    assert other.stat().st_size == 80 * MIB
    assert other.stat().st_blocks * 512 <= 2 * MIB
    assert other.read_bytes() == one.read_bytes() + bytes(16 * MIB)
    with other.open("r+b") as handle:
        punch_hole(handle.fileno(), 8 * MIB, MIB)
        assert [span for span in data_ranges(handle.fileno(), 80 * MIB) if span[0] == 8 * MIB] == []
    assert other.read_bytes()[: 9 * MIB] == bytes(9 * MIB)


@pytest.fixture
def small_pool(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    pool = tmp_path / "pool"
    pool.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "farshore-test", str(pool)], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("needs the right to mount a small file system")
    yield pool
    subprocess.run(["umount", str(pool)], check=True)


def fill(draft: FileDraft, size: int) -> None:
    for offset in range(0, size, MIB):
        draft.write(offset, memoryview(b"x" * MIB))


def test_a_manifest_store_that_is_full_says_so(small_pool: Path) -> None:
    store = DirectoryManifests(small_pool / "manifests")
    with pytest.raises(NoSpace):
        store.put_if_absent("trees/a.nodes", bytes(5 * MIB))
    assert store.list() == []
    assert store.put_if_absent("trees/a.nodes", bytes(MIB))


def test_a_pool_that_is_full_says_so(small_pool: Path) -> None:
    target = FileTarget(small_pool)
    draft = target.open("web/vda", 16 * MIB, None, "key")
    with pytest.raises(NoSpace) as caught:
        fill(draft, 16 * MIB)
    assert caught.value.code == "pool-full"
    assert caught.value.hint
    draft.abandon()
    assert target.points() == []
    assert target.usage().free_bytes > 3 * MIB


def test_a_base_that_does_not_fit_leaves_no_draft(small_pool: Path) -> None:
    target = FileTarget(small_pool)
    draft = target.open("web/vda", 3 * MIB, None, "base")
    fill(draft, 3 * MIB)
    point = draft.seal()
    draft.close()
    with pytest.raises(NoSpace):
        target.open("web/vda", 3 * MIB, point, "next")
    assert target.points() == [point]


def is_locked(image: Path) -> bool:
    """Say whether somebody who opens the image now is refused the lock; for ``flock`` any other open file is that."""
    with image.open("rb") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_draft_is_written_through_the_file_that_is_locked(tmp_path: Path) -> None:
    """Only so does the kernel of an NFS 4 client know whose write it is that comes after the lock was lost."""
    target = FileTarget(tmp_path)
    draft = target.open("web/vda", MIB, None, "draft-1")
    assert "FLOCK" in Path(f"/proc/self/fdinfo/{draft._fd}").read_text()
    image = tmp_path / "drafts" / "draft-1" / "disk.img"
    assert is_locked(image)
    draft.close()
    assert not is_locked(image)


def test_pages_are_let_go_once_they_are_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []
    fdatasync, fadvise = os.fdatasync, os.posix_fadvise
    monkeypatch.setattr(os, "fdatasync", lambda fd: (fdatasync(fd), calls.append((fd, "durable"))))
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, *how: (fadvise(fd, *how), calls.append((fd, *how))))
    draft = FileTarget(tmp_path).open("web/vda", MIB, None, "draft-1")
    draft.write(0, memoryview(b"x" * MIB))
    draft.flush()
    assert calls == [(draft._fd, "durable"), (draft._fd, 0, 0, os.POSIX_FADV_DONTNEED)]
    draft.close()


def test_the_lock_lasts_until_the_last_user_has_closed(tmp_path: Path) -> None:
    target = FileTarget(tmp_path)
    image = tmp_path / "drafts" / "draft-1" / "disk.img"
    drafts = [target.open("web/vda", MIB, None, "draft-1") for _ in range(3)]
    for draft in drafts:
        assert is_locked(image)
        draft.write(0, memoryview(b"x" * 512))
        draft.flush()
        draft.close()
    assert not is_locked(image)


def test_an_image_that_was_made_anew_since_it_was_locked_is_not_written(tmp_path: Path) -> None:
    target = FileTarget(tmp_path)
    target.open("web/vda", MIB, None, "draft-1").close()
    image = tmp_path / "drafts" / "draft-1" / "disk.img"
    lock = locks.take(image, "draft-1")
    image.rename(image.with_name("old"))
    image.write_bytes(b"new")
    with pytest.raises(FileNotFoundError):
        lock.open(image)
    lock.release()
    assert not is_locked(image.with_name("old"))


def test_a_lock_that_was_taken_to_remove_an_image_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "disk.img"
    image.touch(0o400)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write to anything
    lock = locks.take(image, "draft-1")
    with pytest.raises(Conflict):
        lock.open(image)
    lock.release()
