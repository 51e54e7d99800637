"""What a draft's journal remembers, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from farshore.blocks.rangeset import RangeSet
from farshore.errors import Conflict, Corruption, Retry
from farshore.journal.leaves import Leaves
from farshore.journal.log import BODY_MAX, Log, encode
from farshore.journal.state import (
    Copied,
    Counters,
    DraftState,
    Known,
    Sealed,
    Subject,
    decode_ranges,
    encode_ranges,
    read_subject,
)

SUBJECT = Subject("grp", "cp-1", "web/vda", 1 << 20, "pt-2", "pt-1", "point-1", 1)


def test_a_journal_goes_on_where_it_was(tmp_path: Path) -> None:
    state = DraftState(tmp_path / "one", SUBJECT, "draft-1")
    assert not state.resumed
    state.leaves.put(3, b"x" * 32)
    state.mark(RangeSet([(0, 100), (200, 300)]), Counters(moved_bytes=200))
    state.mark(RangeSet([(100, 200)]), Counters(moved_bytes=300, zero_bytes=7))
    state.finish(Copied("ab" * 32, "verify", "because"))
    state.close()
    again = DraftState(tmp_path / "one", SUBJECT, "draft-2")
    assert again.resumed
    assert list(again.durable) == [(0, 300)]
    assert again.counters == Counters(moved_bytes=300, zero_bytes=7)
    assert again.draft_key == "draft-1", "the draft keeps the name that it began with"
    assert (again.copied, again.sealed) == (Copied("ab" * 32, "verify", "because"), None)
    assert list(again.leaves.runs()) == [(3, b"x" * 32)]
    again.seal(Sealed("point-2", "ab" * 32))
    again.close()
    sealed = Sealed("point-2", "ab" * 32)
    assert read_subject(tmp_path / "one") == Known(SUBJECT, "draft-1", copied=True, sealed=sealed, exact=True)
    assert read_subject(tmp_path / "two") is None


def test_nothing_is_copied_while_something_touched_is_not_durable(tmp_path: Path) -> None:
    state = DraftState(tmp_path, SUBJECT, "draft-1")
    state.touch([(0, 100), (200, 300)])
    state.mark(RangeSet([(0, 100)]), Counters(moved_bytes=100))
    with pytest.raises(Retry, match="100 bytes"):
        state.finish(Copied("ab" * 32, "full", ""))
    assert state.copied is None
    state.mark(RangeSet([(200, 300)]), Counters(moved_bytes=200))
    state.finish(Copied("ab" * 32, "full", ""))
    state.close()


def test_a_lost_draft_begins_a_new_generation(tmp_path: Path) -> None:
    state = DraftState(tmp_path, SUBJECT, "draft-1")
    state.mark(RangeSet([(0, 100)]), Counters(moved_bytes=100))
    state.finish(Copied("ab" * 32, "full", ""))
    state.close()
    state = DraftState(tmp_path, SUBJECT, "draft-1")
    state.seek()
    assert state.sought
    assert state.lost() == 100
    state.mark(RangeSet([(50, 60)]), state.counters)
    state.close()
    again = DraftState(tmp_path, SUBJECT, "draft-1")
    assert (again.draft_key, again.sought) == ("draft-1.g2", False), "what is known of the first is not known of this"
    assert list(again.durable) == [(50, 60)]
    assert (again.generation, again.copied) == (2, None)
    assert again.counters.resent_bytes == 100
    again.close()


@pytest.mark.parametrize(
    "other",
    [
        replace(SUBJECT, base_point=None),
        replace(SUBJECT, size_bytes=512),
        replace(SUBJECT, epoch=2),
    ],
)
def test_the_journal_of_another_cycle_is_refused(tmp_path: Path, other: Subject) -> None:
    DraftState(tmp_path, SUBJECT, "draft-1").close()
    with pytest.raises(Conflict) as caught:
        DraftState(tmp_path, other, "draft-1")
    assert caught.value.code == "journal-mismatch"


LATER = replace(SUBJECT, checkpoint_id="cp-2", source_point="pt-3")


def half_full(path: Path) -> None:
    """Leave a journal with 0..300 durable and 300..500 touched, as a killed process does."""
    state = DraftState(path, SUBJECT, "draft-1")
    state.touch([(0, 100), (200, 300)])
    state.touch([(300, 350)])
    state.mark(RangeSet([(0, 100), (200, 300)]), Counters(moved_bytes=200))
    state.touch([(350, 500)])
    state._log.close()
    state.leaves.close()


def test_a_journal_passes_to_another_source_point(tmp_path: Path) -> None:
    half_full(tmp_path)
    state = DraftState(tmp_path, LATER, "draft-2")
    assert state.draft_key == "draft-1"
    assert state.resumed
    assert state.adopted
    assert (list(state.durable), list(state.held)) == ([], [(0, 100), (200, 300)])
    assert list(state.dirty) == [(300, 500)]
    state.prove(RangeSet([(0, 50)]))
    for _ in range(2):
        assert (list(state.durable), list(state.held)) == ([(0, 50)], [])
        assert list(state.dirty) == [(50, 100), (200, 500)]
        state.close()
        state = DraftState(tmp_path, LATER, "draft-2")
    state.touch([(50, 100)])
    state.mark(RangeSet([(50, 100)]), state.counters)
    state.close()
    state = DraftState(tmp_path, replace(LATER, source_point="pt-4"), "draft-3")
    assert (list(state.durable), list(state.held), list(state.dirty)) == ([], [(0, 100)], [(200, 500)])
    assert state.lost() == 100
    assert (len(state.held), len(state.dirty), state.adopted) == (0, 0, False)
    state.close()


def test_a_journal_that_may_miss_a_write_passes_to_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut nobody knows what was written behind the last mark; after an orderly end it is known."""
    half_full(tmp_path / "cut")
    half_full(tmp_path / "ended")
    DraftState(tmp_path / "ended", SUBJECT, "draft-1").close()
    monkeypatch.setattr("farshore.journal.state.boot_id", lambda: "another boot")
    known = read_subject(tmp_path / "cut")
    assert known is not None
    assert not known.exact
    with pytest.raises(Conflict) as caught:
        DraftState(tmp_path / "cut", LATER, "draft-2")
    assert caught.value.code == "journal-mismatch"
    DraftState(tmp_path / "cut", SUBJECT, "draft-1").close()
    with pytest.raises(Conflict):
        DraftState(tmp_path / "cut", LATER, "draft-2")
    DraftState(tmp_path / "ended", LATER, "draft-2").close()


def test_what_another_node_called_durable_has_to_be_proven(tmp_path: Path) -> None:
    state = DraftState(tmp_path, SUBJECT, "draft-2", draft_key="draft-of-the-other", taken=[(0, 100), (200, 300)])
    assert (list(state.durable), list(state.held), state.adopted) == ([], [(0, 100), (200, 300)], False)
    state.prove(RangeSet([(200, 300)]))
    assert state.cover() == [(200, 300)]
    state.close()
    with pytest.raises(Conflict):  # what else the other one wrote is not known here
        DraftState(tmp_path, LATER, "draft-2")


def test_a_cover_names_nothing_but_what_is_durable(tmp_path: Path) -> None:
    state = DraftState(tmp_path, SUBJECT, "draft-1")
    ranges = [(at * 100, at * 100 + 10 + at % 7) for at in range(20_000)]
    for at in range(0, len(ranges), 500):
        state.mark(RangeSet(ranges[at : at + 500]), Counters())
    everything = RangeSet(ranges)
    assert len(state.cover()) == 4096
    assert all(everything.covers(*span) for span in state.cover())
    assert {stop - start for start, stop in state.cover(100)} == {16}, "the largest are kept"
    assert state.cover() == sorted(state.cover())
    state.close()


def test_a_log_that_failed_takes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(tmp_path / "log")
    log.append((1, b"one"))

    def fail(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("farshore.journal.log.os.fsync", fail)
        with pytest.raises(OSError, match="Input/output"):
            log.append((1, b"two"))
    with pytest.raises(Corruption) as caught:
        log.append((1, b"three"))
    assert caught.value.code == "journal-broken"
    log.close()


def test_a_record_that_is_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="too large"):
        encode(0, 1, bytes(BODY_MAX + 1))


def test_a_million_ranges_are_split_over_records() -> None:
    ranges = [(at * 8192, at * 8192 + 4096) for at in range(200_000)]
    bodies = list(encode_ranges(ranges))
    assert len(bodies) > 1
    assert all(len(body) <= BODY_MAX for body in bodies)
    assert [span for body in bodies for span in decode_ranges(body)] == ranges


def test_leaves_are_sparse_and_come_in_order(tmp_path: Path) -> None:
    leaves = Leaves(tmp_path / "leaves")
    expected = {index: bytes([index % 255 + 1]) * 32 for index in (0, 1, 255, 256, 5000, 268_435_455)}
    for index in reversed(expected):
        leaves.put(index, expected[index])
    leaves.put(700, b"a" * 32 + b"b" * 32)
    expected[0] += expected.pop(1)
    expected |= {700: b"a" * 32 + b"b" * 32}
    assert list(leaves.runs()) == sorted(expected.items())
    assert leaves.has(700, 702)
    assert not leaves.has(699, 702)
    assert not leaves.has(268_435_455, 268_435_457)
    assert (tmp_path / "leaves").stat().st_blocks * 512 < 200_000
    leaves.close()
