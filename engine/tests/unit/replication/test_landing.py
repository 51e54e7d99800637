"""Marks: what is written is recorded as durable, or nobody takes it for that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from farshore.blocks.descriptors import Chunk
from farshore.errors import FarshoreError, NoSpace, Permanent
from farshore.journal.state import DraftState, Subject
from farshore.platforms.file.target import FileTarget
from farshore.replication.flow import NodeWindow
from farshore.replication.landing import Landing
from farshore.units import LEAF_SIZE, MIB

SUBJECT = Subject("grp", "cp-1", "web/vda", MIB, "pt-1", None, None, 1)
ZEROS = Chunk(((0, LEAF_SIZE),), LEAF_SIZE, zero=True)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[DraftState]:
    state = DraftState(tmp_path / "journal", SUBJECT, "draft-1")
    yield state
    state.close()


@pytest.fixture
def landing(tmp_path: Path, state: DraftState) -> Iterator[Landing]:
    target, node = FileTarget(tmp_path / "pool"), NodeWindow(64 * MIB)
    draft = target.open(SUBJECT.disk_key, SUBJECT.size_bytes, None, "draft-1")
    landing = Landing(SUBJECT.disk_key, state, node.disk((MIB,), MIB, MIB), target.caps, node.writers)
    landing.into(draft, based=False)
    yield landing
    landing.close()
    draft.close()


def failing_once(error: Exception, then: Callable[..., None]) -> Callable[..., None]:
    errors = [error]

    def call(*args: object) -> None:
        if errors:
            raise errors.pop()
        then(*args)

    return call


def flush_fails(landing: Landing, _state: DraftState, monkeypatch: pytest.MonkeyPatch) -> None:
    error = Permanent("input/output error", code="file-io")
    monkeypatch.setattr(landing._draft, "flush", failing_once(error, lambda: None))


def journal_fails(_landing: Landing, state: DraftState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "mark", failing_once(OSError(28, "No space left"), state.mark))


@pytest.mark.parametrize(("fails", "kind"), [(flush_fails, Permanent), (journal_fails, NoSpace)])
def test_no_mark_is_made_after_one_that_failed(
    landing: Landing,
    state: DraftState,
    monkeypatch: pytest.MonkeyPatch,
    fails: Callable[..., None],
    kind: type[FarshoreError],
) -> None:
    landing.zero(ZEROS)
    fails(landing, state, monkeypatch)
    with pytest.raises(kind):
        landing.finish()
    with pytest.raises(kind):
        landing.finish()  # as by the disk's own thread, when the mark failed in the background
    assert state.cover() == []
    landing.close()
    assert state.cover() == []


def test_what_is_written_is_recorded(landing: Landing, state: DraftState) -> None:
    landing.zero(ZEROS)
    landing.finish()
    assert state.cover() == [(0, LEAF_SIZE)]
    landing.finish()
    landing.zero(Chunk(((LEAF_SIZE, LEAF_SIZE),), LEAF_SIZE, zero=True))
    landing.close()
    assert state.cover() == [(0, 2 * LEAF_SIZE)]
