"""The audit's rotation: who has a turn when, and how far back a missed change reaches."""

from __future__ import annotations

from typing import Any

import pytest
from doubles.manifests import a_manifest
from farshore.checkpoints import audit
from farshore.checkpoints.audit import UNIT_LEAVES
from farshore.model.checkpoint import DiskPoint, Manifest
from farshore.model.integrity import Addendum, DiskAudit, integrity_of
from hypothesis import given
from hypothesis import strategies as st

KEY = "db/vda"


@pytest.mark.parametrize(("fraction", "slots"), [(0.02, 50), (0.25, 4), (1, 1), (0.3, 4), (0.001, 1000), (0, 0)])
def test_a_fraction_is_a_number_of_cycles(fraction: float, slots: int) -> None:
    assert audit.slots_of(fraction) == slots


@given(st.integers(1, 20_000), st.integers(1, 60), st.integers(0, 1000), st.text(max_size=20))
def test_every_leaf_has_its_turn_once_in_a_rotation(leaves: int, slots: int, start: int, key: str) -> None:
    seen: list[int] = []
    for turn in range(start, start + slots):
        runs = list(audit.due(key, leaves, slots, turn))
        assert runs == sorted(runs)
        seen.extend(leaf for first, stop in runs for leaf in range(first, stop))
    assert sorted(seen) == list(range(leaves))


@given(st.integers(1, 20_000), st.integers(1, 60), st.integers(0, 1000))
def test_what_is_due_is_what_is_covered(leaves: int, slots: int, turn: int) -> None:
    record = DiskAudit(slots=slots, turn=turn)
    due = set(audit.due(KEY, leaves, slots, turn))
    for first in range(0, leaves, UNIT_LEAVES):
        stop = min(first + UNIT_LEAVES, leaves)
        assert audit.covers(record, KEY, first, stop) is ((first, stop) in due)


def test_each_turn_reads_the_same_share_in_an_order_of_the_disks_own() -> None:
    leaves = 100 * 50 * UNIT_LEAVES
    orders = []
    for key in ("a/vda", "b/vda"):
        runs = list(audit.due(key, leaves, 50, 7))
        assert sum(stop - first for first, stop in runs) == leaves // 50
        orders.append(runs)
    assert orders[0] != orders[1]


def checkpoint(sequence: int, record: DiskAudit | None, key: str = KEY) -> Manifest:
    disk = DiskPoint(
        disk_key=key, size_bytes=1 << 30, point=f"p-{sequence}", tree_root="0" * 64, source_point="s", audit=record
    )
    return a_manifest(sequence=sequence, disks=(disk,))


def test_a_missed_change_reaches_back_to_the_last_clean_audit() -> None:
    turn = next(turn for turn in range(4) if (0, UNIT_LEAVES) in set(audit.due(KEY, 1 << 14, 4, turn)))
    clean = DiskAudit(slots=4, turn=turn)
    others = [DiskAudit(slots=4, turn=turn + step) for step in (1, 2, 3)]
    history = [
        checkpoint(9, others[2]),
        checkpoint(8, others[1]),
        checkpoint(7, None),
        checkpoint(6, others[0], key="db/vdb"),  # without the disk
        checkpoint(5, clean),
        checkpoint(4, others[0]),
    ]
    names = [one.sequence for one in audit.touched(history, KEY, 0, 1)]
    assert names == [9, 8, 7]
    # A run that goes on into leaves that had no turn there reaches further.
    assert [one.sequence for one in audit.touched(history, KEY, 0, UNIT_LEAVES + 1)] == [9, 8, 7, 5, 4]
    assert audit.most_touched(history, KEY) == 5
    whole = [checkpoint(3, others[0]), checkpoint(2, DiskAudit(slots=0, turn=0, whole=True)), checkpoint(1, None)]
    assert [one.sequence for one in audit.touched(whole, KEY, 0, 1000)] == [3]
    assert audit.most_touched(whole, KEY) == 1


def test_turns_go_on_through_whole_comparisons() -> None:
    first = audit.following(None, 0.5, whole=True)
    second = audit.following(first, 0.5, whole=False)
    assert (first.turn, second.turn, second.slots, second.whole) == (0, 1, 2, False)


def addendum(by: str, verdict: str, at: float) -> Addendum:
    values: dict[str, Any] = {"checkpoint_id": "cp", "group_id": "g", "epoch": 1, "sequence": 1, "origin": "o"}
    return Addendum.model_validate({**values, "by": by, "verdict": verdict, "at": at, "reason": ""})


def test_a_scrub_lifts_what_a_scrub_has_found_but_no_doubt_of_an_audit() -> None:
    bad, good = addendum("scrub", "suspect", 1), addendum("scrub", "verified", 2)
    assert integrity_of([]) == "audited"
    assert integrity_of([good]) == "verified"
    assert integrity_of([good, bad]) == "verified"
    assert integrity_of([addendum("scrub", "suspect", 3), good]) == "suspect"
    assert integrity_of([addendum("audit", "suspect", 0), good]) == "suspect"
