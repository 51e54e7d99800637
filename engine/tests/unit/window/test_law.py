"""The law of the window, on a link and a disk in virtual time, and step by step."""

from __future__ import annotations

from itertools import pairwise

import pytest
from doubles.fluid import Fluid
from farshore.units import MIB, WINDOW_LEVELS
from farshore.window.law import REST_PROBE, Law
from farshore.window.meter import Meter, Signals

GOOD = Signals(seconds=1, chunks=100, goodput=100 * MIB)


def steps(fluid: Fluid) -> list[int]:
    """Return by how many levels each change went up or down."""
    return [WINDOW_LEVELS.index(one.to_bytes) - WINDOW_LEVELS.index(one.from_bytes) for one in fluid.changes]


@pytest.mark.parametrize("rtt", [0.02, 0.08, 0.2])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_window_that_the_link_limits_stays_but_for_rare_probes(rtt: float, seed: int) -> None:
    fluid = Fluid(seed, rtt=rtt, link=113, disk=800)
    assert fluid.run(120) > 0.98 * 113
    assert fluid.level == 32
    assert set(steps(fluid)) <= {1, -1}
    probes = [change.at for change in fluid.changes if change.to_bytes > change.from_bytes]
    assert len(probes) <= 4
    for one, other in pairwise(probes):
        assert other - one >= REST_PROBE


def test_a_long_fast_link_gets_the_highest_level() -> None:
    fluid = Fluid(1, rtt=0.2, link=280, disk=800)
    fluid.run(15)
    assert fluid.level == 64
    assert fluid.run(60) > 0.95 * 280
    assert all("probe" in change.reason for change in fluid.changes)


def test_answer_times_that_jump_about_delay_a_probe_and_do_not_turn_it_back() -> None:
    fluid = Fluid(1, rtt=0.2, link=280, disk=800)
    fluid.jitter = 1.0
    fluid.run(40)
    assert fluid.level == 64


def test_a_disk_that_becomes_slow_falls_at_once_and_comes_back() -> None:
    fluid = Fluid(1, rtt=0.2, link=280, disk=800)
    fluid.run(30)
    assert fluid.level == 64
    fluid.disk = 40
    before = len(fluid.changes)
    fluid.run(2.5)
    assert fluid.level <= 48
    assert "as long as they can" in fluid.changes[before].reason
    fluid.run(20)
    assert fluid.level == 16
    fluid.disk = 800
    fluid.run(60)
    assert fluid.level == 64
    assert fluid.run(10) > 0.95 * 280
    assert all(-2 <= step <= 1 for step in steps(fluid))


def test_a_disk_that_is_slower_than_the_link_gets_the_lowest_level() -> None:
    fluid = Fluid(1, rtt=0.08, link=113, disk=60)
    assert fluid.run(60) > 0.97 * 60
    assert fluid.level == 16


def test_a_disk_that_hangs_is_judged_without_a_write() -> None:
    fluid = Fluid(1, rtt=0.08, link=113, disk=800)
    fluid.run(10)
    before = len(fluid.changes)
    fluid.disk = 0.05
    for _ in range(6):
        fluid.run(1)
        fluid.scheduler.tick(1, fluid.now)
    assert fluid.level <= 24
    assert len(fluid.changes) > before


def test_tries_that_fail_take_a_level_and_many_take_two() -> None:
    fluid = Fluid(1, rtt=0.2, link=280, disk=800)
    fluid.run(30)
    fluid.errors = 0.3
    fluid.run(1.5)
    assert steps(fluid)[-1] == -2
    assert "tries failed" in fluid.changes[-1].reason
    fluid.errors = 0.0
    fluid.run(60)
    assert fluid.level == 64


def test_a_link_that_becomes_faster_is_probed_before_the_rest_is_over() -> None:
    fluid = Fluid(1, rtt=0.2, link=50, disk=800)
    fluid.run(30)
    assert fluid.level == 32
    fluid.link = 280
    fluid.run(15)
    assert fluid.level == 64


def test_a_disk_that_bears_many_writes_at_once_gets_them() -> None:
    fluid = Fluid(1, rtt=0.08, link=113, disk=20, parallel=16, writers=16)
    fluid.run(20)
    assert fluid.run(20) > 0.97 * 113
    assert fluid.scheduler.writers(1) >= 8


def test_writers_that_do_not_pay_are_taken_back() -> None:
    fluid = Fluid(1, rtt=0.08, link=113, disk=60, parallel=1, writers=16)
    fluid.run(30)
    assert fluid.scheduler.writers(1) <= 4


def test_a_level_that_is_the_only_one_never_changes() -> None:
    law = Law((8 * MIB,), 8 * MIB)
    for signals in (GOOD, Signals(1, 100, 1.0, slowness=10, queue=1.0), Signals(1, 100, 1.0, errors=0.5)):
        for now in range(50):
            assert law.step(signals, now) is None
    assert law.level == 8 * MIB


def test_a_start_that_is_no_level_is_refused() -> None:
    with pytest.raises(ValueError, match="none of the"):
        Law(WINDOW_LEVELS, 20 * MIB)


def test_a_node_under_pressure_gives_no_probe_and_takes_from_who_queues() -> None:
    law = Law(WINDOW_LEVELS, 32 * MIB)
    for now in range(20):
        assert law.step(Signals(1, 100, 100.0, pressed=True), now) is None
    change = law.step(Signals(1, 100, 100.0, queue=0.4, pressed=True), 20)
    assert change is not None
    assert change.to_bytes == 24 * MIB


def test_a_stall_during_a_probe_puts_its_judgement_off() -> None:
    law = Law(WINDOW_LEVELS, 32 * MIB)
    now = 0.0
    while law.level == 32 * MIB:
        now += 1
        law.step(GOOD, now)
    assert law.step(Signals(1, 10, 10 * MIB, stalled=True), now + 1) is None
    assert law.step(Signals(1, 150, 150 * MIB), now + 2) is None
    assert law.level == 48 * MIB


def test_a_gap_in_what_comes_is_a_stall_and_a_long_way_is_none() -> None:
    meter = Meter(0.0)
    for index in range(100):
        meter.received(MIB, 0.5, index / 100)
        meter.written(MIB, 0.001, index / 100)
    assert not meter.end(32 * MIB, 1.0).stalled
    meter.received(MIB, 0.5, 1.0)
    meter.received(MIB, 0.5, 3.5)
    assert meter.end(32 * MIB, 3.6).stalled


def test_a_write_is_compared_with_the_best_of_its_size() -> None:
    meter = Meter(0.0)
    for index in range(40):
        meter.received(MIB, 0.1, index / 40)
        meter.written(MIB, 0.010, index / 40)
        meter.received(MIB // 64, 0.1, index / 40)
        meter.written(MIB // 64, 0.002, index / 40)
    assert meter.end(32 * MIB, 1.0).slowness == 1.0
    for index in range(40):
        meter.received(MIB, 0.1, 1 + index / 40)
        meter.written(MIB, 0.050, 1 + index / 40)
    assert meter.end(32 * MIB, 2.0).slowness == pytest.approx(5.0)
