"""One thing goes wrong in the middle of a cycle: the next attempt, or the next cycle, is whole all the same."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from doubles.rogue_source import RogueSource
from doubles.source_here import SourceHere, raising
from farshore.blocks.digest import leaf_digest
from farshore.checkpoints.trees import TreeStore
from farshore.errors import Corruption, Fenced, Permanent, RestartFromCheckpoint, Retry, Unavailable
from farshore.journal.state import DraftState
from farshore.model.task import ReplicateResult
from farshore.platforms.file.target import FileDraft
from farshore.replication.cycle import DiskCycle
from farshore.replication.resume import sweep
from farshore.transport import connection, frames, links
from farshore.units import LEAF_SIZE


@pytest.fixture
def here(tmp_path: Path) -> Iterator[SourceHere]:
    one = SourceHere(tmp_path)
    yield one
    one.close()


# --- the source -------------------------------------------------------------------------------------------------------


def test_a_cycle_that_begins_again_from_another_point_reads_that_point(
    here: SourceHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, source = here.sites, here.sites.alpha.source
    grant = {"session_id": "cycle-1"}
    snapshot = both.point()
    listing = source.changed

    def vanish(*args: object) -> object:
        monkeypatch.setattr(source, "changed", listing)
        both.release(snapshot, applied=False)
        return listing(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(source, "changed", vanish)
    with pytest.raises(RestartFromCheckpoint):
        here.replicate(both.params(snapshot, grant=grant))
    both.fill("db", "vda", 7, 20)
    fresh = both.point()
    result = here.replicate(both.params(fresh, grant=grant))
    assert both.published(result.manifest) == both.frozen(fresh)


def test_a_listing_that_failed_once_is_not_taken_for_an_empty_one(
    here: SourceHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, source = here.sites, here.sites.alpha.source
    snapshot = both.point()
    monkeypatch.setattr(source, "changed", raising(Retry("busy", code="io-error"), then=source.changed))
    params = both.params(snapshot)
    with pytest.raises(Retry):
        here.replicate(params)
    assert both.published(here.replicate(params).manifest) == both.frozen(snapshot)


def test_an_error_that_nobody_foresaw_at_the_source_is_an_answer(
    here: SourceHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = here.sites.alpha.source
    monkeypatch.setattr(source, "changed", raising(ZeroDivisionError("a bug"), then=source.changed))
    with pytest.raises(Permanent) as caught:
        here.replicate(here.sites.params(here.sites.point()))
    assert caught.value.code == "internal"
    here.applied()


# --- peers ------------------------------------------------------------------------------------------------------------


def test_an_error_whose_evidence_is_made_of_our_fields_is_told(here: SourceHere) -> None:
    body = json.dumps({"duty": "Retry", "code": "busy", "message": "m", "evidence": {"message": "x", "self": 1}})
    rogue = RogueSource(
        here.sites.alpha_tls, lambda number, _: (frames.encode(frames.Type.ERROR, number, body.encode()), b"")
    )
    try:
        with pytest.raises(Retry) as caught:
            here.replicate(here.sites.params(here.sites.point(), address=f"127.0.0.1:{rogue.port}"))
        assert caught.value.code == "busy"
    finally:
        rogue.close()


def test_an_answer_that_cannot_be_understood_is_asked_for_again(
    here: SourceHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the reading of a frame raises, the connection breaks and nothing that was asked is forgotten."""
    body = json.dumps({"duty": "Retry", "code": "busy", "message": "m"})
    rogue = RogueSource(
        here.sites.alpha_tls, lambda number, _: (frames.encode(frames.Type.ERROR, number, body.encode()), b"")
    )
    monkeypatch.setattr(
        connection.frames, "decode_error", raising(ZeroDivisionError("a bug"), times=4, then=frames.decode_error)
    )
    try:
        with pytest.raises(Retry) as caught:
            here.replicate(here.sites.params(here.sites.point(), address=f"127.0.0.1:{rogue.port}"))
        assert caught.value.code == "busy"
        assert rogue.reads == 5
    finally:
        rogue.close()


def test_a_callback_with_a_bug_ends_no_connection(here: SourceHere) -> None:
    both = here.sites
    params = both.params(both.point())
    link = here.links.to(params.address, both.alpha_tls.peer)
    link.use(1)
    called, answered = threading.Event(), threading.Event()

    def buggy(*_: object) -> None:
        called.set()
        raise ZeroDivisionError("a bug")

    def build(number: int) -> bytes:
        return frames.Open(params.grant, 4096).encode(number)

    link.submit(connection.Request(build, buggy, buggy))
    assert called.wait(60)
    link.submit(connection.Request(build, lambda *_: answered.set(), lambda _: None))
    assert answered.wait(60)
    link.unuse()


def test_a_request_that_breaks_every_connection_is_given_up(here: SourceHere) -> None:
    def answer(_number: int, _question: frames.Read) -> tuple[bytes, bytes]:
        for one in list(rogue._sockets):
            try:
                socket.socket.shutdown(one, socket.SHUT_RDWR)
            except OSError:
                continue
        raise OSError("the source's process ends")

    rogue = RogueSource(here.sites.alpha_tls, answer)
    try:
        with pytest.raises(Unavailable) as caught:
            here.replicate(here.sites.params(here.sites.point(), address=f"127.0.0.1:{rogue.port}"))
        assert caught.value.code == "peer-silent"
        assert rogue.reads <= links.SENDS_MAX
    finally:
        rogue.close()


# --- drafts and journals ----------------------------------------------------------------------------------------------


def test_a_draft_that_vanished_after_the_copy_is_copied_again(
    here: SourceHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = here.sites
    snapshot = both.point()
    params = both.params(snapshot)
    monkeypatch.setattr(DiskCycle, "seal", raising(Retry("killed"), then=DiskCycle.seal))
    with pytest.raises(Retry):
        here.replicate(params)
    for point in both.beta.target.points():
        both.beta.target.abandon(point.removeprefix("draft:"))
    assert both.published(here.replicate(params).manifest) == both.frozen(snapshot)


def test_a_draft_whose_daemon_was_lost_goes_on_where_it_was(here: SourceHere, monkeypatch: pytest.MonkeyPatch) -> None:
    both = here.sites
    snapshot = both.point()
    params = both.params(snapshot)
    lost = Retry("the daemon is gone", code="draft-lost")
    monkeypatch.setattr(FileDraft, "seal", raising(lost, then=FileDraft.seal))
    with pytest.raises(Retry):
        here.replicate(params)
    here.service.stop()  # nothing is read again
    result = here.replicate(params)
    assert both.published(result.manifest) == both.frozen(snapshot)
    assert result.stats.resent_bytes == 0


def test_a_leaf_file_that_was_lost_is_made_again_with_the_copy(
    here: SourceHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = here.sites
    snapshot = both.point()
    params = both.params(snapshot)
    monkeypatch.setattr(DraftState, "finish", raising(Retry("killed"), then=DraftState.finish))
    with pytest.raises(Retry):
        here.replicate(params)
    for path in both.journals.rglob("leaves"):
        path.unlink()
    result = here.replicate(params)
    whole(here, result)
    assert both.published(result.manifest) == both.frozen(snapshot)
    assert result.stats.resent_bytes > 0


def test_a_leaf_file_lost_after_the_copy_publishes_nothing(here: SourceHere, monkeypatch: pytest.MonkeyPatch) -> None:
    both = here.sites
    params = both.params(both.point())
    monkeypatch.setattr(DiskCycle, "seal", raising(Retry("killed"), then=DiskCycle.seal))
    with pytest.raises(Retry):
        here.replicate(params)
    for path in both.journals.rglob("leaves"):
        path.unlink()
    with pytest.raises(Corruption) as caught:
        here.replicate(params)
    assert caught.value.code == "leaf-file"
    assert both.beta.target.points() == both.beta.manifests.list("groups/") == []
    assert list(both.journals.iterdir()) == []
    whole(here, here.replicate(params))


def test_a_draft_that_vanishes_while_it_is_taken_up_is_copied_by_the_next_attempt(
    here: SourceHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, target = here.sites, here.sites.beta.target
    snapshot = both.point()
    params = both.params(snapshot)
    monkeypatch.setattr(DiskCycle, "seal", raising(Retry("killed"), then=DiskCycle.seal))
    with pytest.raises(Retry):
        here.replicate(params)
    [draft] = target.points()
    looks = iter([[draft]])

    def points() -> list[str]:
        seen = next(looks, None)
        if seen is None:
            monkeypatch.undo()
            target.abandon(draft.removeprefix("draft:"))
            return []
        return seen

    monkeypatch.setattr(target, "points", points)
    with pytest.raises(Retry) as caught:
        here.replicate(params)
    assert caught.value.code == "draft-gone"
    assert both.published(here.replicate(params).manifest) == both.frozen(snapshot)


# --- digest trees -----------------------------------------------------------------------------------------------------


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


@pytest.mark.parametrize("strike", [damage, Path.unlink])
@pytest.mark.parametrize("incremental", [True, False])
def test_a_base_whose_digests_are_damaged_is_verified_once(
    here: SourceHere, strike: Callable[[Path], None], incremental: bool
) -> None:
    both = here.sites
    here.applied()
    for path in (both.beta_root / "pool" / "manifests" / "trees").glob("*.nodes"):
        strike(path)
    both.fill("db", "vda", 5, 3)
    snapshot = both.point()
    params = both.params(snapshot)
    if not incremental:
        disk = params.disks[0].model_copy(update={"incremental": False, "reason": "no change log"})
        params = params.model_copy(update={"disks": (disk,)})
    result = here.replicate(params)
    assert both.published(result.manifest) == both.frozen(snapshot)
    assert result.stats.mode == "verify"
    whole(here, result)
    both.release(snapshot, applied=True)
    both.fill("db", "vda", 6, 3)
    result = here.applied()
    assert result.stats.mode == "incremental"
    whole(here, result)


def whole(here: SourceHere, result: ReplicateResult) -> None:
    """Check that the digests of a checkpoint are those of its content."""
    content = here.sites.published(result.manifest)
    for disk in result.manifest.disks:
        store = TreeStore(here.sites.beta.manifests, "reader")
        found = store.read(store.open(disk.point, disk.tree_root), 0, disk.size_bytes // LEAF_SIZE)
        data = content[disk.disk_key]
        assert found == b"".join(leaf_digest(data[at : at + LEAF_SIZE]) for at in range(0, len(data), LEAF_SIZE))


# --- what a checkpoint that is given up leaves ------------------------------------------------------------------------


def test_a_refused_checkpoint_leaves_no_point(here: SourceHere, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its disks were sealed when another checkpoint took its place."""
    both = here.sites
    snapshot = both.point()
    params = both.params(snapshot, checkpoint_id="cp-dead")
    monkeypatch.setattr(DraftState, "seal", raising(Retry("killed"), then=DraftState.seal))
    with pytest.raises(Retry):
        here.replicate(params)
    assert len(both.beta.target.points()) == 1
    head = params.manifest
    both.beta.manifests.put_if_absent(
        f"groups/{head.group_id}/{head.sequence:010d}-cp-dead.json", b'{"refused_for": "cp-later"}'
    )
    with pytest.raises(Fenced):
        here.replicate(params)
    assert sweep(both.beta.target, both.beta.manifests, both.journals, ()) == ["cp-dead"]
    assert both.beta.target.points() == []
    assert list(both.journals.iterdir()) == []


@pytest.mark.parametrize("by", ["sweep", "next"])
def test_a_point_sealed_but_not_recorded_is_removed_with_its_checkpoint(
    here: SourceHere, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    both, target = here.sites, here.sites.beta.target
    params = both.params(both.point())
    monkeypatch.setattr(TreeStore, "commit", raising(Retry("killed"), then=TreeStore.commit))
    with pytest.raises(Retry):
        here.replicate(params)
    [orphan] = target.points()
    assert not orphan.startswith("draft:")
    if by == "sweep":
        assert len(sweep(target, both.beta.manifests, both.journals, ())) == 1
        assert target.points() == []
    else:
        result = here.applied()
        assert target.points() == [disk.point for disk in result.manifest.disks]
    assert list(both.journals.iterdir()) == []
