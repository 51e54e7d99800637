"""When cycles begin, and what the pure halves of scheduling say."""

from __future__ import annotations

import pytest
from farshore.control.scheduling import due
from farshore.control.scheduling.due import GroupState
from hypothesis import given
from hypothesis import strategies as st


def group(**changes: object) -> GroupState:
    values: dict[str, object] = {
        "rpo_s": 900.0,
        "active": True,
        "busy": False,
        "newest_age_s": 10.0,
        "last_cycle_s": 20.0,
    }
    return GroupState(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "is_due"),
    [
        ({}, False),
        ({"newest_age_s": None}, True),
        ({"newest_age_s": 450}, True),
        ({"newest_age_s": 449}, False),
        ({"newest_age_s": 450, "busy": True}, False),
        ({"newest_age_s": 450, "active": False}, False),
        ({"newest_age_s": 450, "pause_s": 1}, False),
        ({"newest_age_s": 150, "last_cycle_s": 500}, True),  # 900 - 1.5 * 500
        ({"newest_age_s": 0, "last_cycle_s": 2000}, True),  # longer than the RPO: one after the other
    ],
)
def test_a_group_is_due_early_enough_for_its_cycle(changes: dict[str, object], is_due: bool) -> None:
    assert due.is_due(group(**changes)) is is_due


@given(st.floats(10, 1e6), st.floats(0, 1e6))
def test_the_rpo_holds_whenever_a_cycle_is_short_enough(rpo_s: float, cycle_s: float) -> None:
    wait = due.wait_s(rpo_s, 0.0, cycle_s)
    assert 0 <= wait <= rpo_s / 2
    if cycle_s <= rpo_s / 1.5:
        assert wait + cycle_s <= rpo_s + 1e-6


@given(st.floats(10, 1e6), st.integers(0, 60))
def test_pauses_grow_and_stay_within_the_rhythm(rpo_s: float, failures: int) -> None:
    pause = due.pause_after(failures, rpo_s)
    assert pause <= due.pause_after(failures + 1, rpo_s)
    assert pause <= max(due.FIRST_PAUSE_S, rpo_s / 2)
    assert (pause == 0) == (failures == 0)
