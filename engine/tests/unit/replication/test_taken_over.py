"""What a node leaves behind when another one has published its checkpoint."""

from __future__ import annotations

from pathlib import Path

from doubles.manifests import a_manifest
from farshore.checkpoints.publish import publish
from farshore.journal.state import Copied, DraftState, Sealed, Subject
from farshore.model.checkpoint import DiskPoint, Manifest
from farshore.platforms.directory import DirectoryManifests
from farshore.platforms.file.target import FileTarget
from farshore.replication import resume

SIZE = 1 << 20


def head(points: tuple[str, ...]) -> Manifest:
    disks = tuple(
        DiskPoint(disk_key=f"web/vd{n}", size_bytes=SIZE, point=point, tree_root="ab" * 32, source_point="pt-1")
        for n, point in enumerate(points)
    )
    return a_manifest(term=2, disks=disks)


def begin(target: FileTarget, folder: Path, disk_key: str, term: int) -> DraftState:
    subject = Subject("grp", "cp-1", disk_key, SIZE, "pt-1", None, None, 1)
    state = DraftState(folder / resume.disk_folder(disk_key), subject, resume.draft_key("cp-1", disk_key, term))
    target.open(disk_key, SIZE, None, state.draft_key).close()
    return state


def test_drafts_and_points_that_another_node_made_needless_are_removed(tmp_path: Path) -> None:
    target, manifests = FileTarget(tmp_path / "pool"), DirectoryManifests(tmp_path / "pool" / "manifests")
    theirs = target.open("web/vd0", SIZE, None, "theirs").seal()
    folder = tmp_path / "journals" / "cp-1"
    copied = begin(target, folder, "web/vd0", 1)
    copied.finish(Copied("ab" * 32, "full", ""))
    target.open("web/vd0", SIZE, None, copied.draft_key).seal()  # and died before it was recorded
    sealed = begin(target, folder, "web/vd1", 1)
    sealed.finish(Copied("ab" * 32, "full", ""))
    sealed.seal(Sealed(target.open("web/vd1", SIZE, None, sealed.draft_key).seal(), "ab" * 32))
    begun = begin(target, folder, "web/vd2", 1)
    for state in (copied, sealed, begun):
        state.close()
    publish(manifests, head((theirs,)))
    assert resume.sweep(target, manifests, tmp_path / "journals", ()) == ["cp-1"]
    assert target.points() == [theirs]
    assert not folder.exists()


def test_points_that_are_published_stay(tmp_path: Path) -> None:
    target, manifests = FileTarget(tmp_path / "pool"), DirectoryManifests(tmp_path / "pool" / "manifests")
    folder = tmp_path / "journals" / "cp-1"
    points = []
    for index, recorded in enumerate((True, False)):
        state = begin(target, folder, f"web/vd{index}", 1)
        state.finish(Copied("ab" * 32, "full", ""))
        points.append(target.open(f"web/vd{index}", SIZE, None, state.draft_key).seal())
        if recorded:
            state.seal(Sealed(points[-1], "ab" * 32))
        state.close()
    publish(manifests, head(tuple(points)))
    assert resume.sweep(target, manifests, tmp_path / "journals", ()) == ["cp-1"]
    assert target.points() == sorted(points)
