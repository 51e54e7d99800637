"""Where a request is asked: on the connection that will have answered it first."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from farshore.transport.pace import SLOWEST_PART, Pace, soonest
from farshore.units import MIB


@dataclass
class _One:
    load: int = 0
    pace: Pace = field(default_factory=Pace)


def paced(bytes_per_s: float, load: int = 0) -> _One:
    one = _One(load)
    one.pace.asked(0.0)
    for second in range(1, 20):
        one.pace.answered(int(bytes_per_s), float(second))
    return one


def test_what_has_shown_nothing_is_asked_in_turns_by_what_it_owes() -> None:
    assert Pace().bytes_per_s is None
    connections = [_One(2), _One(1), _One(3)]
    assert soonest(connections, MIB) is connections[1]


def test_a_pace_is_bytes_over_the_time_that_something_was_owed() -> None:
    pace = Pace()
    pace.asked(10.0)
    pace.answered(MIB, 10.5)
    pace.asked(100.0)  # idle in between: that says nothing
    pace.answered(MIB, 100.5)
    assert pace.bytes_per_s == pytest.approx(2 * MIB)


def test_a_pace_follows_a_change_within_seconds() -> None:
    one = paced(8 * MIB)
    assert one.pace.bytes_per_s == pytest.approx(8 * MIB)
    for second in range(20, 28):
        one.pace.answered(MIB, float(second))
    assert one.pace.bytes_per_s == pytest.approx(MIB, rel=0.5)


def test_requests_spread_so_that_answers_are_complete_together() -> None:
    fast, slow, new = paced(3 * MIB), paced(MIB), _One()
    connections = [fast, slow, new]
    for _ in range(60):
        soonest(connections, MIB).load += MIB
    assert [one.load // MIB for one in connections] == [30, 10, 20], "the new one counts as average"


def test_a_slow_connection_is_asked_now_and_then_so_that_it_can_show_better() -> None:
    fast, stuck = paced(80 * MIB), paced(1024)
    for _ in range(100):
        soonest([fast, stuck], MIB).load += MIB
    assert stuck.load / fast.load == pytest.approx(SLOWEST_PART / 2, rel=0.3)
