"""Which points stay, whatever they are like and whatever the rules."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from farshore.checkpoints.retention import LEAST, Decision, Held, decide
from farshore.model.plan import Retention
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()
HOUR, DAY = 3600.0, 86400.0

flags = st.booleans() | st.just(False)
marks = st.fixed_dictionaries(
    {name: st.just(False) | flags for name in ("pinned", "legal_hold", "in_use", "suspect", "began")}
    | {"clean": st.just(True) | flags}
)


@st.composite
def histories(draw: st.DrawFn) -> list[Held]:
    """Points with strictly growing times: minutes to weeks apart."""
    gaps = draw(st.lists(st.floats(60, 30 * DAY), max_size=40))
    times = [NOW - sum(gaps[index:]) for index in range(len(gaps))]
    return [Held(f"cp-{number}", at, **draw(marks)) for number, at in enumerate(times)]


@st.composite
def rules(draw: st.DrawFn) -> Retention:
    """Any rules that a plan may have."""
    counts = {name: draw(st.integers(0, 6)) for name in ("hourly", "daily", "weekly", "monthly")}
    age = draw(st.none() | st.floats(HOUR, 400 * DAY))
    return Retention(count=draw(st.integers(1, 8)), **counts, max_age=age, max_chain=draw(st.integers(32, 40)))


def left(points: list[Held], decision: Decision) -> list[Held]:
    return [point for point in points if point.checkpoint_id not in decision.goes]


@settings(max_examples=300, deadline=None)
@given(histories(), rules())
def test_what_must_stay_stays_whatever_the_rules(points: list[Held], wanted: Retention) -> None:
    decision = decide(points, wanted, NOW)
    stays = left(points, decision)
    assert [one.checkpoint_id for one in decision.verdicts] == [one.checkpoint_id for one in points]
    assert all(one.reasons for one in decision.verdicts)
    for point in points:
        if point.pinned or point.legal_hold or point.in_use or point.began:
            assert point in stays
    assert points[-1:] == stays[-1:]
    assert [p for p in points if not p.suspect][-1:] == [p for p in stays if not p.suspect][-1:]
    sound = [p for p in points if p.clean and not p.suspect]
    assert sound[-1:] == [p for p in stays if p.clean and not p.suspect][-1:]
    assert len(stays) >= min(LEAST, len(points))
    for point, successor in pairwise(points):
        assert point in stays or not successor.in_use


@settings(max_examples=300, deadline=None)
@given(histories(), rules())
def test_thinning_again_takes_nothing_more(points: list[Held], wanted: Retention) -> None:
    stays = left(points, decide(points, wanted, NOW))
    assert decide(stays, wanted, NOW).goes == []


@settings(max_examples=200, deadline=None)
@given(histories(), rules(), st.floats(60, DAY))
def test_what_was_taken_is_not_missed_when_the_next_point_comes(
    points: list[Held], wanted: Retention, gap: float
) -> None:
    """Thinning after each cycle keeps what thinning once at the end would have kept of the finished periods."""
    plain = [replace(p, pinned=False, legal_hold=False, in_use=False, began=False) for p in points]
    wanted = wanted.model_copy(update={"max_age": None})
    later = Held("cp-new", NOW + gap)
    at_once = left([*plain, later], decide([*plain, later], wanted, NOW + gap))
    before = left(plain, decide(plain, wanted, NOW))
    in_turn = left([*before, later], decide([*before, later], wanted, NOW + gap))
    assert {p.checkpoint_id for p in at_once} <= {p.checkpoint_id for p in in_turn} | {
        p.checkpoint_id for p in plain if p not in before
    }
    kept_by_rule = {
        verdict.checkpoint_id
        for verdict in decide([*plain, later], wanted, NOW + gap).verdicts
        if set(verdict.reasons) & {"count", "hourly", "daily", "weekly", "monthly"}
    }
    assert kept_by_rule <= {p.checkpoint_id for p in in_turn}


@settings(max_examples=200, deadline=None)
@given(histories(), rules())
def test_nothing_older_than_max_age_stays_by_a_rule(points: list[Held], wanted: Retention) -> None:
    for verdict, point in zip(decide(points, wanted, NOW).verdicts, points, strict=True):
        if verdict.stays and wanted.max_age is not None and NOW - point.taken_at > wanted.max_age:
            assert set(verdict.reasons) - {"count", "hourly", "daily", "weekly", "monthly"}


@given(st.integers(4, 60), st.integers(4, 20), st.integers(1, 4))
def test_the_chain_is_thinned_before_its_limit_unless_pins_forbid_it(number: int, max_chain: int, count: int) -> None:
    rules_ = Retention(count=count, max_chain=max_chain)
    plain = [Held(f"cp-{index}", NOW - number + index) for index in range(number)]
    assert len(left(plain, decide(plain, rules_, NOW))) < max_chain
    pinned = [replace(point, pinned=True) for point in plain]
    decision = decide(pinned, rules_, NOW)
    assert decision.goes == []
    assert decision.crowded is (number >= max_chain)


def test_a_year_of_hourly_points_thins_to_hours_days_weeks_and_months() -> None:
    wanted = Retention(count=2, hourly=6, daily=7, weekly=4, monthly=12, max_chain=64)
    points: list[Held] = []
    for hour in range(365 * 24):
        at = NOW - 365 * DAY + hour * HOUR
        points.append(Held(f"cp-{hour}", at))
        points = left(points, decide(points, wanted, at))
    days = {datetime.fromtimestamp(point.taken_at, UTC).date() for point in points}
    months = {(day.year, day.month) for day in days}
    assert len(months) == 12
    assert len(points) <= 2 + 6 + 7 + 4 + 12
    newest_days = sorted(days)[-7:]
    assert (newest_days[-1] - newest_days[0]).days == 6


def test_rules_that_want_more_than_the_chain_holds_are_refused() -> None:
    with pytest.raises(ValidationError, match="more than max_chain: 32"):
        Retention(count=8, hourly=24, daily=7)
