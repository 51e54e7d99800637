"""The geometry and the words of the pages."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from farshore.control.ui import figures

NOW = datetime(2026, 1, 31, 8, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "\N{EN DASH}"),
        (0.4, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (5400, "1 h 30 min"),
        (-3, "0 s"),
    ],
)
def test_a_growing_duration_has_whole_seconds(seconds: float | None, text: str):
    assert figures.span(seconds) == text


def test_times_before_and_after_now():
    assert figures.ago("2026-01-31T07:59:18Z", NOW) == "42 s ago"
    assert figures.ago("2026-01-31T08:01:00Z", NOW) == "in 1 min"
    assert figures.ago("2026-01-31T08:00:00.5Z", NOW) == "now"
    assert figures.ago(None, NOW) == "never"


def test_an_rpo_bar_reaches_the_mark_at_its_target_and_never_leaves_the_track():
    assert figures.rpo_fill(60, 60) == figures.RPO_MARK
    assert figures.rpo_fill(30, 60) == figures.RPO_MARK / 2
    assert figures.rpo_fill(6000, 60) == 100
    assert figures.rpo_fill(None, 60) == 0
    assert figures.rpo_fill(5, 0) == 0


def step(began: str | None, ended: str | None, state: str = "succeeded") -> dict[str, object]:
    at = {mark: f"2026-01-31T08:00:{mark}Z" for mark in (began, ended) if mark}
    return {"started_at": at.get(began), "ended_at": at.get(ended), "state": state}


def test_steps_lie_in_the_timeline_where_they_ran():
    run = {"steps": [step("00", "05"), step("05", "10"), step(None, None)], "ended_at": "2026-01-31T08:00:10Z"}
    first, second, third = figures.timeline(run, NOW)
    assert (first.x, first.width) == (0, 50)
    assert (second.x, second.width) == (50, 50)
    assert third is None


def test_a_step_that_runs_reaches_to_now_and_a_short_one_is_still_seen():
    run = {"steps": [step("00", "00"), step("00", None, "running")], "ended_at": None}
    short, running = figures.timeline(run, datetime(2026, 1, 31, 8, 0, 20, tzinfo=UTC))
    assert short.width > 0
    assert (running.x, running.width) == (0, 100)


def test_a_run_that_has_not_begun_has_no_bars():
    assert figures.timeline({"steps": [step(None, None)], "ended_at": None}, NOW) == [None]


def test_no_bar_leaves_its_track():
    run = {"steps": [step("00", "00"), step("10", "10")], "ended_at": "2026-01-31T08:00:10Z"}
    assert all(bar.x + bar.width <= 100.0001 for bar in figures.timeline(run, NOW) if bar)


def cycle(moved: int, mode: str = "incremental") -> dict[str, object]:
    stats = {"mode": mode, "moved_bytes": moved, "disk_bytes": 1 << 30, "seconds": 1.0}
    return {"stats": stats, "machines": ["db"], "published_at": "2026-01-31T08:00:00Z"}


def test_the_oldest_cycle_is_left_and_a_small_one_is_seen_beside_a_full_one():
    bars = figures.cycle_bars([cycle(1 << 17), cycle(1 << 29, "full"), {"stats": None}])
    assert [bar.tone for bar in bars] == ["full", "incremental"]
    assert bars[0].x == 0
    assert 3 <= bars[1].height < bars[0].height <= 96


def test_cycles_that_moved_nothing_have_bars_too():
    assert [bar.height for bar in figures.cycle_bars([cycle(0)])] == [3]
    assert figures.cycle_bars([]) == []


def test_a_run_is_measured_by_bytes_else_by_steps():
    by_bytes = {"state": "running", "progress": {"done_bytes": 1, "total_bytes": 4}, "steps": []}
    by_steps = {"state": "running", "progress": None, "steps": [step("00", "01"), step("01", None, "running")]}
    assert figures.run_share(by_bytes) == 25
    assert figures.run_share(by_steps) == 50
    assert figures.run_share({"state": "failed"}) == 100
