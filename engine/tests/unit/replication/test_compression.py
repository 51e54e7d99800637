"""The law of compression: it finds what pays, leaves what does not, and comes back when the link changes."""

from __future__ import annotations

import pytest
from farshore.replication.compression import RATIO_MAX, SKIP_MAX, TRIAL_EVERY, CompressionLaw, WireRate
from farshore.units import KIB, MIB
from hypothesis import given, settings
from hypothesis import strategies as st

COST_S = 0.0033  # per MiB, one core


class Model:
    """A disk on a link: chunks of 1 MiB over 8 connections that share ``link`` bytes per second."""

    def __init__(self, link: float, ratio: float, cores: int = 2, blocked: bool = True, miss_s: float = COST_S) -> None:
        self.miss_s = miss_s
        self.link = link
        self.ratio = ratio
        self.blocked = blocked
        self.rate = WireRate()
        self.law = CompressionLaw(self.rate, cores)
        self.now = 1000.0
        self.tried = self.sent_packed = 0

    def run(self, chunks: int) -> float:
        """Send so many chunks; return the part of them that went compressed."""
        before = self.sent_packed
        for _ in range(chunks):
            wire, used = MIB, False
            if self.law.wants(MIB, self.now):
                self.tried += 1
                used = self.law.packed(MIB, int(MIB * self.ratio), COST_S if self.ratio < 1 else self.miss_s)
            if used:
                wire = int(MIB * self.ratio)
                self.sent_packed += 1
            spent = wire / self.link
            self.now += spent
            self.rate.add(wire, self.now)
            self.law.sent(wire, 8 * spent if self.blocked else 0.0)
        return (self.sent_packed - before) / chunks


def test_a_slow_link_gets_what_shrinks_compressed() -> None:
    assert Model(link=100 * MIB, ratio=0.5).run(200) > 0.97


def test_noise_is_found_out_chunk_by_chunk() -> None:
    """A miss that costs next to nothing is no reason to miss what shrinks beside it."""
    model = Model(link=100 * MIB, ratio=1.0, miss_s=0.00012)
    for _ in range(50):
        model.ratio = 1.0
        assert model.run(4) == 0
        model.ratio = 0.5
        model.run(4)
    assert model.sent_packed >= 190


def test_what_does_not_shrink_is_hardly_tried_where_that_costs() -> None:
    model = Model(link=700 * MIB, ratio=1.0, cores=16)
    assert model.run(1000) == 0
    assert model.tried <= 1000 / SKIP_MAX + 10
    model.ratio = 0.4
    model.run(SKIP_MAX)
    assert model.run(50) == 1, "one hit ends the skipping"


def test_a_link_that_outruns_compression_is_left_alone() -> None:
    model = Model(link=2000 * MIB, ratio=0.3)
    model.run(3000)
    assert model.tried <= 3000 / TRIAL_EVERY + 100
    assert model.run(1000) < 0.02


def test_a_link_that_is_quicker_than_needed_costs_nothing() -> None:
    """Nothing waits for room in the socket: the target or its storage is what takes the time."""
    model = Model(link=50 * MIB, ratio=0.3, blocked=False)
    assert model.run(2000) <= 2000 / TRIAL_EVERY / 2000 + 0.01


def test_more_cores_follow_a_quicker_link() -> None:
    assert Model(link=1000 * MIB, ratio=0.4, cores=2).run(2000) < 0.2
    assert Model(link=1000 * MIB, ratio=0.4, cores=32).run(2000) > 0.9


def test_it_follows_a_link_that_changes() -> None:
    model = Model(link=3000 * MIB, ratio=0.4)
    model.run(4000)
    model.link = 40 * MIB
    model.run(100)
    assert model.run(200) > 0.95
    model.link = 3000 * MIB
    model.run(2000)
    assert model.run(1000) < 0.05


def test_small_chunks_go_as_they_are() -> None:
    model = Model(link=MIB, ratio=0.1)
    model.run(50)
    assert not model.law.wants(4095, model.now)
    assert model.law.wants(4096, model.now)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 1.2), st.floats(1e-6, 1.0), st.floats(0, 10.0)), max_size=300))
def test_no_chunk_is_sent_larger_than_the_limit(samples: list[tuple[float, float, float]]) -> None:
    law, now = CompressionLaw(WireRate(), 2), 5.0
    for ratio, cost_s, blocked_s in samples:
        now += blocked_s
        wire = 64 * KIB
        if law.wants(wire, now):
            used = law.packed(wire, int(wire * ratio), cost_s)
            assert used == (int(wire * ratio) / wire <= RATIO_MAX)
        law.sent(wire, blocked_s)


@pytest.mark.parametrize("per_second", [MIB, 500 * MIB])
def test_the_rate_is_that_of_the_last_second(per_second: int) -> None:
    rate, now = WireRate(), 77.0
    for _ in range(400):
        now += 0.01
        rate.add(per_second // 100, now)
    assert rate.per_second(now) == pytest.approx(per_second, rel=0.1)
    assert rate.per_second(now + 5) == 0
    rate.add(1000, now + 100)
    assert rate.per_second(now + 100) <= 10_000
