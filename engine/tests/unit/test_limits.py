"""A rate holds over time, whatever is taken at once and however it changes."""

from __future__ import annotations

import math
from bisect import bisect_left

import pytest
from farshore.limits import SAVED_S, Bucket
from farshore.units import MIB
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=100, deadline=None)
@given(
    rates=st.lists(st.integers(4 * MIB, 2000 * MIB), min_size=1, max_size=3),
    sizes=st.lists(st.integers(1, MIB), min_size=1, max_size=20),
)
def test_a_rate_holds_within_5_percent_over_10_s_also_when_it_changes(rates: list[int], sizes: list[int]) -> None:
    bucket = Bucket(rates[0], 0.0)
    now, step = 0.0, 0
    for index, rate in enumerate(rates):
        bucket.change(rate, now)
        end, taken = (index + 1) * 10.0, 0
        step_bytes = max(1, rate // 3000)  # bounds the work of the test, not what may be taken
        while (at := bucket.ready_at(now)) < end:
            now = at
            size = max(sizes[step % len(sizes)], step_bytes)
            bucket.take(size, now)
            taken += size
            step += 1
        now = end
        assert taken == pytest.approx(rate * 10, rel=0.05, abs=2 * MIB)


@settings(max_examples=100, deadline=None)
@given(
    rate=st.floats(1, 100),
    saved_s=st.sampled_from([0.0, 0.03, 0.1]),
    late=st.lists(st.sampled_from([0.0, 0.001, 0.02, 0.5, 3.0]), min_size=1, max_size=30),
)
def test_no_second_has_more_calls_than_the_rate_what_is_saved_and_one(
    rate: float, saved_s: float, late: list[float]
) -> None:
    bucket = Bucket(rate, 0.0, "ops", saved_s)
    now, calls = 0.0, []
    for index in range(200):
        now = bucket.ready_at(now) + late[index % len(late)]
        bucket.take(1, now)
        calls.append(now)
    most = max(bisect_left(calls, first + 1.0) - index for index, first in enumerate(calls))
    assert most <= rate * (1 + saved_s) + 1 + 1e-6


def test_who_was_idle_has_saved_up_a_tenth_of_a_second() -> None:
    bucket = Bucket(10 * MIB, 0.0)
    now, taken = 1000.0, 0
    while bucket.ready_at(now) == now:
        bucket.take(MIB // 8, now)
        taken += MIB // 8
    assert taken <= 10 * MIB * SAVED_S + MIB // 8


def test_what_did_not_cross_the_link_is_given_back() -> None:
    bucket = Bucket(MIB, 0.0)
    bucket.take(MIB, 0.0)
    assert bucket.ready_at(0.0) == pytest.approx(1.0)
    bucket.give_back(MIB // 2)
    assert bucket.ready_at(0.0) == pytest.approx(0.5)


def test_no_limit_lets_all_pass_and_zero_nothing() -> None:
    bucket = Bucket()
    bucket.take(10**12, 0.0)
    assert bucket.ready_at(0.0) == 0.0
    bucket.change(0, 1.0)
    assert bucket.ready_at(2.0) == math.inf
    bucket.change(MIB, 3.0)
    assert bucket.ready_at(3.0) == 3.0


def test_a_rate_that_is_none_is_refused() -> None:
    for rate in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="no rate"):
            Bucket(rate)
